"""From a record batch of a Posts file to columns of fixed types, for any types in the file."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared.errors import BadColumn
from shared.posts import POST_COLUMNS

QUESTION, ANSWER = 1, 2
"""The PostTypeIds that are counted."""

COLUMN_NAMES = tuple(column.name for column in POST_COLUMNS)
LARGEST_WHOLE = {16: 1 << 11, 32: 1 << 24, 64: 1 << 53}
"""By the bits of a floating-point number: up to this it holds every whole number exactly (IEEE 754)."""
_DIGITS = r"^[+-]?[0-9]+(\.0*)?$"

EPOCH = date(1970, 1, 1)
FIRST_DAY, LAST_DAY = (date.min - EPOCH).days, (date.max - EPOCH).days
_A_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
_ISO_8601 = (
    r"^(?P<day>\d{4}-\d\d-\d\d)(?:[Tt ](?P<hour>[01]\d|2[0-4]):(?P<minute>[0-5]\d)(?::\d\d(?:[.,]\d*)?)?"
    r" ?(?:[Zz]|UTC|GMT|(?P<sign>[+-])(?P<hours>[01]\d):?(?P<minutes>[0-5]\d)?)?(?:\[.*\])?)?$"
)
"""A date, optionally a time, optionally an offset from UTC below 20 hours. Postgres omits the minutes of an offset;
Java adds the name of the zone in brackets."""


@dataclass(frozen=True)
class Posts:
    """n posts: `ids` int64, 0 and `has_id` False where missing; `types` and `parents` int64, 0 where missing; `days`
    int32, days since 1970-01-01 (UTC); `misdated`, True where a CreationDate is invalid; and their texts."""

    ids: np.ndarray
    has_id: np.ndarray
    types: np.ndarray
    parents: np.ndarray
    days: np.ndarray
    misdated: np.ndarray
    titles: pa.Array
    bodies: pa.Array
    tags: pa.Array

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, chosen: np.ndarray) -> Posts:
        """The posts where `chosen` (bool [n]) is True; no copy if all are."""
        if chosen.all():
            return self
        rows = np.flatnonzero(chosen)
        return Posts(*(getattr(self, part.name).take(rows) for part in fields(self)))


def clean(batch: pa.RecordBatch, file_day: date) -> Posts:
    """The columns of `batch` as `Posts`. A post with a missing or invalid CreationDate belongs to `file_day`.

    Raises BadColumn when a column holds invalid values, such as 1.5 in place of a whole number.
    """
    ids, created = whole_numbers(batch, "Id"), _without_nan(column(batch, "CreationDate"), "CreationDate")
    found, known = _days(created)
    return Posts(
        ids=filled(ids),
        has_id=np.asarray(ids.is_valid()),
        types=filled(whole_numbers(batch, "PostTypeId")),
        parents=filled(whole_numbers(batch, "ParentId")),
        days=_or_of_file(found, known, file_day),
        misdated=_is_told(created) & ~known,
        titles=text(column(batch, "Title"), "Title"),
        bodies=text(column(batch, "Body"), "Body"),
        tags=text(column(batch, "Tags"), "Tags"),
    )


def column(batch: pa.RecordBatch | pa.Table, name: str) -> pa.Array:
    """A column as one plain array (string views are copied); nulls if the file has no such column."""
    if name not in batch.schema.names:
        return pa.nulls(batch.num_rows)
    found = batch.column(name)
    if isinstance(found, pa.ChunkedArray):
        found = found.combine_chunks()
    if pa.types.is_string_view(found.type):
        return found.cast(pa.large_string())  # Arrow has no `take` for views
    return found.dictionary_decode() if pa.types.is_dictionary(found.type) else found


def whole_numbers(batch: pa.RecordBatch | pa.Table, name: str) -> pa.Int64Array:
    """A column of whole numbers, from integers, floating-point numbers, decimals or texts of digits.

    NaN and empty texts become null. Raises BadColumn with the first value that is not whole or exceeds 64 bits.
    """
    found = column(batch, name)
    kind = found.type
    if pa.types.is_floating(kind):
        found = _whole_of_floats(found, name)
    elif pa.types.is_decimal(kind):
        _refuse(found.filter(pc.not_equal(pc.round(found), found)), name)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        found = _whole_of_texts(found, name)
    try:
        return found.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise BadColumn(f"column {name} does not hold whole numbers of 64 bits: {error}") from error


def _whole_of_floats(array: pa.Array, name: str) -> pa.Array:
    numbers = np.asarray(array.cast(pa.float64()).fill_null(np.nan))
    missing = np.isnan(numbers)
    largest = LARGEST_WHOLE[array.type.bit_width]
    whole = missing | ((np.abs(numbers) <= largest) & (np.floor(numbers) == numbers))
    _refuse(array.filter(pa.array(~whole)), name, f" ({array.type} holds whole numbers exactly up to {largest:,})")
    return pa.array(np.where(missing, 0, numbers).astype(np.int64), mask=missing)


def _whole_of_texts(array: pa.Array, name: str) -> pa.Array:
    found = pc.utf8_trim_whitespace(array)
    found = pc.if_else(pc.equal(found, ""), None, found)
    _refuse(array.filter(pc.invert(pc.fill_null(pc.match_substring_regex(found, _DIGITS), True))), name)
    return pc.replace_substring_regex(found, r"^\+|\.0*$", "")


def _refuse(values: pa.Array, name: str, why: str = "") -> None:
    """Raise BadColumn if there are any values."""
    if len(values):
        shown = str(values[0].as_py())[:60]
        raise BadColumn(f"column {name} must hold whole numbers, but holds {shown}{why}")


def filled(array: pa.Int64Array) -> np.ndarray:
    """The values, with 0 for null."""
    return np.asarray(pc.fill_null(array, 0))


def text(array: pa.Array, name: str) -> pa.Array:
    """The texts as a string, large_string, binary or large_binary array; other types are cast to string.

    Raises BadColumn for floating-point numbers. A column of NaN only becomes nulls: some writers store a column
    without values in this way.
    """
    array = _without_nan(array, name)
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        return array
    return array if pa.types.is_large_binary(kind) else array.cast(pa.string())


def _without_nan(array: pa.Array, name: str) -> pa.Array:
    """Nulls in place of a floating-point column of NaN and nulls only; a column of another type unchanged.

    Raises BadColumn for other floating-point numbers.
    """
    if not pa.types.is_floating(array.type):
        return array
    numbers = array.filter(pc.invert(pc.is_null(array, nan_is_null=True)))
    if len(numbers):
        raise BadColumn(f"column {name} must hold text, but holds numbers, such as {numbers[0].as_py()}")
    return pa.nulls(len(array), pa.string())


def days(array: pa.Array, file_day: date) -> np.ndarray:
    """Days since 1970-01-01 (UTC) of timestamps of any unit and zone, of dates, or of ISO 8601 texts: int32 [n].

    A value that is missing, invalid or outside the years 1 to 9999 becomes `file_day`.
    """
    return _or_of_file(*_days(array), file_day)


def _is_told(created: pa.Array) -> np.ndarray:
    """Which posts have a CreationDate, valid or not. An empty text counts as missing."""
    if pa.types.is_string(created.type) or pa.types.is_large_string(created.type):
        return np.asarray(pc.fill_null(pc.greater(pc.binary_length(created), 0), False))
    return np.asarray(created.is_valid())


def _or_of_file(found: np.ndarray, known: np.ndarray, file_day: date) -> np.ndarray:
    return np.where(known, found, (file_day - EPOCH).days).astype(np.int32)


def _days(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The days, and which of them are valid."""
    kind = array.type
    if pa.types.is_date32(kind):
        found, a_day = array.cast(pa.int32()), 1
    elif pa.types.is_date64(kind):
        found, a_day = array, _A_DAY["ms"]
    elif pa.types.is_timestamp(kind):  # with or without a zone, the stored number is UTC
        found, a_day = array, _A_DAY[kind.unit]
    else:
        found, a_day = _moments(array), 24 * 60
    known = np.asarray(found.is_valid())
    numbers = np.asarray(pc.fill_null(found.cast(pa.int64()), 0)) // a_day
    return numbers, known & (numbers >= FIRST_DAY) & (numbers <= LAST_DAY)


