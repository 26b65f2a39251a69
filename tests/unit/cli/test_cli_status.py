"""`manage.py status`, `topics --list` and the other commands as somebody at a terminal reads them."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import cli.options
from classify.run import arrow
from cli import main
from shared.databricks import RunState
from shared.ledger import FileRecord
from tests.world import World, parquet, posts, starter

PYTHON = {"Tags": "<python>"}
LONG = "incoming/of-the-whole-network/2026/11/22/posts-2026-11-22-part-00017-of-00042.parquet"
Run = Callable[..., tuple[int, str]]


class Queue:
    def length(self) -> int:
        return 0

    def letters(self) -> list[Any]:
        return []


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(arrow, "load_model", lambda *_: starter())
    world = World(tmp_path / "lake")
    monkeypatch.setattr(world.services, "queue", lambda _: Queue())
    monkeypatch.setattr(cli.options, "Services", lambda *_, **__: world.services)
    return world


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; returns its exit code and all that it printed."""

    def command(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["manage.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    return command


def line_of(said: str, *words: str) -> str:
    (found,) = (line for line in said.splitlines() if all(word in line for word in words))
    return found


def test_versions_of_one_name_are_told_apart_and_the_one_that_counts_is_marked(world: World, run: Run) -> None:
    for rows in ([PYTHON], [PYTHON, PYTHON], [PYTHON] * 3):
        world.upload(LONG, posts(*rows))
        world.work()
    code, said = run("status")
    lines = [line for line in said.splitlines() if LONG in line]
    assert (code, len(lines), len(set(lines))) == (0, 3, 3)
    assert [line.startswith("* ") for line in lines] == [True, False, False]
    assert [re.search(r"published +(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) +(\d)", line)[2] for line in lines] == list("321")  # type: ignore[index]
    assert "Nothing needs a person." in said


def test_what_waits_and_what_works_are_told_apart(world: World, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    world.upload("landed.parquet", posts(PYTHON))
    world.land("landed.parquet")
    for name, state in (
        ("queued.parquet", RunState("waiting", "QUEUED")),
        ("running.parquet", RunState("running", "RUNNING")),
    ):
        world.upload(name, posts(PYTHON))
        world.land(name)
        _, message = world.messages.pop()
        world.deliver(message)
        world.runs.outcomes.insert(0, state)  # the newest file is shown first
    world.time += timedelta(minutes=4)
    _, said = run("status")
    assert line_of(said, "landed.parquet").endswith("waits for its run, for 6 min")
    assert line_of(said, "queued.parquet").endswith("queued in Databricks, for 5 min")
    assert line_of(said, "running.parquet").endswith("running, for 4 min")


def test_a_reason_is_one_line_said_once(world: World, run: Run) -> None:
    world.upload("[/x].parquet", posts(PYTHON).drop_columns(["Body", "Title"]))
    world.work()
    code, said = run("status")
    assert code == 1
    reason = "[/x].parquet breaks the contract for Posts: column Title is missing; column Body is missing"
    assert [line.strip() for line in said.splitlines() if "is missing" in line] == [reason]
    assert line_of(said, "file_quarantined").endswith("posts/[/x].parquet")
    (thing,) = json.loads(run("status", "--json")[1])["needs_a_person"]
    assert (thing["alert"], thing["subject"], thing["reason"]) == ("file_quarantined", "posts/[/x].parquet", reason)
    assert (
        thing["remedy"] == "upload the mended file under the same name, or `manage.py open discard posts/[/x].parquet`"
    )
    document = json.loads(run("status", "--json")[1])
    assert document["files"][0]["state"] == "quarantined"


def published(world: World, name: str, *rows: dict[str, Any]) -> FileRecord:
    world.upload(name, posts(*rows))
    world.work()
    return max(world.services.ledger.records(), key=lambda record: min(record.times.values()))


def test_status_of_a_file_tells_its_whole_story(world: World, run: Run) -> None:
    first = published(world, "in/a.parquet", PYTHON)
    world.runs.outcomes += [
        RunState("failed", "OOM", worked_seconds=3.25),
    ]
    second = published(world, "in/a.parquet", PYTHON, PYTHON)
    published(world, "in/b.parquet", PYTHON)
    for which in ("in/a.parquet", "posts/in/a.parquet", first.source_id):
        code, said = run("open", "show", which)
        assert code == 0
        assert f"version {first.version}: published" in said
        assert f"version {second.version}: published, counts" in said
        assert "b.parquet" not in said
    assert "1 post on 2026-11-21" in said
    assert line_of(said, "attempt 1", "run 101").endswith("worked for 3.2 s ")
    assert "run 101: OOM; what the task said" in said
    moments = [line.split()[2] for line in said.splitlines() if re.match(r"  \d{4}-", line)]
    assert moments[:4] == ["arriving", "landed", "launched", "classified"]
    documents = json.loads(run("open", "show", "in/a.parquet", "--json")[1])
    assert [version["version"] for version in documents] == [first.version, second.version]
    assert run("open", "show", "c.parquet") == (
        1,
        "manage.py: no file c.parquet was seen: give the blob's path in the container, or the id that `status` shows\n",
    )


def test_topics_says_what_its_columns_mean(world: World, run: Run) -> None:
    with world.undisturbed():
        world.lake.delete("models/topics/current.json")  # the lake gets the starter
    published(world, "a.parquet", *[PYTHON] * 3, {"Tags": "<cooking>"})
    _, said = run("topics")
    assert line_of(said, "python").split() == ["1", "python", "3", "75.0%", "█" * 24]
    assert "Every share is exact: the posts' own tags, or those of their questions, decided." in said
    assert "other: posts that are about none of the topics; `manage.py topics --list` has those." in said
    published(world, "a.parquet", {"Title": "css float", "Body": "<p>two css floats</p>"})
    _, said = run("topics")
    assert "95 % interval" in said
    assert "A topic's true share lies in its interval on 95 of 100 days" in said


def test_every_topic_that_there_is_can_be_listed(world: World, run: Run) -> None:
    with world.undisturbed():
        world.lake.delete("models/topics/current.json")
    _, said = run("topics", "--list")
    for topic in starter().topics:
        assert re.search(rf"(?<!\S){re.escape(topic)}(,|$)", said, re.M), topic
    assert "100 topics of the model" in said
    assert "Training chooses the list" in said
    assert json.loads(run("topics", "--list", "--json")[1])["topics"] == list(starter().topics)


@contextmanager
def hangs_up() -> Iterator[tuple[int, list[int]]]:
    """A port where every connection is closed at once, and a list with an entry for each."""
    calls: list[int] = []
    server = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            calls.append(1)
            connection.close()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    yield server.getsockname()[1], calls
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


@pytest.mark.parametrize(
    ("command", "things"), [("status", 1), ("topics", 1), ("models", 1), ("drop good.parquet", 1), ("check", 6)]
)
def test_a_cloud_that_is_down_is_asked_once_for_each_thing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, things: int
) -> None:
    (tmp_path / "good.parquet").write_bytes(parquet(posts(PYTHON)))
    monkeypatch.chdir(tmp_path)
    with hangs_up() as (port, calls):
        storage = (
            f"DefaultEndpointsProtocol=http;AccountName=a;AccountKey=YQ==;BlobEndpoint=http://127.0.0.1:{port}/a;"
            f"QueueEndpoint=http://127.0.0.1:{port}/a;DfsEndpoint=http://127.0.0.1:{port}/a"
        )
        down = dict.fromkeys(("POSTS_STORAGE", "QUEUES_STORAGE", "LAKE_STORAGE"), storage)
        down |= {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(port), "POSTGRES_PASSWORD": "p"}
        down |= {"POSTGRES_DATABASE": "d", "POSTGRES_USER": "u", "POSTGRES_SSLMODE": "disable"}
        down |= {"DATABRICKS_HOST": "http://127.0.0.1:1", "DATABRICKS_JOB_ID": "1", "DATABRICKS_TOKEN": "t"}
        Path("local.settings.json").write_text(json.dumps({"Values": down}))
        code, said = run(*command.split())
    assert (code, len(calls)) == (1, things)
    assert "The settings lead to this machine, where nothing answers: is `make up` running?" in said
    if command == "check":
        assert sum(line.startswith("wrong ") for line in said.splitlines()) == 7


def test_without_settings_the_way_to_some_is_said(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = run("status")
    assert code == 1
    assert "There is no local.settings.json here: `make up` starts the local cloud and writes one." in said


def test_a_name_in_the_settings_file_that_nothing_reads_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = {"REFERENCE_TABELS": "users", "AzureWebJobsStorage": "x", "POSTGRES_PASSWORD": "p", "MINE": "1"}
    Path("local.settings.json").write_text(json.dumps({"Values": values}))
    _, said = run("settings")
    assert (
        "REFERENCE_TABELS in local.settings.json is no setting of StackTopics: did you mean REFERENCE_TABLES?" in said
    )
    assert "MINE in local.settings.json is no setting of StackTopics\n" in said
    assert "POSTGRES_PASSWORD in" not in said
    assert "AzureWebJobsStorage in" not in said


def test_every_command_has_a_machine_readable_answer() -> None:
    import typer

    group = typer.main.get_command(main.app)
    commands = group.commands.values()  # type: ignore[attr-defined]
    inner = [command for each in commands for command in getattr(each, "commands", {}).values()]
    for command in (*(each for each in commands if not hasattr(each, "commands")), *inner):
        assert "--json" in {option for parameter in command.params for option in parameter.opts}, command.name
