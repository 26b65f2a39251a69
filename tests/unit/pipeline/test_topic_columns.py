"""A new column of the topics file is a field and its value: everything that shows topics has it."""

from __future__ import annotations

import csv
import io
import json
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydantic.fields import FieldInfo

from classify.days import day as classify_day
from pipeline.publish import republish
from serve.topics import topics_of_day
from shared import paths, topics
from shared.catalog import day_pointer
from shared.topics import DayFigures, TopicRow
from tests.world import World, posts

DAY = date(2026, 11, 21)


class WiderRow(TopicRow):
    """With the share of a topic's posts that are questions."""

    asked: float


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    with world.undisturbed():
        world.lake.delete(paths.CURRENT_MODEL)  # the lake gets the starter
    answer = {"PostTypeId": 2, "ParentId": 1, "Tags": None}
    world.upload("a.parquet", posts({"Tags": "<python>"}, {"Tags": "<java>"}, answer))
    world.work()
    return world


def test_a_new_column_arrives_in_parquet_csv_json_and_pointer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before, _ = day_pointer(world.lake, DAY)
    assert before is not None
    assert republish(world.services, [DAY]) == []  # nothing has changed

    # The two edits: the field of the row, and the value that it is given.
    monkeypatch.setattr(topics, "TopicRow", WiderRow)
    monkeypatch.setattr(classify_day, "TopicRow", lambda **row: WiderRow(**row, asked=row["questions"] / row["posts"]))

    assert republish(world.services, [DAY]) == [DAY]
    pointer, _ = day_pointer(world.lake, DAY)
    assert pointer is not None
    assert pointer.publish_id != before.publish_id
    table = pq.read_table(io.BytesIO(world.lake.read(pointer.parquet)))
    assert table["asked"].to_pylist() == [0.5, 1.0]
    assert [row["asked"] for row in csv.DictReader(io.StringIO(world.lake.read(pointer.csv).decode()))] == [
        "0.5",
        "1.0",
    ]
    found = topics_of_day(world.lake, DAY)
    assert found.to_csv().splitlines()[1].endswith(",0.5")
    # The real edit changes the class that the API names; here it is told to write what the wider one has.
    document = json.loads(found.model_dump_json(serialize_as_any=True))
    assert [row["asked"] for row in document["topics"]] == [0.5, 1.0]
    assert republish(world.services, [DAY]) == []


def test_a_new_figure_of_the_day_makes_other_topics_files(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DayFigures.model_fields, "topics", FieldInfo(annotation=int, default=3))
    assert republish(world.services, [DAY]) == [DAY]


def test_the_columns_of_a_topics_file_are_those_of_the_row(world: World) -> None:
    pointer, _ = day_pointer(world.lake, DAY)
    assert pointer is not None
    names = ["day", *TopicRow.model_fields]
    schema = pq.read_schema(io.BytesIO(world.lake.read(pointer.parquet)))
    assert (schema.names, [str(kind) for kind in schema.types[:4]]) == (
        names,
        ["date32[day]", "int32", "string", "int64"],
    )
    assert world.lake.read(pointer.csv).decode().splitlines()[0] == ",".join(names)
