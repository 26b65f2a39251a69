"""One Postgres table as Arrow record batches, by COPY BINARY.

The server sends `COPY (SELECT …) TO STDOUT (FORMAT binary)`; psycopg2 hands over one row a message; numpy decodes
some thousands of rows at a time, column by column. No Python code runs for a single value.

What becomes of a type (docs/operations.md has it in full):

    bool int2 int4 int8 float4 float8 oid          bool, int16, int32, int64, float32, float64, uint32
    numeric(p,s) up to 38 digits                   decimal128
    text varchar char name json                    string (char(n) keeps its padding, json its spelling)
    bytea, uuid                                    binary, 16 bytes of binary
    date, timestamp, timestamptz                   date32, timestamp[us], timestamp[us, UTC]
    everything else                                string: the server's own text, with the session's formats pinned

A domain counts as its base type. Refused by name: pseudo-types, and two columns whose names differ only in case (Spark
and Synapse cannot tell them apart). Values that have no place in the target (infinity, dates outside the years 1 to
9999, on which the readers of the lake disagree, NaN in a numeric) are counted and refused, or become NULL where a
setting says so.

Sources: PostgreSQL documentation, "COPY" (binary format) and "Message Formats" (CopyData: one row a message);
the wire forms of the types are those of their `*_send` functions.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import ceil
from typing import Any, Literal, NamedTuple

import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from psycopg2 import errors, sql

from ingest.background import run_ahead
from shared.arrays import Flags, Int64s
from shared.errors import AccessDenied, BadInput, NotFound, StackTopicsError, TerminalError, TransientError

ROWS_PER_BATCH = 8192
"""What is decoded at once stays in the processor's cache; 128 thousand rows do not."""

BYTES_PER_BATCH = 8 << 20
LARGE_BATCH, RELEASE_EVERY = 4 << 20, 16 << 20
"""Of blocks this large, Arrow's allocator keeps many that another thread has freed, until told to release them."""

BATCHES_AHEAD, BYTES_AHEAD = 12, 32 << 20
"""Enough to go on decoding while a row group of 64 thousand rows is encoded; wide rows are bounded by their bytes."""

SIGNATURE = b"PGCOPY\n\xff\r\n\0"
END_MARK = b"\xff\xff"
LONGEST_STRETCH, LONGEST_FIELD = 64, 4 + 16
PADDING = bytes(LONGEST_STRETCH)
"""What is fetched at the last row's end stays inside the buffer."""

EPOCH_DAYS = 10_957  # 1970-01-01 to 2000-01-01, from which Postgres counts
EPOCH_MICROSECONDS = EPOCH_DAYS * 86_400_000_000
FIRST_DAY, LAST_DAY = -730_119, 2_921_939  # 0001-01-01 and 9999-12-31, counted from 2000-01-01
FIRST_MICROSECOND, LAST_MICROSECOND = FIRST_DAY * 86_400_000_000, (LAST_DAY + 1) * 86_400_000_000 - 1

MAX_DECIMAL_DIGITS = 38

READING = "SELECT, and BYPASSRLS where row security is on"

DECLARED = b"stacktopics.postgres_type"
"""Under this name a field's metadata hold the column's type as the server declares it."""

Fate = Literal["refuse", "null"]


@dataclass(frozen=True)
class Irregular:
    """What to do with values that the target has no place for."""

    infinity: Fate = "refuse"
    out_of_range: Fate = "refuse"
    nan: Fate = "refuse"


@dataclass(frozen=True)
class Column:
    """A column as it is carried: `kind` says how its wire form is decoded, `arrow` what it becomes.

    `declared` is the type in the server's words; `has_own_cast` says that somebody defined its cast to text.
    """

    name: str
    kind: str
    arrow: pa.DataType
    declared: str = ""
    has_own_cast: bool = False

    @property
    def by_cast(self) -> bool:
        """Whether the server turns the value into text."""
        return self.kind in ("numeric", "text by cast")

    def text_of(self, value: sql.Composable) -> sql.Composed:
        """The server's own text of a value of this type, NULL for NULL; not what somebody's cast makes of it.

        A composite value of NULLs alone IS NULL, but is none: `num_nulls` knows that.
        """
        own = "CASE WHEN num_nulls({value}) = 0 THEN format('%s', {value}) END"
        return sql.SQL(own if self.has_own_cast else "{value}::text").format(value=value)


