"""Reading a Parquet file by row groups: their value ranges, and how much is read at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from shared.errors import BadInput
from shared.parquet import readable
from shared.posts import columns_named

if TYPE_CHECKING:
    from shared.storage import RangedReader

BATCH_ROWS = 1_024
"""Twice as many rows take 3 % less time but 20 MiB more memory. Small files do not need that much, so memory would grow
with the file."""
LARGE_GROUP, READ_BUFFER = 32 << 20, 4 << 20
"""Uncompressed bytes: the largest row group that is read at once; and the read buffer per column of a larger one."""


def reader(data: RangedReader | Any, footer: pq.FileMetaData) -> pq.ParquetFile:
    """A reader that fetches the requested columns of a small row group at once, and those of a large one in pieces.

    Many writers put a million posts into one row group: half a gigabyte if read at once.
    """
    largest = max((footer.row_group(number).total_byte_size for number in range(footer.num_row_groups)), default=0)
    ahead = {"buffer_size": READ_BUFFER} if largest > LARGE_GROUP else {"pre_buffer": True}
    # INT96 holds any day, but nanoseconds in 64 bits cover only 584 years: other days would come back wrong.
    return pq.ParquetFile(data, metadata=footer, coerce_int96_timestamp_unit="s", **ahead)


@contextmanager
def opened(path: Path, columns: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file on disk. Raises BadInput that names the file if it is missing, damaged (also during later
    reads) or lacks one of `columns`."""
    if not path.is_file():
        raise BadInput(f"{path} does not exist, or is not a file")
    with readable(path), path.open("rb") as data, reader(data, pq.read_metadata(path)) as file:
        if missing := [name for name in columns if name_of(file.schema_arrow.names, name) is None]:
            raise BadInput(f"{path} has no column {', '.join(missing)}")
        yield file


def name_of(names: Sequence[str], column: str) -> str | None:
    """The name of `column` in a file with the columns `names`: `id` matches `Id`. None if the column is missing."""
    return column if column in names else next(iter(columns_named(names, column)), None)


def batches(
    file: pq.ParquetFile, columns: Sequence[str], groups: Sequence[int] | None = None, rows: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Batches of at most `rows` rows (default BATCH_ROWS), one row group after the other.

    Reads `groups`, by default all, and those of `columns` that the file has, under these names. Data read ahead is held
    until the last batch of its row group. Arrow's threads are off: each would keep the memory of its largest texts.
    """
    names = {found: name for name in columns if (found := name_of(file.schema_arrow.names, name))}
    for group in range(file.num_row_groups) if groups is None else groups:
        for batch in file.iter_batches(rows or BATCH_ROWS, row_groups=[group], columns=list(names), use_threads=False):
            yield batch.rename_columns([names[name] for name in batch.schema.names])


def bounds(file: pq.ParquetFile, column: str) -> list[pa.Array | None]:
    """For each row group, an array of the least and the greatest value of a column of integers, dates or timestamps.

    None where the file lacks these statistics, the column is missing or of another type, or values are null.
    """
    name = name_of(file.schema_arrow.names, column)
    kind = file.schema_arrow.field(name).type if name else pa.null()
    if not (pa.types.is_integer(kind) or pa.types.is_date32(kind) or pa.types.is_timestamp(kind)):
        return [None] * file.num_row_groups
    place = [file.schema.column(number).path for number in range(len(file.schema))].index(name)
    found = (file.metadata.row_group(group).column(place).statistics for group in range(file.num_row_groups))
    return [_bounds(statistics, kind) for statistics in found]


def _bounds(statistics: pq.Statistics | None, kind: pa.DataType) -> pa.Array | None:
    if statistics is None or not statistics.has_min_max or statistics.null_count != 0:
        return None
    if pa.types.is_integer(kind):
        return pa.array([statistics.min, statistics.max], kind)
    raw = pa.int32() if pa.types.is_date32(kind) else pa.int64()
    return pa.array([statistics.min_raw, statistics.max_raw], raw).cast(kind)
