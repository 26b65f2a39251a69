"""Ordinary files are accepted, with the usual types of whole numbers, texts and dates, and with other columns."""

from __future__ import annotations

import io
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from classify.posts import clean
from ingest.contracts import check_posts
from serve.topics import topics_of_day
from shared import paths
from shared.errors import BadColumn, BadInput
from shared.ledger import FileRecord, FileState
from shared.posts import ACCEPTED, POST_COLUMNS
from tests import exports
from tests.places import PROJECT, SAMPLES
from tests.world import World, parquet, posts

FILE_DAY = date(2026, 1, 2)
PYTHON, JAVA = {"Tags": "<python><list>"}, {"Tags": "<java>"}
CASES = SAMPLES / "cases" / "parquet"


def through_the_pipeline(root: Path, name: str, content: pa.Table | bytes) -> tuple[World, FileRecord]:
    world = World(root)
    with world.undisturbed():
        world.lake.delete(paths.CURRENT_MODEL)  # the lake then gets the starter model
    world.upload(name, content)
    world.work(tries=0)
    (record,) = world.services.ledger.records()
    return world, record


@pytest.mark.parametrize("conversion", exports.CONVERSIONS)
def test_every_usual_conversion_of_a_data_explorer_export_is_counted(tmp_path: Path, conversion: str) -> None:
    made, csv, converted = exports.posts(10), tmp_path / "QueryResults.csv", tmp_path / "posts.parquet"
    csv.write_bytes(exports.explorer_csv(made))
    exports.CONVERSIONS[conversion](csv, converted)
    world, record = through_the_pipeline(tmp_path / "lake", "posts.parquet", converted.read_bytes())
    assert (record.state, record.reason, record.counted) == (FileState.PUBLISHED, None, 20)
    found = topics_of_day(world.lake, record.days[0])
    assert (found.questions, found.answers, found.topics[0].topic) == (10, 10, "python")
    assert (found.topics[0].questions, found.topics[0].answers) == (10, 10)  # answers found their questions
    assert record.archive is not None
    assert world.lake.read(record.archive) == converted.read_bytes()


def column(kind: pa.DataType, values: list[Any]) -> pa.Table:
    table = posts(*({"Id": number + 1} for number in range(len(values))))
    return table.set_column(0, "Id", pa.array(values, kind))


TAKEN_FOR_WHOLE: list[tuple[pa.DataType, list[Any], list[int]]] = [
    (pa.uint64(), [1, 2**63 - 1, None], [1, 2**63 - 1, 0]),
    (pa.int8(), [1, -2, None], [1, -2, 0]),
    (pa.float64(), [7.0, float("nan"), None], [7, 0, 0]),
    (pa.float64(), [2.0**53, -3.0, None], [2**53, -3, 0]),
    (pa.float32(), [16_777_216.0, 5.0, None], [16_777_216, 5, 0]),
    (pa.decimal128(20, 2), [Decimal("42.00"), Decimal("-7"), None], [42, -7, 0]),
    (pa.decimal128(9, 0), [Decimal("42"), Decimal("7"), None], [42, 7, 0]),
    (pa.string(), ["42", " -7 ", ""], [42, -7, 0]),
    (pa.large_string(), ["+42.0", "7.", None], [42, 7, 0]),
    (pa.dictionary(pa.int8(), pa.string()), ["42", "42", None], [42, 42, 0]),
]


@pytest.mark.parametrize(("kind", "values", "expected"), TAKEN_FOR_WHOLE, ids=lambda value: str(value))
def test_whole_numbers_are_read_from_every_accepted_type(
    kind: pa.DataType, values: list[Any], expected: list[int]
) -> None:
    table = column(kind, values)
    assert check_posts(io.BytesIO(parquet(table)), "a.parquet").rows == len(values)
    found = clean.clean(pq.read_table(io.BytesIO(parquet(table))).to_batches()[0], FILE_DAY)
    assert found.ids.tolist() == expected
    assert found.has_id.tolist() == [value != 0 for value in expected]


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (pa.float64(), [1.0, 1.5], "but holds 1.5"),
        (pa.float64(), [2.0**53 + 2], "double holds whole numbers exactly up to 9,007,199,254,740,992"),
        (pa.float32(), [79_000_000.0], "float holds whole numbers exactly up to 16,777,216"),
        (pa.float64(), [float("inf")], "but holds inf"),
        (pa.decimal128(9, 2), [Decimal("1.00"), Decimal("1.50")], "but holds 1.50"),
        (pa.decimal128(38, 0), [Decimal(2**63)], "does not hold whole numbers of 64 bits"),
        (pa.uint64(), [2**63], "does not hold whole numbers of 64 bits"),
        (pa.string(), ["1", "one"], "but holds one"),
        (pa.string(), ["1.5"], "but holds 1.5"),
        (pa.string(), ["9" * 30], "does not hold whole numbers of 64 bits"),
    ],
)
def test_a_value_that_is_not_a_whole_number_sends_the_file_to_quarantine(
    tmp_path: Path, kind: pa.DataType, values: list[Any], said: str
) -> None:
    table = column(kind, values)
    with pytest.raises(BadColumn, match="column Id"):
        clean.clean(table.to_batches()[0], FILE_DAY)
    world, record = through_the_pipeline(tmp_path, "in/posts.parquet", table)
    assert record.state is FileState.QUARANTINED
    assert str(record.reason).startswith("in/posts.parquet: column Id ")
    assert said in str(record.reason)
    assert record.quarantine is not None
    assert world.lake.read(record.quarantine) == parquet(table)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-22",
        "2026-11-22 13:14",
        "2026-11-22 13:14:15",
        "2026-11-22T13:14:15.123456",
        "2026-11-22T13:14:15Z",
        "2026-11-22 13:14:15+00",
        "2026-11-22T20:14:15.5+05:30",
        "2026-11-21 23:14:15-03:00",
    ],
)
def test_dates_may_be_text(text: str) -> None:
    table = posts({}, {})
    table = table.set_column(3, "CreationDate", pa.array([text, None]))
    assert check_posts(io.BytesIO(parquet(table)), "a.parquet").rows == 2
    found = clean.clean(table.to_batches()[0], FILE_DAY)
    assert [str(np.datetime64(int(day), "D")) for day in found.days] == ["2026-11-22", "2026-01-02"]
    assert not found.misdated.any()


