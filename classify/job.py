"""What a Databricks run executes: one version of a Posts file in, one topic for every question and answer out.

    python -m classify.job --lake-root ROOT --source-id ID --version V --file-day D --model M --topic-source tags

Reads `landing/posts/…`; writes into the folder of `paths.post_topics`, in this order: part-00000.parquet (one row a
post), counts.parquet (one row a day and topic), summary.json. Repeating it writes the same again.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel

from classify import clean, rowgroups
from classify.clean import ANSWER, QUESTION, Posts
from classify.day import Contribution
from classify.model import Classified, TopicModel
from classify.modelfiles import MANIFEST, read_manifest
from classify.models import load_model
from classify.questions import newest_topics, remember
from classify.rowgroups import BATCH_ROWS, batches, reader
from classify.summary import COUNTS, REFUSED, SUMMARY, Summary
from classify.tally import Tally
from classify.text import MAX_BODY_BYTES, parse_tags
from shared import paths
from shared.errors import BadInput, ModelError, NotFound, StackTopicsError, TerminalError
from shared.lake import FolderLake
from shared.logs import quiet_vendors
from shared.memory import give_back_memory
from shared.parquet import readable
from shared.services import Services

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from shared.lake import Lake

log = logging.getLogger("stacktopics.classify.job")

Ids = npt.NDArray[np.int64]
TopicNumbers = npt.NDArray[np.int32]

SPARK_FROM_BYTES = 2 << 30
"""Files larger than this are classified by Spark, where it can be had and nobody chose the engine."""
LARGEST_BATCH, ROWS_AT_ONCE = 8 << 20, 128
"""Bytes that a batch may have where texts are long, and rows that are decoded at a time to find out."""
GROUP_ROWS = 16_384

POST_TOPICS = pa.schema(
    {"Id": pa.int64(), "PostTypeId": pa.int32(), "day": pa.date32(), "topic": pa.string(), "decided_by": pa.string()}
    | {f"topic_{rank}": pa.string() for rank in (1, 2, 3)}
    | {f"score_{rank}": pa.float32() for rank in (1, 2, 3)}
)
"""One row a post. `decided_by` is tags, model or parent. topic_1 to score_3 are the model's three best with their
probabilities, null where the model was not asked."""

DAY_BITS = 22
"""Of the years 1 to 9999."""
HEIRS = pa.schema({"Id": pa.int64(), "ParentId": pa.int64(), "day": pa.int32()})


class JobParameters(BaseModel):
    """What one run is to do, as `run_now` passes it."""

    lake_root: str
    source_id: str
    version: str
    file_day: date
    model: str
    topic_source: Literal["tags", "model"] = "tags"
    engine: Literal["auto", "arrow", "spark"] = "auto"
    spark_from_bytes: int = SPARK_FROM_BYTES
    """Larger files are classified by Spark, where the engine is auto."""

    @property
    def origin(self) -> str:
        """Who wrote a row of `questions.QUESTION_TOPICS`; sorts by version."""
        return f"{self.version}-{self.source_id}"

    @property
    def output(self) -> str:
        return paths.post_topics(self.source_id, self.version, self.model, self.topic_source)

    @classmethod
    def from_arguments(cls, arguments: Sequence[str]) -> Self:
        """From `--lake-root …`, as the job's task hands them over."""
        parser = argparse.ArgumentParser(prog="classify.job", description="Classify one landed Posts file.")
        for name in cls.model_fields:
            parser.add_argument(f"--{name.replace('_', '-')}", required=cls.model_fields[name].is_required())
        given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
        return cls.model_validate(given)


def run(lake: Lake, job: JobParameters) -> Summary:
    """Classify one landed file, by the engine that `job` asks for.

    `auto` is spark for files of more than `spark_from_bytes` where Spark can be had, else arrow. The outputs are the
    same.
    Raises BadInput, with the reason left in the output, when the file cannot be read; ModelError, NotFound when it is
    not in landing, TransientError, and TerminalError when Spark is asked for and cannot be had.
    """
    landing = paths.landing(job.source_id, job.version)
    if lake.stat(landing) is None:  # published, or in quarantine: what is there of the output stays
        raise NotFound(f"{landing} does not exist")
    begin_output(lake, job)
    spark = _spark(lake, job)
    try:
        if spark is None:
            return run_arrow(lake, job)
        from classify.spark import run_spark

        return run_spark(spark, lake, job)
    except BadInput as error:
        lake.put(f"{job.output}/{REFUSED}", str(error).encode())
        raise


