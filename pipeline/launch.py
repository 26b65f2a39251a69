"""The step from `landed` to `launched`: start the Databricks run that classifies a file version."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from classify.registry.models import whole_model
from pipeline.pace import is_due, look_delay
from pipeline.publish import SUPERSEDED_BECAUSE, counts_already_newer
from shared import paths
from shared.databricks import idempotency_token
from shared.ledger import FileRecord, FileState, JobRun
from shared.messages import ClassificationStarted, PostsLanded

if TYPE_CHECKING:
    from shared.services import Services

log = logging.getLogger("stacktopics.pipeline.launch")


def launch(services: Services, record: FileRecord) -> FileRecord:
    """Start the next run of a landed file and have it watched.

    The token is the same for the same attempt, so a crash after the start finds the run that was started. Where the
    next start is not due yet, only the message that brings it is sent again.
    Raises TransientError when Databricks or the lake is busy, ModelError when no model in the lake is whole.
    """
    if counts_already_newer(services, record):
        return _superseded(services, record)
    now = services.now()
    if record.not_before and not is_due(record, now):
        services.posts_landed.send(
            PostsLanded(source_id=record.source_id, version=record.version), record.not_before - now
        )
        return record
    record = _with_model(services, record)
    run = _started(services, record)
    first_look = look_delay(services.settings, run.launched_at, run.launched_at, waits=True)

    def launched(current: FileRecord) -> FileRecord | None:
        if current.state is not FileState.LANDED or current.attempt != run.attempt:
            return None
        due = {"not_before": None, "next_look": run.launched_at + first_look}
        return current.entered(FileState.LAUNCHED, run.launched_at, runs=[*current.runs, run], **due)

    record = services.ledger.change(record, launched)
    if record.state is FileState.LAUNCHED:
        log.info("%s: attempt %d is run %d", record.key, run.attempt, run.run_id)
        look_later(services, record)
    return record


def look_later(services: Services, record: FileRecord) -> None:
    """Send the message that brings the next look at the record's run when it is due."""
    message = ClassificationStarted(source_id=record.source_id, version=record.version)
    due = record.next_look or services.now()
    services.classification_runs.send(message, due - services.now())


def _with_model(services: Services, record: FileRecord) -> FileRecord:
    """The record with the model and the output that every attempt uses, so that attempts write the same."""
    if record.output is not None:
        return record
    model = record.model or whole_model(services.lake)
    topic_source = services.settings.topic_source
    output = paths.post_topics(record.source_id, record.version, model, topic_source, record.replay)
    fixed = {"model": model, "topic_source": topic_source, "output": output}

    def decided(current: FileRecord) -> FileRecord | None:
        return current.model_copy(update=fixed) if current.output is None else None

    return services.ledger.change(record, decided)


def _started(services: Services, record: FileRecord) -> JobRun:
    settings = services.settings
    token = idempotency_token(record.source_id, record.version, record.attempt)
    parameters = {
        "lake_root": settings.lake_uri,
        "source_id": record.source_id,
        "version": record.version,
        "file_day": record.file_day.isoformat(),
        "model": record.model or "",
        "topic_source": record.topic_source or settings.topic_source,
        "engine": settings.classify_engine,
        "spark_from_bytes": str(settings.classify_spark_from_bytes),
        "replay": str(record.replay),
    }
    now = services.now()
    run_id = services.job_runs.start(settings.databricks_job_id, parameters, token)
    return JobRun(attempt=record.attempt, token=token, run_id=run_id, launched_at=now)


def _superseded(services: Services, record: FileRecord) -> FileRecord:
    def superseded(current: FileRecord) -> FileRecord | None:
        if current.state is not FileState.LANDED:
            return None
        return current.entered(FileState.SUPERSEDED, services.now(), reason=SUPERSEDED_BECAUSE)

    return services.ledger.change(record, superseded)
