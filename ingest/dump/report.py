"""What an import tells its caller, and the rows it sets aside."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

COUNT_BYTES = 1 << 20
KEPT_BYTES = 64 << 10
"""How much of a rejected row is kept in the file; offset and length lead to the rest of a longer one."""


@dataclass(frozen=True)
class Progress:
    """How far a step is: `done` of `total` bytes of the dump, in `seconds` since the step began."""

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
    """Tells a caller's callback how far a step is."""

    def __init__(self, step: str, total: int, tell: Tell | None) -> None:
        self._step, self._total, self._tell = step, total, tell
        self._done, self._started = 0, time.monotonic()

    def advance(self, size: int) -> None:
        """`size` more bytes of the dump are done."""
        self._done += size
        if self._tell:
            self._tell(Progress(self._step, self._done, self._total, time.monotonic() - self._started))


class Rejected(NamedTuple):
    """Bytes of the dump that were set aside, and why."""

    offset: int
    length: int
    reason: str


@dataclass(frozen=True)
class DumpReport:
    """What became of a file of the dump. `rows_in` is `rows_out` and `rejected` together, always.

    `rows_in` counts what stands where a row should stand; `not_imported` says how often an attribute occurred that the
    target has no column for; `resumed` is how many of `files` an earlier, interrupted import had finished.
    """

    source: str
    bytes: int
    rows_in: int
    rows_out: int
    rejected: int
    rejected_file: str | None
    not_imported: dict[str, int]
    truncated: bool
    seconds: float
    files: tuple[str, ...] = field(default=())
    resumed: int = 0

    @property
    def rate(self) -> float:
        """Bytes of XML a second."""
        return self.bytes / self.seconds if self.seconds else 0.0

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> DumpReport:
        found = json.loads(text)
        return cls(**{**found, "files": tuple(found["files"])})


def write_rejected(rejected: Iterable[Rejected], source: Path, target: Path) -> Path | None:
    """Write one JSON object a line: file, line (from 1), offset, bytes, reason and text. Returns None for no rows.

    An earlier file at `target` is replaced, or removed. Lines are counted here and not before: only a dump with
    rejected rows is read a third time, at the speed of counting newlines.
    """
    ordered = sorted(rejected)
    if not ordered:
        target.unlink(missing_ok=True)
        return None
    part = target.with_name(target.name + ".part")
    with source.open("rb") as xml, part.open("w", encoding="utf-8") as out:
        line, counted = 1, 0
        for offset, length, reason in ordered:
            while counted < offset:
                chunk = xml.read(min(COUNT_BYTES, offset - counted))
                line, counted = line + chunk.count(b"\n"), counted + len(chunk)
            text = xml.read(min(length, KEPT_BYTES))
            xml.seek(offset)
            entry = {"file": source.name, "line": line, "offset": offset, "bytes": length, "reason": reason}
            out.write(
                json.dumps({**entry, "text": text.decode("utf-8", "backslashreplace")}, ensure_ascii=False) + "\n"
            )
    return part.replace(target)
