"""`python -m bench faults`: files, corrections and copies while parts of the local cloud are killed and stand still.

Files of several days are uploaded one after the other; of some a correction follows. Meanwhile host, gateway,
Databricks stand-in and Postgres are killed (SIGKILL) at random moments and started again, each is away for some time,
and storage stands still. When all is up again, two passes of reconcile must be enough: every post of every file is
counted once, and nothing is open. `--seed` repeats the same moments as far as a machine can.

The bounds: nothing lost, nothing doubled, nothing stuck.
"""

from __future__ import annotations

import json
import random
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import partial

from rich.console import Console
from rich.table import Table

from bench.common import Bound, conclude, options
from bench.parts import PARTS, Parts
from cli.follow import upload
from ingest.reference.copy import copy_reference
from localcloud.demo import parquet
from localcloud.processes import LOCALHOST
from localcloud.samples import sample_posts
from pipeline.inbox import things
from pipeline.reconcile import reconcile
from serve.topics import topics_of_day
from shared import paths
from shared.errors import NotFound, StackTopicsError
from shared.ledger import FileState
from shared.queues import poison_queues
from shared.services import Services

SETTINGS = {
    "RECONCILE_SCHEDULE": "*/10 * * * * *",
    "RECONCILE_PATIENCE_SECONDS": "10",
    "WATCH_FIRST_DELAY_SECONDS": "1",
    "WATCH_MAX_DELAY_SECONDS": "5",
    "AzureFunctionsJobHost__extensions__queues__visibilityTimeout": "00:00:01",
}
FIRST_DAY = date(2026, 11, 1)
QUESTIONS = 8
"""Of a file; with their answers about 18 posts."""
WEIGHTS = {"host": 6, "gateway": 2, "databricks": 2, "postgres": 1}
CORRECTED = 5
"""Every so many-th file is uploaded again with more posts."""
USERS = 5_000
CLAIM_SECONDS = 35
"""Longer than a delivery that died may keep a small file to itself."""
QUIET_SECONDS = 300


@dataclass
class Result:
    """What was done, and what was found at the end."""

    files: int = 0
    corrections: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    outages: list[tuple[str, float]] = field(default_factory=list)
    posts: int = 0
    """What must be counted."""
    counted: int = 0
    lost: int = 0
    doubled: int = 0
    stuck: list[str] = field(default_factory=list)
    """Whatever is open after two passes, in words."""
    copies: int = 0
    runs: int = 0
    seconds: float = 0
    failed_invocations: int = 0


