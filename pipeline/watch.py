"""The step from `launched` on: look at the run, publish what has succeeded, start again what has not.

Waiting is not failing. A run that waits for a slot is waited for; one that was skipped, or that the platform failed, is
started again with growing pauses and costs no attempt; one that a person cancelled stays cancelled; only what the job
itself fails counts towards CLASSIFICATION_ATTEMPTS.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from classify.registry.summary import REFUSED_FILE, SUMMARY_FILE, Summary
from pipeline.launch import look_later
from pipeline.pace import QUEUED_LOOK_SECONDS, is_due, look_delay, restart_delay
from pipeline.publish import publish
from shared import paths, proof
from shared.databricks import RunState
from shared.documents import decode
from shared.errors import NotFound, TransientError
from shared.ledger import MAX_REASON, FileRecord, FileState, JobRun, Outcome
from shared.messages import PostsLanded
from shared.quarantine import quarantine

if TYPE_CHECKING:
    from shared.services import Services

log = logging.getLogger("stacktopics.pipeline.watch")


def watch(services: Services, record: FileRecord) -> FileRecord:
    """Look at the run of a launched file version.

    A look that is not due does nothing, so of two chains of messages one ends. A file that
    the job could not read goes to quarantine: the next attempt could not read it either.
    Raises TransientError when Databricks or the lake is busy.
    """
    if not is_due(record, services.now()):
        return record
    run = record.runs[-1]
    state = look(services, run.run_id)
    if not state.is_over:
        because = _overdue(services, run, state)
        if because is None:
            return _look_again(services, record, state)
        run = _noted(services, record, because)
        services.job_runs.cancel(run.run_id)
        state = RunState("cancelled", because, state.page)
    if (summary := _summary(services, record)) is not None:
        classified = _classified(services, record, summary, state)
        _note_waiting(services, record, classified)
        return publish(services, classified)
    if state.status == "succeeded":
        state = RunState("failed", f"the run succeeded, but {record.output}/{SUMMARY_FILE} does not exist", state.page)
    if (reason := _refused(services, record)) is not None:
        return quarantine_landed(services, record, reason)
    return _over(services, record, run, state)


def look(services: Services, run_id: int) -> RunState:
    """The state of a run; one that Databricks no longer knows was lost by the platform."""
    try:
        return services.job_runs.look(run_id)
    except NotFound as error:
        return RunState("platform", str(error))


def _overdue(services: Services, run: JobRun, state: RunState) -> str | None:
    """Why a run that is not over must end, if it must: it has waited, or worked, for too long."""
    settings, now = services.settings, services.now()
    if run.cancelled_because:
        return run.cancelled_because
    if state.status == "waiting":
        limit, since, did = settings.classification_queue_seconds, run.launched_at, "waited for a slot"
    else:
        limit, since, did = settings.classification_deadline_seconds, run.began_at or now, "worked"
    return f"cancelled: it {did} for more than {limit:.0f} s" if now - since >= timedelta(seconds=limit) else None


def _noted(services: Services, record: FileRecord, because: str) -> JobRun:
    """Record that this app cancels the run before it does, so that nobody takes it for a person's decision."""

    def noted(current: FileRecord) -> FileRecord | None:
        if not _is_current(current, record) or current.runs[-1].cancelled_because:
            return None
        return _with_run(current, cancelled_because=because)

    return services.ledger.change(record, noted).runs[-1]


def _look_again(services: Services, record: FileRecord, state: RunState) -> FileRecord:
    """Note what the look showed, and have the run looked at again."""
    now, waits = services.now(), state.status == "waiting"
    is_behind = waits and any(first.key != record.key for first in services.ledger.longest_waiting(1))

    def looked(current: FileRecord) -> FileRecord | None:
        if not _is_current(current, record) or current.next_look != record.next_look:
            return None
        run = current.runs[-1]
        began = run.began_at if waits else run.began_at or now
        if is_behind:
            delay = timedelta(seconds=QUEUED_LOOK_SECONDS)
        else:
            since = (run.woken_at or run.launched_at) if waits else began or now
            delay = look_delay(services.settings, since, now, waits=waits)
            if waits and run.woken_at:  # who frees the next slot wakes it again
                delay = max(delay, timedelta(seconds=services.settings.watch_max_delay_seconds))
        noted = _with_run(current, waits=waits, began_at=began, page=state.page)
        return noted.model_copy(update={"next_look": now + delay})

    after = services.ledger.change(record, looked)
    if after.state is FileState.LAUNCHED and after.next_look != record.next_look:
        _note_waiting(services, record, after)
        look_later(services, after)
    return after


def _note_waiting(services: Services, before: FileRecord, after: FileRecord) -> None:
    """Keep the notes of who waits for a slot as the record is, and wake the next one when this one waits no more."""
    waited, waits = before.runs[-1].waits, after.state is FileState.LAUNCHED and after.runs[-1].waits
    if waits and not waited:
        services.ledger.note_waiting(after)
    elif waited and not waits:
        services.ledger.forget_waiting(before)
        wake_next(services)


