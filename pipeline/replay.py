"""Classifying files again from the archive."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel

from shared import paths, proof
from shared.catalog import day_pointer
from shared.documents import decode
from shared.errors import BadInput, Conflict, NotFound
from shared.ledger import AT_REST, FileRecord, FileState
from shared.messages import PostsLanded

if TYPE_CHECKING:
    from shared.services import Services

log = logging.getLogger("stacktopics.pipeline.replay")

POLL_SECONDS = 1.0
REPLAYABLE = frozenset({FileState.PUBLISHED, FileState.FAILED, FileState.CANCELLED})


class Plan(BaseModel):
    """A replay that is under way; `runs/replay.json`. A second call that asks for the same goes on with it."""

    asked_for: str
    started_at: datetime


class Forecast(NamedTuple):
    """What a replay would do."""

    files: int
    posts: int
    seconds: float
    """From the time that the last run of each file worked, without waiting."""


def files_of_days(services: Services, since: date, until: date) -> list[FileRecord]:
    """The records of the file versions that count on these days, oldest day first, each once."""
    found: dict[tuple[str, str], FileRecord] = {}
    day = since
    while day <= until:
        pointer, _ = day_pointer(services.lake, day)
        for source_id, output in (pointer.sources if pointer else {}).items():
            key = (source_id, output.split("/")[2])
            if key not in found:
                found[key] = services.ledger.get(*key)
        day += timedelta(days=1)
    return list(found.values())


def newest_version(services: Services, which: str) -> FileRecord:
    """The newest version of a file, given its blob's path (with or without the container) or its source id.

    Raises NotFound.
    """
    container, _, name = which.partition("/")
    candidates = [which, paths.source_id(services.settings.posts_container, which)]
    candidates += [paths.source_id(container, name)] if name else []
    for source_id in candidates:
        if versions := services.ledger.versions(source_id) if "/" not in source_id else []:
            records = [services.ledger.get(source_id, version) for version in versions]
            return max(records, key=lambda record: record.sequence)
    raise NotFound(f"no file {which} was seen: give the blob's path in the container, or the id that `status` shows")


def forecast(records: Sequence[FileRecord], parallel: int) -> Forecast:
    """What replaying these would do, `parallel` at once."""
    seconds = [run.worked_seconds for record in records for run in record.runs[-1:] if run.worked_seconds]
    posts = sum(record.counted or 0 for record in records)
    return Forecast(len(records), posts, sum(seconds) / max(1, parallel))


def replay(
    services: Services,
    records: Sequence[FileRecord],
    *,
    asked_for: str,
    model: str | None = None,
    parallel: int = 4,
    tell: Callable[[int, int], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> list[FileRecord]:
    """Classify these again, `parallel` at once, and wait until they have ended; returns their records.

    `asked_for` names the request: after a call that died, one with the same name leaves out what was done.
    `tell` is called with how many have ended and how many there are. What counts is replaced when each is published.
    Raises BadInput for a file that cannot be replayed.
    """
    for record in records:
        if record.state not in REPLAYABLE and record.state in AT_REST:
            raise BadInput(
                f"{record.file} is {record.state}: only a file that counts, failed or was cancelled is replayed"
            )
    plan = _plan(services, asked_for)
    waiting = [record for record in records if "asked" not in record.times or record.times["asked"] < plan.started_at]
    under_way = [record for record in records if record not in waiting]
    ended: list[FileRecord] = []
    while waiting or under_way:
        while waiting and len(under_way) < parallel:
            under_way.append(start_again(services, waiting.pop(0), model=model, replayed=True))
        now = [services.ledger.get(record.source_id, record.version) for record in under_way]
        ended += [record for record in now if record.state in AT_REST]
        under_way = [record for record in now if record.state not in AT_REST]
        if tell is not None:
            tell(len(ended), len(records))
        if under_way:
            sleep(POLL_SECONDS)
    services.lake.delete(paths.REPLAY)
    return ended


def _plan(services: Services, asked_for: str) -> Plan:
    """The plan of this name that is under way, or a new one. Raises Conflict when another is under way."""
    plan = Plan(asked_for=asked_for, started_at=services.now())
    try:
        services.lake.put(paths.REPLAY, plan.model_dump_json().encode(), if_absent=True)
    except Conflict:
        before = decode(Plan, services.lake.read(paths.REPLAY), paths.REPLAY)
        if before.asked_for != asked_for:
            raise Conflict(
                f"another replay is under way since {before.started_at:%Y-%m-%d %H:%M}: {before.asked_for}; ask for"
                f" that again to go on with it, or delete {paths.REPLAY}"
            ) from None
        return before
    return plan


def start_again(
    services: Services, record: FileRecord, *, model: str | None = None, replayed: bool = False, **changes: object
) -> FileRecord:
    """Bring the bytes of a file version that is at rest back to landing, and have it classified from there.

    Raises NotFound when its bytes are not in the archive.
    """
    archive = str(changes.get("archive") or record.archive)
    proof.copy(services.lake, archive, paths.landing(record.source_id, record.version), 1.0)
    services.ledger.reopen(record)
    now = services.now()
    anew: dict[str, object] = {"model": model, "topic_source": None, "output": None} if replayed or model else {}

    def landed(current: FileRecord) -> FileRecord | None:
        if current.state not in AT_REST:
            return None
        times = {**current.times, "asked": now}
        update = {"times": times, "attempt": current.attempt + 1, "replay": current.replay + replayed, "reason": None}
        asked = current.model_copy(update=update)
        return asked.entered(FileState.LANDED, now, not_before=None, next_look=None, **anew, **changes)

    after = services.ledger.change(record, landed)
    services.ledger.close_inbox(after)
    services.posts_landed.send(PostsLanded(source_id=after.source_id, version=after.version))
    log.info("%s is classified again", after.file)
    return after
