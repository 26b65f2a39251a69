"""Decoding COPY BINARY without a server, from valid and malformed rows made by hand."""

import struct
from collections import Counter
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from ingest.postgres import decode as decoding
from ingest.postgres import wire as wired
from ingest.postgres.plan import TablePlan
from ingest.postgres.types import BY_NAME, SourceColumn
from ingest.postgres.wire import WireRows, decode
from shared.errors import BadInput, TransientError

PLAN = TablePlan(
    "raw",
    "t",
    (
        SourceColumn("id", BY_NAME["int4"], pa.int32()),
        SourceColumn("name", BY_NAME["text"], pa.string()),
        SourceColumn("price", BY_NAME["numeric"], pa.decimal128(5, 2)),
        SourceColumn("born", BY_NAME["date"], pa.date32()),
    ),
    "UTF8",
)


def row(*values: bytes | None) -> bytes:
    """A row in wire form."""
    fields = (struct.pack("!i", -1) if v is None else struct.pack("!i", len(v)) + v for v in values)
    return struct.pack("!h", len(values)) + b"".join(fields)


def wire(*rows: bytes) -> WireRows:
    return WireRows(b"".join(rows) + wired.PADDING, np.array([len(r) for r in rows]))


def int4(value: int) -> bytes:
    return struct.pack("!i", value)


FULL = row(int4(7), "né".encode(), b"-1.50", int4(366))
EMPTY = row(None, None, None, None)


def test_values_and_nulls_are_decoded() -> None:
    irregularities: decoding.Irregularities = Counter()
    batch = decode(wire(FULL, EMPTY, row(int4(-1), b"", None, int4(-1))), PLAN, irregularities)
    batch.validate(full=True)
    assert batch.schema == PLAN.arrow_schema
    assert batch["id"].to_pylist() == [7, None, -1]
    assert batch["name"].to_pylist() == ["né", None, ""]
    assert batch["price"].to_pylist() == [Decimal("-1.50"), None, None]
    assert [str(day) for day in batch["born"].to_pylist()] == ["2001-01-01", "None", "1999-12-31"]
    assert not irregularities


@pytest.mark.parametrize("single", [FULL, EMPTY])
def test_a_row_is_decoded_the_same_alone_and_among_others(single: bytes) -> None:
    alone = decode(wire(single), PLAN, Counter())
    alone.validate(full=True)
    assert alone == decode(wire(EMPTY, single, FULL), PLAN, Counter()).slice(1, 1)
    assert alone.nbytes <= len(single) + 16 * len(PLAN.columns)


def test_a_null_at_the_end_does_not_read_beyond_the_rows() -> None:
    plan = TablePlan("raw", "t", (SourceColumn("n", BY_NAME["uuid"], pa.binary(16)),), "UTF8")
    assert decode(wire(row(None)), plan, Counter())["n"].to_pylist() == [None]


def test_irregular_values_become_null_and_are_counted() -> None:
    irregularities: decoding.Irregularities = Counter()
    last, first = decoding.LAST_DAY, decoding.FIRST_DAY
    days = [2**31 - 1, -(2**31), last, last + 1, first, first - 1]
    batch = decode(wire(*(row(None, None, b"NaN", int4(day)) for day in days)), PLAN, irregularities)
    assert [str(day) for day in batch["born"].to_pylist()] == [
        "None",
        "None",
        "9999-12-31",
        "None",
        "0001-01-01",
        "None",
    ]
    assert batch["price"].null_count == 6
    assert irregularities == {("born", "infinity"): 2, ("born", "out_of_range"): 2, ("price", "nan"): 6}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (row(int4(1), b"x", b"1"), "do not have 4 columns"),
        (row(int4(1), b"x", b"1", int4(1), b""), "do not have 4 columns"),
        (row(b"\0\1", b"x", b"1", int4(1)), "values of column id are not 4 bytes long"),
        (FULL + b"\0", "a row does not end where its last column does"),
        (FULL[:-1], "a row does not end where its last column does|a row ends before its column"),
        (FULL[:12], "a row ends before its column name"),
        (row(int4(1), b"", b"", b"")[:10] + int4(2**30), "a row ends before its column name"),
        (b"\0\4", "a row ends before its column id|column id are not 4 bytes"),
        (b"", "do not have 4 columns|a row ends before its columns do"),
    ],
)
def test_a_malformed_row_is_refused_at_any_position(bad: bytes, said: str) -> None:
    for rows in ((bad, FULL), (FULL, bad), (FULL, bad, EMPTY)):
        with pytest.raises(BadInput, match=f"raw.t: .*{said}"):
            decode(wire(*rows), PLAN, Counter())


HEADER = wired.SIGNATURE + struct.pack("!iI", 0, 0)


def collected(messages: list[bytes]) -> list[WireRows]:
    found: list[WireRows] = []
    sink = wired.RowSink(found.append, "raw.t")
    for message in messages:
        sink.write(message)
    sink.finish()
    return found


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 511, 512, 8191, 8192, 8193, 8448])
def test_rows_are_joined_in_order_without_the_end_mark(count: int) -> None:
    rows = [row(int4(i)) for i in range(count)]
    messages = [*rows, wired.END_MARK]
    messages[0] = HEADER + messages[0]
    found = collected(messages)
    assert b"".join(batch.buffer.removesuffix(wired.PADDING) for batch in found) == b"".join(rows)
    assert [size for batch in found for size in batch.sizes] == [10] * count
    assert all(len(batch.sizes) <= wired.ROWS_PER_BATCH for batch in found)


def test_few_large_rows_make_a_batch() -> None:
    large = row(bytes(3 << 20))
    found = collected([HEADER + row(int4(1)), *[large] * 10, wired.END_MARK])
    assert [size for batch in found for size in batch.sizes] == [10, *[len(large)] * 10]
    assert max(len(batch.buffer) for batch in found) <= wired.BYTES_PER_BATCH + 2 * len(large)


def test_a_header_extension_is_skipped() -> None:
    header = wired.SIGNATURE + struct.pack("!iI", 0, 3) + b"abc"
    assert [len(batch.sizes) for batch in collected([header + row(int4(1)), wired.END_MARK])] == [1]


@pytest.mark.parametrize("first", [b"", b"1\tone\n", HEADER[:-1], wired.SIGNATURE + struct.pack("!iI", 1 << 16, 0)])
def test_another_format_is_refused(first: bytes) -> None:
    with pytest.raises(BadInput, match="binary COPY format"):
        collected([first, wired.END_MARK])


@pytest.mark.parametrize("messages", [[], [HEADER + row(int4(1))]])
def test_a_copy_without_an_end_mark_is_refused_as_incomplete(messages: list[bytes]) -> None:
    with pytest.raises(TransientError, match=r"raw\.t: the copy ended without its end mark"):
        collected(messages)
