"""Rows of a dump to Arrow: a compiled loop reads the usual form of rows, Python's expat every other form.

The loop goes over the bytes once, checks them and writes values directly into Arrow's buffers. It reads `<row
Name="value" ... />` with plain names, valid UTF-8, the five named entities and numeric ones, and numbers and timestamps
that fit their columns; all rows of a genuine dump have this form. A row of any other form is parsed alone by expat,
which supports all of XML, and Arrow casts its values. A row that they can't read either is rejected, with their error
message as the reason.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from itertools import accumulate
from typing import BinaryIO, NamedTuple
from xml.parsers import expat

import numpy as np
import pyarrow as pa

from ingest.dump.report import Rejected
from ingest.dump.scan import WHITESPACE
from shared.arrays import Bytes, Flags, Int32s, Int64s
from shared.compiled import EACH_BYTE, HIGH_BITS, LOW_BITS, compiled, inlined, load_word, store_word, trailing_zeros
from shared.errors import Conflict

MOMENT = pa.timestamp("us")

_ROW = b"<row"
_TEXT, _INTEGER, _MOMENT = range(3)
_END = b"<" + bytes(8)
"""Appended to the last row, so that the loops need no bounds checks: a value ends before `<`, and whole words can be
read."""
_UNKNOWN_A_ROW = 32
"""Space for attributes without a column, per row on average over a block; rows beyond it are read by expat."""


class _RowFault(Exception):
    """A row that can't be read; the message is saved as the reason of its rejection."""


@dataclass(frozen=True)
class XmlTable:
    """A file of the dump: its root element, its attributes with their types, and those that a row must have.

    Types are string, int32, int64 and timestamps, which have no time zone and mean UTC, as in the dump.
    """

    root: str
    schema: pa.Schema
    required: tuple[str, ...]

    @cached_property
    def form(self) -> _Form:
        """The table in the form that the compiled loop takes."""
        names = [field.name.encode() for field in self.schema]
        kinds = [{pa.string(): _TEXT, MOMENT: _MOMENT}.get(field.type, _INTEGER) for field in self.schema]
        bits = [field.type.bit_width if kind == _INTEGER else 0 for field, kind in zip(self.schema, kinds, strict=True)]
        return _Form(
            np.frombuffer(b"".join(names), np.uint8),
            np.fromiter(accumulate(map(len, names), initial=0), np.int64),
            np.array(kinds, np.uint8),
            np.array(bits, np.uint8),
        )


class _Form(NamedTuple):
    """The C columns of a table: their concatenated names, the bounds of each name [C + 1], their kinds [C], and the
    bits of integers [C]."""

    names: Bytes
    bounds: Int64s
    kinds: Bytes
    bits: Bytes


class Rows(NamedTuple):
    """The bytes of `number` whole rows, which begin at `offset` of the file."""

    offset: int
    data: bytes | Bytes
    number: int


Check = Callable[[pa.RecordBatch], Iterable[tuple[Flags, str]]]
"""Yields for each rule of a target which of n rows break it [n], and the reason."""


