"""When looks, restarts and repeated steps are due."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.pace import (
    RESTART_FIRST_DELAY_SECONDS,
    RESTART_LIMIT_SECONDS,
    WAITING_LOOK_LIMIT_SECONDS,
    look_delay,
    restart_delay,
    trouble_delay,
)
from shared import paths
from shared.databricks import RunState
from shared.ledger import FileState
from tests.world import World, WorldRuns, posts, settings

START = datetime(2026, 11, 22, tzinfo=UTC)


def looks(seconds: float, *, waits: bool) -> int:
    """How many looks the default settings take at a run in that time."""
    made, now = settings(watch_first_delay_seconds=15), START
    number = 0
    while (now := now + look_delay(made, START, now, waits=waits)) < START + timedelta(seconds=seconds):
        number += 1
    return number


def test_an_hour_of_waiting_takes_at_most_twelve_looks() -> None:
    assert 5 < looks(3600, waits=True) <= 12


def test_a_run_at_work_is_looked_at_every_two_minutes_at_least() -> None:
    made = settings()
    assert look_delay(made, START, START + timedelta(hours=1), waits=False).total_seconds() == 120
    assert 30 <= looks(3600, waits=False) <= 40


@pytest.mark.parametrize("waits", [True, False])
def test_no_age_of_a_run_is_too_great(waits: bool) -> None:
    """A counter to the power of which the pause grew overflowed after 58 hours."""
    assert look_delay(settings(), START, START + timedelta(days=9999), waits=waits).total_seconds() in (
        WAITING_LOOK_LIMIT_SECONDS,
        120,
    )


def test_pauses_double_up_to_their_limit() -> None:
    assert [restart_delay(number).total_seconds() for number in (0, 1, 2)] == [60, 120, 240]
    assert restart_delay(10_000).total_seconds() == RESTART_LIMIT_SECONDS
    assert trouble_delay(1) < trouble_delay(2)
    assert restart_delay(0).total_seconds() == RESTART_FIRST_DELAY_SECONDS


class Slots(WorldRuns):
    """Databricks with some slots: a run begins when one is free, in the order of the starts, and works for a while."""

    def __init__(self, world: World, slots: int, work: timedelta) -> None:
        super().__init__(world)
        self.free = [world.time] * slots
        self.work = work
        self.over: dict[int, datetime] = {}
        self.looks_at_waiting: Counter[int] = Counter()

    def start(self, job_id: int, parameters: Mapping[str, str], token: str) -> int:
        self.world.time += timedelta(seconds=1)
        run_id = super().start(job_id, parameters, token)
        if run_id not in self.over:
            begins = max(self.world.time, min(self.free))
            self.free[self.free.index(min(self.free))] = self.over[run_id] = begins + self.work
        return run_id

    def look(self, run_id: int) -> RunState:
        if self.world.time >= self.over[run_id]:
            return super().look(run_id)
        with self.world.io("runs/get"):
            waits = self.world.time < self.over[run_id] - self.work
            self.looks_at_waiting[run_id] += waits
            return RunState("waiting", "QUEUED") if waits else RunState("running")


def test_the_looks_of_runs_that_wait_for_two_slots_follow_the_queue(tmp_path: Path) -> None:
    """40 files of five minutes each: the last one waits for more than an hour and a half."""
    world = World(tmp_path, watch_first_delay_seconds=15, classification_deadline_seconds=7200)
    runs = Slots(world, 2, timedelta(minutes=5))
    world.services.replace(job_runs=runs)
    for number in range(40):
        world.upload(f"{number}.parquet", posts({"Id": number}))
    world.work()
    records = list(world.services.ledger.records())
    assert {record.state for record in records} == {FileState.PUBLISHED}
    assert {len(record.runs) for record in records} == {1}
    assert max(runs.looks_at_waiting.values()) <= 12
    assert world.calls.count("runs/get") <= 13 * len(records)
    late = [record.times["published"] - runs.over[record.runs[0].run_id] for record in records]
    assert max(late) <= timedelta(seconds=200)
    assert list(world.lake.list(paths.WAITING_FILES)) == []
