"""The reference tables: Postgres -> Parquet in the lake, a weekly snapshot that replaces the last one (SCD type 1).

All tables are read in one REPEATABLE READ, READ ONLY transaction and written beside their places, under names that no
query matches. Each is then read back and held against the server: row count, and a checksum over every value. Only when
all tables have passed is each made visible, by one rename. Whatever fails before leaves the lake as it was.

A run is keyed by its ISO week: running again copies again and ends in the same place.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from ingest.pgcopy import Irregular, TableCopy, TablePlan, begin_snapshot, plan_table
from ingest.pghash import batch_checksum, server_checksum
from shared import paths
from shared.errors import BadInput, SettingsError, StackTopicsError, TransientError
from shared.lake import Lake
from shared.services import Services
from shared.settings import Settings

ROWS_PER_GROUP = 64 * 1024
BYTES_PER_GROUP = 64 << 20
FEW_VALUES = 1 / 16
"""A column gets a dictionary when at most this share of its first rows is distinct."""

INCOMING = "_incoming-"
LEFTOVERS_AFTER = timedelta(days=1)
WEEK = b"stacktopics.week"
READ_BACK_ROWS = 16 * 1024
BACK_OFF = wait_exponential_jitter(initial=1, max=60)

State = Literal["published", "refused", "failed"]


class TableRecord(BaseModel):
    """What came of one table."""

    model_config = ConfigDict(extra="forbid")

    rows: int
    bytes: int
    columns: dict[str, str]
    checksum: str | None = None
    added: list[str] = []
    dropped: list[str] = []
    retyped: list[str] = []
    nulled: dict[str, int] = {}
    seconds: float


class ReferenceRecord(BaseModel):
    """What came of a weekly copy; `runs/reference/<yyyy>-W<ww>.json`."""

    model_config = ConfigDict(extra="forbid")

    week: str
    state: State
    started_at: datetime
    seconds: float
    tables: dict[str, TableRecord]
    reason: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """A table as it lies in the lake: its ISO week, row count and schema, all from the file's footer."""

    week: str
    rows: int
    schema: pa.Schema


def copy_reference(services: Services, now: datetime | None = None) -> ReferenceRecord:
    """Copy every table of REFERENCE_TABLES into the lake, for the ISO week of `now`.

    Raises, and records, BadInput for what must not be published: a source that is empty or shrank too much, values or
    columns that cannot be carried, a frozen schema that changed; TransientError when REFERENCE_ATTEMPTS attempts met
    trouble that may pass; NotFound or AccessDenied where a table is missing or may not be read; SettingsError.
    """
    started, clock = now or services.now(), time.monotonic()
    week = paths.iso_week(started)

    def write_record(state: State, tables: dict[str, TableRecord], reason: str | None = None) -> ReferenceRecord:
        seconds = round(time.monotonic() - clock, 3)
        record = ReferenceRecord(
            week=week, state=state, started_at=started, seconds=seconds, tables=tables, reason=reason
        )
        services.lake.put(paths.reference_record(week), record.model_dump_json(indent=2).encode())
        return record

    attempts = Retrying(
        retry=retry_if_exception_type(TransientError),
        stop=stop_after_attempt(services.settings.reference_attempts),
        wait=BACK_OFF,
        reraise=True,
    )
    try:
        _delete_leftovers(services, started)
        tables = attempts(_copy_all, services, week)
    except StackTopicsError as error:
        write_record("refused" if isinstance(error, BadInput) else "failed", {}, str(error))
        raise
    return write_record("published", tables)


def _copy_all(services: Services, week: str) -> dict[str, TableRecord]:
    """Copy and prove every table, then publish them all."""
    settings, lake = services.settings, services.lake
    excluded = _excluded_columns(settings)
    attempt = uuid.uuid4().hex
    incoming = {table: f"{_folder(table)}/{INCOMING}{attempt}" for table in settings.reference_tables}
    tables = {}
    try:
        with closing(services.postgres()) as connection:
            begin_snapshot(connection, settings.postgres_statement_timeout_seconds)
            for table, path in incoming.items():
                plan = plan_table(connection, settings.reference_schema, table, frozenset(excluded[table]))
                tables[table] = _copy_table(connection, plan, lake, path, week, settings)
        for table, path in incoming.items():
            _publish(lake, path, table, week, settings.reference_keep_weeks)
    except BaseException:
        for path in incoming.values():
            lake.delete(path)
        raise
    return tables


def _folder(table: str) -> str:
    return paths.reference(table).rpartition("/")[0]


def _excluded_columns(settings: Settings) -> dict[str, list[str]]:
    """The columns to leave out of each table. A name that leads nowhere is an error: its column would slip through."""
    excluded: dict[str, list[str]] = {table: [] for table in settings.reference_tables}
    lost = [name for name in settings.reference_exclude_columns if name.partition(".")[0] not in excluded]
    if lost:
        raise SettingsError([f"REFERENCE_EXCLUDE_COLUMNS: {name} names no table of REFERENCE_TABLES" for name in lost])
    for name in settings.reference_exclude_columns:
        table, _, column = name.partition(".")
        excluded[table].append(column)
    return excluded


