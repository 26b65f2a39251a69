"""How many posts of a day are about each topic, when the topic of a single post is uncertain.

Counting the model's topics is biased: topics that it finds easily are counted too often. The mean posterior is right
only if topics are as frequent as in training; otherwise it shows only part of the change. Here the day's
true histogram is inferred from the mean posterior as in a Kalman filter (a linear model with normal errors):

    mean posterior = response' histogram + noise     histogram = training shares + shift + sampling of n posts

The size of the shift is unknown. Estimates for several sizes are averaged, weighted by the likelihood of the observed
mean posterior (empirical Bayes). The estimate needs only sums over a day's posts, which add up over many files.
It uses only numpy, and only the manifest and the calibration of a model.

An answer that takes over the topic that the model gave its question has no posterior, only that topic. For such
answers the histogram of these topics takes the place of the mean posterior. The answers to one question are right or
wrong together, so n of them count as n²/Σ(answers per question)² posts (Kish's effective sample size). Their questions
may be among the day's posts, so their error is added to that of the others. Questions of earlier files are treated as
decided by the model of the day, although an older model may have decided them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from classify.model.files import CALIBRATION, MANIFEST, check_array, read_arrays, read_manifest
from shared.arrays import Doubles, Floats, Int32s, Int64s
from shared.errors import ModelError

SHIFTS = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
NO_SHIFT = 0.9  # prior probability that a day has no shift
CALIBRATION_NOISE = 5.0  # times the sampling noise: other models made the margins of the calibration posts
# Half the width of a 95 % interval, in standard deviations: a tenth more than for a normal distribution, because no
# variance contains the errors that the model repeats every day. The starter model's card has the measured coverage.
COVERED = 1.1 * 1.959964
LARGE = 0.01  # training share above which a topic counts for the drift
DRIFTED = 3.0  # 1 in 200 days of the training distribution is above it; half of mildly shifted days are above 6
FEW = 20.0  # effective number of posts: with fewer, 1 to 12 days in 100 are above DRIFTED


@dataclass(frozen=True)
class Behaviour:
    """How a model's posteriors behaved on posts with known topics: C = K + 1 topics, `other` last.

    `prior` [C]: shares of the primary topics. `response` [C, C]: mean posterior (columns) of the posts of each topic
    (rows). `within` [C, C]: covariance of posteriors around the mean of their topic. `confusion` [C, C]: the share
    of the posts of each topic (rows) to which the model gives each topic (columns). `posts`: how many were measured.
    """

    topics: tuple[str, ...]
    prior: Doubles
    response: Doubles
    within: Doubles
    confusion: Doubles
    posts: int

    @classmethod
    def measure(cls, topics: tuple[str, ...], posteriors: Floats, primary: Int32s) -> "Behaviour":
        """From the posteriors [n, C] and true topics [n] of posts that the model had not seen."""
        size = len(topics)
        posts = np.bincount(primary, minlength=size).astype(np.float64)
        response = _mean_by_topic(posteriors, primary, size)
        confusion = _mean_by_topic(np.eye(size)[posteriors.argmax(axis=1)], primary, size)
        apart = posteriors - response[primary]
        within = apart.T @ apart / len(primary)
        return cls(topics, posts / len(primary), response, within, confusion, len(primary))

    @property
    def of_said(self) -> "Behaviour":
        """The behaviour of the single topics that the model gives, in place of its posteriors."""
        seen = self.prior[:, None] * self.confusion
        within = np.diag(seen.sum(axis=0)) - self.confusion.T @ seen
        return replace(self, response=self.confusion, within=within)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The stored arrays; the names of the topics are stored in the manifest."""
        return {
            "prior": self.prior,
            "response": self.response.astype(np.float32),
            "within": self.within.astype(np.float32),
            "confusion": self.confusion.astype(np.float32),
            "posts": np.array(self.posts, np.int64),
        }

    @classmethod
    def from_arrays(cls, topics: tuple[str, ...], arrays: Mapping[str, npt.NDArray[Any]]) -> "Behaviour":
        """Read what `arrays` gave. Raises ModelError if it is invalid or belongs to other topics."""
        names = ("prior", "response", "within", "confusion", "posts")
        try:
            prior, *matrices, posts = (arrays[name] for name in names)
        except KeyError as error:
            raise ModelError(f"calibration: array {error} is missing") from error
        size = len(topics)
        if prior.shape != (size,):
            raise ModelError(f"calibration: {prior.size} topics in a model of {size} topics")
        check_array("calibration: prior", prior, np.float64, (size,))
        for name, matrix in zip(names[1:], matrices, strict=False):
            check_array(f"calibration: {name}", matrix, np.float32, (size, size))
        check_array("calibration: posts", posts, np.int64, ())
        if prior.min() < 0 or abs(prior.sum() - 1) > 1e-6 or posts < 1:
            raise ModelError(
                f"calibration: invalid shares (lowest {prior.min()}, sum {prior.sum()}) or number of posts ({posts})"
            )
        response, within, confusion = (matrix.astype(np.float64) for matrix in matrices)
        return cls(topics, prior, response, within, confusion, int(posts))

    @classmethod
    def from_files(cls, manifest: bytes, calibration: bytes) -> "Behaviour":
        """Read it from a model's `model.json` and `calibration.npz` alone. Raises ModelError when they are damaged."""
        topics = read_manifest({MANIFEST: manifest, CALIBRATION: calibration}).topics
        return cls.from_arrays(topics, read_arrays(CALIBRATION, calibration))


