"""One Postgres table as Arrow record batches, by COPY BINARY.

The server executes `COPY (SELECT …) TO STDOUT (FORMAT binary)`; psycopg2 delivers one row a message; numpy decodes
some thousands of rows at a time, column by column. No Python code runs for a single value.

Irregular values, which the lake cannot hold, are counted and refused, or become NULL if a setting says so: infinity,
NaN in a numeric, and dates outside the years 1 to 9999, which the readers of the lake interpret differently.

Source: PostgreSQL documentation, "COPY" (binary format) and "Message Formats" (CopyData: one row a message).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import psycopg2
import pyarrow as pa
from numpy.typing import NDArray

from ingest.postgres.background import run_ahead
from ingest.postgres.decode import NO_VALUES, Cells, Irregularities, native
from ingest.postgres.errors import postgres_errors
from ingest.postgres.plan import LONGEST_STRETCH, TablePlan, field_names
from shared.arrays import Int64s
from shared.errors import BadInput, TransientError

ROWS_PER_BATCH = 8192
"""Rows that are decoded at once stay in the processor's cache; 128 thousand rows do not."""

BYTES_PER_BATCH = 8 << 20
LARGE_BATCH, RELEASE_EVERY = 4 << 20, 16 << 20
"""Arrow's allocator keeps many blocks of this size that another thread has freed, until it is asked to release them."""

BATCHES_AHEAD, BYTES_AHEAD = 12, 32 << 20
"""Enough to continue decoding while a row group of 64 thousand rows is encoded; wide rows are limited by bytes."""

SIGNATURE = b"PGCOPY\n\xff\r\n\0"
END_MARK = b"\xff\xff"
PADDING = bytes(LONGEST_STRETCH)
"""Keeps a fetch at the end of the last row inside the buffer."""


Fate = Literal["refuse", "null"]


@dataclass(frozen=True)
class Irregular:
    """What to do with irregular values."""

    infinity: Fate = "refuse"
    out_of_range: Fate = "refuse"
    nan: Fate = "refuse"


class WireRows(NamedTuple):
    """Rows in wire form (each the field count, then length and bytes of every field), PADDING after the last."""

    buffer: bytes | bytearray
    sizes: Int64s


def decode(rows: WireRows, plan: TablePlan, irregularities: Irregularities) -> pa.RecordBatch:
    """Rows in wire form as a record batch.

    Irregular values become NULL and are counted in `irregularities`. Raises BadInput when a row does not have the form
    of the plan.
    """
    walk = _Walk(rows, plan)
    arrays = [
        column.type.decode(walk.cells(i), column.name, column.arrow, irregularities)
        for i, column in enumerate(plan.columns)
    ]
    walk.finish()
    return pa.RecordBatch.from_arrays(arrays, schema=plan.arrow_schema)


