"""The evaluation of a model, stored beside it: as numbers (`evaluation.json`) and as text (`card.md`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from classify.registry.evaluation import ANSWERS, DAY, SHIFT, Evaluation

if TYPE_CHECKING:
    from classify.model.model import TopicModel

EVALUATION, CARD = "evaluation.json", "card.md"


def mean_evaluation(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """`folds`, and the fields of Evaluation.to_json: `posts` and the counts by topic are sums over the folds, all
    other numbers means.

    A topic that is missing in some folds is counted in the others.
    """
    documents = [evaluation.to_json() for evaluation in evaluations]
    by_topic: dict[str, dict[str, Any]] = {}
    for row in (row for document in documents for row in document["by_topic"]):
        sums = by_topic.setdefault(row["topic"], {"topic": row["topic"], "posts": 0, "found": 0, "right": 0})
        for name in ("posts", "found", "right"):
            sums[name] += row[name]
    for sums in by_topic.values():
        sums["f1"] = 2 * sums["right"] / max(sums["posts"] + sums["found"], 1)
    posts = sum(evaluation.posts for evaluation in evaluations)
    topics = max(evaluation.topics for evaluation in evaluations)
    means = _mean(documents)
    return {"folds": len(evaluations), **means, "posts": posts, "topics": topics, "by_topic": list(by_topic.values())}


def _mean(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The means of equally named numbers, also in nested documents."""
    means: dict[str, Any] = {}
    for name, value in documents[0].items():
        values = [document[name] for document in documents]
        if isinstance(value, dict):
            means[name] = _mean(values)
        elif isinstance(value, int | float):
            means[name] = float(np.mean(values))
    return means


def card(
    model: TopicModel,
    evaluations: Sequence[Evaluation],
    files: Sequence[str],
    *,
    made_by: str,
    measured: str,
    remark: str = "",
) -> str:
    """The text of the model card. `files` names the files of the training posts, `made_by` the command; `measured` says
    on which posts each evaluation was made; `remark` is a further line."""
    several, by_topic = len(evaluations) > 1, mean_evaluation(evaluations)["by_topic"]

    def row(what: str, measure: Callable[[Evaluation], float]) -> str:
        values = [measure(evaluation) for evaluation in evaluations]
        return f"| {what} | {np.mean(values):.4f} |" + several * f" {min(values):.4f} to {max(values):.4f} |"

    return "\n".join(
        [
            f"# Topic model {model.version}",
            "",
            f"Finds which of {len(model.topics) - 1} topics (or `{model.topics[-1]}`) a Stack Overflow post is about,",
            f"from {len(model.vocabulary):,} features of its title and body.",
            "",
            f"* Made {model.trained_on['date']} from {model.trained_on['questions']:,} tagged questions in",
            f"  {', '.join(files)} by `{made_by}`.",
            *([f"* {remark}"] if remark else []),
            "* The posts are user contributions to the Stack Exchange network, licensed CC BY-SA",
            "  (https://stackoverflow.com/help/licensing). The model holds hashes of words and weights, no text.",
            "* It knows only English, and the topics and years of the training posts. Newer topics show as a growing",
            "  share of `other` and as drift of the day.",
            "",
            measured,
            f"A day is {DAY} of those posts drawn at random, or half of them if there are few. On shifted days the",
            f"log-chances of topics are moved at random, with a standard deviation of {SHIFT}. On days with answers",
            f"each question has {ANSWERS} answers on average, which take over the topic that the model gives it.",
            "",
            "| | mean | folds |" if several else "| | |",
            "|---|---|---|" if several else "|---|---|",
            row("hit@1: the best topic is among the post's tags", lambda each: each.hit_at_1),
            row("primary topic found, for posts with a topic among their tags", lambda each: each.primary_accuracy),
            row("topic found, `other` included, for all posts", lambda each: each.topic_accuracy),
            row("macro-F1 of the topic", lambda each: each.macro_f1),
            row("calibration error of the best topic's score", lambda each: each.calibration_error),
            row("total variation of a day's estimated shares", lambda each: each.days.histogram_error),
            row("total variation of a day's counted shares", lambda each: each.days.counted_error),
            row(
                "95 % intervals that contain the true share (shares of 2 % and more)",
                lambda each: each.days.coverage,
            ),
            row("days marked as drifted", lambda each: each.days.drifted),
            row(
                "shifted days: total variation of estimated shares",
                lambda each: each.shifted_days.histogram_error,
            ),
            row("shifted days: total variation of counted shares", lambda each: each.shifted_days.counted_error),
            row("shifted days: intervals that contain the true share", lambda each: each.shifted_days.coverage),
            row("shifted days marked as drifted", lambda each: each.shifted_days.drifted),
            row(
                "days with answers: total variation of estimated shares",
                lambda each: each.answered_days.histogram_error,
            ),
            row("days with answers: intervals that contain the true share", lambda each: each.answered_days.coverage),
            "",
            "By topic: posts with this primary topic, posts to which the model gives it, and posts with both.",
            "",
            "| topic | posts | found | right | F1 |",
            "|---|---|---|---|---|",
            *("| {topic} | {posts:,} | {found:,} | {right:,} | {f1:.3f} |".format_map(row) for row in by_topic),
            "",
        ]
    )
