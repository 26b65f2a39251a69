"""An order-independent checksum of a table that Postgres and Arrow both can compute.

Of each row: the XOR of its columns' hashes, each seeded with the column's number (NULL counts as 0); of the table:
the sum of its rows' hashes modulo 2^64. It sees every value, which row it stands in and which column, and how often
a row occurs; it does not see the order of rows. The server computes it in one aggregate (`server_checksum`), this
module from record batches as they are read back from what was written (`batch_checksum`).

The hashes are Postgres' own 64-bit ones (PostgreSQL source, `src/common/hashfn.c`: Bob Jenkins' lookup3 with a seed,
and `hash_*_extended` of each type). Partitioned tables are laid out by them, so they stay the same between versions;
SQL reaches them since version 14. A text or bytea longer than LONG bytes is hashed through its SHA-256, because a
long value would be walked twelve bytes at a time here. Numerics are hashed as the text of their unscaled integer.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from psycopg2 import sql

from ingest.pgcopy import EPOCH_DAYS, EPOCH_MICROSECONDS, MAX_DECIMAL_DIGITS, Column, TablePlan, postgres_errors
from shared.arrays import Bytes, Doubles, Hashes, Int64s, Words
from shared.errors import BadInput

LONG = 1024
"""Measured best of 64 to 1024 bytes, on both sides."""

OLDEST_SERVER = 14_00_00


START = 0x9E3779B9 + 3923095
"""What lookup3 starts all three words from, before the value's length is added."""


# ---- the server's side --------------------------------------------------------------------------------------------

NUMBER_HASHES = {
    "bool": "hashint4extended({value}::int4, {seed})",
    "int2": "hashint2extended({value}, {seed})",
    "int4": "hashint4extended({value}, {seed})",
    "int8": "hashint8extended({value}, {seed})",
    "oid": "hashoidextended({value}, {seed})",
    "float4": "hashfloat4extended({value}, {seed})",
    "float8": "hashfloat8extended({value}, {seed})",
    "uuid": "uuid_hash_extended({value}, {seed})",
    "date": "hashint4extended({value} - date '2000-01-01', {seed})",
    "timestamp": "timestamp_hash_extended({value}, {seed})",
    "timestamptz": "timestamp_hash_extended({value} AT TIME ZONE 'UTC', {seed})",
}
TEXT_HASH = """hashtextextended(CASE WHEN octet_length({value}) > {long}
    THEN encode(sha256(textsend({value})), 'hex') ELSE {value} END COLLATE "C", {seed})"""
BYTES_HASH = """hash_record_extended(ROW(CASE WHEN octet_length({value}) > {long}
    THEN sha256({value}) ELSE {value} END), {seed})"""
BYTES_OF_TEXT_HASH = """hash_record_extended(ROW(CASE WHEN octet_length({value}) > {long}
    THEN encode(sha256({value}), 'hex')::bytea ELSE {value} END), {seed})"""


def server_checksum(connection: Any, plan: TablePlan, emptied: frozenset[str] = frozenset()) -> tuple[int, int]:
    """Row count and checksum as the server sees them in the connection's snapshot.

    In the columns `emptied`, values that are carried as NULL count as NULL. Raises BadInput when the server is too old
    for it, and what `postgres_errors` raises.
    """
    if connection.server_version < OLDEST_SERVER:
        raise BadInput("checksums need Postgres 14 or newer; REFERENCE_PROOF=rows does without")
    hashes = [
        _server_hash(column, seed, column.name in emptied, plan.server_encoding)
        for seed, column in enumerate(plan.columns, start=1)
    ]
    statement = sql.SQL("SELECT count(*), coalesce(sum({}), 0) FROM {}").format(
        sql.SQL(" # ").join(hashes), plan.source
    )
    with postgres_errors(plan.name), connection.cursor() as cursor:
        cursor.execute(statement)
        rows, total = cursor.fetchone()
    return int(rows), int(total) % 2**64


def _server_hash(column: Column, seed: int, emptied: bool, encoding: str) -> sql.Composed:
    value: sql.Composable = sql.Identifier(column.name)
    template = NUMBER_HASHES.get(column.kind, TEXT_HASH)
    if column.kind == "bytea":
        template = BYTES_HASH
    elif column.kind == "numeric":
        to_integer = "(nullif({value}, 'NaN') * 1e{scale})::numeric({digits}, 0)"
        value = column.text_of(_filled(to_integer, value, scale=column.arrow.scale, digits=MAX_DECIMAL_DIGITS))
    elif column.kind == "bpchar":  # a cast to text would drop the padding
        template, value = BYTES_OF_TEXT_HASH, _filled("bpcharsend({value})", value)
    elif template == TEXT_HASH:
        value = column.text_of(value)
        if encoding != "UTF8":
            template, value = BYTES_OF_TEXT_HASH, _filled("textsend({value})", value)
    elif emptied:
        value = _filled("CASE WHEN {value} >= '0001-01-01' AND {value} < '10000-01-01' THEN {value} END", value)
    return _filled("coalesce(" + template + ", 0)", value, seed=seed, long=LONG)


def _filled(template: str, value: sql.Composable, **numbers: int) -> sql.Composed:
    literals = {name: sql.Literal(number) for name, number in numbers.items()}
    return sql.SQL(template).format(value=value, **literals)


# ---- this side ----------------------------------------------------------------------------------------------------


