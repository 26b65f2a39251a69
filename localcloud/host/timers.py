"""Timers: one run at a time; the status is kept; a missed time fires once at the start.

The order of things is that of the TimerListener in azure-webjobs-sdk-extensions.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any, Protocol

from azure.core.exceptions import AzureError

from localcloud.host.app import HostedFunction
from localcloud.host.bindings import ScheduleStatus, timer_value
from localcloud.host.errors import HostError
from localcloud.host.ncrontab import Schedule
from localcloud.host.runner import API_REASON, Outcome, Runner

log = logging.getLogger(__name__)
_NEVER = datetime.min.replace(tzinfo=UTC)
# A sleeping laptop's monotonic clock stands still, so the wall clock is looked at this often (seconds).
_LONGEST_SLEEP = 30.0


class ScheduleStore(Protocol):
    """Where schedule status is kept; `HostStore` is one."""

    async def read_schedule(self, function_id: str) -> dict[str, Any] | None: ...

    async def write_schedule(self, function_id: str, record: dict[str, str]) -> None: ...


class TimerListener:
    """Fires one timer function. Raises HostError for an invalid schedule."""

    def __init__(self, function: HostedFunction, runner: Runner, store: ScheduleStore) -> None:
        self._function = function
        self._runner = runner
        self._store = store
        self._stopping = asyncio.Event()
        self._busy = asyncio.Lock()
        try:
            self._schedule = Schedule.parse(str(function.trigger["schedule"]))
        except ValueError as error:
            raise HostError(f"function {function.name}: {error}") from None
        wants_monitor = function.trigger.get("useMonitor", True)
        self._monitored = bool(wants_monitor) and self._schedule.is_monitored(datetime.now(UTC))
        self._status: ScheduleStatus | None = None

    async def run(self) -> None:
        """Fires until `stop`."""
        now = datetime.now(UTC)
        stored = await self._store.read_schedule(self._function.function_id) if self._monitored else None
        self._status, past_due = starting_status(stored, self._schedule, now)
        if self._monitored and not past_due:
            await self._save(self._status)
        log.info("Timer '%s' (%s) next at %s", self._function.name, self._schedule.expression, self._status.next)
        if past_due:
            await self._run_once("Timer was past due", past_due=True)
        elif self._function.trigger.get("runOnStartup"):
            await self._run_once("Timer fired at start-up")
        while await self._sleep_until(self._status.next):
            await self._run_once(f"Timer fired at {datetime.now(UTC).isoformat()}")

    async def fire(self, _text: str) -> Outcome:
        """Runs the function outside its schedule, which stays as it is."""
        async with self._busy:
            value = timer_value(past_due=False, status=self._status if self._monitored else None)
            return await self._runner.run(self._function, value, API_REASON)

    def stop(self) -> None:
        self._stopping.set()

    async def _run_once(self, reason: str, *, past_due: bool = False) -> None:
        async with self._busy:
            if self._stopping.is_set():
                return
            started = datetime.now(UTC)
            value = timer_value(past_due=past_due, status=self._status if self._monitored else None)
            await self._runner.run(self._function, value, reason)
            # Counted from the start: a time that passed while the function ran fires once, at once.
            self._status = ScheduleStatus(last=started, next=self._schedule.next_after(started), last_updated=started)
            await self._save(self._status)

    async def _save(self, status: ScheduleStatus) -> None:
        if not self._monitored:
            return
        try:
            await self._store.write_schedule(self._function.function_id, status.to_json())
        except AzureError as error:
            log.warning("The status of timer '%s' is not kept: %s", self._function.name, error)

    async def _sleep_until(self, moment: datetime) -> bool:
        """True when the moment has come, False when the host stops."""
        while (left := (moment - datetime.now(UTC)).total_seconds()) > 0:
            try:
                await asyncio.wait_for(self._stopping.wait(), min(left, _LONGEST_SLEEP))
            except TimeoutError:
                continue
            return False
        return not self._stopping.is_set()


def starting_status(stored: dict[str, Any] | None, schedule: Schedule, now: datetime) -> tuple[ScheduleStatus, bool]:
    """The status to start from, and whether a time was missed while no host ran.

    A missed time is one of the schedule as it is now, so a changed schedule is judged from its last firing
    (or, if it never fired, from when its status was written).
    """
    if stored is None:
        return ScheduleStatus(last=_NEVER, next=schedule.next_after(now), last_updated=now), False
    status = ScheduleStatus.from_json(stored)
    since = status.last if status.last != _NEVER else status.last_updated
    due = schedule.next_after(since)
    return ScheduleStatus(last=status.last, next=due, last_updated=status.last_updated), due <= now
