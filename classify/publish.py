"""From a finished classification to the topics of the day.

Files are immutable and pointers move under their ETag, in this order: the source's pointer (from here on this
classification counts), each touched day's topics and pointer, the landing file, the record. A crash anywhere leaves a
state from which the same call goes on.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import cache
from typing import TYPE_CHECKING

from classify.summary import COUNTS
from shared import paths
from shared.catalog import DayPointer, SourcePointer, day_pointer, move_pointer, source_pointer
from shared.errors import Conflict, TerminalError, TransientError
from shared.lake import digest
from shared.ledger import ENDED, FileRecord, State

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    from shared.lake import Lake
    from shared.services import Services

log = logging.getLogger("stacktopics.classify.publish")

FORMAT = 1
"""Part of a publish id: raise it when the topics files change for the same counts."""
POINTER_TRIES = 20
DAY_WORKERS = 8
SUPERSEDED_BECAUSE = "a newer version of the same file counts already"

Counts = dict[str, tuple[int, int]]
"""Questions and answers by topic."""


def publish(services: Services, record: FileRecord) -> FileRecord:
    """Publish a classified file version, or mark it superseded when a newer version of its source counts already.

    Raises TransientError when others move the same pointers all the time.
    """
    if record.output is None:
        raise TerminalError(f"{record.key} is {record.state} but its record names no output")
    counts_of = cache(lambda output: _read_counts(services.lake, output))
    days = sorted(counts_of(record.output))
    pointer = _count_source(services, record, days)
    if pointer is None:
        ended, reason = State.SUPERSEDED, SUPERSEDED_BECAUSE
    else:
        ended, reason = State.PUBLISHED, None
        touched = [*pointer.days, *pointer.left]
        with ThreadPoolExecutor(DAY_WORKERS) as pool:
            list(pool.map(lambda day: _refresh(services, record.source_id, day, counts_of), touched))
    services.lake.delete(paths.landing(record.source_id, record.version))

    def over(current: FileRecord) -> FileRecord | None:
        if current.state in ENDED:
            return None
        return current.entered(ended, services.now(), days=days, reason=reason)

    after = services.ledger.change(record, over)
    log.info("%s is %s: %s posts on %d days", record.key, after.state, record.counted, len(days))
    return after


def counts_already_newer(services: Services, record: FileRecord) -> bool:
    """Whether a newer version of the same source counts already."""
    pointer, _ = source_pointer(services.lake, record.source_id)
    return pointer is not None and pointer.order > record.order


def _count_source(services: Services, record: FileRecord, days: list[date]) -> SourcePointer | None:
    """Let this classification count for its source; None when that of a newer version does."""
    for _ in range(POINTER_TRIES):
        pointer, etag = source_pointer(services.lake, record.source_id)
        if pointer is not None and pointer.output == record.output:
            return pointer
        if pointer is not None and pointer.order > record.order:
            return None
        before = {*pointer.days, *pointer.left} if pointer else set()
        last_modified, first_seen = record.order
        successor = SourcePointer(
            version=record.version,
            output=str(record.output),
            last_modified=last_modified,
            first_seen=first_seen,
            days=days,
            left=sorted(before - set(days)),
        )
        try:
            move_pointer(services.lake, paths.source_pointer(record.source_id), successor, etag)
        except Conflict:
            continue
        return successor
    raise TransientError(f"too many versions of {record.source.name} are being published at once")


def _refresh(services: Services, source_id: str, day: date, counts_of: Callable[[str], dict[date, Counts]]) -> None:
    """Count a day anew with what counts for the source now, write its topics, and point to them.

    The day's pointer is read before the source's: who works from an older state fails to move it and starts again.
    """
    lake = services.lake
    for _ in range(POINTER_TRIES):
        pointer, etag = day_pointer(lake, day)
        source, _etag = source_pointer(lake, source_id)
        sources = dict(pointer.sources) if pointer else {}
        sources.pop(source_id, None)
        if source is not None and day in source.days:
            sources[source_id] = source.output
        publish_id = digest(json.dumps([FORMAT, day.isoformat(), sorted(sources.items())]).encode())
        if pointer is not None and pointer.publish_id == publish_id:
            return
        topics = _topics([counts_of(output)[day] for output in sources.values()])
        successor = _write_topics(services, day, publish_id, sources, topics)
        try:
            move_pointer(lake, paths.day_pointer(day), successor, etag)
        except Conflict:
            continue
        return
    raise TransientError(f"the topics of {day} are being published by too many others")


def _read_counts(lake: Lake, output: str) -> dict[date, Counts]:
    """What a classification adds to each day."""
    import pyarrow.parquet as pq

    by_day: dict[date, Counts] = defaultdict(dict)
    for row in pq.read_table(io.BytesIO(lake.read(f"{output}/{COUNTS}"))).to_pylist():
        by_day[row["day"]][row["topic"]] = row["questions"], row["answers"]
    return dict(by_day)


def _topics(counts: Iterable[Counts]) -> list[dict[str, object]]:
    """The topics of a day, most frequent first; ties by name."""
    questions: dict[str, int] = defaultdict(int)
    answers: dict[str, int] = defaultdict(int)
    for source in counts:
        for topic, (asked, answered) in source.items():
            questions[topic] += asked
            answers[topic] += answered
    posts = {topic: questions[topic] + answers[topic] for topic in questions}
    total = sum(posts.values())
    ordered = sorted((topic for topic in posts if posts[topic]), key=lambda topic: (-posts[topic], topic))
    return [
        {
            "rank": rank,
            "topic": topic,
            "posts": posts[topic],
            "questions": questions[topic],
            "answers": answers[topic],
            "share": posts[topic] / total,
        }
        for rank, topic in enumerate(ordered, 1)
    ]


def _write_topics(
    services: Services, day: date, publish_id: str, sources: dict[str, str], topics: list[dict[str, object]]
) -> DayPointer:
    import pyarrow as pa

    schema = pa.schema(
        {
            "day": pa.date32(),
            "rank": pa.int32(),
            "topic": pa.string(),
            "posts": pa.int64(),
            "questions": pa.int64(),
            "answers": pa.int64(),
            "share": pa.float64(),
        }
    )
    rows = [{"day": day, **row} for row in topics]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, schema.names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    pointer = DayPointer(
        day=day,
        publish_id=publish_id,
        parquet=paths.topics_of_day(day, publish_id, "parquet"),
        csv=paths.topics_of_day(day, publish_id, "csv"),
        posts=sum(int(str(row["posts"])) for row in topics),
        questions=sum(int(str(row["questions"])) for row in topics),
        answers=sum(int(str(row["answers"])) for row in topics),
        sources=sources,
        published_at=services.now(),
    )
    services.lake.put(pointer.parquet, _parquet(pa.Table.from_pylist(rows, schema)))
    services.lake.put(pointer.csv, text.getvalue().encode())
    return pointer


def _parquet(table: pa.Table) -> bytes:
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()
