"""Shared by the benchmarks: their options, the peak memory of a process, and the bounds for figures.

It imports little, because processes whose memory is measured import it too.
"""

from __future__ import annotations

import argparse
import re
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple


class Bound(NamedTuple):
    """A figure and the limit that it must not exceed (or, if `is_least`, not fall below). All figures measured without
    a fault keep the limit; the figure that a known fault causes breaks it."""

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
    """A parser with the options that all benchmarks have; a benchmark adds its own."""
    parser = argparse.ArgumentParser(prog=f"python -m bench {name}", description=about)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--check", action="store_true", help="exit with code 1 if a bound is broken")
    return parser


def conclude(bounds: Iterable[Bound], given: argparse.Namespace) -> int:
    """Print the bounds, except with `--json`, whose output contains them already; returns the exit code."""
    bounds = list(bounds)
    if not given.json:
        print(*bounds, sep="\n")
    return int(given.check and not all(bound.is_held for bound in bounds))


def peak_bytes(process: str = "self") -> int:
    """The peak memory of a process so far, in bytes; on a system without `/proc`, that of this process.

    `ru_maxrss` is only the second choice, because it starts at the value of the parent process.
    """
    status = Path(f"/proc/{process}/status")
    if status.exists() and (peak := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(peak[1]) * 1024
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * 1024
