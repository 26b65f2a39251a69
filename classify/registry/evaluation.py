"""How well a model does on posts that it had not seen: training measures it, and the model card shows it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

DAY = 500  # posts of a sampled day
SHIFT = 0.7  # standard deviation of topics' log-chances on shifted days: the mean posterior is off by .11 (20 topics)
ANSWERS = 1.5  # mean answers per question on answered days (Poisson): Stack Overflow has 36 million for 24 million


@dataclass(frozen=True)
class DayEvaluation:
    """How well the topics of days of 500 posts are counted; all numbers are means over sampled days.

    `histogram_error`: total variation between true and estimated shares, `other` included. `mean_posterior_error`,
    `counted_error`: the same for the mean posterior and for the counted shares of the model's topics. `coverage`: share
    of the true shares of at least 2 % that lie in their interval. `drifted`: share of the days marked as drifted.
    """

    histogram_error: float
    mean_posterior_error: float
    counted_error: float
    coverage: float
    drifted: float


@dataclass(frozen=True)
class Evaluation:
    """How well a model does on posts that it had not seen.

    Of the posts with one of the K topics among their tags: `hit_at_1` is the share whose best topic is among their
    tags, `primary_accuracy` the share whose likeliest primary topic, without `other`, is right. Of all posts:
    `topic_accuracy` is the share whose topic (`other` included) is right, `macro_f1` its mean F1 over topics,
    `calibration_error` the mean gap between predicted and observed chance of the best topic, in ten bins.
    """

    posts: int
    topics: int
    hit_at_1: float
    primary_accuracy: float
    topic_accuracy: float
    macro_f1: float
    calibration_error: float
    days: DayEvaluation
    shifted_days: DayEvaluation
    answered_days: DayEvaluation
    by_topic: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, lists and names."""
        return asdict(self)