def _moments(array: pa.Array) -> pa.Array:
    """UTC minutes since 1970-01-01 of ISO 8601 texts; null for an invalid text or a day that does not exist."""
    is_ascii = pc.match_substring_regex(array.cast(pa.binary()), "^[ -~\\s]*$")
    array = pc.if_else(is_ascii, array, None).cast(pa.string())  # other bytes may be invalid UTF-8
    found = pc.extract_regex(pc.ascii_trim_whitespace(array), _ISO_8601)
    day = pc.struct_field(found, "day")
    midnight = pc.strptime(day, "%Y-%m-%d", "s", error_is_null=True)
    midnight = pc.if_else(pc.equal(midnight.cast(pa.date32()).cast(pa.string()), day), midnight, None)  # no 30 February

    def number(name: str) -> pa.Array:
        part = pc.struct_field(found, name)
        return pc.if_else(pc.equal(part, ""), "0", part).cast(pa.int64())

    offset = pc.add(pc.multiply(number("hours"), 60), number("minutes"))
    east = pc.if_else(pc.equal(pc.struct_field(found, "sign"), "-"), pc.negate(offset), offset)
    minutes = pc.add(pc.multiply(number("hour"), 60), number("minute"))
    return pc.add(pc.divide(midnight.cast(pa.int64()), 60), pc.subtract(minutes, east))
