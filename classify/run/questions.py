"""The topics of questions in `question_topics/ids=<bucket>/`, where the answers of later files look them up.

The `origin` of a row starts with the version that wrote it. So of several rows of one question the one with the
greatest origin is the newest, in any file. That makes merging files safe without a lock. A merge first writes a file
with the newest row of each question in the files it read, and only then deletes those files. If it dies in between, two
merges run at once, or an old file comes back, no question is lost, and repeated rows are equal. A look-up lists
the files again at its end: a listing is not a snapshot, and may miss both a new file and the files that it replaced.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from classify.posts import rowgroups
from shared import paths
from shared.arrays import Int64s
from shared.conditional import until_first
from shared.errors import Conflict, NotFound, TerminalError
from shared.lake import digest
from shared.parquet import readable

if TYPE_CHECKING:
    from shared.lake import Lake

log = logging.getLogger("stacktopics.classify.run.questions")


QUESTION_TOPICS = pa.schema(
    [
        ("Id", pa.int64()),
        ("topic", pa.string()),
        ("guessed", pa.bool_()),
        pa.field("origin", pa.string(), nullable=False),
    ]
)
"""`guessed`: the model decided, not the tags. `origin` is the name of the file that a classification wrote: its version
and its source."""
GROUP_ROWS = 8_192
"""Rows of a row group: the look-up of one question reads one row group."""
MANY_FILES = 16
"""If a bucket has more files than this, they are merged into one."""
MERGED = "merged-"
"""The prefix of merged files. It sorts after versions: for equal origins, the file of a classification comes first."""
READERS = 8
TRIES = 5


def newest_topics(lake: Lake, ids: Int64s) -> pa.Table:
    """Id, topic and `guessed` of the questions `ids`, as far as earlier files had them; the newest row, Id ascending.

    Reads only row groups that may hold such an Id. Raises TransientError when merges keep replacing the files of a
    bucket.
    """
    wanted = np.unique(ids)
    buckets = wanted // paths.QUESTION_BUCKET
    starts = np.flatnonzero(np.diff(buckets, prepend=buckets[:1] - 1))
    parts = np.split(wanted, starts[1:]) if len(wanted) else []

    def look_up(part: Int64s) -> pa.Table:
        bucket = int(part[0]) // paths.QUESTION_BUCKET
        # Missing files were merged meanwhile: their rows are now in another file.
        return until_first(partial(_rows_of, lake, bucket, part), f"{paths.question_topics(bucket)}", NotFound, TRIES)

    with ThreadPoolExecutor(READERS) as pool:
        return pa.concat_tables([QUESTION_TOPICS.empty_table(), *pool.map(look_up, parts)]).drop_columns("origin")


def remember(lake: Lake, origin: str, topics: pa.Table) -> None:
    """Store Id, topic and `guessed` of one file's questions, Id ascending, for the answers of later files."""
    buckets = np.asarray(topics["Id"]) // paths.QUESTION_BUCKET
    starts = np.flatnonzero(np.diff(buckets, prepend=buckets[:1] - 1))
    for first, last in pairwise([*starts.tolist(), len(buckets)]):
        bucket = int(buckets[first])
        lake.put(paths.question_topics_of(bucket, origin), _parquet(topics.slice(first, last - first), origin))
        merge(lake, bucket)


def merge(lake: Lake, bucket: int) -> None:
    """Merge the files of a bucket if there are more than MANY_FILES; stop if another run is merging them."""
    files = files_of(lake, [bucket])
    if len(files) <= MANY_FILES:
        return
    try:
        merged = _newest(_in_file(lake, path, None) for path in files)
    except (NotFound, Conflict) as error:
        log.info("another run is merging the question topics of bucket %d: %s", bucket, error)
        return
    target = paths.question_topics_of(bucket, MERGED + digest("\n".join(files).encode()))
    lake.put(target, _parquet(merged))
    for path in files:
        if path != target:
            lake.delete(path)


def files_of(lake: Lake, buckets: Iterable[int]) -> list[str]:
    """The paths of all files of these buckets."""
    return [info.path for bucket in buckets for info in lake.list(paths.question_topics(bucket))]


def check_not_merged(lake: Lake, buckets: Iterable[int], files: Sequence[str]) -> None:
    """Raise Conflict when the buckets have been merged since `files` were listed."""
    new = set(files_of(lake, buckets)) - set(files)
    if any(path.rpartition("/")[2].startswith(MERGED) for path in new):
        raise Conflict(f"files were merged into {', '.join(sorted(new))} while this run read them")


def _rows_of(lake: Lake, bucket: int, wanted: Int64s) -> pa.Table:
    """The newest rows of these questions in one bucket."""
    files = files_of(lake, [bucket])
    rows = _newest(_in_file(lake, path, wanted) for path in files)
    check_not_merged(lake, [bucket], files)
    return rows


def _in_file(lake: Lake, path: str, wanted: Int64s | None) -> pa.Table:
    """The rows of a file; with `wanted` (Ids, ascending), only those of these questions."""
    data = lake.open(path)
    lost = "delete it: the model then decides answers to its questions, until the questions' files are sent again"
    with readable(path, TerminalError, lost), rowgroups.reader(data, footer := pq.read_metadata(data)) as file:
        groups = list(range(file.num_row_groups) if wanted is None else _groups_with(file, wanted))
        table = file.read_row_groups(groups) if groups else footer.schema.to_arrow_schema().empty_table()
    table = table.select(QUESTION_TOPICS.names).cast(QUESTION_TOPICS)
    return table if wanted is None else table.filter(pc.is_in(table["Id"], pa.array(wanted)))


def _groups_with(file: pq.ParquetFile, wanted: Int64s) -> Iterator[int]:
    for group, bounds in enumerate(rowgroups.bounds(file, "Id")):
        if bounds is None or np.searchsorted(wanted, bounds[0].as_py()) < np.searchsorted(
            wanted, bounds[1].as_py(), "right"
        ):
            yield group


def _newest(tables: Iterable[pa.Table]) -> pa.Table:
    """For each question the row with the greatest origin, the first of equal ones; Id ascending."""
    table = pa.concat_tables([QUESTION_TOPICS.empty_table(), *tables])
    table = table.sort_by([("Id", "ascending"), ("origin", "descending")])
    ids = np.asarray(table["Id"])
    return table.filter(pa.array(np.append(True, ids[1:] != ids[:-1])[: len(ids)]))


def _parquet(rows: pa.Table, origin: str | None = None) -> bytes:
    """Rows of QUESTION_TOPICS as a file. `origin` is for rows without it: it takes about a hundred bytes per row, so
    it is added to one row group at a time."""
    out = io.BytesIO()
    with pq.ParquetWriter(out, QUESTION_TOPICS, compression="zstd") as writer:
        for first in range(0, len(rows), GROUP_ROWS):
            group = rows.slice(first, GROUP_ROWS)
            if origin is not None:
                group = group.append_column("origin", pa.repeat(origin, len(group)))
            writer.write_table(group.cast(QUESTION_TOPICS))
    return out.getvalue()
