"""The first pass over a dump: it finds each row and, by its date, the file it belongs to. Nothing is parsed yet.

A well-formed row has only one `<`, its first byte, so a compiled search for that byte finds all rows; only unusual
pieces go through a regular expression. A comment around rows is noticed only after rows were found in it: then the file
is scanned again without it.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Self
from zipfile import BadZipFile

import numpy as np

from ingest.dump.report import Rejected, Spool, Stopwatch, Tell
from shared.arrays import Bytes, Flags, Int32s, Int64s
from shared.compiled import EACH_BYTE, HIGH_BITS, LOW_BITS, compiled, inlined, load_word, trailing_zeros
from shared.documents import Record, decode
from shared.errors import BadInput, Conflict

Unit = Literal["day", "month", "year", "all"]
"""The period of a file: a day, a month or a year (UTC), or all posts."""
DAYS_OF: dict[Unit, int] = {"day": 1, "month": 100, "year": 100_00, "all": 10000_00_00}
"""Divisors of the number of a day, 20120612, that give the number of its file: 20120612, 201206, 2012 or 0."""
Array = np.ndarray[Any, Any]

RUN = np.dtype([("bucket", np.int32), ("start", np.int64), ("end", np.int64), ("rows", np.int32)])
"""Neighbouring rows of one bucket: bytes `start` to `end` of the file. A bucket is the number of a file, see `DAYS_OF`.

