"""The features that a model knows, and posts as sparse vectors of them.

A vector holds, for each field, BM25 over its features times their inverse document frequency and the field's weight,
and is brought to length one (Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009).
"""

import numpy as np

from classify.model.files import check_array
from classify.model.text import FIELD_MASK, FIELDS, Occurrences
from shared.arrays import Bytes, Floats, Hashes, Int32s, Int64s
from shared.compiled import compiled, prefetch
from shared.errors import ModelError

MAX_FEATURES = (1 << 20) - 1
_NUMBER = np.uint64(MAX_FEATURES)  # the bits of an entry of the look-up table that number a feature
SATURATION = np.float32(1.2)  # BM25's k1
LENGTH_SHARE = np.float32(0.5)  # BM25's b
_ONE = np.float32(1)
KEYS_AHEAD = 16  # fetched ahead of their use: counting takes three quarters of the time


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

    def counts(self, batch: Occurrences) -> tuple[Int32s, Int32s, Floats]:
        """What is known of a batch of n posts, as the rows of a sparse matrix: features, bounds [n + 1] and how often.

        The features of post i are those from bounds[i] to bounds[i + 1], in order of appearance.
        """
        features, times = np.empty(len(batch.keys) + 1, np.int32), np.empty(len(batch.keys), np.float32)
        bounds = np.zeros(batch.posts + 1, np.int32)
        _count(batch.keys, batch.bounds, self._table, len(self), features, bounds, times)
        return features[: bounds[-1]], bounds, times[: bounds[-1]]

    def vectors(self, batch: Occurrences) -> tuple[Int32s, Int32s, Floats]:
        """The same with values instead of how often: rows of length one (or zero, when nothing in a post is known)."""
        return self.weighed(*self.counts(batch))

    def weighed(self, features: Int32s, bounds: Int32s, values: Floats) -> tuple[Int32s, Int32s, Floats]:
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
    keys: Hashes, posts: Int64s, table: Hashes, known: int, features: Int32s, bounds: Int32s, times: Floats
) -> None:
    """Write the known features of each post, the number of the first one of each, and how often each is there.

    What is unknown is counted as one more feature, which avoids an unpredictable branch on what is known or new.
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
def known_share(bounds: Int32s, times: Floats, found: Int64s, overlap: Floats) -> None:
    """Write the share of what was found in each post that is known."""
    for post in range(len(overlap)):
        known = 0
        for at in range(bounds[post], bounds[post + 1]):
            known += int(times[at])
        overlap[post] = known / max(found[post + 1] - found[post], 1)


@compiled
def _weigh(
    features: Int32s, bounds: Int32s, values: Floats, fields: Bytes, weights: Floats, mean_lengths: Floats
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
