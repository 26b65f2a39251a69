"""Find what no event will bring up, and do its next step: the same step that the triggers do.

Each pass looks at what is open, never at history: the blobs in the incoming container, the poison queues, the notes of
file versions that have not ended, and the next few days of a slow walk over the published ones.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel

from ingest.whole import why_not_ours, why_unfinished
from pipeline.advance import advance, advance_blob
from pipeline.conditions import COPY_DEAD_AFTER, Waiting, conditions
from pipeline.pace import trouble_delay
from pipeline.publish import republish
from shared import paths
from shared.alerts import Alert, raise_alert
from shared.catalog import day_pointer, latest_day, source_pointer
from shared.documents import decode
from shared.errors import BadInput, NotFound, StackTopicsError, TransientError
from shared.ledger import AT_REST, FileRecord, FileState, Trouble
from shared.messages import Message
from shared.queues import BLOB_POISON_QUEUE, Letter, poison_queues

if TYPE_CHECKING:
    from shared.services import Services
    from shared.storage import BlobVersion

Item = TypeVar("Item")

log = logging.getLogger("stacktopics.pipeline.reconcile")

WORKERS = 8
UNREACHABLE_AFTER = 3
"""After so many steps in a row that found a service unavailable, the next pass does the rest."""
YOUNG_BLOB_SECONDS = 30
"""A blob that is younger is left to its event."""
STUCK_AFTER = timedelta(hours=1)
"""How long a step may fail before an alert is raised; it is repeated all the same."""
DAYS_A_PASS, DAYS_BACK, NEWEST_DAYS = 20, 3_660, 3
"""Published days that a pass checks, how far back the walk goes before it begins again, and the newest days, which
every pass checks."""
SOURCES_A_DAY = 20
"""Of a day, how many of its files a pass compares with what counts."""
UNNAMED_AFTER = timedelta(days=7)
"""How long topics files that no pointer names are kept: somebody may be reading them."""


class Pass(BaseModel):
    """What one pass found and did; `runs/reconcile/last.json`."""

    started_at: datetime
    seconds: float = 0
    blobs: int = 0
    """Blobs in the incoming container that were looked at."""
    landed: int = 0
    """Of them, those that became files."""
    open_files: int = 0
    advanced: int = 0
    """Open files that stood still and went on."""
    poison: int = 0
    """Poison messages that were cleared."""
    deleted: int = 0
    """Temporary and unnamed files that were deleted."""
    days: int = 0
    """Published days that were checked."""
    mended_days: int = 0
    finished_copy: str | None = None
    """The week of a reference copy that had died half published, and was finished."""
    waiting: list[Waiting] = []
    """What needs a person, and only a pass finds out."""
    conditions: list[Waiting] = []
    """What else needed a person during the pass."""
    faults: list[str] = []
    """What could not be done in this pass."""
    next_day: date | None = None
    """Where the walk over the published days goes on."""


def reconcile(services: Services, *, dry_run: bool = False) -> Pass:
    """Do the next step of whatever stands still; returns what was found and done, which the lake keeps as well.

    A dry run counts and changes nothing. Raises TransientError when the lake is unavailable.
    """
    clock = time.monotonic()
    before = last_pass(services)
    found = Pass(started_at=services.now(), next_day=before.next_day if before else None)
    for part in (_poison, _blobs, _open_files, _days, _reference, _conditions):
        try:
            part(services, found, dry_run)
        except StackTopicsError as error:
            found.faults.append(f"{part.__name__.strip('_')}: {error}")
    found.seconds = round(time.monotonic() - clock, 3)
    if not dry_run:
        services.lake.put(paths.LAST_RECONCILE, found.model_dump_json(indent=1).encode())
        _alert(services, found, before)
        log.info(
            "reconcile: %s", json.dumps(found.model_dump(mode="json", exclude={"waiting", "conditions", "faults"}))
        )
    return found


def last_pass(services: Services) -> Pass | None:
    """What the last pass found and did."""
    try:
        return decode(Pass, services.lake.read(paths.LAST_RECONCILE), paths.LAST_RECONCILE)
    except NotFound:
        return None


def _alert(services: Services, found: Pass, before: Pass | None) -> None:
    """Raise an alert for whatever the last pass did not find."""
    known = {(each.alert, each.subject) for each in (*before.waiting, *before.conditions)} if before else set()
    for each in (*found.waiting, *found.conditions):
        if (each.alert, each.subject) not in known:
            raise_alert(services, each.alert, each.subject, each.reason)
    for fault in found.faults:
        log.warning("reconcile could not do all: %s", fault)


# ---- poison messages ------------------------------------------------------------------------------------------------


def _poison(services: Services, found: Pass, dry_run: bool) -> None:
    """Clear the messages that failed for good: their files are found by what is true of them, below.

    A message that names no file is kept for a person.
    """
    for name in poison_queues(services.settings):
        queue = services.queue(name)
        letters = queue.letters()
        for letter in letters:
            reason = _unreadable(name, letter)
            if reason is not None:
                subject = f"{name}/{letter.id}"
                waiting = Waiting(alert=Alert.MESSAGE_UNREADABLE, subject=subject, since=letter.since, reason=reason)
                found.waiting.append(waiting)
                continue
            found.poison += 1
            if not dry_run:
                queue.discard(letter)


def _unreadable(queue: str, letter: Letter) -> str | None:
    """Why a poison message names no file; None where it does."""
    try:
        if queue == BLOB_POISON_QUEUE:
            document = json.loads(letter.body)
            return None if document["BlobName"] and document["ContainerName"] else "it names no blob"
        decode(Message, letter.body, f"a message of {queue}")
    except (BadInput, ValueError, KeyError, TypeError) as error:
        return f"it is not a message of this app: {error}"
    return None


# ---- blobs ----------------------------------------------------------------------------------------------------------


def _blobs(services: Services, found: Pass, dry_run: bool) -> None:
    """Land the files whose event was missed, and report those that stay unfinished."""
    now, settings = services.now(), services.settings
    late = timedelta(seconds=settings.posts_unfinished_after_seconds)

    def look(version: BlobVersion) -> None:
        age = now - version.last_modified
        if why_not_ours(version) or age < timedelta(seconds=YOUNG_BLOB_SECONDS):
            return
        found.blobs += 1
        why = why_unfinished(version)
        if dry_run:
            return
        if why is None:
            if advance_blob(services, services.source_blob(version.container, version.name)) is not None:
                found.landed += 1
                return
            why = "it does not end as Parquet does"
        if age > late:
            since, subject = version.last_modified, f"{version.container}/{version.name}"
            found.waiting.append(Waiting(alert=Alert.FILE_UNFINISHED, subject=subject, since=since, reason=why))

    _each(found, services.arrived_blobs(), look)


# ---- open files -----------------------------------------------------------------------------------------------------


def _open_files(services: Services, found: Pass, dry_run: bool) -> None:
    """Do the next step of the file versions that stand still."""
    open_files = services.ledger.open_files()
    found.open_files = len(open_files)

    def look(key: tuple[str, str]) -> None:
        record = services.ledger.find(*key)
        if record is None:
            if not dry_run:
                services.ledger.forget(*key)  # the delivery died before its record; its blob is still there
            return
        if not _stands_still(services, record):
            _report_trouble(found, services, record)
            return
        found.advanced += 1
        if not dry_run:
            _go_on(services, found, record)

    _each(found, open_files, look)


def _stands_still(services: Services, record: FileRecord) -> bool:
    """Whether a record is where a message should have brought it on long ago."""
    if record.state in AT_REST:
        return True  # and was not cleared away
    due = {
        FileState.ARRIVING: record.working_until,
        FileState.LANDED: record.not_before,
        FileState.LAUNCHED: record.next_look,
    }.get(record.state)
    patience = timedelta(seconds=services.settings.reconcile_patience_seconds)
    trouble = record.trouble.next if record.trouble else record.since
    return services.now() >= max((due or record.since) + patience, trouble)


def _go_on(services: Services, found: Pass, record: FileRecord) -> None:
    """Do the record's next step; if it fails, note in the record why and since when."""
    try:
        advance(services, record.source_id, record.version)
    except StackTopicsError as error:
        record = _troubled(services, record, error)
        _report_trouble(found, services, record)
        raise