class RowParser:
    """Turns rows into record batches. Collects rejected rows in `rejected`, which the caller empties, and counts the
    attributes without a column in `not_imported`.

    Parsers of one table may share a room, one after the other.
    """

    def __init__(self, table: XmlTable, check: Check, room: Room | None = None) -> None:
        self._table = table
        self._check = check
        self._room = room or Room(table)
        self.rejected: list[Rejected] = []
        self.not_imported: Counter[str] = Counter()

    def parse(self, rows: Sequence[Rows]) -> list[pa.RecordBatch]:
        """Read rows in the schema of the table, in their order; rows that can't be read are rejected.

        Raises Conflict when there are more or fewer rows than `rows` says.
        """
        return [batch for batch, _ in self.parse_with_places(rows)]

    def parse_with_places(self, rows: Sequence[Rows]) -> list[tuple[pa.RecordBatch, Int64s]]:
        """Like `parse`; each batch comes with the offsets of its rows in the file [n]."""
        block = _Block(rows, self._table, self._room)
        faults = self._faults(block.batch)
        places = block.places
        batches, done = [], 0
        for row in sorted({*block.odd, *faults}):
            batches.append((block.batch.slice(done, row - done), places[done:row]))
            done = row + 1
            if row in block.odd:
                batches += [(batch, places[row:done]) for batch in self._parse_alone(block.row(row))]
            else:
                self._reject(block.row(row), faults[row])
        batches.append((block.batch.slice(done), places[done:]))
        self.not_imported.update(name for row, name in block.unknown() if row not in faults)
        return [(batch, places) for batch, places in batches if len(batch)]

    def _parse_alone(self, row: Rows) -> list[pa.RecordBatch]:
        try:
            found = _attributes(bytes(row.data))
            columns = [_cast(found.pop(field.name, None), field) for field in self._table.schema]
        except _RowFault as fault:
            self._reject(row, str(fault))
            return []
        batch = pa.RecordBatch.from_arrays(columns, schema=self._table.schema)
        for reason in self._faults(batch).values():
            self._reject(row, reason)
            return []
        self.not_imported.update(found.keys())
        return [batch]

    def _faults(self, batch: pa.RecordBatch) -> dict[int, str]:
        """The fault of each faulty row, by the row's number."""
        missing = [
            (np.asarray(batch[name].is_null()), f"{name} is missing")
            for name in self._table.required
            if batch[name].null_count
        ]
        return {
            int(row): reason for broken, reason in (*self._check(batch), *missing) for row in np.flatnonzero(broken)
        }

    def _reject(self, row: Rows, reason: str) -> None:
        self.rejected.append(Rejected(row.offset, len(row.data), reason))


def read_rows(file: BinaryIO, start: int, end: int, number: int) -> Rows:
    """The rows of a run that the scan found. Raises Conflict when they are gone."""
    file.seek(start)
    data = file.read(end - start)
    if len(data) < end - start or not data.startswith(_ROW):
        raise Conflict(f"{file.name} was changed while it was read")
    return Rows(start, data, number)


# ---- the usual form -----------------------------------------------------------------------------------------------


class Room:
    """Buffers that are reused for all blocks of a table: allocating new memory takes as long as the reading itself."""

    def __init__(self, table: XmlTable) -> None:
        self._texts = 1 + sum(kind == _TEXT for kind in table.form.kinds)  # one for attributes without a column
        self._data = np.empty(0, np.uint8)
        self._text = np.empty((self._texts, 0), np.uint8)
        self._unknown = np.empty((0, 3), np.int64)
        self._read: list[Rows] = []

    def read(self, file: FileIO, runs: Iterable[tuple[int, int, int]]) -> list[Rows]:
        """The rows of runs (start, end, number of rows) from a file. A following call of `of` uses them without a copy.
        Raises Conflict when they are gone."""
        runs = list(runs)
        self._make(sum(end - start for start, end, _ in runs) + len(_END))
        self._read, at = [], 0
        for start, end, number in runs:
            piece = self._data[at : at + end - start]
            file.seek(start)
            if file.readinto(piece.data) < len(piece) or piece[: len(_ROW)].tobytes() != _ROW:
                raise Conflict(f"{file.name} was changed while it was read")
            self._read.append(Rows(start, piece, number))
            at += len(piece)
        return self._read

    def of(self, rows: Sequence[Rows]) -> tuple[Bytes, Bytes]:
        """The bytes of all rows, and a buffer for their texts [T + 1, bytes]; overwritten by the next call."""
        size = sum(len(some.data) for some in rows) + len(_END)
        if rows is not self._read:
            self._make(size)
            at = 0
            for some in rows:
                self._data[at : at + len(some.data)] = np.frombuffer(some.data, np.uint8)
                at += len(some.data)
        self._data[size - len(_END) : size] = np.frombuffer(_END, np.uint8)
        return self._data[:size], self._text

    def _make(self, size: int) -> None:
        if size > len(self._data):
            self._data = _pages(size)
            self._text = _pages(self._texts * size).reshape(self._texts, size)

    def of_unknown(self, number: int) -> Int64s:
        """A buffer for `number` attributes without a column [n, 3]; overwritten by the next call."""
        if number > len(self._unknown):
            self._unknown = _pages(number * 3 * 8).view(np.int64).reshape(number, 3)
        return self._unknown[:number]