class _Walk:
    """Reads the columns of all rows at once, and never beyond a row's end.

    Between two values of variable length, all rows without a NULL there have the same layout: such a stretch of lengths
    and fixed-width values is fetched at once. For numpy, an unaligned fetch of 64 bytes costs about as much as one of
    4; single fetches took 12 % more CPU to receive and decode.
    """

    def __init__(self, rows: WireRows, plan: TablePlan) -> None:
        self._plan, self._buffer = plan, rows.buffer
        self._row_ends = rows.sizes.cumsum()
        self._position = self._row_ends - rows.sizes
        if (self._fetch(np.dtype(">i2")) != len(plan.columns)).any():
            raise BadInput(f"{plan.name}: the server sent rows that do not have {len(plan.columns)} columns")
        self._position += 2
        self._stretch: NDArray[Any] | None = None

    def cells(self, number: int) -> Cells:
        """The next column. Raises BadInput when its lengths do not fit its type, or exceed the row."""
        length_field, value_field = field_names(number)
        if self._stretch is None or length_field not in (self._stretch.dtype.names or ()):
            self._stretch = self._fetch(self._plan.stretches[number])
        stretch, column = self._stretch, self._plan.columns[number]
        length, start, width = native(stretch[length_field]), self._position + 4, column.type.width
        if width and (length == width).all():
            self._position = start + width
            return Cells(self._buffer, start, self._position, None, stretch[value_field])
        valid = length >= 0
        if width and (length[valid] != width).any():
            raise BadInput(f"{self._plan.name}: values of column {column.name} are not {width} bytes long")
        self._position = start + np.maximum(length, 0)
        self._stretch = None  # from here on, every row has its own offsets
        if (self._position > self._row_ends).any():
            raise BadInput(f"{self._plan.name}: a row ends before its column {column.name} does")
        fixed = stretch[value_field] if width else NO_VALUES
        return Cells(self._buffer, start, self._position, None if valid.all() else valid, fixed)

    def finish(self) -> None:
        """Raises BadInput unless every row ends where its last column does."""
        if (self._position != self._row_ends).any():
            raise BadInput(f"{self._plan.name}: a row does not end where its last column does")

    def _fetch(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """A `dtype` at each row's position; it may extend into the next row, or into the padding."""
        if (self._position > self._row_ends).any():
            raise BadInput(f"{self._plan.name}: a row ends before its columns do")
        shape = (len(self._buffer) - dtype.itemsize + 1,)
        at_any_byte = np.ndarray(shape, f"V{dtype.itemsize}", self._buffer, strides=(1,))
        return at_any_byte[self._position].view(dtype)


class TableCopy:
    """One pass over a table: `batches()` yields its rows; after that `rows` and `nulled` are complete."""

    def __init__(self, connection: Any, plan: TablePlan, irregular: Irregular | None = None) -> None:
        self.plan, self.rows = plan, 0
        self._connection, self._irregular, self._irregularities = connection, irregular or Irregular(), Irregularities()

    @property
    def nulled(self) -> dict[str, int]:
        """The number of values that became NULL, by "column: kind"."""
        return {f"{column}: {what}": count for (column, what), count in sorted(self._irregularities.items()) if count}

    @property
    def emptied(self) -> frozenset[str]:
        """The columns in which a value became NULL."""
        return frozenset(column for (column, _), count in self._irregularities.items() if count)

    def batches(self) -> Generator[pa.RecordBatch, None, None]:
        """The table's rows, some thousands at a time, while the server sends the next ones.

        Raises, after the last batch, BadInput naming every column with refused irregular values, and their numbers;
        TransientError when the connection breaks or fewer or more rows arrived than the server sent.
        """
        with postgres_errors(self.plan.name):
            cursor = self._connection.cursor()

        def receive(put: Callable[[pa.RecordBatch], None]) -> None:
            unreleased = 0

            def put_decoded(rows: WireRows) -> None:
                nonlocal unreleased
                batch = decode(rows, self.plan, self._irregularities)
                del rows  # else both are held while the queue is full
                unreleased += batch.nbytes if batch.nbytes > LARGE_BATCH else 0
                if unreleased > RELEASE_EVERY:
                    pa.default_memory_pool().release_unused()
                    unreleased = 0
                put(batch)

            sink = RowSink(put_decoded, self.plan.name)
            with postgres_errors(self.plan.name):
                cursor.copy_expert(self.plan.copy_statement.as_string(cursor), sink)
            sink.finish()

        with closing(cursor), closing(self._ahead(receive)) as received:
            try:
                for batch in received:
                    self.rows += batch.num_rows
                    yield batch
                    del batch  # a large one must not stay in memory until the next one arrives
            except BaseException:
                with suppress(psycopg2.Error):  # a lost connection needs no cancelling
                    self._connection.cancel()  # else the copying thread waits until the server has sent the rest
                raise
            if cursor.rowcount != self.rows:
                raise TransientError(f"{self.plan.name}: {self.rows} of {cursor.rowcount} rows arrived")
        self._refuse()

    def _ahead(
        self, receive: Callable[[Callable[[pa.RecordBatch], None]], None]
    ) -> Generator[pa.RecordBatch, None, None]:
        return run_ahead(receive, BATCHES_AHEAD, f"copy {self.plan.name}", BYTES_AHEAD, lambda batch: batch.nbytes)

    def _refuse(self) -> None:
        refused = {
            key: count
            for key, count in self._irregularities.items()
            if count and getattr(self._irregular, key[1]) == "refuse"
        }
        if refused:
            what = "; ".join(
                f"{count} in column {column}: {WORDS[kind]}" for (column, kind), count in sorted(refused.items())
            )
            settings = ", ".join(sorted({f"REFERENCE_{kind.upper()}" for _, kind in refused}))
            raise BadInput(
                f"{self.plan.name} has values that cannot be copied: {what} (with {settings}=null they become NULL)"
            )


WORDS = {
    "infinity": "infinite dates",
    "out_of_range": "dates outside the years 1 to 9999",
    "nan": "NaN in a numeric",
}


class RowSink:
    """The file that psycopg2 writes to, one row a call: joins rows into `WireRows`, limited in number and bytes.

    `write` is a generator's own `send`: a Python method would cost a frame for each row. A row is copied immediately,
    while it is in the processor's cache: to keep rows and join them later took 1.1 to 1.3x the CPU of receiving.
    """

    def __init__(self, put: Callable[[WireRows], None], table: str) -> None:
        self._put, self._table = put, table
        self._buffer, self._sizes = bytearray(), list[int]()
        collector = self._collect()
        next(collector)
        self.write = collector.send

    def finish(self) -> None:
        """Hand over the last rows. Raises TransientError when the last message is not the format's end mark."""
        if not self._buffer.endswith(END_MARK) or self._sizes[-1] != len(END_MARK):
            raise TransientError(f"{self._table}: the copy ended without its end mark")
        del self._buffer[-len(END_MARK) :], self._sizes[-1]
        if self._sizes:
            self._hand_over()

    def _collect(self) -> Generator[None, bytes, None]:
        row = _without_header((yield))
        while True:  # a row that no longer fits begins the next batch; it may be the end mark
            filled = len(row)
            buffer, sizes = self._buffer, self._sizes = bytearray(row), [filled]
            del row  # a large one, which always begins a batch, must not stay until the next one arrives
            for _ in range(ROWS_PER_BATCH - 1):
                row = yield
                size = len(row)
                filled += size
                if filled > BYTES_PER_BATCH:
                    break
                buffer += row
                sizes.append(size)
            else:
                row = yield
            del buffer, sizes
            self._hand_over()

    def _hand_over(self) -> None:
        self._put(self._taken())

    def _taken(self) -> WireRows:
        """The rows so far; the sink gives up its reference to them."""
        buffer, self._buffer = self._buffer, bytearray()
        buffer += PADDING
        return WireRows(buffer, np.array(self._sizes, np.int64))


def _without_header(message: bytes) -> bytes:
    """The first message holds signature, flags, an extension area, and the first row (or the end mark)."""
    fixed = len(SIGNATURE) + 8
    if not message.startswith(SIGNATURE) or len(message) < fixed:
        raise BadInput("the server did not send the binary COPY format")
    flags, extension = struct.unpack_from("!iI", message, len(SIGNATURE))
    if flags:
        raise BadInput(f"the binary COPY format has unknown flags {flags:#x}")
    return message[fixed + extension :]
