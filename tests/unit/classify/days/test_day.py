"""The numbers of a day, added up over its files: counts, statistics, shares with intervals."""

from __future__ import annotations

import io
from datetime import date
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from classify.days.day import Contribution, DaySums, count_topics
from classify.days.tally import COUNTS_SCHEMA, Tally
from classify.model.model import Classified
from classify.model.quantify import Behaviour
from shared.errors import BadInput
from tests.world import starter

NAMES = ("c#", "java", "other")
DAY, NEXT = date(2026, 11, 21), date(2026, 11, 22)
NUMBER = (DAY - date(1970, 1, 1)).days


def said(topics: np.ndarray, posteriors: np.ndarray, margin: float, overlap: float) -> Classified:
    """The part of a model's classification that counting needs."""
    margins, overlaps = np.full((2, len(topics)), [[margin], [overlap]], np.float32)
    return Classified(topics, topics, posteriors, topics[:, None], margins[:, None], margins, overlaps)


def tally(
    topics: list[int], days: list[int] | None = None, types: list[int] | None = None, guess: bool = False
) -> Tally:
    made = Tally(NAMES)
    count = len(topics)
    days_, types_ = np.array(days or [NUMBER] * count, np.int32), np.array(types or [1] * count)
    posteriors = np.full((count, 3), 0.1, np.float32)
    posteriors[np.arange(count), topics] = 0.8
    numbers = np.array(topics, np.int32)
    made.add(days_, types_, numbers, np.full(count, guess), said(numbers, posteriors, 0.5, 0.25))
    return made


def no_behaviour(model: str) -> Behaviour:
    raise AssertionError(f"{model} is not needed")


def test_counts_are_kept_by_day_topic_and_type() -> None:
    made = tally([0, 0, 1, 2], days=[NUMBER, NUMBER, NUMBER, NUMBER + 1], types=[1, 2, 2, 1])
    counted, statistics = made.of(DAY)
    assert counted == {"c#": (1, 1), "java": (0, 1)}
    assert statistics.known.tolist() == [2, 1, 0]
    assert made.of(NEXT)[0] == {"other": (1, 0)}
    assert made.days() == [DAY, NEXT]


def test_a_contribution_is_read_back_as_it_was_stored() -> None:
    made = tally([0, 1, 1], guess=True)
    made.add(np.array([NUMBER + 1], np.int32), np.array([2]), np.array([2], np.int32))
    read = Contribution.from_parquet(Contribution("m1", made).to_parquet(), "here")
    assert (read.model, read.tally.topics, read.tally.days()) == ("m1", NAMES, [DAY, NEXT])
    for day in (DAY, NEXT):
        (counted, statistics), (counted_back, statistics_back) = made.of(day), read.tally.of(day)
        assert counted == counted_back
        for name, value in vars(statistics).items():
            assert np.array_equal(value, getattr(statistics_back, name)), name
    with pytest.raises(BadInput, match="here does not hold the counts"):
        Contribution.from_parquet(b"no", "here")


def test_the_counts_of_batches_add_up_to_those_of_the_file() -> None:
    whole, pieces = tally([0, 1, 1, 2, 0], guess=True), Tally(NAMES)
    for part in ([0, 1], [1, 2, 0]):
        pieces.add_table(tally(part, guess=True).to_table())
    assert pieces.of(DAY)[0] == whole.of(DAY)[0]
    np.testing.assert_allclose(pieces.of(DAY)[1].posteriors, whole.of(DAY)[1].posteriors)
    assert Tally(NAMES).to_table().num_rows == 0


def test_known_topics_are_exact_and_need_no_model() -> None:
    files = [Contribution("m1", tally([0, 0, 1])), Contribution("m2", tally([1, 1], types=[2, 2]))]
    found = count_topics(DaySums.of(DAY, files), no_behaviour)
    assert [(row.topic, row.posts, row.questions, row.answers) for row in found.rows] == [
        ("java", 3, 1, 2),
        ("c#", 2, 2, 0),
    ]
    for row in found.rows:
        assert row.low == row.high == row.estimated_share == pytest.approx(row.share)
    figures = found.figures
    assert (figures.posts, figures.questions, figures.answers) == (5, 3, 2)
    assert (figures.guessed, figures.drifted) == (0, False)