def _pages(size: int) -> Bytes:
    """Memory directly from the system; pages that are never written use no memory. From glibc, blocks this large would
    raise its threshold: every thread would then keep as much freed memory."""
    return np.frombuffer(mmap.mmap(-1, size), np.uint8)


class _Block:
    """Rows that are read at once. `batch` has an entry for each, in order; the entries of rows in `odd` are empty."""

    def __init__(self, rows: Sequence[Rows], table: XmlTable, room: Room) -> None:
        self._rows = rows
        self._data, text = room.of(rows)
        number = sum(some.number for some in rows)
        self._starts = np.zeros(number + 1, np.int64)
        self._unknown = room.of_unknown(_UNKNOWN_A_ROW * number)
        odd = np.zeros(number, np.bool_)
        values = np.zeros((len(table.schema), number), np.int64)
        present = np.zeros((len(table.schema), number), np.bool_)
        ends = np.zeros((len(text), number + 1), np.int32)
        found, unknown = _read_rows(
            self._data, *table.form, self._starts, odd, values, present, text, ends, self._unknown
        )
        if found != number:
            raise Conflict(f"{number} rows were found from offset {rows[0].offset} on, and {found} are there now")
        self._unknown = self._unknown[:unknown]
        self.odd = frozenset(np.flatnonzero(odd).tolist())
        texts = iter(zip(text, ends, strict=True))
        self.batch = pa.RecordBatch.from_arrays(
            [
                _texts(*next(texts), there) if field.type == pa.string() else _numbers(field.type, numbers, there)
                for field, there, numbers in zip(table.schema, present, values, strict=True)
            ],
            schema=table.schema,
        )

    def row(self, number: int) -> Rows:
        """One of the rows, without the white space after it."""
        start, end = self._starts[number : number + 2]
        return Rows(int(self.places[number]), self._data[start:end].tobytes().rstrip(WHITESPACE), 1)

    @cached_property
    def places(self) -> Int64s:
        """The offset of each row in the file [n]."""
        bounds = np.fromiter(accumulate((len(some.data) for some in self._rows), initial=0), np.int64)
        offsets = np.fromiter((some.offset for some in self._rows), np.int64)
        piece = np.searchsorted(bounds, self._starts[:-1], "right") - 1
        return self._starts[:-1] + (offsets - bounds[:-1])[piece]

    def unknown(self) -> list[tuple[int, str]]:
        """Attributes without a column: number of the row, and name."""
        return [(row, self._data[start:end].tobytes().decode()) for row, start, end in self._unknown.tolist()]


def _texts(text: Bytes, ends: Int32s, present: Flags) -> pa.Array:
    """Strings from their bytes (copied) and their bounds [n + 1]."""
    content = pa.py_buffer(text[: ends[-1]].tobytes())
    return pa.StringArray.from_buffers(len(present), pa.py_buffer(ends), content, _validity(present))


def _numbers(kind: pa.DataType, values: Int64s, present: Flags) -> pa.Array:
    fitting = values.astype(f"i{kind.bit_width // 8}", copy=False)
    return pa.Array.from_buffers(kind, len(present), [_validity(present), pa.py_buffer(fitting)])


def _validity(present: Flags) -> pa.Buffer | None:
    return None if present.all() else pa.py_buffer(np.packbits(present, bitorder="little"))


@compiled
def _read_rows(
    data: Bytes, names: Bytes, name_bounds: Int64s, kinds: Bytes, bits: Bytes,
    starts: Int64s, odd: Flags, values: Int64s, present: Flags, text: Bytes, ends: Int32s, unknown: Int64s,
) -> tuple[int, int]:  # fmt: skip
    """Read all rows into columns; returns the number of rows, and the number of attributes without a column.

    For row i: `starts[i]` is its start; `odd[i]` says that it has another form and no values; `values[c, i]` is the
    number or timestamp of column c, `present[c, i]` whether it has one; `text[t, ends[t, i] : ends[t, i + 1]]` is the
    text of the t-th string column. `unknown` has the row, start and end of the name of each attribute without a column.
    """
    slot = np.empty(len(kinds), np.int64)  # the index of a string column in `text`
    slots = 0
    for column in range(len(kinds)):
        slot[column] = slots
        slots += kinds[column] == _TEXT
    row = unknown_before = 0
    at, size = 0, len(data) - len(_END)
    while at < size and row < len(odd):
        starts[row] = at
        for i in range(slots):
            ends[i, row + 1] = ends[i, row]
        at, unknown_now = _read_row(
            data, at + len(_ROW), row, names, name_bounds, kinds, bits, slot,
            values, present, text, ends, unknown, unknown_before,
        )  # fmt: skip
        if at < 0:
            odd[row] = True
            for column in range(len(kinds)):
                present[column, row] = False
            for i in range(slots):
                ends[i, row + 1] = ends[i, row]
            at = starts[row] + 1
            while data[at] != 60:  # <
                at += 1
        else:
            unknown_before = unknown_now
        row += 1
        starts[row] = at
    return row + (at < size), unknown_before


