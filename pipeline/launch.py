"""Starts the Databricks run that classifies a landed file."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from classify.registry.models import current_version
from pipeline.looks import look_later
from pipeline.publish import SUPERSEDED_BECAUSE, counts_already_newer
from shared import paths
from shared.databricks import idempotency_token
from shared.ledger import ENDED, FileRecord, Run, State

if TYPE_CHECKING:
    from shared.messages import PostsLanded
    from shared.services import Services

log = logging.getLogger("stacktopics.pipeline.launch")


def launch(services: Services, message: PostsLanded) -> FileRecord:
    """Start the classification of a landed file and have it watched; a repeated message starts nothing new.

    The token is the same for the same attempt, so a crash after the start finds the run that was started.
    Raises NotFound when the message names no record, TransientError when Databricks or the lake is busy.
    """
    ledger = services.ledger
    record = ledger.get(message.source_id, message.version)
    if record.state is State.LANDED:
        if counts_already_newer(services, record):
            return _superseded(services, record)
        record = _with_model(services, record)
        run = _started(services, record)

        def launched(current: FileRecord) -> FileRecord | None:
            if current.state is not State.LANDED or current.attempt != run.attempt:
                return None
            return current.entered(State.LAUNCHED, run.launched_at, runs=[*current.runs, run])

        record = ledger.change(record, launched)
        log.info("%s: attempt %d is run %d", record.key, run.attempt, run.run_id)
    if record.state is State.LAUNCHED:
        look_later(services, record, check=0)
    return record


def _with_model(services: Services, record: FileRecord) -> FileRecord:
    """The record with the model and the output that every attempt uses, so that attempts write the same."""
    if record.model is not None:
        return record
    model = current_version(services.lake)
    output = paths.post_topics(record.source_id, record.version, model, services.settings.topic_source)

    def decided(current: FileRecord) -> FileRecord | None:
        return current.model_copy(update={"model": model, "output": output}) if current.model is None else None

    return services.ledger.change(record, decided)


def _started(services: Services, record: FileRecord) -> Run:
    settings = services.settings
    token = idempotency_token(record.source_id, record.version, record.attempt)
    parameters = {
        "lake_root": settings.lake_uri,
        "source_id": record.source_id,
        "version": record.version,
        "file_day": record.file_day.isoformat(),
        "model": record.model or "",
        "topic_source": settings.topic_source,
        "engine": settings.classify_engine,
        "spark_from_bytes": str(settings.classify_spark_from_bytes),
    }
    now = services.now()
    run_id = services.job_runs.start(settings.databricks_job_id, parameters, token)
    return Run(attempt=record.attempt, token=token, run_id=run_id, launched_at=now)


def _superseded(services: Services, record: FileRecord) -> FileRecord:
    services.lake.delete(paths.landing(record.source_id, record.version))

    def superseded(current: FileRecord) -> FileRecord | None:
        if current.state in ENDED:
            return None
        return current.entered(State.SUPERSEDED, services.now(), reason=SUPERSEDED_BECAUSE)

    return services.ledger.change(record, superseded)
