"""The progress and the report of an import, and the rows it rejects."""

from __future__ import annotations

import heapq
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple, Self

from pydantic import ConfigDict

from shared.documents import Record, decode
from shared.errors import BadInput, Conflict

SORTED_AT_ONCE = 100_000
"""Rejected rows held in memory at once; their total number has no limit."""
COUNT_BYTES = 1 << 20
KEPT_BYTES = 64 << 10
"""How many bytes of a rejected row the file holds; offset and length locate the rest of a longer one."""


@dataclass(frozen=True)
class Progress:
    """Progress of a step: `done` of `total` bytes of the dump, in `seconds` since the step began."""

    step: str
    done: int
    total: int
    seconds: float

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.done / self.seconds if self.seconds else 0.0


Tell = Callable[[Progress], None]


class Stopwatch:
    """Reports the progress of a step to a callback, from any thread, one call at a time."""

    def __init__(self, step: str, total: int, tell: Tell | None) -> None:
        self._step, self._total, self._tell = step, total, tell
        self._done, self._started = 0, time.monotonic()
        self._lock = threading.Lock()

    def advance(self, size: int) -> None:
        """`size` more bytes of the dump are done."""
        with self._lock:
            self._done += size
            if self._tell:
                self._tell(Progress(self._step, self._done, self._total, time.monotonic() - self._started))


class Rejected(NamedTuple):
    """Bytes of the dump that were rejected, and why."""

    offset: int
    length: int
    reason: str


class DumpReport(Record):
    """The result of importing one file of the dump. `rows_in` always equals `rows_out` + `rejected`.

    `rows_in` counts everything found in the place of a row, well-formed or not; `not_imported` counts the occurrences
    of each attribute for which the target has no column; `resumed` is the number of files that an earlier, interrupted
    import had finished, and `resumed_rows` is the number of their rows, included in `rows_out`.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    bytes: int
    rows_in: int
    rows_out: int
    rejected: int
    rejected_file: str | None
    not_imported: dict[str, int]
    truncated: bool
    seconds: float
    files: tuple[str, ...] = ()
    resumed: int = 0
    resumed_rows: int = 0

    @property
    def rate(self) -> float:
        """Bytes of XML a second."""
        return self.bytes / self.seconds if self.seconds else 0.0

    @classmethod
    def load(cls, file: Path) -> Self | None:
        """The report in a file; None when it is missing or unreadable: a repeated import then makes it again."""
        try:
            return decode(cls, file.read_bytes(), str(file))
        except (FileNotFoundError, BadInput):
            return None


class _RejectedRow(Record):
    """One line of the file of rejected rows. `line` counts from 1; `text` is at most `KEPT_BYTES` of the row."""

    file: str
    line: int
    offset: int
    bytes: int
    reason: str
    text: str


class Spool:
    """Rejected rows on disk, in the order of arrival, added by any thread. The file is created with the first row.

    Entering the context deletes an earlier file.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._out: IO[str] | None = None
        self._lock = threading.Lock()
        self.count = 0

    def __enter__(self) -> Self:
        self._file.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._out:
            self._out.close()

    def add(self, rejected: Iterable[Rejected]) -> None:
        lines = [f"{offset:020} {length} {json.dumps(reason)}\n" for offset, length, reason in rejected]
        if not lines:
            return
        with self._lock:
            if not self._out:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._out = self._file.open("w")
            self._out.writelines(lines)
            self.count += len(lines)


def write_rejected(spools: Iterable[Path], source: Path, target: Path) -> Path | None:
    """Write one JSON object a line: file, line (from 1), offset, bytes, reason and text. Returns None for no rows.

    An earlier file at `target` is replaced or, if no row was rejected, removed. Line numbers are computed only here:
    so only a dump with rejected rows is read a third time, as fast as newlines can be counted. Raises Conflict when the
    source became shorter.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    number = 0
    with source.open("rb") as xml, part.open("w", encoding="utf-8") as out, _in_order(spools, target.parent) as ordered:
        line, counted = 1, 0
        for number, (offset, length, reason) in enumerate(ordered, 1):  # noqa: B007 - after the loop it is the count
            while counted < offset:
                chunk = xml.read(min(COUNT_BYTES, offset - counted))
                if not chunk:
                    raise Conflict(f"{source} became shorter while it was read")
                line, counted = line + chunk.count(b"\n"), counted + len(chunk)
            text = xml.read(min(length, KEPT_BYTES))
            xml.seek(offset)
            row = _RejectedRow(
                file=source.name,
                line=line,
                offset=offset,
                bytes=length,
                reason=reason,
                text=text.decode("utf-8", "backslashreplace"),
            )
            out.write(row.model_dump_json() + "\n")
    if number:
        return part.replace(target)
    part.unlink()
    target.unlink(missing_ok=True)
    return None


@contextmanager
def _in_order(spools: Iterable[Path], folder: Path) -> Iterator[Iterator[Rejected]]:
    """The rows of the spools, by offset; sorted in pieces, which are then merged."""
    with ExitStack() as opened:
        lines = _lines(spools)
        pieces: list[IO[str]] = []
        while some := sorted(islice(lines, SORTED_AT_ONCE)):
            piece = opened.enter_context(tempfile.TemporaryFile("w+", dir=folder))
            piece.writelines(some)
            piece.seek(0)
            pieces.append(piece)
        yield map(_rejected, heapq.merge(*pieces))


def _lines(spools: Iterable[Path]) -> Iterator[str]:
    for spool in filter(Path.exists, spools):
        with spool.open() as opened:
            yield from opened


def _rejected(line: str) -> Rejected:
    offset, length, reason = line.split(" ", 2)
    return Rejected(int(offset), int(length), json.loads(reason))