def batch_checksum(batch: pa.RecordBatch) -> int:
    """The checksum of a batch's rows; the checksum of a table is the sum of its batches' modulo 2^64."""
    rows = np.zeros(batch.num_rows, np.uint64)
    for number, column in enumerate(batch.columns):
        rows ^= column_hashes(column, seed=number + 1)
    return int(rows.sum(dtype=np.uint64))


def column_hashes(column: pa.Array, seed: int) -> Hashes:
    """Postgres' seeded 64-bit hash of every value of an Arrow array as `ingest.pgcopy` makes them; 0 where NULL."""
    kind = column.type
    if pa.types.is_decimal(kind):
        unscaled = pa.Array.from_buffers(
            pa.decimal128(kind.precision, 0), len(column), column.buffers(), offset=column.offset
        )
        hashes = _hash_strings(unscaled.cast(pa.string()), seed)
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        hashes = _hash_strings(column, seed)
    else:
        hashes = _hash_fixed(column, seed)
    if column.null_count:
        hashes[_values(column.is_null().cast(pa.uint8()), np.uint8) == 1] = 0
    return hashes


def _hash_fixed(column: pa.Array, seed: int) -> Hashes:
    kind = column.type
    if kind == pa.binary(16):
        data = np.frombuffer(column.buffers()[1], np.uint8)[16 * column.offset :][: 16 * len(column)]
        return _lookup3(data, np.arange(0, len(data), 16), np.full(len(column), 16), seed)
    if pa.types.is_floating(kind):
        return _hash_float8(_values(column.cast(pa.float64()), np.float64), seed)
    if pa.types.is_timestamp(kind):
        return _hash_int8(_values(column, np.int64) - EPOCH_MICROSECONDS, seed)
    if pa.types.is_int64(kind):
        return _hash_int8(_values(column, np.int64), seed)
    if pa.types.is_date32(kind):
        return _hash_word((_values(column, np.int32) - np.int32(EPOCH_DAYS)).view(np.uint32), seed)
    if pa.types.is_uint32(kind):
        return _hash_word(_values(column, np.uint32), seed)
    return _hash_word(_values(column.cast(pa.int32()), np.int32).view(np.uint32), seed)


def _values(column: pa.Array, dtype: Any) -> NDArray[Any]:
    """The values buffer of a fixed-width array, without looking at which are NULL."""
    return np.frombuffer(column.buffers()[1], dtype)[column.offset : column.offset + len(column)]


def _hash_word(values: Words, seed: int) -> Hashes:
    """`hash_bytes_uint32_extended`."""
    state = [np.repeat(word, len(values)) for word in _seeded(np.array([4]), seed)]
    state[0] += values
    return _finished(state)


def _hash_int8(values: Int64s, seed: int) -> Hashes:
    """`hashint8extended`: the high half is folded into the low one so that an int8 hashes as the equal int4 does."""
    low, high = values.astype(np.uint32), (values >> 32).astype(np.uint32)
    return _hash_word(low ^ np.where(values >= 0, high, ~high), seed)


def _hash_float8(values: Doubles, seed: int) -> Hashes:
    """`hashfloat8extended`: both zeros hash to the seed, all NaN alike."""
    canonical = np.where(np.isnan(values), np.float64("nan"), values)
    hashes = _lookup3(canonical.view(np.uint8), np.arange(0, 8 * len(values), 8), np.full(len(values), 8), seed)
    hashes[values == 0] = seed
    return hashes


def _hash_strings(column: pa.Array, seed: int) -> Hashes:
    all_offsets = np.frombuffer(column.buffers()[1], np.int32)
    offsets = all_offsets[column.offset : column.offset + len(column) + 1].astype(np.int64)
    data = np.frombuffer(column.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    starts, lengths = offsets[:-1] - offsets[0], np.diff(offsets)
    is_long = lengths > LONG
    if not is_long.any():
        return _lookup3(data, starts, lengths, seed)
    size = 64 if pa.types.is_string(column.type) else 32  # text is hashed as text, by the digest's hexadecimal form
    kept, digests = data[:0] if is_long.all() else data, bytearray()  # values of many megabytes are not copied
    for row in np.flatnonzero(is_long):
        digest = hashlib.sha256(data[starts[row] : starts[row] + lengths[row]].data)
        starts[row], lengths[row] = len(kept) + len(digests), size
        digests += digest.digest() if size == 32 else digest.hexdigest().encode()
    return _lookup3(np.concatenate([kept, np.frombuffer(digests, np.uint8)]), starts, lengths, seed)


# ---- lookup3 ------------------------------------------------------------------------------------------------------

BLOCK = 12
LOW_BYTES = np.array([(1 << 8 * count) - 1 for count in range(5)], np.uint32)
"""Masks that keep 0 to 4 bytes of a word."""


def _lookup3(data: Bytes, starts: Int64s, lengths: Int64s, seed: int) -> Hashes:
    """`hash_bytes_extended` of many byte strings at once: block i of all strings that have one is one step."""
    if not len(lengths):
        return np.empty(0, np.uint64)
    blocks = lengths // BLOCK
    most = int(blocks.max())
    order = np.argsort((most - blocks).astype(np.uint8), kind="stable")  # most < 256; so the sort is a radix sort
    position, lengths = starts[order], lengths[order]
    with_block = len(order) - np.bincount(blocks, minlength=most + 1).cumsum()  # how many strings have a block i
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
