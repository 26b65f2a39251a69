"""Reading a Parquet file by its row groups: which of them are worth it, and how much of one at once."""

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
"""Twice as many take 3 % less time and 20 MiB more, which small files do not: memory would grow with the file."""
LARGE_GROUP, READ_BUFFER = 32 << 20, 4 << 20
"""Bytes, before compression, of a row group that is read at once at most; and of each column of a larger one."""


def reader(data: RangedReader | Any, footer: pq.FileMetaData) -> pq.ParquetFile:
    """A reader that fetches what is asked of a small row group at once; of a large one, bit by bit.

    A million posts in one group, which is what many writers make, would be half a gigabyte.
    """
    largest = max((footer.row_group(number).total_byte_size for number in range(footer.num_row_groups)), default=0)
    ahead = {"buffer_size": READ_BUFFER} if largest > LARGE_GROUP else {"pre_buffer": True}
    # INT96 holds any day, of which nanoseconds hold 584 years: the rest would come back as other days
    return pq.ParquetFile(data, metadata=footer, coerce_int96_timestamp_unit="s", **ahead)


@contextmanager
def opened(path: Path, columns: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
    """A Parquet file on disk that has these columns. Raises BadInput that names the file, also while it is read."""
    if not path.is_file():
        raise BadInput(f"{path} is not there, or no file")
    with readable(path), path.open("rb") as data, reader(data, pq.read_metadata(path)) as file:
        if missing := [name for name in columns if name_of(file.schema_arrow.names, name) is None]:
            raise BadInput(f"{path} has no column {', '.join(missing)}")
        yield file


def name_of(names: Sequence[str], column: str) -> str | None:
    """What a file with the columns `names` calls the column `column`: `id` is taken for `Id`. None: it has none."""
    return column if column in names else next(iter(columns_named(names, column)), None)


def batches(
    file: pq.ParquetFile, columns: Sequence[str], groups: Sequence[int] | None = None, rows: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Batches of at most so many rows, else BATCH_ROWS, one row group after the other.

    What is read ahead is held until the last batch of its group. Of `groups`, else of all; those of `columns` that the
    file has, under these names. Arrow's own threads would each keep the memory of the largest texts they have seen.
    """
    names = {found: name for name in columns if (found := name_of(file.schema_arrow.names, name))}
    for group in range(file.num_row_groups) if groups is None else groups:
        for batch in file.iter_batches(rows or BATCH_ROWS, row_groups=[group], columns=list(names), use_threads=False):
            yield batch.rename_columns([names[name] for name in batch.schema.names])


def bounds(file: pq.ParquetFile, column: str) -> list[pa.Array | None]:
    """Of each row group the least and the greatest value of a column of whole numbers, dates or moments.

    None where the file does not tell both, or where values are missing.
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
