"""How well a model does on posts that it had not seen, as training measures it and a card tells it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

DAY = 500  # posts of a sampled day
SHIFT = 0.7  # of the log-chances of topics on shifted days: the mean posterior is then off by .11 (20 topics)
ANSWERS = 1.5  # to a question on answered days, by Poisson: 24 million questions of Stack Overflow have 36 million


@dataclass(frozen=True)
class DayEvaluation:
    """How well the topics of days of 500 posts are counted; all are means over sampled days.

    `histogram_error`: total variation between true and estimated shares, `other` included. `mean_posterior_error`,
    `counted_error`: the same of the mean posterior and of counted answers. `coverage`: share of the topics with a true
    share of at least 2 % that lie in their interval. `drifted`: share of the days that were marked as drifted.
    """

    histogram_error: float
    mean_posterior_error: float
    counted_error: float
    coverage: float
    drifted: float


@dataclass(frozen=True)
class Evaluation:
    """How well a model does on posts that it had not seen.

    Of the posts that carry one of the K topics: `hit_at_1` is the share whose best topic is among their tags,
    `primary_accuracy` the share whose likeliest primary topic, `other` left aside, is their primary one. Of all posts:
    `topic_accuracy` is the share whose topic (`other` included) is found, `macro_f1` its mean F1 over topics,
    `calibration_error` the mean gap between stated and observed chance of the best topic, in ten bins.
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