@dataclass(frozen=True)
class TablePlan:
    """How one table is copied; made by `plan_table`. `key` holds the columns that tell its rows apart, if any do."""

    schema: str
    table: str
    columns: tuple[Column, ...]
    server_encoding: str
    key: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.schema}.{self.table}"

    @cached_property
    def arrow_schema(self) -> pa.Schema:
        return pa.schema(
            [pa.field(column.name, column.arrow, metadata={DECLARED: column.declared}) for column in self.columns]
        )

    @cached_property
    def stretches(self) -> list[np.dtype[Any]]:
        """For each column: the fields that follow in every row from its length on, as far as their widths are fixed."""
        return [_stretch(self.columns, first) for first in range(len(self.columns))]

    @property
    def source(self) -> sql.Composed:
        return sql.SQL("{}.{}").format(sql.Identifier(self.schema), sql.Identifier(self.table))

    @property
    def copy_statement(self) -> sql.Composed:
        """COPY of every column, as text where the binary form is not read here."""
        return sql.SQL("COPY ({}) TO STDOUT (FORMAT binary)").format(self._query)

    @property
    def probe_statement(self) -> sql.Composed:
        """The same query for no row: the server refuses it where the role may not read one of the columns."""
        return sql.SQL("{} LIMIT 0").format(self._query)

    @property
    def _query(self) -> sql.Composed:
        values = [
            column.text_of(sql.Identifier(column.name)) if column.by_cast else sql.Identifier(column.name)
            for column in self.columns
        ]
        return sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(values), self.source)


# ---- the session and the plan -------------------------------------------------------------------------------------

PINNED_SESSION = """
    SET LOCAL search_path = pg_catalog;
    SET LOCAL row_security = off;
    SET LOCAL DateStyle = 'ISO, YMD';
    SET LOCAL IntervalStyle = 'postgres';
    SET LOCAL TimeZone = 'UTC';
    SET LOCAL extra_float_digits = 1;
    SET LOCAL bytea_output = 'hex';
    SET LOCAL lc_monetary = 'C';
    SET LOCAL synchronize_seqscans = off;
    SET LOCAL jit = off;
    SET LOCAL lock_timeout = '60s';
    SET LOCAL idle_in_transaction_session_timeout = 0;
"""
"""Text forms and row order must not depend on the role's settings or on who else reads; with row_security off, rows
that the role may not see are an error and do not just go missing."""

COLUMNS = """
    WITH RECURSIVE resolved AS (
        SELECT a.attnum, a.attname, format_type(a.atttypid, a.atttypmod) AS declared, a.atttypid AS type,
               a.atttypmod AS modifier
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL
        SELECT r.attnum, r.attname, r.declared, t.typbasetype, t.typtypmod
        FROM resolved r JOIN pg_type t ON t.oid = r.type WHERE t.typtype = 'd'
    )
    SELECT r.attname, r.declared, r.modifier, t.typtype,
           CASE WHEN t.typnamespace = 'pg_catalog'::regnamespace THEN t.typname ELSE '' END,
           EXISTS (
               SELECT FROM pg_cast c WHERE c.castsource = t.oid AND c.casttarget = 'text'::regtype AND c.oid >= 16384
           )
    FROM resolved r JOIN pg_type t ON t.oid = r.type WHERE t.typtype <> 'd' ORDER BY r.attnum
"""
"""An object whose oid is below 16384 came with the server (FirstNormalObjectId of its source)."""


KEYS = """
    SELECT i.indisprimary, array_agg(a.attname::text ORDER BY a.attnum)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
    WHERE c.oid = to_regclass(%s) AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
      AND NOT (c.relkind = 'r' AND c.relhassubclass)
    GROUP BY i.indexrelid, i.indisprimary HAVING bool_and(a.attnotnull)
"""
"""Sets of columns that the server itself keeps unique and free of NULL. An index of a table with heirs (the old kind,
not partitions) does not reach their rows, which a SELECT of the table returns too."""


