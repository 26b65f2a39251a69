"""Queries over the published topics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, NamedTuple

from shared import catalog
from shared.catalog import day_pointer
from shared.errors import BadInput, NotFound
from shared.topics import DayFigures, TopicRow, from_csv, to_csv

if TYPE_CHECKING:
    from shared.lake import Lake

MAX_TOP = 10_000
KEY_PARAMETER = "code"
LONGEST = 100
"""Characters of a value that an error repeats, and digits that are read."""


class TopicsOfDay(DayFigures):
    """The topics of a day, most frequent first, and the day's figures."""

    day: date
    published_at: datetime
    topics: list[TopicRow]

    def to_csv(self) -> str:
        """A header line and one line a topic."""
        return to_csv(self.day, self.topics)


def parse_day(text: str | None) -> date | None:
    """A day as people write it: 2026-11-22, or nothing for the latest. Raises BadInput."""
    if not text or text == "latest":
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise BadInput(
            f"day={text[:LONGEST]} is not a date: write it as 2026-11-22, or leave it out for the latest"
        ) from error


def parse_top(text: str | None) -> int:
    """How many topics: a whole number from 1, 10 by default. Raises BadInput."""
    if not text:
        return 10
    if len(text) > LONGEST or not text.isdecimal() or not 1 <= int(text) <= MAX_TOP:  # int() refuses 4,301 digits
        raise BadInput(f"top={text[:LONGEST]}: write a whole number from 1 to {MAX_TOP}")
    return int(text)


def parse_format(text: str | None, accept: str | None) -> str:
    """json or csv: what is asked for, else what the Accept header says. Raises BadInput."""
    if text not in (None, "", "json", "csv"):
        raise BadInput(f"format={text[:LONGEST]}: write json or csv")
    return text or ("csv" if "text/csv" in (accept or "") else "json")


class Question(NamedTuple):
    """What `GET topics` asks for."""

    day: date | None
    top: int
    format: str


def parse_question(params: Mapping[str, str], accept: str | None) -> Question:
    """The query of a request. Raises BadInput for invalid values and unknown names."""
    check_names(params, ("day", "top", "format"))
    kind = parse_format(params.get("format"), accept)
    return Question(parse_day(params.get("day")), parse_top(params.get("top")), kind)


def check_names(params: Mapping[str, str], known: Sequence[str]) -> None:
    """Raises BadInput for an unknown parameter: if it were ignored, the answer would be to another question.

    `code`, a function key, is for the Functions host and always allowed.
    """
    if unknown := sorted(params.keys() - {*known, KEY_PARAMETER}):
        there_are = f"the names are {', '.join(known)}" if known else "it takes no parameters"
        raise BadInput(f"{', '.join(name[:LONGEST] for name in unknown)}: unknown parameter; {there_are}")


def topics_of_day(lake: Lake, day: date | None = None, top: int = 10) -> TopicsOfDay:
    """The `top` topics of `day`, or of the latest day that has any. Raises NotFound when nothing is published."""
    chosen = day or latest_day(lake)
    pointer, _ = day_pointer(lake, chosen)
    if pointer is None:
        raise NotFound(f"no topics are published for {chosen}")
    topics = list(from_csv(lake.read(pointer.csv).decode(), top))
    return TopicsOfDay.model_validate({**pointer.model_dump(), "topics": topics})


def latest_day(lake: Lake) -> date:
    """The latest day with posts. Raises NotFound."""
    day = catalog.latest_day(lake)
    if day is None:
        raise NotFound("no day with posts is published yet")
    return day