All runs of a dump are held in memory. There are about two per megabyte, and two more for every post with a date before
its neighbours'; a dump in random order would take 24 bytes a row.
"""

SCAN_BYTES = 64 << 20
"""Bytes that one task scans."""
BLOCK = 384 << 10
"""Bytes scanned at once, and about the largest size of a run: they stay in cache."""
MAX_ROW = 16 << 20
HEAD = 64 << 10
WHITESPACE = b" \t\r\n"

_ROW = b"<row"
_ROW_START = re.compile(rb"<row[ \t\r\n/>]")
_CREATED = b' CreationDate="'
_ATTRIBUTES = rb"""(?:\s*[^\s=<>"'/]+\s*=\s*(?:"[^"<]*"|'[^'<]*'))*\s*"""
_WELL_FORMED = re.compile(rb"<row(?=[\s/])" + _ATTRIBUTES + rb"/>")
_ROOT = re.compile(rb"<([^\s/>!?]+)" + _ATTRIBUTES + rb"(/?)>")
_DATE = re.compile(rb"""\sCreationDate\s*=\s*["'](\d{4}-\d\d-\d\d)""")
_AROUND = re.compile(rb"[ \t\r\n]+|<!--.*?-->|<\?.*?\?>", re.DOTALL)
"""What XML allows before and after the root; the XML declaration matches the last alternative."""

SetAside = Callable[[Iterable[Rejected]], None]
Span = tuple[int, int]
"""A range of bytes of the file: start and end, the end excluded."""
Spread = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[tuple[Any, Any]]]
"""Calls a function on each item, in several threads; yields items with their results, in the order of completion."""


class Scan(NamedTuple):
    """The result for one range of the file. `rows` counts everything found in the place of a row; `closed` says whether
    the range ends with the root's end tag; `comments` holds the offsets of comments in which rows were found."""

    runs: Array
    rows: int
    closed: bool
    comments: list[int]


class _Totals(Record):
    """The counts that are saved with the runs of an index."""

    rows: int
    rejected: int
    truncated: bool


@dataclass
class Index:
    """The scan of the whole file."""

    runs: Array
    rows: int
    rejected: int
    truncated: bool

    def save(self, file: Path) -> None:
        totals = _Totals(rows=self.rows, rejected=self.rejected, truncated=self.truncated)
        part = file.with_name(file.name + ".part")
        with part.open("wb") as out:
            np.savez(out, runs=self.runs, said=np.array(totals.model_dump_json()))
        part.replace(file)

    @classmethod
    def load(cls, file: Path) -> Self | None:
        """The saved index; None when it is missing or damaged: the dump is then scanned again."""
        try:
            with file.open("rb") as opened, np.load(opened) as saved:
                totals = decode(_Totals, str(saved["said"]).encode(), str(file))
                return cls(saved["runs"], totals.rows, totals.rejected, totals.truncated)
        except (FileNotFoundError, EOFError, KeyError, TypeError, ValueError, BadZipFile, zlib.error, BadInput):
            return None


def scan_file(
    path: Path, root: str, unit: Unit | None, *, rejected: Path, spread: Spread, tell: Tell | None = None
) -> Index:
    """Find all rows of a file, as runs of one `unit`; if it is None, runs may mix dates. Bytes that are not a row go to
    the spool `rejected`.

    Raises BadInput when the file does not begin as a dump's `<root>` in UTF-8, Conflict when it becomes shorter.
    """
    index, comments = _scan_without(path, root, unit, [], rejected, spread, tell)
    if spans := _spans(path, sorted(comments)):
        index, _ = _scan_without(path, root, unit, spans, rejected, spread, tell)
    return index


def _scan_without(
    path: Path, root: str, unit: Unit | None, spans: Sequence[Span], rejected: Path, spread: Spread, tell: Tell | None
) -> tuple[Index, list[int]]:
    stopwatch = Stopwatch(f"scanning {root}", path.stat().st_size, tell)
    ranges = row_ranges(path, root, SCAN_BYTES, spans)
    scans = {}
    with Spool(rejected) as spool:
        spool.add(Rejected(start, end - start, "a comment that contains rows") for start, end in spans)
        piece_of = functools.partial(_scan_piece, path, root, unit, spool.add, ranges[-1] if ranges else None)
        for piece, scan in spread(piece_of, ranges):
            scans[piece] = scan
            stopwatch.advance(piece[1] - piece[0])
    in_order = [scans[piece] for piece in ranges]
    index = Index(
        runs=np.concatenate([np.empty(0, RUN), *(scan.runs for scan in in_order)]),
        rows=sum(scan.rows for scan in in_order) + len(spans),
        rejected=spool.count,
        truncated=bool(ranges) and not in_order[-1].closed,
    )
    return index, [comment for scan in in_order for comment in scan.comments]


def _scan_piece(path: Path, root: str, unit: Unit | None, set_aside: SetAside, last: Span | None, piece: Span) -> Scan:
    return scan_range(path, *piece, root, unit, set_aside, last=piece == last)


def row_ranges(path: Path, root: str, size: int, without: Sequence[Span] = ()) -> list[Span]:
    """Cut the file after its head into ranges of about `size` bytes, each beginning at a row or at the end of a span in
    `without`, which is left out; no ranges for `<root />`.

    Raises BadInput when the file does not begin as a dump's `<root>` in UTF-8.
    """
    end = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        first = _head_end(_read(file, 0, HEAD), root, path)
        if first is None:
            return []
        pieces = list(zip([first, *(span[1] for span in without)], [*(span[0] for span in without), end], strict=True))
        if without and _past_around(rest := _read(file, pieces[-1][0], HEAD), 0) == end - pieces[-1][0] == len(rest):
            pieces.pop()  # the root ended before it
        ranges = []
        for start, stop in pieces:
            cuts = {start, stop, *(find_row(file, at, stop) for at in range(start + size, stop, size))}
            ranges += list(pairwise(sorted(cuts))) or [(start, stop)]
    return ranges


def _head_end(head: bytes, root: str, path: Path) -> int | None:
    bare = head.removeprefix(b"\xef\xbb\xbf")
    found = _ROOT.match(bare, _past_around(bare, 0))
    if not found or found[1] != root.encode():
        raise BadInput(f"{path} is not a dump of {root}: it begins with {head[:60]!r}, not with <{root}>")
    encoding = re.match(rb"""\s*<\?xml\b[^>]*?encoding\s*=\s*["']([^"']*)""", bare)
    if encoding and encoding[1].lower() not in (b"utf-8", b"us-ascii"):
        raise BadInput(f"{path} declares the encoding {encoding[1].decode()}; only UTF-8 is read")
    return None if found[2] else found.end() + len(head) - len(bare)


def _past_around(data: bytes, at: int) -> int:
    """The end of the white space, comments and processing instructions that begin at `at`."""
    while found := _AROUND.match(data, at):
        at = found.end()
    return at


def find_row(file: BinaryIO, position: int, end: int) -> int:
    """The start of the first row at or after `position`; `end` if no row begins before `end`."""
    return min(_search(file, _ROW_START, position, end, end)[0], end)


def _search(file: BinaryIO, what: re.Pattern[bytes], position: int, end: int, otherwise: int) -> Span:
    """The span of the first match (at most 5 bytes) at or after `position`; `otherwise` if none is before `end`."""
    while position < end:
        data = _read(file, position, BLOCK)
        if found := what.search(data):
            return position + found.start(), position + found.end()
        if len(data) < BLOCK:
            break
        position += BLOCK - len(_ROW)
    return otherwise, otherwise


def _spans(path: Path, comments: Sequence[int]) -> list[Span]:
    """The spans of the comments that begin at these offsets, without those that have no end."""
    spans: list[Span] = []
    size = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        for start in comments:
            if spans and start < spans[-1][1]:
                continue
            _, end = _search(file, re.compile(rb"-->"), start + len(b"<!--"), size, -1)
            if end < 0:
                break
            spans.append((start, end))
    return spans


def scan_range(
    path: Path, lo: int, hi: int, root: str, unit: Unit | None, set_aside: SetAside, *, last: bool = False
) -> Scan:
    """Find the rows between `lo` and `hi`, a range of `row_ranges`, as runs of one `unit`; if it is None, runs may mix
    dates. `last` says that the end tag of `root` should follow them.

    Raises Conflict when the file has become shorter.
    """
    runs, comments, rows, closed = [np.empty(0, RUN)], [], 0, False
    with path.open("rb", buffering=0) as file:
        for start, block in _blocks(file, lo, hi):
            if isinstance(block, Rejected):
                set_aside([block])
                rows += 1
                continue
            closing = root if last and start + len(block) == hi else None
            found = _scan_block(block, start, closing, unit, set_aside)
            runs.append(found.runs)
            comments += found.comments
            rows, closed = rows + found.rows, found.closed
    return Scan(np.concatenate(runs), rows, closed, comments)


def _blocks(file: BinaryIO, lo: int, hi: int) -> Iterator[tuple[int, bytes | Rejected]]:
    """Whole rows, about BLOCK bytes at a time; a row longer than MAX_ROW is skipped without being held in memory."""
    start = position = lo
    carried = b""
    while position < hi:
        data = carried + _read(file, position, min(BLOCK, hi - position))
        if start + len(data) == position:
            raise Conflict(f"{file.name} became shorter while it was read")
        position = start + len(data)
        cut = len(data) if position == hi else _last_row(data)
        if cut > 0:
            yield start, data[:cut]
            carried, start = data[cut:], start + cut
        elif len(data) > MAX_ROW:
            end = find_row(file, position - len(_ROW), hi)
            yield start, Rejected(start, end - start, f"longer than {MAX_ROW >> 20} MiB")
            carried, start, position = b"", end, end
        else:
            carried = data


def _last_row(data: bytes) -> int:
    """The start of the last row in a block; -1 if no row begins in it."""
    at = data.rfind(_ROW)
    while at >= 0 and not _ROW_START.match(data, at):
        at = data.rfind(_ROW, 0, at)
    return at


def _scan_block(data: bytes, offset: int, closing: str | None, unit: Unit | None, set_aside: SetAside) -> Scan:
    starts, days, odd = _find_rows(data)
    ends = np.append(starts[1:], len(data))
    first = int(starts[0]) if len(starts) else len(data)
    rejected, closed = _strays(data[:first], offset, None if len(starts) else closing)
    comments = _open_comment(data[:first], offset)
    rows = len(starts) + len(rejected)
    kept = np.ones(len(starts), np.bool_)
    for row in np.flatnonzero(odd).tolist():
        start, end = int(starts[row]), int(ends[row])
        form = _WELL_FORMED.match(data, start, end)
        cut = form.end() if form else start
        strays, closed = _strays(data[cut:end], offset + cut, closing if end == len(data) else None)
        if form:
            comments += _open_comment(data[cut:end], offset + cut)
            rows += len(strays)
            if strays or closed:
                ends[row] = cut
        else:
            reason = "not a well-formed row" if data.find(b"/>", start, end) >= 0 else "the row has no end"
            strays = [stray._replace(reason=reason) for stray in strays]
            kept[row] = False
        rejected += strays
    buckets = _buckets(data, starts, ends, days, unit) if unit else np.zeros(len(starts), np.int32)
    for row in np.flatnonzero(kept & (buckets < 0)).tolist():
        length = len(data[starts[row] : ends[row]].rstrip(WHITESPACE))
        rejected.append(Rejected(offset + int(starts[row]), length, "CreationDate is missing or invalid"))
    kept &= buckets >= 0
    set_aside(rejected)
    return Scan(_runs(buckets[kept], starts[kept] + offset, ends[kept] + offset), rows, closed, comments)


def _runs(buckets: Array, starts: Array, ends: Array) -> Array:
    """Merge neighbouring rows of one bucket into runs; the order is kept."""
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
    """The bucket of each row's CreationDate; -1 where that is missing or invalid."""
    for row in np.flatnonzero(days < 0).tolist():
        otherwise = _DATE.search(data, int(starts[row]), int(ends[row]))
        days[row] = int(otherwise[1].replace(b"-", b"")) if otherwise else -1
    known, places = np.unique(days, return_inverse=True)
    known[[not _is_day(day) for day in known.tolist()]] = -1
    return np.where(known < 0, -1, known // DAYS_OF[unit])[places]


def _is_day(number: int) -> bool:
    """Whether the number, such as 20120612, is a date. Years below 1000 are refused: their numbers would look like
    those of another unit."""
    try:
        date(number // 10_000, number // 100 % 100, number % 100)
    except ValueError:
        return False
    return number >= 1000_00_00


def _find_rows(data: bytes) -> tuple[Array, Array, Array]:
    """The rows in a block: their starts; the day of each, such as 20120612, or -1 if it is not in the usual form; and
    whether the row is odd: it contains a `<` or has no end, and needs a closer look."""
    most = len(data) // len(b"<row>")
    starts, days, odd = np.empty(most, np.int64), np.empty(most, np.int32), np.zeros(most, np.bool_)
    rows = _find(np.frombuffer(data + _END, np.uint8), starts, days, odd)
    return starts[:rows], days[:rows], odd[:rows]


_END = b"<" + bytes(15)
"""Appended to a block, so that the search needs no bounds checks."""
_ANGLE = np.uint64(ord("<")) * EACH_BYTE
_ROW_WORD, _CREATED_WORD, _DATE_WORD = (
    np.uint64(int.from_bytes(text, "little")) for text in (_ROW, _CREATED[:8], _CREATED[-8:])
)
_ROW_MASK = np.uint64((1 << 8 * len(_ROW)) - 1)


@compiled
def _find(data: Bytes, starts: Int64s, days: Int32s, odd: Flags) -> int:
    rows = at = 0
    size = len(data) - len(_END)
    while at <= size:
        word = load_word(data, at) ^ _ANGLE
        angles = ~(((word & LOW_BITS) + LOW_BITS) | word) & HIGH_BITS  # the highest bit of each byte that is a `<`
        if not angles:
            at += 8
            continue
        at += trailing_zeros(angles) >> 3
        is_row = load_word(data, at) & _ROW_MASK == _ROW_WORD and _ends_name(data[at + len(_ROW)])
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
def _ends_name(byte: int) -> bool:
    return byte == 32 or 9 <= byte <= 10 or byte == 13 or byte == 47 or byte == 62  # / >


@inlined
def _is_end(data: Bytes, at: int) -> bool:
    """Whether `/>`, optionally with white space after it, precedes this byte."""
    while data[at - 1] == 32 or 9 <= data[at - 1] <= 10 or data[at - 1] == 13:
        at -= 1
    return bool(data[at - 2] == 47 and data[at - 1] == 62)  # />


@inlined
def _find_date(data: Bytes, at: int) -> int:
    """The position after the next `CreationDate="`, or of the next `<` if that comes first."""
    while data[at] != 60:  # <
        if load_word(data, at) == _CREATED_WORD and load_word(data, at + len(_CREATED) - 8) == _DATE_WORD:
            return at + len(_CREATED)
        at += 1
    return at


@inlined
def _day(data: Bytes, at: int) -> int:
    """The number 20120612 for 2012-06-12; -1 for any other form."""
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


def _strays(data: bytes, offset: int, closing: str | None) -> tuple[list[Rejected], bool]:
    """Bytes that are neither a row nor white space nor the end tag of `closing` (and what XML allows after it), and
    whether that tag was found."""
    tags = re.finditer(rb"</%s\s*>" % closing.encode(), data) if closing else ()
    last = next((tag for tag in tags if _past_around(data, tag.end()) == len(data)), None)
    left = (data[: last.start()] if last else data).rstrip(WHITESPACE)
    bare = left.lstrip(WHITESPACE)
    return [Rejected(offset + len(left) - len(bare), len(bare), "not a row")] if bare else [], last is not None


def _open_comment(strays: bytes, offset: int) -> list[int]:
    """The offset of a comment that begins in these bytes and does not end in them."""
    at = strays.rfind(b"<!--")
    return [offset + at] if at >= 0 and strays.find(b"-->", at + len(b"<!--")) < 0 else []


def _read(file: BinaryIO, position: int, size: int) -> bytes:
    file.seek(position)
    return file.read(size)