def _spark(lake: Lake, job: JobParameters) -> SparkSession | None:
    """The session to classify with, or None when the arrow engine is to do it."""
    if job.engine == "arrow":
        return None
    if job.engine == "auto":
        landed = lake.stat(paths.landing(job.source_id, job.version))
        if landed is None or landed.size <= job.spark_from_bytes:
            return None
    try:
        from classify.spark import session

        return session()
    except (ImportError, TerminalError) as error:
        if job.engine == "spark":
            raise TerminalError(f"engine=spark cannot be had: {error}") from error
        log.warning("%s/%s is large and goes through one machine: %s", job.source_id, job.version, error)
        return None


def run_arrow(
    lake: Lake, job: JobParameters, progress: Callable[[float], None] | None = None, name: str | None = None
) -> Summary:
    """Classify one landed file on this machine; `progress` is told the share of the rows that are scored.

    `name` is what errors call the file, else its path in the lake.

    Texts are held 1,024 rows at a time in each thread; what stays for the whole file is 13 bytes a
    question (21 with some of earlier files), and 8 an answer that takes over what the model said.
    Raises ModelError, BadInput when the file cannot be read, NotFound when it is not in landing, and TransientError.
    """
    clock = Clock()
    with clock("model"):
        model = load_model(lake, job.model)
    path = paths.landing(job.source_id, job.version)
    with lake.open(path) as landed:
        with clock("census"):
            with readable(name or path):
                footer = pq.read_metadata(landed)
                census = _Census(reader(landed, footer))  # which keeps what it read ahead: no name may hold it
            give_back_memory()
            parents = _Parents(census, newest_topics(lake, census.parents_elsewhere), model.topics)
        with clock("posts"), lake.create(part(job, 0)) as out, _Output(out, model.topics) as output:
            posts = _posts(reader(landed, footer), job.file_day, census, name or path, progress or _say_nothing)
            skipped = _classify(posts, parents, model, job.topic_source, output)
            check_dates(name or path, output.misdated, output.counted)
    remove_parts_from(lake, job, 1)
    with clock("counts"):
        lake.put(f"{job.output}/{COUNTS}", Contribution(job.model, output.tally).to_parquet())
        remember(lake, job.origin, parents.of_this_file())
    summary = Summary(
        source_id=job.source_id,
        version=job.version,
        model=job.model,
        rows=footer.num_rows,
        questions=output.posts[QUESTION],
        answers=output.posts[ANSWER],
        duplicates=len(census.repeated),
        uncounted=skipped,
        misdated=output.misdated,
        decided_by=dict(output.decided_by),
        engine="arrow",
        seconds=clock.seconds,
    )
    lake.put(f"{job.output}/{SUMMARY}", summary.model_dump_json(indent=1).encode())
    return summary


def warm_up() -> None:
    """Load, or compile when it is the first time, what scoring runs: a second and more that a run need not wait for."""
    TopicModel.load(Path(__file__).with_name("starter")).classify(pa.nulls(1, pa.string()), pa.nulls(1, pa.string()))


def score_file(
    posts: Path, model: Path, out: Path, topic_source: str, progress: Callable[[float], None] | None = None
) -> Summary:
    """Classify a file on disk with a model on disk, without a lake; writes the rows of POST_TOPICS to `out`.

    Raises ModelError for what is no model, BadInput for what is no file of posts or no place for `out`.
    """
    if not (model / MANIFEST).is_file():
        raise ModelError(f"no topic model in {model}: it has no {MANIFEST}")
    if out.exists() and out.samefile(posts):
        raise BadInput(f"{out} is the file of posts itself: name another")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise BadInput(f"{out} is a folder, or in one that is not there: name a file")
    version = read_manifest({MANIFEST: (model / MANIFEST).read_bytes()}).version
    with rowgroups.opened(posts, ("Id", "PostTypeId")), TemporaryDirectory(dir=out.absolute().parent) as folder:
        lake = FolderLake(Path(folder))
        job = JobParameters.model_validate(
            {
                "lake_root": folder,
                "source_id": "file",
                "version": "1",
                "file_day": paths.file_day(posts.name, datetime.fromtimestamp(posts.stat().st_mtime, UTC)),
                "model": version,
                "topic_source": topic_source,
            }
        )
        for link, target in ((paths.landing("file", "1"), posts), (paths.model(version), model)):
            (lake.root / link).parent.mkdir(parents=True)
            (lake.root / link).symlink_to(target.absolute())
        summary = run_arrow(lake, job, progress, str(posts))
        (lake.root / job.output / "part-00000.parquet").replace(out)
    return summary