def wake_next(services: Services) -> None:
    """Have the run looked at now that has waited longest for a slot: one has become free, or the one before it waits
    no more. So a waiting run is looked at rarely, but at once when its turn has come."""
    now = services.now()
    for first in services.ledger.longest_waiting(1):

        def woken(current: FileRecord) -> FileRecord | None:
            waits = current.state is FileState.LAUNCHED and current.runs[-1].waits
            if not waits or current.next_look is None or current.next_look <= now:
                return None
            return _with_run(current, woken_at=now).model_copy(update={"next_look": now})

        after = services.ledger.change(first, woken)
        if after.next_look == now:
            look_later(services, after)


def _is_current(current: FileRecord, record: FileRecord) -> bool:
    """Whether the record is still at the run that was looked at."""
    return current.state is FileState.LAUNCHED and current.attempt == record.attempt


def _with_run(record: FileRecord, **changes: object) -> FileRecord:
    """The record with its last run changed."""
    return record.model_copy(update={"runs": [*record.runs[:-1], record.runs[-1].model_copy(update=changes)]})


def _summary(services: Services, record: FileRecord) -> Summary | None:
    try:
        path = f"{record.output}/{SUMMARY_FILE}"
        return decode(Summary, services.lake.read(path), path)
    except NotFound:
        return None


def _classified(services: Services, record: FileRecord, summary: Summary, state: RunState) -> FileRecord:
    def classified(current: FileRecord) -> FileRecord | None:
        if not _is_current(current, record):
            return None
        ended = _with_run(current, page=state.page, worked_seconds=state.worked_seconds, outcome="succeeded")
        return ended.entered(FileState.CLASSIFIED, services.now(), counted=summary.counted, next_look=None)

    return services.ledger.change(record, classified)


def _over(services: Services, record: FileRecord, run: JobRun, state: RunState) -> FileRecord:
    """Note how a run ended without a result; start the next one now or later, or end."""
    outcome = _outcome(run, state)
    reason = f"run {run.run_id}: {state.message}"
    if outcome == "failed":
        reason += _said(services, run.run_id)

    def ended(current: FileRecord) -> FileRecord | None:
        if not _is_current(current, record):
            return None
        noted = _with_run(
            current, page=state.page, worked_seconds=state.worked_seconds, outcome=outcome, error=reason[:MAX_REASON]
        )
        return _after(services, noted, outcome, reason[:MAX_REASON])

    after = services.ledger.change(record, ended)
    _note_waiting(services, record, after)
    if after.state is FileState.FAILED:
        log.error("%s failed for good after %d runs: %s", record.key, len(after.runs), reason)
    elif after.state is FileState.CANCELLED:
        log.warning("%s: its run was cancelled, so it stays as it is until it is replayed: %s", record.key, reason)
    elif after.state is FileState.LANDED:
        wait = max(timedelta(), (after.not_before or services.now()) - services.now())
        log.warning("%s: the next run starts in %.0f s: %s", record.key, wait.total_seconds(), reason)
        services.posts_landed.send(PostsLanded(source_id=record.source_id, version=record.version), wait)
    return after


def _outcome(run: JobRun, state: RunState) -> Outcome:
    if run.cancelled_because:
        return "deadline"
    assert state.status != "waiting"
    assert state.status != "running"
    return state.status


def _after(services: Services, record: FileRecord, outcome: Outcome, reason: str) -> FileRecord:
    """The record after its last run ended without a result."""
    now, settings = services.now(), services.settings
    if outcome == "cancelled":
        return record.entered(FileState.CANCELLED, now, reason=reason, next_look=None)
    if outcome in ("skipped", "platform"):
        restarts = _restarts(record)
        give_up = restarts[0].launched_at + timedelta(seconds=settings.classification_platform_seconds)
        not_before, over = now + restart_delay(len(restarts) - 1), now >= give_up
    else:
        not_before, over = None, record.job_failures >= settings.classification_attempts
    if over:
        return record.entered(FileState.FAILED, now, reason=reason, next_look=None)
    due = {"not_before": not_before, "next_look": None}
    return record.entered(FileState.LANDED, now, attempt=record.attempt + 1, **due)


def _restarts(record: FileRecord) -> list[JobRun]:
    """The last runs in a row that never worked or that the platform failed, oldest first."""
    found: list[JobRun] = []
    for run in reversed(record.runs_of_this_replay):
        if run.outcome not in ("skipped", "platform"):
            break
        found.insert(0, run)
    return found


def _said(services: Services, run_id: int) -> str:
    """The error messages of a failed run's tasks."""
    try:
        said = services.job_runs.failure(run_id)
    except (NotFound, TransientError) as error:
        said = f"its output is unavailable: {error}"
    return f"; {said}" if said else ""


def _refused(services: Services, record: FileRecord) -> str | None:
    """Why the file cannot be classified, if the job says so."""
    try:
        said = services.lake.read(f"{record.output}/{REFUSED_FILE}").decode()
        return said.replace(paths.landing(record.source_id, record.version), record.source.name)[:MAX_REASON]
    except NotFound:
        return None


def quarantine_landed(services: Services, record: FileRecord, reason: str) -> FileRecord:
    """Copy the landed bytes to quarantine; the end of the step deletes the others."""
    landing = paths.landing(record.source_id, record.version)
    target = quarantine(services, record, reason, partial(proof.copy, services.lake, landing))

    def quarantined(current: FileRecord) -> FileRecord | None:
        if not _is_current(current, record):
            return None
        moved = {"quarantine": target, "archive": None, "next_look": None}
        return current.entered(FileState.QUARANTINED, services.now(), reason=reason, **moved)

    return services.ledger.change(record, quarantined)
