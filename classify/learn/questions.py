"""Tagged questions, from files or from batches: the input of training and evaluation."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from classify.model.files import OTHER
from classify.model.text import parse_tags
from classify.posts import clean, rowgroups
from classify.posts.clean import EPOCH, QUESTION
from classify.posts.repeats import last_of_each
from shared.arrays import Flags, Int32s, Int64s
from shared.errors import BadInput

TRAINING_COLUMNS = ("Id", "PostTypeId", "Title", "Body", "Tags")
FEWEST, QUESTIONS_A_TOPIC = 50, 10
"""The fewest tagged questions for training or evaluation: in all, and per topic."""


@dataclass(frozen=True)
class TrainingPosts:
    """Tagged questions, ready for training: Id, title, body, and their tags as lists."""

    ids: Int64s
    titles: pa.Array
    bodies: pa.Array
    tags: pa.ListArray

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, chosen: npt.NDArray[Any]) -> "TrainingPosts":
        rows = pa.array(np.flatnonzero(chosen) if chosen.dtype == bool else chosen)
        return TrainingPosts(self.ids[rows], self.titles.take(rows), self.bodies.take(rows), self.tags.take(rows))


def read_questions(files: Sequence[Path], progress: Callable[[float], None]) -> TrainingPosts:
    """The tagged questions of Posts files on disk. `progress` is called with the share read, 0 to 1.

    Raises BadInput that names a file which cannot be read, or the files if they hold no tagged question.
    """

    def tables() -> Iterator[pa.Table]:
        for number, path in enumerate(files):
            with rowgroups.opened(path, TRAINING_COLUMNS) as file:
                for group in range(file.num_row_groups):
                    yield from questions_in(file, [group])
                    progress((number + (group + 1) / file.num_row_groups) / len(files))

    try:
        return tagged_questions(tables())
    except BadInput as error:
        raise BadInput(f"{error} (training reads {files_named(files)})") from error


def files_named(files: Sequence[Path]) -> str:
    """The files as text: the names of the first three, and the number of the others."""
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(str(file) for file in files[:3]) + more


def questions_in(
    file: pq.ParquetFile, groups: Sequence[int] | None = None, days: range | None = None, file_day: date = EPOCH
) -> Iterator[pa.Table]:
    """The tagged questions with an Id in the row groups of a Posts file, as tables of TRAINING_COLUMNS, from columns of
    any supported type. Raises BadColumn or Arrow's errors for an unusable column.

    With `days` (since 1970-01-01), only those created on these days; posts without a valid date count as created on
    `file_day`.
    """
    for batch in rowgroups.batches(file, (*TRAINING_COLUMNS, "CreationDate"), groups):
        posts = clean.clean(batch, file_day)
        chosen = (posts.types == QUESTION) & posts.has_id & np.asarray(parse_tags(posts.tags).is_valid())
        if days is not None:
            chosen &= (posts.days >= days.start) & (posts.days < days.stop)
        if chosen.any():
            kept = posts.where(chosen)
            titles, bodies = kept.titles.cast(pa.large_binary()), kept.bodies.cast(pa.large_binary())
            yield pa.table([kept.ids, kept.types, titles, bodies, kept.tags], names=list(TRAINING_COLUMNS))


def tagged_questions(posts: pa.Table | Iterable[pa.RecordBatch | pa.Table]) -> TrainingPosts:
    """The questions that have an Id and tags; of several rows with one Id, the last.

    Other rows are dropped at once, so batches may be read from files one by one. Raises BadInput without any question.
    """
    batches = [posts] if isinstance(posts, pa.Table) else posts
    kept: list[pa.Table] = []
    for batch in batches:
        table = pa.table({name: batch[name] for name in TRAINING_COLUMNS})
        table = table.filter(pc.and_(pc.equal(table["PostTypeId"], QUESTION), pc.is_valid(table["Id"])))
        tags = parse_tags(table["Tags"])
        plain = pa.table(
            {
                "Id": pc.cast(table["Id"], pa.int64()),
                "Title": pc.cast(table["Title"], pa.large_binary()),
                "Body": pc.cast(table["Body"], pa.large_binary()),
                "tags": tags,
            }
        )
        kept.append(plain.filter(pc.is_valid(tags)))
    table = pa.concat_tables(kept) if kept else None
    if table is None or not len(table):
        raise BadInput("no tagged question found")
    kept.clear()
    last = last_of_each(np.asarray(table["Id"]))
    table = (table if last.all() else table.filter(pa.array(last))).combine_chunks()
    columns = {name: pa.concat_arrays(table[name].chunks) for name in table.column_names}
    return TrainingPosts(columns["Id"].to_numpy(), columns["Title"], columns["Body"], columns["tags"])


def folds_of(ids: Int64s, folds: int) -> Int64s:
    """The fold of each post, int64 [n], by a hash of its Id (splitmix64's finaliser): the same on every machine."""
    mixed = ids.astype(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) % np.uint64(folds)).astype(np.int64)


def check_enough(questions: int, topics: int, where: str, way_out: str = "take more posts or fewer topics") -> None:
    """Raise BadInput when the tagged questions are too few for this number of topics."""
    needed = max(QUESTIONS_A_TOPIC * topics, FEWEST)
    if questions < needed:
        raise BadInput(
            f"{questions} tagged questions {where} are too few for {topics} topics: {needed} are needed; {way_out}"
        )


def most_frequent_tags(tags: pa.ListArray, topics: int) -> tuple[str, ...]:
    """The names of the most frequent tags, most frequent first, ties by name; without `other` and invalid UTF-8."""
    counted = pc.value_counts(tags.flatten())
    table = pa.table({"name": counted.field("values"), "posts": counted.field("counts")})
    table = table.filter(pc.not_equal(table["name"], OTHER))
    table = table.sort_by([("posts", "descending"), ("name", "ascending")])
    names = (name.decode(errors="replace") for name in table["name"].cast(pa.binary()).to_pylist())
    return tuple(islice((name for name in names if "\N{REPLACEMENT CHARACTER}" not in name), topics))


def own_topics(tags: pa.ListArray, names: tuple[str, ...]) -> Flags:
    """Which of the topics are among each post's tags: bool [n, K]."""
    parents = pc.list_parent_indices(tags).to_numpy()
    numbers = pc.index_in(tags.flatten(), pa.array(names, pa.string()))
    known = np.flatnonzero(numbers.is_valid().to_numpy(zero_copy_only=False))
    labels = np.zeros((len(tags), len(names)), np.bool_)
    labels[parents[known], pc.drop_null(numbers).to_numpy()] = True
    return labels


def primary_of(labels: Flags) -> Int32s:
    """The primary topic of each post, int32 [n]: the first of its topics, which are ordered by frequency; K (`other`)
    for a post without one."""
    return np.where(labels.any(axis=1), labels.argmax(axis=1), labels.shape[1]).astype(np.int32)
