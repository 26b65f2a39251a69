"""Hostile and damaged footers, and those of ordinary writers."""

from __future__ import annotations

import io
import tracemalloc
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest import footer
from ingest.contracts import MAX_FOOTER_BYTES, check_posts
from shared.errors import BadInput
from tests.footers import (
    BINARY,
    DATA_BYTES,
    I32,
    I64,
    LARGEST,
    LIST,
    STRUCT,
    Field,
    binary,
    chunk,
    element,
    file_of,
    group,
    integer,
    listed,
    one_column,
    struct,
    varint,
    with_ends,
)
from tests.world import parquet, posts


def check(footer_bytes: bytes) -> Any:
    return check_posts(io.BytesIO(with_ends(footer_bytes)), "a.parquet")


def test_arrow_reads_the_footers_made_here() -> None:
    read = pq.read_metadata(io.BytesIO(with_ends(one_column(chunk(), chunk(data=200), rows=2))))
    assert (read.num_rows, read.num_row_groups, read.num_columns) == (2, 2, 1)
    assert read.row_group(1).column(0).data_page_offset == 200
    assert read.row_group(0).column(0).total_compressed_size == 100


@pytest.mark.parametrize(
    ("bytes_", "said"),
    [
        (file_of([element(b"x", 1)] * 20_000 + [element(b"Id")]), "20001 schema elements; at most 4000"),
        (file_of([element(b"x", 1)] * 3_000 + [element(b"Id")]), "more than 32 groups deep"),
        (file_of([element(b"x", 2), element(b"Id")]), "is no tree"),
        (file_of([element(b"x", 1), element(b"Id"), element(b"Id")]), "is no tree"),
        (file_of([element(b"x", -1), element(b"Id")]), "is no tree"),
        (file_of([element(b"x", (1 << 32) + 1), element(b"Id")]), "is no tree"),
        (file_of([element(b"x", 1001)] + [element(b"c%d" % n) for n in range(1001)]), "1001 columns; at most 1000"),
        (one_column(*[chunk()] * 10_001, rows=10_001), "10001 row groups; at most 10000"),
        (
            file_of([element(b"x", 10)] + [element(b"c%d" % n) for n in range(10)], [group(*[chunk()] * 10)] * 5_001),
            "50010 column chunks; at most 50000",
        ),
        (file_of([element(b"x", 1), element(b"\xff\xfe")]), r"column name b'\\xff\\xfe' is not UTF-8"),
        (file_of([element(b"x", 1), element(b"n" * 1_001)]), "name of 1001 bytes"),
        (struct((3, I64, b"\xff" * 10 + b"\x01")), "more than 64 bits"),
        (struct((3, I64, b"\xff" * 9 + b"\x7f")), "more than 64 bits"),
        (struct((3, I64, b"\xff")), "more than 64 bits|ends too early"),
        (struct((3, I64, integer(1)), (3, I64, integer(1))), "rows twice"),
        (struct((3, I32, integer(1))), "with another type"),
        (struct((1 << 16 | 3, I64, integer(1))), "field 65539"),
        (struct((9, 11, b"\0")), "type 11, which Parquet does not use"),
        (struct((9, LIST, b"\x19" * 100)), "more than 32 values deep"),
        (struct((9, LIST, listed([], I32)[:1] + varint(1 << 40))), "ends too early"),
        (struct((9, LIST, listed([b"\0"] * 1_000_001, I32))), "1000001 entries of lists"),
        (struct((9, BINARY, varint(1 << 40))), "ends too early"),
        (struct((3, I64, integer(0))), "has no 'schema elements'"),
        (file_of([element(b"x", 1), element(b"Id", kind=8)]), "column Id is of type 8, which Parquet does not have"),
        (file_of([element(b"x", 1), element(b"Id", kind=-1)]), "column Id is of type -1"),
        (
            file_of([element(b"x", 1), struct((1, I32, integer(1)), (4, BINARY, binary(b"s")), (6, I32, integer(0)))]),
            "column s is a string in int32, which no reader supports",
        ),
        (struct((9, LIST, listed([b"\1"], 0))), "type 0, which Parquet does not use"),
        (file_of([element(b"x", 1), element(b"Id")]) + b"\0\0", "ends 2 bytes too early"),
        (b"", "ends too early"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_footer_that_no_writer_makes_is_refused(bytes_: bytes, said: str) -> None:
    with pytest.raises(BadInput, match=rf"^a\.parquet is not a Parquet file that can be read: .*({said})"):
        check(bytes_)


@pytest.mark.parametrize(
    ("bytes_", "said"),
    [
        (one_column(chunk(stored=-100_000), chunk(stored=100_100), rows=2), "declares 100 bytes compressed to -100000"),
        (one_column(chunk(plain=-1)), "declares -1 bytes compressed to 100"),
        (one_column(chunk(stored=997)), "declares 997 bytes at byte 4; columns end at 1000"),
        (one_column(chunk(data=1_000)), "declares 100 bytes at byte 1000"),
        (one_column(chunk(data=-4)), "at byte -4"),
        (one_column(chunk(data=500, dictionary=-1)), "at byte -1"),
        (one_column(chunk(stored=600), chunk(stored=600), rows=2), "declares 1200 bytes of columns, but has 1000"),
        (one_column(chunk(plain=65 << 20, stored=10)), "row group 0 declares 68157440 bytes compressed to 10"),
        (one_column(chunk(plain=40 << 20), chunk(plain=40 << 20), rows=2), "it declares 83886080 bytes compressed to"),
        (one_column(rows=10**15), "declares 1000000000000000 rows, and its row groups another number"),
        (one_column(chunk(), rows=2), "declares 2 rows, and its row groups another number"),
        (file_of([element(b"x", 1), element(b"Id")], [group(chunk(), rows=-1), group(chunk())], 0), "another number"),
        (file_of([element(b"x", 1), element(b"Id")], [group(chunk(values=10**10), rows=10**10)], 10**10), "rows in"),
        (one_column(chunk(values=2)), "declares 2 values in 1 rows"),
        (one_column(chunk(values=0)), "declares 0 values in 1 rows"),
        (file_of([element(b"x", 2), element(b"Id"), element(b"B")], [group(chunk())], 1), "does not have the columns"),
        (file_of([element(b"x", 1), element(b"Id")], [group(struct((1, BINARY, binary(b"o"))))], 1), "another file"),
        (file_of([element(b"x", 1), element(b"Id")], [group(struct())], 1), "row group without 'columns'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_sizes_offsets_and_row_counts_are_refused(bytes_: bytes, said: str) -> None:
    with pytest.raises(BadInput, match=rf"^a\.parquet .*{said}"):
        check(bytes_)


@pytest.mark.parametrize(
    ("physical", "annotations", "named"),
    [
        (1, [], "int32"),
        (2, [(6, I32, integer(18))], "int64"),
        (2, [(6, I32, integer(14))], "uint64"),
        (1, [(6, I32, integer(13))], "uint32"),
        (1, [(6, I32, integer(6))], "date"),
        (2, [(6, I32, integer(9))], "timestamp"),
        (3, [], "timestamp"),
        (6, [(6, I32, integer(0))], "string"),
        (6, [], "binary"),
        (6, [(6, I32, integer(4))], "string"),
        (6, [(6, I32, integer(19))], "string"),
        (2, [(6, I32, integer(5))], "decimal"),
        (2, [(6, I32, integer(8))], "int64 time"),
        (6, [(10, STRUCT, struct((1, STRUCT, struct())))], "string"),
        (2, [(10, STRUCT, struct((10, STRUCT, struct((1, 3, b"\x40"), (2, 1, b"")))))], "int64"),
        (2, [(10, STRUCT, struct((10, STRUCT, struct((1, 3, b"\x40"), (2, 2, b"")))))], "uint64"),
        (2, [(10, STRUCT, struct((5, STRUCT, struct())))], "decimal"),
        (2, [(10, STRUCT, struct((99, STRUCT, struct())))], "int64 of another kind"),
    ],
)
def test_older_and_newer_annotations_of_a_type_are_read(physical: int, annotations: list[Field], named: str) -> None:
    column = struct((1, I32, integer(physical)), (3, I32, integer(1)), (4, BINARY, binary(b"Id")), *annotations)
    read = footer.read_footer(file_of([element(b"schema", 1), column]), DATA_BYTES)
    assert read.columns == [("Id", named)]


def test_an_empty_list_may_have_no_type() -> None:
    """fastparquet writes such lists for facts that it does not have."""
    nothing = (9, LIST, b"\x00")
    bytes_ = struct(
        (1, I32, integer(2)),
        (2, LIST, listed([element(b"schema", 1), element(b"Id")])),
        (3, I64, integer(0)),
        (4, LIST, b"\x00"),
        (5, LIST, b"\x00"),
        nothing,
    )
    assert footer.read_footer(bytes_, DATA_BYTES).columns == [("Id", "int64")]


def test_a_nested_column_may_have_more_values_than_rows() -> None:
    table = posts({}, {}, {})
    nested = pa.array([[{"a": [1, 2], "b": {}}], [], None], pa.list_(pa.struct([("a", pa.list_(pa.int8()))])))
    assert check_posts(io.BytesIO(parquet(table.append_column("Extra", nested))), "a.parquet").rows == 3


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "lz4", "brotli"])
@pytest.mark.parametrize("version", ["1.0", "2.6"])
@pytest.mark.parametrize("use_dictionary", [True, False])
def test_any_compression_of_constant_columns_is_accepted(compression: str, version: str, use_dictionary: bool) -> None:
    table = posts({"Body": "<p>the same</p>" * 20}).take(pa.array([0] * 200_000))
    out = io.BytesIO()
    pq.write_table(table, out, compression=compression, version=version, use_dictionary=use_dictionary)
    assert check_posts(out, "a.parquet").rows == 200_000


@pytest.mark.parametrize("rows", [0, 1, 100_000])
def test_columns_with_nothing_but_null_are_accepted(rows: int) -> None:
    columns = {field.name: pa.nulls(rows, field.type) for field in posts({}).schema}
    numbers = {name: pa.array(range(rows), pa.int64()) for name in ("Id", "PostTypeId")}
    assert check_posts(io.BytesIO(parquet(pa.table(columns | numbers))), "a.parquet").rows == rows


@pytest.mark.parametrize("column", ["Id", "PostTypeId"])
def test_a_file_without_any_id_or_type_is_refused(column: str) -> None:
    table = posts({}, {})
    table = table.set_column(table.schema.names.index(column), column, pa.nulls(2, pa.int64()))
    with pytest.raises(BadInput, match=f"column {column} has no value in any row"):
        check_posts(io.BytesIO(parquet(table)), "a.parquet")


def test_a_footer_cut_at_any_byte_is_refused() -> None:
    data = parquet(posts({}, {}))
    size = int.from_bytes(data[-8:-4], "little")
    whole = data[-8 - size : -8]
    for end in range(size):
        with pytest.raises(BadInput):
            footer.read_footer(whole[:end], len(data) - 8 - size)


@pytest.mark.parametrize("made", LARGEST)
def test_the_reader_keeps_only_the_facts_of_column_chunks_in_memory(made: str) -> None:
    """It skips the other entries, of which there may be a million."""
    whole, chunks = LARGEST[made](10)
    footer.read_footer(with_ends(one_column(chunk()))[DATA_BYTES:-8], DATA_BYTES)  # makes what is made only once
    tracemalloc.start()
    with suppress(BadInput):
        footer.read_footer(whole, DATA_BYTES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000 + 1_000 * chunks


@pytest.mark.parametrize("made", LARGEST)
def test_the_largest_test_footers_are_below_the_limit(made: str) -> None:
    """`python -m bench hostile` measures the time and memory of the same footers in the largest size."""
    assert 10_000 < len(LARGEST[made](1)[0]) < MAX_FOOTER_BYTES
