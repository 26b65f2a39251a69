"""`python -m bench landing`: copying a large file into the lake: this project's ways against the usual ones.

Every contender lands the same blob from Azurite's container into the lake in a process of its own, once a round:
medians of the seconds, the peak memory of that process. In the service no byte passes through the function.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from localcloud.cloud import LocalCloud
from localcloud.processes import PROJECT_ROOT
from shared import copying
from shared.services import Services
from shared.storage import BlobVersion, SourceBlob

NAME = "large.parquet"
MB = 1 << 20


def readall(services: Services, blob: SourceBlob, _: BlobVersion, path: str) -> None:
    """The whole blob in memory, then one upload."""
    services.lake._blobs.get_blob_client(path).upload_blob(blob.client.download_blob().readall(), overwrite=True)  # type: ignore[attr-defined]


def chunks(services: Services, blob: SourceBlob, _: BlobVersion, path: str) -> None:
    """The SDK's chunk iterator as the upload's source."""
    services.lake._blobs.get_blob_client(path).upload_blob(  # type: ignore[attr-defined]
        blob.client.download_blob().chunks(), length=None, overwrite=True
    )


def _only(way: str) -> Callable[[Services, SourceBlob, BlobVersion, str], None]:
    def land(services: Services, blob: SourceBlob, version: BlobVersion, path: str) -> None:
        if getattr(copying, way)(blob, version, services.lake._blobs.get_blob_client(path)) is None:  # type: ignore[attr-defined]
            raise RuntimeError(f"the service refuses {way}")

    return land


CONTENDERS = {
    "inside the account": _only("_inside_the_account"),
    "blocks from URL": _only("blocks_from_url"),
    "ranges through us": _only("_by_ranges"),
    "readall + upload": readall,
    "chunks() + upload": chunks,
}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench landing", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("CONTENDER", "SETTINGS"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        print(json.dumps(_one(given.one[0], Path(given.one[1]))))
        return
    results = _measure(given.megabytes, given.rounds)
    if given.json:
        print(json.dumps(results, indent=1))
        return
    table = Table(title=f"Landing {given.megabytes} MB on Azurite, {given.rounds} rounds")
    for name in ("way", "seconds", "CPU s here", "MiB above start", "× ranges"):
        table.add_column(name, justify="left" if name == "way" else "right")
    base = next(each["seconds"] for each in results if each["way"] == "ranges through us")
    for each in results:
        ratio = f"{each['seconds'] / base:.2f}"
        table.add_row(each["way"], f"{each['seconds']:.1f}", f"{each['cpu']:.1f}", f"{each['mib']:,.0f}", ratio)
    Console().print(table)


def _measure(megabytes: int, rounds: int) -> list[dict[str, float | str]]:
    folder = Path(tempfile.mkdtemp(prefix="stacktopics-bench-"))
    folder.chmod(0o755)
    try:
        with LocalCloud(folder, host=False) as cloud:
            block = os.urandom(MB)
            blob = Services(cloud.settings_file).posts_container.get_blob_client(NAME)
            blob.upload_blob((block for _ in range(megabytes)), length=megabytes * MB, overwrite=True)
            seen: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
            for _ in range(rounds):
                for name, results in seen.items():
                    command = [sys.executable, "-m", "bench", "landing", "--one", name, str(cloud.settings_file)]
                    ended = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
                    results.append(json.loads(ended.stdout))
            return [
                {"way": name, **{what: median(each[what] for each in results) for what in results[0]}}
                for name, results in seen.items()
            ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _one(name: str, settings: Path) -> dict[str, float]:
    services = Services(settings)
    blob = SourceBlob(services.posts_container.get_blob_client(NAME))
    version = blob.version()
    services.lake.stat("none")
    before, wall, cpu = _peak_mib(), time.perf_counter(), time.process_time()
    CONTENDERS[name](services, blob, version, "landing/large")
    seconds, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "mib": _peak_mib() - before, "peak_mib": _peak_mib()}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
