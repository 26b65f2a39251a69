"""When the next look and the next start are due. No function waits for a run: it sends itself a message for later."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.ledger import FileRecord
    from shared.settings import Settings

WAITING_LOOK_LIMIT_SECONDS = 600
"""Longest pause between looks at the run that has waited longest for a slot."""
QUEUED_LOOK_SECONDS = 1800
"""Pause before a look at a run that waits behind another one. When a slot becomes free, the first one is looked at at
once, so looks follow the queue: of 40 runs of five minutes on two slots each took 12 looks, 16 when each had its own
pace."""
RESTART_FIRST_DELAY_SECONDS = 60
RESTART_LIMIT_SECONDS = 1800
"""First and longest pause before a run that was skipped, or that the platform failed, is started again."""
TROUBLE_FIRST_DELAY_SECONDS = 30
TROUBLE_LIMIT_SECONDS = 3600
"""First and longest pause before reconcile repeats a step that failed."""
SOON = timedelta(seconds=1)
"""A message may arrive this much early: the queue counts whole seconds."""


def look_delay(settings: Settings, since: datetime, now: datetime, *, waits: bool) -> timedelta:
    """How long to wait before the next look at a run that has waited, or worked, since then.

    In proportion to that time, so that an hour of waiting takes 11 looks with the default settings.
    """
    passed = (now - since).total_seconds()
    grown = passed if waits else passed * (settings.watch_backoff - 1)
    longest = WAITING_LOOK_LIMIT_SECONDS if waits else settings.watch_max_delay_seconds
    return timedelta(seconds=max(settings.watch_first_delay_seconds, min(grown, longest)))


def restart_delay(restarts: int) -> timedelta:
    """How long to wait before the next start, after `restarts` runs in a row that never worked."""
    return _doubled(RESTART_FIRST_DELAY_SECONDS, restarts, RESTART_LIMIT_SECONDS)


def trouble_delay(tries: int) -> timedelta:
    """How long to wait before the next try of a step that has failed `tries` times."""
    return _doubled(TROUBLE_FIRST_DELAY_SECONDS, tries - 1, TROUBLE_LIMIT_SECONDS)


def _doubled(first: float, times: int, limit: float) -> timedelta:
    return timedelta(seconds=min(first * 2.0 ** min(times, 20), limit))


def is_due(record: FileRecord, now: datetime) -> bool:
    """Whether the next look at, or the next start of, a file version is due."""
    due = record.next_look if record.next_look else record.not_before
    return due is None or now >= due - SOON
