"""Training linear functions: one topic against the rest, by a squared hinge loss, for sparse posts.

A truncated Newton method (Keerthi and DeCoste 2005) for many topics at once, which share the reading of the posts: the
systems are solved by conjugate gradients preconditioned by the diagonal, the step is the minimum along the direction.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import cast

import numpy as np
from scipy import sparse

from shared.arrays import Flags, Floats, Int32s, Int64s
from shared.compiled import compiled


@dataclass(frozen=True)
class Linear:
    """Linear functions of K topics: weights float32 [F, K], biases float32 [K]."""

    weights: Floats
    biases: Floats

    def some(self, topics: slice) -> "Linear":
        return Linear(self.weights[:, topics], self.biases[topics])


COST = np.float32(0.15)  # of a squared hinge loss, against half the squared length of the weights
SCALING = np.float32(0.5)  # how far each feature is scaled by what it says about a topic (0: not at all)
SMOOTHING = np.float32(0.3)  # posts added to each count before its logarithm is taken
NAIVE = np.float32(0.2)  # how much margins of naive Bayes are added, brought to the spread of the others

PARTS = 3  # of the posts, one of which is left out
STEPS, GRADIENT_STEPS, ACCURACY = 5, 6, 0.1
TOPICS_AT_ONCE = 32
NUMBERS_AT_ONCE = 1 << 24  # posts times topics; a thread's working memory is about seven times that, 4 bytes each


def by_features(vectors: sparse.csr_matrix, posts: Flags | None = None) -> sparse.csr_matrix:
    """Posts [n, F], or those chosen, by features [F, n]: as training reads them."""
    return (vectors if posts is None else vectors[posts]).T.tocsr()


def train(transposed: sparse.csr_matrix, labels: Flags, start: Linear | None = None, steps: int = STEPS) -> Linear:
    """One linear function a topic, from posts by features [F, n] and which topics each carries [n, K].

    Five steps from zero agree with liblinear's solution to a correlation of 0.999 of the margins on unseen posts;
    from a `start` close to the solution, one or two do.
    """

    def some(topics: slice) -> Linear:
        chosen = labels[:, topics]
        scale = discriminance(transposed, chosen)
        return minimise_hinge(transposed, chosen, scale, start and start.some(topics), steps)

    return _by_topics(labels, some)


def with_naive_bayes(transposed: sparse.csr_matrix, labels: Flags, linear: Linear) -> Linear:
    """What was trained on these posts, and a share of naive Bayes on the same (Wang and Manning 2012 interpolate too).

    Where a post holds little that the hinge loss has weights for, the latter knows more: .003 of hit@1, .004 on titles.
    """

    def some(topics: slice) -> Linear:
        own, ratio = linear.some(topics), log_odds(transposed, labels[:, topics])
        naive = transposed.T @ ratio
        share = NAIVE * (transposed.T @ own.weights).std(axis=0) / np.maximum(naive.std(axis=0), np.float32(1e-6))
        return Linear(own.weights + share * ratio, own.biases - share * naive.mean(axis=0))

    return _by_topics(labels, some)


def _by_topics(labels: Flags, some: Callable[[slice], Linear]) -> Linear:
    """Linear functions of all topics from those of some, as many at a time as memory allows, on all cores."""
    at_once = min(max(NUMBERS_AT_ONCE // max(len(labels), 1), 4), TOPICS_AT_ONCE)
    blocks = [slice(first, first + at_once) for first in range(0, labels.shape[1], at_once)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # scipy's sparse products run outside the interpreter's lock
        fitted = list(pool.map(some, blocks))
    return Linear(
        np.concatenate([each.weights for each in fitted], axis=1), np.concatenate([each.biases for each in fitted])
    )


def train_left_out(
    vectors: sparse.csr_matrix, labels: Flags, part: Int64s, enough: int
) -> tuple[Linear, Floats, Int64s]:
    """`train`, and margins [m, K] of posts by models that had not seen them, and which posts [m]: all, or `enough`.

    To all of these naive Bayes is added. `part` [n] is 0, 1 or 2. Where part 0 has been left out, a model begins at the
    mean of those of part 1 and of part 2 alone, and the model of all posts at the mean of the models that left a part
    out: that takes two thirds of the time, and no model has seen what it leaves out.
    """

    @cache
    def alone(one: int) -> Linear:
        return train(by_features(vectors, part == one), labels[part == one], steps=3)

    models: list[Linear] = []
    margins: list[Floats] = []
    posts: list[Int64s] = []
    for one in range(PARTS):
        if sum(map(len, posts)) >= enough:
            break
        start = mean([alone(other) for other in range(PARTS) if other != one])
        seen, transposed = labels[part != one], by_features(vectors, part != one)
        models.append(train(transposed, seen, start, 2))
        scoring = with_naive_bayes(transposed, seen, models[-1])
        left_out = np.flatnonzero(part == one)
        sample = np.random.default_rng(one).permutation(len(left_out))[:enough]  # an archive is in order of time
        posts.append(left_out[np.sort(sample)])
        margins.append(vectors[posts[-1]] @ scoring.weights + scoring.biases)
    transposed = by_features(vectors)
    final = with_naive_bayes(transposed, labels, train(transposed, labels, mean(models), 1))
    return final, np.concatenate(margins), np.concatenate(posts)


def mean(models: list[Linear]) -> Linear:
    return Linear(
        np.mean([model.weights for model in models], axis=0), np.mean([model.biases for model in models], axis=0)
    )


def minimise_hinge(
    transposed: sparse.csr_matrix, labels: Flags, scale: Floats, start: Linear | None, steps: int
) -> Linear:
    """Weights scale * v and biases b that minimise, for each topic by itself,

        (|v|^2 + b^2) / 2 + COST * sum over posts of max(0, 1 - y * (x . (scale * v) + b))^2    with y = 1 or -1.

    Begins at `start`, or at zero.
    """
    sign = np.where(labels, np.float32(1), np.float32(-1))
    if start:
        weights, bias = start.weights / scale, start.biases.copy()
        margins = transposed.T @ start.weights + bias
    else:
        weights, bias = np.zeros_like(scale), np.zeros(scale.shape[1], np.float32)
        margins = np.zeros(labels.shape, np.float32)
    for _ in range(steps):
        slack = np.maximum(1 - sign * margins, 0)
        pull = 2 * COST * sign * slack
        curvature = np.where(slack > 0, 2 * COST, np.float32(0))
        step, bias_step, margin_step = _conjugate_gradients(
            transposed,
            scale,
            curvature,
            (scale * (transposed @ pull) - weights, pull.sum(axis=0) - bias),
            (1 + scale * scale * _sums(transposed, 2, curvature), 1 + curvature.sum(axis=0)),
        )
        length = _line_minimum(
            sign,
            margins,
            margin_step,
            _dots((weights, bias), (step, bias_step)),
            _dots((step, bias_step), (step, bias_step)),
        )
        weights += length * step
        bias += length * bias_step
        margins += length * margin_step
    return Linear(scale * weights, bias)


def _conjugate_gradients(
    transposed: sparse.csr_matrix,
    scale: Floats,
    curvature: Floats,
    residual: tuple[Floats, Floats],
    diagonal: tuple[Floats, Floats],
) -> tuple[Floats, Floats, Floats]:
    """About the solution of (1 + scale X' curvature X scale) step = residual: for weights, biases, and as margins."""
    vectors = transposed.T  # the same memory, by columns
    rest, bias_rest = residual
    step, bias_step = np.zeros_like(rest), np.zeros_like(bias_rest)
    margin_step = np.zeros_like(curvature)
    towards, bias_towards = rest / diagonal[0], bias_rest / diagonal[1]
    energy = _dots((rest, bias_rest), (towards, bias_towards))
    enough = energy * np.float32(ACCURACY**2)
    for _ in range(GRADIENT_STEPS):
        margins = vectors @ (scale * towards) + bias_towards
        bent = curvature * margins
        image, bias_image = towards + scale * (transposed @ bent), bias_towards + bent.sum(axis=0)
        slope = _dots((towards, bias_towards), (image, bias_image))
        length = np.where(energy > enough, energy / np.maximum(slope, np.float32(1e-30)), np.float32(0))
        step += length * towards
        bias_step += length * bias_towards
        margin_step += length * margins
        rest = rest - length * image
        bias_rest = bias_rest - length * bias_image
        solved, bias_solved = rest / diagonal[0], bias_rest / diagonal[1]
        left = _dots((rest, bias_rest), (solved, bias_solved))
        if not (left > enough).any():
            break
        turn = np.where(length > 0, left / np.maximum(energy, np.float32(1e-30)), np.float32(0))
        towards, bias_towards, energy = solved + turn * towards, bias_solved + turn * bias_towards, left
    return step, bias_step, margin_step


def _line_minimum(sign: Floats, margins: Floats, margin_step: Floats, slope: Floats, bend: Floats) -> Floats:
    """How far to go along the step for each topic; `slope` and `bend` are those of the weights' squared length."""
    length = np.ones(margins.shape[1], np.float32)
    for _ in range(4):
        slack = np.maximum(1 - sign * (margins + length * margin_step), 0)
        first = slope + length * bend - 2 * COST * (sign * slack * margin_step).sum(axis=0)
        second = bend + 2 * COST * np.square(np.where(slack > 0, margin_step, np.float32(0))).sum(axis=0)
        length = np.clip(length - first / np.maximum(second, np.float32(1e-30)), np.float32(0.05), np.float32(2))
    return length


def _dots(one: tuple[Floats, Floats], other: tuple[Floats, Floats]) -> Floats:
    """Per topic, the inner product of two points (weights, bias)."""
    return cast("Floats", np.einsum("fk,fk->k", one[0], other[0]) + one[1] * other[1])


def discriminance(transposed: sparse.csr_matrix, labels: Flags) -> Floats:
    """How much each feature says about each topic, one on average: float32 [F, K].

    The absolute log-odds of naive Bayes over the presence of features (NB-SVM, Wang and Manning 2012).
    """
    ratio = log_odds(transposed, labels)
    np.abs(ratio, out=ratio)
    ratio *= SCALING / np.maximum(ratio.mean(axis=0), np.float32(1e-6))
    ratio += 1 - SCALING
    return ratio


def log_odds(transposed: sparse.csr_matrix, labels: Flags) -> Floats:
    """What naive Bayes over the presence of features says of each feature and topic: float32 [F, K]."""
    inside = _sums(transposed, 0, labels.astype(np.float32))
    outside = np.diff(transposed.indptr).astype(np.float32)[:, None] - inside
    inside += SMOOTHING
    outside += SMOOTHING
    ratio: Floats = np.log(inside)
    ratio -= np.log(outside)
    ratio -= np.log(inside.sum(axis=0)) - np.log(outside.sum(axis=0))
    return ratio


def _sums(transposed: sparse.csr_matrix, power: int, numbers: Floats) -> Floats:
    """The product of the matrix, its elements raised to 0 or 2, with numbers [n, K]: [F, K]. No copy of the matrix."""
    sums = np.zeros((transposed.shape[0], numbers.shape[1]), np.float32)
    _add_powers(transposed.indices, transposed.indptr, transposed.data, power, np.ascontiguousarray(numbers), sums)
    return sums


@compiled
def _add_powers(
    posts: Int32s,
    bounds: Int32s,
    values: Floats,
    power: int,
    numbers: Floats,
    sums: Floats,
) -> None:
    for feature in range(len(sums)):
        total = sums[feature]
        for at in range(bounds[feature], bounds[feature + 1]):
            number = numbers[posts[at]]
            weight = values[at] * values[at] if power else np.float32(1)
            for topic in range(len(total)):
                total[topic] += weight * number[topic]