def begin_snapshot(connection: Any, seconds: float) -> None:
    """Start the one read-only transaction in which every table is seen at the same moment; see `limit_statements`.

    Raises what `postgres_errors` raises.
    """
    with postgres_errors("the snapshot"):
        connection.set_client_encoding("UTF8")
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True, autocommit=False)
        with connection.cursor() as cursor:
            cursor.execute(PINNED_SESSION)
    limit_statements(connection, seconds)


def limit_statements(connection: Any, seconds: float) -> None:
    """Have the server end each later statement of the transaction after so many seconds, at once if there are none."""
    with postgres_errors("the snapshot"), connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = %s", [max(1, ceil(seconds * 1000))])  # 0 would be no limit


def plan_table(
    connection: Any,
    schema: str,
    table: str,
    excluded: frozenset[str] = frozenset(),
    key: tuple[str, ...] = (),
) -> TablePlan:
    """Read a table's columns from the catalogue and decide what becomes of each; holds the table against changes.

    `excluded` columns are left out. `key` names the columns that must tell rows apart; without it that is the primary
    key, if there is one and all of it is copied. Raises BadInput naming every column that cannot be carried, or a key
    that is none, with how many rows break it; NotFound for a table or view that is not there; AccessDenied when the
    role may not read all that is copied.
    """
    relation = sql.SQL("{}.{}").format(sql.Identifier(schema), sql.Identifier(table))
    with postgres_errors(f"{schema}.{table}"), connection.cursor() as cursor:
        cursor.execute(sql.SQL("SELECT FROM {} LIMIT 0").format(relation))  # locks it until the transaction ends
        cursor.execute(COLUMNS, (schema, table))
        found = cursor.fetchall()
        cursor.execute(KEYS, [relation.as_string(cursor)])
        declared_keys = cursor.fetchall()
    faults = [f"excluded column {name} does not exist" for name in sorted(excluded - {row[0] for row in found})]
    carried = [row for row in found if row[0] not in excluded]
    faults += [f"column {row[0]} is of the pseudo-type {row[1]}" for row in carried if row[3] == "p"]
    spellings = Counter(row[0].lower() for row in carried)
    faults += [f"column {row[0]} differs from another only in case" for row in carried if spellings[row[0].lower()] > 1]
    if not carried:
        faults.append("no column is left to copy")
    if faults:
        raise BadInput(f"{schema}.{table} cannot be copied: {'; '.join(faults)} (see REFERENCE_EXCLUDE_COLUMNS)")
    columns = tuple(
        replace(_column(name, base, modifier, declared), has_own_cast=has_own_cast)
        for name, declared, modifier, _, base, has_own_cast in carried
    )
    names = {column.name for column in columns}
    if lost := sorted(set(key) - names):
        raise BadInput(f"{schema}.{table} has no columns {lost} among those that are copied (see REFERENCE_KEYS)")
    primary = next((tuple(of) for is_primary, of in declared_keys if is_primary and names.issuperset(of)), ())
    plan = TablePlan(schema, table, columns, connection.get_parameter_status("server_encoding"), key or primary)
    with postgres_errors(plan.name), connection.cursor() as cursor:
        cursor.execute(plan.probe_statement)
    if plan.key and not any(set(of) == set(plan.key) for _, of in declared_keys):
        _check_key(connection, plan)
    return plan


def _check_key(connection: Any, plan: TablePlan) -> None:
    """Have the server count the rows that break the key: an index would say so for nothing, but there is none."""
    columns = [sql.Identifier(name) for name in plan.key]
    statement = sql.SQL(
        "SELECT coalesce(sum(rows) FILTER (WHERE incomplete), 0),"
        " coalesce(sum(rows - 1) FILTER (WHERE NOT incomplete), 0)"
        " FROM (SELECT count(*) AS rows, {} AS incomplete FROM {} GROUP BY {}) AS keys"
    ).format(
        sql.SQL(" OR ").join(sql.SQL("{} IS NULL").format(column) for column in columns),
        plan.source,
        sql.SQL(", ").join(columns),
    )
    with postgres_errors(plan.name), connection.cursor() as cursor:
        cursor.execute(statement)
        without, again = cursor.fetchone()
    if without or again:
        raise BadInput(
            f"{plan.name}: ({', '.join(plan.key)}) is no key: {without} rows have NULL in it, "
            f"{again} rows repeat that of another (see REFERENCE_KEYS)"
        )


