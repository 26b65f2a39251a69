"""The topic model: what it knows, how it scores posts, and how it is stored.

A post becomes one sparse vector: for each field, BM25 over its features, times their inverse document frequency and the
field's weight, scaled to length one. One linear function per topic gives a margin. The margins give three results:
the best topic (any tag the post may carry), the primary topic, and a distribution for counting.

`classify/model/files.py` describes the stored files.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from classify.model.calibration import KNOTS, Calibration
from classify.model.files import (
    ARRAYS,
    CALIBRATION,
    FORMAT,
    MANIFEST,
    check_array,
    check_topics,
    read_arrays,
    read_manifest,
    version_of,
)
from classify.model.quantify import Behaviour
from classify.model.text import occurrences
from classify.model.vocabulary import Vocabulary, known_share
from shared.arrays import Floats, Halves, Int32s
from shared.compiled import compiled, from_half, prefetch
from shared.errors import ModelError

TOP = 3

FEATURES_AHEAD = 8  # how far ahead weights are prefetched: products take two thirds of the time
HALVES_A_LINE = 32  # float16 numbers in a cache line


@compiled
def _add_products(
    features: Int32s, bounds: Int32s, values: Floats, weights: npt.NDArray[np.uint16], margins: Floats
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
def _find_top(margins: Floats, top: Int32s, top_margins: Floats) -> None:
    """Write the topics with the highest margins of each post, and these margins, highest first.

    Of equal margins the topic with the lower index comes first.
    """
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


@dataclass(frozen=True, slots=True)
class Classified:
    """The result of a model for n posts, row by row.

    `topic` int32 [n]: the primary topic, as an index into the model's topics (`other` is the last).
    `best` int32 [n]: the topic most likely to be among the tags; never `other`.
    `posteriors` float32 [n, K+1]: the distribution of the primary topic; its mean over posts estimates shares.
    `top` int32, `top_scores` float32 [n, min(3, K)]: the three likeliest tags, and how likely each is.
    `margin` float32 [n]: the margin of `best`; low where the vocabulary has no feature of the post.
    `overlap` float32 [n]: the share of the post's features that are in the vocabulary; 0 for a post without features.
    """

    topic: Int32s
    best: Int32s
    posteriors: Floats
    top: Int32s
    top_scores: Floats
    margin: Floats
    overlap: Floats


class TopicModel:
    """K topics and `other`, and how to find them in posts.

    `topics`: K names, most frequent in the training posts first, then `other`. `trained_on` describes the training
    posts. `weights`: float16 [F, K] for F features; `biases`: float32 [K]. `behaviour`: used to estimate shares.
    """

    def __init__(
        self,
        *,
        topics: tuple[str, ...],
        vocabulary: Vocabulary,
        weights: Halves,
        biases: Floats,
        calibration: Calibration,
        behaviour: Behaviour,
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
        self.behaviour = behaviour
        self.trained_on = trained_on
        self._names = pa.array(topics[:-1], pa.string())

    @cached_property
    def version(self) -> str:
        """The model version, made of the content: the same topics and arrays have the same version."""
        return version_of(self.topics, self._array_files())

    def score(self, titles: pa.Array, bodies: pa.Array) -> Floats:
        """The margin of every post for each of the K topics: float32 [n, K]."""
        margins = (margins for margins, _ in self._margins(titles, bodies))
        return np.concatenate([np.empty((0, len(self.topics) - 1), np.float32), *margins])

    def classify(self, titles: pa.Array, bodies: pa.Array) -> Classified:
        """The topics of posts, from their titles and HTML bodies (strings or binaries, nulls allowed).

        Besides the result it needs memory for only one batch of posts.
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
            known_share(bounds, times, batch.bounds, overlap)
            _add_products(*self.vocabulary.weighed(features, bounds, times), self._bits, margins)
            yield margins, overlap

    def read_out(self, margins: Floats, overlap: Floats | float = 1.0) -> Classified:
        """The topics that follow from the margins of posts."""
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

    def primary_of_tags(self, tags: pa.ListArray) -> Int32s:
        """The primary topic of posts with known tags: the most frequent of their topics; `other` if no tag is a topic.

        Returns int32 [n], -1 where the list is null.
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
        """The model's files: name to content."""
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
        """Read the model that `to_files` wrote. Raises ModelError if files are missing, damaged or of another kind."""
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
                behaviour=Behaviour.from_arrays(manifest.topics, calibration),
                trained_on=manifest.trained_on.model_dump(exclude_unset=True),
            )
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ModelError(f"an array of the topic model is missing or malformed: {error}") from error
        content = version_of(manifest.topics, {name: stored[name] for name in (ARRAYS, CALIBRATION)})
        if manifest.version != content:
            raise ModelError(f"{MANIFEST} names {manifest.version}, but its topics and arrays make {content}")
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
        """Read the model in a folder. Raises ModelError when it is missing or damaged."""
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
                **self.behaviour.arrays(),
            ),
        }


def _packed(**arrays: Any) -> bytes:
    """Arrays in numpy's npz format; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
