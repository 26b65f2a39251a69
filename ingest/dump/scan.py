"""The first pass over a dump: where its rows lie and which day or month each belongs to. Nothing is parsed yet.

A well-formed row holds no `<` but its first byte, so the search for that byte finds them all, at the speed of memchr;
only a piece that looks odd goes through a regular expression. A loop over rows in Python is enough (1.4 ms/MB with
reading, where parsing takes 5; the same in numpy took nearly twice as long).
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from ingest.dump.report import Rejected
from shared.errors import BadInput, Conflict

Unit = Literal["day", "month"]
Array = np.ndarray[Any, Any]

RUN = np.dtype([("bucket", np.int32), ("start", np.int64), ("end", np.int64), ("rows", np.int32)])
"""Neighbouring rows of one bucket: bytes `start` to `end` of the file. A bucket is 20120612 or 201206, or 0 for all.

All runs of a dump are held in memory. There are about four a megabyte and two more for every post that is dated back; a
dump in no order at all would cost 24 bytes a row.
"""

BLOCK = 256 << 10
"""Bytes scanned at once, and about the most a run holds: what stays in cache (1 MB took half as long again)."""
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
    angles = list(_find_all(data, b"<"))
    starts = [at for at in angles if data.startswith(_ROW, at)]
    ends = [*starts[1:], len(data)]
    first = starts[0] if starts else len(data)
    rejected, closed = _strays(data[:first], offset, b"" if starts else closing)
    rows = len(starts) + len(rejected)
    odd = set()
    if len(starts) < len(angles):
        odd = {bisect_right(starts, at) - 1 for at in angles if not data.startswith(_ROW, at)}
    usual_end = _end_of(data[first : ends[0]])

    runs: list[tuple[int, int, int, int]] = []
    run_bucket = run_start = run_end = run_rows = 0
    for number, (start, end) in enumerate(zip(starts, ends, strict=False)):
        row_end = end
        if number in odd or not data.endswith(usual_end, start, end):
            form = _WELL_FORMED.match(data, start, end)
            cut = form.end() if form else start
            strays, closed = _strays(data[cut:end], offset + cut, closing if end == len(data) else b"")
            if not form:
                reason = "no well-formed row" if data.find(b"/>", start, end) >= 0 else "the row has no end"
                rejected += [stray._replace(reason=reason) for stray in strays]
                continue
            rows += len(strays)
            rejected += strays
            if strays or closed:
                row_end = cut
        bucket = _bucket(data, start, end, unit) if unit else 0
        if bucket is None:
            length = len(data[start:row_end].rstrip(WHITESPACE))
            rejected.append(Rejected(offset + start, length, "CreationDate is missing or no date"))
            continue
        if bucket != run_bucket or start != run_end or not run_rows:
            if run_rows:
                runs.append((run_bucket, offset + run_start, offset + run_end, run_rows))
            run_bucket, run_start, run_rows = bucket, start, 0
        run_end = row_end
        run_rows += 1
    if run_rows:
        runs.append((run_bucket, offset + run_start, offset + run_end, run_rows))
    return Scan(np.array(runs, RUN), rejected, rows, closed)


def _find_all(data: bytes, byte: bytes) -> Iterator[int]:
    at = data.find(byte)
    while at >= 0:
        yield at
        at = data.find(byte, at + 1)


def _end_of(row: bytes) -> bytes:
    """`/>` and the white space behind it, with which a row ends and so do most others; what no row ends with if not."""
    end = row[len(row.rstrip(WHITESPACE)) - 2 :]
    return end if end.startswith(b"/>") else b"<"


def _strays(data: bytes, offset: int, closing: bytes) -> tuple[list[Rejected], bool]:
    """Bytes that are neither row nor white space nor the `closing` tag, and whether that tag was there."""
    left = data.rstrip(WHITESPACE)
    closed = bool(closing) and left.endswith(closing)
    left = left.removesuffix(closing).rstrip(WHITESPACE) if closed else left
    bare = left.lstrip(WHITESPACE)
    return [Rejected(offset + len(left) - len(bare), len(bare), "no row")] if bare else [], closed


def _bucket(data: bytes, start: int, end: int, unit: Unit) -> int | None:
    """The day or month of a row's CreationDate; None where that is missing or no date."""
    at = data.find(_CREATED, start, end)
    if at >= 0:
        return _bucket_of(data[at + len(_CREATED) : at + len(_CREATED) + len("2012-06-12")], unit)
    otherwise = _DATE.search(data, start, end)
    return _bucket_of(otherwise[1], unit) if otherwise else None


@functools.lru_cache(maxsize=4096)
def _bucket_of(text: bytes, unit: Unit) -> int | None:
    try:
        found = date.fromisoformat(text.decode())
    except ValueError:
        return None
    if found.year < 1000:  # the number of such a day would look like that of a month
        return None
    day = found.year * 10_000 + found.month * 100 + found.day
    return day if unit == "day" else day // 100


def _read(file: BinaryIO, position: int, size: int) -> bytes:
    file.seek(position)
    return file.read(size)
