"""The output of a run: the rows of its posts, in files that appear only when complete, and their sums."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from classify.days.tally import Tally
from classify.model.text import parse_tags
from classify.posts.clean import QUESTION, Posts
from classify.registry.summary import REFUSED_FILE, SUMMARY_FILE
from shared.errors import BadInput
from shared.memory import give_back_memory

if TYPE_CHECKING:
    from classify.model.model import Classified, TopicModel
    from classify.run.parameters import JobParameters
    from shared.arrays import Flags, Int32s
    from shared.lake import Lake

GROUP_ROWS = 16_384
BY_TAGS, BY_MODEL, BY_PARENT = "tags", "model", "parent"
"""What decided a post's topic: its own tags, the model, or its question."""
POST_TOPICS = pa.schema(
    {"Id": pa.int64(), "PostTypeId": pa.int32(), "day": pa.date32(), "topic": pa.string(), "decided_by": pa.string()}
    | {f"topic_{rank}": pa.string() for rank in (1, 2, 3)}
    | {f"score_{rank}": pa.float32() for rank in (1, 2, 3)}
)
"""One row per post. `decided_by` is one of the three above. topic_1 to score_3 are the model's three best topics with
their probabilities, null for posts that the model did not score."""


def part(job: JobParameters, number: int) -> str:
    """The path of one of the files with rows of POST_TOPICS."""
    return f"{job.output}/part-{number:05}.parquet"


def begin_output(lake: Lake, job: JobParameters) -> None:
    """Delete the summary or the refusal of an earlier run, because its output is about to be overwritten."""
    for name in (SUMMARY_FILE, REFUSED_FILE):
        lake.delete(f"{job.output}/{name}")


def remove_parts_from(lake: Lake, job: JobParameters, number: int) -> None:
    """Delete all part files but the first `number`: an earlier run by another engine may have written more."""
    written = {part(job, kept) for kept in range(number)}
    for info in list(lake.list(job.output)):
        if info.path.startswith(f"{job.output}/part-") and info.path not in written:
            lake.delete(info.path)


def check_dates(name: str, misdated: int, posts: int) -> None:
    """Raises BadInput when most dates are invalid: all these posts would count on the day of the file."""
    if 2 * misdated > posts:
        raise BadInput(
            f"{name}: the CreationDate of {misdated} of {posts} posts is invalid: it must be ISO 8601 (2026-11-21)"
        )


@dataclass(frozen=True)
class Scored:
    """The result for n posts that inherit no topic: the rows of POST_TOPICS, the topics as numbers [n], which of them
    the model decided [n], and the model's result for all of them."""

    rows: pa.Table
    topics: Int32s
    guessed: Flags
    asked: Classified


def score(posts: Posts, model: TopicModel, topic_source: str) -> Scored:
    """The topics of posts that inherit no topic.

    Its own tags decide a question with tags, unless `topic_source` is model. The model scores every post.
    """
    asked = model.classify(posts.titles, posts.bodies)
    tagged = model.primary_of_tags(parse_tags(posts.tags))
    by_tags = (tagged >= 0) & (posts.types == QUESTION) & (topic_source == "tags")
    topics = np.where(by_tags, tagged, asked.topic).astype(np.int32)
    names = pa.array(model.topics)
    best = {f"topic_{rank + 1}": names.take(pa.array(asked.top[:, rank])) for rank in range(asked.top.shape[1])}
    scores = {f"score_{rank + 1}": pa.array(asked.top_scores[:, rank]) for rank in range(asked.top.shape[1])}
    rows = _rows(posts, names.take(pa.array(topics)), pc.if_else(pa.array(by_tags), BY_TAGS, BY_MODEL), best | scores)
    return Scored(rows, topics, ~by_tags, asked)


def inherit(posts: Posts, topics: pa.Array) -> pa.Table:
    """The rows of POST_TOPICS for answers that take over the topics of their questions."""
    return _rows(posts, topics, BY_PARENT, {})


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


class Output:
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
    """The wall-clock seconds of each named part of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[part] = round(time.perf_counter() - started, 3)
