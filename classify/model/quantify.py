"""How many posts of a day are about each topic, when the topic of a single post is uncertain.

Counting the model's answers is biased: topics it finds easily are counted too often. The mean posterior is right as
long as topics are as frequent as in training; when they are not, it follows the day only half-way. Here the day's
true histogram is inferred from the mean posterior as in a Kalman filter (a linear model with normal errors):

    mean posterior = response' histogram + noise     histogram = training shares + shift + sampling of n posts

The size of the shift is not known; estimates for several sizes are averaged, each weighed by how likely it makes what
was seen (empirical Bayes). All that is needed of a day are sums over its posts, so it may be added up from many files.
Only numpy is used, and of a model only its manifest and its calibration.

Of an answer that takes over what the model said of its question no posterior is known, only that topic. Such answers
are inferred in the same way from the histogram of those topics, which stands for the mean posterior. As the answers to
one question are right or wrong together, n of them tell as much as n²/Σ(answers a question)² posts (Kish's effective
sample size); and as their questions may be among the day's, their error adds to that of the others. Questions of
earlier files are taken to have been decided by the model of the day, though an older one may have.
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
NO_SHIFT = 0.9  # how likely a day has no shift at all, before it is seen
CALIBRATION_NOISE = 5.0  # times the sampling noise of the calibration posts: their margins are not quite the model's
# Standard deviations either side of a 95 % interval: a tenth more than a normal distribution needs, because what the
# model gets wrong in the same way every day is in no variance. Measured coverage is in the card of the starter model.
COVERED = 1.1 * 1.959964
LARGE = 0.01  # training share above which a topic counts for the drift
DRIFTED = 3.0  # exceeded by 1 in 200 days of the training distribution; half of mildly shifted days are above 6
FEW = 20.0  # posts, or as many as answers tell like: fewer exceed it 1 to 12 times in 100


@dataclass(frozen=True)
class Behaviour:
    """How a model's posteriors behaved on posts with known topics: C = K + 1 topics, `other` last.

    `prior` [C]: shares of the primary topics. `response` [C, C]: mean posterior (columns) of the posts of each topic
    (rows). `within` [C, C]: covariance of posteriors around the mean of their topic. `confusion` [C, C]: the shares
    of the posts of each topic (rows) of which the model says each topic. `posts`: how many were measured.
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
        """The same of the topics that the model says in place of its posteriors."""
        seen = self.prior[:, None] * self.confusion
        within = np.diag(seen.sum(axis=0)) - self.confusion.T @ seen
        return replace(self, response=self.confusion, within=within)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What is stored of it, beside the names of the topics."""
        return {
            "prior": self.prior,
            "response": self.response.astype(np.float32),
            "within": self.within.astype(np.float32),
            "confusion": self.confusion.astype(np.float32),
            "posts": np.array(self.posts, np.int64),
        }

    @classmethod
    def from_arrays(cls, topics: tuple[str, ...], arrays: Mapping[str, npt.NDArray[Any]]) -> "Behaviour":
        """What `arrays` stored. Raises ModelError where it is anything else, or of other topics."""
        names = ("prior", "response", "within", "confusion", "posts")
        try:
            prior, *matrices, posts = (arrays[name] for name in names)
        except KeyError as error:
            raise ModelError(f"calibration lacks {error}") from error
        size = len(topics)
        if prior.shape != (size,):
            raise ModelError(f"calibration of {prior.size} topics in a model of {size}")
        check_array("calibration: prior", prior, np.float64, (size,))
        for name, matrix in zip(names[1:], matrices, strict=False):
            check_array(f"calibration: {name}", matrix, np.float32, (size, size))
        check_array("calibration: posts", posts, np.int64, ())
        if prior.min() < 0 or abs(prior.sum() - 1) > 1e-6 or posts < 1:
            raise ModelError(f"calibration: shares from {prior.min()} that sum to {prior.sum()}, of {posts} posts")
        response, within, confusion = (matrix.astype(np.float64) for matrix in matrices)
        return cls(topics, prior, response, within, confusion, int(posts))

    @classmethod
    def from_files(cls, manifest: bytes, calibration: bytes) -> "Behaviour":
        """From a model's `model.json` and `calibration.npz` alone. Raises ModelError when they are damaged."""
        topics = read_manifest({MANIFEST: manifest, CALIBRATION: calibration}).topics
        return cls.from_arrays(topics, read_arrays(CALIBRATION, calibration))


