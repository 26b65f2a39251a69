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
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import inf
from typing import Any, BinaryIO, Literal

import psycopg2
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from ingest.pgcopy import DECLARED, Irregular, TableCopy, TablePlan, begin_snapshot, limit_statements, plan_table
from ingest.pghash import batch_checksum, server_checksum
from shared import paths
from shared.documents import Record, decode
from shared.errors import BadInput, NotFound, SettingsError, StackTopicsError, TransientError
from shared.lake import Lake
from shared.parquet import readable
from shared.services import Services
from shared.settings import Settings

ROWS_PER_GROUP = 64 * 1024
BYTES_PER_GROUP, BYTES_PER_WIDE_GROUP = 32 << 20, 16 << 20
WIDE_ROW = 16 << 10
"""The encoder looks at a page's size after 1024 values; of wide rows, it gets fewer at once."""
FEW_VALUES = 1 / 16
"""A column gets a dictionary when at most this share of its first rows is distinct."""

log = logging.getLogger("stacktopics.ingest.reference")

INCOMING = "_incoming-"
LEFTOVERS_AFTER = timedelta(days=1)
WEEK = b"stacktopics.week"
READ_BACK_ROWS, READ_BACK_BYTES = 16 * 1024, 8 << 20
CANCEL_POLL_SECONDS = 0.1
BACK_OFF = wait_exponential_jitter(initial=1, max=60)

State = Literal["publishing", "published", "refused", "failed"]


class TableRecord(Record):
    """What came of one table. `retyped` says "column: old -> new"; `key` holds the columns that tell its rows apart."""

    rows: int
    bytes: int
    columns: dict[str, str]
    key: list[str] = Field(default_factory=list)
    checksum: str | None = None
    added: list[str] = Field(default_factory=list)
    dropped: list[str] = Field(default_factory=list)
    retyped: list[str] = Field(default_factory=list)
    nulled: dict[str, int] = Field(default_factory=dict)
    seconds: float


class ReferenceRecord(Record):
    """What came of a weekly copy; `runs/reference/<yyyy>-W<ww>.json`.

    `state` and `reason` are those of the last run; `tables` is what was last published in this week, `published_at`.
    `incoming` says where each table lies while it is `publishing`, and afterwards is empty.
    """

    week: str
    state: State
    started_at: datetime
    seconds: float
    tables: dict[str, TableRecord]
    reason: str | None = None
    published_at: datetime | None = None
    incoming: dict[str, str] = Field(default_factory=dict)

    @property
    def changes(self) -> list[str]:
        """One sentence for each table whose columns are others than the week before."""
        return [
            f"{name}: added {table.added}, dropped {table.dropped}, retyped {table.retyped}"
            for name, table in self.tables.items()
            if table.added or table.dropped or table.retyped
        ]


@dataclass(frozen=True)
class Snapshot:
    """A table as it lies in the lake: its ISO week, row count and schema, all from the file's footer."""

    week: str
    rows: int
    schema: pa.Schema


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
        _delete_leftovers(services, started)
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
        started_to = (record for record in _records(services.lake) if record.state in ("publishing", "published"))
        record = next(started_to, None)
    except BadInput:
        log.exception("whether a copy was left half published cannot be known")
        return None
    if record is None or record.state != "publishing" or services.now() - record.started_at < idle_for:
        return None
    log.warning("the copy of %s was left half published; finishing it", record.week)
    return _publish_all(services, record, time.monotonic() - record.seconds)


def last_record(lake: Lake) -> ReferenceRecord | None:
    """The record of the newest week; None when nothing was ever copied. Raises BadInput when it is none."""
    return next(_records(lake), None)


def _records(lake: Lake) -> Iterator[ReferenceRecord]:
    """The records, newest first."""
    for info in reversed(list(lake.list(paths.REFERENCE_RECORDS))):
        yield decode(ReferenceRecord, lake.read(info.path), info.path)


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


def _put_record(lake: Lake, record: ReferenceRecord) -> None:
    lake.put(paths.reference_record(record.week), record.model_dump_json(indent=2).encode())


def _record_failure(lake: Lake, week: str, started: datetime, clock: float, error: Exception) -> None:
    """Record why a run failed, beside what was published before in its week. A failure of this only is logged."""
    state: State = "refused" if isinstance(error, BadInput) else "failed"
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
        _put_record(lake, record)
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
    incoming = {table: f"{_folder(table)}/{INCOMING}{attempt}" for table in settings.reference_tables}
    tables = {}
    try:
        with closing(services.postgres()) as connection:
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


