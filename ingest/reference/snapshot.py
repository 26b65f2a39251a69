"""The published form of a table: one Parquet file, written as row groups and published by one rename."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingest.postgres.plan import DECLARED
from shared import paths
from shared.errors import BadInput, StackTopicsError
from shared.lake import Lake
from shared.parquet import readable
from shared.services import Services

log = logging.getLogger("stacktopics.ingest.reference.snapshot")


ROWS_PER_GROUP = 64 * 1024
BYTES_PER_GROUP, BYTES_PER_WIDE_GROUP = 32 << 20, 16 << 20
WIDE_ROW = 16 << 10
"""Bytes of a row. The encoder checks a page's size only every 1024 values, so wider rows get smaller row groups."""
FEW_VALUES = 1 / 16
"""A column gets a dictionary if at most this share of the values in its first rows is distinct."""
INCOMING = "_incoming-"
LEFTOVERS_AFTER = timedelta(days=1)
WEEK = b"stacktopics.week"


@dataclass(frozen=True)
class Snapshot:
    """A table in the lake: its ISO week, row count and schema, all from the file's footer."""

    week: str
    rows: int
    schema: pa.Schema


def folder_of(table: str) -> str:
    return paths.reference(table).rpartition("/")[0]


def read_snapshot(lake: Lake, table: str) -> Snapshot | None:
    """The published snapshot of a table, from its footer; None if there is none. Raises BadInput for a damaged file."""
    path = paths.reference(table)
    if lake.stat(path) is None:
        return None
    instead = f"delete it, or put one of {folder_of(table)}/previous in its place, then start copy_reference again"
    with opened(lake, path, BadInput, instead) as parquet:
        schema = parquet.schema_arrow
        week = (schema.metadata or {}).get(WEEK, b"").decode()
        return Snapshot(week, parquet.metadata.num_rows, schema)


def changes(old: pa.Schema, new: pa.Schema) -> tuple[list[str], list[str], list[str]]:
    """Names of added and dropped columns, and retyped ones as "name: old -> new", with the server's names of types."""
    added = [name for name in new.names if name not in old.names]
    dropped = [name for name in old.names if name not in new.names]
    both = [(name, _types(old.field(name)), _types(new.field(name))) for name in new.names if name in old.names]
    return added, dropped, [f"{name}: {change}" for name, was, now in both if (change := _retyped(was, now))]


def _types(field: pa.Field) -> tuple[str, str]:
    """The type as the server declares it, and the Arrow type."""
    return (field.metadata or {}).get(DECLARED, b"").decode(errors="replace"), str(field.type)


def _retyped(old: tuple[str, str], new: tuple[str, str]) -> str | None:
    if old[0] and old[0] != new[0]:
        return f"{old[0]} -> {new[0]}"
    return f"{old[1]} -> {new[1]}" if old[1] != new[1] else None


def write_parquet(batches: Iterable[pa.RecordBatch], schema: pa.Schema, out: BinaryIO) -> None:
    """Write record batches as row groups of at least ROWS_PER_GROUP rows or BYTES_PER_GROUP bytes.

    Without batches, the file has only the schema.
    """
    with ExitStack() as stack:
        writer = None
        for group in _groups(batches):
            if writer is None:
                writer = stack.enter_context(_writer(out, schema, group[0]))
            writer.write_table(pa.Table.from_batches(group, schema), row_group_size=1 << 30)
            del group  # else it stays in memory while the next one arrives
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
    """zstd 1; dictionaries where values repeat; integers and timestamps as deltas.

    Free text gets no statistics: its minimum and maximum take a fifth of the time, and help no query.
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
def opened(lake: Lake, path: str, fault: type[StackTopicsError], way_out: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file of the lake; an error of Arrow is raised as `fault`, with `way_out` as the remedy."""
    with lake.open(path) as file, readable(path, fault, way_out), pq.ParquetFile(file) as parquet:
        yield parquet


def publish(lake: Lake, incoming: str, table: str, week: str, keep_weeks: int) -> None:
    """Keep the snapshot of the week before, publish the new one by one rename, and delete snapshots that are too old.

    Does nothing if `incoming` is missing: it was published before.
    """
    if lake.stat(incoming) is None:
        return
    oldest = paths.weeks_before(week, keep_weeks)
    try:
        current = read_snapshot(lake, table)
    except BadInput as error:  # the new one is already verified
        log.warning("%s is damaged; it is replaced and not kept: %s", paths.reference(table), error.__cause__)
        current = None
    if current and oldest <= current.week != week:
        lake.copy(paths.reference(table), paths.reference_previous(table, current.week))
    lake.rename(incoming, paths.reference(table))
    for file in list(lake.list(f"{folder_of(table)}/previous")):
        if file.path < paths.reference_previous(table, oldest):
            lake.delete(file.path)


def delete_leftovers(services: Services, now: datetime) -> None:
    """Delete files of runs that died before they published or cleaned up, including unfinished files."""
    for table in services.settings.reference_tables:
        folder = folder_of(table)
        left = [file for file in services.lake.list(folder) if INCOMING in file.path]
        for file in [*left, *services.lake.unfinished(folder)]:
            if now - file.last_modified > LEFTOVERS_AFTER:
                services.lake.delete(file.path)