def _column(name: str, base: str, modifier: int, declared: str) -> Column:
    if base == "numeric" and (decimal := _decimal(modifier)):
        return Column(name, "numeric", decimal, declared)
    if base in KINDS and base != "numeric":
        return Column(name, base, KINDS[base].arrow, declared)
    return Column(name, "text by cast", pa.string(), declared)


def _decimal(modifier: int) -> pa.DataType | None:
    """The decimal that holds every value of a numeric of this type modifier; None without one or beyond 38 digits."""
    if modifier < 0:
        return None
    precision, scale = (modifier - 4) >> 16 & 0xFFFF, ((modifier - 4 & 0x7FF) ^ 1024) - 1024
    digits = max(precision, scale) if scale >= 0 else precision - scale
    return pa.decimal128(digits, max(scale, 0)) if digits <= MAX_DECIMAL_DIGITS else None


# ---- decoding -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cells:
    """One column of some rows: the values in wire form, and which of them are not NULL (None: all are not).

    `starts` and `ends` say where each value lies in `buffer`; `fixed` holds those of a fixed-width column, where what
    stands at a NULL has no meaning.
    """

    buffer: bytes | bytearray
    starts: Int64s
    ends: Int64s
    valid: Flags | None
    fixed: NDArray[Any]


NO_VALUES = np.empty(0, np.uint8)

Tally = Counter[tuple[str, str]]
"""How many irregular values were seen, by (column, "infinity" | "out_of_range" | "nan")."""

Decode = Callable[[Cells, Column, Tally], pa.Array]


@dataclass(frozen=True)
class Kind:
    """A type's wire form (as a numpy type; None where the length varies), what it becomes, and how."""

    wire: str | None
    arrow: pa.DataType
    decode: Decode

    @property
    def width(self) -> int:
        """Bytes a value takes; 0 where the length varies."""
        return np.dtype(self.wire).itemsize if self.wire else 0