def test_a_column_without_any_value_may_be_of_any_type(tmp_path: Path) -> None:
    """pandas writes a column without any value as double."""
    answers = posts(*({"Id": number, "PostTypeId": 2} for number in (1, 2, 3)))
    for name in ("Title", "Tags", "ParentId"):
        place = answers.schema.names.index(name)
        answers = answers.set_column(place, name, pa.nulls(3, pa.float64()))
    _, record = through_the_pipeline(tmp_path, "answers.parquet", answers)
    assert (record.state, record.counted) == (FileState.PUBLISHED, 3)
    nan = answers.set_column(4, "Title", pa.array([float("nan")] * 3))
    _, record = through_the_pipeline(tmp_path / "nan", "answers.parquet", nan)
    assert (record.state, record.counted) == (FileState.PUBLISHED, 3)
    numbers = answers.set_column(4, "Title", pa.array([float("nan"), 1.5, None]))
    _, record = through_the_pipeline(tmp_path / "numbers", "answers.parquet", numbers)
    assert record.reason == "answers.parquet: column Title must hold text, but holds numbers, such as 1.5"


def test_no_file_is_refused_because_of_an_unused_column(tmp_path: Path) -> None:
    strangers = {
        "ViewCount": pa.array([1.5, None]),
        "Score": pa.array(["many", "few"]),
        "ClosedDate": pa.array([True, None]),
        "OwnerUserId": pa.array([[1], [2]]),
        "score": pa.array([{"a": 1}, {"a": 2}]),
    }
    table = posts(PYTHON, JAVA)
    for name, values in strangers.items():
        table = table.append_column(name, values)
    world, record = through_the_pipeline(tmp_path, "a.parquet", table)
    assert (record.state, record.counted) == (FileState.PUBLISHED, 2)
    assert record.archive is not None
    assert world.lake.read(record.archive) == parquet(table)


def test_a_column_name_in_another_case_is_accepted_unless_it_is_ambiguous(tmp_path: Path) -> None:
    table = posts(PYTHON, JAVA)
    lower = table.rename_columns([name.lower() for name in table.schema.names])
    world, record = through_the_pipeline(tmp_path / "lower", "a.parquet", lower)
    assert (record.state, record.counted) == (FileState.PUBLISHED, 2)
    assert {topic.topic for topic in topics_of_day(world.lake, record.days[0]).topics} == {"python", "java"}
    both = table.append_column("id", pa.array([1, 2]))
    _, record = through_the_pipeline(tmp_path / "both", "a.parquet", both)
    assert record.state is FileState.QUARANTINED
    assert "columns Id and id differ only in case: remove the one" in str(record.reason)


def test_the_refusal_of_a_csv_file_names_the_command_that_converts_it(tmp_path: Path) -> None:
    csv = exports.explorer_csv(exports.posts(3))
    world, record = through_the_pipeline(tmp_path, "2026-11-22.csv", csv)
    assert record.reason == (
        "2026-11-22.csv is a CSV file, not Parquet: `python manage.py drop FILE.csv` converts and uploads it"
    )
    assert record.quarantine is not None
    assert world.lake.read(record.quarantine) == csv


@pytest.mark.skipif(not CASES.is_dir(), reason=f"needs the sample files of {CASES.name} beside the project")
@pytest.mark.parametrize("name", ["good", "viewcount-double", "pandas-default", "id-decimal"])
def test_every_sample_file_of_the_usual_writers_is_accepted(tmp_path: Path, name: str) -> None:
    _, record = through_the_pipeline(tmp_path, f"{name}.parquet", (CASES / f"{name}.parquet").read_bytes())
    assert (record.state, record.reason) == (FileState.PUBLISHED, None)


def test_an_encrypted_file_is_refused_as_encrypted() -> None:
    if CASES.is_dir():
        with (CASES / "encrypted-plain-footer.parquet").open("rb") as file, pytest.raises(BadInput, match="encrypted"):
            check_posts(file, "a.parquet")
    with pytest.raises(BadInput, match="is an encrypted Parquet file: deliver it unencrypted"):
        check_posts(io.BytesIO(parquet(posts({}))[:-4] + b"PARE"), "a.parquet")


def test_the_table_of_columns_in_the_document_matches_the_contract() -> None:
    page = (PROJECT / "docs" / "posts-file.md").read_text()
    for wanted in POST_COLUMNS:
        need = "required" if wanted.required else "optional"
        use = wanted.use.replace("|", r"\|")  # in a table of Markdown a bar ends the cell, in code too
        assert f"| `{wanted.name}` | {wanted.kind} | {need} | {use} |" in page
    for kind, types in ACCEPTED.items():
        for name, condition in types.items():
            assert f"| {kind} | {name} | {condition} |" in page