def test_shares_that_the_model_decided_have_an_interval() -> None:
    model = starter()
    size, asked = len(model.topics), 400
    generator = np.random.default_rng(1)
    topics = generator.choice(size, asked, p=model.behaviour.prior).astype(np.int32)
    made = Tally(model.topics)
    posteriors = model.behaviour.response[topics].astype(np.float32)
    days, types = np.full(asked, NUMBER, np.int32), np.ones(asked, np.int64)
    made.add(days, types, topics, np.ones(asked, bool), said(topics, posteriors, 1.0, 0.5))
    made.add(days[:100], types[:100], np.zeros(100, np.int32))  # a hundred answers to questions with tags
    found = count_topics(DaySums.of(DAY, [Contribution(model.version, made)]), lambda _: model.behaviour)
    assert (found.figures.posts, found.figures.guessed) == (500, 400)
    assert sum(row.share for row in found.rows) == pytest.approx(1)
    for row in found.rows[:10]:
        assert row.low <= row.estimated_share <= row.high
        assert row.high > row.low
    first = next(row for row in found.rows if row.topic == model.topics[0])
    assert first.low >= 100 / 500
    assert found.figures.mean_margin == pytest.approx(1)
    assert found.figures.vocabulary_overlap == pytest.approx(0.5)


def test_answers_to_questions_that_the_model_decided_are_estimated_too() -> None:
    model = starter()
    made = Tally(model.topics)
    topics, none = np.array([0, 0, 5, 7], np.int32), np.zeros(4, bool)
    days, answers = np.full(4, NUMBER, np.int32), np.full(4, 2)
    made.add(days, answers, topics, np.array([True, True, True, False]))
    made.add_bundles(days[:2], topics[1:3], np.array([2, 1]))
    read = Contribution.from_parquet(Contribution(model.version, made).to_parquet(), "here")
    assert (read.tally.of(DAY)[1].known[7], read.tally.of(DAY)[1].bundled) == (1, 5)
    found = count_topics(DaySums.of(DAY, [read]), lambda _: model.behaviour)
    assert (found.figures.posts, found.figures.answers, found.figures.guessed) == (4, 4, 3)
    assert (found.figures.drift > 0, found.figures.drifted) == (True, False)
    rows = {row.topic: row for row in found.rows}
    first, known = rows[model.topics[0]], rows[model.topics[7]]
    assert first.low < first.estimated_share < first.high <= 0.75
    assert known.low >= 0.25
    made.add(days, answers, topics, none)
    assert made.of(DAY)[1].uncertain == 3


def test_estimated_shares_of_all_topics_sum_to_one() -> None:
    model = starter()
    asked, size = 200, len(model.topics)
    made = Tally(model.topics)
    topics = np.full(asked, size - 1, np.int32)
    # The model chooses "other", but with no confidence.
    posteriors = np.tile(model.behaviour.prior.astype(np.float32), (asked, 1))
    days, types = np.full(asked, NUMBER, np.int32), np.ones(asked, np.int64)
    made.add(days, types, topics, np.ones(asked, bool), said(topics, posteriors, 0.1, 0.2))
    made.add(days[:3], types[:3], np.array([7, 7, 3], np.int32))
    found = count_topics(DaySums.of(DAY, [Contribution(model.version, made)]), lambda _: model.behaviour)
    assert sum(row.estimated_share for row in found.rows) == pytest.approx(1)
    assert [row.posts for row in found.rows[:4]] == [200, 2, 1, 0]
    assert [row.rank for row in found.rows] == list(range(1, len(found.rows) + 1))
    unnamed = found.rows[3:]
    assert len(unnamed) > size / 2
    assert all(row.posts == row.share == 0 < row.high for row in unnamed)
    shares = [row.estimated_share for row in unnamed]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("guess", [True, False])
