"""From a finished classification to the topics of the day.

Files are immutable and pointers move under their ETag, in this order: what the file adds to each day, the source's
pointer (from here on this version counts), each touched day's topics and pointer, the landing file, the record.
A crash anywhere leaves a state from which the same call goes on.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import TYPE_CHECKING

from classify.summary import COUNTS
from shared import paths
from shared.catalog import DayPointer, SourcePointer, day_pointer, move_pointer, source_pointer
from shared.errors import Conflict, NotFound, TransientError
from shared.lake import digest
from shared.ledger import ENDED, FileRecord, State

if TYPE_CHECKING:
    import pyarrow as pa

    from shared.services import Services

log = logging.getLogger("stacktopics.classify.publish")

FORMAT = 1
"""Part of a publish id: raise it when the topics files change for the same counts."""
POINTER_TRIES = 20
DAY_WORKERS = 8
SUPERSEDED_BECAUSE = "a newer version of the same file counts already"


def publish(services: Services, record: FileRecord) -> FileRecord:
    """Publish a classified file version, or mark it superseded when a newer version of its source counts already.

    Raises TransientError when others move the same pointers all the time.
    """
    by_day = _counts_by_day(services, record)
    with ThreadPoolExecutor(DAY_WORKERS) as pool:
        list(pool.map(lambda day: _write_counts(services, record, day, by_day[day]), by_day))
        pointer = _count_source(services, record, sorted(by_day))
        if pointer is None:
            ended, reason = State.SUPERSEDED, SUPERSEDED_BECAUSE
        else:
            ended, reason = State.PUBLISHED, None
            list(pool.map(lambda day: refresh_day(services, day), [*pointer.days, *pointer.left]))

    def over(current: FileRecord) -> FileRecord | None:
        if current.state in ENDED:
            return None
        return current.entered(ended, services.now(), days=sorted(by_day), reason=reason)

    services.lake.delete(paths.landing(record.source_id, record.version))
    after = services.ledger.change(record, over)
    log.info("%s is %s: %s posts on %d days", record.key, after.state, record.counted, len(by_day))
    return after


def counts_already_newer(services: Services, record: FileRecord) -> bool:
    """Whether a newer version of the same source counts already."""
    pointer, _ = source_pointer(services.lake, record.source_id)
    return pointer is not None and pointer.order > record.order


def refresh_day(services: Services, day: date) -> DayPointer:
    """Count a day anew from every source that counts on it, write its topics, and point to them.

    The pointer's ETag is read before the counts: whoever counted from an older state fails to move it and counts again.
    """
    lake = services.lake
    for _ in range(POINTER_TRIES):
        pointer, etag = day_pointer(lake, day)
        try:
            sources = _sources_of_day(services, day)
            publish_id = digest(json.dumps([FORMAT, day.isoformat(), sources]).encode())
            if pointer is not None and pointer.publish_id == publish_id:
                return pointer
            topics = _topics(_read_counts(services, day, sources))
            successor = _write_topics(services, day, publish_id, sources, topics)
            move_pointer(lake, paths.day_pointer(day), successor, etag)
        except (Conflict, NotFound):
            continue
        return successor
    raise TransientError(f"the topics of {day} are being published by too many others")


def _counts_by_day(services: Services, record: FileRecord) -> dict[date, pa.Table]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    counts = pq.read_table(io.BytesIO(services.lake.read(f"{record.output}/{COUNTS}")))
    days = sorted(counts["day"].unique().to_pylist())
    return {day: counts.filter(pc.equal(counts["day"], day)).drop_columns(["day"]) for day in days}


def _write_counts(services: Services, record: FileRecord, day: date, counts: pa.Table) -> None:
    services.lake.put(paths.source_counts(day, record.source_id, record.version), _parquet(counts))


def _count_source(services: Services, record: FileRecord, days: list[date]) -> SourcePointer | None:
    """Let this version count for its source; None when a newer one does."""
    for _ in range(POINTER_TRIES):
        pointer, etag = source_pointer(services.lake, record.source_id)
        if pointer is not None and pointer.version == record.version:
            return pointer
        if pointer is not None and pointer.order > record.order:
            return None
        before = {*pointer.days, *pointer.left} if pointer else set()
        last_modified, first_seen = record.order
        successor = SourcePointer(
            version=record.version,
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


def _sources_of_day(services: Services, day: date) -> dict[str, str]:
    """The sources that count on a day, each with the version that counts."""
    there: dict[str, set[str]] = {}
    for info in services.lake.list(paths.topic_counts(day)):
        source, name = info.path.split("/")[-2:]
        there.setdefault(source, set()).add(name.removesuffix(".parquet"))
    counting = {}
    for source, versions in sorted(there.items()):
        pointer, _ = source_pointer(services.lake, source)
        if pointer is not None and pointer.version in versions:
            counting[source] = pointer.version
    return counting


def _read_counts(services: Services, day: date, sources: dict[str, str]) -> list[pa.Table]:
    import pyarrow.parquet as pq

    found = (services.lake.read(paths.source_counts(day, source, version)) for source, version in sources.items())
    return [pq.read_table(io.BytesIO(data)) for data in found]


def _topics(counts: Iterable[pa.Table]) -> list[dict[str, object]]:
    """The topics of a day, most frequent first; ties by name."""
    questions: dict[str, int] = {}
    answers: dict[str, int] = {}
    for table in counts:
        for row in table.to_pylist():
            questions[row["topic"]] = questions.get(row["topic"], 0) + row["questions"]
            answers[row["topic"]] = answers.get(row["topic"], 0) + row["answers"]
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
        post_topics=[paths.post_topics(source, version) for source, version in sources.items()],
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
