"""The exports that other tests use: the CSV has the Data Explorer's format, and each Parquet file has all its rows."""

import csv
import io
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.exports import COLUMNS, CONVERSIONS, answer, explorer_csv, posts, question


def plain(value: Any) -> Any:
    """A value without its type: a whole number for 7.0 or "7", text for a time, None for an empty value."""
    if value is None or value == "":
        return None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    whole = value.is_integer() if isinstance(value, float) else isinstance(value, str) and value.isdigit()
    return int(value) if whole else value


def test_the_csv_has_the_format_of_the_data_explorer() -> None:
    asked = question(7, Title='a "b", c', Body="one\ntwo", Tags="<ä>", AcceptedAnswerId=8, Score=-1)
    lines = explorer_csv([asked, answer(8, 7)], ["Id", "Title", "Body", "ParentId", "CreationDate", "Tags", "Score"])
    assert lines.decode() == (
        "Id,Title,Body,ParentId,CreationDate,Tags,Score\r\n"
        '"7","a ""b"", c","one\ntwo","","2026-11-22 13:21:15","<ä>","-1"\r\n'
        '"8","","<p>Like so, 8:</p>\n<code>x.sort()</code>\n","7","2026-11-22 13:22:15","","0"'
    )


def test_a_csv_reader_finds_every_value_of_the_export() -> None:
    made = posts()
    header, *rows = csv.reader(io.StringIO(explorer_csv(made).decode(), newline=""))
    assert tuple(header) == COLUMNS
    assert rows == [["" if plain(post[name]) is None else str(plain(post[name])) for name in COLUMNS] for post in made]


def test_questions_and_answers_have_their_own_columns() -> None:
    made = posts()
    assert {post["PostTypeId"] for post in made} == {1, 2}
    for post in made:
        asked = post["PostTypeId"] == 1
        assert (post["ParentId"] is None) == asked
        assert all((post[name] is not None) == asked for name in ("Title", "Tags", "ViewCount"))
        assert "\n" in post["Body"]
    assert all('"' in post["Body"] for post in made if post["PostTypeId"] == 1)
    assert {post["AcceptedAnswerId"] is None for post in made} == {True, False}


@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_a_conversion_to_parquet_keeps_every_value_of_every_row(conversion: str, tmp_path: Path) -> None:
    made = posts(200)
    (tmp_path / "posts.csv").write_bytes(explorer_csv(made))
    CONVERSIONS[conversion](tmp_path / "posts.csv", tmp_path / "posts.parquet")
    found = pq.read_table(tmp_path / "posts.parquet").to_pylist()
    assert [{name: plain(row[name]) for name in COLUMNS} for row in found] == [
        {name: plain(post[name]) for name in COLUMNS} for post in made
    ]
