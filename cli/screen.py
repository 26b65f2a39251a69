"""What commands print: lines as wide as the terminal, or as long as they need to be in a pipe or a file.

Names, days and ids are never cut. Colour comes from rich, which leaves it out for NO_COLOR, pipes and files. What comes
from outside (names of files, topics, reasons) is printed as text: markup in it stays as it is, and control characters
are made visible, so that no name can move the cursor or start another line.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

GAP = "  "
INDENT = "    "


class Cell(NamedTuple):
    """A value and the style it is printed in, as rich names styles."""

    text: str
    style: str = ""


class Column(NamedTuple):
    """A heading, and whether the values below it end at the right."""

    name: str
    right: bool = False


def visible(text: str) -> str:
    """`text` with its control characters written as escapes: `\\n`, `\\x1b`."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


class Screen:
    """Prints to one stream, standard output unless another is given."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, markup=False, emoji=False, soft_wrap=True)

    @property
    def width(self) -> int | None:
        """Characters a line may have; None in a pipe or a file, where lines have no end."""
        return self.console.width if self.console.is_terminal else None

    def line(self, text: str = "", style: str = "") -> None:
        """One line of text; the terminal wraps what is longer than itself."""
        self.console.print(Text(visible(text), style), soft_wrap=True)

    def heading(self, text: str) -> None:
        """A line that begins a part, after an empty one."""
        self.line()
        self.line(text, "bold")

    def paragraph(self, text: str, style: str = "", indent: str = "") -> None:
        """Text, broken between words where the terminal ends; a word that is longer stays whole."""
        width = self.width
        if width is None:
            self.line(indent + text, style)
            return
        wrapped = textwrap.wrap(
            visible(text), max(20, width - len(indent)), break_long_words=False, break_on_hyphens=False
        )
        for line in wrapped or [""]:
            self.line(indent + line, style)

    def rows(self, columns: Sequence[Column], rows: Sequence[Sequence[Cell | str]]) -> None:
        """A table. Where a line does not fit, the first two values have a line of their own, and the rest one below."""
        cells = [[_cell(value) for value in row] for row in rows]
        used = [number for number in range(len(columns)) if any(row[number].text for row in cells)]
        columns, cells = [columns[number] for number in used], [[row[number] for number in used] for row in cells]
        widths = [
            max(len(column.name), *(len(visible(row[number].text)) for row in cells))
            for number, column in enumerate(columns)
        ]
        if self.width is None or sum(widths) + len(GAP) * (len(widths) - 1) <= self.width:
            self._aligned(columns, cells, widths)
        else:
            self._stacked(columns, cells)

    def _aligned(self, columns: Sequence[Column], rows: Sequence[Sequence[Cell]], widths: Sequence[int]) -> None:
        heads = [Cell(column.name, "dim") for column in columns]
        for row in (heads, *rows):
            line = Text()
            for number, cell in enumerate(row):
                text = visible(cell.text)
                text = text.rjust(widths[number]) if columns[number].right else text.ljust(widths[number])
                line.append(GAP if number else "")
                line.append(text.rstrip() if number == len(row) - 1 else text, cell.style)
            line.rstrip()
            self.console.print(line, soft_wrap=True)

    def _stacked(self, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
        """A line for the first value (with a mark of one character before it), then `heading value` pairs."""
        lead = 2 if columns and columns[0].name == "" else 1
        for row in rows:
            line = Text()
            for number, cell in enumerate(row[:lead]):
                line.append(GAP[:1] if number else "")
                line.append(visible(cell.text) or " ", cell.style)
            self.console.print(line, soft_wrap=True)
            pairs = [
                (f"{column.name} {visible(cell.text)}".strip(), cell.style)
                for column, cell in zip(columns[lead:], row[lead:], strict=True)
                if cell.text
            ]
            self._pairs(pairs)

    def _pairs(self, pairs: Sequence[tuple[str, str]]) -> None:
        line, width = Text(INDENT), self.width or sys.maxsize
        for text, style in pairs:
            if len(line) > len(INDENT) and len(line) + len(GAP) + len(text) > width:
                self.console.print(line, soft_wrap=True)
                line = Text(INDENT)
            line.append(GAP if len(line) > len(INDENT) else "")
            line.append(text, style)
        self.console.print(line, soft_wrap=True)


def _cell(value: Cell | str) -> Cell:
    return value if isinstance(value, Cell) else Cell(value)


def print_json(value: Any) -> None:
    """A document on standard output: what `--json` asks for."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


@contextmanager
def progress() -> Iterator[Callable[[str, float | None], None]]:
    """A function that is told a step and the share of it that is done (None: unknown), and shows both.

    On standard error: a bar on a terminal, elsewhere a line for each new step.
    """
    console = Console(stderr=True, highlight=False, markup=False)
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=1.0)

        def tell(step: str, done: float | None) -> None:
            bars.update(task, description=step, completed=done or 0.0, total=None if done is None else 1.0)

        yield tell


def _lines(console: Console) -> Callable[[str, float | None], None]:
    last = ""

    def tell(step: str, done: float | None) -> None:
        nonlocal last
        del done
        if step != last:
            last = step
            console.print(step, soft_wrap=True)

    return tell
