"""The main job from end to end on the local cloud: reference tables, Posts files, topics of the day."""

from __future__ import annotations

import io
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from cli.drop import outcome
from cli.dump import dump_line
from cli.follow import Uploaded, follow, upload
from cli.screen import Screen
from cli.topics import show_topics
from ingest.dump import import_dump, import_users
from ingest.dump.scan import Unit
from ingest.postgres.connect import connect
from localcloud import samples, tables
from localcloud.cloud import LocalCloud, invoke
from localcloud.processes import LocalCloudError
from serve.topics import topics_of_day
from shared import paths
from shared.catalog import day_pointer
from shared.errors import TransientError
from shared.ledger import FileRecord, FileState
from shared.queues import poison_queues
from shared.services import Services

PATIENCE_SECONDS = 300
"""The longest time without progress on any file. The total is not limited: a large dump takes long."""
PLAIN_LINE_SECONDS = 10
"""Seconds between progress lines if there is no terminal, where a single line is updated."""
FILES_SHOWN = 3
"""How many of the last files, and of the unpublished ones, are named."""

Content = bytes | IO[bytes]


def demo(cloud: LocalCloud, files: Sequence[tuple[str, Content]], users: pa.Table, screen: Screen) -> None:
    """Run the main job on a running cloud and show the result; `files` are names and contents.

    Raises LocalCloudError when anything failed.
    """
    services = Services(cloud.settings_file)
    with closing(connect(services)) as connection:
        tables.fill(connection, users)
    _copy_reference(cloud, services, screen)
    started = time.monotonic()
    uploaded = [upload(services, name, content) for name, content in files]
    _follow(cloud, services, uploaded, started, screen)


def demo_dump(cloud: LocalCloud, dump: Path, by: Unit, screen: Screen) -> None:
    """Like `demo`, from a data dump: users go to Postgres, a file for each day, month or year to the container."""
    services = Services(cloud.settings_file)
    with TemporaryDirectory() as folder:
        out = Path(folder)
        with closing(connect(services)) as connection:
            users = import_users(dump, connection, rejected=out / "rejected-users.jsonl", max_shrink=1)
        screen.line(dump_line(users))
        posts = import_dump(dump, out, by=by, workers=os.cpu_count() or 1)
        screen.line(dump_line(posts))
        _copy_reference(cloud, services, screen)
        started = time.monotonic()
        uploaded = [_upload_file(services, out / name) for name in posts.files]
    _follow(cloud, services, uploaded, started, screen)


def sample_day(screen: Screen) -> tuple[str, bytes]:
    """Today's sample posts as a file; prints that they are made up."""
    today = datetime.now(UTC).date()
    posts = samples.sample_posts(today)
    screen.line(
        f"The {posts.num_rows:,} posts of this demo are made up: variations of questions written by hand, dated today."
    )
    return f"posts-{today.isoformat()}.parquet", parquet(posts)


def parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a file."""
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def _upload_file(services: Services, file: Path) -> Uploaded:
    with file.open("rb") as content:
        return upload(services, file.name, content)


def _copy_reference(cloud: LocalCloud, services: Services, screen: Screen) -> None:
    result = invoke(cloud.state_dir, "copy_reference")
    if not result["succeeded"]:
        raise LocalCloudError(f"copy_reference failed: {result['error']}; the log is {cloud.logs / 'functions.log'}")
    for table in services.settings.reference_tables:
        info = services.lake.stat(paths.reference(table))
        screen.line(f"copied {table} from Postgres to the lake ({info.size if info else 0:,} bytes)")


def _follow(
    cloud: LocalCloud, services: Services, uploaded: Sequence[Uploaded], started: float, screen: Screen
) -> None:
    records = wait(cloud, services, uploaded, screen)
    seconds = time.monotonic() - started
    if len(records) > 1:
        screen.line(how_far(len(records), [record.state for record in records]))
        for record in records[-FILES_SHOWN:]:
            screen.line(f"  {record.source.name}: {outcome(record)}")
    _show_topics(services, records, seconds, screen)
    failed = [record for record in records if record.state is not FileState.PUBLISHED]
    if failed:
        named = "; ".join(f"{record.source.name} is {outcome(record)}" for record in failed[:FILES_SHOWN])
        more = f"; and {len(failed) - FILES_SHOWN} more" if len(failed) > FILES_SHOWN else ""
        raise LocalCloudError(f"{named}{more}. `python -m localcloud up`, then `manage.py status` shows them")


def wait(cloud: LocalCloud, services: Services, uploaded: Sequence[Uploaded], screen: Screen) -> list[FileRecord]:
    """The records of the files once all have ended; one line shows the progress.

    Raises LocalCloudError when a part of the cloud ends, a function fails for good, or there is no progress for long.
    """
    states: dict[Uploaded, FileState] = {}
    poisoned = _poison(services)
    show = _passing(screen)

    def seen(file: Uploaded, record: FileRecord) -> None:
        states[file] = record.state
        alone = f"{file.name}: {record.state}"
        show(alone if len(uploaded) == 1 else how_far(len(uploaded), list(states.values())))

    def meanwhile() -> None:
        cloud.check()
        if _poison(services) > poisoned:
            raise LocalCloudError(f"a function failed for good; see {cloud.logs / 'functions.log'}")

    try:
        return follow(services, uploaded, seen, PATIENCE_SECONDS, meanwhile)
    except TransientError as error:
        raise LocalCloudError(f"{error}; the logs are in {cloud.logs}") from error


def how_far(files: int, states: Sequence[FileState]) -> str:
    """`30 of 76 published`, and how many ended otherwise."""
    counts = Counter(states)
    otherwise = [(state, counts[state]) for state in (FileState.QUARANTINED, FileState.FAILED, FileState.SUPERSEDED)]
    return ", ".join(
        [
            f"{counts[FileState.PUBLISHED]} of {files} published",
            *(f"{count} {state}" for state, count in otherwise if count),
        ]
    )


def _passing(screen: Screen) -> Callable[[str], None]:
    """A function that shows the progress: in one line of the terminal, otherwise as a line from time to time."""
    said = time.monotonic()

    def show(text: str) -> None:
        nonlocal said
        if screen.width is not None:
            screen.passing(text)
        elif time.monotonic() - said >= PLAIN_LINE_SECONDS:
            said = time.monotonic()
            screen.line(text)

    return show


def _show_topics(services: Services, records: Sequence[FileRecord], seconds: float, screen: Screen) -> None:
    """Show the topics of the day (of several days, the one with the most posts), and their path in the lake."""
    days = sorted({day for record in records for day in record.days})
    pointers = [pointer for day in days if (pointer := day_pointer(services.lake, day)[0])]
    if not pointers:
        return
    shown = max(pointers, key=lambda pointer: (pointer.posts, pointer.day))
    show_topics(screen, topics_of_day(services.lake, shown.day))
    posts = sum(pointer.posts for pointer in pointers)
    spread = "1 day" if len(days) == 1 else f"{len(days):,} days, shown is the one with the most"
    screen.line()
    screen.line(f"{posts:,} posts on {spread}; {seconds:.1f} s from upload to published", "bold")
    screen.line(f"In the lake: {shown.parquet} and .csv")


def _poison(services: Services) -> int:
    return sum(services.queue(name).length() for name in poison_queues(services.settings))
