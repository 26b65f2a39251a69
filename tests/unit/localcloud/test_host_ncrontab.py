"""NCRONTAB schedules, compared with times computed by hand and with a second-by-second check of the rules."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from localcloud.host.ncrontab import Schedule

START = datetime(2026, 11, 22, 13, 14, 15, tzinfo=UTC)  # a Sunday


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 0 2 * * 1", "2026-11-23T02:00:00"),
        ("0 0 2 * * MON", "2026-11-23T02:00:00"),
        ("0 0 2 * * Monday", "2026-11-23T02:00:00"),
        ("*/20 * * * * *", "2026-11-22T13:14:20"),
        ("15 14 13 * * *", "2026-11-23T13:14:15"),
        ("16 14 13 * * *", "2026-11-22T13:14:16"),
        ("0 */5 * * * *", "2026-11-22T13:15:00"),
        ("0 20/15 * * * *", "2026-11-22T13:20:00"),
        ("0 30 9-17 * * 1-5", "2026-11-23T09:30:00"),
        ("0 30 9 * * FRI-MON", "2026-11-23T09:30:00"),
        ("0 0 0 29 2 *", "2028-02-29T00:00:00"),
        ("0 0 0 1,15 jan,JUL *", "2027-01-01T00:00:00"),
        ("0 0 0 13 * fri", "2027-08-13T00:00:00"),
        ("5 10 * * *", "2026-11-23T10:05:00"),
        ("30 59 23 31 12 *", "2026-12-31T23:59:30"),
    ],
)
def test_the_next_time_of_a_schedule_is_found(expression: str, expected: str) -> None:
    assert Schedule.parse(expression).next_after(START) == datetime.fromisoformat(expected).replace(tzinfo=UTC)


def test_every_second_of_a_day_agrees_with_the_rules() -> None:
    schedule = Schedule.parse("7-50/13 3,40-42 */7 20-25 11 0,2")
    expected = [
        moment
        for moment in (START + timedelta(seconds=count) for count in range(1, 3 * 86400))
        if moment.second in range(7, 51, 13)
        and moment.minute in (3, 40, 41, 42)
        and moment.hour % 7 == 0
        and moment.isoweekday() in (7, 2)
    ]
    found, moment = [], START
    for _ in expected:
        moment = schedule.next_after(moment)
        found.append(moment)
    assert found == expected
    assert len(expected) == 96


def test_other_time_zones_are_read_as_utc() -> None:
    there = START.astimezone(timezone(timedelta(hours=9)))
    assert Schedule.parse("0 0 14 * * *").next_after(there).isoformat() == "2026-11-22T14:00:00+00:00"


@pytest.mark.parametrize(
    "expression",
    [
        "* * * *",
        "0 0 0 * * * *",
        "60 * * * * *",
        "* * 24 * * *",
        "* * * 0 * *",
        "* * * * 13 *",
        "* * * * * 7",
        "*/0 * * * * *",
        "* * * * ja *",
        "a * * * * *",
        "1- * * * * *",
        "*-5 * * * * *",
        "00:05:00",
        "0 0 0 30 2 *",
        "",
    ],
)
def test_an_invalid_schedule_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match="schedule"):
        Schedule.parse(expression)


def test_schedules_of_less_than_a_minute_are_not_monitored() -> None:
    assert not Schedule.parse("*/30 * * * * *").is_monitored(START)
    assert Schedule.parse("0 * * * * *").is_monitored(START)
