"""How `drop` converts a user's file: CSV becomes Parquet, and dates may become today's."""

from __future__ import annotations

import io
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.contracts import check_posts
from ingest.prepare import prepared
from shared.errors import BadInput
from tests import exports
from tests.world import parquet, posts

TODAY = date(2026, 11, 30)


def made_of(path: Path, today: date | None = None) -> tuple[str, bytes]:
    with prepared(path, today) as (name, content):
        return name, content.read()


def test_a_parquet_file_is_sent_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "posts.parquet"
    file.write_bytes(parquet(posts({}, {})))
    assert made_of(file) == ("posts.parquet", file.read_bytes())


def test_a_data_explorer_export_becomes_parquet_value_by_value(tmp_path: Path) -> None:
    rows, file = exports.posts(10), tmp_path / "QueryResults.csv"
    file.write_bytes(exports.explorer_csv(rows))
    name, content = made_of(file)
    assert name == "QueryResults.parquet"
    assert check_posts(io.BytesIO(content), name).rows == 20
    table = pq.read_table(io.BytesIO(content)).to_pylist()
    shown = [{column: None if value is None else str(value) for column, value in row.items()} for row in rows]
    assert table == shown  # with quotes, commas and line breaks in bodies, names in other scripts, and NULLs


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("Id,Title\n1,a\n".encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
        ("Id,Title\n1,é\n".encode("latin-1"), "is neither Parquet nor text in UTF-8"),
        (b"name,value\n1,2\n", "its first line must name the columns"),
        (b"Id;Title\n1;2\n", "its first line must name the columns, separated by commas"),
        (b"Id,Title,Title\n1,2,3\n", "has the column Title 2 times"),
        (b'Id,Title\n1,2\n3,"a",b\n', "cannot be read as CSV: CSV parse error: Row #3: Expected 2 columns, got 3"),
        (b"", "its first line must name the columns"),
        (b"\x00\x01\x02", "its first line must name the columns"),
    ],
)
def test_the_refusal_of_another_file_names_it_and_the_fault(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "mine.csv"
    file.write_bytes(content)
    with pytest.raises(BadInput) as refused:
        made_of(file)
    assert str(refused.value).startswith(str(file))
    assert said in str(refused.value)
    with pytest.raises(BadInput, match="is missing or not a file"):
        made_of(tmp_path / "nothing.csv")


def test_a_csv_file_may_begin_with_a_byte_order_mark_and_have_only_a_header(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_bytes(b"\xef\xbb\xbfid,posttypeid,creationdate,title,body\n")
    name, content = made_of(file)
    assert check_posts(io.BytesIO(content), name).rows == 0


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (
            pa.timestamp("ms"),
            [datetime(2012, 1, 2, 3, 4, 5), None],
            [datetime(2026, 11, 30, 3, 4, 5), datetime(2026, 11, 30)],
        ),
        (
            pa.timestamp("us", "UTC"),
            [datetime(2012, 1, 2, 23, 4, tzinfo=UTC)],
            [datetime(2026, 11, 30, 23, 4, tzinfo=UTC)],
        ),
        (pa.timestamp("ns"), [datetime(1950, 1, 2, 3, 4)], [datetime(2026, 11, 30, 3, 4)]),
        (
            pa.string(),
            ["2012-01-02 03:04:05", "2012-01-02", "soon", None],
            ["2026-11-30 03:04:05", "2026-11-30", "2026-11-30", "2026-11-30"],
        ),
        (pa.date32(), [date(2012, 1, 2), None], [date(2026, 11, 30)] * 2),
    ],
)
def test_every_post_gets_todays_date_and_keeps_its_time(
    tmp_path: Path, kind: pa.DataType, values: list[Any], expected: list[Any]
) -> None:
    table = posts(*({} for _ in values))
    file = tmp_path / "posts.parquet"
    pq.write_table(table.set_column(3, "creationdate", pa.array(values, kind)), file)
    _, content = made_of(file, TODAY)
    found = pq.read_table(io.BytesIO(content))
    assert found["creationdate"].to_pylist() == expected
    assert found.drop_columns(["creationdate"]) == table.drop_columns(["CreationDate"])


def test_a_csv_file_gets_todays_date_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_bytes(exports.explorer_csv(exports.posts(2)))
    _, content = made_of(file, TODAY)
    assert {text[:10] for text in pq.read_table(io.BytesIO(content))["CreationDate"].to_pylist()} == {"2026-11-30"}
