"""The topic model: what it knows, how it scores posts, and how it is stored.

A post becomes one sparse vector: per field BM25 over its features, times their inverse document frequency and the
field's weight, brought to length one. One linear function a topic gives a margin. What is read out of the margins
differs by question: the best topic (any tag the post may carry), the primary topic, and a distribution for counting.

What it is stored as is in `classify/model/files.py`.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from classify.model.files import (
    ARRAYS,
    CALIBRATION,
    FORMAT,
    check_array,
    check_topics,
    read_arrays,
    read_manifest,
    version_of,
)
from classify.model.files import MANIFEST as MANIFEST  # others find it here
from classify.model.quantify import Reference
from classify.model.text import FIELD_MASK, FIELDS, Bytes, Hashes, Indices, Occurrences, occurrences
from shared.compiled import compiled, from_half, prefetch
from shared.errors import ModelError

Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]
Integers = npt.NDArray[np.int32]
_Logits = TypeVar("_Logits", Floats, npt.NDArray[np.float64])

TOP = 3
MAX_FEATURES = (1 << 20) - 1
_NUMBER = np.uint64(MAX_FEATURES)  # the bits of an entry of the look-up table that number a feature

SATURATION = np.float32(1.2)  # BM25's k1
LENGTH_SHARE = np.float32(0.5)  # BM25's b
_ZERO, _ONE = np.float32(0), np.float32(1)
KEYS_AHEAD, FEATURES_AHEAD = 16, 8  # asked of memory: counting takes 3 quarters of the time then, products 2 thirds
HALVES_A_LINE = 32  # of the cache
KNOTS = (-0.75, -0.5, -0.25, 0.0, 0.5)  # margins at which the curve of chances may bend
_KNOTS = np.array(KNOTS, np.float32)


class Vocabulary:
    """The features a model knows and what each weighs.

    `keys`: uint64 [F]; `weights`: float32 [F], inverse document frequency times the weight of the field;
    `mean_lengths`: float32 [fields], known features of a field in a post, on average over the training posts.
    """

    def __init__(self, keys: Hashes, weights: Floats, mean_lengths: Floats) -> None:
        self.keys = keys
        self.weights = weights
        self.mean_lengths = mean_lengths
        if len(keys) > MAX_FEATURES:
            raise ModelError(f"{len(keys)} features, at most {MAX_FEATURES} can be told apart")
        check_array("keys", keys, np.uint64, (len(keys),))
        check_array("feature weights", weights, np.float32, keys.shape)
        check_array("mean lengths", mean_lengths, np.float32, (FIELDS,))
        if (keys & FIELD_MASK).max(initial=0) >= FIELDS or not (mean_lengths > 0).all():
            raise ModelError(f"features of fields beyond {FIELDS - 1}, or fields of no length")
        self._fields = (keys & FIELD_MASK).astype(np.uint8)
        self._table = np.full(1 << max(4 * len(keys), 2).bit_length(), len(keys), np.uint64)
        _fill(self._table, keys)

    def __len__(self) -> int:
        return len(self.keys)

    def counts(self, batch: Occurrences) -> tuple[Integers, Integers, Floats]:
        """What is known of a batch of n posts, as the rows of a sparse matrix: features, bounds [n + 1] and how often.

        The features of post i are those from bounds[i] to bounds[i + 1], in order of appearance.
        """
        features, times = np.empty(len(batch.keys) + 1, np.int32), np.empty(len(batch.keys), np.float32)
        bounds = np.zeros(batch.posts + 1, np.int32)
        _count(batch.keys, batch.bounds, self._table, len(self), features, bounds, times)
        return features[: bounds[-1]], bounds, times[: bounds[-1]]

    def vectors(self, batch: Occurrences) -> tuple[Integers, Integers, Floats]:
        """The same with values instead of how often: rows of length one (or zero, when nothing in a post is known)."""
        return self.weighed(*self.counts(batch))

    def weighed(self, features: Integers, bounds: Integers, values: Floats) -> tuple[Integers, Integers, Floats]:
        """What `counts` gave, changed in place to what `vectors` gives."""
        _weigh(features, bounds, values, self._fields, self.weights, self.mean_lengths)
        return features, bounds, values


@compiled
def _shift(table: Hashes) -> np.uint64:
    """How far a key is shifted to its first slot in a table of two to the n slots."""
    bits = 0
    while 1 << bits < len(table):
        bits += 1
    return np.uint64(64 - bits)


@compiled
def _fill(table: Hashes, keys: Hashes) -> None:
    """A hash table by linear probing: an entry has the top bits of a key and the number of the feature below them.

    An empty slot holds the number of no feature. One load a look-up, where keys in an array of their own need two.
    """
    shift, one, empty = _shift(table), np.uint64(1), np.uint64(len(keys))
    for feature in range(len(keys)):
        slot = keys[feature] >> shift
        while table[slot] != empty:
            slot = (slot + one) & np.uint64(len(table) - 1)
        table[slot] = (keys[feature] & ~_NUMBER) | np.uint64(feature)


@compiled
def _count(
    keys: Hashes, posts: Indices, table: Hashes, known: int, features: Integers, bounds: Integers, times: Floats
) -> None:
    """Write the known features of each post, the number of the first one of each, and how often each is there.

    What is unknown is counted as one feature more; so no branch depends on what is known or new, as nobody can guess.
    """
    shift, one, empty, last_slot = _shift(table), np.uint64(1), np.uint64(known), np.uint64(len(table) - 1)
    seen = np.zeros(known + 1, np.float32)  # how often in this post
    seen[known] = 1
    count = 0
    for post in range(len(posts) - 1):
        first = count
        for at in range(posts[post], posts[post + 1]):
            prefetch(table, int(keys[min(at + KEYS_AHEAD, len(keys) - 1)] >> shift))
            slot = keys[at] >> shift
            entry = table[slot]
            while entry != empty and (entry ^ keys[at]) > _NUMBER:
                slot = (slot + one) & last_slot
                entry = table[slot]
            feature = entry & _NUMBER
            features[count] = np.int32(feature)
            count += seen[feature] == 0
            seen[feature] += 1
        for at in range(first, count):
            times[at] = seen[features[at]]
            seen[features[at]] = 0
        bounds[post + 1] = count


@compiled
def _overlap(bounds: Integers, times: Floats, found: Indices, overlap: Floats) -> None:
    """Write the share of what was found in each post that is known."""
    for post in range(len(overlap)):
        known = 0
        for at in range(bounds[post], bounds[post + 1]):
            known += int(times[at])
        overlap[post] = known / max(found[post + 1] - found[post], 1)


@compiled
def _weigh(
    features: Integers, bounds: Integers, values: Floats, fields: Bytes, weights: Floats, mean_lengths: Floats
) -> None:
    """Turn how often into BM25 times the weight of the feature, each post brought to length one."""
    lengths = np.empty(FIELDS, np.float32)
    for post in range(len(bounds) - 1):
        first, last = bounds[post], bounds[post + 1]
        lengths[:] = 0
        for at in range(first, last):
            lengths[fields[features[at]]] += values[at]
        for field in range(FIELDS):  # how much a feature is damped there
            lengths[field] = SATURATION * (_ONE - LENGTH_SHARE + LENGTH_SHARE * lengths[field] / mean_lengths[field])
        squares = np.float32(0)
        for at in range(first, last):
            feature = features[at]
            value = values[at] * weights[feature] / (values[at] + lengths[fields[feature]])
            values[at] = value
            squares += value * value
        scale = _ONE / np.sqrt(max(squares, np.float32(1e-12)))
        for at in range(first, last):
            values[at] *= scale


@compiled
def _add_products(
    features: Integers, bounds: Integers, values: Floats, weights: npt.NDArray[np.uint16], margins: Floats
) -> None:
    """Add to each row of margins the weights (the bits of float16) of its post's features, four features at once."""
    for post in range(len(margins)):
        row = margins[post]
        at, end = bounds[post], bounds[post + 1]
        while at + 4 <= end:
            for coming in range(at + FEATURES_AHEAD, min(at + FEATURES_AHEAD + 4, len(features))):
                for topic in range(0, len(row), HALVES_A_LINE):
                    prefetch(weights, int(features[coming]) * len(row) + topic)
            a, b, c, d = values[at], values[at + 1], values[at + 2], values[at + 3]
            of_a, of_b = weights[features[at]], weights[features[at + 1]]
            of_c, of_d = weights[features[at + 2]], weights[features[at + 3]]
            for topic in range(len(row)):
                one, other = a * from_half(of_a[topic]), c * from_half(of_c[topic])
                row[topic] += (one + b * from_half(of_b[topic])) + (other + d * from_half(of_d[topic]))
            at += 4
        while at < end:
            value, weight = values[at], weights[features[at]]
            for topic in range(len(row)):
                row[topic] += value * from_half(weight[topic])
            at += 1