def check_dates(name: str, misdated: int, posts: int) -> None:
    """Raises BadInput when the dates of most posts are none: the day of the file would be shown what is of others."""
    if 2 * misdated > posts:
        raise BadInput(
            f"{name}: the CreationDate of {misdated} of {posts} posts is no date: it must be ISO 8601 (2026-11-21)"
        )


def part(job: JobParameters, number: int) -> str:
    """The path of one of the files with rows of POST_TOPICS."""
    return f"{job.output}/part-{number:05}.parquet"


def begin_output(lake: Lake, job: JobParameters) -> None:
    """Delete what an earlier run said of its output, which is about to be written anew."""
    for name in (SUMMARY, REFUSED):
        lake.delete(f"{job.output}/{name}")


def remove_parts_from(lake: Lake, job: JobParameters, number: int) -> None:
    """Delete the part files that an earlier run by another engine wrote beyond the first `number`."""
    written = {part(job, kept) for kept in range(number)}
    for info in list(lake.list(job.output)):
        if info.path.startswith(f"{job.output}/part-") and info.path not in written:
            lake.delete(info.path)


@dataclass(frozen=True)
class Scored:
    """Posts that inherit no topic, with what was found: the rows of POST_TOPICS, the topics as numbers [n], which of
    them the model decided [n], and what it says about all of them."""

    rows: pa.Table
    topics: TopicNumbers
    guessed: npt.NDArray[np.bool_]
    asked: Classified


def score(posts: Posts, model: TopicModel, topic_source: str) -> Scored:
    """The topics of posts that inherit none.

    A question with tags is decided by its own tags unless `topic_source` is model; the model is asked in any case.
    """
    asked = model.classify(posts.titles, posts.bodies)
    tagged = model.primary_of_tags(parse_tags(posts.tags))
    by_tags = (tagged >= 0) & (posts.types == QUESTION) & (topic_source == "tags")
    topics = np.where(by_tags, tagged, asked.topic).astype(np.int32)
    names = pa.array(model.topics)
    best = {f"topic_{rank + 1}": names.take(pa.array(asked.top[:, rank])) for rank in range(asked.top.shape[1])}
    scores = {f"score_{rank + 1}": pa.array(asked.top_scores[:, rank]) for rank in range(asked.top.shape[1])}
    rows = _rows(posts, names.take(pa.array(topics)), pc.if_else(pa.array(by_tags), "tags", "model"), best | scores)
    return Scored(rows, topics, ~by_tags, asked)


def inherit(posts: Posts, topics: pa.Array) -> pa.Table:
    """The rows of POST_TOPICS of answers that take their questions' topics."""
    return _rows(posts, topics, "parent", {})


def _posts(
    file: pq.ParquetFile, file_day: date, census: _Census, name: str, progress: Callable[[float], None]
) -> Iterator[Posts]:
    """The posts that count, a batch at a time; raises BadInput that names the file where it cannot be read."""
    first = 0
    with readable(name):  # what is made of a batch by who asked for it is not in it
        for batch in _batches_of_texts(file):
            yield clean.clean(batch, file_day).where(census.counts(first, batch.num_rows))
            first += batch.num_rows
            progress(first / file.metadata.num_rows)


