"""Counting with an uncertain classifier: shares, their intervals, and the warning on a day unlike the training."""

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
    """Posts whose posteriors are exact while the shares of topics equal PRIOR."""

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


def test_on_a_day_like_the_training_the_estimate_is_as_good_as_the_mean_posterior() -> None:
    estimated, mean_posterior, counted, coverage, drifted = simulate(np.ones(5))
    assert estimated < mean_posterior * 1.1
    assert estimated < counted
    assert coverage >= 0.93
    assert drifted < 0.05


def test_on_a_shifted_day_the_estimate_follows_the_shift_and_the_day_is_marked() -> None:
    estimated, mean_posterior, counted, coverage, drifted = simulate(np.array([0.4, 2.0, 0.6, 1.0, 1.8]))
    assert estimated < 0.5 * mean_posterior
    assert estimated < 0.8 * counted
    assert coverage >= 0.9
    assert drifted > 0.95


@pytest.mark.parametrize("shift", [np.ones(5), np.array([0.4, 2.0, 0.6, 1.0, 1.8])])
@pytest.mark.parametrize("asked_that_day", [True, False])
def test_answers_are_as_uncertain_as_the_topics_of_their_questions(shift: np.ndarray, asked_that_day: bool) -> None:
    """Each question has 0 to 6 answers; the intervals must contain the true shares of all of them."""
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


def test_drift_is_measured_for_each_group_and_not_for_few_posts() -> None:
    world = World()
    behaviour = world.behaviour()
    strange = np.full(1_000, 3, np.int32)  # a topic of 5 % of the posts
    answers = DayStatistics.of_inherited(strange, np.ones(1_000, np.int64), 5)
    ordinary = statistics(world.posts(PRIOR, 300)[0])
    assert not estimate(ordinary, behaviour).drifted
    found = estimate(answers + ordinary, behaviour)
    assert found.drifted
    assert found.drift > 3
    for few in (DayStatistics.of_inherited(strange[:1], np.array([500]), 5), statistics(world.posts(PRIOR, 1)[0])):
        assert not estimate(few, behaviour).drifted


def test_more_answers_to_the_same_questions_do_not_narrow_the_interval() -> None:
    behaviour = World().behaviour()
    said = np.array([0, 1, 0, 4], np.int32)
    few, many = (DayStatistics.of_inherited(said, np.full(4, answers), 5) for answers in (1, 50))
    assert many.posts == 50 * few.posts
    assert np.allclose(estimate(few, behaviour).deviation, estimate(many, behaviour).deviation)


def test_the_statistics_of_batches_and_files_add_up() -> None:
    world = World()
    behaviour = world.behaviour()
    posteriors, topics = world.posts(PRIOR, 900)
    whole = statistics(posteriors) + known_posts(topics, 5)
    parts = DayStatistics.empty(5)
    for rows in np.array_split(np.arange(900), 7):
        parts = parts + statistics(posteriors[rows]) + known_posts(topics[rows], 5)
    assert (parts.posts, parts.guessed) == (whole.posts, whole.guessed) == (1800, 900)
    assert np.allclose(estimate(parts, behaviour).share, estimate(whole, behaviour).share, atol=1e-6)


def test_posts_with_known_topics_are_counted_without_a_correction() -> None:
    behaviour = World().behaviour()
    known = np.array([0, 0, 1, 4], np.int32)
    found = estimate(known_posts(known, 5), behaviour)
    assert found.share.tolist() == found.low.tolist() == found.high.tolist() == [0.5, 0.25, 0, 0, 0.25]
    assert (found.posts, found.drifted, found.other_share) == (4, False, 0.0)


def test_intervals_stay_within_the_possible_shares() -> None:
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


def test_a_topic_that_was_never_primary_has_a_share_near_zero() -> None:
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


def test_the_behaviour_is_read_from_the_small_files_of_a_model_only() -> None:
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


def test_a_topic_that_the_model_never_chooses_does_not_disturb_the_estimate() -> None:
    """This occurs in models of small sites. It must not lead to a division of zero by zero."""
    truth = np.array([0, 0, 0, 1, 1, 2] * 50, np.int32)
    posteriors = np.zeros((len(truth), 3), np.float32)
    posteriors[:, 0], posteriors[:, 1] = np.where(truth == 0, 0.8, 0.3), np.where(truth == 0, 0.2, 0.7)
    behaviour = Behaviour.measure(("a", "b", "other"), posteriors, truth)
    found = estimate(statistics(posteriors), behaviour)
    assert np.isfinite(found.share).all()
    assert np.isfinite(found.drift)
    assert not found.drifted