@compiled
def _add_product(rows: Floats, matrix: Floats, sums: Floats) -> None:
    """Add rows @ matrix to the sums, in this thread: BLAS would start threads that cost more than they save."""
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
    """Write what a curve (see `Calibration`) makes of margins."""
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
    """Write the log-chances that the first tag is each topic, or none; `small` is log(1 + exp(-|log_odds|))."""
    for post in range(len(log_odds)):
        none_so_far, topics = _ZERO, log_odds.shape[1]
        for topic in range(topics):
            odds = log_odds[post, topic]
            none_so_far -= small[post, topic] + max(odds, _ZERO)
            logits[post, topic] = odds + none_so_far
        logits[post, topics] = none_so_far


@compiled
def _find_top(margins: Floats, top: Integers, top_margins: Floats) -> None:
    """Write the topics with the highest margins of each post, and these, falling; of equals the first comes first."""
    wanted = top.shape[1]
    for post in range(len(margins)):
        top_margins[post] = -np.inf
        for topic in range(margins.shape[1]):
            margin = margins[post, topic]
            if margin > top_margins[post, wanted - 1] or topic < wanted:
                place = min(topic, wanted - 1)
                while place > 0 and margin > top_margins[post, place - 1]:
                    top[post, place], top_margins[post, place] = top[post, place - 1], top_margins[post, place - 1]
                    place -= 1
                top[post, place], top_margins[post, place] = topic, margin