def _folder(table: str) -> str:
    return paths.reference(table).rpartition("/")[0]


def _copy_table(
    connection: Any, plan: TablePlan, lake: Lake, path: str, week: str, settings: Settings, until: float
) -> TableRecord:
    """Write one table to `path`, which nobody reads yet, and prove it."""
    clock = time.monotonic()
    current = read_snapshot(lake, plan.table)
    added, dropped, retyped = _changes(current.schema if current else plan.arrow_schema, plan.arrow_schema)
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
    checksum = _prove(connection, copy, lake, path, settings.reference_proof)
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


def read_snapshot(lake: Lake, table: str) -> Snapshot | None:
    """What is published of a table, from its footer; None when nothing is. Raises BadInput for a damaged file."""
    path = paths.reference(table)
    if lake.stat(path) is None:
        return None
    instead = f"delete it, or put one of {_folder(table)}/previous in its place, then start copy_reference again"
    with _parquet(lake, path, BadInput, instead) as parquet:
        schema = parquet.schema_arrow
        week = (schema.metadata or {}).get(WEEK, b"").decode()
        return Snapshot(week, parquet.metadata.num_rows, schema)


def _changes(old: pa.Schema, new: pa.Schema) -> tuple[list[str], list[str], list[str]]:
    """Names of added and dropped columns, and retyped ones as "name: old -> new", in the server's words for types."""
    added = [name for name in new.names if name not in old.names]
    dropped = [name for name in old.names if name not in new.names]
    both = [(name, _types(old.field(name)), _types(new.field(name))) for name in new.names if name in old.names]
    return added, dropped, [f"{name}: {change}" for name, was, now in both if (change := _retyped(was, now))]


def _types(field: pa.Field) -> tuple[str, str]:
    """The type as the server declares it (nothing in files from before that was kept), and as it is carried."""
    return (field.metadata or {}).get(DECLARED, b"").decode(errors="replace"), str(field.type)


def _retyped(old: tuple[str, str], new: tuple[str, str]) -> str | None:
    if old[0] and old[0] != new[0]:
        return f"{old[0]} -> {new[0]}"
    return f"{old[1]} -> {new[1]}" if old[1] != new[1] else None


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


# ---- Parquet ------------------------------------------------------------------------------------------------------


def write_parquet(batches: Iterable[pa.RecordBatch], schema: pa.Schema, out: BinaryIO) -> None:
    """Write record batches as row groups of at least ROWS_PER_GROUP rows or BYTES_PER_GROUP bytes; none is fine."""
    with ExitStack() as stack:
        writer = None
        for group in _groups(batches):
            if writer is None:
                writer = stack.enter_context(_writer(out, schema, group[0]))
            writer.write_table(pa.Table.from_batches(group, schema), row_group_size=1 << 30)
            del group  # else it stays in memory while the next one comes
        if writer is None:
            stack.enter_context(_writer(out, schema, pa.RecordBatch.from_pylist([], schema)))


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    group: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        group.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        del batch
        limit = BYTES_PER_WIDE_GROUP if size > rows * WIDE_ROW else BYTES_PER_GROUP
        if rows >= ROWS_PER_GROUP or size >= limit:
            yield group
            group, rows, size = [], 0, 0
    if group:
        yield group


def _writer(out: BinaryIO, schema: pa.Schema, sample: pa.RecordBatch) -> pq.ParquetWriter:
    """zstd 1; dictionaries where values repeat; whole numbers and moments as differences.

    Free text gets no statistics: to find the first and the last of it takes a fifth of the time, and helps no query.
    """
    few = [
        name
        for name, column in zip(schema.names, sample.columns, strict=True)
        if not pa.types.is_boolean(column.type) and pc.count_distinct(column).as_py() <= FEW_VALUES * sample.num_rows
    ]
    deltas = {
        field.name: "DELTA_BINARY_PACKED"
        for field in schema
        if field.name not in few and (pa.types.is_integer(field.type) or pa.types.is_temporal(field.type))
    }
    return pq.ParquetWriter(
        out,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=few,
        column_encoding=deltas or None,
        write_statistics=[
            field.name
            for field in schema
            if field.name in few or not (pa.types.is_string(field.type) or pa.types.is_binary(field.type))
        ],
    )


