"""The spark engine of `classify.job`: the same outputs from the same scorer, spread over a cluster.

It is for files too large for one machine, and for backfills. Spark finds which rows count and which answers inherit.
Its Python workers pass the texts batch by batch through `clean.clean` and `output.score` (`mapInArrow`). Spark writes
rows to a temporary folder, then the driver renames the files; it writes JSON and counts through the lake.
"""

from __future__ import annotations

import io
import os
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from py4j.protocol import Py4JError  # type: ignore[import-untyped]
from pyspark import StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, DataFrameWriter, SparkSession
from pyspark.sql import functions as F

from classify.days.day import Contribution
from classify.days.tally import COUNTS_SCHEMA, MAX_DAYS, Tally, check_days
from classify.model.model import TopicModel
from classify.posts import clean
from classify.posts.clean import ANSWER, QUESTION, Posts
from classify.posts.rowgroups import BATCH_ROWS, batches, name_of, reader
from classify.registry.models import load_model
from classify.registry.summary import COUNTS_FILE, SUMMARY_FILE, Summary
from classify.run.output import BY_MODEL, BY_PARENT, POST_TOPICS, Clock, check_dates, part, remove_parts_from, score
from classify.run.parameters import JobParameters
from classify.run.questions import QUESTION_TOPICS, check_not_merged, files_of, merge
from shared import paths
from shared.errors import Conflict, TerminalError, TransientError
from shared.parquet import readable

if TYPE_CHECKING:
    from shared.lake import Lake

ROWS_A_PART = 4_000_000
QUESTIONS_BLOCK = 128 << 10
"""Bytes of a row group of question topics: the look-up of one question reads one row group."""
SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.execution.arrow.maxRecordsPerBatch": str(BATCH_ROWS),
    "spark.sql.optimizer.canChangeCachedPlanOutputPartitioning": "true",  # persisted rows need not have 200 partitions
    "spark.sql.legacy.parquet.nanosAsLong": "true",  # else Spark refuses files with nanoseconds, which pandas writes
    "spark.sql.parquet.int96RebaseModeInRead": "CORRECTED",  # else Spark refuses days before 1900: ambiguous in Spark 2
    "spark.sql.parquet.datetimeRebaseModeInWrite": "CORRECTED",  # else it refuses days before 1582, for the same reason
    "spark.sql.caseSensitive": "true",  # else it refuses `body` beside `Body`
}
BUCKET_BITS = paths.QUESTION_BUCKET.bit_length() - 1

SPARK_TYPES = {
    pa.int64(): "long",
    pa.int32(): "int",
    pa.float32(): "float",
    pa.date32(): "date",
    pa.string(): "string",
    pa.bool_(): "boolean",
}


def ddl(schema: pa.Schema) -> str:
    """A schema in Spark's DDL notation."""
    return ", ".join(f"{field.name} {SPARK_TYPES[field.type]}" for field in schema)


CENSUS = "row_index long, Id long, PostTypeId long, ParentId long, day date, misdated boolean"
SCORED = f"{ddl(POST_TOPICS)}, tally binary"
"""Rows of POST_TOPICS, then one last row per partition that holds only the partition's counts."""
QUESTIONS = ddl(pa.schema([field for field in QUESTION_TOPICS if field.name != "origin"]))
"""Rows of QUESTION_TOPICS without their origin."""

Batches = Iterable[pa.RecordBatch]


def session() -> SparkSession:
    """The active session, as on a cluster, or a new one. Raises TerminalError when Spark cannot start."""
    active = SparkSession.getActiveSession()
    if active is not None:
        return active
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else the workers run the first `python3` on the path
    here = str(Path(__file__).parents[2])
    try:
        builder = SparkSession.builder.appName("stacktopics").config("spark.executorEnv.PYTHONPATH", here)
        return builder.getOrCreate()
    except PySparkException as error:
        raise TerminalError(f"Spark cannot start, is Java 17 installed? {error}") from error


def run_spark(spark: SparkSession, lake: Lake, job: JobParameters) -> Summary:
    """Classify one landed file: part-00000.parquet … in the order of their Ids, then the other outputs of a run.

    `spark` reads and writes the files of `lake` at `job.lake_root`. The driver holds only the counts.
    Raises BadInput when the file cannot be read, ModelError, NotFound when it is not in landing, TransientError, and
    Spark's own errors.
    """
    try:
        return _run(spark, lake, job)
    except (PySparkException, Py4JError):  # they do not say whether the file is the cause
        _check(lake, paths.landing(job.source_id, job.version), job.file_day)
        raise


