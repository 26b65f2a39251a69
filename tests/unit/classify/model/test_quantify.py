"""Counting with an uncertain classifier: shares, their intervals, and the warning when a day is like no other."""

import hashlib
import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from classify.learn.fit import fit
from classify.model.files import CALIBRATION, MANIFEST
from classify.model.quantify import Behaviour, DayStatistics, estimate
from shared.errors import ModelError
from tests.topic_posts import questions

PRIOR = np.array([0.45, 0.25, 0.15, 0.05, 0.1])
TOPICS = ("a", "b", "c", "d", "other")


class World:
    """Posts whose posteriors are exact as long as topics are as frequent as PRIOR says."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)

    def posts(self, shares: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        topics = self.random.choice(len(shares), count, p=shares / shares.sum()).astype(np.int32)
        signals = 1.6 * np.eye(len(shares))[topics] + self.random.standard_normal((count, len(shares)))
        chances = PRIOR * np.exp(1.6 * signals)
        return (chances / chances.sum(axis=1, keepdims=True)).astype(np.float32), topics

    def behaviour(self) -> Behaviour:
        posteriors, topics = self.posts(PRIOR, 8000)
        return Behaviour.measure(TOPICS, posteriors, topics)


def known_posts(topics: np.ndarray, size: int) -> DayStatistics:
    """Of posts whose topics [n] are known, of `size` topics in all."""
    return replace(DayStatistics.empty(size), known=np.bincount(topics, minlength=size))


def statistics(posteriors: np.ndarray) -> DayStatistics:
    margins = np.zeros(len(posteriors), np.float32)
    return DayStatistics.of_classified(posteriors.argmax(axis=1).astype(np.int32), posteriors, margins)


def simulate(shift: np.ndarray, days: int = 60) -> tuple[float, float, float, float, float]:
    """Mean total variation of estimate, mean posterior and counts; coverage; share of drifted days."""
    world = World()
    behaviour = world.behaviour()
    rows = []
    for _ in range(days):
        posteriors, topics = world.posts(PRIOR * shift, 400)
        truth = np.bincount(topics, minlength=5) / 400
        day = statistics(posteriors)
        found = estimate(day, behaviour)
        covered = ((found.low <= truth) & (truth <= found.high))[truth >= 0.02].mean()
        errors = [np.abs(shares - truth).sum() / 2 for shares in (found.share, day.posteriors / 400, day.said / 400)]
        rows.append((*errors, covered, found.drifted))
    return tuple(np.mean(rows, axis=0))


def test_a_day_like_training_is_counted_as_well_as_by_the_mean_posterior() -> None:
    estimated, mean_posterior, counted, coverage, drifted = simulate(np.ones(5))
    assert estimated < mean_posterior * 1.1
    assert estimated < counted
    assert coverage >= 0.93
    assert drifted < 0.05


def test_a_day_unlike_training_is_followed_and_marked() -> None:
    estimated, mean_posterior, counted, coverage, drifted = simulate(np.array([0.4, 2.0, 0.6, 1.0, 1.8]))
    assert estimated < 0.5 * mean_posterior
    assert estimated < 0.8 * counted
    assert coverage >= 0.9
    assert drifted > 0.95


@pytest.mark.parametrize("shift", [np.ones(5), np.array([0.4, 2.0, 0.6, 1.0, 1.8])])
@pytest.mark.parametrize("asked_that_day", [True, False])
def test_answers_are_as_uncertain_as_what_the_model_said_of_their_questions(
    shift: np.ndarray, asked_that_day: bool
) -> None:
    """Each question has 0 to 6 answers; the intervals must hold the true topics of all."""
    world = World()
    behaviour = world.behaviour()
    covered: list[Any] = []
    errors: list[Any] = []
    believed: list[Any] = []
    for _ in range(60):
        posteriors, topics = world.posts(PRIOR * shift, 400)
        said, answers = posteriors.argmax(axis=1).astype(np.int32), world.random.poisson(1.5, 400)
        truth, day = np.bincount(topics, answers, minlength=5), DayStatistics.of_inherited(said, answers, 5)
        if asked_that_day:
            truth, day = truth + np.bincount(topics, minlength=5), day + statistics(posteriors)
        truth = truth / truth.sum()
        found = estimate(day, behaviour)
        believing = estimate(statistics(posteriors) + known_posts(np.repeat(said, answers), 5), behaviour)
        for each, into in ((found, covered), (believing, believed)):
            into.append(((each.low <= truth) & (truth <= each.high))[truth >= 0.02].mean())
        errors.append(np.abs(found.share - truth).sum() - np.abs(day.inherited / day.inherited.sum() - truth).sum())
    assert np.mean(covered) >= 0.93
    assert np.mean(believed) < 0.8
    assert np.mean(errors) < 0


def test_each_group_is_marked_for_itself_and_few_posts_are_no_sign() -> None:
    world = World()
    behaviour = world.behaviour()
    strange = np.full(1_000, 3, np.int32)  # a topic of five in a hundred
    answers = DayStatistics.of_inherited(strange, np.ones(1_000, np.int64), 5)
    ordinary = statistics(world.posts(PRIOR, 300)[0])
    assert not estimate(ordinary, behaviour).drifted
    found = estimate(answers + ordinary, behaviour)
    assert found.drifted
    assert found.drift > 3
    for few in (DayStatistics.of_inherited(strange[:1], np.array([500]), 5), statistics(world.posts(PRIOR, 1)[0])):
        assert not estimate(few, behaviour).drifted


def test_many_answers_to_few_questions_tell_little() -> None:
    behaviour = World().behaviour()
    said = np.array([0, 1, 0, 4], np.int32)
    few, many = (DayStatistics.of_inherited(said, np.full(4, answers), 5) for answers in (1, 50))
    assert many.posts == 50 * few.posts
    assert np.allclose(estimate(few, behaviour).deviation, estimate(many, behaviour).deviation)


def test_days_add_up_over_batches_and_files() -> None:
    world = World()
    behaviour = world.behaviour()
    posteriors, topics = world.posts(PRIOR, 900)
    whole = statistics(posteriors) + known_posts(topics, 5)
    parts = DayStatistics.empty(5)
    for rows in np.array_split(np.arange(900), 7):
        parts = parts + statistics(posteriors[rows]) + known_posts(topics[rows], 5)
    assert (parts.posts, parts.guessed) == (whole.posts, whole.guessed) == (1800, 900)
    assert np.allclose(estimate(parts, behaviour).share, estimate(whole, behaviour).share, atol=1e-6)


def test_known_posts_count_as_they_are() -> None:
    behaviour = World().behaviour()
    known = np.array([0, 0, 1, 4], np.int32)
    found = estimate(known_posts(known, 5), behaviour)
    assert found.share.tolist() == found.low.tolist() == found.high.tolist() == [0.5, 0.25, 0, 0, 0.25]
    assert (found.posts, found.drifted, found.other_share) == (4, False, 0.0)


def test_intervals_stay_within_what_is_possible() -> None:
    world = World()
    posteriors, _ = world.posts(PRIOR, 3)
    found = estimate(statistics(posteriors) + known_posts(np.zeros(7, np.int32), 5), world.behaviour())
    assert found.share.sum() == pytest.approx(1)
    assert (found.low <= found.share).all()
    assert (found.share <= found.high).all()
    assert found.low[0] >= 0.7
    assert (found.high[1:] <= 0.3 + 1e-12).all()


def test_more_posts_make_narrower_intervals() -> None:
    world = World()
    behaviour = world.behaviour()
    widths = [estimate(statistics(world.posts(PRIOR, count)[0]), behaviour).deviation.max() for count in (50, 800)]
    assert widths[1] < 0.5 * widths[0]


def test_a_topic_that_never_was_primary_gets_nothing() -> None:
    world = World()
    posteriors, topics = world.posts(np.array([0.5, 0.3, 0.1, 0.0, 0.1]), 4000)
    behaviour = Behaviour.measure(TOPICS, posteriors, topics)
    assert estimate(statistics(posteriors[:500]), behaviour).share[3] < 0.01


def test_days_that_cannot_be_estimated_are_refused() -> None:
    behaviour = World().behaviour()
    with pytest.raises(ValueError, match="without posts"):
        estimate(DayStatistics.empty(5), behaviour)
    with pytest.raises(ValueError, match="the day has 3 topics, the model 5"):
        estimate(DayStatistics.empty(3), behaviour)


def test_the_behaviour_is_read_from_a_models_small_files_alone() -> None:
    model, _ = fit(questions(400), topics=4)
    files = model.to_files()
    behaviour = Behaviour.from_files(files[MANIFEST], files[CALIBRATION])
    assert behaviour.topics == model.topics
    assert np.allclose(behaviour.response, model.behaviour.response, atol=1e-6)
    assert behaviour.prior.sum() == pytest.approx(1)
    for manifest, calibration in ((b"{}", files[CALIBRATION]), (files[MANIFEST], b"damaged"), (b"", b"")):
        with pytest.raises(ModelError):
            Behaviour.from_files(manifest, calibration)
    with np.load(io.BytesIO(files[CALIBRATION])) as arrays:
        kept = {name: arrays[name] for name in arrays.files if name != "confusion"}
    out = io.BytesIO()
    np.savez(out, **kept)
    manifest = json.loads(files[MANIFEST])
    manifest["sha256"][CALIBRATION] = hashlib.sha256(out.getvalue()).hexdigest()
    with pytest.raises(ModelError, match="calibration: array 'confusion' is missing"):
        Behaviour.from_files(json.dumps(manifest).encode(), out.getvalue())
    two = {**json.loads(files[MANIFEST]), "topics": ["a", "other"]}
    with pytest.raises(ModelError, match="calibration: 5 topics in a model of 2"):
        Behaviour.from_files(json.dumps(two).encode(), files[CALIBRATION])


def test_a_topic_that_the_model_never_names_says_nothing_of_a_day() -> None:
    """As in a model of a small site, whose answers' questions it decided: nothing is divided by nothing."""
    truth = np.array([0, 0, 0, 1, 1, 2] * 50, np.int32)
    posteriors = np.zeros((len(truth), 3), np.float32)
    posteriors[:, 0], posteriors[:, 1] = np.where(truth == 0, 0.8, 0.3), np.where(truth == 0, 0.2, 0.7)
    behaviour = Behaviour.measure(("a", "b", "other"), posteriors, truth)
    found = estimate(statistics(posteriors), behaviour)
    assert np.isfinite(found.share).all()
    assert np.isfinite(found.drift)
    assert not found.drifted