@contextmanager
def _parquet(lake: Lake, path: str, fault: type[StackTopicsError], way_out: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file of the lake; what Arrow cannot read of it is raised as a `fault`."""
    with lake.open(path) as file, readable(path, fault, way_out), pq.ParquetFile(file) as parquet:
        yield parquet


# ---- proof and publication ----------------------------------------------------------------------------------------


def _prove(connection: Any, copy: TableCopy, lake: Lake, path: str, proof: Literal["checksum", "rows"]) -> str | None:
    """Hold row count and checksum of the file as it lies in the lake against the server's; returns the checksum."""
    if proof == "rows":
        _compare(copy.plan.name, (copy.rows, 0), (_rows(lake, path), 0))
        return None
    pa.default_memory_pool().release_unused()  # what copying left would stay beside what reading back takes
    with ThreadPoolExecutor(1, "checksum") as pool:
        server = pool.submit(server_checksum, connection, copy.plan, copy.emptied)
        try:
            written = file_checksum(lake, path)
        except BaseException:
            while wait([server], CANCEL_POLL_SECONDS).not_done:  # one cancel may come before the statement does
                with suppress(psycopg2.Error):
                    connection.cancel()
            raise
        _compare(copy.plan.name, server.result(), written)
    return f"{written[1]:016x}"


def _compare(table: str, server: tuple[int, int], written: tuple[int, int]) -> None:
    if server != written:
        raise TransientError(
            f"{table}: the server has {server[0]} rows with checksum {server[1]:016x}, "
            f"but {written[0]} rows with checksum {written[1]:016x} were written"
        )


def _rows(lake: Lake, path: str) -> int:
    with _parquet(lake, path, TransientError, "copy it again") as parquet:
        return int(parquet.metadata.num_rows)


def file_checksum(lake: Lake, path: str) -> tuple[int, int]:
    """Row count and checksum of a file that was just written. Raises TransientError when it cannot be read back."""
    rows = checksum = 0
    with _parquet(lake, path, TransientError, "copy it again") as parquet:
        for number in range(parquet.num_row_groups):
            group = parquet.metadata.row_group(number)
            at_once = max(1, min(READ_BACK_ROWS, READ_BACK_BYTES * group.num_rows // max(1, group.total_byte_size)))
            for batch in parquet.iter_batches(at_once, row_groups=[number], use_threads=at_once == READ_BACK_ROWS):
                rows += batch.num_rows
                checksum = (checksum + batch_checksum(batch)) % 2**64
            if at_once < READ_BACK_ROWS:
                pa.default_memory_pool().release_unused()
    return rows, checksum


def _publish_all(services: Services, record: ReferenceRecord, clock: float) -> ReferenceRecord:
    """Publish every table that lies where the record says, by one rename each; returns the record of it.

    Recorded before the first rename, and done again and again: a table that was renamed already is passed over.
    """
    lake, settings = services.lake, services.settings
    try:
        _put_record(lake, record)
        for table, path in record.incoming.items():
            _attempts(settings)(_publish, lake, path, table, record.week, settings.reference_keep_weeks)
        published = record.model_copy(
            update={
                "state": "published",
                "reason": None,
                "incoming": {},
                "published_at": services.now(),
                "seconds": _since(clock),
            }
        )
        _put_record(lake, published)
    except Exception as error:
        _record_failure(lake, record.week, record.started_at, clock, error)
        raise
    return published


def _publish(lake: Lake, incoming: str, table: str, week: str, keep_weeks: int) -> None:
    """Keep the snapshot of the week before, put the new one in its place by one rename, drop what is too old."""
    if lake.stat(incoming) is None:
        return
    oldest = paths.weeks_before(week, keep_weeks)
    try:
        current = read_snapshot(lake, table)
    except BadInput as error:  # the new one is proved already
        log.warning("%s is replaced and not kept, for it is damaged: %s", paths.reference(table), error.__cause__)
        current = None
    if current and oldest <= current.week != week:
        lake.copy(paths.reference(table), paths.reference_previous(table, current.week))
    lake.rename(incoming, paths.reference(table))
    for file in list(lake.list(f"{_folder(table)}/previous")):
        if file.path < paths.reference_previous(table, oldest):
            lake.delete(file.path)


def _delete_leftovers(services: Services, now: datetime) -> None:
    """Delete files of runs that died before they could publish or clean up, also those that were being written."""
    for table in services.settings.reference_tables:
        folder = _folder(table)
        left = [file for file in services.lake.list(folder) if INCOMING in file.path]
        for file in [*left, *services.lake.unfinished(folder)]:
            if now - file.last_modified > LEFTOVERS_AFTER:
                services.lake.delete(file.path)
