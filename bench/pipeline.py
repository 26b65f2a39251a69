"""`python -m bench pipeline`: from upload to published topics on the local cloud, and what importing the app costs.

One cloud is started and warmed up with a small file; then files of about 10,000 sample posts are dropped one after
the other. Each file's time is taken apart by what its record and its job's summary say.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table

from classify.summary import SUMMARY, Summary
from cli.follow import Uploaded, upload
from localcloud.cloud import LocalCloud
from localcloud.demo import parquet
from localcloud.processes import PROJECT_ROOT
from localcloud.samples import sample_posts
from shared.ledger import ENDED, FileRecord, State
from shared.services import Services

QUESTIONS = 4_550
"""With their answers about 10,000 posts."""
FORBIDDEN = ("pyarrow", "psycopg2", "databricks")

IMPORT = """
import json, sys, time
wall, cpu = time.perf_counter(), time.process_time()
import function_app
print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "modules": list(sys.modules)}))
"""


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench pipeline", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    imports = measure_imports(given.rounds)
    files = measure_files(given.rounds)
    if given.json:
        print(json.dumps({"import": imports, "files": files}, indent=1))
        return
    console = Console()
    console.print(
        f"import function_app: {imports['cpu']:.2f} CPU s, {imports['wall']:.2f} s; forbidden: {imports['forbidden']}"
    )
    table = Table(title="From upload to published, seconds (median of rounds)")
    for name in files[0]:
        table.add_column(name, justify="right")
    table.add_row(*(f"{statistics.median(float(file[name]) for file in files):,.2f}" for name in files[0]))
    console.print(table)


def measure_imports(rounds: int) -> dict[str, object]:
    """Importing the app in a new process: medians in seconds, and which heavy packages it pulled in."""
    found = []
    for _ in range(rounds):
        ended = subprocess.run(
            [sys.executable, "-c", IMPORT], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
        )
        found.append(json.loads(ended.stdout))
    modules = {name.split(".")[0] for name in found[0]["modules"]}
    return {
        "wall": statistics.median(each["wall"] for each in found),
        "cpu": statistics.median(each["cpu"] for each in found),
        "forbidden": sorted(modules & set(FORBIDDEN)),
    }


def measure_files(rounds: int) -> list[dict[str, float]]:
    """One entry a file: posts, and the seconds of every part."""
    folder = Path(tempfile.mkdtemp(prefix="stacktopics-bench-"))
    folder.chmod(0o755)
    first = datetime.now(UTC).date()
    try:
        with LocalCloud(folder) as cloud:
            services = Services(cloud.settings_file)
            _process(cloud, services, first, 100)
            return [
                _process(cloud, services, first - timedelta(days=number), QUESTIONS) for number in range(1, rounds + 1)
            ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _process(cloud: LocalCloud, services: Services, day: date, questions: int) -> dict[str, float]:
    table = sample_posts(day, questions)
    content = parquet(table)
    started = datetime.now(UTC)
    dropped = upload(services, f"posts-{day}.parquet", content)
    record = _wait(cloud, services, dropped)
    if record.state is not State.PUBLISHED:
        raise RuntimeError(f"{dropped.name} is {record.state}: {record.reason}")
    summary = Summary.model_validate_json(services.lake.read(f"{record.output}/{SUMMARY}"))
    run = json.loads((cloud.state_dir / "databricks" / f"run-{record.runs[-1].run_id}.json").read_text())
    job = (run["ended"] - run["started"]) / 1000
    times = record.times
    total = (times["published"] - started).total_seconds()
    return {
        "posts": table.num_rows,
        "upload to event": (times["seen"] - started).total_seconds(),
        "land": (times["landed"] - times["seen"]).total_seconds(),
        "launch": (times["launched"] - times["landed"]).total_seconds(),
        "job": job,
        "of it classifying": sum(summary.seconds.values()),
        "until the run is seen": (times["classified"] - times["launched"]).total_seconds() - job,
        "publish": (times["published"] - times["classified"]).total_seconds(),
        "total": total,
        "all but the job": total - job,
    }


def _wait(cloud: LocalCloud, services: Services, dropped: Uploaded) -> FileRecord:
    while True:
        cloud.check()
        record = services.ledger.find(dropped.source_id, dropped.version)
        if record is not None and record.state in ENDED:
            return record
        time.sleep(0.05)
