"""Taking a file back: it stops counting, and its days are published anew without it."""

from __future__ import annotations

import logging
from datetime import date
from typing import TYPE_CHECKING

from pipeline import publish
from shared import paths
from shared.ledger import FileRecord, FileState

if TYPE_CHECKING:
    from shared.services import Services

log = logging.getLogger("stacktopics.pipeline.withdraw")


def withdraw(services: Services, record: FileRecord, *, erase: bool = False) -> list[date]:
    """Take a file back, with all its versions up to this one; returns the days that were published anew without it.

    Its bytes stay in the archive, unless `erase` deletes them, those in quarantine and the rows of its posts.
    The records say first what is wanted, so that reconcile goes on with it after a crash.
    """
    records = [services.ledger.get(record.source_id, version) for version in services.ledger.versions(record.source_id)]
    earlier = [each for each in records if each.sequence <= record.sequence]

    def withdrawn(current: FileRecord) -> FileRecord | None:
        if current.state is FileState.WITHDRAWN and current.erase >= erase:
            return None
        changes = {"reason": "it was withdrawn", "erase": erase or current.erase}
        return current.entered(FileState.WITHDRAWN, services.now(), **changes)

    days: set[date] = set()
    for each in earlier:
        services.ledger.reopen(each)
        if each.state is FileState.LAUNCHED:
            services.job_runs.cancel(each.runs[-1].run_id)
        days |= set(take_back(services, services.ledger.change(each, withdrawn)))
    log.warning("%s was withdrawn%s: %d days", record.file, " and erased" if erase else "", len(days))
    return sorted(days)


def take_back(services: Services, record: FileRecord) -> list[date]:
    """Do all that a withdrawn file version needs; returns its days. Repeated, it ends in the same place."""
    days = publish.withdraw(services, record)
    services.lake.delete(paths.landing(record.source_id, record.version))
    if record.erase:
        _erase(services, record)
    services.ledger.close(record)
    return days


def _erase(services: Services, record: FileRecord) -> None:
    folders = [
        paths.post_topics_of(record.source_id, record.version),
        paths.quarantined(record.source_id, record.version),
    ]
    found = [info.path for folder in folders for info in services.lake.list(folder)]
    own = f"/{record.version}-{record.source_id}.parquet"
    found += [info.path for info in services.lake.list(paths.QUESTION_TOPICS) if info.path.endswith(own)]
    for path in found:
        services.lake.delete(path)
    services.lake.delete(paths.archive(record.file_day, record.source_id, record.version))