def _native(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(values.dtype.newbyteorder("="))


def _bitmap(mask: Flags | None) -> pa.Buffer | None:
    return None if mask is None else pa.py_buffer(np.packbits(mask, bitorder="little"))


def _array(arrow: pa.DataType, values: NDArray[Any], valid: Flags | None) -> pa.Array:
    return pa.Array.from_buffers(arrow, len(values), [_bitmap(valid), pa.py_buffer(values)])


def _number(wire: str, arrow: pa.DataType) -> Kind:
    def decode(cells: Cells, column: Column, _: Tally) -> pa.Array:
        return _array(column.arrow, _native(cells.fixed), cells.valid)

    return Kind(wire, arrow, decode)


def _moment(wire: str, arrow: pa.DataType, first: int, last: int, epoch: int) -> Kind:
    """Days or microseconds since 2000-01-01, where the two ends of the integer mean -infinity and infinity."""
    ends = np.iinfo(np.dtype(wire))

    def decode(cells: Cells, column: Column, tally: Tally) -> pa.Array:
        values, valid = _native(cells.fixed), cells.valid
        outside = (values < first) | (values > last)
        if valid is not None:
            outside &= valid
        if count := int(np.count_nonzero(outside)):
            infinite = int(np.count_nonzero(outside & ((values == ends.min) | (values == ends.max))))
            tally[column.name, "infinity"] += infinite
            tally[column.name, "out_of_range"] += count - infinite
            valid = ~outside if valid is None else valid & ~outside
        return _array(column.arrow, values + values.dtype.type(epoch), valid)

    return Kind(wire, arrow, decode)


def _decode_bool(cells: Cells, column: Column, _: Tally) -> pa.Array:
    values = cells.fixed != 0
    return pa.Array.from_buffers(column.arrow, len(values), [_bitmap(cells.valid), _bitmap(values)])


def _decode_bytes(cells: Cells, column: Column, _: Tally) -> pa.Array:
    """Arrow sees the buffer as values and the gaps between them, alternating, and copies out the values only.

    Of a single row it copies nothing: that is how values of many megabytes come.
    """
    rows = len(cells.starts)
    if rows == 1:
        offsets = np.array([cells.starts[0], cells.ends[0]], np.int32)
        return pa.Array.from_buffers(
            column.arrow, 1, [_bitmap(cells.valid), pa.py_buffer(offsets), pa.py_buffer(cells.buffer)]
        )
    offsets = np.empty(2 * rows, np.int32)
    offsets[0::2], offsets[1::2] = cells.starts, cells.ends
    alternating = pa.Array.from_buffers(
        column.arrow, 2 * rows - 1, [None, pa.py_buffer(offsets), pa.py_buffer(cells.buffer)]
    )
    values = alternating.take(_even(rows))
    if cells.valid is None:
        return values
    return pa.Array.from_buffers(column.arrow, rows, [_bitmap(cells.valid), *values.buffers()[1:]])


@lru_cache(maxsize=2)
def _even(count: int) -> pa.Array:
    return _array(pa.int32(), np.arange(0, 2 * count, 2, dtype=np.int32), None)  # pa.array would import pandas


def _decode_decimal(cells: Cells, column: Column, tally: Tally) -> pa.Array:
    text = _decode_bytes(cells, replace(column, arrow=pa.string()), tally)
    nan = pc.equal(text, "NaN")
    if count := pc.sum(nan).as_py():
        tally[column.name, "nan"] += count
        text = pc.if_else(nan, None, text)
    return text.cast(column.arrow)


_TEXT = Kind(None, pa.string(), _decode_bytes)

KINDS: Mapping[str, Kind] = {
    "bool": Kind("u1", pa.bool_(), _decode_bool),
    "int2": _number(">i2", pa.int16()),
    "int4": _number(">i4", pa.int32()),
    "int8": _number(">i8", pa.int64()),
    "oid": _number(">u4", pa.uint32()),
    "float4": _number(">f4", pa.float32()),
    "float8": _number(">f8", pa.float64()),
    "uuid": _number("V16", pa.binary(16)),
    "date": _moment(">i4", pa.date32(), FIRST_DAY, LAST_DAY, EPOCH_DAYS),
    "timestamp": _moment(">i8", pa.timestamp("us"), FIRST_MICROSECOND, LAST_MICROSECOND, EPOCH_MICROSECONDS),
    "timestamptz": _moment(">i8", pa.timestamp("us", "UTC"), FIRST_MICROSECOND, LAST_MICROSECOND, EPOCH_MICROSECONDS),
    "numeric": Kind(None, pa.decimal128(MAX_DECIMAL_DIGITS), _decode_decimal),
    "bytea": Kind(None, pa.binary(), _decode_bytes),
    "text": _TEXT,
    "varchar": _TEXT,
    "bpchar": _TEXT,
    "name": _TEXT,
    "json": _TEXT,
    "text by cast": _TEXT,
}


class WireRows(NamedTuple):
    """Rows in wire form (each the field count, then length and bytes of every field), PADDING behind the last."""

    buffer: bytes | bytearray
    sizes: Int64s


def decode(rows: WireRows, plan: TablePlan, tally: Tally) -> pa.RecordBatch:
    """Rows in wire form as a record batch.

    Irregular values become NULL and are counted in `tally`. Raises BadInput when a row is not of the plan's form.
    """
    walk = _Walk(rows, plan)
    arrays = [KINDS[column.kind].decode(walk.cells(i), column, tally) for i, column in enumerate(plan.columns)]
    walk.finish()
    return pa.RecordBatch.from_arrays(arrays, schema=plan.arrow_schema)


def _stretch(columns: tuple[Column, ...], first: int) -> np.dtype[Any]:
    fields: list[tuple[str, str]] = []
    for number, column in enumerate(columns[first:], start=first):
        length_field, value_field = _field_names(number)
        fields.append((length_field, ">i4"))
        wire = KINDS[column.kind].wire
        if wire is None:
            break
        fields.append((value_field, wire))
        if np.dtype(fields).itemsize > LONGEST_STRETCH - LONGEST_FIELD:
            break
    return np.dtype(fields)


def _field_names(number: int) -> tuple[str, str]:
    return f"length {number}", f"value {number}"


class _Walk:
    """Goes through the columns of all rows at once, and never beyond a row's end.

    Between two values of variable length, all rows without a NULL there are laid out alike: such a stretch of lengths
    and fixed-width values is fetched at once. numpy's fetch from any byte costs about the same for 4 bytes as for 64;
    fetching one by one took 12 % more CPU to receive and decode.
    """

    def __init__(self, rows: WireRows, plan: TablePlan) -> None:
        self._plan, self._buffer = plan, rows.buffer
        self._row_ends = rows.sizes.cumsum()
        self._position = self._row_ends - rows.sizes
        if (self._fetch(np.dtype(">i2")) != len(plan.columns)).any():
            raise BadInput(f"{plan.name}: the server sent rows that have not {len(plan.columns)} columns")
        self._position += 2
        self._stretch: NDArray[Any] | None = None

    def cells(self, number: int) -> Cells:
        """The next column. Raises BadInput when its lengths are not those of its type, or lead beyond the row."""
        length_field, value_field = _field_names(number)
        if self._stretch is None or length_field not in (self._stretch.dtype.names or ()):
            self._stretch = self._fetch(self._plan.stretches[number])
        stretch, column = self._stretch, self._plan.columns[number]
        length, start, width = _native(stretch[length_field]), self._position + 4, KINDS[column.kind].width
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
        """A `dtype` from each row's position on; it may reach into the next row, or into the padding."""
        if (self._position > self._row_ends).any():
            raise BadInput(f"{self._plan.name}: a row ends before its columns do")
        shape = (len(self._buffer) - dtype.itemsize + 1,)
        at_any_byte = np.ndarray(shape, f"V{dtype.itemsize}", self._buffer, strides=(1,))
        return at_any_byte[self._position].view(dtype)


# ---- the copy -----------------------------------------------------------------------------------------------------


class TableCopy:
    """One pass over a table: `batches()` yields it, then `rows` and `nulled` say what came of it."""

    def __init__(self, connection: Any, plan: TablePlan, irregular: Irregular | None = None) -> None:
        self.plan, self.rows = plan, 0
        self._connection, self._irregular, self._tally = connection, irregular or Irregular(), Tally()

    @property
    def nulled(self) -> dict[str, int]:
        """How many values became NULL, by "column: what they were"."""
        return {f"{column}: {what}": count for (column, what), count in sorted(self._tally.items()) if count}

    @property
    def emptied(self) -> frozenset[str]:
        """The columns in which a value became NULL."""
        return frozenset(column for (column, _), count in self._tally.items() if count)

    def batches(self) -> Generator[pa.RecordBatch, None, None]:
        """The table's rows, some thousands at a time, while the server sends the next ones.

        Raises, after the last batch, BadInput naming every column with irregular values that are to be refused, and
        how many; TransientError when the connection breaks or the rows that came are not those that the server sent.
        """
        with postgres_errors(self.plan.name):
            cursor = self._connection.cursor()

        def receive(put: Callable[[pa.RecordBatch], None]) -> None:
            unreleased = 0

            def put_decoded(rows: WireRows) -> None:
                nonlocal unreleased
                batch = decode(rows, self.plan, self._tally)
                del rows  # not to hold both while the queue is full
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
                    del batch  # a large one must not stay until the next one comes
            except BaseException:
                with suppress(psycopg2.Error):  # a connection that is gone needs no cancelling
                    self._connection.cancel()  # else the copying thread waits for the server to send all the rest
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
            key: count for key, count in self._tally.items() if count and getattr(self._irregular, key[1]) == "refuse"
        }
        if refused:
            what = "; ".join(
                f"{count} in column {column}: {WORDS[kind]}" for (column, kind), count in sorted(refused.items())
            )
            settings = ", ".join(sorted({f"REFERENCE_{kind.upper()}" for _, kind in refused}))
            raise BadInput(
                f"{self.plan.name} has values that cannot be carried: {what} ({settings}=null would empty them)"
            )


