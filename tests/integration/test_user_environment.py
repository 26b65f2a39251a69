"""The project in the environments of a deployment and of `make demo` and `make up`, on every version of Python.

Packages that only tests need, such as pandas, are missing there.
"""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

import cli.main
from localcloud.cloud import reset
from localcloud.samples import sample_posts
from tests import exports
from tests.dumps import write_xml
from tests.environments import EVERY_VERSION, make_environment
from tests.places import PROJECT
from tests.reach import modules_reached

pytestmark = pytest.mark.timeout(1200)  # an environment may have to be downloaded

STARTER = PROJECT / "classify" / "starter"
IMPORT_ALL = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
CLOUD = """
import sys
from pathlib import Path
from localcloud.cloud import LocalCloud
with LocalCloud(Path(sys.argv[1])) as cloud:
    print(cloud.settings_file, flush=True)
    sys.stdin.read()
"""
MOMENT = datetime(2014, 1, 2, 3, 4, 5, 678000)
USER = {"Reputation": 1, "CreationDate": MOMENT, "LastAccessDate": MOMENT, "Views": 0, "UpVotes": 0, "DownVotes": 0}
USERS = [{"Id": number, "DisplayName": f'the "{number}"', **USER} for number in range(-1, 2500)]
"""More users than in the demo, because a reference table that shrinks is refused."""
POSTS = exports.posts(30)
"""Questions and answers of one sample day, spread over two months here."""


def _environment() -> dict[str, str]:
    """The environment of this process without the variables that tests set."""
    return {name: text for name, text in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}