@dataclass(frozen=True)
class Calibration:
    """From margins to probabilities, fitted on margins of posts that the model had not seen.

    `curve` float32 [2 + knots]: the log-odds that a topic is among a post's tags are
    curve[0] + curve[1] * margin + the sum over knots of curve[2 + j] * max(0, margin - KNOTS[j]).
    `interactions` float32 [K+1, K+1]: what a saturated margin (row; the last one is a constant) adds to the
    log-chance of each primary topic (column), beyond what follows from the chances alone.
    """

    curve: Floats
    interactions: Floats

    def chances(self, margins: Floats) -> Floats:
        """The chance of each topic to be among the tags: float32 [n, K]."""
        return (1 / (1 + np.exp(-self._log_odds(margins)))).astype(np.float32)

    def chain(self, margins: Floats) -> Floats:
        """Log-chance that topic k is the most frequent one among a post's tags, `other` last: float32 [n, K+1].

        Topics are ordered by frequency: k is primary when it is a tag and none before it is, `other` when none is.
        """
        log_odds = self._log_odds(margins)
        logits = np.empty((len(margins), margins.shape[1] + 1), np.float32)
        _chain(log_odds, np.log1p(np.exp(-np.abs(log_odds))), logits)
        return logits

    def inputs(self, margins: Floats) -> Floats:
        """What `interactions` is multiplied by: float32 [n, K+1]."""
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
    """Row by row, in place."""
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits


