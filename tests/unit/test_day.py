"""Adding up what files add to a day: counts, statistics, shares with intervals."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest

from classify.day import Contribution, topics_of_day
from classify.quantify import Reference
from classify.tally import Tally
from shared.errors import BadInput
from tests.world import starter

TOPICS = ("c#", "java", "other")
DAY, NEXT = date(2026, 11, 21), date(2026, 11, 22)
NUMBER = (DAY - date(1970, 1, 1)).days


def tally(
    topics: list[int], days: list[int] | None = None, types: list[int] | None = None, guess: bool = False
) -> Tally:
    made = Tally(TOPICS)
    count = len(topics)
    days_, types_ = np.array(days or [NUMBER] * count, np.int32), np.array(types or [1] * count)
    posteriors = np.full((count, 3), 0.1, np.float32)
    posteriors[np.arange(count), topics] = 0.8
    guessed = np.full(count, guess)
    made.add(days_, types_, np.array(topics, np.int32), guessed, posteriors, np.full(count, 0.5, np.float32))
    return made


def no_reference(model: str) -> Reference:
    raise AssertionError(f"{model} is not needed")


def test_counts_are_kept_by_day_topic_and_type() -> None:
    made = tally([0, 0, 1, 2], days=[NUMBER, NUMBER, NUMBER, NUMBER + 1], types=[1, 2, 2, 1])
    counted, statistics = made.of(DAY)
    assert counted == {"c#": (1, 1), "java": (0, 1)}
    assert statistics.known.tolist() == [2, 1, 0]
    assert made.of(NEXT)[0] == {"other": (1, 0)}
    assert made.days() == [DAY, NEXT]


def test_a_contribution_is_stored_and_read_back_whole() -> None:
    made = tally([0, 1, 1], guess=True)
    made.add(np.array([NUMBER + 1], np.int32), np.array([2]), np.array([2], np.int32))
    read = Contribution.from_parquet(Contribution("m1", made).to_parquet(), "here")
    assert (read.model, read.tally.topics, read.tally.days()) == ("m1", TOPICS, [DAY, NEXT])
    for day in (DAY, NEXT):
        (counted, statistics), (counted_back, statistics_back) = made.of(day), read.tally.of(day)
        assert counted == counted_back
        assert statistics.to_json() == statistics_back.to_json()
    with pytest.raises(BadInput, match="here does not hold the counts"):
        Contribution.from_parquet(b"no", "here")


def test_batches_add_up_to_the_whole() -> None:
    whole, pieces = tally([0, 1, 1, 2, 0], guess=True), Tally(TOPICS)
    for part in ([0, 1], [1, 2, 0]):
        pieces.add_table(tally(part, guess=True).to_table())
    assert pieces.of(DAY)[0] == whole.of(DAY)[0]
    np.testing.assert_allclose(pieces.of(DAY)[1].posteriors, whole.of(DAY)[1].posteriors)
    assert Tally(TOPICS).to_table().num_rows == 0


def test_known_topics_are_exact_and_need_no_model() -> None:
    files = [Contribution("m1", tally([0, 0, 1])), Contribution("m2", tally([1, 1], types=[2, 2]))]
    found = topics_of_day(DAY, files, no_reference)
    assert [(row["topic"], row["posts"], row["questions"], row["answers"]) for row in found.rows] == [
        ("java", 3, 1, 2),
        ("c#", 2, 2, 0),
    ]
    for row in found.rows:
        assert row["low"] == row["high"] == row["estimated_share"] == pytest.approx(row["share"])
    assert (found.posts, found.questions, found.answers, found.guessed, found.drifted) == (5, 3, 2, 0, False)


def test_what_the_model_decided_has_an_interval() -> None:
    model = starter()
    size, asked = len(model.topics), 400
    generator = np.random.default_rng(1)
    topics = generator.choice(size, asked, p=model.reference.prior).astype(np.int32)
    made = Tally(model.topics)
    posteriors = model.reference.response[topics].astype(np.float32)
    days, types = np.full(asked, NUMBER, np.int32), np.ones(asked, np.int64)
    made.add(days, types, topics, np.ones(asked, bool), posteriors, *np.full((2, asked), [[1], [0.5]], np.float32))
    made.add(days[:100], types[:100], np.zeros(100, np.int32))  # a hundred posts with tags
    found = topics_of_day(DAY, [Contribution(model.version, made)], lambda _: model.reference)
    assert (found.posts, found.guessed) == (500, 400)
    assert sum(row["share"] for row in found.rows) == pytest.approx(1)
    for row in found.rows[:10]:
        assert row["low"] <= row["estimated_share"] <= row["high"]
        assert row["high"] > row["low"]
    first = next(row for row in found.rows if row["topic"] == model.topics[0])
    assert first["low"] >= 100 / 500
    assert found.mean_margin == pytest.approx(1)
    assert found.vocabulary_overlap == pytest.approx(0.5)


def test_a_day_without_posts_is_empty() -> None:
    found = topics_of_day(DAY, [], no_reference)
    assert (found.rows, found.posts) == ([], 0)
