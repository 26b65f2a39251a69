"""`python -m bench pipeline`: the time from upload to published topics on the local cloud, and to import the app.

A small file warms up one local cloud. Then files of about 10,000 sample posts are uploaded one after the other. The
times in a file's record and in its job's summary split its total time into steps. The last file is invalid.

Measured, for the bounds: importing the app took 0.13 to 0.42 CPU s, loading the starter model 0.1; 10,000 posts were
published after 2.0 to 4.5 s; a file is refused at its first delivery.
"""

from __future__ import annotations

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
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.common import Bound, conclude, options
from classify.model.model import TopicModel
from classify.registry.summary import SUMMARY_FILE, Summary
from cli.follow import Uploaded, upload
from localcloud.cloud import LocalCloud
from localcloud.demo import parquet
from localcloud.processes import PROJECT_ROOT
from localcloud.samples import sample_posts
from shared.ledger import AT_REST, FileRecord, FileState
from shared.services import Services

QUESTIONS = 4_550
"""With their answers, these are about 10,000 posts."""
FORBIDDEN = ("pyarrow", "psycopg2", "databricks")
STARTER = PROJECT_ROOT / "classify" / "starter"
MOST_CPU_TO_IMPORT, MOST_CPU_TO_LOAD, MOST_TO_PUBLISH, MOST_TO_REFUSE = 0.6, 0.3, 10, 1

IMPORT = """
import json, sys, time
wall, cpu = time.perf_counter(), time.process_time()
import function_app
print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "modules": list(sys.modules)}))
"""


def main(arguments: Sequence[str]) -> int:
    parser = options("pipeline", __doc__)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    imports = measure_imports(given.rounds)
    files, refused = measure_files(given.rounds)
    bounds = [
        Bound("import function_app", imports["cpu"], MOST_CPU_TO_IMPORT, "CPU s"),
        Bound("import function_app: heavy packages", len(imports["forbidden"]), 0),
        Bound("load the starter model", measure_starter(), MOST_CPU_TO_LOAD, "CPU s"),
        Bound("upload to published", statistics.median(file["total"] for file in files), MOST_TO_PUBLISH, "s"),
        Bound("event to quarantine", refused, MOST_TO_REFUSE, "s"),
    ]
    if given.json:
        said = {"import": imports, "files": files, "bounds": [bound.to_json() for bound in bounds]}
        print(json.dumps(said, indent=1))
        return conclude(bounds, given)
    console = Console()
    console.print(
        f"import function_app: {imports['cpu']:.2f} CPU s, {imports['wall']:.2f} s; forbidden: {imports['forbidden']}"
    )
    table = Table(title="From upload to published, seconds (median of rounds)")
    for name in files[0]:
        table.add_column(name, justify="right")
    table.add_row(*(f"{statistics.median(float(file[name]) for file in files):,.2f}" for name in files[0]))
    console.print(table)
    return conclude(bounds, given)


def measure_starter() -> float:
    """CPU seconds to load the starter model for the second time in a process."""
    TopicModel.load(STARTER)
    start = time.process_time()
    TopicModel.load(STARTER)
    return time.process_time() - start


def measure_imports(rounds: int) -> dict[str, Any]:
    """Import the app in new processes: the median seconds, and the heavy packages that it imported."""
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


def measure_files(rounds: int) -> tuple[list[dict[str, float]], float]:
    """For each file, its number of posts and the seconds of every step; and the seconds from the event of an invalid
    file to its quarantine."""
    folder = Path(tempfile.mkdtemp(prefix="stacktopics-bench-"))
    folder.chmod(0o755)
    first = datetime.now(UTC).date()
    try:
        with LocalCloud(folder) as cloud:
            services = Services(cloud.settings_file)
            _process(cloud, services, first, 100)
            days = [first - timedelta(days=number) for number in range(1, rounds + 1)]
            files = [_process(cloud, services, day, QUESTIONS) for day in days]
            refused = _wait(cloud, services, upload(services, "refused.parquet", b"Ideas, Title\n" * 100))
            return files, (refused.times["quarantined"] - refused.times["arriving"]).total_seconds()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _process(cloud: LocalCloud, services: Services, day: date, questions: int) -> dict[str, float]:
    table = sample_posts(day, questions)
    content = parquet(table)
    started = datetime.now(UTC)
    dropped = upload(services, f"posts-{day}.parquet", content)
    record = _wait(cloud, services, dropped)
    if record.state is not FileState.PUBLISHED:
        raise RuntimeError(f"{dropped.name} is {record.state}: {record.reason}")
    summary = Summary.model_validate_json(services.lake.read(f"{record.output}/{SUMMARY_FILE}"))
    run = json.loads((cloud.state_dir / "databricks" / f"run-{record.runs[-1].run_id}.json").read_text())
    job = (run["ended"] - run["started"]) / 1000
    times = record.times
    total = (times["published"] - started).total_seconds()
    return {
        "posts": table.num_rows,
        "upload to event": (times["arriving"] - started).total_seconds(),
        "land": (times["landed"] - times["arriving"]).total_seconds(),
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
        if record is not None and record.state in AT_REST:
            return record
        time.sleep(0.05)
