"""NCRONTAB schedules: `{second} {minute} {hour} {day} {month} {day-of-week}`, in UTC.

The rules are those of the NCrontab library that the Azure Functions host uses; they differ from cron's in that
day and day-of-week must BOTH match, Sunday is only 0, `5/15` means from 5 to the end by 15, and a range
given backwards is turned round. Five fields mean second 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

# A date and a weekday meet again within 28 years, except round a century without leap day: 40 years.
_DAYS_TO_SEARCH = 40 * 366
# In English whatever the machine's language, so not from `calendar`.
_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_WEEKDAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
_ITEM = re.compile(r"(\*|\w+)(?:-(\w+))?(?:/(\d+))?")


@dataclass(frozen=True)
class _Field:
    name: str
    low: int
    high: int
    words: tuple[str, ...] = ()


_FIELDS = (
    _Field("second", 0, 59),
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day-of-week", 0, 6, _WEEKDAYS),
)


@dataclass(frozen=True)
class Schedule:
    """When a timer fires. Made by `Schedule.parse`."""

    expression: str
    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]

    @classmethod
    def parse(cls, expression: str) -> Schedule:
        """Raises ValueError for what is no NCRONTAB expression, and for one that never comes (30 February)."""
        texts = expression.split()
        if len(texts) == 5:
            texts.insert(0, "0")
        if len(texts) != 6:
            raise ValueError(f"schedule {expression!r} must have six fields: second minute hour day month day-of-week")
        try:
            seconds, minutes, hours, days, months, weekdays = (
                _parse_field(field, text) for field, text in zip(_FIELDS, texts, strict=True)
            )
        except ValueError as error:
            raise ValueError(f"schedule {expression!r}: {error}") from None
        schedule = cls(expression, seconds, minutes, hours, frozenset(days), frozenset(months), frozenset(weekdays))
        schedule.next_after(datetime(2000, 1, 1, tzinfo=UTC))
        return schedule

    def next_after(self, moment: datetime) -> datetime:
        """The first time of the schedule that is later than `moment` (timezone-aware); in UTC."""
        moment = moment.astimezone(UTC)
        if self._matches(moment.date()) and (found := self._time_after(moment.time())):
            return datetime.combine(moment.date(), found, UTC)
        for ahead in range(1, _DAYS_TO_SEARCH):
            day = moment.date() + timedelta(days=ahead)
            if self._matches(day):
                return datetime.combine(day, time(self.hours[0], self.minutes[0], self.seconds[0]), UTC)
        raise ValueError(f"schedule {self.expression!r} never comes")

    def is_monitored(self, moment: datetime) -> bool:
        """Azure keeps no status of a schedule that fires more often than once a minute."""
        first = self.next_after(moment)
        return self.next_after(first) - first >= timedelta(minutes=1)

    def _matches(self, day: date) -> bool:
        return day.month in self.months and day.day in self.days and day.isoweekday() % 7 in self.weekdays

    def _time_after(self, moment: time) -> time | None:
        for hour in self.hours:
            if hour < moment.hour:
                continue
            for minute in self.minutes:
                if (hour, minute) < (moment.hour, moment.minute):
                    continue
                for second in self.seconds:
                    if (found := time(hour, minute, second)) > moment:
                        return found
        return None


def _parse_field(field: _Field, text: str) -> tuple[int, ...]:
    values: set[int] = set()
    for item in text.split(","):
        match = _ITEM.fullmatch(item)
        if not match or (match[1] == "*" and match[2]):
            raise ValueError(f"{item!r} is no {field.name}")
        step = int(match[3] or 1)
        if step < 1:
            raise ValueError(f"step of {item!r} must be at least 1")
        first = field.low if match[1] == "*" else _parse_value(field, match[1])
        if match[2]:
            first, last = sorted((first, _parse_value(field, match[2])))
        elif match[1] == "*" or match[3]:
            last = field.high
        else:
            last = first
        values.update(range(first, last + 1, step))
    return tuple(sorted(values))


def _parse_value(field: _Field, text: str) -> int:
    if text.isdecimal():
        value = int(text)
    else:
        named = [index for index, word in enumerate(field.words) if len(text) >= 3 and word.startswith(text.lower())]
        if not named:
            raise ValueError(f"{text!r} is no {field.name}")
        value = named[0] + field.low
    if not field.low <= value <= field.high:
        raise ValueError(f"{field.name} {value} is not between {field.low} and {field.high}")
    return value
