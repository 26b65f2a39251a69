"""Looks at the run of a classification: publish what has succeeded, start again what has failed, come back later.

Every message may come twice or late; the record's state and attempt tell what is still to be done.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from classify.registry.summary import REFUSED_FILE, SUMMARY_FILE, Summary
from pipeline.looks import look, look_later
from pipeline.publish import publish
from shared import paths
from shared.databricks import RunState
from shared.documents import decode
from shared.errors import NotFound, TransientError
from shared.ledger import ENDED, MAX_REASON, FileRecord, Run, State
from shared.messages import ClassificationStarted, PostsLanded

if TYPE_CHECKING:
    from shared.services import Services

log = logging.getLogger("stacktopics.pipeline.watch")


def watch(services: Services, message: ClassificationStarted) -> FileRecord:
    """Look at a run: publish what has succeeded, try again what has failed, come back later while it runs.

    A file that the job could not read goes to quarantine: the next attempt could not read it either.

    Raises NotFound when the message names no record, TransientError when Databricks or the lake is busy.
    """
    record = services.ledger.get(message.source_id, message.version)
    if record.state is State.LANDED and record.attempt == message.attempt + 1:
        services.posts_landed.send(PostsLanded(source_id=record.source_id, version=record.version))
        return record
    if record.state in ENDED or record.attempt != message.attempt:
        _clear_away(services, record)
        log.info("%s: nothing to do for attempt %d, it is %s", record.key, message.attempt, record.state)
        return record
    if record.state is State.CLASSIFIED:
        return publish(services, record)
    state = look(services, message.run_id)
    if state.status == "running":
        if services.now() < _deadline(services, record):
            look_later(services, record, message.check + 1)
            return record
        services.job_runs.cancel(message.run_id)
        state = RunState("failed", f"cancelled after {services.settings.classification_deadline_seconds:.0f} s")
    if state.status == "succeeded":
        summary = _summary(services, record)
        if summary is not None:
            return publish(services, _classified(services, record, summary, state))
        state = RunState("failed", f"the run succeeded but {record.output}/{SUMMARY_FILE} is not there")
    if (reason := _refused(services, record)) is not None:
        return _quarantined(services, record, reason)
    return _failed(services, record, message.run_id, state)


def _deadline(services: Services, record: FileRecord) -> datetime:
    return record.runs[-1].launched_at + timedelta(seconds=services.settings.classification_deadline_seconds)


def _summary(services: Services, record: FileRecord) -> Summary | None:
    try:
        path = f"{record.output}/{SUMMARY_FILE}"
        return decode(Summary, services.lake.read(path), path)
    except NotFound:
        return None


def _classified(services: Services, record: FileRecord, summary: Summary, state: RunState) -> FileRecord:
    def classified(current: FileRecord) -> FileRecord | None:
        if current.state is not State.LAUNCHED:
            return None
        runs = [*current.runs[:-1], _ended(current.runs[-1], state)]
        return current.entered(State.CLASSIFIED, services.now(), counted=summary.counted, runs=runs)

    return services.ledger.change(record, classified)


def _ended(run: Run, state: RunState) -> Run:
    """The run with what the last look at it showed."""
    return run.model_copy(update={"page": state.page, "worked_seconds": state.worked_seconds})


def _failed(services: Services, record: FileRecord, run_id: int, state: RunState) -> FileRecord:
    """Note why a run failed; go on with the next attempt, or end loudly after the last one."""
    reason = f"run {run_id}: {state.message}"
    try:
        if said := services.job_runs.failure(run_id):
            reason += f"; {said}"
    except (NotFound, TransientError) as error:
        reason += f"; what it said could not be had: {error}"
    limit = services.settings.classification_attempts

    def next_attempt(current: FileRecord) -> FileRecord | None:
        if current.state is not State.LAUNCHED or current.attempt != record.attempt:
            return None
        noted = _ended(current.runs[-1], state).model_copy(update={"error": reason})
        runs = [*current.runs[:-1], noted]
        if current.attempt >= limit:
            return current.entered(State.FAILED, services.now(), runs=runs, reason=reason)
        return current.entered(State.LANDED, services.now(), runs=runs, attempt=current.attempt + 1)

    after = services.ledger.change(record, next_attempt)
    if after.state is State.FAILED:
        log.error("%s failed for good after %d attempts: %s", record.key, record.attempt, reason)
    elif after.state is State.LANDED:
        log.warning("%s: attempt %d failed, the next one starts: %s", record.key, record.attempt, reason)
        services.posts_landed.send(PostsLanded(source_id=record.source_id, version=record.version))
    return after


def _refused(services: Services, record: FileRecord) -> str | None:
    """Why the file cannot be classified, if the job says so."""
    try:
        said = services.lake.read(f"{record.output}/{REFUSED_FILE}").decode()
        return said.replace(paths.landing(record.source_id, record.version), record.source.name)[:MAX_REASON]
    except NotFound:
        return None


def _quarantined(services: Services, record: FileRecord, reason: str) -> FileRecord:
    """Move the landed bytes to quarantine; the reason is written first, so that no file lies there without one."""
    landing = paths.landing(record.source_id, record.version)
    target = paths.quarantine(record.source_id, record.version, record.source.name)
    why = paths.quarantine_reason(record.source_id, record.version)
    services.lake.put(why, record.source.refused_because(reason))
    services.lake.copy(landing, target, services.settings.landing_proof_share)

    def quarantined(current: FileRecord) -> FileRecord | None:
        if current.state is not State.LAUNCHED or current.attempt != record.attempt:
            return None
        moved = {"quarantine": target, "archive": None}
        return current.entered(State.QUARANTINED, services.now(), reason=reason, **moved)

    after = services.ledger.change(record, quarantined)
    if after.state is State.QUARANTINED:
        log.error("%s is in quarantine (%s): %s", after.key, target, reason)
    _clear_away(services, after)
    return after


def _clear_away(services: Services, record: FileRecord) -> None:
    """Of a file in quarantine only that copy stays: nothing shall be learned from it."""
    if record.state is State.QUARANTINED:
        services.lake.delete(paths.landing(record.source_id, record.version))
        services.lake.delete(paths.archive(record.file_day, record.source_id, record.version))