def _copy_table(connection: Any, plan: TablePlan, lake: Lake, path: str, week: str, settings: Settings) -> TableRecord:
    """Write one table to `path`, which nobody reads yet, and prove it."""
    clock = time.monotonic()
    current = read_snapshot(lake, plan.table)
    added, dropped, retyped = _changes(current.schema if current else plan.arrow_schema, plan.arrow_schema)
    if settings.reference_schema_policy == "freeze" and (added or dropped or retyped):
        raise BadInput(
            f"{plan.name} changed while REFERENCE_SCHEMA_POLICY is freeze: "
            f"added {added}, dropped {dropped}, retyped {retyped}"
        )
    irregular = Irregular(settings.reference_infinity, settings.reference_out_of_range, settings.reference_nan)
    copy = TableCopy(connection, plan, irregular)
    with lake.create(path) as out, closing(copy.batches()) as batches:
        write_parquet(batches, plan.arrow_schema.with_metadata({WEEK: week}), out)
        _refuse_loss(plan.name, copy.rows, current, settings.reference_max_shrink)
    checksum = _prove(connection, copy, lake, path, settings.reference_proof)
    written = lake.stat(path)
    return TableRecord(
        rows=copy.rows,
        bytes=written.size if written else 0,
        columns={field.name: str(field.type) for field in plan.arrow_schema},
        checksum=checksum,
        added=added,
        dropped=dropped,
        retyped=retyped,
        nulled=copy.nulled,
        seconds=round(time.monotonic() - clock, 3),
    )


def read_snapshot(lake: Lake, table: str) -> Snapshot | None:
    """What is published of a table, from the file's footer; None when nothing is."""
    path = paths.reference(table)
    if lake.stat(path) is None:
        return None
    with lake.open(path) as file, pq.ParquetFile(file) as parquet:
        schema = parquet.schema_arrow
        week = (schema.metadata or {}).get(WEEK, b"").decode()
        return Snapshot(week, parquet.metadata.num_rows, schema)


def _changes(old: pa.Schema, new: pa.Schema) -> tuple[list[str], list[str], list[str]]:
    """Names of added and dropped columns, and retyped ones as "name: old -> new"."""
    added = [name for name in new.names if name not in old.names]
    dropped = [name for name in old.names if name not in new.names]
    both = [(name, old.field(name).type, new.field(name).type) for name in new.names if name in old.names]
    return added, dropped, [f"{name}: {before} -> {after}" for name, before, after in both if before != after]


def _refuse_loss(table: str, rows: int, current: Snapshot | None, max_shrink: float) -> None:
    if rows == 0:
        raise BadInput(f"{table} is empty; the lake keeps {current.rows if current else 'no'} rows")
    if current and rows < current.rows * (1 - max_shrink):
        raise BadInput(
            f"{table} shrank from {current.rows} to {rows} rows, by more than {max_shrink:.0%}; "
            "if that is right, raise REFERENCE_MAX_SHRINK for one run"
        )


# ---- Parquet ------------------------------------------------------------------------------------------------------


def write_parquet(batches: Iterable[pa.RecordBatch], schema: pa.Schema, out: BinaryIO) -> None:
    """Write record batches as row groups of at least ROWS_PER_GROUP rows or BYTES_PER_GROUP bytes."""
    with ExitStack() as stack:
        writer = None
        for group in _groups(batches):
            if writer is None:
                writer = stack.enter_context(_writer(out, schema, group[0]))
            writer.write_table(pa.Table.from_batches(group, schema), row_group_size=1 << 30)


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    group: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        group.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= ROWS_PER_GROUP or size >= BYTES_PER_GROUP:
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


# ---- proof and publication ----------------------------------------------------------------------------------------


def _prove(connection: Any, copy: TableCopy, lake: Lake, path: str, proof: Literal["checksum", "rows"]) -> str | None:
    """Hold row count and checksum of the file as it lies in the lake against the server's; returns the checksum."""
    if proof == "rows":
        _compare(copy.plan.name, (copy.rows, 0), (_rows(lake, path), 0))
        return None
    with ThreadPoolExecutor(1, "checksum") as pool:
        server = pool.submit(server_checksum, connection, copy.plan, copy.emptied)
        written = file_checksum(lake, path)
        _compare(copy.plan.name, server.result(), written)
    return f"{written[1]:016x}"


def _compare(table: str, server: tuple[int, int], written: tuple[int, int]) -> None:
    if server != written:
        raise TransientError(
            f"{table}: the server has {server[0]} rows with checksum {server[1]:016x}, "
            f"but {written[0]} rows with checksum {written[1]:016x} were written"
        )


def _rows(lake: Lake, path: str) -> int:
    with lake.open(path) as file, pq.ParquetFile(file) as parquet:
        return int(parquet.metadata.num_rows)


def file_checksum(lake: Lake, path: str) -> tuple[int, int]:
    """Row count and checksum of a Parquet file of the lake."""
    rows = checksum = 0
    with lake.open(path) as file, pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(READ_BACK_ROWS):
            rows += batch.num_rows
            checksum = (checksum + batch_checksum(batch)) % 2**64
    return rows, checksum


def _publish(lake: Lake, incoming: str, table: str, week: str, keep_weeks: int) -> None:
    """Keep the snapshot of the week before, put the new one in its place by one rename, drop what is too old."""
    current = read_snapshot(lake, table)
    if current and current.week and current.week != week and keep_weeks:
        lake.copy(paths.reference(table), paths.reference_previous(table, current.week))
    lake.rename(incoming, paths.reference(table))
    previous = sorted(lake.list(f"{_folder(table)}/previous"), key=lambda file: file.path)
    for file in previous[: max(0, len(previous) - keep_weeks)]:
        lake.delete(file.path)


def _delete_leftovers(services: Services, now: datetime) -> None:
    """Delete files of runs that died before they could publish or clean up."""
    for table in services.settings.reference_tables:
        for file in services.lake.list(_folder(table)):
            if INCOMING in file.path and now - file.last_modified > LEFTOVERS_AFTER:
                services.lake.delete(file.path)
