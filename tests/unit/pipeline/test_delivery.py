"""The delivery guarantee: nothing lost, nothing counted twice, nothing left behind, wherever the process dies."""

from __future__ import annotations

import json
import shutil
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest

from classify.run import arrow
from serve.topics import topics_of_day
from shared import paths
from shared.catalog import published_days
from shared.databricks import RunState
from shared.errors import NotFound
from shared.ledger import FileRecord, FileState
from shared.messages import ClassificationStarted, PostsLanded
from tests.world import MODEL_VERSION, World, damaged, parquet, posts, starter

DAY = date(2026, 11, 21)
PYTHON = {"Tags": "<python><sorting>"}
JAVA = {"Tags": "|java|list|"}
EFFECTS = {"put", "copy", "delete", "send", "run_now"}


@pytest.fixture(autouse=True)
def _one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "load_model", lambda lake, version: {MODEL_VERSION: starter()}[version])


def counts(world: World, day: date = DAY) -> dict[str, int]:
    with world.undisturbed():
        return {topic.topic: topic.posts for topic in topics_of_day(world.lake, day, 100).topics}


def states(world: World) -> list[str]:
    with world.undisturbed():
        return [record.state.value for record in world.services.ledger.records()]


def test_a_file_becomes_the_topics_of_its_days(tmp_path: Path) -> None:
    world = World(tmp_path)
    later = {"CreationDate": datetime(2026, 11, 22, 0, 0, 1), **JAVA}
    answer = {"PostTypeId": 2, "ParentId": 1, "Title": None}
    wiki = {"PostTypeId": 4}
    world.upload("day.parquet", posts(PYTHON, PYTHON, JAVA, later, answer, wiki))
    world.work()
    assert counts(world) == {"python": 3, "java": 1}
    assert counts(world, date(2026, 11, 22)) == {"java": 1}
    assert states(world) == ["published"]
    assert not list(world.lake.list("landing"))
    assert len(list(world.lake.list("archive"))) == 1


def test_two_files_of_a_day_add_up_and_a_correction_replaces(tmp_path: Path) -> None:
    world = World(tmp_path)
    moved = {"CreationDate": datetime(2026, 11, 20), **JAVA}
    world.upload("a.parquet", posts(PYTHON, moved))
    world.upload("b.parquet", posts(JAVA))
    world.work()
    assert counts(world) == {"python": 1, "java": 1}
    world.upload("a.parquet", posts(PYTHON, PYTHON, PYTHON))
    world.work()
    assert counts(world) == {"python": 3, "java": 1}
    assert counts(world, date(2026, 11, 20)) == {}
    assert published_days(world.lake) == [date(2026, 11, 20), DAY]
    assert len(list(world.lake.list("archive"))) == 3


def test_an_older_version_that_comes_late_is_superseded(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.upload("a.parquet", posts(PYTHON))
    older = world.land("a.parquet")
    late, world.messages = world.messages, []
    world.upload("a.parquet", posts(JAVA))
    world.work()
    world.messages = late
    world.work()
    assert older is not None
    assert counts(world) == {"java": 1}
    assert sorted(states(world)) == ["published", "superseded"]
    assert not list(world.lake.list("landing"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"id,title\n1,no parquet at all, only text that is long enough\n",
            "is a CSV file, not Parquet: `python manage.py drop",
        ),
        (parquet(posts(PYTHON).drop_columns(["Body"])), "column Body is missing"),
        (
            parquet(posts(PYTHON).set_column(0, "Id", [["one"]])),
            "in/2026-11-21.parquet: column Id must hold whole numbers, but holds one",
        ),
        (parquet(posts(PYTHON).append_column("Mood", [["good"]])).replace(b"Mood", b"M\xff\xfed"), "is not UTF-8"),
    ],
)
def test_a_file_that_breaks_its_contract_is_kept_with_a_reason(tmp_path: Path, content: bytes, said: str) -> None:
    world = World(tmp_path)
    world.upload("in/2026-11-21.parquet", content)
    world.work(tries=0)
    (record,) = world.services.ledger.records()
    assert record.state is FileState.QUARANTINED
    assert said in (record.reason or "")
    assert record.quarantine is not None
    assert world.lake.read(record.quarantine) == content
    assert said in world.lake.read(paths.quarantine_reason(record.source_id, record.version)).decode()
    assert not world.messages


