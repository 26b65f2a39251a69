"""The promised quality of topics on real posts: a model's figures on a fold that it has not seen."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from classify.learn.evaluate import evaluate, evaluate_days
from classify.learn.fit import fit
from classify.learn.questions import folds_of, own_topics, primary_of, tagged_questions
from tests.real_posts import RealPosts

STRONG = 1.5
"""A strong shift: twice that of the shifted days in a report."""


def test_figures_on_a_fold_of_real_questions_reach_their_bounds(
    real_posts: RealPosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bounds are a little below the figures of the worst of five folds with 100 topics."""
    monkeypatch.setattr("classify.learn.evaluate.DAYS", 20)
    questions = tagged_questions(pq.read_table(real_posts("posts.parquet")))
    fold = folds_of(questions.ids, 5)
    unseen = questions.take(fold == 0)
    model, _ = fit(questions.take(fold != 0), topics=100)
    report = evaluate(model, unseen)
    assert report.hit_at_1 > 0.805
    assert report.primary_accuracy > 0.645
    assert report.days.histogram_error < 0.115
    assert report.days.coverage > 0.93
    assert report.days.drifted < 0.05
    assert report.shifted_days.histogram_error < 0.165
    assert report.shifted_days.coverage > 0.89
    assert report.shifted_days.drifted > 0.7
    assert report.answered_days.coverage > 0.92
    found, primary = (
        model.read_out(model.score(unseen.titles, unseen.bodies)),
        own_topics(unseen.tags, model.topics[:-1]),
    )
    assert evaluate_days(model.behaviour, found, primary_of(primary), shift=STRONG).drifted > 0.95
