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

from shared.logs import visible

GAP = "  "
INDENT = "    "
LEAST_NAME = 16
"""Characters that are left to the names of a table's rows, or it is not drawn as a table."""


class Cell(NamedTuple):
    """A value and the style it is printed in, as rich names styles."""

    text: str
    style: str = ""


class Heading(NamedTuple):
    """A heading, and whether the values below it end at the right."""

    name: str
    right: bool = False


def number_of(count: int, what: str) -> str:
    """`1 post`, `1,024 posts`."""
    return f"{count:,} {what}{'s' * (count != 1)}"


class Screen:
    """Prints to one stream, standard output unless another is given."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._passing = False

    @property
    def width(self) -> int | None:
        """Characters a line may have; None in a pipe or a file, where lines have no end."""
        return self.console.width if self.console.is_terminal else None

    def line(self, text: str = "", style: str = "") -> None:
        """One line of text; the terminal wraps what is longer than itself."""
        self._print(Text(visible(text), style))

    def passing(self, text: str) -> None:
        """A line for a terminal alone, which the next one takes the place of."""
        if self.width is not None:
            self._print(Text(visible(text), "dim"), end="")
            self._passing = True

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

    def rows(self, columns: Sequence[Heading], rows: Sequence[Sequence[Cell | str]]) -> None:
        """A table; columns without any value are left out.

        The first column that has a heading names the rows. A name that leaves no room for the rest of its row has a
        line of its own above it. On a terminal too narrow for the other columns, each row is a name and
        `heading value` pairs below it.
        """
        cells = [[_cell(value) for value in row] for row in rows]
        used = [number for number in range(len(columns)) if any(row[number].text for row in cells)]
        columns, cells = [columns[number] for number in used], [[row[number] for number in used] for row in cells]
        if not columns:
            return
        lead = next(number for number, column in enumerate(columns) if column.name)
        widths = [
            max(len(column.name), *(len(row[number].text) for row in cells)) for number, column in enumerate(columns)
        ]
        others = sum(widths) - widths[lead] + len(GAP) * (len(widths) - 1)
        room = sys.maxsize if self.width is None else self.width - others
        if room < min(widths[lead], LEAST_NAME):
            self._stacked(lead, columns, cells)
            return
        fitting = [len(row[lead].text) for row in cells if len(row[lead].text) <= room]
        widths[lead] = max(len(columns[lead].name), *fitting, 0)
        self._aligned(lead, columns, cells, widths)

    def _aligned(
        self, lead: int, columns: Sequence[Heading], rows: Sequence[Sequence[Cell]], widths: Sequence[int]
    ) -> None:
        for row in ([Cell(column.name, "dim") for column in columns], *rows):
            shown = list(row)
            if len(row[lead].text) > widths[lead]:
                self._print(self._joined(columns[: lead + 1], row[: lead + 1], widths))
                shown[: lead + 1] = [Cell("")] * (lead + 1)
            self._print(self._joined(columns, shown, widths))

    def _joined(self, columns: Sequence[Heading], cells: Sequence[Cell], widths: Sequence[int]) -> Text:
        line = Text()
        for number, cell in enumerate(cells):
            text = cell.text.rjust(widths[number]) if columns[number].right else cell.text.ljust(widths[number])
            line.append(GAP if number else "")
            line.append(text, cell.style)
        line.rstrip()
        return line

    def _stacked(self, lead: int, columns: Sequence[Heading], rows: Sequence[Sequence[Cell]]) -> None:
        for row in rows:
            line = Text()
            for cell in row[: lead + 1]:
                line.append(f"{cell.text or ' '} ", cell.style)
            line.rstrip()
            self._print(line)
            rest = zip(columns[lead + 1 :], row[lead + 1 :], strict=True)
            self._pairs([(f"{column.name} {cell.text}".strip(), cell.style) for column, cell in rest if cell.text])

    def _pairs(self, pairs: Sequence[tuple[str, str]]) -> None:
        line, width = Text(INDENT), self.width or sys.maxsize
        for text, style in pairs:
            if len(line) > len(INDENT) and len(line) + len(GAP) + len(text) > width:
                self._print(line)
                line = Text(INDENT)
            line.append(GAP if len(line) > len(INDENT) else "")
            line.append(text, style)
        self._print(line)

    def _print(self, text: Text, end: str = "\n") -> None:
        if self._passing:
            self._passing = False
            self.console.file.write("\r\x1b[2K")
        self.console.print(text.plain if self.console.no_color else text, soft_wrap=True, end=end)


def _cell(value: Cell | str) -> Cell:
    text, style = value if isinstance(value, Cell) else (value, "")
    return Cell(visible(text), style)


def print_json(value: Any) -> None:
    """A document on standard output: what `--json` asks for."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


@contextmanager
def progress() -> Iterator[Callable[[str, float | None], None]]:
    """A function that takes a step and the share of it that is done (None: unknown), and shows both.

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
