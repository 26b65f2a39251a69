"""The arrow engine: one landed file on one machine, in constant memory, on all its cores."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import date
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from classify.days.day import Contribution
from classify.model.text import MAX_BODY_BYTES
from classify.posts import clean
from classify.posts.clean import ANSWER, QUESTION, Posts
from classify.posts.rowgroups import BATCH_ROWS, batches, reader
from classify.registry.models import load_model
from classify.registry.summary import COUNTS_FILE, SUMMARY_FILE, Summary
from classify.run.census import Census
from classify.run.inheritance import Heirs, Parents
from classify.run.output import Clock, Output, Scored, check_dates, inherit, part, remove_parts_from, score
from classify.run.questions import newest_topics, remember
from shared import paths
from shared.memory import give_back_memory
from shared.parquet import readable

if TYPE_CHECKING:
    from classify.model.model import TopicModel
    from classify.run.parameters import JobParameters
    from shared.lake import Lake

LARGEST_BATCH, ROWS_AT_ONCE = 8 << 20, 128
"""The most bytes of a batch with long texts, and how many rows are decoded at a time to find the size."""


def run_arrow(
    lake: Lake, job: JobParameters, progress: Callable[[float], None] | None = None, name: str | None = None
) -> Summary:
    """Classify one landed file on this machine. `progress` is called with the share of rows scored, 0 to 1.

    `name` names the file in errors; by default its path in the lake.

    Each thread holds the texts of 1,024 rows at a time. For the whole file it holds 13 bytes per question (21 with
    questions of earlier files), and 8 per answer that takes over a topic that the model gave.
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
                census = Census(reader(landed, footer))  # no variable for the reader: it would keep its read-ahead data
            give_back_memory()
            parents = Parents(census, newest_topics(lake, census.parents_elsewhere), model.topics)
        with clock("posts"), lake.create(part(job, 0)) as out, Output(out, model.topics) as output:
            posts = _posts(reader(landed, footer), job.file_day, census, name or path, progress or _say_nothing)
            skipped = _classify(posts, parents, model, job.topic_source, output)
            check_dates(name or path, output.misdated, output.counted)
    remove_parts_from(lake, job, 1)
    with clock("counts"):
        lake.put(f"{job.output}/{COUNTS_FILE}", Contribution(job.model, output.tally).to_parquet())
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
    lake.put(f"{job.output}/{SUMMARY_FILE}", summary.model_dump_json(indent=1).encode())
    return summary


def _posts(
    file: pq.ParquetFile, file_day: date, census: Census, name: str, progress: Callable[[float], None]
) -> Iterator[Posts]:
    """The posts that count, a batch at a time. Raises BadInput that names the file if it cannot be read."""
    first = 0
    with readable(name):  # does not cover errors of the caller between two batches
        for batch in _batches_of_texts(file):
            yield clean.clean(batch, file_day).where(census.counts(first, batch.num_rows))
            first += batch.num_rows
            progress(first / file.metadata.num_rows)


def _classify(
    batches: Iterator[Posts], parents: Parents, model: TopicModel, topic_source: str, output: Output
) -> dict[str, int]:
    """Classify questions and orphaned answers batch by batch, then the answers that inherit.

    Returns how many posts of other types were not counted, by PostTypeId. Batches are scored in one thread per core,
    and written in the order of the file.
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

    with Heirs() as heirs, ThreadPoolExecutor(threads) as pool:
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
    """The progress of a run without a callback."""
    del share


def _batches_of_texts(file: pq.ParquetFile) -> Iterator[pa.RecordBatch | pa.Table]:
    """Batches of at most BATCH_ROWS and LARGEST_BATCH. In larger batches, bodies are cut to MAX_BODY_BYTES.

    A file does not say how large its decoded texts are: a thousand bodies of a megabyte can be four kilobytes on disk.
    """
    waiting: list[pa.RecordBatch] = []
    rows = size = 0
    for few in batches(file, clean.COLUMN_NAMES, rows=ROWS_AT_ONCE):
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