@inlined
def _read_row(
    data: Bytes, at: int, row: int, names: Bytes, name_bounds: Int64s, kinds: Bytes, bits: Bytes, slot: Int64s,
    values: Int64s, present: Flags, text: Bytes, ends: Int32s, unknown: Int64s, unknown_before: int,
) -> tuple[int, int]:  # fmt: skip
    """Read the attributes from `at` on; returns the start of the next row (-1 for a row of another form) and the new
    number of entries in `unknown`."""
    refused = -1, unknown_before
    unknown_now = unknown_before
    column = -1
    while True:
        spaces = at
        while _is_space(data[at]):
            at += 1
        if data[at] == 47:  # /
            at += 2
            if data[at - 1] != 62:  # >
                return refused
            while _is_space(data[at]):
                at += 1
            return (at, unknown_now) if data[at] == 60 else refused  # <
        name = at
        while _is_of_name(data[at]):
            at += 1
        if name in (spaces, at) or data[name] <= 57 or data[at] != 61 or data[at + 1] != 34:  # 9 = "
            return refused
        column = _column_of(data, name, at - name, names, name_bounds, column + 1)
        if column < 0:
            if unknown_now == len(unknown):
                return refused
            for other in range(unknown_before, unknown_now):
                size = unknown[other, 2] - unknown[other, 1]
                if size == at - name and _same(data, unknown[other, 1], data, name, size):
                    return refused
            unknown[unknown_now, 0], unknown[unknown_now, 1], unknown[unknown_now, 2] = row, name, at
            unknown_now += 1
            at, _ = _read_text(data, at + 2, text[len(text) - 1], 0)
        elif present[column, row]:
            return refused
        elif kinds[column] == _TEXT:
            i = slot[column]
            at, end = _read_text(data, at + 2, text[i], ends[i, row])
            ends[i, row + 1] = end
            present[column, row] = True
        elif kinds[column] == _INTEGER:
            at, value = _read_integer(data, at + 2, bits[column])
            values[column, row] = value
            present[column, row] = True
        else:
            at, value = _read_moment(data, at + 2)
            values[column, row] = value
            present[column, row] = True
        if at < 0:
            return refused
        at += 1


@inlined
def _is_space(byte: int) -> bool:
    return byte == 32 or 9 <= byte <= 10 or byte == 13


@inlined
def _is_of_name(byte: int) -> bool:
    return 97 <= byte | 0x20 <= 122 or 48 <= byte <= 57 or byte == 95  # letters, digits, _


@inlined
def _same(one: Bytes, at: int, other: Bytes, other_at: int, size: int) -> bool:
    for i in range(size):  # noqa: SIM110
        if one[at + i] != other[other_at + i]:
            return False
    return True


@inlined
def _column_of(data: Bytes, at: int, size: int, names: Bytes, bounds: Int64s, likely: int) -> int:
    """The column with the name at `at`, searched from the likely column on; -1 if there is none."""
    columns = len(bounds) - 1
    for i in range(likely, likely + columns):
        column = i - columns if i >= columns else i
        if bounds[column + 1] - bounds[column] == size and _same(data, at, names, bounds[column], size):
            return column
    return -1


