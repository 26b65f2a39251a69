"""The main job from end to end on the local cloud: reference tables, Posts files, topics of the day."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cli.drop import outcome
from cli.dump import dump_line
from cli.screen import Screen
from cli.status import show_days
from cli.topics import show_topics
from ingest.dump import import_dump, import_users
from localcloud import samples, tables
from localcloud.cloud import LocalCloud, invoke
from localcloud.processes import LocalCloudError
from serve.topics import topics_of_day
from shared import paths
from shared.catalog import day_pointer
from shared.ledger import ENDED, FileRecord, State
from shared.queues import poison_queues
from shared.services import Services

POLL_SECONDS = 0.25
PATIENCE_SECONDS = 300
"""How long nothing may happen to any file: a dump of many months takes long as a whole."""


@dataclass(frozen=True)
class PostsFile:
    """A file to drop into the container: its name there and its bytes."""

    name: str
    data: bytes


def demo(cloud: LocalCloud, files: Sequence[PostsFile], users: pa.Table, console: Console) -> None:
    """Run the main job on a running cloud and show what came out. Raises LocalCloudError when anything failed."""
    services = Services(cloud.settings_file)
    with closing(services.postgres()) as connection:
        tables.fill(connection, users)
    _copy_reference(cloud, services, console)
    started = time.monotonic()
    versions = [upload(services, file) for file in files]
    _follow(cloud, services, versions, started, console)


def demo_dump(cloud: LocalCloud, dump: Path, console: Console) -> None:
    """The same from a Stack Exchange data dump: users into Postgres, posts by month into the container."""
    services = Services(cloud.settings_file)
    with TemporaryDirectory() as folder:
        out = Path(folder)
        with closing(services.postgres()) as connection:
            users = import_users(dump, connection, rejected=out / "rejected-users.jsonl", max_shrink=1)
        console.print(dump_line(users), soft_wrap=True)
        posts = import_dump(dump, out, by="month")
        console.print(dump_line(posts), soft_wrap=True)
        _copy_reference(cloud, services, console)
        started = time.monotonic()
        versions = [upload(services, posts_file(out / name, today=False)) for name in posts.files]
    _follow(cloud, services, versions, started, console)


def _copy_reference(cloud: LocalCloud, services: Services, console: Console) -> None:
    outcome = invoke(cloud.state_dir, "copy_reference")
    if not outcome["succeeded"]:
        raise LocalCloudError(f"copy_reference failed: {outcome}")
    for table in services.settings.reference_tables:
        info = services.lake.stat(paths.reference(table))
        size = info.size if info else 0
        console.print(f"copied [b]{table}[/b] from Postgres to {paths.reference(table)} ({size:,} bytes)")


def _follow(
    cloud: LocalCloud, services: Services, versions: Sequence[tuple[str, str]], started: float, console: Console
) -> None:
    records = _wait(cloud, services, versions, console)
    seconds = time.monotonic() - started
    for record in records:
        console.print(f"{record.source.name}: {outcome(record)}", markup=False, highlight=False, soft_wrap=True)
    _show_days(services, sorted({day for record in records for day in record.days}), seconds, console)
    failed = [record for record in records if record.state is not State.PUBLISHED]
    if failed:
        raise LocalCloudError(
            "; ".join(f"{record.source.name} is {record.state}: {record.reason}" for record in failed)
        )


def _show_days(services: Services, days: list[date], seconds: float, console: Console) -> None:
    pointers = [pointer for day in days if (pointer := day_pointer(services.lake, day)[0])]
    if not pointers:
        return
    if len(days) > 1:
        show_days(Screen(console), pointers[-10:])
    show_topics(Screen(console), topics_of_day(services.lake, days[-1]))
    posts = sum(pointer.posts for pointer in pointers)
    spread = "1 day" if len(days) == 1 else f"{len(days):,} days"
    console.print(f"[b]{posts:,}[/b] posts on {spread}, {seconds:.1f} s from upload to published")
    console.print(f"\nThe outputs lie in the lake, at {services.settings.lake_uri}:")
    for path in (pointers[-1].parquet, pointers[-1].csv, paths.day_pointer(days[-1]), *pointers[-1].sources.values()):
        console.print(f"  {path}", highlight=False)
    console.print("To look again: `make up`, then `.venv/bin/python manage.py topics` and `… manage.py status`")


def sample_day() -> PostsFile:
    """Today's sample posts."""
    today = datetime.now(UTC).date()
    return PostsFile(f"posts-{today.isoformat()}.parquet", parquet(samples.sample_posts(today)))


def posts_file(path: Path, today: bool) -> PostsFile:
    """A file from disk; with `today` every post keeps its time of day and gets today's date."""
    if not today:
        return PostsFile(path.name, path.read_bytes())
    posts = pq.read_table(path)
    return PostsFile(path.name, parquet(_redated(posts, datetime.now(UTC).date())))


def _redated(posts: pa.Table, day: date) -> pa.Table:
    place = posts.schema.get_field_index("CreationDate")
    moments = posts["CreationDate"].cast(pa.timestamp("us"))
    midnight = pc.floor_temporal(moments, unit="day")
    target = pa.scalar(day).cast(pa.timestamp("us"))
    redated = pc.add(pc.subtract(moments, midnight), target)
    return posts.set_column(place, "CreationDate", pc.fill_null(redated, target))


def upload(services: Services, file: PostsFile) -> tuple[str, str]:
    """Put a file into the container; returns the ids its record will have."""
    blob = services.posts_container.get_blob_client(file.name)
    found = blob.upload_blob(file.data, overwrite=True)
    version = paths.version_of(found["last_modified"], found["etag"])
    return paths.source_id(services.settings.posts_container, file.name), version


def _wait(
    cloud: LocalCloud, services: Services, versions: Sequence[tuple[str, str]], console: Console
) -> list[FileRecord]:
    """Show each file's state until all have ended."""
    steps = [State.LANDED, State.LAUNCHED, State.CLASSIFIED, State.PUBLISHED]
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    last_change = time.monotonic()
    with Progress(*columns, console=console, transient=True) as progress:
        tasks = {key: progress.add_task(key[0], total=len(steps), state="uploaded") for key in versions}
        records: dict[tuple[str, str], FileRecord] = {}
        poisoned = _poison(services)
        while any(key not in records or records[key].state not in ENDED for key in versions):
            if time.monotonic() - last_change > PATIENCE_SECONDS:
                raise LocalCloudError(f"nothing happened in {PATIENCE_SECONDS} s; see the logs in {cloud.logs}")
            cloud.check()
            if _poison(services) > poisoned:
                raise LocalCloudError(f"a function failed for good; see {cloud.logs / 'functions.log'}")
            for key in versions:
                before = records.get(key)
                if before and before.state in ENDED:
                    continue
                record = services.ledger.find(*key)
                if record is None or record == before:
                    continue
                records[key], last_change = record, time.monotonic()
                done = steps.index(record.state) + 1 if record.state in steps else len(steps)
                progress.update(tasks[key], completed=done, state=record.state.value, description=record.source.name)
            time.sleep(POLL_SECONDS)
    return [records[key] for key in versions]


def _poison(services: Services) -> int:
    return sum(services.queue(name).length() for name in poison_queues(services.settings))


def parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()
