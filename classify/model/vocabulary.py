"""The features that a model knows, and posts as sparse vectors of them.

A vector holds, for each field, BM25 over its features times their inverse document frequency and the field's weight,
and is scaled to length one (Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009).
"""

import numpy as np

from classify.model.files import check_array
from classify.model.text import FIELD_MASK, FIELDS, Occurrences
from shared.arrays import Bytes, Floats, Hashes, Int32s, Int64s
from shared.compiled import compiled, prefetch
from shared.errors import ModelError

MAX_FEATURES = (1 << 20) - 1
_NUMBER = np.uint64(MAX_FEATURES)  # the bits of an entry of the look-up table that hold a feature's number
SATURATION = np.float32(1.2)  # BM25's k1
LENGTH_SHARE = np.float32(0.5)  # BM25's b
_ONE = np.float32(1)
KEYS_AHEAD = 16  # how far ahead entries of the table are prefetched: counting takes three quarters of the time


class Vocabulary:
    """The features a model knows, and their weights.

    `keys`: uint64 [F]; `weights`: float32 [F], inverse document frequency times the weight of the field;
    `mean_lengths`: float32 [fields], the mean number of known features of each field in a training post.
    """

    def __init__(self, keys: Hashes, weights: Floats, mean_lengths: Floats) -> None:
        self.keys = keys
        self.weights = weights
        self.mean_lengths = mean_lengths
        if len(keys) > MAX_FEATURES:
            raise ModelError(f"the model has {len(keys)} features, more than the {MAX_FEATURES} allowed")
        check_array("keys", keys, np.uint64, (len(keys),))
        check_array("feature weights", weights, np.float32, keys.shape)
        check_array("mean lengths", mean_lengths, np.float32, (FIELDS,))
        if (keys & FIELD_MASK).max(initial=0) >= FIELDS or not (mean_lengths > 0).all():
            raise ModelError(f"features have a field above {FIELDS - 1}, or a mean length is not positive")
        self._fields = (keys & FIELD_MASK).astype(np.uint8)
        self._table = np.full(1 << max(4 * len(keys), 2).bit_length(), len(keys), np.uint64)
        _fill(self._table, keys)

    def __len__(self) -> int:
        return len(self.keys)

    def counts(self, batch: Occurrences) -> tuple[Int32s, Int32s, Floats]:
        """The known features of a batch of n posts, as a sparse matrix: features, bounds [n + 1] and their counts.

        The features of post i are those from bounds[i] to bounds[i + 1], in order of appearance.
        """
        features, times = np.empty(len(batch.keys) + 1, np.int32), np.empty(len(batch.keys), np.float32)
        bounds = np.zeros(batch.posts + 1, np.int32)
        _count(batch.keys, batch.bounds, self._table, len(self), features, bounds, times)
        return features[: bounds[-1]], bounds, times[: bounds[-1]]

    def vectors(self, batch: Occurrences) -> tuple[Int32s, Int32s, Floats]:
        """Like `counts`, with values in place of counts: rows of length one (zero if a post has no known feature)."""
        return self.weighed(*self.counts(batch))

    def weighed(self, features: Int32s, bounds: Int32s, values: Floats) -> tuple[Int32s, Int32s, Floats]:
        """Change the result of `counts` in place to that of `vectors`."""
        _weigh(features, bounds, values, self._fields, self.weights, self.mean_lengths)
        return features, bounds, values


@compiled
def _shift(table: Hashes) -> np.uint64:
    """By how many bits a key is shifted right to get its first slot, in a table of 2**n slots."""
    bits = 0
    while 1 << bits < len(table):
        bits += 1
    return np.uint64(64 - bits)


@compiled
def _fill(table: Hashes, keys: Hashes) -> None:
    """Fill a hash table by linear probing: an entry holds the top bits of a key, and below them the feature's number.

    An empty slot holds the number of features. A look-up needs one load; keys in an array of their own would need two.
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
    """Write the known features of each post, the bounds of the posts, and how often each feature occurs.

    All unknown features are counted as one more, which avoids an unpredictable branch.
    """
    shift, one, empty, last_slot = _shift(table), np.uint64(1), np.uint64(known), np.uint64(len(table) - 1)
    seen = np.zeros(known + 1, np.float32)  # how often each feature occurs in this post
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
    """Write the share of each post's features that are known."""
    for post in range(len(overlap)):
        known = 0
        for at in range(bounds[post], bounds[post + 1]):
            known += int(times[at])
        overlap[post] = known / max(found[post + 1] - found[post], 1)


@compiled
def _weigh(
    features: Int32s, bounds: Int32s, values: Floats, fields: Bytes, weights: Floats, mean_lengths: Floats
) -> None:
    """Turn counts into BM25 times the weight of the feature, each post scaled to length one."""
    lengths = np.empty(FIELDS, np.float32)
    for post in range(len(bounds) - 1):
        first, last = bounds[post], bounds[post + 1]
        lengths[:] = 0
        for at in range(first, last):
            lengths[fields[features[at]]] += values[at]
        for field in range(FIELDS):  # from here on, by how much BM25 damps a feature of the field
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