def _classify(
    batches: Iterator[Posts], parents: _Parents, model: TopicModel, topic_source: str, output: _Output
) -> dict[str, int]:
    """Questions and orphaned answers batch by batch, then the answers that inherit; returns what was not counted.

    Batches are scored in as many threads as there are cores, and written in the order of the file.
    """
    skipped: Counter[str] = Counter()
    threads = os.cpu_count() or 1
    waiting: deque[tuple[Posts, Future[Scored]]] = deque()

    def write_next() -> None:
        posts, scoring = waiting.popleft()
        scored = scoring.result()
        asked = (posts.types == QUESTION) & posts.has_id
        parents.learn(posts.ids[asked], scored.topics[asked], scored.guessed[asked])
        output.tally.add(posts.days, posts.types, scored.topics, scored.guessed, scored.asked)
        output.write(scored.rows)

    with _Heirs() as heirs, ThreadPoolExecutor(threads) as pool:
        for posts in batches:
            answers, questions = posts.types == ANSWER, posts.types == QUESTION
            skipped.update(str(kind or "null") for kind in posts.types[~(answers | questions)].tolist())
            output.counted += int((answers | questions).sum())
            output.misdated += int((posts.misdated & (answers | questions)).sum())
            inherits = answers & (posts.parents != 0) & parents.known(posts.parents)
            heirs.keep(posts.where(inherits))
            chosen = posts.where(questions | (answers & ~inherits))
            waiting.append((chosen, pool.submit(score, chosen, model, topic_source)))
            if len(waiting) > threads:
                write_next()
        while waiting:
            write_next()
        uncertain = [np.empty(0, np.int64)]
        for posts in heirs.kept():
            topics, guessed = parents.topics(posts.parents), parents.guessed(posts.parents)
            output.tally.add(posts.days, posts.types, topics, guessed)
            output.write(inherit(posts, pa.array(model.topics).take(pa.array(topics))))
            uncertain.append(parents.of_day(posts.parents[guessed], posts.days[guessed]))
        output.tally.add_bundles(*parents.bundles(np.concatenate(uncertain)))
    return dict(skipped)


def _say_nothing(share: float) -> None:
    """The progress of a run that nobody watches."""
    del share


def _batches_of_texts(file: pq.ParquetFile) -> Iterator[pa.RecordBatch | pa.Table]:
    """Batches of at most BATCH_ROWS and LARGEST_BATCH; bodies that do not fit are cut to what is read of them.

    Nothing in a file tells how large its texts will be: a thousand bodies of a megabyte can be four kilobytes on disk.
    """
    waiting: list[pa.RecordBatch] = []
    rows = size = 0
    for few in batches(file, clean.COLUMNS, rows=ROWS_AT_ONCE):
        is_large = few.get_total_buffer_size() > LARGEST_BATCH
        if waiting and (
            is_large or rows + few.num_rows > BATCH_ROWS or size + few.get_total_buffer_size() > LARGEST_BATCH
        ):
            yield pa.Table.from_batches(waiting)
            waiting, rows, size = [], 0, 0
        if is_large:
            few = _with_short_bodies(few)
            give_back_memory()
            yield few
        else:
            waiting.append(few)
            rows, size = rows + few.num_rows, size + few.get_total_buffer_size()
    if waiting:
        yield pa.Table.from_batches(waiting)


def _with_short_bodies(batch: pa.RecordBatch) -> pa.RecordBatch:
    if "Body" not in batch.schema.names:
        return batch
    bodies = pc.binary_slice(clean.column(batch, "Body").cast(pa.large_binary()), 0, MAX_BODY_BYTES)
    return batch.set_column(batch.schema.names.index("Body"), "Body", bodies)


def _rows(posts: Posts, topics: pa.Array, decided_by: Any, asked: dict[str, pa.Array]) -> pa.Table:
    columns = {
        "Id": pa.array(posts.ids, mask=~posts.has_id),
        "PostTypeId": pa.array(posts.types.astype(np.int32)),
        "day": pa.array(posts.days).cast(pa.date32()),
        "topic": topics,
        "decided_by": pa.repeat(decided_by, len(posts)) if isinstance(decided_by, str) else decided_by,
        **asked,
    }
    return pa.table(
        [columns.get(name, pa.nulls(len(posts), POST_TOPICS.field(name).type)) for name in POST_TOPICS.names],
        schema=POST_TOPICS,
    )


