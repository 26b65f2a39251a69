"""What commands print: whole names at every width, plain lines in pipes, nothing from outside that moves the cursor."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cli.screen import Cell, Heading, Screen

COLUMNS = [Heading(""), Heading("file"), Heading("state"), Heading("posts", right=True), Heading("now")]
NAME = "incoming/2026/11/22/posts-of-the-whole-network-2026-11-22-and-one-day-more.parquet"
ROWS: list[list[Cell | str]] = [
    ["*", NAME, Cell("published", "green"), "1,024", ""],
    ["", "b.parquet", Cell("landed", "yellow"), "", "waits for its run, for 4 min"],
]


def printed(width: int, terminal: bool = True, **environment: str) -> list[str]:
    file = io.StringIO()
    console = Console(
        file=file, width=width, force_terminal=terminal, highlight=False, markup=False, _environ=environment
    )
    Screen(console).rows(COLUMNS, ROWS)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 80, 140])
def test_names_are_never_cut_and_no_other_line_is_longer_than_the_terminal(width: int) -> None:
    lines = printed(width, NO_COLOR="1", TERM="xterm")
    assert any(NAME in line for line in lines)
    assert [line for line in lines if len(line) > width and NAME not in line] == []
    assert "waits for its run, for 4 min" in " ".join(lines)


def test_a_pipe_gets_plain_lines_as_long_as_they_need_to_be() -> None:
    lines = printed(40, terminal=False)
    assert lines[0].split() == ["file", "state", "posts", "now"]
    assert lines[1].split() == ["*", NAME, "published", "1,024"]
    assert "\x1b" not in "".join(lines)


def test_no_color_leaves_the_colours_out() -> None:
    assert "\x1b[32m" in "".join(printed(140, TERM="xterm", COLORTERM=""))
    assert "\x1b" not in "".join(printed(140, NO_COLOR="1", TERM="xterm"))


def test_a_long_name_has_a_line_of_its_own_and_the_others_stay_in_columns() -> None:
    lines = printed(80, NO_COLOR="1", TERM="xterm")
    assert lines[0].split() == ["file", "state", "posts", "now"]
    assert (lines[1], lines[2].split()) == (f"*  {NAME}", ["published", "1,024"])
    assert lines[3].split()[:2] == ["b.parquet", "landed"]
    assert lines[2].index("published") == lines[3].index("landed") == lines[0].index("state")


def test_names_from_outside_are_text() -> None:
    file = io.StringIO()
    screen = Screen(Console(file=file, width=80, highlight=False))
    screen.line("[/x].parquet [bold]a[/bold]")
    screen.rows([Heading("file"), Heading("state")], [["a\r\n\x1b[2Jb.parquet", "[/x]"]])
    screen.paragraph("[/x]\x07")
    said = file.getvalue()
    assert "[/x].parquet [bold]a[/bold]" in said
    assert r"a\r\n\x1b[2Jb.parquet" in said
    assert "\x07" not in said
