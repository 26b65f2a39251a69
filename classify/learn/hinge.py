"""Training linear functions, one topic against the rest, with a squared hinge loss on sparse vectors.

A truncated Newton method (Keerthi and DeCoste 2005) trains many topics at once, so that they share the reads of the
posts. Conjugate gradients with a diagonal preconditioner solve the systems; a line search finds each step's length.
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


COST = np.float32(0.15)  # weight of the squared hinge loss, relative to half the squared length of the weights
SCALING = np.float32(0.5)  # how much `discriminance` scales each feature (0: not at all)
SMOOTHING = np.float32(0.3)  # posts added to each count before its logarithm is taken
NAIVE = np.float32(0.2)  # share of naive Bayes' margins that is added, scaled to the spread of the other margins

PARTS = 3  # parts of the posts; each model leaves one part out
STEPS, GRADIENT_STEPS, ACCURACY = 5, 6, 0.1
TOPICS_AT_ONCE = 32
NUMBERS_AT_ONCE = 1 << 24  # posts times topics; a thread works on about seven arrays of this many 4-byte numbers


def by_features(vectors: sparse.csr_matrix, posts: Flags | None = None) -> sparse.csr_matrix:
    """The vectors [n, F] of all posts, or of `posts` (bool [n]), transposed to [F, n], the form that training reads."""
    return (vectors if posts is None else vectors[posts]).T.tocsr()


def train(transposed: sparse.csr_matrix, labels: Flags, start: Linear | None = None, steps: int = STEPS) -> Linear:
    """One linear function per topic, from the transposed vectors [F, n] and the topics of each post [n, K].

    After five steps from zero, the margins on unseen posts have a correlation of 0.999 with those of liblinear; from a
    `start` close to the solution, after one or two.
    """

    def some(topics: slice) -> Linear:
        chosen = labels[:, topics]
        scale = discriminance(transposed, chosen)
        return minimise_hinge(transposed, chosen, scale, start and start.some(topics), steps)

    return _by_topics(labels, some)


def with_naive_bayes(transposed: sparse.csr_matrix, labels: Flags, linear: Linear) -> Linear:
    """The linear functions trained on these posts plus a share of naive Bayes on the same (as Wang and Manning 2012).

    Naive Bayes helps where a post has few features with trained weights: it adds .003 to hit@1, .004 on titles.
    """

    def some(topics: slice) -> Linear:
        own, ratio = linear.some(topics), log_odds(transposed, labels[:, topics])
        naive = transposed.T @ ratio
        share = NAIVE * (transposed.T @ own.weights).std(axis=0) / np.maximum(naive.std(axis=0), np.float32(1e-6))
        return Linear(own.weights + share * ratio, own.biases - share * naive.mean(axis=0))

    return _by_topics(labels, some)


def _by_topics(labels: Flags, some: Callable[[slice], Linear]) -> Linear:
    """The linear functions of all topics, on all cores: `some` computes a block of topics, as many as memory allows."""
    at_once = min(max(NUMBERS_AT_ONCE // max(len(labels), 1), 4), TOPICS_AT_ONCE)
    blocks = [slice(first, first + at_once) for first in range(0, labels.shape[1], at_once)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # scipy's sparse products release the GIL
        fitted = list(pool.map(some, blocks))
    return Linear(
        np.concatenate([each.weights for each in fitted], axis=1), np.concatenate([each.biases for each in fitted])
    )


def train_left_out(
    vectors: sparse.csr_matrix, labels: Flags, part: Int64s, enough: int
) -> tuple[Linear, Floats, Int64s]:
    """The model of all posts; margins [m, K] of posts from models that had not seen them; and the numbers of these
    posts [m]: all posts, or about `enough`.

    Every model includes naive Bayes. `part` [n] is 0, 1 or 2. The model that leaves out part 0 starts at the mean of
    the models of part 1 alone and part 2 alone. The model of all posts starts at the mean of the models that leave out
    a part. That takes two thirds of the time, and no model sees the part that it leaves out.
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
        sample = np.random.default_rng(one).permutation(len(left_out))[:enough]  # random: the archive is sorted by time
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
    """Weights scale * v and biases b that minimise, for each topic separately,

        (|v|^2 + b^2) / 2 + COST * sum over posts of max(0, 1 - y * (x . (scale * v) + b))^2    with y = 1 or -1.

    Starts at `start`, or at zero.
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
    """The approximate solution of (1 + scale X' curvature X scale) step = residual: the steps of weights, biases and
    margins."""
    vectors = transposed.T  # a view, not a copy
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
    """The length of the step for each topic. `slope` and `bend` are the first and second derivative of half the
    weights' squared length along the step."""
    length = np.ones(margins.shape[1], np.float32)
    for _ in range(4):
        slack = np.maximum(1 - sign * (margins + length * margin_step), 0)
        first = slope + length * bend - 2 * COST * (sign * slack * margin_step).sum(axis=0)
        second = bend + 2 * COST * np.square(np.where(slack > 0, margin_step, np.float32(0))).sum(axis=0)
        length = np.clip(length - first / np.maximum(second, np.float32(1e-30)), np.float32(0.05), np.float32(2))
    return length


def _dots(one: tuple[Floats, Floats], other: tuple[Floats, Floats]) -> Floats:
    """For each topic, the inner product of two points (weights, bias)."""
    return cast("Floats", np.einsum("fk,fk->k", one[0], other[0]) + one[1] * other[1])


def discriminance(transposed: sparse.csr_matrix, labels: Flags) -> Floats:
    """How well each feature separates each topic from the rest, 1 on average: float32 [F, K].

    From the absolute log-odds of naive Bayes over the presence of features (NB-SVM, Wang and Manning 2012).
    """
    ratio = log_odds(transposed, labels)
    np.abs(ratio, out=ratio)
    ratio *= SCALING / np.maximum(ratio.mean(axis=0), np.float32(1e-6))
    ratio += 1 - SCALING
    return ratio


def log_odds(transposed: sparse.csr_matrix, labels: Flags) -> Floats:
    """The log-odds of naive Bayes over the presence of features, for each feature and topic: float32 [F, K]."""
    inside = _sums(transposed, 0, labels.astype(np.float32))
    outside = np.diff(transposed.indptr).astype(np.float32)[:, None] - inside
    inside += SMOOTHING
    outside += SMOOTHING
    ratio: Floats = np.log(inside)
    ratio -= np.log(outside)
    ratio -= np.log(inside.sum(axis=0)) - np.log(outside.sum(axis=0))
    return ratio


def _sums(transposed: sparse.csr_matrix, power: int, numbers: Floats) -> Floats:
    """The product [F, K] of the matrix, with elements raised to power 0 or 2, and numbers [n, K]; without a copy."""
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
