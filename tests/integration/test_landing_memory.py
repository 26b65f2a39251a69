"""Landing a file whose every byte passes through the function, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from hashlib import md5
from pathlib import Path

from bench.landing import MB, NAME, upload_posts
from localcloud.cloud import LocalCloud
from localcloud.processes import PROJECT_ROOT
from shared.services import Services

MEGABYTES = 64
MAX_MIB_ABOVE_START, MAX_MIB = 40, 100
"""Measured 18 above the 67 of a process with its clients, for blocks of 4 MB on their way. The file held whole would be
64 more; Arrow, if the check of the footer needed it, 43."""


def test_a_large_file_lands_through_us_in_little_memory(local_cloud: LocalCloud, tmp_path: Path) -> None:
    services = Services(local_cloud.settings_file)
    upload_posts(services, tmp_path, MEGABYTES)
    kept = md5(services.posts_container.get_blob_client(NAME).download_blob().readall()).digest()
    command = [
        sys.executable,
        "-m",
        "bench",
        "landing",
        "--one",
        "land_posts by ranges",
        str(local_cloud.settings_file),
    ]
    ended = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    measured = json.loads(ended.stdout)
    assert measured["mib"] < MAX_MIB_ABOVE_START
    assert measured["peak_mib"] < MAX_MIB
    (record,) = (record for record in services.ledger.records() if record.source.name == f"one/{NAME}")
    assert record.archive is not None
    with services.lake.open(record.archive) as archived:
        assert archived.size() > MEGABYTES * MB
        assert md5(archived.read()).digest() == kept
    services.posts_container.get_blob_client(NAME).delete_blob()
    services.close()
