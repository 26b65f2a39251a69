"""Training: the choice of questions, the solver, the calibration of probabilities, and the report."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse
from scipy.optimize import minimize

from classify.learn import fit as fitting
from classify.learn.evaluate import evaluate
from classify.learn.fit import chance_curve, cross_validate, fit, learn_vocabulary
from classify.learn.hinge import COST, discriminance, train, train_left_out
from classify.learn.questions import folds_of, most_frequent_tags, own_topics, primary_of, tagged_questions
from classify.model.calibration import Calibration
from classify.model.model import TopicModel
from classify.model.text import Field, occurrences
from shared.errors import BadInput
from tests.keys import key_of
from tests.real_posts import RealPosts
from tests.topic_posts import questions


def test_training_uses_only_tagged_questions() -> None:
    table = pa.table(
        {
            "Id": pa.array([1, 2, 3, 4], pa.int32()),
            "PostTypeId": [1, 2, 1, 1],
            "Title": ["a", None, "c", "d"],
            "Body": ["<p>a</p>", "<p>b</p>", None, "<p>d</p>"],
            "Tags": ["<x><y>", None, "|x|", None],
        }
    )
    found = tagged_questions(table)
    assert found.ids.tolist() == [1, 3]
    assert found.tags.to_pylist() == [["x", "y"], ["x"]]
    in_batches = tagged_questions(iter(table.to_batches(max_chunksize=1)))
    assert in_batches.ids.tolist() == [1, 3]
    with pytest.raises(BadInput, match="no tagged question"):
        tagged_questions(table.slice(1, 1))
    with pytest.raises(BadInput, match="no tagged question"):
        fit(iter([]))


def with_column(name: str, values: object, rows: int = 60) -> pa.Table:
    table = questions(rows)
    return table.set_column(table.schema.get_field_index(name), name, values)


def test_questions_without_an_id_are_ignored_and_the_last_of_equal_ids_counts() -> None:
    found = tagged_questions(with_column("Id", pa.array([None, 7, 8, 7] + [None] * 56)))
    titles = questions(60)["Title"].to_pylist()
    assert found.ids.tolist() == [8, 7]
    assert [title.decode() for title in found.titles.to_pylist()] == [titles[2], titles[3]]
    assert len(found.tags) == 2


@pytest.mark.parametrize(
    "table",
    [
        with_column("Tags", pa.array(["<other>"] * 60)),
        with_column("Id", pa.array([5] * 60)),
        with_column("Id", pa.nulls(60, pa.int64())),
        with_column("Tags", pa.array([b"<\xff>"] * 60)),
    ],
    ids=["tags", "one Id", "no Ids", "no text"],
)
def test_a_table_without_a_usable_question_is_refused(table: pa.Table) -> None:
    with pytest.raises(BadInput, match=r"no tagged question|training needs more than"):
        fit(table, topics=4)


def test_a_tag_in_invalid_utf8_is_not_a_topic() -> None:
    tags = [tag.encode() for tag in questions(300)["Tags"].to_pylist()]
    tags[:150] = [b"<\xff\xfe>" + tag for tag in tags[:150]]
    model, _ = fit(with_column("Tags", pa.array(tags).view(pa.string()), 300), topics=4)
    assert set(model.topics) == {"python", "c#", "sql", "css", "other"}
    assert TopicModel.from_files(model.to_files()).topics == model.topics


def test_a_report_on_posts_without_a_topic_has_finite_numbers() -> None:
    model, _ = fit(questions(300), topics=4)
    report = evaluate(model, with_column("Tags", pa.array(["<cooking>"] * 60)))
    assert (report.hit_at_1, report.primary_accuracy) == (0, 0)
    assert json.dumps(report.to_json(), allow_nan=False)


def test_folds_are_of_similar_size_and_never_change() -> None:
    folds = folds_of(np.arange(10_000), 5)
    assert folds[:12].tolist() == [0, 4, 0, 1, 2, 2, 2, 4, 0, 3, 2, 2]
    assert np.bincount(folds).min() > 1_900


def test_topics_are_the_most_frequent_tags() -> None:
    tags = pa.array([["b", "a"], ["b"], ["c"], ["a"], ["d", "c"]])
    names = most_frequent_tags(tags, 3)
    assert names == ("a", "b", "c")
    assert most_frequent_tags(pa.array([["other"], ["other", "a"]]), 3) == ("a",)
    labels = own_topics(tags, names)
    assert labels.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1]]
    assert primary_of(labels).tolist() == [0, 1, 2, 0, 2]
    assert primary_of(own_topics(pa.array([["d"]]), names)).tolist() == [3]


def test_rare_features_are_dropped_and_frequent_ones_come_first() -> None:
    posts = tagged_questions(questions(300))
    vocabulary = learn_vocabulary(posts, 50)
    assert len(vocabulary) == 50
    assert key_of("p", Field.ALL) in vocabulary.keys.tolist()[:20]
    everything = learn_vocabulary(posts, 10**6)
    assert everything.keys.tolist()[:50] == vocabulary.keys.tolist()
    rarest = [everything.counts(batch)[0] for batch in occurrences(posts.titles, posts.bodies)]
    assert np.bincount(np.concatenate(rarest)).min() >= 2


def test_dropping_features_to_save_memory_keeps_the_frequent_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    posts = tagged_questions(questions(300))
    exact = learn_vocabulary(posts, 200)
    monkeypatch.setattr(fitting, "MAX_COUNTED", 800)
    bounded = learn_vocabulary(posts, 200)
    assert len(set(exact.keys.tolist()) & set(bounded.keys.tolist())) > 190


def test_the_solver_finds_the_minimum() -> None:
    random = np.random.default_rng(0)
    vectors = sparse.random(200, 30, 0.2, format="csr", dtype=np.float32, rng=random)
    labels = random.random((200, 3)) < 0.2
    scale = discriminance(vectors.T.tocsr(), labels)
    linear = train(vectors.T.tocsr(), labels)

    def objective(flat: np.ndarray, topic: int) -> float:
        sign = np.where(labels[:, topic], 1, -1)
        slack = np.maximum(0, 1 - sign * (vectors @ (scale[:, topic] * flat[:-1]) + flat[-1]))
        return float(flat @ flat / 2 + float(COST) * slack @ slack)

    for topic in range(3):
        found = objective(np.append(linear.weights[:, topic] / scale[:, topic], linear.biases[topic]), topic)
        assert found == pytest.approx(minimize(objective, np.zeros(31), args=(topic,)).fun, rel=1e-3)


def test_margins_come_from_models_that_had_not_seen_the_posts() -> None:
    random = np.random.default_rng(0)
    vectors = sparse.random(300, 400, 0.05, format="csr", dtype=np.float32, rng=random)
    labels, part = random.random((300, 2)) < 0.3, np.arange(300) % 3  # random labels: a model can only memorise them
    linear, margins, posts = train_left_out(vectors, labels, part, 300)
    assert sorted(posts.tolist()) == list(range(300))

    def remembered(margins: np.ndarray, labels: np.ndarray) -> float:
        return float(margins[labels].mean() - margins[~labels].mean())

    assert remembered(vectors @ linear.weights + linear.biases, labels) > 0.5
    assert abs(remembered(margins, labels[posts])) < 0.1
    fewer = train_left_out(vectors, labels, part, 90)[2]
    assert len(set(fewer.tolist())) == 90
    assert (fewer % 3 == 0).all()
    assert fewer.max() > 270  # spread over all posts, not only the first ones


def test_the_calibration_curve_matches_the_true_probabilities() -> None:
    random = np.random.default_rng(0)
    margins = random.normal(-0.8, 0.5, 60_000).astype(np.float32)
    chances = 1 / (1 + np.exp(-np.where(margins < -0.4, 9 * margins + 2.4, 3 * margins)))
    happened = random.random(60_000) < chances
    curve = Calibration(chance_curve(margins, happened), np.zeros((2, 2), np.float32))
    grid = np.linspace(-1.2, 0.5, 18, dtype=np.float32)[:, None]
    truth = 1 / (1 + np.exp(-np.where(grid < -0.4, 9 * grid + 2.4, 3 * grid)))
    assert np.abs(curve.chances(grid) - truth).max() < 0.05


def test_a_model_learns_the_topics_of_made_up_posts() -> None:
    steps: list[tuple[str, float]] = []
    model, report = fit(questions(800), topics=4, progress=lambda step, share: steps.append((step, share)))
    assert model.topics == ("python", "c#", "sql", "css", "other")
    assert report.posts == model.trained_on["questions"] == 800
    assert [share for _, share in steps] == sorted(share for _, share in steps)
    unseen = evaluate(model, questions(400, seed=1))
    assert unseen.hit_at_1 > 0.95
    assert unseen.primary_accuracy > 0.9
    assert unseen.topic_accuracy > 0.9
    assert unseen.macro_f1 > 0.9
    assert unseen.days.histogram_error < 0.05
    assert [row["topic"] for row in unseen.by_topic] == list(model.topics)
    assert json.loads(json.dumps(unseen.to_json()))["shifted_days"]["coverage"] >= 0


def test_the_same_posts_make_the_same_model_in_batches_of_any_size() -> None:
    table = questions(300)
    one, _ = fit(table, topics=4)
    other, _ = fit(iter(table.to_batches(max_chunksize=37)), topics=4)
    assert one.version == other.version
    assert fit(questions(300, seed=1), topics=4)[0].version != one.version


def test_cross_validation_measures_each_post_once() -> None:
    reports = cross_validate(questions(300), topics=4, folds=3)
    assert sum(report.posts for report in reports) == 300
    assert all(report.hit_at_1 > 0.8 for report in reports)


def test_a_model_of_real_questions_reaches_its_bounds(real_posts: RealPosts) -> None:
    """The bounds are well below the figures of five folds, because a quick test uses only a part of the posts."""
    posts = tagged_questions(pq.read_table(real_posts("posts.parquet")))
    part = folds_of(posts.ids, 10)
    model, _ = fit(posts.take(part < 3), topics=20)
    report = evaluate(model, posts.take(part == 9))
    assert report.hit_at_1 > 0.8
    assert report.primary_accuracy > 0.66