@inlined
def _read_integer(data: Bytes, at: int, bits: int) -> tuple[int, int]:
    """The position of the quotation mark after the digits, and the number; -1 if it is no integer of `bits` bits."""
    sign = 1
    if data[at] == 45:  # -
        sign = -1
        at += 1
    first = at
    number = 0
    while 48 <= data[at] <= 57 and at < first + 18:
        number = number * 10 + int(data[at]) - 48
        at += 1
    number *= sign
    limit = 1 << (bits - 1) if bits < 64 else 2**63 - 1
    if data[at] != 34 or at == first or not -limit <= number < limit:  # "
        return -1, 0
    return at, number


@inlined
def _digits(data: Bytes, at: int, count: int) -> int:
    """The number in the next `count` digits; -1 if one of them is not a digit."""
    number = 0
    for i in range(at, at + count):
        if not 48 <= data[i] <= 57:
            return -1
        number = number * 10 + int(data[i]) - 48
    return number


@inlined
def _read_moment(data: Bytes, at: int) -> tuple[int, int]:
    """The position of the quotation mark after `2012-06-12T19:49:26.940` (the fraction is optional), and the
    microseconds since 1970; -1 for another form. The days of a date: days_from_civil in H. Hinnant, chrono-Compatible
    Low-Level Date Algorithms."""
    refused = -1, 0
    year = _digits(data, at, 4)
    if year < 1 or data[at + 4] != 45:  # -
        return refused
    month = _digits(data, at + 5, 2)
    if not 1 <= month <= 12 or data[at + 7] != 45:
        return refused
    day = _digits(data, at + 8, 2)
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    days = 28 + leap if month == 2 else 30 + (month + (month > 7)) % 2
    if not 1 <= day <= days or data[at + 10] != 84:  # T
        return refused
    hour = _digits(data, at + 11, 2)
    if not 0 <= hour <= 23 or data[at + 13] != 58:  # :
        return refused
    minute = _digits(data, at + 14, 2)
    if not 0 <= minute <= 59 or data[at + 16] != 58:
        return refused
    second = _digits(data, at + 17, 2)
    if not 0 <= second <= 59:
        return refused
    at += 19
    milliseconds = 0
    if data[at] == 46:  # .
        milliseconds = _digits(data, at + 1, 3)
        at += 4
    if milliseconds < 0 or data[at] != 34:  # "
        return refused
    year -= month <= 2
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    days = 365 * year + year // 4 - year // 100 + year // 400 + day_of_year - 719468
    return at, (((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000 + milliseconds * 1000


@inlined
def _read_text(data: Bytes, at: int, text: Bytes, size: int) -> tuple[int, int]:
    """Append a value to the text; returns the position of the quotation mark after it (-1 if the value has a form that
    only expat reads), and the new length of the text."""
    while True:
        word = load_word(data, at)
        store_word(text, size, word)
        stops = _stops(word)
        if not stops:
            at += 8
            size += 8
            continue
        plain = trailing_zeros(stops) >> 3
        at += plain
        size += plain
        byte = data[at]
        if byte == 34:  # "
            return at, size
        if byte == 38:  # &
            at, size = _read_reference(data, at, text, size)
            if at < 0:
                return -1, size
        else:
            length = _character(data, at) if byte >= 0x80 else 0
            if not length:
                return -1, size
            for _ in range(length):
                text[size] = data[at]
                at += 1
                size += 1


_QUOTE, _AMPERSAND, _ANGLE = (np.uint64(ord(character)) * EACH_BYTE for character in '"&<')
_CONTROLS = np.uint64(0x80 - 32) * EACH_BYTE


@inlined
def _stops(word: np.uint64) -> np.uint64:
    """The highest bit of each byte that is a quotation mark, `&`, `<`, below 32, or above 127."""
    # Each sum stays within its byte, and sets the highest bit unless the byte is a match.
    low = word & LOW_BITS
    plain = (
        (low + _CONTROLS) & ((low ^ _QUOTE) + LOW_BITS) & ((low ^ _AMPERSAND) + LOW_BITS) & ((low ^ _ANGLE) + LOW_BITS)
    )
    return (~plain | word) & HIGH_BITS


@compiled
def _character(data: Bytes, at: int) -> int:
    """The bytes of the multi-byte character that begins at `at`; 0 if it is invalid UTF-8 or not allowed in XML."""
    lead = int(data[at])
    length = 2 if 0xC2 <= lead < 0xE0 else 3 if 0xE0 <= lead < 0xF0 else 4 if 0xF0 <= lead < 0xF5 else 0
    code_point = lead & (0x7F >> length)
    for i in range(1, length):
        byte = int(data[at + i])
        if byte & 0xC0 != 0x80:
            return 0
        code_point = code_point << 6 | byte & 0x3F
    if (length == 3 and code_point < 0x800) or (length == 4 and code_point < 0x10000):
        return 0
    return length if _is_character(code_point) else 0


@compiled
def _is_character(code_point: int) -> bool:
    """Whether XML 1.0 (2.2) allows this character."""
    if code_point < 32:
        return code_point in (9, 10, 13)
    return code_point < 0xD800 or 0xE000 <= code_point < 0xFFFE or 0x10000 <= code_point < 0x110000


@compiled
def _read_reference(data: Bytes, at: int, text: Bytes, size: int) -> tuple[int, int]:
    """Append the character that a reference stands for; returns the end of the reference (-1 if it is unknown), and the
    new length of the text."""
    word = load_word(data, at)
    for i in range(len(_REFERENCES)):
        if word & _REFERENCE_MASKS[i] == _REFERENCES[i]:
            text[size] = _REFERENCE_CHARACTERS[i]
            return at + _REFERENCE_SIZES[i], size + 1
    refused = -1, size
    if data[at + 1] != 35:  # #
        return refused
    at += 2
    base = 10
    if data[at] == 120:  # x
        base = 16
        at += 1
    first = at
    code_point = 0
    while data[at] != 59:  # ;
        byte = int(data[at])
        digit = byte - 48 if byte <= 57 else (byte | 0x20) - 87
        if not 0 <= digit < base or (byte > 57 and digit < 10) or code_point > 0x10FFFF:
            return refused
        code_point = code_point * base + digit
        at += 1
    if at == first or not _is_character(code_point):
        return refused
    return at + 1, _write(code_point, text, size)


# The five named entities of XML, and the reference that is common in dumps; the most frequent first.
_USUAL = {b"&gt;": ">", b"&lt;": "<", b"&#xA;": "\n", b"&amp;": "&", b"&quot;": '"', b"&apos;": "'"}
_REFERENCES = np.array([int.from_bytes(name, "little") for name in _USUAL], np.uint64)
_REFERENCE_MASKS = np.array([(1 << 8 * len(name)) - 1 for name in _USUAL], np.uint64)
_REFERENCE_SIZES = np.array([len(name) for name in _USUAL], np.int64)
_REFERENCE_CHARACTERS = np.array([ord(character) for character in _USUAL.values()], np.uint8)


@compiled
def _write(code_point: int, text: Bytes, size: int) -> int:
    """Append a character as UTF-8; returns the new length of the text."""
    if code_point < 0x80:
        text[size] = code_point
        return size + 1
    length = 2 if code_point < 0x800 else 3 if code_point < 0x10000 else 4
    text[size] = (0xF00 >> length) & 0xFF | code_point >> 6 * (length - 1)
    for i in range(1, length):
        text[size + i] = 0x80 | (code_point >> 6 * (length - 1 - i)) & 0x3F
    return size + length


# ---- any other form -----------------------------------------------------------------------------------------------


def _attributes(row: bytes) -> dict[str, str]:
    """The attributes of one row, by the rules of XML. Raises _RowFault when it is not well-formed."""
    found: dict[str, str] = {}
    parser = expat.ParserCreate("utf-8", namespace_separator=":")
    parser.StartElementHandler = lambda _, attributes: found.update(attributes)
    try:
        parser.Parse(row, True)
    except expat.ExpatError as error:
        raise _RowFault(f"not a well-formed row: {error}") from error
    return found


def _cast(text: str | None, field: pa.Field) -> pa.Array:
    """A value of a column; an empty number is null. Raises _RowFault when the value does not fit the type."""
    known = None if text == "" and pa.types.is_integer(field.type) else text
    try:
        return pa.array([known], pa.string()).cast(field.type)
    except pa.ArrowInvalid as error:
        raise _RowFault(f"{field.name}: {error}") from error
