"""`python -m bench landing`: copying a large file into the lake: this project's ways compared with the usual ones.

Every contender copies the same Posts file from a container of Azurite into the lake, once per round, each in its own
process. All figures, also the peak memory of the process, are medians. `land_posts` is the whole landing step: check
the footer, copy to landing and archive, prove the copies, record, message, delete the source. Within an account the
service copies; `by ranges`, every byte of the landed copy passes through this process. The bounds detect a file that is
held in memory as a whole, instead of blocks of 4 MB. Measured: 20 MiB above a process with its clients, 87 in all.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from bench.common import Bound, conclude, options, peak_bytes
from ingest.posts import land_posts
from shared import copying
from shared.ledger import FileState
from shared.services import Services
from shared.storage import BlobVersion, StorageBlob

NAME = "large.parquet"
MB = 1 << 20


def readall(services: Services, blob: StorageBlob, _: BlobVersion, path: str) -> None:
    """The whole blob in memory, then one upload."""
    services.lake._blobs.get_blob_client(path).upload_blob(blob.client.download_blob().readall(), overwrite=True)  # type: ignore[attr-defined]


def chunks(services: Services, blob: StorageBlob, _: BlobVersion, path: str) -> None:
    """The SDK's chunk iterator as the upload's source."""
    services.lake._blobs.get_blob_client(path).upload_blob(  # type: ignore[attr-defined]
        blob.client.download_blob().chunks(), length=None, overwrite=True
    )


def land(services: Services, blob: StorageBlob, _: BlobVersion, __: str) -> None:
    """The whole landing step of this project."""
    record = land_posts(services, blob)
    if record is None or record.state is not FileState.LANDED:
        raise RuntimeError(f"the file did not land: {record}")


def land_by_ranges(services: Services, blob: StorageBlob, version: BlobVersion, path: str) -> None:
    """The whole landing step when the service refuses to copy the source."""
    copying._inside_the_account = lambda *_: None
    land(services, blob, version, path)


def _only(way: str) -> Callable[[Services, StorageBlob, BlobVersion, str], None]:
    def copy(services: Services, blob: StorageBlob, version: BlobVersion, path: str) -> None:
        if getattr(copying, way)(blob, version, services.lake._blobs.get_blob_client(path)) is None:  # type: ignore[attr-defined]
            raise RuntimeError(f"the service refuses {way}")

    return copy


BY_RANGES = "land_posts by ranges"
CONTENDERS = {
    "inside the account": _only("_inside_the_account"),
    "blocks from URL": _only("blocks_from_url"),
    "ranges through us": _only("_by_ranges"),
    "readall + upload": readall,
    "chunks() + upload": chunks,
    "land_posts": land,
    BY_RANGES: land_by_ranges,
}
MOST_ABOVE, MOST_IN_ALL = 40, 110


def main(arguments: Sequence[str]) -> int:
    parser = options("landing", __doc__)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("CONTENDER", "SETTINGS"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        print(json.dumps(_one(given.one[0], Path(given.one[1]))))
        return 0
    results = _measure(given.megabytes, given.rounds)
    ours = next(each for each in results if each["way"] == BY_RANGES)
    bounds = [
        Bound(f"{BY_RANGES}: above start", float(ours["mib"]), MOST_ABOVE, "MiB"),
        Bound(f"{BY_RANGES}: in all", float(ours["peak_mib"]), MOST_IN_ALL, "MiB"),
    ]
    if given.json:
        print(json.dumps({"ways": results, "bounds": [bound.to_json() for bound in bounds]}, indent=1))
        return conclude(bounds, given)
    from rich.console import Console  # imported here, so that it takes no memory in the processes that are measured
    from rich.table import Table

    table = Table(title=f"Landing {given.megabytes} MB on Azurite, {given.rounds} rounds")
    for name in ("way", "seconds", "CPU s here", "MiB above start", "MiB in all", "× ranges"):
        table.add_column(name, justify="left" if name == "way" else "right")
    base = next(float(each["seconds"]) for each in results if each["way"] == "ranges through us")
    for each in results:
        ratio = f"{float(each['seconds']) / base:.2f}"
        memory = f"{each['mib']:,.0f}", f"{each['peak_mib']:,.0f}"
        table.add_row(str(each["way"]), f"{each['seconds']:.1f}", f"{each['cpu']:.1f}", *memory, ratio)
    Console().print(table)
    return conclude(bounds, given)


def _measure(megabytes: int, rounds: int) -> list[dict[str, float | str]]:
    from localcloud.cloud import LocalCloud
    from localcloud.processes import PROJECT_ROOT

    folder = Path(tempfile.mkdtemp(prefix="stacktopics-bench-"))
    folder.chmod(0o755)
    try:
        with LocalCloud(folder, host=False) as cloud:
            upload_posts(Services(cloud.settings_file), folder, megabytes)
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


def upload_posts(services: Services, folder: Path, megabytes: int) -> None:
    """Make a Posts file of this size in `folder` and upload it; each row group is 1 MB that does not compress."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 64
    group = pa.table(
        {
            "Id": pa.array(range(rows)),
            "PostTypeId": pa.array([1] * rows),
            "CreationDate": pa.array(["2026-11-21"] * rows),
            "Title": pa.array(["none"] * rows),
            "Body": pa.array([os.urandom(MB // rows // 2).hex() for _ in range(rows)]),
        }
    )
    path = folder / NAME
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(path, group.schema, **options) as writer:
        for _ in range(megabytes):
            writer.write_table(group)
    with path.open("rb") as data:
        services.posts_container.get_blob_client(NAME).upload_blob(data, overwrite=True)
    path.unlink()


def _one(name: str, settings: Path) -> dict[str, float]:
    services = Services(settings)
    kept = services.posts_container.get_blob_client(NAME)
    blob = StorageBlob(services.posts_container.get_blob_client(f"one/{NAME}"))
    blob.client.start_copy_from_url(kept.url)  # landing deletes it
    version = blob.version()
    services.lake.stat("none")
    before, wall, cpu = peak_bytes(), time.perf_counter(), time.process_time()
    CONTENDERS[name](services, blob, version, "landing/large")
    seconds, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "mib": (peak_bytes() - before) / MB, "peak_mib": peak_bytes() / MB}
