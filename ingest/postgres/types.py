"""One entry for every Postgres type: its Arrow type, how it is decoded, and how both sides hash it.

A new type needs one entry in TYPES (and a row in docs/operations.md, which a test compares with the entries). A type
without an entry is copied as the server's own text, in the session's pinned formats. A domain is treated as its base
type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from psycopg2 import sql

from ingest.postgres import decode, lookup3
from shared.arrays import Hashes

MAX_DECIMAL_DIGITS = 38


ServerHash = Callable[["SourceColumn", sql.Literal, bool, str], sql.Composed]
"""The SQL of a column's hash, given the seed, whether its irregular values became NULL, and the server's encoding."""


@dataclass(frozen=True)
class PostgresType:
    """A type of `pg_catalog`, or several that are treated the same.

    `wire` is its binary form as a numpy type, None if the length varies. `by_cast`: the server sends its text.
    `server_hash` gives the SQL of a column's hash; `hash` computes the same for an Arrow array, given the seed.
    `becomes` is the cell in the table of docs/operations.md.
    """

    names: tuple[str, ...]
    wire: str | None
    arrow: pa.DataType
    decode: decode.Decode
    server_hash: ServerHash
    hash: Callable[[pa.Array, int], Hashes]
    becomes: str
    by_cast: bool = False

    @property
    def width(self) -> int:
        """Bytes of a value; 0 if the length varies."""
        return np.dtype(self.wire).itemsize if self.wire else 0


@dataclass(frozen=True)
class SourceColumn:
    """A column to copy: its type, and its Arrow type.

    `declared` is the type as the server declares it; `has_own_cast` says that its cast to text is user-defined.
    """

    name: str
    type: PostgresType
    arrow: pa.DataType
    declared: str = ""
    has_own_cast: bool = False

    @property
    def value(self) -> sql.Composable:
        """The expression that COPY selects."""
        return self.text_of(sql.Identifier(self.name)) if self.type.by_cast else sql.Identifier(self.name)

    def text_of(self, value: sql.Composable) -> sql.Composed:
        """The server's own text of a value of this type, without any user-defined cast; NULL for NULL.

        In SQL, a composite value with only NULLs IS NULL although it is a value: `num_nulls` distinguishes the two.
        """
        own = "CASE WHEN num_nulls({value}) = 0 THEN format('%s', {value}) END"
        return sql.SQL(own if self.has_own_cast else "{value}::text").format(value=value)


# ---- the server's hashes ------------------------------------------------------------------------------------------

TEXT_HASH = """hashtextextended(CASE WHEN octet_length({value}) > {long}
    THEN encode(sha256(textsend({value})), 'hex') ELSE {value} END COLLATE "C", {seed})"""
BYTES_HASH = """hash_record_extended(ROW(CASE WHEN octet_length({value}) > {long}
    THEN sha256({value}) ELSE {value} END), {seed})"""
BYTES_OF_TEXT_HASH = """hash_record_extended(ROW(CASE WHEN octet_length({value}) > {long}
    THEN encode(sha256({value}), 'hex')::bytea ELSE {value} END), {seed})"""
IN_RANGE = "CASE WHEN {value} >= '0001-01-01' AND {value} < '10000-01-01' THEN {value} END"


def _filled(template: str, value: sql.Composable, **literals: sql.Literal) -> sql.Composed:
    return sql.SQL(template).format(value=value, **literals)


def _hashed(template: str, value: sql.Composable, seed: sql.Literal) -> sql.Composed:
    return _filled(template, value, seed=seed, long=sql.Literal(lookup3.LONG))


def _by(template: str) -> ServerHash:
    """The hash of a value with this SQL."""
    return lambda column, seed, _, __: _hashed(template, sql.Identifier(column.name), seed)


def _of_moment(template: str) -> ServerHash:
    """The hash of a date or timestamp; NULL if it is outside the years 1 to 9999 and was copied as NULL."""

    def hashed(column: SourceColumn, seed: sql.Literal, emptied: bool, _: str) -> sql.Composed:
        value: sql.Composable = sql.Identifier(column.name)
        return _hashed(template, _filled(IN_RANGE, value) if emptied else value, seed)

    return hashed


def _of_text(column: SourceColumn, seed: sql.Literal, _: bool, encoding: str) -> sql.Composed:
    value = column.text_of(sql.Identifier(column.name))
    if encoding == "UTF8":
        return _hashed(TEXT_HASH, value, seed)
    return _hashed(BYTES_OF_TEXT_HASH, _filled("textsend({value})", value), seed)


def _of_padded_text(column: SourceColumn, seed: sql.Literal, _: bool, __: str) -> sql.Composed:
    """The hash of `bpchar` with its padding, which a cast to text would drop."""
    return _hashed(BYTES_OF_TEXT_HASH, _filled("bpcharsend({value})", sql.Identifier(column.name)), seed)


def _of_decimal(column: SourceColumn, seed: sql.Literal, _: bool, __: str) -> sql.Composed:
    """The hash of the unscaled integer's text; NULL for NaN."""
    to_integer = "(nullif({value}, 'NaN') * 1e{scale})::numeric({digits}, 0)"
    scale, digits = sql.Literal(column.arrow.scale), sql.Literal(MAX_DECIMAL_DIGITS)
    unscaled = _filled(to_integer, sql.Identifier(column.name), scale=scale, digits=digits)
    return _hashed(TEXT_HASH, column.text_of(unscaled), seed)


