"""Looking at runs: now, and later by a message to oneself. No function waits for a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.databricks import RunState
from shared.errors import NotFound
from shared.messages import ClassificationStarted

if TYPE_CHECKING:
    from shared.ledger import FileRecord
    from shared.services import Services


def look(services: Services, run_id: int) -> RunState:
    """The state of a run; one that Databricks no longer knows has failed."""
    try:
        return services.job_runs.look(run_id)
    except NotFound as error:
        return RunState("failed", str(error))


def look_later(services: Services, record: FileRecord, check: int) -> None:
    """Send the message that brings look number `check` at the record's last run, when that look is due."""
    message = ClassificationStarted(
        source_id=record.source_id,
        version=record.version,
        attempt=record.attempt,
        run_id=record.runs[-1].run_id,
        check=check,
    )
    services.classification_runs.send(message, services.settings.watch_delay(check))
