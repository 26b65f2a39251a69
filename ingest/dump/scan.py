"""The first pass over a dump: where its rows lie and which day or month each belongs to. Nothing is parsed yet.

A well-formed row holds no `<` but its first byte, so a compiled search for that byte finds them all; only a piece that
looks odd goes through a regular expression.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from ingest.dump.report import Rejected
from shared.compiled import EACH_BYTE, HIGH_BITS, LOW_BITS, compiled, inlined, load_word, trailing_zeros
from shared.errors import BadInput, Conflict

Unit = Literal["day", "month"]
Array = np.ndarray[Any, Any]

RUN = np.dtype([("bucket", np.int32), ("start", np.int64), ("end", np.int64), ("rows", np.int32)])
"""Neighbouring rows of one bucket: bytes `start` to `end` of the file. A bucket is 20120612 or 201206, or 0 for all.

All runs of a dump are held in memory. There are about two a megabyte and two more for every post that is dated back; a
dump in no order at all would cost 24 bytes a row.
"""

BLOCK = 512 << 10
"""Bytes scanned at once, and about the most a run holds: what stays in cache."""
MAX_ROW = 16 << 20
HEAD = 64 << 10
WHITESPACE = b" \t\r\n"

_ROW = b"<row "
_CREATED = b' CreationDate="'
_WELL_FORMED = re.compile(rb"""<row (?:\s*[^\s=<>"'/]+\s*=\s*(?:"[^"<]*"|'[^'<]*'))*\s*/>""")
_DATE = re.compile(rb"""\sCreationDate\s*=\s*["'](\d{4}-\d\d-\d\d)""")


@dataclass
class Scan:
    """What one range of the file holds. `rows` counts everything that stands where a row should stand."""

    runs: Array
    rejected: list[Rejected]
    rows: int
    closed: bool


def row_ranges(path: Path, root: str, size: int) -> list[tuple[int, int]]:
    """Cut the file after its head into ranges of about `size` bytes, each beginning at a row; none for `<root />`.

    Raises BadInput when the file does not begin as a dump's `<root>` in UTF-8.
    """
    end = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        first = _head_end(_read(file, 0, HEAD), root, path)
        if first is None:
            return []
        cuts = {first, end, *(find_row(file, at, end) for at in range(first + size, end, size))}
    bounds = sorted(cuts)
    return list(pairwise(bounds))


def _head_end(head: bytes, root: str, path: Path) -> int | None:
    found = re.match(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml\b([^>]*)\?>)?\s*<([^\s/>]+)\s*(/?)>", head)
    if not found or found[2] != root.encode():
        raise BadInput(f"{path} is no dump of {root}: it begins with {head[:60]!r} where <{root}> was expected")
    encoding = re.search(rb"""encoding\s*=\s*["']([^"']*)""", found[1] or b"")
    if encoding and encoding[1].lower() not in (b"utf-8", b"us-ascii"):
        raise BadInput(f"{path} says that it is encoded in {encoding[1].decode()}; dumps are read in UTF-8")
    return None if found[3] else found.end()


def find_row(file: BinaryIO, position: int, end: int) -> int:
    """Where the first row at or after `position` begins; `end` when none does before it."""
    while position < end:
        data = _read(file, position, BLOCK)
        found = data.find(_ROW)
        if found >= 0:
            return min(position + found, end)
        position += max(len(data) - len(_ROW) + 1, 1)
    return end


def scan_range(path: Path, lo: int, hi: int, root: str, unit: Unit | None) -> Scan:
    """Find the rows between `lo` and `hi`, as cut by `row_ranges`, in runs of one `unit`; in runs of any dates if None.

    Raises Conflict when the file has become shorter than it was.
    """
    runs, rejected, rows, closed = [np.empty(0, RUN)], [], 0, False
    closing = f"</{root}>".encode() if hi == path.stat().st_size else b""
    with path.open("rb", buffering=0) as file:
        for start, block in _blocks(file, lo, hi):
            if isinstance(block, Rejected):
                rejected.append(block)
                rows += 1
                continue
            found = _scan_block(block, start, closing if start + len(block) == hi else b"", unit)
            runs.append(found.runs)
            rejected += found.rejected
            rows, closed = rows + found.rows, found.closed
    return Scan(np.concatenate(runs), rejected, rows, closed)


def _blocks(file: BinaryIO, lo: int, hi: int) -> Iterator[tuple[int, bytes | Rejected]]:
    """Whole rows, about BLOCK bytes at a time; a row beyond MAX_ROW is passed over without being held."""
    start = position = lo
    carried = b""
    while position < hi:
        data = carried + _read(file, position, min(BLOCK, hi - position))
        if start + len(data) == position:
            raise Conflict(f"{file.name} became shorter while it was read")
        position = start + len(data)
        cut = len(data) if position == hi else data.rfind(_ROW)
        if cut > 0:
            yield start, data[:cut]
            carried, start = data[cut:], start + cut
        elif len(data) > MAX_ROW:
            end = find_row(file, position - len(_ROW) + 1, hi)
            yield start, Rejected(start, end - start, f"longer than {MAX_ROW >> 20} MiB")
            carried, start, position = b"", end, end
        else:
            carried = data


def _scan_block(data: bytes, offset: int, closing: bytes, unit: Unit | None) -> Scan:
    starts, days, odd = _find_rows(data)
    ends = np.append(starts[1:], len(data))
    first = int(starts[0]) if len(starts) else len(data)
    rejected, closed = _strays(data[:first], offset, b"" if len(starts) else closing)
    rows = len(starts) + len(rejected)
    kept = np.ones(len(starts), np.bool_)
    for row in np.flatnonzero(odd).tolist():
        start, end = int(starts[row]), int(ends[row])
        form = _WELL_FORMED.match(data, start, end)
        cut = form.end() if form else start
        strays, closed = _strays(data[cut:end], offset + cut, closing if end == len(data) else b"")
        if form:
            rows += len(strays)
            if strays or closed:
                ends[row] = cut
        else:
            reason = "no well-formed row" if data.find(b"/>", start, end) >= 0 else "the row has no end"
            strays = [stray._replace(reason=reason) for stray in strays]
            kept[row] = False
        rejected += strays
    buckets = _buckets(data, starts, ends, days, unit) if unit else np.zeros(len(starts), np.int32)
    for row in np.flatnonzero(kept & (buckets < 0)).tolist():
        length = len(data[starts[row] : ends[row]].rstrip(WHITESPACE))
        rejected.append(Rejected(offset + int(starts[row]), length, "CreationDate is missing or no date"))
    kept &= buckets >= 0
    return Scan(_runs(buckets[kept], starts[kept] + offset, ends[kept] + offset), rejected, rows, closed)


def _runs(buckets: Array, starts: Array, ends: Array) -> Array:
    """Rows in their order, those that lie side by side and are of one bucket together."""
    if not len(buckets):
        return np.empty(0, RUN)
    breaks = np.flatnonzero((buckets[1:] != buckets[:-1]) | (starts[1:] != ends[:-1])) + 1
    first, last = np.append(0, breaks), np.append(breaks, len(buckets))
    runs = np.empty(len(first), RUN)
    runs["bucket"], runs["start"], runs["end"], runs["rows"] = (
        buckets[first],
        starts[first],
        ends[last - 1],
        last - first,
    )
    return runs


def _buckets(data: bytes, starts: Array, ends: Array, days: Array, unit: Unit) -> Array:
    """The day or month of each row's CreationDate; -1 where that is missing or no date."""
    for row in np.flatnonzero(days < 0).tolist():
        otherwise = _DATE.search(data, int(starts[row]), int(ends[row]))
        days[row] = int(otherwise[1].replace(b"-", b"")) if otherwise else -1
    known, places = np.unique(days, return_inverse=True)
    known[[not _is_day(day) for day in known.tolist()]] = -1
    return np.where(known < 0, -1, known if unit == "day" else known // 100)[places]


def _is_day(number: int) -> bool:
    """Whether there is a day 20120612; below the year 1000 its number would look like that of a month."""
    try:
        date(number // 10_000, number // 100 % 100, number % 100)
    except ValueError:
        return False
    return number >= 1000_00_00


def _find_rows(data: bytes) -> tuple[Array, Array, Array]:
    """The rows in a block: where they begin; the day of each, 20120612, or -1 where it does not stand as usual; and
    whether the row has a `<` in it or no end, so that it needs a closer look."""
    most = len(data) // len(_ROW)
    starts, days, odd = np.empty(most, np.int64), np.empty(most, np.int32), np.zeros(most, np.bool_)
    rows = _find(np.frombuffer(data + _END, np.uint8), starts, days, odd)
    return starts[:rows], days[:rows], odd[:rows]


_END = b"<" + bytes(15)
"""Follows a block, so that the search needs no bounds."""
_ANGLE = np.uint64(ord("<")) * EACH_BYTE
_ROW_WORD, _CREATED_WORD, _DATE_WORD = (
    np.uint64(int.from_bytes(text, "little")) for text in (_ROW, _CREATED[:8], _CREATED[-8:])
)
_ROW_MASK = np.uint64((1 << 8 * len(_ROW)) - 1)


@compiled
def _find(
    data: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], days: npt.NDArray[np.int32], odd: npt.NDArray[np.bool_]
) -> int:
    rows = at = 0
    size = len(data) - len(_END)
    while at <= size:
        word = load_word(data, at) ^ _ANGLE
        angles = ~(((word & LOW_BITS) + LOW_BITS) | word) & HIGH_BITS  # the highest bit of each byte that is a `<`
        if not angles:
            at += 8
            continue
        at += trailing_zeros(angles) >> 3
        is_row = load_word(data, at) & _ROW_MASK == _ROW_WORD
        if rows:
            odd[rows - 1] |= not (_is_end(data, at) if is_row or at >= size else False)
        at += 1
        if is_row:
            starts[rows] = at - 1
            at = _find_date(data, at)
            days[rows] = _day(data, at) if data[at] != 60 else -1  # <
            rows += 1
    return rows


@inlined
def _is_end(data: npt.NDArray[np.uint8], at: int) -> bool:
    """Whether `/>` and white space come before this byte."""
    while data[at - 1] == 32 or 9 <= data[at - 1] <= 10 or data[at - 1] == 13:
        at -= 1
    return bool(data[at - 2] == 47 and data[at - 1] == 62)  # />


@inlined
def _find_date(data: npt.NDArray[np.uint8], at: int) -> int:
    """What comes behind the next `CreationDate="`, or the next `<` if that comes first."""
    while data[at] != 60:  # <
        if load_word(data, at) == _CREATED_WORD and load_word(data, at + len(_CREATED) - 8) == _DATE_WORD:
            return at + len(_CREATED)
        at += 1
    return at


@inlined
def _day(data: npt.NDArray[np.uint8], at: int) -> int:
    """The number 20120612 for 2012-06-12; -1 for what is not of that form."""
    number = 0
    for i in range(10):
        byte = int(data[at + i])
        if i in (4, 7):
            if byte != 45:  # -
                return -1
        elif 48 <= byte <= 57:
            number = number * 10 + byte - 48
        else:
            return -1
    return number


def _strays(data: bytes, offset: int, closing: bytes) -> tuple[list[Rejected], bool]:
    """Bytes that are neither row nor white space nor the `closing` tag, and whether that tag was there."""
    left = data.rstrip(WHITESPACE)
    closed = bool(closing) and left.endswith(closing)
    left = left.removesuffix(closing).rstrip(WHITESPACE) if closed else left
    bare = left.lstrip(WHITESPACE)
    return [Rejected(offset + len(left) - len(bare), len(bare), "no row")] if bare else [], closed


def _read(file: BinaryIO, position: int, size: int) -> bytes:
    file.seek(position)
    return file.read(size)
