"""What no event brings up: missed blobs, files that stand still, poison, days that are not whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from classify.run import arrow
from pipeline.reconcile import last_pass, reconcile
from shared import paths
from shared.alerts import Alert
from shared.catalog import day_pointer
from shared.databricks import RunState
from shared.errors import NotFound, TransientError
from shared.ledger import FileState
from shared.messages import PostsLanded
from tests.world import CONTAINER, World, parquet, posts, starter

PYTHON = {"Tags": "<python>"}
DAY = date(2026, 11, 21)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(arrow, "load_model", lambda *_: starter())
    return World(tmp_path)


def states(world: World) -> list[str]:
    return sorted(record.state.value for record in world.services.ledger.records())


def test_a_blob_whose_event_was_missed_is_landed_and_published(world: World) -> None:
    world.upload("a.parquet", posts(PYTHON))
    found = world.reconcile()
    assert (found.blobs, found.landed) == (1, 1)
    world.settle()
    assert states(world) == ["published"]
    assert not world.blobs
    assert world.services.ledger.open_files() == []


def test_a_blob_that_was_just_written_is_left_to_its_event(world: World) -> None:
    world.upload("a.parquet", posts(PYTHON))
    assert reconcile(world.services).blobs == 0


@pytest.mark.parametrize(
    "name", ["_SUCCESS", "out/_temporary/0/part-0.parquet", ".part-0.parquet.crc", "a.parquet.crc", "_metadata"]
)
def test_markers_and_temporary_files_are_left_alone_without_an_alarm(world: World, name: str) -> None:
    world.upload(name, parquet(posts(PYTHON)) if name.endswith("parquet") else b"")
    world.work()
    found = world.reconcile(timedelta(days=30))
    assert (found.blobs, found.waiting) == (0, [])
    assert list(world.blobs) == [name]
    assert states(world) == []


@pytest.mark.parametrize("content", [b"", b"PAR1", parquet(posts(PYTHON))[:200]])
def test_a_file_that_is_still_being_written_lands_once_when_it_is_whole(world: World, content: bytes) -> None:
    world.upload("a.parquet", content)
    world.work()
    assert (states(world), list(world.blobs)) == ([], ["a.parquet"])
    world.upload("a.parquet", posts(PYTHON))
    world.work()
    assert states(world) == ["published"]


def test_a_file_that_stays_unfinished_is_reported_and_not_touched(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.upload("a.parquet", b"PAR1 and more")
    world.work()
    assert world.reconcile(timedelta(minutes=10)).waiting == []
    (waiting,) = world.reconcile(timedelta(hours=2)).waiting
    assert (waiting.alert, waiting.subject) == (Alert.FILE_UNFINISHED, "posts/a.parquet")
    assert world.blobs["a.parquet"][0] == b"PAR1 and more"
    alerts = [record for record in caplog.records if "file_unfinished" in record.getMessage()]
    assert len(alerts) == 1
    world.reconcile()  # it is told once
    assert len([record for record in caplog.records if "file_unfinished" in record.getMessage()]) == 1


@pytest.mark.parametrize("lost", ["posts-landed", "classification-runs"])
def test_a_file_whose_message_was_lost_goes_on(world: World, lost: str) -> None:
    world.upload("a.parquet", posts(PYTHON))
    world.land("a.parquet")
    if lost == "classification-runs":
        world.deliver(world.messages.pop()[1])
    world.messages.clear()
    assert reconcile(world.services).advanced == 0  # it does not stand still yet
    assert world.reconcile().advanced == 1
    world.settle()
    assert states(world) == ["published"]


def test_a_record_that_stands_still_since_years_is_found_by_its_note_alone(world: World) -> None:
    world.upload("a.parquet", posts(PYTHON))
    world.land("a.parquet")
    world.messages.clear()
    world.time += timedelta(days=2000)
    world.calls.clear()
    reconcile(world.services)
    assert not [call for call in world.calls if call == f"list {paths.FILE_RECORDS}"]
    world.settle()
    assert states(world) == ["published"]


def test_poison_messages_are_cleared_and_their_files_go_on(world: World) -> None:
    world.upload("a.parquet", posts(PYTHON))
    record = world.land("a.parquet")
    assert record is not None
    world.messages.clear()
    message = PostsLanded(source_id=record.source_id, version=record.version)
    poison = world.services.queue("posts-landed-poison")
    poison.put(message.model_dump_json().encode())
    world.services.queue("webjobs-blobtrigger-poison").put(
        json.dumps({"ContainerName": CONTAINER, "BlobName": "b.parquet", "ETag": '"0x1"'}).encode()
    )
    world.upload("b.parquet", posts(PYTHON))
    found = world.reconcile()
    assert (found.poison, poison.length()) == (2, 0)
    world.settle()
    assert states(world) == ["published", "published"]


def test_a_poison_message_that_names_no_file_waits_for_a_person(world: World) -> None:
    poison = world.services.queue("posts-landed-poison")
    poison.put(b"\xff no message")
    (letter,) = poison.held
    (waiting,) = world.reconcile().waiting
    assert (waiting.alert, waiting.subject) == (Alert.MESSAGE_UNREADABLE, f"posts-landed-poison/{letter.id}")


def test_a_service_that_is_away_for_a_day_heals_within_two_passes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        world.upload(f"{number}.parquet", posts({**PYTHON, "Id": number}))
        world.land(f"{number}.parquet")
    world.messages.clear()
    start, looked = world.runs.start, 0

    def away(*_: Any) -> int:
        nonlocal looked
        looked += 1
        raise TransientError("Databricks did not answer")

    monkeypatch.setattr(world.runs, "start", away)
    for _ in range(24):
        found = world.reconcile()
    assert looked < 24 * 30 / 2  # after some failures in a row the rest is left to the next pass
    assert {each.alert for each in found.waiting} == {Alert.FILE_STUCK}
    monkeypatch.setattr(world.runs, "start", start)
    for _ in range(2):
        found = world.reconcile()
    assert states(world) == ["published"] * 30
    assert (found.waiting, world.services.ledger.open_files()) == ([], [])


def test_what_cannot_help_is_tried_again_with_growing_pauses(world: World) -> None:
    world.upload("a.parquet", posts(PYTHON))
    record = world.land("a.parquet")
    assert record is not None
    world.messages.clear()
    (world.lake.root / paths.model("broken")).mkdir(parents=True)
    pointer = json.loads(world.lake.read(paths.CURRENT_MODEL))
    world.lake.put(paths.CURRENT_MODEL, json.dumps(pointer | {"version": "broken"}).encode())
    world.reconcile()
    trouble = world.services.ledger.get(record.source_id, record.version).trouble
    assert trouble is not None
    assert "every topic model in the lake is damaged" in trouble.reason
    assert trouble.next > world.time
    world.lake.put(paths.CURRENT_MODEL, json.dumps(pointer).encode())
    world.settle()
    assert states(world) == ["published"]


def test_a_topics_file_that_is_missing_is_written_again_and_old_ones_go_after_a_week(world: World) -> None:
    for rows in ([PYTHON], [PYTHON, PYTHON]):
        world.upload("a.parquet", posts(*rows))
        world.work()
    pointer, _ = day_pointer(world.lake, DAY)
    assert pointer is not None
    folder = paths.topics_folder(DAY)
    assert len(list(world.lake.list(folder))) == 4
    world.lake.delete(pointer.parquet)
    found = world.reconcile()
    assert (found.mended_days, found.deleted) == (1, 0)
    assert world.lake.stat(pointer.parquet) is not None
    world.reconcile(timedelta(days=400 * 365))  # the files on disk have the times of today
    assert {info.path for info in world.lake.list(folder)} == {pointer.parquet, pointer.csv}


def test_a_dry_run_changes_nothing(world: World) -> None:
    world.upload("a.parquet", posts(PYTHON))
    world.land("a.parquet")
    world.messages.clear()
    world.upload("b.parquet", posts(PYTHON))
    world.services.queue("posts-landed-poison").put(b"{}")
    world.time += timedelta(hours=1)
    before = {path: path.read_bytes() for path in world.lake.root.rglob("*") if path.is_file()}
    found = reconcile(world.services, dry_run=True)
    assert (found.blobs, found.advanced, found.open_files) == (1, 1, 1)
    assert {path: path.read_bytes() for path in world.lake.root.rglob("*") if path.is_file()} == before
    assert last_pass(world.services) is None


def test_of_two_deliveries_of_one_file_one_works_and_the_other_ends_as_a_success(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.upload("a.parquet", posts(PYTHON))
    copy = world.lake.copy_in
    seen: list[Any] = []

    def beside(*given: Any) -> Any:
        if not seen:
            seen.append(world.land("a.parquet"))  # the other delivery comes while this one copies
        return copy(*given)

    monkeypatch.setattr(world.lake, "copy_in", beside)
    record = world.land("a.parquet")
    (other,) = seen
    assert record is not None
    assert other is not None
    assert (record.state, other.state) == (FileState.LANDED, FileState.ARRIVING)
    assert world.calls.count(f"copy {paths.landing(record.source_id, record.version)}") == 1
    world.work()
    assert states(world) == ["published"]


def test_a_delivery_that_died_is_taken_over_when_its_time_is_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.upload("a.parquet", posts(PYTHON))

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(world.lake, "copy_in", dies)
        killed.setattr("ingest.posts._let_go", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            world.land("a.parquet")
    assert states(world) == ["arriving"]
    again = world.land("a.parquet")
    assert again is not None
    assert again.state is FileState.ARRIVING  # the dead one may be alive
    world.reconcile()
    world.settle()
    assert states(world) == ["published"]


@pytest.mark.parametrize(("after", "end"), [("copy landing", "published"), ("put runs/posts", "withdrawn")])
def test_a_file_whose_owner_deletes_it_after_a_crash_is_counted_if_it_was_copied(
    world: World, after: str, end: str
) -> None:
    world.upload("a.parquet", posts(PYTHON))

    def crash_after(call: str) -> Callable[[], bool]:
        return lambda: any(made.startswith(call) for made in world.calls)

    died = crash_after(after)
    number = 0
    while not died():
        world.fail_at = number = number + 1
        trial = World(world.lake.root.parent / f"trial-{after[:3]}-{number}")
        trial.upload("a.parquet", posts(PYTHON))
        trial.fail_at = number
        try:
            trial.land("a.parquet")
        except Exception:  # noqa: BLE001 - the crash
            world = trial
    world.fail_at = None
    world.blobs.clear()
    for _ in range(2):
        world.reconcile()
    assert states(world) == [end]


@pytest.mark.parametrize(
    ("state", "end", "runs"),
    [
        (RunState("skipped", "MAX_CONCURRENT_RUNS_EXCEEDED"), "published", 9),
        (RunState("platform", "CLOUD_FAILURE"), "published", 9),
        (RunState("failed", "RUN_EXECUTION_ERROR"), "failed", 3),
        (RunState("cancelled", "USER_CANCELED"), "cancelled", 1),
    ],
)
def test_waiting_and_failures_of_the_platform_burn_no_attempt(
    world: World, state: RunState, end: str, runs: int
) -> None:
    world.runs.outcomes = [state] * 8
    world.upload("a.parquet", posts(PYTHON))
    world.work()
    (record,) = world.services.ledger.records()
    assert (record.state.value, len(record.runs)) == (end, runs)


def test_a_run_that_waits_for_a_day_is_no_failure_and_its_deadline_begins_with_its_work(world: World) -> None:
    world.runs.outcomes = [RunState("waiting", "QUEUED")] * 20 + [RunState("running")] * 3
    world.upload("a.parquet", posts(PYTHON))
    world.work()
    (record,) = world.services.ledger.records()
    assert (record.state, len(record.runs)) == (FileState.PUBLISHED, 1)
    began = record.runs[0].began_at
    assert began is not None
    assert began - record.runs[0].launched_at > timedelta(hours=1)  # far beyond the deadline of 300 s


def test_of_two_chains_of_looks_one_ends(world: World) -> None:
    world.runs.outcomes = [RunState("running")] * 5
    world.upload("a.parquet", posts(PYTHON))
    record = world.land("a.parquet")
    assert record is not None
    world.deliver(world.messages.pop()[1])
    world.messages *= 3  # the first look comes three times
    world.work()
    assert world.calls.count("runs/get") <= 7
    assert states(world) == ["published"]


def test_a_lake_whose_file_system_is_missing_is_not_taken_for_a_blob_that_is_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The delivery fails, comes again, and lands the file once the lake is there."""

    def missing(*_: object, **__: object) -> None:
        raise NotFound("runs/open/…: the file system does not exist")

    world.upload("a.parquet", posts(PYTHON))
    with monkeypatch.context() as broken:
        broken.setattr(world.lake, "put", missing)
        with pytest.raises(NotFound, match="file system"):
            world.land("a.parquet")
    world.settle()
    assert states(world) == ["published"]