def _troubled(services: Services, record: FileRecord, error: StackTopicsError) -> FileRecord:
    now = services.now()

    def troubled(current: FileRecord) -> FileRecord | None:
        if current.state is not record.state:
            return None
        before = current.trouble
        tries = before.tries + 1 if before else 1
        may_pass = isinstance(error, TransientError)  # then every pass tries: it heals as soon as the service is back
        trouble = Trouble(
            since=before.since if before else now,
            tries=tries,
            reason=f"{type(error).__name__}: {error}",
            next=now if may_pass else now + trouble_delay(tries),
        )
        return current.model_copy(update={"trouble": trouble})

    return services.ledger.change(record, troubled)


def _report_trouble(found: Pass, services: Services, record: FileRecord) -> None:
    trouble = record.trouble
    if trouble is not None and services.now() - trouble.since >= STUCK_AFTER:
        reason = f"it stays {record.state} after {trouble.tries} tries: {trouble.reason}"
        subject = record.file
        found.waiting.append(Waiting(alert=Alert.FILE_STUCK, subject=subject, since=trouble.since, reason=reason))


# ---- days -----------------------------------------------------------------------------------------------------------


def _days(services: Services, found: Pass, dry_run: bool) -> None:
    """Walk on over the published days: write missing topics files, recount days that were counted from anything else
    than what counts now, and delete old files that no pointer names."""
    latest = latest_day(services.lake)
    if latest is None:
        return
    day = found.next_day if found.next_day and found.next_day <= latest else latest
    if (latest - day).days > DAYS_BACK:
        day = latest
    walk = [day - timedelta(days=back) for back in range(DAYS_A_PASS)]
    found.next_day = walk[-1] - timedelta(days=1)
    days = sorted({*walk, *(latest - timedelta(days=back) for back in range(NEWEST_DAYS))})

    def check(day: date) -> None:
        pointer, _ = day_pointer(services.lake, day)
        if pointer is None:
            return
        found.days += 1
        named = {pointer.parquet, pointer.csv, pointer.sums}
        folders = (paths.topics_folder(day), paths.day_sums_folder(day))
        files = {info.path: info for folder in folders for info in services.lake.list(folder)}
        checked = _some(sorted(pointer.sources.items()), services.now())
        stale = [source for source, output in checked if _moved(services, source, output)]
        if (named - files.keys() or stale) and not dry_run:
            try:
                found.mended_days += len(republish(services, [day], stale, rewrite=bool(named - files.keys())))
            except (BadInput, NotFound) as error:
                found.waiting.append(
                    Waiting(alert=Alert.DAY_DAMAGED, subject=str(day), since=pointer.published_at, reason=str(error))
                )
        for path in files.keys() - named:
            if services.now() - files[path].last_modified > UNNAMED_AFTER:
                found.deleted += 1
                if not dry_run:
                    services.lake.delete(path)

    _each(found, days, check)


