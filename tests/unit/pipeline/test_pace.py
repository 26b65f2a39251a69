"""When looks, restarts and repeated steps are due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pipeline.pace import (
    RESTART_FIRST_DELAY_SECONDS,
    RESTART_LIMIT_SECONDS,
    WAITING_LOOK_LIMIT_SECONDS,
    look_delay,
    restart_delay,
    trouble_delay,
)
from tests.world import settings

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