def _check(lake: Lake, path: str, file_day: date) -> None:
    """Read and clean the columns that are used. Raises BadInput that names the file if that fails."""
    with lake.open(path) as data, readable(path):
        for batch in batches(reader(data, pq.read_metadata(data)), clean.COLUMN_NAMES):
            clean.clean(batch, file_day)


def _run(spark: SparkSession, lake: Lake, job: JobParameters) -> Summary:
    clock = Clock()
    with _settings(spark), ExitStack() as kept:

        def keep(rows: DataFrame) -> DataFrame:
            kept.callback(rows.persist(StorageLevel.DISK_ONLY).unpersist)
            return rows

        with clock("model"):
            model = load_model(lake, job.model)
        with clock("census"):
            file = _File.of(lake, job)
            posts = file.read(spark)
            census = keep(_census(posts, file.moments, job.file_day))
            repeated = keep(_repeated(census))
            duplicates = repeated.count()
            counted = census.join(repeated, "row_index", "left_anti")
            kinds = _kinds(counted)
            misdated = sum(kinds[kind][1] for kind in (QUESTION, ANSWER))
            check_dates(
                paths.landing(job.source_id, job.version), misdated, sum(kinds[kind][0] for kind in (QUESTION, ANSWER))
            )
            dated = counted.where(F.col("PostTypeId").isin(QUESTION, ANSWER)).select(F.unix_date("day"))
            check_days([day for (day,) in dated.distinct().limit(MAX_DAYS + 1).collect()])
            elsewhere = keep(_parents_elsewhere(counted))
            buckets = [row["bucket"] for row in elsewhere.select(_bucket()).distinct().collect()]
            known = files_of(lake, buckets)
            earlier = keep(_earlier_topics(spark, job, elsewhere, known, model.topics))
            heirs = keep(_heirs(counted, earlier))
            unread = keep(repeated.union(heirs.select("row_index")))
            unread.count()  # so that Spark knows its size: if it is small, the join needs no shuffle of the texts
            try:
                check_not_merged(lake, buckets, known)
            except Conflict as error:
                raise TransientError(f"{error}; another attempt reads the merged files") from error
        with clock("posts"):
            texts = posts.where(_post_type().isin(QUESTION, ANSWER)).join(unread, "row_index", "left_anti")
            files = tuple(model.to_files().items())
            scorer = partial(_score, files, job.model, file.moments, job.file_day, job.topic_source)
            scored = keep(texts.mapInArrow(scorer, SCORED))  # Spark broadcasts the function with the model's files
            tally = _tally_of(scored, model.topics)
            rows = scored.where("tally is null").drop("tally")
            guessed = (F.col("decided_by") == BY_MODEL).alias("guessed")
            questions = rows.where((F.col("PostTypeId") == QUESTION) & F.col("Id").isNotNull())
            questions = questions.select("Id", "topic", guessed)
            inherited = keep(_inherited(heirs, questions.union(earlier)))
            tally.add_table(_counts_of(inherited))
            rows = rows.union(inherited.select(rows.columns))
        with clock("counts"), _temporary_folder(lake, job) as folder:
            totals = tally.to_table()
            decided_by = _numbers(rows.groupBy("decided_by").count())
            _write_rows(rows, -(-sum(decided_by.values()) // ROWS_A_PART), lake, job, folder)
            lake.put(f"{job.output}/{COUNTS_FILE}", Contribution(job.model, tally).to_parquet())
            _write_question_topics(questions, lake, job, folder)
    summary = Summary(
        source_id=job.source_id,
        version=job.version,
        model=job.model,
        rows=file.rows,
        questions=pc.sum(totals["questions"]).as_py() or 0,
        answers=pc.sum(totals["answers"]).as_py() or 0,
        duplicates=duplicates,
        uncounted={str(kind or "null"): n for kind, (n, _) in kinds.items() if kind not in (QUESTION, ANSWER)},
        misdated=misdated,
        decided_by=decided_by,
        engine="spark",
        seconds=clock.seconds,
    )
    lake.put(f"{job.output}/{SUMMARY_FILE}", summary.model_dump_json(indent=1).encode())
    return summary


@contextmanager
def _settings(spark: SparkSession) -> Iterator[None]:
    """Apply SETTINGS during the run, then restore the old values: a new session would lose this one's credentials."""
    before = {name: spark.conf.get(name) or "" for name in SETTINGS}
    for name, value in SETTINGS.items():
        spark.conf.set(name, value)
    try:
        yield
    finally:
        for name, setting in before.items():
            spark.conf.set(name, setting)


@dataclass(frozen=True)
class _File:
    """The landed file by its footer: the number of rows, and the type with which Spark reads each column used.

    `names` maps our column names to those in the file; `types` has our names as keys.
    `moments` is the Arrow type of a CreationDate that Spark reads as plain integers: as timestamps, Spark cannot hold
    all milliseconds as microseconds, and refuses days before 1582 because the calendar is ambiguous.
    """

    address: str
    rows: int
    names: dict[str, str]
    types: dict[str, str]
    moments: pa.DataType | None

    @classmethod
    def of(cls, lake: Lake, job: JobParameters) -> _File:
        path = paths.landing(job.source_id, job.version)
        with lake.open(path) as data, readable(path), pq.ParquetFile(data) as file:
            physical = {
                column.path: column.physical_type for column in map(file.schema.column, range(len(file.schema)))
            }
            schema = file.schema_arrow
            names = {name: found for name in clean.COLUMN_NAMES if (found := name_of(schema.names, name))}
            kinds = {name: _spark_type(schema.field(found).type, physical[found]) for name, found in names.items()}
            types = {name: kind for name, kind in kinds.items() if kind}
            as_numbers = types.get("CreationDate") in ("int", "long")
            moments = schema.field(names["CreationDate"]).type if as_numbers else None
            rows = file.metadata.num_rows
        return cls(_address(job, path), rows, names, types, moments)

    def read(self, spark: SparkSession) -> DataFrame:
        """`row_index`, and those columns of clean.COLUMN_NAMES that the file has; a null PostTypeId becomes 0."""
        schema = ", ".join(f"`{self.names[name]}` {kind}" for name, kind in self.types.items())
        rows = spark.read.schema(schema).parquet(self.address)
        columns = {name: F.col(self.names[name]) for name in self.types}
        columns["PostTypeId"] = F.coalesce(columns.get("PostTypeId", F.lit(None)), F.lit(0))
        row_index = F.col("_metadata.row_index").alias("row_index")
        return rows.select(row_index, *(column.alias(name) for name, column in columns.items()))


def _post_type() -> Column:
    """PostTypeId as a number, from any type; the census has checked that all are whole."""
    return F.expr("try_cast(PostTypeId as double)")


def _spark_type(kind: pa.DataType, physical: str) -> str:
    """The type with which Spark reads a Parquet column; "" for a column of nulls only, which is not read."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind):
        return ""
    if pa.types.is_integer(kind):
        narrow = kind.bit_width + (1 if pa.types.is_unsigned_integer(kind) else 0)
        return next(name for bits, name in ((32, "int"), (64, "long"), (65, "decimal(20,0)")) if narrow <= bits)
    if pa.types.is_floating(kind):
        return "float" if kind.bit_width == 32 else "double"
    if pa.types.is_decimal(kind):
        return f"decimal({kind.precision},{kind.scale})"
    if pa.types.is_timestamp(kind):
        return "timestamp" if physical == "INT96" else "long"
    if pa.types.is_date(kind):
        return "int"
    return "binary" if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else "string"


def _cleaned(batch: pa.RecordBatch, moments: pa.DataType | None, file_day: date) -> Posts:
    """`clean.clean`; `moments` is the file's type of a CreationDate that was read as integers."""
    if moments is not None:
        place = batch.schema.names.index("CreationDate")
        batch = batch.set_column(place, "CreationDate", batch.column(place).view(moments))
    return clean.clean(batch, file_day)


def _census(posts: DataFrame, moments: pa.DataType | None, file_day: date) -> DataFrame:
    """Rows of CENSUS: every row of the file without its texts; a missing ParentId is 0."""
    columns = [name for name in posts.columns if name not in ("Title", "Body", "Tags")]

    def cleaned(batches: Batches) -> Batches:
        for batch in batches:
            found = _cleaned(batch, moments, file_day)
            yield pa.record_batch(
                {
                    "row_index": batch.column("row_index"),
                    "Id": pa.array(found.ids, mask=~found.has_id),
                    "PostTypeId": pa.array(found.types),
                    "ParentId": pa.array(found.parents),
                    "day": pa.array(found.days).cast(pa.date32()),
                    "misdated": pa.array(found.misdated),
                }
            )

    return posts.select(columns).mapInArrow(cleaned, CENSUS)


def _repeated(census: DataFrame) -> DataFrame:
    """The `row_index` of rows that do not count, by the rule of `classify.posts.repeats`."""
    last = census.where("Id is not null").groupBy("Id").agg(F.max("row_index").alias("last"), F.count("*").alias("n"))
    return census.join(last.where("n > 1"), "Id").where("row_index < last").select("row_index")


def _kinds(counted: DataFrame) -> dict[int, tuple[int, int]]:
    """By PostTypeId (0 for null): the number of posts, and of posts with an invalid CreationDate."""
    found = counted.groupBy("PostTypeId").agg(F.count("*"), F.sum(F.col("misdated").cast("int")))
    return {QUESTION: (0, 0), ANSWER: (0, 0)} | {kind: (posts, misdated) for kind, posts, misdated in found.collect()}


def _questions_in(counted: DataFrame) -> DataFrame:
    return counted.where((F.col("PostTypeId") == QUESTION) & F.col("Id").isNotNull()).select("Id")


def _answers_in(counted: DataFrame) -> DataFrame:
    """The answers that name a question."""
    return counted.where((F.col("PostTypeId") == ANSWER) & (F.col("ParentId") != 0))


def _bucket() -> Column:
    return F.shiftright("Id", BUCKET_BITS).alias("bucket")


def _parents_elsewhere(counted: DataFrame) -> DataFrame:
    """The Ids of questions that answers name but that are missing in the file."""
    asked = _answers_in(counted).select(F.col("ParentId").alias("Id")).distinct()
    return asked.join(_questions_in(counted), "Id", "left_anti")


def _earlier_topics(
    spark: SparkSession, job: JobParameters, elsewhere: DataFrame, files: Sequence[str], topics: tuple[str, ...]
) -> DataFrame:
    """Id, topic and `guessed` of these questions from the newest file, if the model has the topic."""
    if not files:
        return spark.createDataFrame([], QUESTIONS)
    known = spark.read.schema(ddl(QUESTION_TOPICS)).parquet(*(_address(job, path) for path in files))
    found = F.struct("topic", "guessed").alias("found")
    named = known.select("Id", found, "origin").join(elsewhere, "Id", "left_semi")
    newest = named.groupBy("Id").agg(F.max_by("found", "origin").alias("found"))
    return newest.select("Id", "found.*").where(F.col("topic").isin(*topics))


def _heirs(counted: DataFrame, earlier: DataFrame) -> DataFrame:
    """The rows of CENSUS that are answers to questions of this file, or to questions with a topic from an earlier
    file."""
    known = _questions_in(counted).union(earlier.select("Id")).withColumnRenamed("Id", "ParentId")
    return _answers_in(counted).join(known, "ParentId", "left_semi").select(counted.columns)


def _inherited(heirs: DataFrame, topics: DataFrame) -> DataFrame:
    """The rows of POST_TOPICS of answers, with `guessed` and ParentId. `topics` has Id, topic and `guessed` of
    questions."""
    found = heirs.join(topics.withColumnRenamed("Id", "ParentId"), "ParentId")
    known = {name: F.col(name) for name in ("Id", "PostTypeId", "day", "topic")} | {"decided_by": F.lit(BY_PARENT)}
    rows = [known.get(field.name, F.lit(None)).cast(SPARK_TYPES[field.type]).alias(field.name) for field in POST_TOPICS]
    return found.select(*rows, "guessed", "ParentId")


@lru_cache(maxsize=1)
def _model_of(files: tuple[tuple[str, bytes], ...]) -> TopicModel:
    """The model, loaded once per worker process."""
    return TopicModel.from_files(dict(files))


def _score(
    files: tuple[tuple[str, bytes], ...],
    version: str,
    moments: pa.DataType | None,
    file_day: date,
    topic_source: str,
    batches: Batches,
) -> Batches:
    """Rows of SCORED for batches of posts that inherit no topic."""
    model = _model_of(files)
    tally = Tally(model.topics)
    for batch in batches:
        posts = _cleaned(batch, moments, file_day)
        found = score(posts, model, topic_source)
        tally.add(posts.days, posts.types, found.topics, found.guessed, found.asked)
        none = pa.nulls(len(posts), pa.binary())
        yield from found.rows.append_column("tally", none).combine_chunks().to_batches()
    last = {field.name: pa.nulls(1, field.type) for field in POST_TOPICS}
    yield pa.record_batch(last | {"tally": pa.array([Contribution(version, tally).to_parquet()], pa.binary())})


def _tally_of(scored: DataFrame, topics: tuple[str, ...]) -> Tally:
    """The tally of all partitions together."""
    tally = Tally(topics)
    for row in scored.where("tally is not null").select("tally").toLocalIterator():
        tally.add_table(pq.read_table(io.BytesIO(row["tally"])))
    return tally


def _counts_of(inherited: DataFrame) -> pa.Table:
    """The counts of answers that inherited their topics, as rows of COUNTS_SCHEMA."""
    n, uncertain = F.col("n"), F.col("guessed").cast("long")
    bundles = inherited.groupBy("day", "topic", "guessed", "ParentId").agg(F.count("*").alias("n"))
    sums = {"answers": n, "known": n * (1 - uncertain), "inherited": n * uncertain, "bundled": n * n * uncertain}
    found = bundles.groupBy("day", "topic").agg(*(F.sum(each).alias(name) for name, each in sums.items()))
    rows = [dict.fromkeys(COUNTS_SCHEMA.names[2:], 0) | row.asDict() for row in found.collect()]
    return pa.Table.from_pylist(rows, COUNTS_SCHEMA)


def _numbers(counts: DataFrame) -> dict[str, int]:
    """The result of `groupBy(column).count()` as a dictionary."""
    return {str(key): number for key, number in counts.collect()}


@contextmanager
def _temporary_folder(lake: Lake, job: JobParameters) -> Iterator[str]:
    """A folder below the output for Spark's files; the files left in it are deleted at the end."""
    folder = f"{job.output}/{paths.TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        yield folder
    finally:
        for info in list(lake.list(folder)):
            lake.delete(info.path)


def _write_rows(rows: DataFrame, parts: int, lake: Lake, job: JobParameters, folder: str) -> None:
    """Write the rows of POST_TOPICS as part-00000.parquet and so on, in the order of their Ids."""
    ordered = rows.repartitionByRange(max(parts, 1), "Id").sortWithinPartitions("Id", "topic")
    written = _write(ordered.write, f"{folder}/rows", lake, job)
    for number, path in enumerate(written):
        lake.rename(path, part(job, number))
    remove_parts_from(lake, job, len(written))


def _write_question_topics(questions: DataFrame, lake: Lake, job: JobParameters, folder: str) -> None:
    """Write one file per bucket, where the answers of later files look up their questions."""
    placed = questions.select("*", F.lit(job.origin).alias("origin"), _bucket())
    together = placed.repartition("bucket").sortWithinPartitions("bucket", "Id")
    writer = together.write.partitionBy("bucket").option("parquet.block.size", QUESTIONS_BLOCK)
    for path in _write(writer, f"{folder}/questions", lake, job):
        bucket = int(path.split("/")[-2].removeprefix("bucket="))
        lake.rename(path, paths.question_topics_of(bucket, job.origin))
        merge(lake, bucket)


def _write(writer: DataFrameWriter, folder: str, lake: Lake, job: JobParameters) -> list[str]:
    """Write Parquet files into `folder`; returns their paths in the order of Spark's partitions."""
    writer.option("compression", "zstd").parquet(_address(job, folder))
    return [info.path for info in lake.list(folder) if info.path.endswith(".parquet")]


def _address(job: JobParameters, path: str) -> str:
    """The address of a path of the lake for Spark, which calls `https://host/file-system` `abfss://file-system@host`."""
    root = job.lake_root.rstrip("/")
    if root.startswith("https://"):
        host, _, file_system = root.removeprefix("https://").rpartition("/")
        root = f"abfss://{file_system}@{host}"
    return f"{root}/{path}"
