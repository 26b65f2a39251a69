"""Prepares a user's file for the incoming container: CSV becomes Parquet and, if requested, all dates become today's.

A CSV file has the format of the Stack Exchange Data Explorer: UTF-8, a header line, values separated by commas, and
quoted if they contain commas, quotes (doubled) or line breaks. All values stay text: the contract accepts whole numbers
and dates as text.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING

from shared.errors import BadInput
from shared.parquet import readable
from shared.posts import POST_COLUMNS, columns_named

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET = b"PAR1"
LOOKED_AT = 64 << 10
"""Bytes at the beginning of a file from which its format is determined."""
CSV_BLOCK = 32 << 20
"""Bytes of CSV that are parsed at once: no row may be longer."""
DATE_TEXT = r"^\d{4}-\d\d-\d\d"


@contextmanager
def prepared(path: Path, today: date | None = None) -> Iterator[tuple[str, IO[bytes]]]:
    """The blob name and content for the file `path`; with `today`, every post gets that date.

    A Parquet file is otherwise unchanged. Raises BadInput that names the file when it is neither Parquet nor CSV, or
    when the CSV cannot be read. The contract for Posts files is not checked here; the pipeline checks it.
    """
    if not path.is_file():
        raise BadInput(f"{path} is missing or not a file")
    with path.open("rb") as data:
        head = data.read(LOOKED_AT)
        data.seek(0)
        if head.startswith(PARQUET):
            if today is None:
                yield path.name, data
                return
            with readable(path), _written(_redated(_parquet_batches(data), today)) as content:
                yield path.name, content
            return
        batches = _csv_batches(path, header_of(head, str(path)))
        with _csv_errors(path), _written(_redated(batches, today) if today else batches) as content:
            yield path.with_suffix(".parquet").name, content


def header_of(head: bytes, name: str) -> list[str]:
    """The column names of a CSV file of posts that begins with `head`. Raises BadInput for any other file."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BadInput(f"{name} is UTF-16 text: save it as UTF-8")
    try:
        line = head.decode("utf-8-sig", errors="strict" if len(head) < LOOKED_AT else "ignore").split("\n", 1)[0]
    except UnicodeDecodeError:
        raise BadInput(f"{name} is neither Parquet nor text in UTF-8") from None
    names = next(csv.reader(io.StringIO(line)), [])
    if not columns_named(names, "Id"):
        raise BadInput(
            f"{name} is neither a Parquet file nor a CSV file of posts: its first line must name the columns, separated"
            f" by commas, including {', '.join(column.name for column in POST_COLUMNS)}; it begins with {line[:60]!r}"
        )
    return names


def _csv_batches(path: Path, names: list[str]) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    from pyarrow import csv as arrow

    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"{path} has the column {repeated[0]} {names.count(repeated[0])} times")
    reader = arrow.open_csv(
        path,
        arrow.ReadOptions(block_size=CSV_BLOCK, use_threads=False),
        arrow.ParseOptions(newlines_in_values=True),
        arrow.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
        ),
    )
    yield pa.RecordBatch.from_pylist([], reader.schema)  # keeps the columns of a file without rows
    yield from reader


def _parquet_batches(data: IO[bytes]) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(data) as file:
        empty = file.schema_arrow.empty_table().to_batches()
        yield from empty  # keeps the columns of a file without rows
        yield from file.iter_batches()


def _redated(batches: Iterable[pa.RecordBatch], today: date) -> Iterator[pa.RecordBatch]:
    """The batches with `today` as the date of every CreationDate; time of day and UTC offset stay."""
    for batch in batches:
        for name in columns_named(batch.schema.names, "CreationDate"):
            place = batch.schema.get_field_index(name)
            batch = batch.set_column(place, name, _on(batch.column(place), today))
        yield batch


def _on(created: pa.Array, today: date) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = created.type
    if pa.types.is_timestamp(kind):
        moments = created.cast(pa.timestamp("us", kind.tz))
        midnight = pa.scalar(today).cast(pa.timestamp("us", kind.tz))
        utc = moments.cast(pa.timestamp("us"))
        time = pc.subtract(utc, pc.floor_temporal(utc, unit="day"))
        return pc.fill_null(pc.add(midnight.cast(pa.timestamp("us")), time).cast(moments.type), midnight)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        text = created.cast(pa.large_string())
        dated = pc.match_substring_regex(text, DATE_TEXT)
        redated = pc.replace_substring_regex(text, DATE_TEXT, today.isoformat())
        return pc.if_else(pc.fill_null(dated, False), redated, today.isoformat()).cast(kind)
    return pa.repeat(pa.scalar(today), len(created))


@contextmanager
def _written(batches: Iterable[pa.RecordBatch]) -> Iterator[IO[bytes]]:
    """A temporary Parquet file of these batches, positioned at its beginning."""
    import pyarrow.parquet as pq

    with TemporaryFile() as content:
        writer = None
        for batch in batches:
            writer = writer or pq.ParquetWriter(content, batch.schema, compression="zstd")
            writer.write_batch(batch)
        if writer is not None:
            writer.close()
        content.seek(0)
        yield content


@contextmanager
def _csv_errors(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        raise BadInput(f"{path} cannot be read as CSV: {' '.join(str(error).split())}") from error
