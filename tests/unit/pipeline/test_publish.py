"""Publishing several days at once."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from threadpoolctl import threadpool_info

from classify.days import day
from pipeline import publish
from serve.topics import topics_of_day
from shared import paths
from shared.catalog import day_pointer
from tests.world import World, posts

DAY = datetime(2026, 11, 21, 12)


def test_the_threads_of_linear_algebra_do_not_compete_with_those_of_days(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight days at once, each with as many threads as there are cores, took five times the processor."""
    world = World(tmp_path)
    with world.undisturbed():
        world.lake.delete(paths.CURRENT_MODEL)  # the lake gets the starter
    threads: list[int] = []
    count = day.count_topics

    def count_topics(*arguments: Any) -> Any:
        threads.extend(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")
        return count(*arguments)

    monkeypatch.setattr(publish, "count_topics", count_topics)
    world.upload("a.parquet", posts(*({"CreationDate": datetime(2026, 11, day)} for day in (1, 2, 3))))
    world.work()
    assert threads
    assert set(threads) == {1}


def of_one_day(world: World, files: int) -> list[int]:
    """Lands, classifies and publishes files of one day, one after the other; the number of calls that each took."""
    calls = []
    for number in range(files):
        before = len(world.calls)
        world.upload(f"{number}.parquet", posts({"CreationDate": DAY, "Id": number}))
        world.work()
        calls.append(len(world.calls) - before)
    return calls


def test_a_file_costs_the_same_however_many_files_its_day_has(tmp_path: Path) -> None:
    world = World(tmp_path)
    calls = of_one_day(world, 12)
    assert len(set(calls[2:])) == 1, calls
    assert topics_of_day(world.lake, DAY.date()).posts == 12


def test_a_correction_takes_its_earlier_version_out_of_the_sums(tmp_path: Path) -> None:
    world = World(tmp_path)
    of_one_day(world, 3)
    world.upload("1.parquet", posts({"CreationDate": DAY, "Id": 1}, {"CreationDate": DAY, "Id": 9}))
    world.work()
    assert topics_of_day(world.lake, DAY.date()).posts == 4


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_sums_that_are_missing_or_damaged_are_counted_from_all_files(tmp_path: Path, damage: str) -> None:
    world = World(tmp_path)
    of_one_day(world, 3)
    pointer, _ = day_pointer(world.lake, DAY.date())
    assert pointer is not None
    if damage == "missing":
        world.lake.delete(pointer.sums)
    else:
        world.lake.put(pointer.sums, b"half")
    world.upload("more.parquet", posts({"CreationDate": DAY, "Id": 7}))
    world.work()
    assert topics_of_day(world.lake, DAY.date()).posts == 4