def test_the_fit_of_the_model_is_measured_also_where_tags_decide(guess: bool) -> None:
    made = Tally(NAMES)
    decided, model_says = np.array([0, 0, 1, 1], np.int32), np.array([0, 2, 2, 2], np.int32)
    posteriors = np.full((4, 3), 1 / 3, np.float32)
    days, types = np.full(4, NUMBER, np.int32), np.ones(4, np.int64)
    made.add(days, types, decided, np.full(4, guess), said(model_says, posteriors, 0.5, 0.25))
    made.add(days, types + 1, decided)  # answers that the model did not classify
    behaviour = Behaviour.measure(NAMES, np.eye(3, dtype=np.float32), np.arange(3, dtype=np.int32))
    found = count_topics(DaySums.of(DAY, [Contribution("m", made)]), lambda _: behaviour)
    assert (found.figures.scored, found.figures.guessed, found.figures.other_share) == (4, 4 * guess, 0.75)
    assert (found.figures.mean_margin, found.figures.vocabulary_overlap) == (0.5, 0.25)


def test_counts_with_a_missing_column_are_refused() -> None:
    table = pq.read_table(io.BytesIO(Contribution("m1", tally([0, 1, 1], guess=True)).to_parquet()))
    out = io.BytesIO()
    pq.write_table(table.drop_columns(["scored"]), out)
    with pytest.raises(BadInput, match=r"here does not hold the counts of a classification: .*scored"):
        Contribution.from_parquet(out.getvalue(), "here")


def test_a_file_of_many_days_is_not_copied_day_by_day(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[int] = []
    concatenate = np.concatenate

    def counted(arrays: list[Any]) -> Any:
        copies.append(len(arrays[0]))
        return concatenate(arrays)

    monkeypatch.setattr(np, "concatenate", counted)
    made = Tally(NAMES)
    for day in range(1_000):
        made.add(np.array([day], np.int32), np.array([1]), np.array([day % 3], np.int32))
    monkeypatch.undo()
    assert sum(copies) < 1_000 * 2 * len(COUNTS_SCHEMA.names)  # of rows, in all columns
    assert len(made.days()) == made.to_table().num_rows == 1_000


def test_a_day_without_posts_is_empty() -> None:
    found = count_topics(DaySums.of(DAY, []), no_behaviour)
    assert (found.rows, found.figures.posts) == ([], 0)


def test_a_day_whose_files_come_and_go_has_the_sums_of_those_that_are_left() -> None:
    """Exactly, whatever the order: sums of floats would keep a trace of what was taken out."""
    generator = np.random.default_rng(3)
    files = []
    for number in range(12):
        topics = generator.integers(0, 3, 50).astype(np.int32)
        posteriors = generator.dirichlet(np.ones(3), 50).astype(np.float32)
        made = Tally(NAMES)
        asked = said(topics, posteriors, generator.random(), generator.random())
        made.add(np.full(50, NUMBER, np.int32), np.ones(50, np.int64), topics, generator.random(50) < 0.5, asked)
        files.append(Contribution(f"m{number % 2}", made))
    sums = DaySums.of(DAY, files)
    for number in generator.permutation(12)[:8]:
        sums = DaySums.from_parquet(DAY, sums.to_parquet(), "here")
        sums.add(files[number], -1)
        files[number] = files[0] if number % 3 else Contribution("m2", tally([0, 1]))
        sums.add(files[number])
    assert sums.to_parquet() == DaySums.of(DAY, reversed(files)).to_parquet()
    for file in files:
        sums.add(file, -1)
    assert sums.parts() == []
    assert DaySums.from_parquet(DAY, sums.to_parquet(), "here").parts() == []


def test_sums_of_a_day_that_are_damaged_are_named() -> None:
    with pytest.raises(BadInput, match="there does not hold the sums of a day"):
        DaySums.from_parquet(DAY, Contribution("m", tally([0])).to_parquet(), "there")