@dataclass(frozen=True)
class User:
    """A user with an interpreter and this project, who runs commands in its folder."""

    python: Path

    def runs(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.python), *map(str, arguments)],
            cwd=PROJECT,
            env=_environment() | {"COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )

    def gets(self, *arguments: str | Path) -> str:
        """The output of a command, which must succeed, in one line."""
        done = self.runs(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize("version", EVERY_VERSION)
def test_the_functions_run_with_only_their_requirements(version: str) -> None:
    user = User(make_environment(version, "requirements.txt"))
    assert user.runs("-c", "import numba").returncode == 1, "the environment has more than requirements.txt"
    user.gets("-c", IMPORT_ALL, *sorted(modules_reached("function_app")))


@pytest.fixture(scope="module", params=EVERY_VERSION)
def user(request: pytest.FixtureRequest) -> User:
    """A user with the packages that `make demo` and `make up` install."""
    user = User(make_environment(request.param, "requirements-local.txt"))
    assert user.runs("-c", "import pandas").returncode == 1, "the environment has more than requirements-local.txt"
    return user


@pytest.fixture(scope="module")
def state(user: User) -> Iterator[Path]:
    """The state folder of a local cloud after a run of the demo."""
    folder = Path(tempfile.mkdtemp(prefix="stacktopics-"))
    folder.chmod(0o755)
    said = user.gets("-m", "localcloud", "demo", "--state", folder)
    assert re.search(r"\b\d,\d{3} posts on 1 day\b", said), said
    yield folder
    reset(folder)


@pytest.fixture(scope="module")
def settings(user: User, state: Path) -> Iterator[Path]:
    """The settings file of that cloud, which is started again."""
    command = [str(user.python), "-c", CLOUD, str(state)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=PROJECT, env=_environment(), text=True, stdin=pipe, stdout=pipe) as cloud:
        assert cloud.stdout
        yield Path(cloud.stdout.readline().strip())
        cloud.communicate()
    assert cloud.returncode == 0


@pytest.fixture(scope="module")
def small_dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dumps") / "cooking.stackexchange.com"
    folder.mkdir()
    posts = [post | {"CreationDate": datetime(2014, 1 + number % 2, 9)} for number, post in enumerate(POSTS)]
    write_xml(folder / "Posts.xml", posts)
    write_xml(folder / "Users.xml", USERS)
    return folder


def _commands(group: Any, *names: str) -> Iterator[tuple[str, ...]]:
    yield names
    for name, command in getattr(group, "commands", {}).items():
        yield from _commands(command, *names, name)


def test_every_command_shows_its_usage(user: User) -> None:
    commands = [*_commands(typer.main.get_command(cli.main.app))]
    assert ("models", "promote") in commands
    for command in commands:
        assert f"Usage: manage.py {' '.join(command)}".strip() in user.gets("manage.py", *command, "--help")


def test_the_demo_imports_a_dump(user: User, state: Path, small_dump: Path) -> None:
    said = user.gets("-m", "localcloud", "demo", "--dump", small_dump, "--state", state)
    assert f"{len(USERS):,} rows in, {len(USERS):,} out, 0 set aside" in said
    assert f"{len(POSTS)} rows in, {len(POSTS)} out, 0 set aside, 2 files" in said
    assert f"{len(POSTS)} posts on 2 days" in said


def test_an_operator_can_inspect_the_cloud(user: User, settings: Path) -> None:
    def manage(*arguments: str) -> str:
        return user.gets("manage.py", *arguments, "--settings", settings)

    assert "published" in manage("status")
    assert "wrong" not in manage("check")
    assert "POSTGRES_PASSWORD" in manage("settings")
    assert "share" in manage("topics")
    assert json.loads(manage("topics", "--json"))["topics"]
    assert (STARTER / "model.json").read_text().split('"version": "')[1][:8] in manage("models")
    assert "100 topics of the model" in manage("topics", "--list")
    assert "counted anew, 0 topics files changed" in manage("republish")


def test_an_operator_can_drop_an_export(user: User, settings: Path, tmp_path: Path) -> None:
    (tmp_path / "export.csv").write_bytes(exports.explorer_csv(POSTS))
    said = user.gets("manage.py", "drop", tmp_path / "export.csv", "--settings", settings)
    assert f"export.parquet: published: {len(POSTS)} posts on " in said
    assert "counts" in user.gets("manage.py", "open", "show", "export.parquet", "--settings", settings)


def test_an_operator_can_import_a_dump(user: User, settings: Path, small_dump: Path, tmp_path: Path) -> None:
    given = ("manage.py", "import-dump", small_dump, "--settings", settings)
    said = user.gets(*given, "--by", "month", "--out", tmp_path / "out", "--workers", "2")
    assert "2 files" in said
    names = ["posts-cooking-2014-01.parquet", "posts-cooking-2014-02.parquet"]
    assert sorted(file.name for file in (tmp_path / "out").glob("*.parquet")) == names
    found = [post for name in names for post in pq.read_table(tmp_path / "out" / name).to_pylist()]
    bodies = {post["Id"]: post["Body"] for post in found}
    assert bodies == {post["Id"]: post["Body"] for post in POSTS}
    said = user.gets(*given, "--no-users", "--prefix", "again", "--work", tmp_path / "work")
    assert f"{len(POSTS)} rows in, {len(POSTS)} out, 0 set aside" in said


def test_an_operator_can_train_evaluate_and_score(user: User, settings: Path, tmp_path: Path) -> None:
    def models(*arguments: str | Path) -> str:
        return user.gets("manage.py", "models", "--settings", settings, *arguments)

    posts, model, scored = tmp_path / "posts.parquet", tmp_path / "model", tmp_path / "scored.parquet"
    pq.write_table(sample_posts(date(2026, 3, 14), 100), posts)
    user.gets("manage.py", "train", "--posts", posts, "--out", model, "--topics", "2")
    version = json.loads((model / "model.json").read_text())["version"]
    assert "hit_at_1" in user.gets("manage.py", "evaluate", "--posts", posts, "--model", model)
    user.gets("manage.py", "score", "--posts", posts, "--model", model, "--out", scored)
    assert pa.compute.count_distinct(pq.read_table(scored)["Id"]).as_py() == pq.read_metadata(posts).num_rows
    models("add", model)
    assert f"{version} is current" in models("promote", version)
    assert "is current" in models("rollback")
