"""docs/changing-it.md: each recipe works exactly as it is written on the page."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from azure.functions import QueueMessage
from azurefunctions.extensions.base.meta import _ConverterMeta as registry

from ingest.reference.copy import copy_reference
from localcloud.cloud import LocalCloud
from localcloud.host.app import HostedFunction, load_functions
from localcloud.host.ncrontab import Schedule
from localcloud.samples import sample_posts
from shared import paths
from shared.lake import FolderLake
from shared.ledger import FileState
from shared.queues import poison_queues
from shared.services import Services
from shared.settings import Settings
from tests.places import PROJECT
from tests.postgres_fixtures import Database
from tests.world import parquet, posts, settings

PAGE = (PROJECT / "docs" / "changing-it.md").read_text()
BINDINGS = {
    "POSTS_CONTAINER": "posts",
    "POSTS_STORAGE": "UseDevelopmentStorage=true",
    "POSTS_LANDED_QUEUE": "a",
    "CLASSIFICATION_RUNS_QUEUE": "b",
    "QUEUES_STORAGE": "UseDevelopmentStorage=true",
    "REFERENCE_SCHEDULE": "0 0 2 * * 1",
    "RETRAIN_SCHEDULE": "0 0 4 * * 0",
    "RECONCILE_SCHEDULE": "0 * * * * *",
}


def block(language: str) -> str:
    """The only code block of the page in a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


def app_with(folder: Path, more: str = "", **changes: str) -> dict[str, HostedFunction]:
    """The functions of the app, with additional code at its end and other settings."""
    file = folder / f"app_{uuid.uuid4().hex}.py"
    file.write_text((PROJECT / "function_app.py").read_text() + "\n\n" + more)
    return {function.name: function for function in load_functions(file, BINDINGS | changes)}


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo the changes that loading an app makes to the path, the modules and the registry of bindings.

    The registry has only one converter for blobs in a process, and other tests register Microsoft's.
    """
    before, modules = list(sys.path), set(sys.modules)
    monkeypatch.setattr(registry, "_bindings", {})
    monkeypatch.delitem(sys.modules, "ingest.binding", raising=False)
    yield
    sys.path[:] = before
    for name in set(sys.modules) - modules:
        if name.startswith("app_"):
            del sys.modules[name]


@pytest.mark.usefixtures("path")
def test_a_schedule_is_changed_by_a_setting(tmp_path: Path) -> None:
    (given,) = re.findall(r'--set "REFERENCE_SCHEDULE=([^"]+)"', PAGE)
    functions = app_with(tmp_path, REFERENCE_SCHEDULE=given)
    schedule = Schedule.parse(functions["copy_reference"].trigger["schedule"])
    assert schedule.next_after(datetime(2026, 11, 24, 12, tzinfo=UTC)) == datetime(2026, 11, 25, 3, 30, tzinfo=UTC)
    assert functions["retrain"].trigger["schedule"] == BINDINGS["RETRAIN_SCHEDULE"]


def test_a_table_of_another_schema_is_copied(database: Database, tmp_path: Path) -> None:
    (tables,) = re.findall(r"--set REFERENCE_TABLES=(\S+)", PAGE)
    database.run(
        "CREATE TABLE raw.users (id int PRIMARY KEY); CREATE TABLE raw.post_types (id int PRIMARY KEY);"
        "CREATE TABLE raw.badges (id int PRIMARY KEY, name text NOT NULL, class smallint);"
        "INSERT INTO raw.users VALUES (1); INSERT INTO raw.post_types VALUES (1);"
        "INSERT INTO raw.badges VALUES (1, 'Teacher', 3), (2, 'Student', NULL)"
    )
    lake = FolderLake(tmp_path)
    services = Services().replace(
        settings=settings(reference_schema=database.schema, reference_tables=tables), lake=lake
    )
    services.postgres = database.connect  # type: ignore[method-assign]
    assert copy_reference(services).state == "published"
    assert f"`{paths.reference('badges')}`" in PAGE
    assert pq.read_table(lake.root / paths.reference("badges")).to_pylist() == [
        {"id": 1, "name": "Teacher", "class": 3},
        {"id": 2, "name": "Student", "class": None},
    ]


def test_a_users_own_model_has_the_requested_topics(local_cloud: LocalCloud, tmp_path: Path) -> None:
    lake = services_of_its_own(local_cloud).settings.lake_file_system
    shutil.copy(local_cloud.settings_file, tmp_path / "local.settings.json")
    pq.write_table(sample_posts(date(2026, 11, 22), 600), tmp_path / "posts.parquet")
    train, add, promote, show = re.findall(r"^    python (manage\.py (?:train|models|topics) .*)$", PAGE, re.MULTILINE)

    def run(command: str) -> str:
        program, *arguments = command.split()
        done = subprocess.run(
            [sys.executable, str(PROJECT / program), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
            env={"PYTHONPATH": str(PROJECT), "LAKE_FILE_SYSTEM": lake},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    version = run(re.sub(r"--posts \S+", "--posts posts.parquet", train)).split()[0]
    assert re.fullmatch(r"topics12-[0-9a-f]{12}", version)
    assert version in run(add)
    assert f"{version} is current" in run(re.sub(r"topics12-\w+", version, promote))
    assert f"12 topics of the model {version}, and `other`" in run(show)


@pytest.mark.usefixtures("path")
def test_a_trigger_with_a_queue_of_its_own_lands_the_file_that_is_named(
    local_cloud: LocalCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = services_of_its_own(local_cloud)
    services.posts_container.upload_blob("one.parquet", parquet(posts({})))
    monkeypatch.setattr("shared.services.services", lambda: services)
    land_named = app_with(tmp_path, block("python"), POSTS_NAMED_QUEUE="named")["land_named"]
    assert (land_named.kind, land_named.trigger["queueName"]) == ("queueTrigger", "named")
    for _ in range(2):
        land_named.call(QueueMessage(body=b"one.parquet"))
        assert [record.state for record in services.ledger.records()] == [FileState.LANDED]
        assert not list(services.posts_container.list_blob_names())
    assert services.posts_landed.length() == 1
    services.close()


def test_every_queue_that_a_setting_names_has_its_poison_queue_looked_after() -> None:
    class WithAnother(Settings):
        posts_named_queue: str = "posts-named"

    another = WithAnother.model_construct(**vars(settings()))
    assert set(poison_queues(another)) - set(poison_queues(settings())) == {"posts-named-poison"}


def services_of_its_own(cloud: LocalCloud) -> Services:
    """Services with their own container, queues and file system."""
    name = f"t{uuid.uuid4().hex}"
    made = Services(cloud.settings_file)
    own = {"posts_container": name, "posts_landed_queue": f"{name}-1", "classification_runs_queue": f"{name}-2"}
    made.replace(settings=made.settings.model_copy(update=own | {"lake_file_system": f"{name}-lake"}))
    made.posts_account.create_container(name)
    made.posts_account.create_container(f"{name}-lake")
    return made


def patched(folder: Path, diff: str) -> None:
    """Apply a diff to the files below `folder`; every hunk must fit in exactly one place."""
    for part in re.split(r"^--- a/.*\n", diff, flags=re.MULTILINE)[1:]:
        name, *hunks = re.split(r"^@@.*@@\n", part, flags=re.MULTILINE)
        file = folder / name.removeprefix("+++ b/").strip()
        text = file.read_text()
        for hunk in hunks:
            lines = hunk.splitlines(keepends=True)
            before, after = ("".join(line[1:] for line in lines if line[0] != drop) for drop in "+-")
            assert text.count(before) == 1, f"{file.name}: {before}"
            text = text.replace(before, after)
        file.write_text(text)


PUBLISH = """
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np

