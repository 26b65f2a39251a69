"""From a model's margins to the chance of each topic to be among the tags, and to be the primary topic."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from shared.arrays import Doubles, Floats
from shared.compiled import compiled

_ZERO = np.float32(0)
_Logits = TypeVar("_Logits", Floats, Doubles)
KNOTS = (-0.75, -0.5, -0.25, 0.0, 0.5)  # margins at which the curve of chances may bend
_KNOTS = np.array(KNOTS, np.float32)


@compiled
def _add_product(rows: Floats, matrix: Floats, sums: Floats) -> None:
    """Add rows @ matrix to the sums, in this thread: threads that BLAS starts would cost more time than they save."""
    for i in range(len(rows)):
        row = sums[i]
        j, size = 0, len(matrix)
        while j + 4 <= size:
            a, b, c, d = rows[i, j], rows[i, j + 1], rows[i, j + 2], rows[i, j + 3]
            of_a, of_b, of_c, of_d = matrix[j], matrix[j + 1], matrix[j + 2], matrix[j + 3]
            for k in range(len(row)):
                row[k] += (a * of_a[k] + b * of_b[k]) + (c * of_c[k] + d * of_d[k])
            j += 4
        while j < size:
            value, line = rows[i, j], matrix[j]
            for k in range(len(row)):
                row[k] += value * line[k]
            j += 1


@compiled
def _bend(margins: Floats, curve: Floats, knots: Floats, log_odds: Floats) -> None:
    """Write the log-odds that the curve (see `Calibration`) gives for margins."""
    for post in range(len(margins)):
        row, odds = margins[post], log_odds[post]
        for topic in range(len(row)):
            odds[topic] = curve[1] * row[topic] + curve[0]
        for j in range(len(knots)):
            knot, bend = knots[j], curve[2 + j]
            for topic in range(len(row)):
                odds[topic] += bend * max(row[topic] - knot, _ZERO)


@compiled
def _chain(log_odds: Floats, small: Floats, logits: Floats) -> None:
    """Write the log-chance that each topic is the first one among the tags, and last that no topic is a tag.

    `small` is log(1 + exp(-|log_odds|)).
    """
    for post in range(len(log_odds)):
        none_so_far, topics = _ZERO, log_odds.shape[1]
        for topic in range(topics):
            odds = log_odds[post, topic]
            none_so_far -= small[post, topic] + max(odds, _ZERO)
            logits[post, topic] = odds + none_so_far
        logits[post, topics] = none_so_far


@dataclass(frozen=True)
class Calibration:
    """Turns margins into probabilities; fitted on margins of posts that the model had not seen.

    `curve` float32 [2 + knots]: the log-odds that a topic is among a post's tags are
    curve[0] + curve[1] * margin + the sum over knots of curve[2 + j] * max(0, margin - KNOTS[j]).
    `interactions` float32 [K+1, K+1]: what the tanh of a margin (row; the last row is a constant) adds to the
    log-chance of each primary topic (column), in addition to `chain`.
    """

    curve: Floats
    interactions: Floats

    def chances(self, margins: Floats) -> Floats:
        """The chance of each topic to be among the tags: float32 [n, K]."""
        return (1 / (1 + np.exp(-self._log_odds(margins)))).astype(np.float32)

    def chain(self, margins: Floats) -> Floats:
        """The log-chance that topic k is the most frequent one among a post's tags, `other` last: float32 [n, K+1].

        Topics are ordered by frequency: k is primary when it is a tag and no topic before it is a tag; `other` is
        primary when no topic is a tag.
        """
        log_odds = self._log_odds(margins)
        logits = np.empty((len(margins), margins.shape[1] + 1), np.float32)
        _chain(log_odds, np.log1p(np.exp(-np.abs(log_odds))), logits)
        return logits

    def inputs(self, margins: Floats) -> Floats:
        """The factors of `interactions`: the tanh of each margin, then a constant 1; float32 [n, K+1]."""
        inputs = np.ones((len(margins), margins.shape[1] + 1), np.float32)
        np.tanh(margins, out=inputs[:, :-1])
        return inputs

    def posteriors(self, margins: Floats) -> Floats:
        """The distribution of the primary topic, `other` last: float32 [n, K+1]."""
        logits = self.chain(margins)
        _add_product(self.inputs(margins), self.interactions, logits)
        return softmax(logits)

    def _log_odds(self, margins: Floats) -> Floats:
        log_odds = np.empty_like(margins)
        _bend(margins, self.curve, _KNOTS, log_odds)
        return log_odds


def softmax(logits: _Logits) -> _Logits:
    """The softmax of each row, in place."""
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits
