"""How well a model does on tagged questions that it had not seen: by single question and by day."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from classify.learn.questions import TrainingPosts, own_topics, primary_of, tagged_questions
from classify.model.model import Classified, TopicModel
from classify.model.quantify import Behaviour, DayStatistics, estimate
from classify.registry.evaluation import ANSWERS, DAY, SHIFT, DayEvaluation, Evaluation
from shared.arrays import Flags, Floats, Int32s

DAYS = 60  # sampled per evaluation


def evaluate(model: TopicModel, posts: pa.Table | Iterable[pa.RecordBatch | pa.Table] | TrainingPosts) -> Evaluation:
    """The evaluation of the model on the tagged questions among these posts."""
    held_out = posts if isinstance(posts, TrainingPosts) else tagged_questions(posts)
    margins = model.score(held_out.titles, held_out.bodies)
    return evaluate_margins(model, margins, own_topics(held_out.tags, model.topics[:-1]))


def evaluate_margins(model: TopicModel, margins: Floats, labels: Flags) -> Evaluation:
    """The evaluation of a model, from its margins [n, K] for posts and `labels` [n, K], the topics among their tags."""
    found = model.read_out(margins)
    primary, size = primary_of(labels), len(model.topics)
    tagged = np.flatnonzero(labels.any(axis=1))
    hits = labels[tagged, found.best[tagged]]
    right = np.bincount(primary[found.topic == primary], minlength=size)
    true_counts, said_counts = np.bincount(primary, minlength=size), np.bincount(found.topic, minlength=size)
    f1 = 2 * right / np.maximum(true_counts + said_counts, 1)
    return Evaluation(
        posts=len(primary),
        topics=size - 1,
        hit_at_1=_share(hits),
        primary_accuracy=_share(found.posteriors[tagged, :-1].argmax(axis=1) == primary[tagged]),
        topic_accuracy=float((found.topic == primary).mean()),
        macro_f1=float(f1[true_counts > 0].mean()),
        calibration_error=_calibration_error(found.top_scores[:, 0], labels[np.arange(len(labels)), found.best]),
        days=evaluate_days(model.behaviour, found, primary),
        shifted_days=evaluate_days(model.behaviour, found, primary, shift=SHIFT),
        answered_days=evaluate_days(model.behaviour, found, primary, answers=ANSWERS),
        by_topic=[
            {
                "topic": name,
                "posts": int(true_counts[k]),
                "found": int(said_counts[k]),
                "right": int(right[k]),
                "f1": float(f1[k]),
            }
            for k, name in enumerate(model.topics)
        ],
    )


def evaluate_days(
    behaviour: Behaviour, found: Classified, primary: Int32s, *, shift: float = 0.0, answers: float = 0.0
) -> DayEvaluation:
    """The evaluation of days, each drawn from these questions without replacement. `found` is the model's result for
    them, `primary` [n] their true topics.

    With `shift`, the chance of every topic is multiplied by a log-normal factor with this standard deviation, drawn
    anew for each day. With `answers`, each question has this mean number of answers, which take over the topic that the
    model gives it.
    """
    random = np.random.default_rng(0)
    size = len(behaviour.topics)
    days = []
    for _ in range(DAYS):
        odds = np.exp(shift * random.standard_normal(size))[primary]
        day = random.choice(len(primary), min(DAY, len(primary) // 2), replace=False, p=odds / odds.sum())
        answered = random.poisson(answers, len(day)) if answers else np.zeros(len(day), np.int64)
        posts = 1 + answered
        truth = np.bincount(primary[day], posts, minlength=size) / posts.sum()
        posteriors, topic = found.posteriors[day], found.topic[day]
        statistics = DayStatistics.of_classified(topic, posteriors, found.margin[day])
        estimated = estimate(statistics + DayStatistics.of_inherited(topic, answered, size), behaviour)
        large = truth >= 0.02
        days.append(
            (
                _total_variation(estimated.share, truth),
                _total_variation(posts @ posteriors / posts.sum(), truth),
                _total_variation(np.bincount(topic, posts, minlength=size) / posts.sum(), truth),
                ((estimated.low <= truth) & (truth <= estimated.high))[large].mean(),
                estimated.drifted,
            )
        )
    return DayEvaluation(*np.mean(days, axis=0).tolist())


def _share(happened: Flags) -> float:
    """The share of True; 0 for an empty array."""
    return float(happened.sum() / max(len(happened), 1))


def _total_variation(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    return float(np.abs(one - other).sum() / 2)


def _calibration_error(stated: Floats, happened: Flags) -> float:
    bins = np.minimum((stated * 10).astype(np.int64), 9)
    gaps = np.bincount(bins, weights=stated - happened, minlength=10)
    return float(np.abs(gaps).sum() / len(stated))
