"""The reference tables: Postgres -> Parquet in the lake, a weekly snapshot that replaces the last one (SCD type 1).

All tables are read in one REPEATABLE READ, READ ONLY transaction and written beside their places, under names that no
query matches. Each is then read back and held against the server: row count, and a checksum over every value. Only when
all tables have passed is each made visible, by one rename. Whatever fails before leaves the lake as it was. What is to
be renamed is recorded first, so that after a crash between two renames the rest can be made up for.

A run is keyed by its ISO week: running again copies again and ends in the same place.
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

    Raises, and records, BadInput for what must not be published: a source that is empty or shrank too much, a key that
    is none, values or columns that cannot be carried, a frozen schema that changed, a damaged snapshot, without which
    none of that is known; TransientError when REFERENCE_ATTEMPTS attempts met trouble that may pass, or
    REFERENCE_DEADLINE_SECONDS are over; NotFound or AccessDenied where a table is missing or may not be read;
    SettingsError.
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
    """Make up for the renames of a copy that was proved and recorded, but died or failed while it was published.

    Must not run beside a copy: who cannot know gives the time, longer than functionTimeout, since that copy began.
    Returns the record, now `published`; None when there is nothing to do. Raises TransientError when the lake fails.
    """
    try:
        started_to = (record for record in records(services.lake) if record.state in ("publishing", "published"))
        record = next(started_to, None)
    except BadInput:
        log.exception("whether a copy was left half published cannot be known")
        return None
    if record is None or record.state != "publishing" or services.now() - record.started_at < idle_for:
        return None
    log.warning("the copy of %s was left half published; finishing it", record.week)
    return _publish_all(services, record, time.monotonic() - record.seconds)


def _attempts(settings: Settings, until: float = inf) -> Retrying:
    """As many as the settings say; none is waited for after the time `until` of the monotonic clock."""
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
    """Record why a run failed, beside what was published before in its week. A failure of this only is logged."""
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
        log.exception("what %s said before is lost", path)
    try:
        put_record(lake, record)
    except Exception:
        log.exception("%s could not be written", path)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _copy_all(services: Services, week: str, until: float) -> tuple[dict[str, TableRecord], dict[str, str]]:
    """Copy and prove every table; returns the records, and where each table lies until it is published.

    What the server does after the time `until` of the monotonic clock, it ends.
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
            except Exception:  # what went wrong first counts; the next run deletes the file
                log.exception("%s could not be deleted", path)
        raise
    return tables, incoming


def plan_of(connection: Any, settings: Settings, table: str) -> TablePlan:
    """How a table of REFERENCE_TABLES is copied, as the settings say.

    Raises SettingsError where a setting names another table, and what `plan_table` raises.
    """
    excluded = _by_table(settings.reference_exclude_columns, settings, "REFERENCE_EXCLUDE_COLUMNS")
    keys = _by_table(settings.reference_keys, settings, "REFERENCE_KEYS")
    _by_table(settings.reference_allow_empty, settings, "REFERENCE_ALLOW_EMPTY")
    return plan_table(connection, settings.reference_schema, table, frozenset(excluded[table]), tuple(keys[table]))


def _by_table(names: Iterable[str], settings: Settings, setting: str) -> dict[str, list[str]]:
    """The columns that "table.column" names, by table. A name that leads nowhere is an error: it would do nothing."""
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
    """Write one table to `path`, which nobody reads yet, and prove it."""
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
    """Publish every table that lies where the record says, by one rename each; returns the record of it.

    Recorded before the first rename, and done again and again: a table that was renamed already is passed over.
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
