"""Training a topic model.

A topic model is K one-against-rest linear functions, trained on all tags of tagged questions. Before training, each
feature is scaled for each topic by its absolute log-odds. After training, a share of naive Bayes is added to the
weights (NB-SVM, Wang and Manning 2012). The calibration from margins to probabilities is fitted on margins of posts
that the scoring model had not seen.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import expit

from classify.learn.evaluate import evaluate, evaluate_margins
from classify.learn.hinge import PARTS, train_left_out
from classify.learn.questions import (
    TrainingPosts,
    folds_of,
    most_frequent_tags,
    own_topics,
    primary_of,
    tagged_questions,
)
from classify.model.calibration import KNOTS, Calibration, softmax
from classify.model.files import OTHER
from classify.model.model import TopicModel
from classify.model.quantify import Behaviour
from classify.model.text import FIELD_MASK, FIELDS, Field, occurrences
from classify.model.vocabulary import Vocabulary
from classify.registry.evaluation import Evaluation
from shared.arrays import Doubles, Flags, Floats, Hashes, Int32s, Int64s
from shared.errors import BadInput

Progress = Callable[[str, float], None]


# Chosen by 3-fold cross-validation inside four fifths of the development posts.
FIELD_WEIGHTS = {
    Field.ALL: 1.0,
    Field.TITLE: 1.0,
    Field.CODE: 0.5,
    Field.TITLE_PAIR: 0.5,
    Field.TEXT_PAIR: 0.3,
    Field.SYMBOL: 1.0,
    Field.SYMBOL_PAIR: 0.5,
    Field.TITLE_GRAM: 0.5,
}
MIN_POSTS = {  # a feature in fewer training posts is left out of the vocabulary
    Field.ALL: 2,
    Field.TITLE: 2,
    Field.CODE: 2,
    Field.TITLE_PAIR: 3,
    Field.TEXT_PAIR: 10,
    Field.SYMBOL: 2,
    Field.SYMBOL_PAIR: 10,
    Field.TITLE_GRAM: 3,
}
MAX_COUNTED = 16_000_000  # features counted at a time, in half a gigabyte
WEIGHTS = 2_700_000  # features times topics: a model of 5.9 MB. At 100 topics, 74 % more weights add .001 to hit@1

CALIBRATION_POSTS = 50_000
INTERACTION_PENALTY = 6.0  # on half the squared length of Calibration.interactions, relative to summed log-losses


def fit(
    posts: pa.Table | Iterable[pa.RecordBatch | pa.Table] | TrainingPosts,
    topics: int = 100,
    *,
    progress: Progress | None = None,
) -> tuple[TopicModel, Evaluation]:
    """A model of the most frequent tags, and its evaluation on the posts on which its calibration was fitted.

    `progress` is called with the name of a step and the share done, 0 to 1. Raises BadInput when there are too few
    tagged questions or tags.
    """
    tell = progress or _say_nothing
    training = posts if isinstance(posts, TrainingPosts) else tagged_questions(posts)
    names, parts = most_frequent_tags(training.tags, topics), folds_of(training.ids, PARTS)
    if not names or len(np.unique(parts)) < 2:
        raise BadInput(f"training needs more than {len(training)} questions with {len(names)} tags beside `{OTHER}`")
    labels = own_topics(training.tags, names)
    tell("vocabulary", 0.0)
    vocabulary = learn_vocabulary(training, WEIGHTS // topics)
    vectors = vectorise(training, vocabulary)
    tell("training", 0.1)
    linear, margins, unseen = train_left_out(vectors, labels, parts, CALIBRATION_POSTS)
    tell("calibration", 0.7)
    calibration = calibrate(margins, labels[unseen])
    model = TopicModel(
        topics=(*names, OTHER),
        vocabulary=vocabulary,
        weights=linear.weights.astype(np.float16),
        biases=linear.biases,
        calibration=calibration,
        behaviour=Behaviour.measure((*names, OTHER), calibration.posteriors(margins), primary_of(labels[unseen])),
        trained_on={"date": datetime.now(UTC).date().isoformat(), "questions": len(training)},
    )
    return model, evaluate_margins(model, margins, labels[unseen])


def _say_nothing(step: str, share: float) -> None:
    """The progress of a run without a callback."""
    del step, share


def cross_validate(
    posts: pa.Table | Iterable[pa.RecordBatch | pa.Table] | TrainingPosts,
    topics: int = 100,
    folds: int = 5,
) -> list[Evaluation]:
    """One evaluation per fold, each of a model trained on the other folds."""
    questions = posts if isinstance(posts, TrainingPosts) else tagged_questions(posts)
    fold = folds_of(questions.ids, folds)
    evaluations = []
    for number in range(folds):
        model, _ = fit(questions.take(fold != number), topics)
        evaluations.append(evaluate(model, questions.take(fold == number)))
    return evaluations


def learn_vocabulary(posts: TrainingPosts, features: int) -> Vocabulary:
    keys, frequency = _document_frequencies(posts)
    fewest = np.array([MIN_POSTS[field] for field in Field])[(keys & FIELD_MASK).astype(np.int64)]
    keys, frequency = keys[frequency >= fewest], frequency[frequency >= fewest]
    order = np.argsort(-frequency, kind="stable")
    keys, frequency = keys[order[:features]], frequency[order[:features]]
    field = (keys & FIELD_MASK).astype(np.int64)
    field_weights = np.array([FIELD_WEIGHTS[field] for field in Field], np.float32)
    rarity = np.log((len(posts) + 1) / (frequency + 1)) + 1
    vocabulary = Vocabulary(keys, (rarity * field_weights[field]).astype(np.float32), np.ones(FIELDS, np.float32))
    lengths = np.zeros(FIELDS)
    for batch in occurrences(posts.titles, posts.bodies, passing=True):
        known, _, times = vocabulary.counts(batch)
        lengths += np.bincount(field[known], weights=times, minlength=FIELDS)
    return Vocabulary(keys, vocabulary.weights, np.maximum(lengths / len(posts), 1e-3).astype(np.float32))


def _document_frequencies(posts: TrainingPosts) -> tuple[Hashes, Int64s]:
    """Features and the number of posts with each; beyond MAX_COUNTED features, those seen in only one post are
    dropped."""
    keys, counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    pending: list[Hashes] = []
    for batch in occurrences(posts.titles, posts.bodies, passing=True):
        pending.append(batch.once_a_post())
        if sum(map(len, pending)) > MAX_COUNTED // 2:
            keys, counts = _add_up(keys, counts, pending)
            pending = []
    return _add_up(keys, counts, pending)


def _add_up(keys: Hashes, counts: Int64s, pending: list[Hashes]) -> tuple[Hashes, Int64s]:
    new_keys, new_counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *pending]), return_counts=True)
    distinct, which = np.unique(np.concatenate([keys, new_keys]), return_inverse=True)
    total = np.bincount(which, weights=np.concatenate([counts, new_counts]), minlength=len(distinct)).astype(np.int64)
    if len(distinct) > MAX_COUNTED:
        distinct, total = distinct[total > 1], total[total > 1]
    return distinct, total


def vectorise(posts: TrainingPosts, vocabulary: Vocabulary) -> sparse.csr_matrix:
    found: list[Int32s] = []
    values: list[Floats] = []
    sizes = [np.zeros(1, np.int32)]
    for batch in occurrences(posts.titles, posts.bodies, passing=True):
        features, bounds, weighed = vocabulary.vectors(batch)
        found.append(features)
        values.append(weighed)
        sizes.append(np.diff(bounds))
    # Each list is freed as soon as it is concatenated: a million posts take 2 GB.
    indices = np.concatenate([np.zeros(0, np.int32), *found])
    found.clear()
    data = np.concatenate([np.zeros(0, np.float32), *values])
    values.clear()
    bounds = np.cumsum(np.concatenate(sizes), dtype=np.int64)  # scipy converts them to int32 if they fit
    return sparse.csr_matrix((data, indices, bounds), shape=(len(posts), len(vocabulary)))


def calibrate(margins: Floats, labels: Flags) -> Calibration:
    """Fit a calibration on margins [n, K] and labels [n, K] of posts that the scoring models had not seen."""
    size = labels.shape[1] + 1
    plain = Calibration(chance_curve(margins.ravel(), labels.ravel()), np.zeros((size, size), np.float32))
    base, inputs = plain.chain(margins), plain.inputs(margins)
    primary, rows = primary_of(labels), np.arange(len(labels))
    penalty = INTERACTION_PENALTY / len(rows)

    def loss(flat: Doubles) -> tuple[float, Doubles]:
        chances = softmax(base + inputs @ flat.reshape(size, size).astype(np.float32))
        value = -np.log(np.maximum(chances[rows, primary], 1e-12)).mean(dtype=float) + penalty / 2 * (flat @ flat)
        chances[rows, primary] -= 1
        return float(value), (inputs.T @ chances / np.float32(len(rows))).ravel() + penalty * flat

    solved = minimize(loss, np.zeros(size * size), jac=True, method="L-BFGS-B", options={"maxiter": 60}).x
    return replace(plain, interactions=solved.reshape(size, size).astype(np.float32))


def chance_curve(margins: Floats, truth: Flags) -> Floats:
    """The curve of `Calibration`: a rising linear spline of the log-odds by maximum likelihood, on 600 bins of margins.

    A straight line (Platt 1999) has a calibration error of .12 at 100 topics, this spline .04.
    """
    bins = np.searchsorted(np.linspace(-3, 3, 601), margins)
    posts = np.bincount(bins, minlength=602).astype(np.float64)
    filled = posts > 0
    posts, hits = posts[filled], np.bincount(bins, weights=truth, minlength=602)[filled]
    middle = np.bincount(bins, weights=margins, minlength=602)[filled] / posts
    widths = np.diff(KNOTS, append=np.inf)
    segments = [np.clip(middle - knot, 0, width) for knot, width in zip(KNOTS, widths, strict=True)]
    terms = np.stack([np.ones_like(middle), np.minimum(middle, KNOTS[0]), *segments], axis=1)

    def loss(line: Doubles) -> tuple[float, Doubles]:
        logits = terms @ line
        value = posts @ np.logaddexp(0, logits) - hits @ logits
        gradient = terms.T @ (posts * expit(logits) - hits)
        shrunk = 1e-6 * np.concatenate([[0.0], line[1:]])
        return float(value / posts.sum() + line @ shrunk / 2), gradient / posts.sum() + shrunk

    line: Doubles = minimize(
        loss,
        np.concatenate([[-1.0], np.full(1 + len(KNOTS), 2.0)]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(None, None), *[(0.1, None)] * (1 + len(KNOTS))],
        options={"maxiter": 500, "ftol": 1e-14, "gtol": 1e-10},
    ).x
    curve: Floats = np.concatenate([line[:2], np.diff(line[1:])]).astype(np.float32)
    return curve