def test_a_file_that_the_job_cannot_read_goes_to_quarantine_too(tmp_path: Path) -> None:
    world = World(tmp_path)
    content = damaged(posts(PYTHON))
    world.upload("in/2026-11-21.parquet", content)
    world.work(tries=0)
    (record,) = world.services.ledger.records()
    assert (record.state, record.attempt) == (FileState.QUARANTINED, 1)
    assert "cannot be read as a Parquet file" in (record.reason or "")
    assert record.quarantine is not None
    assert world.lake.read(record.quarantine) == content
    why = world.lake.read(paths.quarantine_reason(record.source_id, record.version)).decode()
    assert "cannot be read as a Parquet file" in why
    assert '"file": "posts/in/2026-11-21.parquet"' in why
    assert not list(world.lake.list("landing"))
    assert not list(world.lake.list("archive"))
    world.upload("in/2026-11-21.parquet", posts(PYTHON))
    world.work()
    assert counts(world) == {"python": 1}


def test_a_slow_look_at_an_earlier_attempt_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path)
    content = damaged(posts(PYTHON))
    world.upload("a.parquet", content)
    record = world.land("a.parquet")
    assert record is not None
    world.deliver(PostsLanded(source_id=record.source_id, version=record.version))
    world.time += timedelta(minutes=1)
    look = ClassificationStarted(source_id=record.source_id, version=record.version)
    world.runs.outcomes = [RunState("failed", "FAILED: no cluster")]
    get = world.services.ledger.get

    def overtaken(source_id: str, version: str) -> FileRecord:
        stale = get(source_id, version)
        monkeypatch.setattr(world.services.ledger, "get", get)
        world.deliver(look)  # attempt 1 fails
        world.deliver(PostsLanded(source_id=source_id, version=version))  # attempt 2 starts
        return stale

    monkeypatch.setattr(world.services.ledger, "get", overtaken)
    world.deliver(look)
    (record,) = world.services.ledger.records()
    assert (record.state, record.attempt) == (FileState.LAUNCHED, 2)
    assert world.lake.read(paths.landing(record.source_id, record.version)) == content
    world.work()
    assert states(world) == ["quarantined"]


@pytest.mark.parametrize("name", ["in/reason.json", "in/", "in/file-a.parquet"])
def test_no_name_of_a_refused_file_gets_into_the_way_of_its_reason(tmp_path: Path, name: str) -> None:
    world = World(tmp_path)
    world.upload(name, b"no parquet")
    world.work(tries=0)
    (record,) = world.services.ledger.records()
    reason = paths.quarantine_reason(record.source_id, record.version)
    assert record.quarantine is not None
    assert world.lake.read(record.quarantine) == b"no parquet"
    assert "not a Parquet file" in world.lake.read(reason).decode()
    assert {info.path for info in world.lake.list("quarantine")} == {record.quarantine, reason}