def _some(sources: list[tuple[str, str]], now: datetime) -> list[tuple[str, str]]:
    """SOURCES_A_DAY of them, others in each minute, so that a pass costs the same however many files a day has."""
    if len(sources) <= SOURCES_A_DAY:
        return sources
    first = int(now.timestamp() // 60) * SOURCES_A_DAY % len(sources)
    return (sources + sources)[first : first + SOURCES_A_DAY]


def _moved(services: Services, source_id: str, output: str) -> bool:
    pointer, _ = source_pointer(services.lake, source_id)
    return pointer is None or pointer.output != output


# ---- what is no file -----------------------------------------------------------------------------------------------


def _reference(services: Services, found: Pass, dry_run: bool) -> None:
    """Finish a weekly copy that died half published, and delete what dead copies left."""
    from ingest.reference.copy import finish_publication
    from ingest.reference.snapshot import delete_leftovers

    if dry_run:
        return
    finished = finish_publication(services, COPY_DEAD_AFTER)
    found.finished_copy = finished.week if finished else None
    delete_leftovers(services, services.now())


def _conditions(services: Services, found: Pass, dry_run: bool) -> None:
    """Note what is wrong and is no file, so that the next pass knows what is news."""
    del dry_run
    found.conditions = conditions(services)


# ---- many at once ---------------------------------------------------------------------------------------------------


def _each(found: Pass, items: Iterable[Item], do: Callable[[Item], None]) -> None:
    """Call `do` for each item, some at a time; faults are noted, and the other items go on.

    After UNREACHABLE_AFTER faults in a row that say a service is unavailable, the rest is left to the next pass.
    """
    in_a_row, lock = 0, Lock()

    def guarded(item: Item) -> None:
        nonlocal in_a_row
        if in_a_row >= UNREACHABLE_AFTER:
            return
        try:
            do(item)
            in_a_row = 0
        except StackTopicsError as error:
            with lock:
                in_a_row = in_a_row + 1 if isinstance(error, TransientError) else 0
                found.faults.append(str(error))

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(guarded, items))
