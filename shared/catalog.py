"""The catalog: small documents that say which immutable file is current. They move only under their ETag."""

from __future__ import annotations

from datetime import date, datetime
from typing import TypeVar

from pydantic import BaseModel

from shared import paths
from shared.conditional import until_first
from shared.documents import decode
from shared.errors import NotFound
from shared.lake import Lake
from shared.topics import DayFigures


class SourcePointer(BaseModel):
    """Which classification of a source counts, and on which days."""

    version: str
    sequence: int
    """The version's place among those of the source: a later one replaces it."""
    output: str | None
    """The folder of post_topics; None where the source was withdrawn and nothing of it counts."""
    days: list[date]
    left: list[date]
    """Days that an earlier one counted on and this one does not."""


class DayPointer(DayFigures):
    """Which topics of a day are current, what they were counted from, and the day's figures."""

    day: date
    publish_id: str
    parquet: str
    csv: str
    sums: str
    """What the files of the day add up to: the next file is added to it."""
    sources: dict[str, str]
    """What was counted: the folder of post_topics, by source id. Synapse reads the posts of the day there."""
    published_at: datetime


Pointer = TypeVar("Pointer", bound=BaseModel)


def read_pointer(lake: Lake, kind: type[Pointer], path: str) -> tuple[Pointer | None, str | None]:
    """The pointer at `path` and its ETag; (None, None) where there is none."""
    try:
        data, etag = lake.read_with_etag(path)
    except NotFound:
        return None, None
    return decode(kind, data, path), etag


def move_pointer(lake: Lake, path: str, pointer: BaseModel, etag: str | None) -> None:
    """Write `pointer` where `etag` still is current (None: where nothing is). Raises Conflict."""
    lake.put(path, pointer.model_dump_json(indent=1).encode(), if_match=etag, if_absent=etag is None)


def source_pointer(lake: Lake, source_id: str) -> tuple[SourcePointer | None, str | None]:
    return read_pointer(lake, SourcePointer, paths.source_pointer(source_id))


def day_pointer(lake: Lake, day: date) -> tuple[DayPointer | None, str | None]:
    return read_pointer(lake, DayPointer, paths.day_pointer(day))


def published_days(lake: Lake) -> list[date]:
    """The days that have topics, oldest first; a day that lost all its posts to corrections is among them."""
    names = (info.path.rsplit("/", 1)[-1].removesuffix(".json") for info in lake.list(paths.DAYS))
    return sorted(date.fromisoformat(name) for name in names)


class LatestDay(BaseModel):
    """`catalog/latest.json`: the latest day that has posts, so that nobody lists all days to find it."""

    day: date | None


def latest_day(lake: Lake) -> date | None:
    """The latest day that has posts; None where none has."""
    pointer, _ = read_pointer(lake, LatestDay, paths.LATEST_DAY)
    return pointer.day if pointer else None


def note_latest(lake: Lake, day: date, posts: int) -> None:
    """Let `day`, which was published with so many posts, count for which day is the latest.

    A day that lost its last post gives the place to the one before it that has some, which takes a walk over the days.
    """

    def note() -> None:
        pointer, etag = read_pointer(lake, LatestDay, paths.LATEST_DAY)
        latest = pointer.day if pointer else None
        if posts and (latest is None or day > latest):
            move_pointer(lake, paths.LATEST_DAY, LatestDay(day=day), etag)
        elif not posts and day == latest:
            move_pointer(lake, paths.LATEST_DAY, LatestDay(day=_last_with_posts(lake)), etag)

    until_first(note, paths.LATEST_DAY)


def _last_with_posts(lake: Lake) -> date | None:
    for day in reversed(published_days(lake)):
        pointer, _ = day_pointer(lake, day)
        if pointer is not None and pointer.posts:
            return day
    return None