@dataclass(frozen=True, slots=True)
class Classified:
    """What a model says about n posts, row by row.

    `topic` int32 [n]: the primary topic, as an index into the model's topics (`other` is the last).
    `best` int32 [n]: the topic most likely to be among the tags; never `other`.
    `posteriors` float32 [n, K+1]: the distribution of the primary topic; its mean over posts estimates shares.
    `top` int32, `top_scores` float32 [n, min(3, K)]: the three likeliest tags, and how likely each is.
    `margin` float32 [n]: the margin of `best`; low where the model finds nothing it knows.
    `overlap` float32 [n]: the share of what was found in the post that is in the vocabulary; 0 where nothing was found.
    """

    topic: Integers
    best: Integers
    posteriors: Floats
    top: Integers
    top_scores: Floats
    margin: Floats
    overlap: Floats


class TopicModel:
    """K topics and `other`, and how to find them in posts.

    `topics`: K names by falling frequency in the training posts, then `other`. `trained_on`: whatever describes the
    training posts. `weights`: float16 [F, K]; `biases`: float32 [K]. `reference` is what counting needs.
    """

    def __init__(
        self,
        *,
        topics: tuple[str, ...],
        vocabulary: Vocabulary,
        weights: Halves,
        biases: Floats,
        calibration: Calibration,
        reference: Reference,
        trained_on: dict[str, Any],
    ) -> None:
        check_topics(topics)
        size = len(topics)
        check_array("weights", weights, np.float16, (len(vocabulary), size - 1))
        check_array("biases", biases, np.float32, (size - 1,))
        check_array("curve", calibration.curve, np.float32, (2 + len(KNOTS),))
        check_array("interactions", calibration.interactions, np.float32, (size, size))
        self.topics = topics
        self.vocabulary = vocabulary
        self.weights = weights
        self._bits = np.ascontiguousarray(weights).view(np.uint16)
        self.biases = biases
        self.calibration = calibration
        self.reference = reference
        self.trained_on = trained_on
        self._names = pa.array(topics[:-1], pa.string())

    @cached_property
    def version(self) -> str:
        """Names the content: the same arrays have the same version."""
        return version_of(self.topics, self._array_files())

    def score(self, titles: pa.Array, bodies: pa.Array) -> Floats:
        """Margins of every post for each of the K topics: float32 [n, K]."""
        margins = (margins for margins, _ in self._margins(titles, bodies))
        return np.concatenate([np.empty((0, len(self.topics) - 1), np.float32), *margins])

    def classify(self, titles: pa.Array, bodies: pa.Array) -> Classified:
        """The topics of posts given their titles and HTML bodies (strings or binaries, nulls allowed).

        Besides the answer it needs memory for one batch of posts only.
        """
        if not len(titles):
            return self.read_out(self.score(titles, bodies))
        batches = [self.read_out(*scored) for scored in self._margins(titles, bodies)]
        return Classified(*(np.concatenate([getattr(b, part.name) for b in batches]) for part in fields(Classified)))

    def _margins(self, titles: pa.Array, bodies: pa.Array) -> Iterator[tuple[Floats, Floats]]:
        """Margins and overlap, batch by batch."""
        for batch in occurrences(titles, bodies, passing=True):
            margins, overlap = np.tile(self.biases, (batch.posts, 1)), np.empty(batch.posts, np.float32)
            features, bounds, times = self.vocabulary.counts(batch)
            _overlap(bounds, times, batch.bounds, overlap)
            _add_products(*self.vocabulary.weighed(features, bounds, times), self._bits, margins)
            yield margins, overlap

    def read_out(self, margins: Floats, overlap: Floats | float = 1.0) -> Classified:
        """The topics that margins of posts stand for."""
        wanted = min(TOP, margins.shape[1])
        top, top_margins = np.empty((len(margins), wanted), np.int32), np.empty((len(margins), wanted), np.float32)
        _find_top(margins, top, top_margins)
        posteriors = self.calibration.posteriors(margins)
        return Classified(
            topic=posteriors.argmax(axis=1).astype(np.int32),
            best=top[:, 0],
            posteriors=posteriors,
            top=top,
            top_scores=self.calibration.chances(top_margins),
            margin=top_margins[:, 0],
            overlap=np.broadcast_to(np.float32(overlap), len(margins)),
        )

    def primary_of_tags(self, tags: pa.ListArray) -> Integers:
        """The primary topic of posts whose tags are known: the most frequent one; `other` when no tag is a topic.

        -1 where the list is null.
        """
        other = len(self.topics) - 1
        lists, lengths = tags.flatten(), pc.fill_null(pc.list_value_length(tags), 0).to_numpy(zero_copy_only=False)
        numbers = pc.fill_null(pc.index_in(lists, self._names), other).to_numpy(zero_copy_only=False).astype(np.int32)
        primary = np.full(len(tags), other, np.int32)
        filled = np.flatnonzero(lengths)
        if len(filled):
            primary[filled] = np.minimum.reduceat(numbers, (np.cumsum(lengths) - lengths)[filled])
        primary[tags.is_null().to_numpy(zero_copy_only=False)] = -1
        return primary

    def to_files(self) -> dict[str, bytes]:
        """The model as files: name and content."""
        files = self._array_files()
        manifest = {
            "format": FORMAT,
            "version": version_of(self.topics, files),
            "topics": list(self.topics),
            "trained_on": self.trained_on,
            "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        }
        return {MANIFEST: json.dumps(manifest, indent=1).encode(), **files}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> "TopicModel":
        """The model that `to_files` wrote. Raises ModelError for any other or damaged files."""
        stored = {name: files[name] for name in (MANIFEST, ARRAYS, CALIBRATION) if name in files}
        if missing := {MANIFEST, ARRAYS, CALIBRATION} - stored.keys():
            raise ModelError(f"not a topic model: {', '.join(sorted(missing))} missing")
        manifest = read_manifest(stored)
        arrays, calibration = read_arrays(ARRAYS, stored[ARRAYS]), read_arrays(CALIBRATION, stored[CALIBRATION])
        try:
            model = cls(
                topics=manifest.topics,
                vocabulary=Vocabulary(arrays["keys"], arrays["feature_weights"], arrays["mean_lengths"]),
                weights=arrays["weights"],
                biases=arrays["biases"],
                calibration=Calibration(
                    curve=calibration["curve"],
                    interactions=calibration["interactions"],
                ),
                reference=Reference.from_arrays(manifest.topics, calibration),
                trained_on=manifest.trained_on.model_dump(exclude_unset=True),
            )
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ModelError(f"topic model lacks {error}") from error
        content = version_of(manifest.topics, {name: stored[name] for name in (ARRAYS, CALIBRATION)})
        if manifest.version != content:
            raise ModelError(f"{MANIFEST} is of {manifest.version}, its topics and arrays are those of {content}")
        model.version = content
        return model

    def save(self, folder: Path) -> None:
        """Write the model's files into a folder, the manifest last."""
        folder.mkdir(parents=True, exist_ok=True)
        files = self.to_files()
        for name in sorted(files, key=lambda name: name == MANIFEST):
            (folder / name).write_bytes(files[name])

    @classmethod
    def load(cls, folder: Path) -> "TopicModel":
        """The model in a folder. Raises ModelError when there is none, or it is damaged."""
        try:
            return cls.from_files({name: (folder / name).read_bytes() for name in (MANIFEST, ARRAYS, CALIBRATION)})
        except OSError as error:
            raise ModelError(f"no topic model in {folder}: {error}") from error

    def _array_files(self) -> dict[str, bytes]:
        return {
            ARRAYS: _packed(
                keys=self.vocabulary.keys,
                feature_weights=self.vocabulary.weights,
                mean_lengths=self.vocabulary.mean_lengths,
                weights=self.weights,
                biases=self.biases,
            ),
            CALIBRATION: _packed(
                curve=self.calibration.curve,
                interactions=self.calibration.interactions,
                **self.reference.arrays(),
            ),
        }


def _packed(**arrays: Any) -> bytes:
    """Arrays in numpy's own zip format, the same bytes for the same arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
