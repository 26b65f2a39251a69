"""All that needs a person, whatever the reason, in one list; and what a person may do about a file."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, cast

from pydantic import BaseModel

from ingest.contracts import check_posts
from pipeline.conditions import Waiting, conditions
from pipeline.reconcile import last_pass
from pipeline.replay import start_again
from shared import paths, proof
from shared.alerts import Alert, remedy
from shared.errors import BadInput, NotFound
from shared.ledger import NEEDS_A_PERSON, FileRecord, FileState

if TYPE_CHECKING:
    from typing import BinaryIO

    from shared.services import Services

ALERTS = {FileState.QUARANTINED: Alert.FILE_QUARANTINED, FileState.FAILED: Alert.FILE_FAILED}


class Thing(BaseModel):
    """Something that needs a person, and what to do about it."""

    alert: Alert
    subject: str
    since: datetime
    reason: str
    remedy: str


def things(services: Services) -> list[Thing]:
    """All that needs a person, the newest first; its cost follows what is open, not history."""
    waiting = [*_of_the_last_pass(services), *conditions(services)]
    found = [*_files(services), *(_thing(each.alert, each.subject, each.since, each.reason) for each in waiting)]
    return sorted(found, key=lambda thing: thing.since, reverse=True)


def _thing(alert: Alert, subject: str, since: datetime, reason: str) -> Thing:
    return Thing(alert=alert, subject=subject, since=since, reason=reason, remedy=remedy(alert, subject))


def _files(services: Services) -> Iterator[Thing]:
    for source_id, version in services.ledger.waiting_for_a_person():
        record = services.ledger.find(source_id, version)
        if record is not None and record.state in ALERTS:
            yield _thing(ALERTS[record.state], record.file, record.since, record.reason or "no reason is known")


def _of_the_last_pass(services: Services) -> list[Waiting]:
    """What the last pass of reconcile could not end, and is still open."""
    found = last_pass(services)
    return [waiting for waiting in found.waiting if _is_still_so(services, waiting)] if found else []


def _is_still_so(services: Services, waiting: Waiting) -> bool:
    if waiting.alert is not Alert.FILE_UNFINISHED:
        return True
    container, _, name = waiting.subject.partition("/")
    try:
        return services.source_blob(container, name).version().last_modified == waiting.since
    except NotFound:
        return False


def retry(services: Services, record: FileRecord) -> FileRecord:
    """Let a file that was refused, or that failed, be classified again.

    Raises BadInput when it does not need a person, or still breaks its contract.
    """
    if record.state not in NEEDS_A_PERSON:
        raise BadInput(f"{record.file} is {record.state}: only a file that failed or lies in quarantine is retried")
    archive = paths.archive(record.file_day, record.source_id, record.version)
    if record.quarantine is not None:
        with services.lake.open(record.quarantine) as file:
            rows = check_posts(cast("BinaryIO", file), record.source.name).rows
        proof.copy(services.lake, record.quarantine, archive, 1.0)
        return start_again(services, record, rows=rows, archive=archive, quarantine=None)
    return start_again(services, record)


def discard(services: Services, record: FileRecord) -> FileRecord:
    """End a file that was refused, or that failed, without counting it; its bytes stay where they are.

    Raises BadInput when it does not need a person.
    """
    if record.state not in NEEDS_A_PERSON:
        raise BadInput(f"{record.file} is {record.state}: only a file that failed or lies in quarantine is discarded")

    def discarded(current: FileRecord) -> FileRecord | None:
        if current.state not in NEEDS_A_PERSON:
            return None
        return current.entered(FileState.DISCARDED, services.now())

    after = services.ledger.change(record, discarded)
    services.ledger.close(after)
    return after


def discard_message(services: Services, subject: str) -> None:
    """Delete a poison message that names no file; `subject` is `<queue>/<message id>`. Raises NotFound."""
    name, _, number = subject.partition("/")
    queue = services.queue(name)
    for letter in queue.letters():
        if letter.id == number:
            queue.discard(letter)
            _forget(services, subject)
            return
    raise NotFound(f"no message {subject}: reconcile may be holding it, try again in half a minute")


def _forget(services: Services, subject: str) -> None:
    """Remove something from what the last pass could not end."""
    found = last_pass(services)
    if found is not None:
        found.waiting = [each for each in found.waiting if each.subject != subject]
        services.lake.put(paths.LAST_RECONCILE, found.model_dump_json(indent=1).encode())