WORDS = {
    "infinity": "infinite dates",
    "out_of_range": "dates outside the years 1 to 9999",
    "nan": "NaN in a numeric",
}


class RowSink:
    """What psycopg2 writes to, one row a call: joins rows into `WireRows`, bounded in number and in bytes.

    `write` is a generator's own `send`: a Python method would cost a frame for each row. A row is copied at once, while
    it is in the processor's cache: keeping rows and joining them later took 1.1 to 1.3x the CPU of receiving.
    """

    def __init__(self, put: Callable[[WireRows], None], table: str) -> None:
        self._put, self._table = put, table
        self._buffer, self._sizes = bytearray(), list[int]()
        collector = self._collect()
        next(collector)
        self.write = collector.send

    def finish(self) -> None:
        """Hand over what is left; the last message is the format's end mark, not a row."""
        if not self._buffer.endswith(END_MARK) or self._sizes[-1] != len(END_MARK):
            raise TransientError(f"{self._table}: the copy ended without its end mark")
        del self._buffer[-len(END_MARK) :], self._sizes[-1]
        if self._sizes:
            self._hand_over()

    def _collect(self) -> Generator[None, bytes, None]:
        row = _without_header((yield))
        while True:  # the row that no longer fits begins the next batch: it may be the end mark
            filled = len(row)
            buffer, sizes = self._buffer, self._sizes = bytearray(row), [filled]
            del row  # a large one, which always begins a batch, must not stay until the next one comes
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
        """The rows so far, which are kept nowhere else from here on."""
        buffer, self._buffer = self._buffer, bytearray()
        buffer += PADDING
        return WireRows(buffer, np.array(self._sizes, np.int64))


