"""The contract of a Posts file, and how its column types are converted."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from classify.posts import clean
from ingest.contracts import check_posts
from shared import paths
from shared.errors import BadInput
from shared.storage import RangedReader
from tests.real_posts import RealPosts
from tests.world import parquet, posts

FILE_DAY = date(2026, 1, 2)


def with_column(name: str, values: Any, kind: pa.DataType) -> pa.Table:
    table = posts({}, {})
    place = table.schema.get_field_index(name)
    return table.set_column(place, name, pa.array(values, kind))


def check(table: pa.Table) -> int:
    return check_posts(io.BytesIO(parquet(table)), "a.parquet").rows


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("Id", [1, 2], pa.int32()),
        ("Id", [1, 2], pa.uint32()),
        ("Title", ["a", None], pa.large_string()),
        ("Title", ["a", "b"], pa.dictionary(pa.int8(), pa.string())),
        ("CreationDate", [None, None], pa.null()),
        ("CreationDate", ["2026-01-01", None], pa.string()),
        ("CreationDate", [date(2026, 1, 1), None], pa.date32()),
        ("CreationDate", [datetime(2026, 1, 1), None], pa.timestamp("ns", "Asia/Tokyo")),
    ],
)
def test_a_column_may_have_one_of_several_types(name: str, values: Any, kind: pa.DataType) -> None:
    assert check(with_column(name, values, kind)) == 2


@pytest.mark.parametrize(
    ("name", "values", "kind", "said"),
    [
        ("Id", [datetime(2026, 1, 1), None], pa.timestamp("us"), "column Id is timestamp and must be a whole number"),
        ("Id", [True, False], pa.bool_(), "column Id is boolean and must be a whole number"),
        ("Title", [1, 2], pa.int64(), "column Title is int64 and must be text"),
        ("CreationDate", [1, 2], pa.int64(), "column CreationDate is int64 and must be a timestamp"),
        ("Body", [["a"], ["b"]], pa.list_(pa.string()), "column Body is group and must be text"),
    ],
)
def test_the_error_of_a_wrong_type_names_the_right_type(name: str, values: Any, kind: pa.DataType, said: str) -> None:
    with pytest.raises(BadInput, match="breaks the contract for Posts") as refused:
        check(with_column(name, values, kind))
    assert said in str(refused.value)


NAMED_BY_KIND = {
    "int32": [pa.int8(), pa.int16(), pa.int32()],
    "int64": [pa.int64()],
    "uint32": [pa.uint8(), pa.uint16(), pa.uint32()],
    "uint64": [pa.uint64()],
    "string": [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.json_(),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
    "timestamp": [pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "Asia/Tokyo")],
    "date": [pa.date32(), pa.date64()],
    "null": [pa.null()],
    "binary": [pa.binary(), pa.large_binary()],
    "boolean": [pa.bool_()],
    "float": [pa.float32()],
    "double": [pa.float64()],
    "int32 time": [pa.time32("ms")],
    "int64 time": [pa.time64("ns")],
    "fixed binary": [pa.binary(3)],
    "fixed binary half-precision number": [pa.float16()],
    "decimal": [pa.decimal128(20, 2), pa.decimal128(9, 2), pa.decimal256(60, 0)],
    "group": [pa.list_(pa.int64()), pa.struct([("a", pa.int8())]), pa.map_(pa.string(), pa.int8())],
}


def test_types_have_the_names_of_their_stored_form() -> None:
    table = posts({}, {}).slice(0, 0)  # a column without any value would be named null
    expected = {}
    for named, kinds in NAMED_BY_KIND.items():
        for kind in kinds:
            table = table.append_column(str(kind), pa.nulls(0, kind))
            expected[str(kind)] = named
    found = check_posts(io.BytesIO(parquet(table)), "a.parquet").columns
    assert dict(found[len(posts({}).schema) :]) == expected


def test_one_error_names_every_fault_of_a_file() -> None:
    table = with_column("Id", [True, False], pa.bool_()).drop_columns(["Body", "Title"])
    with pytest.raises(BadInput, match=r"Id is boolean.*Title is missing.*Body is missing"):
        check(table)


def test_only_the_footer_is_read() -> None:
    table = posts(*({"Body": "x" * 1000 + str(number)} for number in range(20_000)))
    data = parquet(table)
    fetched: list[int] = []

    def fetch(offset: int, length: int) -> bytes:
        fetched.append(length)
        return data[offset : offset + length]

    footer = check_posts(RangedReader(fetch, len(data), "a.parquet"), "a.parquet")  # type: ignore[arg-type]
    assert footer.rows == 20_000
    assert len(fetched) <= 3
    assert sum(fetched) < 100_000


def damaged(change: str) -> bytes:
    data = parquet(posts({}))
    return {
        "cut": data[:-100],
        "short": b"PAR1PAR1",
        "footer too long": data[:-8] + (1 << 30).to_bytes(4, "little") + b"PAR1",
        "footer of noise": data[:-200] + bytes(192) + data[-8:],
        "columns gone": data[:4] + data[-int.from_bytes(data[-8:-4], "little") - 8 :],
    }[change]


@pytest.mark.parametrize("change", ["cut", "short", "footer too long", "footer of noise", "columns gone"])
def test_a_file_with_a_damaged_or_false_footer_is_refused(change: str) -> None:
    with pytest.raises(BadInput, match=r"^a\.parquet (is not a Parquet file|declares)"):
        check_posts(io.BytesIO(damaged(change)), "a.parquet")


def moments(values: Any, kind: pa.DataType) -> list[str]:
    found = clean.days(pa.array(values, kind), FILE_DAY)
    return [str(np.datetime64(int(day), "D")) for day in found]


def test_the_check_does_not_import_pyarrow() -> None:
    """PyArrow takes 43 MiB, more than twice the memory of landing a large file."""
    script = "import io, sys; from ingest.contracts import check_posts; check_posts(sys.stdin.buffer, 'a'); "
    script += "raise SystemExit('pyarrow' in sys.modules)"
    with tempfile.TemporaryFile() as file:
        file.write(parquet(posts({})))
        file.seek(0)
        assert subprocess.run([sys.executable, "-c", script], stdin=file, check=False).returncode == 0


def test_the_day_of_a_post_is_the_utc_date_of_its_creation() -> None:
    late = datetime(2012, 6, 12, 23, 30)
    assert moments([late, None], pa.timestamp("ms")) == ["2012-06-12", "2026-01-02"]
    tokyo = pa.array([datetime(2012, 6, 12, 23, 30, tzinfo=UTC)], pa.timestamp("us", "Asia/Tokyo"))
    assert str(np.datetime64(int(clean.days(tokyo, FILE_DAY)[0]), "D")) == "2012-06-12"
    assert moments([datetime(1960, 6, 12, 23, 30)], pa.timestamp("s")) == ["1960-06-12"]
    assert moments([date(1960, 6, 12)], pa.date64()) == ["1960-06-12"]
    assert moments([None], pa.null()) == ["2026-01-02"]
    texts = ["2026-01-01 23:30:00-05", "2026-01-01T23:30:00.5+1130", "2026-01-01T23:30:00-99:00"]
    assert moments(texts, pa.string()) == ["2026-01-02", "2026-01-01", "2026-01-02"]
    texts = ["2026-01-02T10:00+05:30", "2026-01-02 10:00+0200", "2026-01-02T23:30-02:00", "2026-01-01T04:59Z"]
    assert moments(texts, pa.string()) == ["2026-01-02", "2026-01-02", "2026-01-03", "2026-01-01"]
    texts = ["2026-02-30", "2025-02-29T00:00:00Z", "2024-02-29T23:59:59.999", "1967-12-31T23:59:60Z"]
    assert moments(texts, pa.string()) == ["2026-01-02", "2026-01-02", "2024-02-29", "1967-12-31"]
    texts = ["2026-11-21T23:30:00-05:00[America/New_York]", " 2026-11-21T23:30:00.5 -0500\n", "2026-11-21t24:00:00Z"]
    assert moments(texts, pa.large_string()) == ["2026-11-22"] * 3
    texts = ["2026-11-20 23:30 UTC", "2026-11-20T23:30:00,123Z", "2026-11-20 \t"]
    assert moments(texts, pa.string()) == ["2026-11-20"] * 3
    texts = ["2026-01-05T", "2026-01-05 25:00+05:00", "2026-01-05-05:00", "2026-01-051", "02/03/2026", "1767312000"]
    texts += ["2026-01-05T2330-0500", "2026-01-05 noon"]
    assert moments(texts, pa.string()) == ["2026-01-02"] * len(texts)
    texts = ["2012-06-12T19:49:26.940", "2012-06-12", "2012-06-12 23:49:26-02:00", "2012-06-12T00:10:00+0530", "soon"]
    assert moments(texts, pa.string()) == ["2012-06-12", "2012-06-12", "2012-06-13", "2012-06-11", "2026-01-02"]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_a_timestamp_outside_the_calendar_counts_on_the_day_of_the_file(unit: str) -> None:
    extremes = pa.array([2**63 - 1, -(2**63), 0]).cast(pa.timestamp(unit))
    found = [str(np.datetime64(int(day), "D")) for day in clean.days(extremes, FILE_DAY)]
    assert found == (
        ["2262-04-11", "1677-09-21", "1970-01-01"] if unit == "ns" else ["2026-01-02", "2026-01-02", "1970-01-01"]
    )


def test_the_first_and_the_last_day_of_the_calendar_are_valid() -> None:
    edges = pa.array([-719_163, -719_162, 2_932_896, 2_932_897], pa.int32())
    expected = [date(2026, 1, 2), date.min, date.max, date(2026, 1, 2)]
    for array in (edges.cast(pa.date32()), edges.cast(pa.date32()).cast(pa.date64())):
        assert [date(1970, 1, 1) + timedelta(days=int(day)) for day in clean.days(array, FILE_DAY)] == expected
    texts = ["9999-12-31T23:59:59-05:00", "0001-01-01T00:00:00+05:00", "9999-12-31", "0001-01-01"]
    assert moments(texts, pa.string()) == ["2026-01-02", "2026-01-02", "9999-12-31", "0001-01-01"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_date_in_invalid_utf8_does_not_affect_other_dates(kind: pa.DataType) -> None:
    array = (
        pa.array([b"2012-06-12", b"\xff012-06-12", b"2012-06-1\xc3", None])
        .cast(pa.large_binary())
        .view(pa.large_string())
    )
    array = pc.cast(array, options=pc.CastOptions(kind, allow_invalid_utf8=True))
    found = [str(np.datetime64(int(day), "D")) for day in clean.days(array, FILE_DAY)]
    assert found == ["2012-06-12", "2026-01-02", "2026-01-02", "2026-01-02"]


@pytest.mark.parametrize(
    ("name", "day"),
    [
        ("posts-2026-11-21.parquet", date(2026, 11, 21)),
        ("2025/12/31/posts_20260102.parquet", date(2026, 1, 2)),
        ("posts-2026-13-41.parquet", date(2026, 11, 22)),
        ("posts-123456789.parquet", date(2026, 11, 22)),
    ],
)
def test_the_day_of_a_file_is_the_date_in_its_name(name: str, day: date) -> None:
    assert paths.file_day(name, datetime(2026, 11, 22, 5, tzinfo=UTC)) == day


def test_files_of_real_posts_meet_the_contract(real_posts: RealPosts) -> None:
    for name in ("posts.parquet", "posts-devops.parquet"):
        with real_posts(name).open("rb") as file:
            assert check_posts(file, name).rows > 1_000
