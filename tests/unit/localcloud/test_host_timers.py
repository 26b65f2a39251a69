"""Timers: their state at the start, and when they fire."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from localcloud.host.errors import HostError
from localcloud.host.ncrontab import Schedule
from localcloud.host.runner import Runner
from localcloud.host.timers import TimerListener, starting_status
from tests.host_functions import hosted

WEEKLY = Schedule.parse("0 0 2 * * 1")
SUNDAY = datetime(2026, 11, 22, 13, tzinfo=UTC)


class MemoryStore:
    def __init__(self, record: dict[str, Any] | None = None) -> None:
        self.record = record
        self.written: list[dict[str, str]] = []

    async def read_schedule(self, function_id: str) -> dict[str, Any] | None:
        return self.record

    async def write_schedule(self, function_id: str, record: dict[str, str]) -> None:
        self.written.append(record)


def stored(last: datetime, updated: datetime | None = None) -> dict[str, str]:
    return {"Last": last.isoformat(), "Next": "2020-01-01T00:00:00+00:00", "LastUpdated": (updated or last).isoformat()}


def test_a_first_start_waits_for_the_next_scheduled_time() -> None:
    status, past_due = starting_status(None, WEEKLY, SUNDAY)
    assert (status.next, past_due) == (datetime(2026, 11, 23, 2, tzinfo=UTC), False)


@pytest.mark.parametrize(
    ("record", "past_due"),
    [
        (stored(datetime(2026, 11, 16, 2, tzinfo=UTC)), False),
        (stored(datetime(2026, 11, 9, 2, tzinfo=UTC)), True),
        (stored(datetime.min.replace(tzinfo=UTC), datetime(2026, 11, 15, tzinfo=UTC)), True),
        (stored(datetime.min.replace(tzinfo=UTC), datetime(2026, 11, 17, tzinfo=UTC)), False),
    ],
)
def test_a_missed_scheduled_time_is_past_due(record: dict[str, str], past_due: bool) -> None:
    assert starting_status(record, WEEKLY, SUNDAY)[1] is past_due


def listen(trigger: dict[str, Any], store: MemoryStore, runs: int, *, takes: float = 0) -> list[Any]:
    """Listen until the timer function has run `runs` times, and 0.1 s longer; returns its arguments.

    Fails if two runs overlap.
    """
    given: list[Any] = []
    running, most = 0, 0

    async def call(value: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        given.append(value)
        await asyncio.sleep(takes)
        running -= 1

    async def listen() -> None:
        runner = Runner()
        listener = TimerListener(hosted(call, {"type": "timerTrigger", **trigger}), runner, store)
        task = asyncio.create_task(listener.run())
        while len(given) < runs:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        listener.stop()
        await task
        runner.close()

    asyncio.run(listen())
    assert most <= 1
    return given


def test_a_past_due_timer_fires_once_and_writes_its_status() -> None:
    store = MemoryStore(stored(datetime(2020, 1, 1, tzinfo=UTC)))
    given = listen({"schedule": "0 0 2 * * 1", "runOnStartup": True}, store, 1)
    assert [value.past_due for value in given] == [True]
    assert given[0].schedule_status["Last"] == "2020-01-01T00:00:00+00:00"
    assert datetime.fromisoformat(store.written[-1]["Next"]) > datetime.now(UTC)


def test_run_on_startup_fires_when_nothing_is_due() -> None:
    given = listen({"schedule": "0 0 2 * * 1", "runOnStartup": True}, MemoryStore(), 1)
    assert [value.past_due for value in given] == [False]
    assert listen({"schedule": "0 0 2 * * 1"}, MemoryStore(), 0) == []


def test_schedules_below_a_minute_run_one_at_a_time_without_a_status() -> None:
    store = MemoryStore(stored(datetime(2020, 1, 1, tzinfo=UTC)))
    given = listen({"schedule": "* * * * * *"}, store, 2, takes=1.05)
    assert len(given) >= 2
    assert all(value.schedule_status == {} and not value.past_due for value in given)
    assert store.written == []


def test_the_error_of_an_invalid_schedule_names_the_function() -> None:
    async def make() -> None:
        TimerListener(hosted(print, {"type": "timerTrigger", "schedule": "soon"}), Runner(), MemoryStore())

    with pytest.raises(HostError, match="function f: schedule 'soon'"):
        asyncio.run(make())
