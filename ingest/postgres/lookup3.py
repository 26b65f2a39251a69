"""Postgres' own 64-bit hashes of values, computed for whole Arrow arrays: Bob Jenkins' lookup3 with a seed.

Postgres assigns rows to hash partitions by these hashes, so they do not change between versions. Source: PostgreSQL,
`src/common/hashfn.c` and the `hash_*_extended` function of each type.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ingest.postgres.decode import EPOCH_DAYS, EPOCH_MICROSECONDS
from shared.arrays import Bytes, Doubles, Hashes, Int64s, Words

LONG = 1024
"""The fastest of 64 to 1024 bytes, measured on the server and here."""
START = 0x9E3779B9 + 3923095
"""The initial value of lookup3's three words, before the value's length is added."""


Hash = Callable[[pa.Array, int], Hashes]
"""Postgres' seeded 64-bit hash of every value of an Arrow array; the hash at a NULL is undefined."""


def of_small_numbers(column: pa.Array, seed: int) -> Hashes:
    """`hashint4extended`, of booleans and of int16 and int32."""
    return _hash_word(_values(column.cast(pa.int32()), np.int32).view(np.uint32), seed)


def of_int64s(column: pa.Array, seed: int) -> Hashes:
    """`hashint8extended`."""
    return _hash_int8(_values(column, np.int64), seed)


def of_words(column: pa.Array, seed: int) -> Hashes:
    """`hashoidextended`, of uint32."""
    return _hash_word(_values(column, np.uint32), seed)


def of_floats(column: pa.Array, seed: int) -> Hashes:
    """`hashfloat8extended`, which float4 also uses."""
    return _hash_float8(_values(column.cast(pa.float64()), np.float64), seed)


def of_days(column: pa.Array, seed: int) -> Hashes:
    """`hashint4extended` of the days since 2000-01-01."""
    return _hash_word((_values(column, np.int32) - np.int32(EPOCH_DAYS)).view(np.uint32), seed)


def of_moments(column: pa.Array, seed: int) -> Hashes:
    """`timestamp_hash_extended`, of microseconds."""
    return _hash_int8(_values(column, np.int64) - EPOCH_MICROSECONDS, seed)


def of_uuids(column: pa.Array, seed: int) -> Hashes:
    """`uuid_hash_extended`, of 16 bytes each."""
    data = np.frombuffer(column.buffers()[1], np.uint8)[16 * column.offset :][: 16 * len(column)]
    return _lookup3(data, np.arange(0, len(data), 16), np.full(len(column), 16), seed)


def of_decimals(column: pa.Array, seed: int) -> Hashes:
    """`hashtextextended` of the text of the unscaled integer."""
    whole = pa.decimal128(column.type.precision, 0)
    unscaled = pa.Array.from_buffers(whole, len(column), column.buffers(), offset=column.offset)
    return of_strings(unscaled.cast(pa.string()), seed)


