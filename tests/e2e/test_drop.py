"""`manage.py drop`: a user's own files, from the command line through the running local cloud."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from localcloud.cloud import LocalCloud
from serve.topics import topics_of_day
from shared.ledger import FileState
from shared.services import Services
from tests import exports
from tests.places import PROJECT
from tests.world import parquet, posts


def manage(cloud: LocalCloud, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / "manage.py"), *arguments, "--settings", str(cloud.settings_file)]
    return subprocess.run(command, cwd=folder, env={**os.environ}, capture_output=True, text=True, check=False)


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    """A folder with a Data Explorer export and its five usual conversions to Parquet."""
    (tmp_path / "export.csv").write_bytes(exports.explorer_csv(exports.posts(10)))
    for name, convert in exports.CONVERSIONS.items():
        convert(tmp_path / "export.csv", tmp_path / f"{name}.parquet")
    return tmp_path


def test_an_export_and_its_five_conversions_are_counted(cloud: LocalCloud, services: Services, converted: Path) -> None:
    files = ["export.csv", *(f"{name}.parquet" for name in exports.CONVERSIONS)]
    dropped = manage(cloud, converted, "drop", *files)
    assert dropped.returncode == 0, dropped.stdout + dropped.stderr
    assert "6 files: uploaded to the container posts" in dropped.stdout
    assert "6 of 6 files published" in dropped.stdout
    assert "See the topics with: python manage.py topics --day 2026-11-22" in dropped.stdout
    found = topics_of_day(services.lake, datetime(2026, 11, 22).date())
    assert (found.posts, found.topics[0].topic) == (20 * len(files), "python")


def test_drop_can_set_todays_date_and_print_json(cloud: LocalCloud, services: Services, tmp_path: Path) -> None:
    (tmp_path / "old.parquet").write_bytes(parquet(posts({"CreationDate": datetime(2012, 1, 2)}, {})))
    before = datetime.now(UTC).date()
    dropped = manage(cloud, tmp_path, "drop", "old.parquet", "--today", "--json")
    (record,) = json.loads(dropped.stdout)
    assert (record["state"], record["counted"]) == ("published", 2)
    assert record["days"][0] in (str(before), str(datetime.now(UTC).date()))
    archived = services.lake.open(record["archive"])
    assert set(map(str, pq.read_table(archived)["CreationDate"].cast("date32").to_pylist())) == set(record["days"])


def test_a_refused_file_is_reported_and_the_others_are_processed(
    cloud: LocalCloud, services: Services, tmp_path: Path
) -> None:
    (tmp_path / "bad.parquet").write_bytes(parquet(posts({}).drop_columns(["Body"])))
    (tmp_path / "late.parquet").write_bytes(parquet(posts({}).set_column(0, "Id", [[1.5]])))
    (tmp_path / "good.parquet").write_bytes(parquet(posts({})))
    dropped = manage(cloud, tmp_path, "drop", "bad.parquet", "late.parquet", "good.parquet")
    assert dropped.returncode == 1
    assert "bad.parquet: quarantined: bad.parquet breaks the contract for Posts: column Body" in dropped.stdout
    assert "late.parquet: quarantined: late.parquet: column Id must hold whole numbers, but holds 1.5" in dropped.stdout
    assert "good.parquet: published: 1 post on" in dropped.stdout
    (tmp_path / "notes.txt").write_text("hello")
    refused = manage(cloud, tmp_path, "drop", "good.parquet", "notes.txt")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("manage.py: notes.txt is neither a Parquet file nor a CSV file of posts")


def test_the_status_of_a_dropped_file_has_the_duration_of_its_run(
    cloud: LocalCloud, services: Services, tmp_path: Path
) -> None:
    (tmp_path / "timed.parquet").write_bytes(parquet(posts({})))
    assert manage(cloud, tmp_path, "drop", "timed.parquet").returncode == 0
    (record,) = (found for found in services.ledger.records() if found.source.name == "timed.parquet")
    assert record.state is FileState.PUBLISHED
    assert record.runs[-1].worked_seconds is not None
    assert record.runs[-1].worked_seconds > 0
    told = manage(cloud, tmp_path, "open", "show", "timed.parquet").stdout
    assert f"worked for {record.runs[-1].worked_seconds:.1f} s" in told