class _Census:
    """What the ids alone tell: which rows count, and whose answers the file holds."""

    def __init__(self, file: pq.ParquetFile) -> None:
        ids, parents, asks, answers, has_id = (np.empty(file.metadata.num_rows, kind) for kind in ("i8", "i8", *"???"))
        first = 0
        for batch in batches(file, ("Id", "PostTypeId", "ParentId")):
            rows = slice(first, first + batch.num_rows)
            found = clean.whole_numbers(batch, "Id")
            ids[rows], has_id[rows] = clean.filled(found), np.asarray(found.is_valid())
            types = clean.filled(clean.whole_numbers(batch, "PostTypeId"))
            asks[rows], answers[rows] = types == QUESTION, types == ANSWER
            parents[rows] = clean.filled(clean.whole_numbers(batch, "ParentId"))
            first += batch.num_rows
        self.repeated = _repeated(ids, has_id)
        """Numbers of the rows whose Id comes again further down: the last one counts."""
        asks &= has_id
        answers &= parents != 0
        asks[self.repeated] = answers[self.repeated] = False
        # np.unique would make a hash table of 60 bytes an Id, which is never given back.
        self.questions = np.sort(ids[asks])
        """Ids of the file's questions, ascending."""
        asked = np.sort(parents[answers])
        elsewhere = ~_among(asked, self.questions)
        elsewhere[1:] &= asked[1:] != asked[:-1]
        self.parents_elsewhere = asked[elsewhere]

    def counts(self, first: int, rows: int) -> npt.NDArray[np.bool_]:
        """Which of `rows` rows from row `first` on count."""
        low, high = np.searchsorted(self.repeated, [first, first + rows])
        counted = np.ones(rows, bool)
        counted[self.repeated[low:high] - first] = False
        return counted


def _repeated(ids: Ids, has_id: npt.NDArray[np.bool_]) -> Ids:
    ordered = np.sort(ids[has_id])
    if not (ordered[1:] == ordered[:-1]).any():
        return np.empty(0, np.int64)  # a slice of `ordered` would keep all of it
    rows = np.flatnonzero(has_id)
    _, from_the_end = np.unique(ids[rows][::-1], return_index=True)
    return np.setdiff1d(rows, rows[len(rows) - 1 - from_the_end], assume_unique=True)


class _Parents:
    """The topics of questions by Id: those of earlier files at once, those of this file as they become known."""

    def __init__(self, census: _Census, earlier: pa.Table, names: Sequence[str]) -> None:
        self._names = pa.array(names)
        numbers = pc.index_in(earlier["topic"], self._names).combine_chunks()  # a topic the model no longer has: null
        there = np.asarray(numbers.is_valid())
        known, topics = np.asarray(earlier["Id"])[there], np.asarray(numbers.drop_null(), np.int32)
        places = np.searchsorted(census.questions, known)
        self._ids = np.insert(census.questions, places, known) if len(known) else census.questions
        guessed = np.asarray(earlier["guessed"])[there]
        self._topics = np.insert(np.full(len(census.questions), -1, np.int32), places, topics)
        self._guessed = np.insert(np.zeros(len(census.questions), bool), places, guessed)
        self._questions = census.questions

    def known(self, parents: Ids) -> npt.NDArray[np.bool_]:
        """Which of these questions have a topic, or will have one when the file has been read."""
        return _among(parents, self._ids)

    def learn(self, ids: Ids, topics: TopicNumbers, guessed: npt.NDArray[np.bool_]) -> None:
        places = self._places(ids)
        self._topics[places], self._guessed[places] = topics, guessed

    def topics(self, parents: Ids) -> TopicNumbers:
        """The topics of known questions."""
        return np.asarray(self._topics[self._places(parents)] if len(parents) else self._topics[:0], np.int32)

    def guessed(self, parents: Ids) -> npt.NDArray[np.bool_]:
        """Of which known questions the model said the topic."""
        return self._guessed[self._places(parents)] if len(parents) else self._guessed[:0]

    def of_day(self, parents: Ids, days: npt.NDArray[np.int32]) -> Ids:
        """A number for each known question and day."""
        return self._places(parents) << DAY_BITS | (days.astype(np.int64) - clean.FIRST_DAY)

    def bundles(self, numbers: Ids) -> tuple[npt.NDArray[np.int32], TopicNumbers, Ids]:
        """Of what `of_day` gave, which is sorted by this, each once: day, topic, and how often it was there."""
        numbers.sort()
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        days = (numbers[starts] & (1 << DAY_BITS) - 1) + clean.FIRST_DAY
        answers = np.diff(starts, append=len(numbers))
        return days.astype(np.int32), self._topics[numbers[starts] >> DAY_BITS], answers

    def of_this_file(self) -> pa.Table:
        topics = pa.DictionaryArray.from_arrays(self.topics(self._questions), self._names)
        return pa.table({"Id": self._questions, "topic": topics, "guessed": self.guessed(self._questions)})

    def _places(self, ids: Ids) -> Ids:
        return _places(ids, self._ids)


