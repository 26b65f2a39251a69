"""The reference tables: Postgres -> Parquet in the lake, a weekly snapshot that replaces the last one (SCD type 1).

All tables are read in one REPEATABLE READ, READ ONLY transaction and written beside their final paths, under names that
no query matches. Each file is then read back and compared with the server: row count, and a checksum over every value.
Only when all tables have passed, each becomes visible by one rename. A failure before that leaves the lake unchanged.
The renames are recorded before the first one, so that a crash between two of them can be repaired.

A run is keyed by its ISO week: another run in the same week replaces its result.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable
from contextlib import closing, suppress
from datetime import datetime, timedelta
from math import inf
from typing import Any

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from ingest.postgres.connect import begin_snapshot, connect, limit_statements
from ingest.postgres.plan import TablePlan, plan_table
from ingest.postgres.wire import Irregular, TableCopy
from ingest.reference.proof import prove
from ingest.reference.records import CopyState, ReferenceRecord, TableRecord, put_record, records
from ingest.reference.snapshot import (
    INCOMING,
    WEEK,
    Snapshot,
    changes,
    delete_leftovers,
    folder_of,
    publish,
    read_snapshot,
    write_parquet,
)
from shared import paths
from shared.documents import decode
from shared.errors import BadInput, NotFound, SettingsError, TransientError
from shared.lake import Lake
from shared.services import Services
from shared.settings import Settings

log = logging.getLogger("stacktopics.ingest.reference.copy")

BACK_OFF_FIRST_SECONDS, BACK_OFF_LIMIT_SECONDS = 1, 60
BACK_OFF = wait_exponential_jitter(initial=BACK_OFF_FIRST_SECONDS, max=BACK_OFF_LIMIT_SECONDS)


def copy_reference(services: Services, now: datetime | None = None) -> ReferenceRecord:
    """Copy every table of REFERENCE_TABLES into the lake, for the ISO week of `now`.

    Raises, and records: BadInput for a source that is empty or shrank too much, an invalid key, values or columns that
    cannot be copied, a change of a frozen schema, or a damaged snapshot, which makes these checks impossible;
    TransientError when REFERENCE_ATTEMPTS attempts failed with transient errors, or REFERENCE_DEADLINE_SECONDS are
    over; NotFound or AccessDenied when a table is missing or may not be read; SettingsError.
    """
    started, clock = now or services.now(), time.monotonic()
    week = paths.iso_week(started)
    until = clock + services.settings.reference_deadline_seconds
    try:
        finish_publication(services)
        delete_leftovers(services, started)
        tables, incoming = _attempts(services.settings, until)(_copy_all, services, week, until)
    except Exception as error:
        _record_failure(services.lake, week, started, clock, error)
        raise
    record = ReferenceRecord(
        week=week, state="publishing", started_at=started, seconds=_since(clock), tables=tables, incoming=incoming
    )
    return _publish_all(services, record, clock)


def finish_publication(services: Services, idle_for: timedelta = timedelta()) -> ReferenceRecord | None:
    """Finish the renames of a copy that was verified and recorded, but died or failed while it was published.

    Must not run at the same time as a copy. A caller that cannot rule that out passes `idle_for`, longer than
    functionTimeout: a copy that started later is left alone. Returns the record, now `published`; None when there is
    nothing to do. Raises TransientError when the lake fails.
    """
    try:
        started_to = (record for record in records(services.lake) if record.state in ("publishing", "published"))
        record = next(started_to, None)
    except BadInput:
        log.exception("cannot determine whether a copy was left half published")
        return None
    if record is None or record.state != "publishing" or services.now() - record.started_at < idle_for:
        return None
    log.warning("the copy of %s was left half published; finishing it", record.week)
    return _publish_all(services, record, time.monotonic() - record.seconds)


def _attempts(settings: Settings, until: float = inf) -> Retrying:
    """Retries as the settings say; no retry after the time `until` of the monotonic clock."""
    return Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, TransientError) and time.monotonic() < until),
        stop=stop_after_attempt(settings.reference_attempts),
        wait=BACK_OFF,
        before_sleep=lambda state: log.warning("will be tried again: %s", state.outcome and state.outcome.exception()),
        reraise=True,
    )


def _since(clock: float) -> float:
    return round(time.monotonic() - clock, 3)


def _record_failure(lake: Lake, week: str, started: datetime, clock: float, error: Exception) -> None:
    """Record why a run failed; what was published in its week stays recorded. A failure to record is only logged."""
    state: CopyState = "refused" if isinstance(error, BadInput) else "failed"
    record = ReferenceRecord(
        week=week, state=state, started_at=started, seconds=_since(clock), tables={}, reason=_reason(error)
    )
    path = paths.reference_record(week)
    try:
        with suppress(NotFound):
            before = decode(ReferenceRecord, lake.read(path), path)
            kept: dict[str, Any] = {"tables": before.tables, "published_at": before.published_at}
            if before.state == "publishing":
                kept |= {"state": before.state, "incoming": before.incoming}
            record = record.model_copy(update=kept)
    except Exception:
        log.exception("the earlier content of %s is lost", path)
    try:
        put_record(lake, record)
    except Exception:
        log.exception("%s could not be written", path)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _copy_all(services: Services, week: str, until: float) -> tuple[dict[str, TableRecord], dict[str, str]]:
    """Copy and verify every table; returns the records, and the path of each table until it is published.

    The server cancels statements that run after the time `until` of the monotonic clock.
    """
    settings, lake = services.settings, services.lake
    attempt = uuid.uuid4().hex
    incoming = {table: f"{folder_of(table)}/{INCOMING}{attempt}" for table in settings.reference_tables}
    tables = {}
    try:
        with closing(connect(services)) as connection:
            begin_snapshot(connection, until - time.monotonic())
            for table, path in incoming.items():
                limit_statements(connection, until - time.monotonic())
                plan = plan_of(connection, settings, table)
                tables[table] = _copy_table(connection, plan, lake, path, week, settings, until)
    except BaseException:
        for path in incoming.values():
            try:
                lake.delete(path)
            except Exception:  # the first error is raised; the next run deletes the file
                log.exception("%s could not be deleted", path)
        raise
    return tables, incoming


def plan_of(connection: Any, settings: Settings, table: str) -> TablePlan:
    """The plan for a table of REFERENCE_TABLES, by the settings.

    Raises SettingsError when a setting names another table, and what `plan_table` raises.
    """
    excluded = _by_table(settings.reference_exclude_columns, settings, "REFERENCE_EXCLUDE_COLUMNS")
    keys = _by_table(settings.reference_keys, settings, "REFERENCE_KEYS")
    _by_table(settings.reference_allow_empty, settings, "REFERENCE_ALLOW_EMPTY")
    return plan_table(connection, settings.reference_schema, table, frozenset(excluded[table]), tuple(keys[table]))


def _by_table(names: Iterable[str], settings: Settings, setting: str) -> dict[str, list[str]]:
    """The columns of the names "table.column", by table. A name of another table is an error: it would do nothing."""
    columns: dict[str, list[str]] = {table: [] for table in settings.reference_tables}
    lost = [name for name in names if name.partition(".")[0] not in columns]
    if lost:
        raise SettingsError([f"{setting}: {name} names no table of REFERENCE_TABLES" for name in lost])
    for name in names:
        table, _, column = name.partition(".")
        columns[table].append(column)
    return columns


def _copy_table(
    connection: Any, plan: TablePlan, lake: Lake, path: str, week: str, settings: Settings, until: float
) -> TableRecord:
    """Write one table to `path`, which nobody reads yet, and verify it."""
    clock = time.monotonic()
    current = read_snapshot(lake, plan.table)
    added, dropped, retyped = changes(current.schema if current else plan.arrow_schema, plan.arrow_schema)
    if added or dropped or retyped:
        changed = f"added {added}, dropped {dropped}, retyped {retyped}"
        if settings.reference_schema_policy == "freeze":
            raise BadInput(f"{plan.name} changed while REFERENCE_SCHEMA_POLICY is freeze: {changed}")
        log.warning("%s changed: %s", plan.name, changed)
    irregular = Irregular(settings.reference_infinity, settings.reference_out_of_range, settings.reference_nan)
    copy = TableCopy(connection, plan, irregular)
    limit_statements(connection, until - time.monotonic())
    with lake.create(path) as out, closing(copy.batches()) as batches:
        write_parquet(batches, plan.arrow_schema.with_metadata({WEEK: week}), out)
        _refuse_loss(plan, copy.rows, current, settings)
    limit_statements(connection, until - time.monotonic())
    checksum = prove(connection, copy, lake, path, settings.reference_proof)
    written = lake.stat(path)
    return TableRecord(
        rows=copy.rows,
        bytes=written.size if written else 0,
        columns={field.name: str(field.type) for field in plan.arrow_schema},
        key=list(plan.key),
        checksum=checksum,
        added=added,
        dropped=dropped,
        retyped=retyped,
        nulled=copy.nulled,
        seconds=round(time.monotonic() - clock, 3),
    )


def _refuse_loss(plan: TablePlan, rows: int, current: Snapshot | None, settings: Settings) -> None:
    if rows == 0 and plan.table in settings.reference_allow_empty:
        return
    if rows == 0:
        raise BadInput(
            f"{plan.name} is empty; the lake keeps {current.rows if current else 'no'} rows; "
            f"if that is right, name {plan.table} in REFERENCE_ALLOW_EMPTY"
        )
    if current and rows < current.rows * (1 - settings.reference_max_shrink):
        raise BadInput(
            f"{plan.name} shrank from {current.rows} to {rows} rows, by more than {settings.reference_max_shrink:.0%}; "
            "if that is right, raise REFERENCE_MAX_SHRINK for one run"
        )


def _publish_all(services: Services, record: ReferenceRecord, clock: float) -> ReferenceRecord:
    """Publish every table at the path in the record, by one rename each; returns the new record.

    The record is written before the first rename. Repeating is safe: a table that was already renamed is skipped.
    """
    lake, settings = services.lake, services.settings
    try:
        put_record(lake, record)
        for table, path in record.incoming.items():
            _attempts(settings)(publish, lake, path, table, record.week, settings.reference_keep_weeks)
        published = record.model_copy(
            update={
                "state": "published",
                "reason": None,
                "incoming": {},
                "published_at": services.now(),
                "seconds": _since(clock),
            }
        )
        put_record(lake, published)
    except Exception as error:
        _record_failure(lake, record.week, record.started_at, clock, error)
        raise
    return published
