"""The checksum, against hashes that a Postgres 15 server computed."""

from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest

from ingest.postgres.checksum import batch_checksum
from ingest.postgres.lookup3 import LONG, without_nulls
from ingest.postgres.types import TYPES, PostgresType, SourceColumn

SEED = 3
OF_THE_SERVER: list[tuple[pa.DataType, Any, int]] = [
    (pa.int16(), 7, 102571149161929872),
    (pa.int32(), -5, 4566310048417840633),
    (pa.int64(), -5_000_000_000, 5112412090131384660),
    (pa.int64(), 5_000_000_000, 1259793121497870890),
    (pa.int64(), 7, 102571149161929872),
    (pa.uint32(), 2**32 - 1, -8246732482095048772),
    (pa.float64(), -1.5, -6596134978962043628),
    (pa.float64(), float("nan"), 8232049380549144131),
    (pa.float64(), -0.0, SEED),
    (pa.float32(), 0.1, 5542511452637177543),
    (pa.bool_(), True, 8154189042689340213),
    (pa.string(), "", 1628731699460038297),
    (pa.string(), "a", -3249926563169018939),
    (pa.string(), "twelve bytes", -6318579989949900893),
    (pa.string(), "naïve 東京, and more than twelve bytes", -3614784948434048850),
    (pa.string(), "x" * LONG, -5930320270833791365),
    (pa.string(), "x" * (LONG + 1), 197495193610464630),
    (pa.binary(), b"\x00\xff", -5026607146913936442),
    (pa.binary(), b"\xab" * (LONG + 1), -7100488479942499414),
    (pa.binary(16), UUID("00112233-4455-6677-8899-aabbccddeeff").bytes, 2948312579206575731),
    (pa.date32(), date(2026, 11, 22), -3549958358762793876),
    (pa.timestamp("us"), datetime(2026, 11, 22, 12, 0, 0, 1), -8058611614844250525),
    (pa.decimal128(5, 2), Decimal("-1.50"), -7385882468245952934),
    (pa.decimal128(38, 38), Decimal("1e-38"), 3111465026934032749),
]


def entry_of(kind: pa.DataType) -> PostgresType:
    """The first Postgres type that becomes this Arrow type; every decimal is a numeric."""
    return next(
        entry for entry in TYPES if entry.arrow == kind or (pa.types.is_decimal(kind) and entry.names == ("numeric",))
    )


def column_hashes(column: pa.Array, seed: int) -> Any:
    return without_nulls(entry_of(column.type).hash, column, seed)


def checksum_of(batch: pa.RecordBatch) -> int:
    columns = [SourceColumn(field.name, entry_of(field.type), field.type) for field in batch.schema]
    return batch_checksum(batch, columns)


@pytest.mark.parametrize(("kind", "value", "hashed"), OF_THE_SERVER)
def test_hashes_equal_those_of_the_server(kind: pa.DataType, value: Any, hashed: int) -> None:
    alone = column_hashes(pa.array([value], kind), SEED)
    assert alone.astype("i8").tolist() == [hashed]
    among_nulls = column_hashes(pa.array([value, None, value, None, value], kind).slice(1, 3), SEED)
    assert among_nulls.astype("i8").tolist() == [0, hashed, 0]


def test_a_string_hashes_the_same_alone_and_in_a_batch() -> None:
    strings = ["é" * (i * 7 % 600) for i in range(200)] + [None, ""]
    alone = [int(column_hashes(pa.array([text], pa.string()), SEED)[0]) for text in strings]
    assert column_hashes(pa.array(strings), SEED).tolist() == alone
    assert column_hashes(pa.array([*strings, *strings]).slice(90, 150), SEED).tolist() == (alone * 2)[90:240]


def test_without_rows_the_checksum_is_zero() -> None:
    columns = [pa.array([], kind) for kind, _, _ in OF_THE_SERVER]
    assert checksum_of(pa.RecordBatch.from_arrays(columns, names=[str(i) for i in range(len(columns))])) == 0


def checksum(**columns: list[Any]) -> int:
    return checksum_of(pa.RecordBatch.from_pydict(columns))


def test_the_checksum_depends_on_values_rows_columns_and_repetition_but_not_on_order() -> None:
    base = checksum(a=[1, 2, 3], b=["x", None, ""])
    assert base == checksum(a=[3, 1, 2], b=["", "x", None])
    assert base != checksum(a=[1, 2, 4], b=["x", None, ""])
    assert base != checksum(a=[1, 2, 3], b=["x", "", ""])
    assert base != checksum(a=[1, 2, 3], b=[None, "x", ""])
    assert base != checksum(a=[1, 2, 3, 3, 3], b=["x", None, "", "", ""])
    assert checksum(a=[1, 2], b=[2, 1]) != checksum(a=[1, 2], b=[1, 2])
    assert checksum(a=[5], b=[6]) != checksum(a=[6], b=[5])
    parts = checksum(a=[1], b=["x"]) + checksum(a=[2, 3], b=[None, ""])
    assert base == parts % 2**64