# ---- the entries --------------------------------------------------------------------------------------------------


def _number(name: str, wire: str, arrow: pa.DataType, server_hash: str, hashed: lookup3.Hash) -> PostgresType:
    return PostgresType((name,), wire, arrow, decode.numbers, _by(server_hash), hashed, f"{arrow}")


def _moment(
    name: str,
    wire: str,
    arrow: pa.DataType,
    bounds: decode.Bounds,
    server_hash: str,
    hashed: lookup3.Hash,
    becomes: str,
) -> PostgresType:
    return PostgresType(
        (name,),
        wire,
        arrow,
        partial(decode.moments, bounds=bounds),
        _of_moment(server_hash),
        hashed,
        f"{becomes}; infinity (`REFERENCE_INFINITY`) and dates outside the years 1 to 9999 (`REFERENCE_OUT_OF_RANGE`)"
        " are refused",
    )


TIMESTAMP_HASH = "timestamp_hash_extended({value}, {seed})"
NUMERIC = PostgresType(
    ("numeric",),
    None,
    pa.decimal128(MAX_DECIMAL_DIGITS),
    decode.decimals,
    _of_decimal,
    lookup3.of_decimals,
    f"decimal128 with a precision of up to {MAX_DECIMAL_DIGITS} digits, else string; NaN in a decimal is refused"
    " (`REFERENCE_NAN`)",
    by_cast=True,
)
TEXT_BY_CAST = PostgresType(
    (), None, pa.string(), decode.strings, _of_text, lookup3.of_strings, "string: the server's own text", by_cast=True
)
"""The entry for every type without its own."""
TYPES: Sequence[PostgresType] = (
    PostgresType(
        ("bool",),
        "u1",
        pa.bool_(),
        decode.flags,
        _by("hashint4extended({value}::int4, {seed})"),
        lookup3.of_small_numbers,
        "bool",
    ),
    _number("int2", ">i2", pa.int16(), "hashint2extended({value}, {seed})", lookup3.of_small_numbers),
    _number("int4", ">i4", pa.int32(), "hashint4extended({value}, {seed})", lookup3.of_small_numbers),
    _number("int8", ">i8", pa.int64(), "hashint8extended({value}, {seed})", lookup3.of_int64s),
    _number("oid", ">u4", pa.uint32(), "hashoidextended({value}, {seed})", lookup3.of_words),
    _number("float4", ">f4", pa.float32(), "hashfloat4extended({value}, {seed})", lookup3.of_floats),
    _number("float8", ">f8", pa.float64(), "hashfloat8extended({value}, {seed})", lookup3.of_floats),
    _moment(
        "date",
        ">i4",
        pa.date32(),
        decode.DAYS,
        "hashint4extended({value} - date '2000-01-01', {seed})",
        lookup3.of_days,
        "date32",
    ),
    _moment(
        "timestamp",
        ">i8",
        pa.timestamp("us"),
        decode.MICROSECONDS,
        TIMESTAMP_HASH,
        lookup3.of_moments,
        "timestamp in microseconds",
    ),
    _moment(
        "timestamptz",
        ">i8",
        pa.timestamp("us", "UTC"),
        decode.MICROSECONDS,
        "timestamp_hash_extended({value} AT TIME ZONE 'UTC', {seed})",
        lookup3.of_moments,
        "timestamp in microseconds, in UTC",
    ),
    NUMERIC,
    PostgresType(
        ("uuid",),
        "V16",
        pa.binary(16),
        decode.numbers,
        _by("uuid_hash_extended({value}, {seed})"),
        lookup3.of_uuids,
        "16 bytes of binary",
    ),
    PostgresType(("bytea",), None, pa.binary(), decode.strings, _by(BYTES_HASH), lookup3.of_strings, "binary"),
    PostgresType(
        ("text", "varchar", "name"), None, pa.string(), decode.strings, _of_text, lookup3.of_strings, "string"
    ),
    PostgresType(("json",), None, pa.string(), decode.strings, _of_text, lookup3.of_strings, "string, spelt as it is"),
    PostgresType(
        ("bpchar",),
        None,
        pa.string(),
        decode.strings,
        _of_padded_text,
        lookup3.of_strings,
        "string, with its padding (`bpchar` is `char(n)`)",
    ),
)
BY_NAME = {name: entry for entry in TYPES for name in entry.names}


def column_of(name: str, base: str, modifier: int, declared: str, *, has_own_cast: bool = False) -> SourceColumn:
    """The copied form of a column whose type, with domains resolved, is `base` with this type modifier."""
    entry = BY_NAME.get(base, TEXT_BY_CAST)
    arrow = entry.arrow
    if entry is NUMERIC:
        decimal = _decimal(modifier)
        entry, arrow = (NUMERIC, decimal) if decimal is not None else (TEXT_BY_CAST, TEXT_BY_CAST.arrow)
    return SourceColumn(name, entry, arrow, declared, has_own_cast)


def _decimal(modifier: int) -> pa.DataType | None:
    """The decimal for all values of a numeric with this type modifier; None without modifier or beyond 38 digits."""
    if modifier < 0:
        return None
    precision, scale = (modifier - 4) >> 16 & 0xFFFF, ((modifier - 4 & 0x7FF) ^ 1024) - 1024
    digits = max(precision, scale) if scale >= 0 else precision - scale
    return pa.decimal128(digits, max(scale, 0)) if digits <= MAX_DECIMAL_DIGITS else None
