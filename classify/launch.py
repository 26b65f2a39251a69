"""From a landed file to a published one: start the Databricks run, look at it from time to time, start it again.

No function waits for a run: a look that finds it running sends itself a later message. Every message may come
twice or late; the record's state and attempt tell what is still to be done.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from classify.models import current_version
from classify.publish import SUPERSEDED_BECAUSE, counts_already_newer, publish
from classify.summary import REFUSED, SUMMARY, Summary
from shared import paths
from shared.databricks import RunState, idempotency_token
from shared.documents import decode
from shared.errors import NotFound, TerminalError, TransientError
from shared.ledger import ENDED, MAX_REASON, FileRecord, Run, State
from shared.messages import ClassificationStarted, PostsLanded

if TYPE_CHECKING:
    from shared.services import Services

log = logging.getLogger("stacktopics.classify.launch")

TRAININGS_A_WEEK = 7
"""Runs that may be started in a week as long as all before them have failed."""


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
        _look_later(services, record, check=0)
    return record


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
    state = _look(services, message.run_id)
    if state.status == "running":
        if services.now() < _deadline(services, record):
            _look_later(services, record, message.check + 1)
            return record
        services.job_runs.cancel(message.run_id)
        state = RunState("failed", f"cancelled after {services.settings.classification_deadline_seconds:.0f} s")
    if state.status == "succeeded":
        summary = _summary(services, record)
        if summary is not None:
            return publish(services, _classified(services, record, summary, state))
        state = RunState("failed", f"the run succeeded but {record.output}/{SUMMARY} is not there")
    if (reason := _refused(services, record)) is not None:
        return _quarantined(services, record, reason)
    return _failed(services, record, message.run_id, state)


def retrain(services: Services) -> int | None:
    """Start this week's training run; returns its id, or None where no training job is set.

    Called again in the same week it finds the same run, unless that failed or the settings of the training changed:
    then it starts the next one. What comes of it is for the run to say: `runs/training/…` in the lake.
    Raises TransientError when Databricks is busy, TerminalError when every run that a week may have has failed.
    """
    settings = services.settings
    if settings.databricks_training_job_id is None:
        log.warning("DATABRICKS_TRAINING_JOB_ID is not set: the topic model stays as it is")
        return None
    today = services.now().date()
    learned = {
        "lake_root": settings.lake_uri,
        "days": str(settings.training_days),
        "max_questions": str(settings.training_max_questions),
        "topics": str(settings.training_topics),
        "margin": str(settings.training_margin),
    }
    for attempt in range(1, TRAININGS_A_WEEK + 1):
        token = idempotency_token("training", paths.iso_week(services.now()), *learned.values(), attempt)
        parameters = learned | {"until": today.isoformat()}
        run_id = services.job_runs.start(settings.databricks_training_job_id, parameters, token)
        state = _look(services, run_id)
        if state.status != "failed":
            log.info("the training until %s is run %d, attempt %d of this week", today, run_id, attempt)
            return run_id
        log.warning("training run %d has failed: %s", run_id, state.message)
    raise TerminalError(f"{TRAININGS_A_WEEK} training runs of this week have failed, the last one is {run_id}")


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


def _look(services: Services, run_id: int) -> RunState:
    try:
        return services.job_runs.look(run_id)
    except NotFound as error:
        return RunState("failed", str(error))


def _look_later(services: Services, record: FileRecord, check: int) -> None:
    message = ClassificationStarted(
        source_id=record.source_id,
        version=record.version,
        attempt=record.attempt,
        run_id=record.runs[-1].run_id,
        check=check,
    )
    services.classification_runs.send(message, services.settings.watch_delay(check))


def _deadline(services: Services, record: FileRecord) -> datetime:
    return record.runs[-1].launched_at + timedelta(seconds=services.settings.classification_deadline_seconds)


def _summary(services: Services, record: FileRecord) -> Summary | None:
    try:
        path = f"{record.output}/{SUMMARY}"
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
    """Note why a run failed; go on with the next attempt, or end loudly when there is none left."""
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
        said = services.lake.read(f"{record.output}/{REFUSED}").decode()
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


def _superseded(services: Services, record: FileRecord) -> FileRecord:
    services.lake.delete(paths.landing(record.source_id, record.version))

    def superseded(current: FileRecord) -> FileRecord | None:
        if current.state in ENDED:
            return None
        return current.entered(State.SUPERSEDED, services.now(), reason=SUPERSEDED_BECAUSE)

    return services.ledger.change(record, superseded)