def _places(ids: Ids, known: Ids) -> Ids:
    """Where these are among the known ones, which are ascending; where one is not, any place."""
    return np.minimum(np.searchsorted(known, ids), len(known) - 1)


def _among(ids: Ids, known: Ids) -> npt.NDArray[np.bool_]:
    """Which of these are known ones, which are ascending."""
    return known[_places(ids, known)] == ids if len(known) else np.zeros(len(ids), bool)


class _Heirs:
    """Answers that inherit, in a temporary file until all topics are known: 20 bytes each, in memory for none."""

    def __enter__(self) -> Self:
        self._file = TemporaryFile()
        self._writer = pa.ipc.new_stream(self._file, HEIRS)
        return self

    def __exit__(self, *failure: object) -> None:
        self._file.close()

    def keep(self, posts: Posts) -> None:
        columns = [pa.array(posts.ids, mask=~posts.has_id), pa.array(posts.parents), pa.array(posts.days)]
        self._writer.write_batch(pa.record_batch(columns, HEIRS))

    def kept(self) -> Iterator[Posts]:
        """What was kept, with null texts."""
        self._writer.close()
        self._file.seek(0)
        for batch in pa.ipc.open_stream(self._file):
            rows, ids, nothing = batch.num_rows, batch["Id"], pa.nulls(batch.num_rows)
            yield Posts(
                ids=clean.filled(ids),
                has_id=np.asarray(ids.is_valid()),
                types=np.full(rows, ANSWER),
                parents=np.asarray(batch["ParentId"]),
                days=np.asarray(batch["day"]),
                misdated=np.zeros(rows, bool),
                titles=nothing,
                bodies=nothing,
                tags=nothing,
            )


class _Output:
    """The part file, written in row groups of GROUP_ROWS, and the sums of what was written."""

    def __init__(self, out: Any, topics: tuple[str, ...]) -> None:
        self._writer = pq.ParquetWriter(out, POST_TOPICS, compression="zstd", compression_level=1)
        self._waiting: list[pa.Table] = []
        self._rows = 0
        self.tally = Tally(topics)
        self.posts: Counter[int] = Counter()
        self.decided_by: Counter[str] = Counter()
        self.counted = self.misdated = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        if failure[0] is None:
            self._flush()
        self._writer.close()

    def write(self, rows: pa.Table) -> None:
        self._waiting.append(rows)
        self._rows += rows.num_rows
        if self._rows >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        rows = pa.concat_tables([POST_TOPICS.empty_table(), *self._waiting])
        self._waiting, self._rows = [], 0
        self._writer.write_table(rows, GROUP_ROWS)
        give_back_memory()
        counters: tuple[tuple[str, Counter[Any]], ...] = (("PostTypeId", self.posts), ("decided_by", self.decided_by))
        for name, counter in counters:
            for found in rows[name].value_counts().to_pylist():
                counter[found["values"]] += found["counts"]


class Clock:
    """Wall seconds of each named part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[part] = round(time.perf_counter() - started, 3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from a command line; 0 when the file was classified, 1 with the reason in the log when not."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    quiet_vendors()
    job = JobParameters.from_arguments(sys.argv[1:] if arguments is None else arguments)
    try:
        summary = run(Services().lake_at(job.lake_root), job)
    except StackTopicsError as error:
        log.error("%s/%s was not classified: %s", job.source_id, job.version, error)  # noqa: TRY400
        return 1
    log.info("%s/%s is classified: %s", job.source_id, job.version, summary.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
