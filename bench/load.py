"""`python -m bench load`: many small files, one after the other: files a second, CPU of each part, looks, memory.

Files are uploaded as quickly as the pipeline takes them, with at most OPEN of them under way. The job is a stub that
writes a prepared output, so that what is measured is the pipeline. `--days 3` puts all files on the same three days;
without it every file has a day of its own. `--real` runs the real job.

The bounds: 0.25 CPU s of the host a file, and the last tenth of the files costs at most a tenth more than the second.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from datetime import date
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.common import Bound, conclude, options, peak_bytes
from bench.parts import Parts
from bench.stub_job import POSTS, day_of
from cli.follow import upload
from localcloud.cloud import JOBS
from localcloud.demo import parquet
from localcloud.samples import sample_posts
from serve.topics import topics_of_day
from shared.services import Services

SETTINGS = {"WATCH_FIRST_DELAY_SECONDS": "1", "WATCH_MAX_DELAY_SECONDS": "5", "RECONCILE_SCHEDULE": "0 * * * * *"}
OPEN = 40
PARTS = ("host", "gateway", "databricks")
TENTHS = 10
MOST_CPU, MOST_GROWTH, MOST_LOOKS = 0.25, 1.1, 12


def main(arguments: Sequence[str]) -> int:
    parser = options("load", __doc__)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--days", type=int, help="how many days the files have; without it, one each")
    parser.add_argument("--real", action="store_true", help="the real job in place of a stub")
    given = parser.parse_args(arguments)
    result = loaded(given.files, given.days or given.files, real=given.real)
    first, last = result["steps"][1]["host"], result["steps"][-1]["host"]
    bounds = [
        Bound("CPU of the host a file", result["cpu"]["host"], MOST_CPU, "s"),
        Bound("the last tenth of the files, the second one is 1", last / first, MOST_GROWTH),
        Bound("looks a file", result["looks"], MOST_LOOKS),
        Bound("posts lost or doubled", abs(result["posts"] - result["counted"]), 0),
        Bound("failed invocations", result["failed"], 0),
    ]
    if given.json:
        print(json.dumps({**result, "bounds": [bound.to_json() for bound in bounds]}, indent=1))
        return conclude(bounds, given)
    show(result)
    return conclude(bounds, given)


def show(result: dict[str, Any]) -> None:
    console = Console()
    table = Table(title=f"{result['files']:,} files on {result['days']:,} days: {result['files_a_second']:.2f} files/s")
    for name in ("files", "files/s", "host CPU s a file", "gateway", "stand-in", "open files"):
        table.add_column(name, justify="right")
    for step in result["steps"]:
        figures = (step["host"], step["gateway"], step["databricks"])
        table.add_row(
            f"{step['files']:,}", f"{step['a_second']:.2f}", *(f"{cpu:.3f}" for cpu in figures), f"{step['open']:,}"
        )
    console.print(table)
    console.print(
        f"looks a file {result['looks']:.1f}, peak memory of the host {result['peak_mb']:.0f} MB, "
        f"failed invocations {result['failed']}, posts {result['posts']:,}, counted {result['counted']:,}"
    )


def loaded(files: int, days: int, *, real: bool) -> dict[str, Any]:
    """The figures of a load of files on so many days."""
    jobs = JOBS if real else {1: "bench.stub_job", 2: "classify.train"}
    steps: list[dict[str, float]] = []
    with Parts(SETTINGS, jobs, runs_at_once=4) as parts:
        services = parts.services()
        posts = parquet(sample_posts(date(2026, 1, 1), 9))
        step = max(1, files // TENTHS)
        clock, cpu, started = time.monotonic(), _cpu(parts), time.monotonic()
        before = cpu
        for number in range(files):
            _wait_for_room(services, OPEN)
            upload(services, f"{day_of(number, days)}-{number:06}.parquet", posts)
            if (number + 1) % step == 0:
                now, later = time.monotonic(), _cpu(parts)
                costs = {part: (later[part] - cpu[part]) / step for part in PARTS}
                open_files = len(services.ledger.open_files())
                steps.append({"files": number + 1, "a_second": step / (now - clock), "open": open_files, **costs})
                clock, cpu = now, later
        _wait_for_room(services, 1)
        seconds = time.monotonic() - started
        log = parts.logs("host")
        rows = _rows(posts) if real else POSTS
        result = {
            "files": files,
            "days": days,
            "seconds": seconds,
            "files_a_second": files / seconds,
            "cpu": {part: (used - before[part]) / files for part, used in _cpu(parts).items()},
            "steps": steps,
            "looks": len(re.findall("Executing 'Functions.watch_classification'", log)) / files,
            "failed": log.count("(Failed, "),
            "peak_mb": peak_bytes(str(parts.pid("host"))) / 1e6,
            "posts": files * rows,
            "counted": sum(topics_of_day(services.lake, day_of(number, days)).posts for number in range(days)),
        }
        services.close()
    return result


def _rows(posts: bytes) -> int:
    import io

    import pyarrow.parquet as pq

    return int(pq.read_metadata(io.BytesIO(posts)).num_rows)


def _cpu(parts: Parts) -> dict[str, float]:
    return {part: parts.cpu_seconds(part) for part in PARTS}


def _wait_for_room(services: Services, most: int) -> None:
    """Wait until fewer than `most` files are in the container or under way."""
    while len(list(services.posts_container.list_blob_names())) + len(services.ledger.open_files()) >= most:
        time.sleep(0.1)
