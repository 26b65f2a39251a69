"""The one step that a file version is ready for, found out from what is true of it.

Triggers, reconcile and commands only name a file. What is to be done is read from its blob, its record, its run and its
output, so a message that is lost, doubled, stale or poisoned delays a file and does nothing else.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ingest.posts import land_posts, recover
from pipeline.launch import launch
from pipeline.publish import publish
from pipeline.watch import wake_next, watch
from pipeline.withdraw import take_back
from shared import paths
from shared.alerts import Alert, raise_alert
from shared.ledger import AT_REST, ENDED, NEEDS_A_PERSON, FileRecord, FileState

if TYPE_CHECKING:
    from shared.services import Services
    from shared.storage import SourceBlob

log = logging.getLogger("stacktopics.pipeline.advance")


def advance(services: Services, source_id: str, version: str) -> FileRecord:
    """Do the next step of a file version; returns its record after it.

    Raises NotFound when it has no record, TransientError when a service is busy.
    """
    record = services.ledger.get(source_id, version)
    before = record.state
    record = _step(services, record)
    if record.state in AT_REST:
        _came_to_rest(services, record, before)
    return record


def advance_blob(services: Services, blob: SourceBlob) -> FileRecord | None:
    """Land what lies in a blob of the incoming container, if it is a whole file of posts; returns its record."""
    record = land_posts(services, blob)
    if record is not None and record.state in AT_REST:
        _came_to_rest(services, record, FileState.ARRIVING)
    return record


def _came_to_rest(services: Services, record: FileRecord, before: FileState) -> None:
    """Clear away, raise an alert where a person is needed, and wake the file that waits for the free slot."""
    became_so = record.state in NEEDS_A_PERSON and record.state is not before
    is_news = became_so and services.ledger.is_open(record)
    clear_away(services, record)
    if is_news:
        alert = Alert.FILE_FAILED if record.state is FileState.FAILED else Alert.FILE_QUARANTINED
        raise_alert(services, alert, record.file, record.reason or "no reason is known")
    if before in (FileState.LAUNCHED, FileState.CLASSIFIED):
        wake_next(services)


def _step(services: Services, record: FileRecord) -> FileRecord:
    match record.state:
        case FileState.ARRIVING:
            blob = services.source_blob(record.source.container, record.source.name)
            return land_posts(services, blob) or recover(services, record)
        case FileState.LANDED:
            return launch(services, record)
        case FileState.LAUNCHED:
            return watch(services, record)
        case FileState.CLASSIFIED:
            return publish(services, record)
        case FileState.WITHDRAWN if services.ledger.is_open(record):
            take_back(services, record)
            return record
        case _:
            return record


def clear_away(services: Services, record: FileRecord) -> None:
    """Delete what a file version that is at rest needs no more, and take it from the open ones if it has ended.

    Of a file in quarantine only that copy stays: no training may learn from it.
    """
    services.lake.delete(paths.landing(record.source_id, record.version))
    if record.state is FileState.QUARANTINED:
        services.lake.delete(paths.archive(record.file_day, record.source_id, record.version))
    if record.output and len(record.runs) > 1:
        for part in list(services.lake.unfinished(record.output)):  # of runs that died
            services.lake.delete(part.path)
    if record.state in ENDED:
        services.ledger.close(record)
    else:
        services.ledger.park(record)