def _mean_by_topic(values: npt.NDArray[Any], primary: Int32s, size: int) -> Doubles:
    """The means by topic [C, C] of posts' values [n, C]; a topic that is never primary gets the mean of all posts."""
    posts, sums = np.bincount(primary, minlength=size), np.zeros((size, size))
    np.add.at(sums, primary, values.astype(np.float64))
    seen = posts > 0
    means = np.tile(sums.sum(axis=0) / len(primary), (size, 1))
    means[seen] = sums[seen] / posts[seen, None]
    return means


@dataclass(frozen=True)
class DayStatistics:
    """The sums of one day's posts; they add up over batches and files that the same model scored.

    `known` int64 [C]: posts whose topic is known (own tags, or the parent's topic), by topic. `said` int64 [C]: posts
    that the model decided, by their topic. `posteriors` float64 [C]: the sum of the posteriors of the latter.
    `inherited` int64 [C]: answers that took over the topic that the model gave their question, by topic. `bundled`: the
    sum, over these questions, of the square of their number of such answers that day.
    `scored`: posts that the model scored, also those decided by tags; `margins`, `overlaps`: the sums of their margins
    and vocabulary overlaps; `others`: the number of them to which the model gives `other`.
    """

    known: Int64s
    said: Int64s
    posteriors: Doubles
    inherited: Int64s
    bundled: int = 0
    margins: float = 0.0
    overlaps: float = 0.0
    scored: int = 0
    others: int = 0

    @classmethod
    def empty(cls, size: int) -> "DayStatistics":
        return cls(np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(size), np.zeros(size, np.int64))

    @classmethod
    def of_classified(cls, topic: Int32s, posteriors: Floats, margin: Floats) -> "DayStatistics":
        """The statistics of posts that the model decided: their topic [n], posteriors [n, C] and margin [n]."""
        size = posteriors.shape[1]
        said = np.bincount(topic, minlength=size)
        return replace(
            cls.empty(size),
            said=said,
            posteriors=posteriors.sum(axis=0, dtype=np.float64),
            margins=float(margin.sum()),
            scored=len(topic),
            others=int(said[-1]),
        )

    @classmethod
    def of_inherited(cls, topic: Int32s, answers: Int64s, size: int) -> "DayStatistics":
        """The statistics of answers to questions that the model decided: the questions' topics [n] and numbers of
        answers [n]."""
        inherited = np.bincount(topic, answers, minlength=size).astype(np.int64)
        return replace(cls.empty(size), inherited=inherited, bundled=int(np.square(answers).sum()))

    def __add__(self, other: "DayStatistics") -> "DayStatistics":
        return DayStatistics(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    @property
    def posts(self) -> int:
        return int(self.known.sum() + self.said.sum() + self.inherited.sum())

    @property
    def guessed(self) -> int:
        """The number of posts that the model decided."""
        return int(self.said.sum())

    @property
    def uncertain(self) -> int:
        """The number of posts for which the model decided, for them or for their question."""
        return int(self.said.sum() + self.inherited.sum())

    @property
    def mean_margin(self) -> float:
        """The mean margin of the scored posts; 0 without any, as in the next two."""
        return self.margins / self.scored if self.scored else 0.0

    @property
    def vocabulary_overlap(self) -> float:
        """The mean share of a scored post's features that are in the vocabulary."""
        return self.overlaps / self.scored if self.scored else 0.0

    @property
    def other_share(self) -> float:
        return self.others / self.scored if self.scored else 0.0


@dataclass(frozen=True)
class Estimate:
    """The topics of a day: shares of all its posts that sum to one, each with a 95 % interval.

    `share`, `low`, `high`, `deviation` (one standard deviation) are float64 [C]. `drift`: mean squared distance, over
    topics of at least 1 %, of the day's mean posterior from training, divided by its expected value: about one on
    a day like the training posts. `drifted`: it is above DRIFTED on FEW posts or more, so the intervals may be too
    narrow. `mean_margin`, `vocabulary_overlap` and `other_share`, of DayStatistics, show posts unlike the training's.
    """

    topics: tuple[str, ...]
    posts: int
    share: Doubles
    low: Doubles
    high: Doubles
    deviation: Doubles
    drift: float
    drifted: bool
    mean_margin: float
    vocabulary_overlap: float
    other_share: float


def estimate(day: DayStatistics, behaviour: Behaviour) -> Estimate:
    """The shares of a day's topics. Raises ValueError for a day without posts, or with another number of topics."""
    if len(day.known) != len(behaviour.topics):
        raise ValueError(f"the day has {len(day.known)} topics, the model {len(behaviour.topics)}")
    if not day.posts:
        raise ValueError("a day without posts has no shares")
    certain = day.known / day.posts
    inherited = int(day.inherited.sum())
    groups: list[tuple[int, float, npt.NDArray[Any], Behaviour]] = []  # posts, effective posts, sums, behaviour
    if day.guessed:
        groups.append((day.guessed, day.guessed, day.posteriors, behaviour))
    if inherited:
        groups.append((inherited, inherited**2 / day.bundled, day.inherited, behaviour.of_said))
    share, spread, drifts = certain, np.zeros(len(certain)), []
    for posts, telling, sums, behaviour in groups:
        histogram, deviation, drift = _infer(sums / posts, telling, behaviour)
        share, spread = share + posts / day.posts * histogram, spread + posts / day.posts * deviation
        drifts.append((telling, drift))
    told = sum(telling for telling, _ in drifts)
    low, high = interval(share, spread, certain, day.uncertain / day.posts)
    return Estimate(
        topics=behaviour.topics,
        posts=day.posts,
        share=share,
        low=low,
        high=high,
        deviation=spread,
        drift=sum(telling * drift for telling, drift in drifts) / told if told else 0.0,
        drifted=any(telling >= FEW and drift > DRIFTED for telling, drift in drifts),
        mean_margin=day.mean_margin,
        vocabulary_overlap=day.vocabulary_overlap,
        other_share=day.other_share,
    )


def interval(share: Doubles, deviation: Doubles, certain: Doubles, uncertain: float) -> tuple[Doubles, Doubles]:
    """The ends of the 95 % intervals of shares [C] with these standard deviations [C].

    `certain` [C] are the shares of posts whose topic is known, by topic; `uncertain` is the share of all others.
    The ends of a topic are limited to `certain` and `certain + uncertain`.
    """
    low = np.maximum(share - COVERED * deviation, certain)
    return low, np.minimum(share + COVERED * deviation, certain + uncertain)


def _infer(mean_posterior: Doubles, posts: float, behaviour: Behaviour) -> tuple[Doubles, Doubles, float]:
    """The histogram [C] and standard deviations [C] of the topics of posts with this mean posterior, and the drift."""
    prior, response = behaviour.prior, behaviour.response.T
    surprise = mean_posterior - response @ prior
    sampling = np.diag(prior) - np.outer(prior, prior)
    spread = behaviour.within + response @ sampling @ response.T  # the covariance of a single post's posterior
    noise = behaviour.within / posts + CALIBRATION_NOISE / behaviour.posts * spread + 1e-10 * np.eye(len(prior))
    movable = np.square(prior) / np.square(prior).sum()  # a shift multiplies shares: rare topics stay rare
    shift = np.diag(movable) - np.outer(movable, movable)
    likelihoods, histograms, variances = [], [], []
    for size in SHIFTS:
        before = size * shift + sampling / posts
        seen = response @ before @ response.T + noise
        gain = np.linalg.solve(seen, response @ before).T
        expected = 1 - NO_SHIFT if size else NO_SHIFT * (len(SHIFTS) - 1)
        likelihoods.append(
            np.log(expected) - (surprise @ np.linalg.solve(seen, surprise) + np.linalg.slogdet(seen)[1]) / 2
        )
        histograms.append(prior + gain @ surprise)
        variances.append(np.diag(before - gain @ response @ before))
    weights = np.exp(np.array(likelihoods) - max(likelihoods))
    weights /= weights.sum()
    histogram = weights @ np.array(histograms)
    variance = weights @ (np.array(variances) + np.square(np.array(histograms) - histogram))
    histogram = np.maximum(histogram, 0)
    expected_square = np.diag(spread) * (1 / posts + 1 / behaviour.posts)
    large = (prior >= LARGE) & (expected_square > 0)  # a topic that the model never gives has no drift
    drift = float(np.mean(np.square(surprise[large]) / expected_square[large])) if large.any() else 0.0
    return histogram / histogram.sum(), np.sqrt(np.maximum(variance, 0)), drift
