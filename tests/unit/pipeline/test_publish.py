"""Publishing several days at once."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from threadpoolctl import threadpool_info

from classify.days import day
from pipeline import publish
from shared import paths
from tests.world import World, posts


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