def _mean_by_topic(values: npt.NDArray[Any], primary: Int32s, size: int) -> Doubles:
    """Of values [n, C] of posts the means by topic [C, C]; what never was primary answers like any post."""
    posts, sums = np.bincount(primary, minlength=size), np.zeros((size, size))
    np.add.at(sums, primary, values.astype(np.float64))
    seen = posts > 0
    means = np.tile(sums.sum(axis=0) / len(primary), (size, 1))
    means[seen] = sums[seen] / posts[seen, None]
    return means


@dataclass(frozen=True)
class DayStatistics:
    """What is kept of one day's posts: sums that add up over batches and files scored by the same model.

    `known` int64 [C]: posts whose topic is known (own tags, or the parent's topic), by topic. `said` int64 [C]: posts
    the model decided, by the topic it said. `posteriors` float64 [C]: the sum of the posteriors of the latter.
    `inherited` int64 [C]: answers that took over what the model said of their question, by that topic; `bundled`: the
    sum, over these questions, of the square of how many of these answers they have that day.
    `scored`: posts the model was asked about, whoever decided; `margins`, `overlaps`: the sums of their margins and
    vocabulary overlaps; `others`: how many of them it would have called `other`.
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
        """Of posts the model decided: their topic [n], posteriors [n, C] and margin [n]."""
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
        """Of the answers to questions that the model decided: what it said [n], and how many answers each has [n]."""
        inherited = np.bincount(topic, answers, minlength=size).astype(np.int64)
        return replace(cls.empty(size), inherited=inherited, bundled=int(np.square(answers).sum()))

    def __add__(self, other: "DayStatistics") -> "DayStatistics":
        return DayStatistics(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    @property
    def posts(self) -> int:
        return int(self.known.sum() + self.said.sum() + self.inherited.sum())

    @property
    def guessed(self) -> int:
        """How many posts the model decided."""
        return int(self.said.sum())

    @property
    def uncertain(self) -> int:
        """How many posts have a topic that the model said, of them or of their question."""
        return int(self.said.sum() + self.inherited.sum())

    @property
    def mean_margin(self) -> float:
        """Of the posts the model was asked about, as the next two; 0 when there is none."""
        return self.margins / self.scored if self.scored else 0.0

    @property
    def vocabulary_overlap(self) -> float:
        """The mean share of what was found in a post that the model knows."""
        return self.overlaps / self.scored if self.scored else 0.0

    @property
    def other_share(self) -> float:
        return self.others / self.scored if self.scored else 0.0


@dataclass(frozen=True)
class Estimate:
    """The topics of a day: shares of all its posts that sum to one, each with a 95 % interval.

    `share`, `low`, `high`, `deviation` (one standard deviation) are float64 [C]. `drift`: mean squared distance, over
    topics of at least 1 %, of the day's mean posterior from training, in units of its expected square: about one on
    a day like the training posts. `drifted`: above DRIFTED, the intervals may be too narrow. `mean_margin`,
    `vocabulary_overlap` and `other_share` are those of DayStatistics: they show posts the model does not know.
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
    """The shares of topics of a day. Raises ValueError for a day without posts, or of another model's topics."""
    if len(day.known) != len(behaviour.topics):
        raise ValueError(f"a day of {len(day.known)} topics, a model of {len(behaviour.topics)}")
    if not day.posts:
        raise ValueError("a day without posts has no shares")
    certain = day.known / day.posts
    inherited = int(day.inherited.sum())
    groups: list[tuple[int, float, npt.NDArray[Any], Behaviour]] = []  # posts, as how many they tell, sums, behaviour
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

    `certain` [C] are the shares of posts whose topic is known, by topic, and `uncertain` that of all others: no end
    lies outside what they allow.
    """
    low = np.maximum(share - COVERED * deviation, certain)
    return low, np.minimum(share + COVERED * deviation, certain + uncertain)


def _infer(mean_posterior: Doubles, posts: float, behaviour: Behaviour) -> tuple[Doubles, Doubles, float]:
    """Histogram and standard deviations of the topics of posts with this mean posterior, and the drift."""
    prior, response = behaviour.prior, behaviour.response.T
    surprise = mean_posterior - response @ prior
    sampling = np.diag(prior) - np.outer(prior, prior)
    spread = behaviour.within + response @ sampling @ response.T  # the covariance of a single post's posterior
    noise = behaviour.within / posts + CALIBRATION_NOISE / behaviour.posts * spread + 1e-10 * np.eye(len(prior))
    movable = np.square(prior) / np.square(prior).sum()  # a shift multiplies shares: the rare stay rare
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
    large = (prior >= LARGE) & (expected_square > 0)  # a topic that the model never names says nothing of a day
    drift = float(np.mean(np.square(surprise[large]) / expected_square[large])) if large.any() else 0.0
    return histogram / histogram.sum(), np.sqrt(np.maximum(variance, 0)), drift