def test_a_failed_run_is_tried_again_with_another_token_and_then_given_up(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.runs.outcomes = [RunState("running"), RunState("failed", "FAILED: no cluster")]
    world.upload("a.parquet", posts(PYTHON))
    world.work()
    assert counts(world) == {"python": 1}
    assert len(world.runs.by_token) == 2

    world.runs.outcomes = [RunState("failed", "FAILED: no cluster")] * 3
    world.upload("b.parquet", posts(PYTHON))
    world.work()
    failed = [record for record in world.services.ledger.records() if record.state is FileState.FAILED]
    assert [record.attempt for record in failed] == [3]
    assert "no cluster; what the task said" in (failed[0].reason or "")
    assert counts(world) == {"python": 1}


def test_a_run_that_never_ends_is_cancelled_at_its_deadline(tmp_path: Path) -> None:
    world = World(tmp_path, classification_attempts=1)
    world.runs.outcomes = [RunState("running")] * 100
    world.upload("a.parquet", posts(PYTHON))
    world.work()
    assert world.runs.cancelled == [100]
    assert states(world) == ["failed"]
    looks = world.calls.count("runs/get")
    assert 5 < looks < 15  # 300 s of looks 10, 15, 22.5 … seconds apart


def test_a_run_without_output_is_no_success(tmp_path: Path) -> None:
    world = World(tmp_path, classification_attempts=1)
    world.runs.outcomes = [RunState("succeeded")]
    world.upload("a.parquet", posts(PYTHON))
    world.work()
    (record,) = world.services.ledger.records()
    assert record.state is FileState.FAILED
    assert "summary.json does not exist" in (record.reason or "")


def test_messages_about_unknown_files_are_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(NotFound):
        world.deliver(PostsLanded(source_id="a", version="b"))
    with pytest.raises(NotFound):
        world.deliver(ClassificationStarted(source_id="a", version="b"))


def test_repeated_and_reordered_messages_change_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.upload("a.parquet", posts(PYTHON, JAVA))
    record = world.land("a.parquet")
    assert record is not None
    landed = PostsLanded(source_id=record.source_id, version=record.version)
    world.deliver(landed)
    world.deliver(landed)
    looks = [message for _, message in world.messages if isinstance(message, ClassificationStarted)]
    world.work()
    for message in [landed, *looks, *looks]:
        world.deliver(message)
    world.work()
    assert counts(world) == {"python": 1, "java": 1}
    assert len(world.runs.by_token) == 1


def scenario(world: World) -> None:
    """Two sources on one day, one of them corrected, two files for the quarantine: by their footer, and by a page."""
    world.upload("a.parquet", posts(PYTHON, {**JAVA, "CreationDate": datetime(2026, 11, 20)}))
    world.upload("b.parquet", posts(JAVA, {"PostTypeId": 2, "ParentId": 1, "Title": None}))
    world.settle()
    world.runs.outcomes = [RunState("failed", "FAILED")]
    world.upload("a.parquet", posts(PYTHON, PYTHON))
    world.upload("c.parquet", b"no parquet")
    world.upload("d.parquet", damaged(posts(PYTHON)))
    world.settle()


def test_a_crash_at_any_call_changes_nothing(tmp_path: Path) -> None:
    undisturbed = World(tmp_path / "undisturbed")
    scenario(undisturbed)
    expected, end = undisturbed.files(), states(undisturbed)
    assert sorted(end) == ["published", "published", "published", "quarantined", "quarantined"]
    assert counts(undisturbed) == {"python": 2, "java": 2}
    effects = [number for number, call in enumerate(undisturbed.calls) if call.split()[0] in EFFECTS]
    assert {undisturbed.calls[number].split()[0] for number in effects} == EFFECTS
    for number in effects:  # dying after a read is dying after the effect before it
        world = World(tmp_path / str(number))
        world.fail_at = number
        scenario(world)
        place = f"the process died after call {number}, {undisturbed.calls[number]}"
        assert states(world) == end, place
        assert world.files() == expected, place
        assert counts(world) == {"python": 2, "java": 2}, place
        shutil.rmtree(tmp_path / str(number))


def test_a_record_from_the_future_is_read_and_kept_as_it_is(tmp_path: Path) -> None:
    """An app that is rolled back meets records that a newer one wrote: its fields are there again after an update."""
    world = World(tmp_path)
    world.upload("a.parquet", posts(PYTHON))
    record = world.land("a.parquet")
    assert record is not None
    path = paths.file_record(record.source_id, record.version)
    with world.undisturbed():
        written = json.loads(world.lake.read(path))
        written |= {"site": "stackoverflow.com"}
        written["source"] |= {"version_id": "2026-11-22T06:01:00.0000001Z"}
        world.lake.put(path, json.dumps(written).encode())
    world.work(tries=0)
    with world.undisturbed():
        kept = json.loads(world.lake.read(path))
    assert kept["state"] == "published"
    assert kept["site"] == "stackoverflow.com"
    assert kept["source"]["version_id"] == "2026-11-22T06:01:00.0000001Z"