def _without_header(message: bytes) -> bytes:
    """The first message holds signature, flags, an extension area, and the first row (or the end mark)."""
    fixed = len(SIGNATURE) + 8
    if not message.startswith(SIGNATURE) or len(message) < fixed:
        raise BadInput("the server does not speak the binary COPY format")
    flags, extension = struct.unpack_from("!iI", message, len(SIGNATURE))
    if flags:
        raise BadInput(f"the binary COPY format has flags {flags:#x}, which nobody has defined yet")
    return message[fixed + extension :]


# ---- errors -------------------------------------------------------------------------------------------------------


@contextmanager
def postgres_errors(what: str, needed: str = READING) -> Iterator[None]:
    """Translate psycopg2's errors about `what` (a table) into the tree of `shared.errors`.

    `needed` is what the role needs where permission is denied.
    """
    try:
        yield
    except psycopg2.Error as error:
        raise _translated(what, error, needed) from error


def _translated(what: str, error: psycopg2.Error, needed: str) -> StackTopicsError:
    said = f"{what}: {' '.join(str(error).split())}"
    of_statement = error.diag.statement_position is not None  # what it misses is named there, not in a view's function
    if isinstance(error, errors.UndefinedFunction) and of_statement:
        return TerminalError(f"{said}; a key must be of a type that can be compared (see REFERENCE_KEYS)")
    if isinstance(error, errors.UndefinedTable | errors.UndefinedFunction | errors.InvalidSchemaName):
        if of_statement:
            return NotFound(f"{what} does not exist (see REFERENCE_SCHEMA and REFERENCE_TABLES)")
        needed = "name the schema there, or ALTER FUNCTION … SET search_path"
        return NotFound(f"{said}; functions that a view calls find nothing outside pg_catalog by itself: {needed}")
    if isinstance(error, errors.InsufficientPrivilege):
        return AccessDenied(f"{said}; the role in POSTGRES_USER needs {needed}")
    if isinstance(error, errors.QueryCanceled):
        return TransientError(f"{said} (see REFERENCE_DEADLINE_SECONDS)")
    if isinstance(error, errors.ObjectNotInPrerequisiteState):
        return BadInput(f"{said}; a materialized view is filled by REFRESH MATERIALIZED VIEW")
    if isinstance(error, psycopg2.DataError):
        return BadInput(said)
    no_answer = error.pgcode is None  # psycopg2 reports some broken connections as a bare DatabaseError
    if no_answer or isinstance(error, psycopg2.OperationalError | errors.SerializationFailure):
        return TransientError(f"{said}; the connection or the server failed")
    return TerminalError(said)
