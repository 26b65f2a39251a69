"""What benchmarks share: their options, the most memory of a process, and the bounds that figures are held against.

It imports little: processes whose memory is measured import it too.
"""

from __future__ import annotations

import argparse
import re
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple


class Bound(NamedTuple):
    """A figure and what it must not exceed (or, if `is_least`, fall below): more than was ever measured on a machine
    where all was well, less than what a known fault costs."""

    what: str
    measured: float
    limit: float
    unit: str = ""
    is_least: bool = False

    @property
    def is_held(self) -> bool:
        return self.measured >= self.limit if self.is_least else self.measured <= self.limit

    def __str__(self) -> str:
        figures = (f"{figure:,.3g}" if figure < 100 else f"{figure:,.0f}" for figure in (self.measured, self.limit))
        measured, limit = (f"{figure} {self.unit}".strip() for figure in figures)
        state, side = "held" if self.is_held else "BROKEN", "at least" if self.is_least else "at most"
        return f"bound {state}: {self.what}: {measured}, {side} {limit}"

    def to_json(self) -> dict[str, Any]:
        return {**self._asdict(), "is_held": self.is_held}


def options(name: str, about: str | None) -> argparse.ArgumentParser:
    """A parser of a benchmark's options that has those which all have."""
    parser = argparse.ArgumentParser(prog=f"python -m bench {name}", description=about)
    parser.add_argument("--json", action="store_true", help="one JSON object in place of tables")
    parser.add_argument("--check", action="store_true", help="end with 1 when a bound is broken")
    return parser


def conclude(bounds: Iterable[Bound], given: argparse.Namespace) -> int:
    """Show the bounds, unless in JSON, where they stand already; returns the exit code."""
    bounds = list(bounds)
    if not given.json:
        print(*bounds, sep="\n")
    return int(given.check and not all(bound.is_held for bound in bounds))


def peak_bytes(process: str = "self") -> int:
    """The most memory that a process has had so far; of this one where the system tells of no other.

    `ru_maxrss`, the second choice, begins with that of the process that forked this one.
    """
    status = Path(f"/proc/{process}/status")
    if status.exists() and (peak := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(peak[1]) * 1024
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * 1024
