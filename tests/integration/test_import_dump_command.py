"""`manage.py import-dump` as an operator calls it, against the local cloud's Postgres and container."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ingest.dump.source import WORK_FOLDER
from ingest.postgres.connect import connect
from localcloud.cloud import LocalCloud
from localcloud.processes import free_ports
from shared.services import Services
from tests.places import PROJECT


@pytest.fixture
def services(local_cloud: LocalCloud) -> Iterator[Services]:
    """The services of the local cloud, without users and with an empty container before and after the test."""
    made = Services(local_cloud.settings_file)
    _clear(made)
    yield made
    _clear(made)
    made.close()


def _clear(services: Services) -> None:
    sql(services, "DROP SCHEMA IF EXISTS raw_st CASCADE")
    for name in services.posts_container.list_blob_names():
        services.posts_container.delete_blob(name)


def sql(services: Services, statement: str) -> list[tuple[Any, ...]]:
    with closing(connect(services)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def users(services: Services) -> int:
    return int(sql(services, "SELECT count(*) FROM raw_st.users")[0][0])


def import_dump(settings: Path, cwd: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder with the settings of a file. Of this process's variables it gets only those that
    measure coverage."""
    command = [sys.executable, str(PROJECT / "manage.py"), "import-dump", *map(str, arguments)]
    cwd.mkdir(exist_ok=True)
    coverage = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
    return subprocess.run(
        [*command, "--settings", str(settings)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={"PYTHONPATH": str(PROJECT), "COLUMNS": "500", "PATH": "", **coverage},
    )


def test_a_dump_is_imported_into_a_folder(
    local_cloud: LocalCloud, services: Services, dump: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--by", "month", "--workers", "2", "--out", out)
    done = import_dump(local_cloud.settings_file, tmp_path, dump, *options)
    assert done.returncode == 0, done.stderr
    said = done.stderr
    assert said.index("Users.xml: 3,588 rows in, 3,588 out, 0 set aside") < said.index(
        "Posts.xml: 1,073 rows in, 1,073"
    )
    files = sorted(out.glob("posts-raspberrypi.meta-????-??.parquet"))
    assert len(files) == 76
    assert sum(pq.read_metadata(file).num_rows for file in files) == 1073
    assert users(services) == 3588
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    again = import_dump(local_cloud.settings_file, tmp_path, dump, *options)
    assert "3,588 rows were done by an earlier import" in again.stderr
    assert "76 files with 1,073 rows were done by an earlier import" in again.stderr


def test_a_dump_is_imported_into_the_posts_container(
    local_cloud: LocalCloud, services: Services, dump: Path, tmp_path: Path
) -> None:
    options = ("--by", "month", "--prefix", "pi", "--no-users", "--work", tmp_path / "state")
    done = import_dump(local_cloud.settings_file, tmp_path / "here", dump, *options)
    assert done.returncode == 0, done.stderr
    names = list(services.posts_container.list_blob_names())
    assert (len(names), names[0]) == (76, "posts-pi-2012-06.parquet")
    assert sql(services, "SELECT to_regclass('raw_st.users')") == [(None,)]
    assert not list((tmp_path / "here").iterdir())
    assert [path.name for path in (tmp_path / "state").iterdir()] == [WORK_FOLDER]


def test_with_no_posts_a_truncated_file_of_users_is_refused_unless_forced(
    local_cloud: LocalCloud, services: Services, dump: Path, tmp_path: Path
) -> None:
    settings = local_cloud.settings_file
    (tmp_path / "Users.xml").write_bytes((dump / "Users.xml").read_bytes()[:-2000])
    assert import_dump(settings, tmp_path, dump, "--no-posts").returncode == 0
    refused = import_dump(settings, tmp_path, tmp_path, "--no-posts")
    assert refused.returncode == 1
    assert "Users.xml ends without </users>, after 3,58" in refused.stderr
    assert users(services) == 3588
    forced = import_dump(settings, tmp_path, tmp_path, "--no-posts", "--force-users")
    assert "the file is cut off" in forced.stderr
    assert forced.returncode == 0
    assert 3570 < users(services) < 3588
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_truncated_file_of_posts_is_imported_only_on_request(
    local_cloud: LocalCloud, services: Services, dump: Path, tmp_path: Path
) -> None:
    folder, whole = tmp_path / "raspberrypi.meta", (dump / "Posts.xml").read_bytes()
    folder.mkdir()
    months = re.findall(rb' CreationDate="([^T]{7})', whole)
    row = next(number for number in range(len(months) // 2, len(months)) if months[number] == months[number - 1])
    (folder / "Posts.xml").write_bytes(whole[: whole.index(b'<row Id="%d"' % (row + 1)) + 50])
    options = ("--by", "month", "--no-users", "--work", tmp_path)
    refused = import_dump(local_cloud.settings_file, tmp_path, folder, *options)
    assert (refused.returncode, "download it again; or give --truncated" in refused.stderr) == (1, True), refused.stderr
    assert not list(services.posts_container.list_blob_names())
    assert import_dump(local_cloud.settings_file, tmp_path, folder, *options, "--truncated").returncode == 0
    before = {blob.name: blob.etag for blob in services.posts_container.list_blobs()}
    (folder / "Posts.xml").write_bytes(whole)
    done = import_dump(local_cloud.settings_file, tmp_path, folder, *options)
    assert (done.returncode, "1,073 rows in, 1,073 out" in done.stderr) == (0, True), done.stderr
    after = {blob.name: blob.etag for blob in services.posts_container.list_blobs()}
    assert (len(before), len(after)) == (len(set(months[:row])), 76)
    assert [name for name in before if after[name] != before[name]] == [max(before)]


def test_wrong_arguments_are_reported_without_a_traceback(
    local_cloud: LocalCloud, services: Services, dump: Path, tmp_path: Path
) -> None:
    (tmp_path / "afile").write_text("mine")
    for arguments, words in (
        ((dump / "Posts.xml",), f"give its folder, {dump}"),
        ((dump, "--out", tmp_path / "afile"), "afile is a file: give a folder for --out and --work"),
        ((dump, "--out", tmp_path / "out", "--work", tmp_path / "afile"), "afile is a file: give a folder for --out"),
    ):
        failed = import_dump(local_cloud.settings_file, tmp_path, *arguments)
        assert (failed.returncode, words in failed.stderr, "Traceback" in failed.stderr) == (1, True, False)
    assert sql(services, "SELECT to_regclass('raw_st.users')") == [(None,)]


def test_missing_parts_are_reported_before_posts_are_imported(
    local_cloud: LocalCloud, dump: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (tmp_path / "Posts.xml").write_bytes((dump / "Posts.xml").read_bytes())
    failed = import_dump(local_cloud.settings_file, tmp_path, tmp_path, "--out", out)
    assert (failed.returncode, "holds no Users.xml" in failed.stderr) == (1, True), failed.stderr
    settings = json.loads(local_cloud.settings_file.read_text())
    settings["Values"]["POSTGRES_PORT"] = str(free_ports(1)[0])
    (tmp_path / "elsewhere.json").write_text(json.dumps(settings))
    failed = import_dump(tmp_path / "elsewhere.json", tmp_path, dump, "--out", out)
    assert (failed.returncode, "Postgres" in failed.stderr, "Traceback" in failed.stderr) == (1, True, False)
    failed = import_dump(local_cloud.settings_file, tmp_path, dump, "--out", out, "--by", "decade")
    assert (failed.returncode, "'decade' is not one of" in failed.stderr) == (2, True)
    assert not out.exists()