from classify.days.day import Contribution
from classify.days.tally import Tally
from pipeline.publish import publish, republish
from serve.topics import topics_of_day
from shared.ledger import FileRecord, Source, FileState
from tests.world import World

world, day, now = World(Path(sys.argv[1])), date(2026, 11, 22), datetime.now(UTC)
if sys.argv[2] == "publish":
    tally = Tally(("python", "java", "other"))
    number = (day - date(1970, 1, 1)).days
    tally.add(np.full(5, number, np.int32), np.array([1, 2, 2, 2, 1]), np.array([0, 0, 0, 0, 1], np.int32))
    world.lake.put("post_topics/x/counts.parquet", Contribution("m", tally).to_parquet())
    source = Source(container="posts", name="a.parquet", etag="e", last_modified=now, size=1)
    record = FileRecord(source_id="s", version="v", sequence=1, source=source, state=FileState.CLASSIFIED, file_day=day,
                        output="post_topics/x", times={"seen": now, "classified": now})
    publish(world.services, world.services.ledger.add(record))
if sys.argv[2] == "republish":
    assert republish(world.services, [day]) == [day]
print(topics_of_day(world.lake, day).to_csv(), end="")
"""


def test_a_column_is_added_to_the_topics_file(tmp_path: Path) -> None:
    copy, lake = tmp_path / "copy", tmp_path / "lake"
    for room in ("classify", "serve", "shared", "ingest", "pipeline"):
        shutil.copytree(PROJECT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "tests").mkdir()
    shutil.copy(PROJECT / "tests" / "world.py", copy / "tests")
    before = topics_file(copy, lake, "publish")
    patched(copy, block("diff"))
    assert topics_file(copy, lake, "read")[1].startswith("2026-11-22,1,python,4,1,3,0.0,")
    after = topics_file(copy, lake, "republish")
    (shown,) = re.findall(r"^    (day,rank,\S+)\n    (\S+)$", PAGE, re.MULTILINE)
    assert tuple(after[:2]) == shown
    assert "answers_share" not in before[0]
    assert [line.split(",")[:6] for line in before] == [line.split(",")[:6] for line in after]


def topics_file(copy: Path, lake: Path, step: str) -> list[str]:
    """The lines of the day's CSV, which the code in `copy` shows after a step."""
    command = [sys.executable, "-c", PUBLISH, str(lake), step]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