def main(arguments: Sequence[str]) -> int:
    parser = options("faults", __doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--files", type=int, default=60)
    parser.add_argument("--days", type=int, default=5)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--hosts", type=int, default=1, help="functions hosts at once")
    parser.add_argument("--longest-outage", type=float, default=60, metavar="SECONDS", help="600 takes an hour more")
    given = parser.parse_args(arguments)
    result = disturbed(given.seed, given.files, given.days, given.kills, given.longest_outage, given.hosts)
    bounds = [
        Bound("posts lost", result.lost, 0),
        Bound("posts doubled", result.doubled, 0),
        Bound("stuck after two passes of reconcile", len(result.stuck), 0),
    ]
    if given.json:
        said = {**vars(result), "bounds": [bound.to_json() for bound in bounds]}
        print(json.dumps(said, indent=1))
        return conclude(bounds, given)
    show(result, given.seed)
    return conclude(bounds, given)


def show(result: Result, seed: int) -> None:
    table = Table(title=f"Kills and outages, seed {seed}: {result.seconds:,.0f} s")
    rows = {
        "files, corrections": f"{result.files}, {result.corrections}",
        "kills": ", ".join(f"{count} {part}" for part, count in sorted(result.kills.items())),
        "outages": ", ".join(f"{part} {seconds:.0f} s" for part, seconds in result.outages),
        "runs of the job": f"{result.runs}",
        "failed invocations": f"{result.failed_invocations:,}",
        "posts to count, counted": f"{result.posts:,}, {result.counted:,}",
        "lost, doubled, stuck": f"{result.lost}, {result.doubled}, {len(result.stuck)}",
    }
    table.add_column("what")
    table.add_column("how much")
    for row in rows.items():
        table.add_row(*row)
    console = Console()
    console.print(table)
    for each in result.stuck:
        console.print(f"stuck: {each}", markup=False)


def disturbed(seed: int, files: int, days: int, kills: int, longest_outage: float, hosts: int = 1) -> Result:
    """Upload while parts are killed and away, let the cloud come to rest, and compare with what was uploaded."""
    chance, result, clock = random.Random(seed), Result(files=files), time.monotonic()
    with Parts(SETTINGS, hosts=hosts) as parts:
        services = parts.services()
        _fill_database(services)
        expected: dict[str, tuple[date, int]] = {}
        steps = _steps(chance, parts, services, result, expected, files, days)
        outages = [(part, seconds) for seconds in _lengths(longest_outage) for part in (*PARTS, "storage")]
        harms: list[Callable[[], None]] = [lambda: _kill(chance, parts, result)] * kills
        harms += [partial(_outage, parts, result, part, seconds) for part, seconds in outages]
        chance.shuffle(harms)
        while steps or harms:
            if steps and chance.random() < len(steps) / (len(steps) + len(harms)):
                steps.pop(0)()
            elif harms:
                harms.pop()()
        _come_to_rest(services)
        for _ in range(2):
            time.sleep(CLAIM_SECONDS)
            reconcile(services)
            _come_to_rest(services)
        _compare(services, result, expected)
        result.failed_invocations = parts.logs("host").count("(Failed, ")
        services.close()
    result.seconds = round(time.monotonic() - clock, 1)
    return result


def _fill_database(services: Services) -> None:
    """The reference tables, small ones."""
    with closing(services.postgres()) as connection, connection, connection.cursor() as cursor:
        cursor.execute(
            "CREATE SCHEMA raw_st; CREATE TABLE raw_st.post_types (id int PRIMARY KEY, name text);"
            "CREATE TABLE raw_st.users (id int PRIMARY KEY, name text);"
            "INSERT INTO raw_st.post_types VALUES (1, 'Question'), (2, 'Answer');"
            f"INSERT INTO raw_st.users SELECT n, 'user ' || n FROM generate_series(1, {USERS}) n"
        )


def _lengths(longest: float) -> list[float]:
    """1 s, and so on in steps of six up to the longest."""
    lengths, seconds = [], 1.0
    while seconds < longest:
        lengths.append(seconds)
        seconds *= 6
    return [*lengths, longest] if longest else []


def _steps(
    chance: random.Random,
    parts: Parts,
    services: Services,
    result: Result,
    expected: dict[str, tuple[date, int]],
    files: int,
    days: int,
) -> list[Callable[[], None]]:
    """The uploads, each after some time, with a copy of the reference tables between them."""

    def put(number: int, questions: int) -> None:
        day, name = FIRST_DAY + timedelta(days=number % days), f"posts-{number:04}.parquet"
        table = sample_posts(day, questions, seed=number)
        upload(services, name, parquet(table))
        expected[name] = day, table.num_rows
        time.sleep(chance.random() * 0.3)

    def correct(number: int) -> None:
        put(number, QUESTIONS + 3)
        result.corrections += 1

    def copy() -> None:
        address = f"http://{LOCALHOST}:{parts.ports['host']}/admin/functions/copy_reference"
        request = urllib.request.Request(address, b"{}", {"Content-Type": "application/json"})
        with suppress(OSError), urllib.request.urlopen(request, timeout=5):  # the host may have been killed
            result.copies += 1

    steps: list[Callable[[], None]] = []
    for number in range(files):
        steps.append(partial(put, number, QUESTIONS))
        if number % CORRECTED == CORRECTED - 1:
            steps.append(partial(correct, number - 2))
            steps.append(copy)
    return steps


def _kill(chance: random.Random, parts: Parts, result: Result) -> None:
    part = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    time.sleep(chance.random() * (1.5 if part == "host" else 0.5))
    parts.kill(part)
    result.kills[part] += 1
    parts.start(part)


def _outage(parts: Parts, result: Result, part: str, seconds: float) -> None:
    if part == "storage":
        parts.pause_storage(seconds)
    else:
        parts.kill(part)
        time.sleep(seconds)
        parts.start(part)
    result.outages.append((part, seconds))


def _come_to_rest(services: Services) -> None:
    """Wait until nothing moves: no file is open, or none has changed for a while."""
    before, since = None, time.monotonic()
    while time.monotonic() - since < QUIET_SECONDS:
        try:
            now = [services.ledger.get(*key) for key in services.ledger.open_files()]
        except (NotFound, StackTopicsError):
            continue
        left = list(services.posts_container.list_blob_names())
        if not now and not left:
            return
        if (now, left) != before:
            before, since = (now, left), time.monotonic()
        time.sleep(1)


def _compare(services: Services, result: Result, expected: dict[str, tuple[date, int]]) -> None:
    by_day: Counter[date] = Counter()
    for day, posts in expected.values():
        by_day[day] += posts
    for day, posts in by_day.items():
        try:
            counted = topics_of_day(services.lake, day).posts
        except NotFound:
            counted = 0
        result.posts += posts
        result.counted += counted
        result.lost += max(0, posts - counted)
        result.doubled += max(0, counted - posts)
    result.stuck += [f"open: {'/'.join(key)}" for key in services.ledger.open_files()]
    result.stuck += [f"in the container: {name}" for name in services.posts_container.list_blob_names()]
    result.stuck += [f"needs a person: {thing.alert} {thing.subject}: {thing.reason}" for thing in things(services)]
    result.stuck += [
        f"{length} messages in {name}"
        for name in poison_queues(services.settings)
        if (length := services.queue(name).length())
    ]
    for folder in ("landing", "archive", "quarantine", "post_topics", "topics", "catalog", "runs"):
        result.stuck += [f"temporary: {file.path}" for file in services.lake.unfinished(folder)]
    result.stuck += [f"in landing: {file.path}" for file in services.lake.list("landing")]
    result.stuck += _reference_faults(services)
    published: Counter[str] = Counter()
    for record in services.ledger.records():
        result.runs += len(record.runs)
        published[record.source.name] += record.state is FileState.PUBLISHED
        if record.archive and services.lake.stat(record.archive) is None:
            result.stuck.append(f"not in the archive: {record.key}")
    result.stuck += [f"never published: {name}" for name in expected if not published[name]]


def _reference_faults(services: Services) -> list[str]:
    """What is wrong with the snapshot of the users after one more copy."""
    import pyarrow.parquet as pq

    copy_reference(services)
    rows = pq.read_metadata(services.lake.open(paths.reference("users"))).num_rows
    return [] if rows == USERS else [f"the snapshot of users has {rows} rows of {USERS}"]