def of_strings(column: pa.Array, seed: int) -> Hashes:
    """`hashtextextended`, also for bytes; for a value longer than LONG bytes, its SHA-256 is hashed."""
    all_offsets = np.frombuffer(column.buffers()[1], np.int32)
    offsets = all_offsets[column.offset : column.offset + len(column) + 1].astype(np.int64)
    data = np.frombuffer(column.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    starts, lengths = offsets[:-1] - offsets[0], np.diff(offsets)
    is_long = lengths > LONG
    if not is_long.any():
        return _lookup3(data, starts, lengths, seed)
    size = 64 if pa.types.is_string(column.type) else 32  # for text, the hexadecimal digest is hashed
    kept, digests = data[:0] if is_long.all() else data, bytearray()  # does not copy values of many megabytes
    for row in np.flatnonzero(is_long):
        digest = hashlib.sha256(data[starts[row] : starts[row] + lengths[row]].data)
        starts[row], lengths[row] = len(kept) + len(digests), size
        digests += digest.digest() if size == 32 else digest.hexdigest().encode()
    return _lookup3(np.concatenate([kept, np.frombuffer(digests, np.uint8)]), starts, lengths, seed)


def without_nulls(hashed: Hash, column: pa.Array, seed: int) -> Hashes:
    """The hashes of a column, 0 where it is NULL."""
    hashes = hashed(column, seed)
    if column.null_count:
        hashes[_values(column.is_null().cast(pa.uint8()), np.uint8) == 1] = 0
    return hashes


def _values(column: pa.Array, dtype: Any) -> NDArray[Any]:
    """The values buffer of a fixed-width array; NULLs are ignored."""
    return np.frombuffer(column.buffers()[1], dtype)[column.offset : column.offset + len(column)]


def _hash_word(values: Words, seed: int) -> Hashes:
    """`hash_bytes_uint32_extended`."""
    state = [np.repeat(word, len(values)) for word in _seeded(np.array([4]), seed)]
    state[0] += values
    return _finished(state)


def _hash_int8(values: Int64s, seed: int) -> Hashes:
    """`hashint8extended`: folds the high half into the low one, so that equal int8 and int4 have the same hash."""
    low, high = values.astype(np.uint32), (values >> 32).astype(np.uint32)
    return _hash_word(low ^ np.where(values >= 0, high, ~high), seed)


def _hash_float8(values: Doubles, seed: int) -> Hashes:
    """`hashfloat8extended`: both zeros hash to the seed, all NaN to one value."""
    canonical = np.where(np.isnan(values), np.float64("nan"), values)
    hashes = _lookup3(canonical.view(np.uint8), np.arange(0, 8 * len(values), 8), np.full(len(values), 8), seed)
    hashes[values == 0] = seed
    return hashes


BLOCK = 12
LOW_BYTES = np.array([(1 << 8 * count) - 1 for count in range(5)], np.uint32)
"""Masks that keep 0 to 4 bytes of a word."""


def _lookup3(data: Bytes, starts: Int64s, lengths: Int64s, seed: int) -> Hashes:
    """`hash_bytes_extended` of many byte strings at once: step i hashes block i of all strings that are long enough."""
    if not len(lengths):
        return np.empty(0, np.uint64)
    blocks = lengths // BLOCK
    most = int(blocks.max())
    order = np.argsort((most - blocks).astype(np.uint8), kind="stable")  # most < 256, so numpy uses a radix sort
    position, lengths = starts[order], lengths[order]
    with_block = len(order) - np.bincount(blocks, minlength=most + 1).cumsum()  # the number of strings with a block i
    padded = np.concatenate([data, np.zeros(BLOCK, np.uint8)])
    block_at = np.ndarray((len(data) + 1,), f"V{BLOCK}", padded, strides=(1,))

    def words(at: Int64s) -> Words:
        return block_at[at].view("<u4").reshape(-1, 3)

    state = _seeded(lengths, seed)
    for active in with_block[:most]:
        running = [word[:active] for word in state]
        _add(running, words(position[:active]))
        _mix(running)
        position[:active] += BLOCK
    left = lengths % BLOCK
    rest = words(position)
    for i in range(3):
        rest[:, i] &= LOW_BYTES[np.clip(left - 4 * i, 0, 4)]
    rest[:, 2] <<= 8  # the third word's low byte is reserved for the length
    _add(state, rest)
    hashes = np.empty(len(order), np.uint64)
    hashes[order] = _finished(state)
    return hashes


def _seeded(lengths: Int64s, seed: int) -> list[Words]:
    state = [(lengths + START).astype(np.uint32) for _ in range(3)]
    state[1] += np.uint32(seed)
    _mix(state)
    return state


def _add(state: list[Words], words: Words) -> None:
    for i in range(3):
        state[i] += words[:, i]


def _mix(state: list[Words]) -> None:
    a, b, c = state
    rotated = _Rotation(len(a))
    for bits, x, y, z in zip((4, 6, 8, 16, 19, 4), (a, b, c) * 2, (c, a, b) * 2, (b, c, a) * 2, strict=True):
        x -= y
        x ^= rotated(y, bits)
        y += z


def _finished(state: list[Words]) -> Hashes:
    a, b, c = state
    rotated = _Rotation(len(a))
    for bits, x, y in zip((14, 11, 25, 16, 4, 14, 24), (c, a, b, c, a, b, c), (b, c, a, b, c, a, b), strict=True):
        x ^= y
        x -= rotated(y, bits)
    return b.astype(np.uint64) << np.uint64(32) | c


class _Rotation:
    """Left rotation of 32-bit words, without new arrays."""

    def __init__(self, size: int) -> None:
        self._left, self._right = np.empty(size, np.uint32), np.empty(size, np.uint32)

    def __call__(self, words: Words, bits: int) -> Words:
        np.left_shift(words, bits, out=self._left)
        np.right_shift(words, 32 - bits, out=self._right)
        return np.bitwise_or(self._left, self._right, out=self._left)
