"""Classifying again from the archive, taking files back, and what a person decides about a file."""

from __future__ import annotations

import json
import logging
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from classify.registry.models import STARTER
from classify.run import arrow
from pipeline import inbox
from pipeline.replay import files_of_days, forecast, newest_version, replay
from pipeline.withdraw import withdraw
from serve.topics import topics_of_day
from shared import paths
from shared.alerts import REMEDIES, Alert
from shared.databricks import RunState
from shared.errors import BadInput, Conflict, NotFound
from shared.ledger import FileRecord, FileState
from tests.world import Crash, World, posts, starter

DAY = date(2026, 11, 21)
PYTHON = {"CreationDate": datetime(2026, 11, 21, 12), "Tags": "<python>"}
FAILED = RunState("failed", "FAILED: no room")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(arrow, "load_model", lambda *_: starter())
    return World(tmp_path)


def filled(world: World, files: int = 3) -> list[FileRecord]:
    """Published files of one post each, all of one day."""
    for number in range(files):
        world.upload(f"{number}.parquet", posts({**PYTHON, "Id": number}))
    world.work()
    return sorted(world.services.ledger.records(), key=lambda record: record.source.name)


def again(world: World, records: list[FileRecord], **options: Any) -> list[FileRecord]:
    """A replay, in which time passes as long as it waits."""
    return replay(world.services, records, asked_for="a test", sleep=lambda _: world.work(), **options)


def state_of(world: World, name: str) -> FileState:
    return newest_version(world.services, name).state


# ---- replay ---------------------------------------------------------------------------------------------------------


def test_a_replay_replaces_what_was_counted_and_doubles_nothing(world: World) -> None:
    before = filled(world)
    told: list[tuple[int, int]] = []
    ended = again(world, files_of_days(world.services, DAY, DAY), parallel=2, tell=lambda *said: told.append(said))
    assert [record.state for record in ended] == [FileState.PUBLISHED] * 3
    assert topics_of_day(world.lake, DAY).posts == 3
    outputs = {record.output for record in world.services.ledger.records()}
    assert outputs.isdisjoint({record.output for record in before})
    assert told[-1] == (3, 3)
    assert world.lake.stat(paths.REPLAY) is None
    assert world.services.ledger.open_files() == []


def test_no_more_runs_are_started_at_once_than_asked(world: World) -> None:
    records = filled(world, 5)
    under_way: list[int] = []
    world_work = world.work

    def work(_: float) -> None:
        started = [record for record in world.services.ledger.records() if record.state is FileState.LANDED]
        under_way.append(len(started))
        world_work()

    replay(world.services, records, asked_for="x", parallel=2, sleep=work)
    assert under_way == [2, 2, 1]


def test_a_replay_that_died_goes_on_and_leaves_out_what_was_done(world: World) -> None:
    records = filled(world, 4)

    def die(_: float) -> None:
        world.work()
        raise Crash

    with pytest.raises(Crash):
        replay(world.services, records, asked_for="a test", parallel=2, sleep=die)
    with pytest.raises(Conflict, match=r"another replay is under way since 2026-11-22 .*: a test"):
        replay(world.services, records, asked_for="another", sleep=die)
    now = [world.services.ledger.get(record.source_id, record.version) for record in records]
    ended = again(world, now, parallel=2)
    assert {record.replay for record in ended} == {1}
    assert topics_of_day(world.lake, DAY).posts == 4


def test_a_replay_can_use_another_model(world: World) -> None:
    (record,) = filled(world, 1)
    another = f"{record.model}-another"
    (world.lake.root / paths.model(another)).symlink_to(STARTER)
    (ended,) = again(world, [record], model=another)
    assert (ended.state, ended.model) == (FileState.PUBLISHED, another)
    assert another in str(ended.output)
    assert world.runs.parameters[ended.runs[-1].run_id]["model"] == another


def test_what_a_replay_would_do_is_known_before(world: World) -> None:
    records = filled(world)
    runs = [record.runs[-1].model_copy(update={"worked_seconds": 30.0}) for record in records]
    records = [record.model_copy(update={"runs": [run]}) for record, run in zip(records, runs, strict=True)]
    assert forecast(records, 2) == (3, 3, 45.0)


def test_only_what_counts_failed_or_was_cancelled_is_replayed(world: World) -> None:
    world.upload("bad.parquet", b"no Parquet at all")
    world.work()
    with pytest.raises(BadInput, match=r"posts/bad\.parquet is quarantined: only a file that counts"):
        again(world, [newest_version(world.services, "bad.parquet")])


def test_a_cancelled_run_stays_cancelled_until_it_is_replayed(world: World) -> None:
    world.runs.outcomes = [RunState("cancelled", "CANCELED")]
    (record,) = filled(world, 1)
    assert record.state is FileState.CANCELLED
    world.settle()
    assert state_of(world, "0.parquet") is FileState.CANCELLED
    assert inbox.things(world.services) == []
    assert again(world, [record])[0].state is FileState.PUBLISHED


# ---- withdraw -------------------------------------------------------------------------------------------------------


def test_a_withdrawn_file_stops_counting_and_its_bytes_stay(world: World) -> None:
    _, record, _ = filled(world)
    assert withdraw(world.services, record) == [DAY]
    assert topics_of_day(world.lake, DAY).posts == 2
    assert state_of(world, "posts/1.parquet") is FileState.WITHDRAWN
    assert record.archive is not None
    assert world.lake.stat(record.archive)
    assert withdraw(world.services, record) == [DAY]
    assert world.services.ledger.open_files() == []
    with pytest.raises(NotFound, match=r"no file never\.parquet was seen"):
        newest_version(world.services, "never.parquet")


def test_an_erased_file_leaves_no_bytes(world: World) -> None:
    record, _, _ = filled(world)
    withdraw(world.services, record, erase=True)
    left = [name for name in world.files() if record.version in name]
    assert left == []


def test_a_day_that_lost_its_last_file_has_no_posts_and_is_not_the_latest(world: World) -> None:
    world.upload("older.parquet", posts({**PYTHON, "CreationDate": datetime(2026, 11, 20, 12)}))
    (record,) = filled(world, 1)[:1]
    withdraw(world.services, newest_version(world.services, "0.parquet"))
    assert topics_of_day(world.lake).day == date(2026, 11, 20)
    assert topics_of_day(world.lake, DAY).posts == 0
    assert record


@pytest.mark.parametrize("erase", [False, True])
def test_a_withdrawal_that_dies_anywhere_is_finished_by_reconcile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, erase: bool
) -> None:
    monkeypatch.setattr(arrow, "load_model", lambda *_: starter())
    whole = World(tmp_path / "whole")
    first = len(whole.calls)
    _, record = filled(whole, 2)
    first = len(whole.calls)
    withdraw(whole.services, record, erase=erase)
    last, expected = len(whole.calls), whole.files()
    for number in range(first, last):
        world = World(tmp_path / str(number))
        _, record = filled(world, 2)
        world.fail_at = number
        try:
            withdraw(world.services, record, erase=erase)
        except Crash:
            if state_of(world, "1.parquet") is not FileState.WITHDRAWN:
                continue  # it died before anybody knew; the command is given again
        world.settle()
        assert world.files() == expected, whole.calls[number]
        assert topics_of_day(world.lake, DAY).posts == 1
        assert world.services.ledger.open_files() == []


def test_a_file_that_is_withdrawn_while_its_run_works_does_not_count(world: World) -> None:
    world.runs.outcomes = [RunState("running")] * 3
    world.upload("a.parquet", posts(PYTHON))
    record = world.land("a.parquet")
    assert record is not None
    world.deliver(world.messages.pop()[1])
    withdraw(world.services, newest_version(world.services, "a.parquet"))
    assert world.runs.cancelled
    world.settle()
    assert state_of(world, "a.parquet") is FileState.WITHDRAWN
    with pytest.raises(NotFound):
        topics_of_day(world.lake, DAY)


def test_a_withdrawn_name_counts_again_when_it_is_uploaded_again(world: World) -> None:
    (record,) = filled(world, 1)
    withdraw(world.services, record)
    world.upload("0.parquet", posts(PYTHON, {**PYTHON, "Id": 7}))
    world.work()
    assert topics_of_day(world.lake, DAY).posts == 2


# ---- what a person decides ------------------------------------------------------------------------------------------


def remedied(world: World) -> None:
    """Nothing is open, and nothing needs a person."""
    world.settle()
    assert inbox.things(world.services) == []
    assert world.services.ledger.open_files() == []


def test_a_mended_file_under_its_name_clears_what_was_said_of_the_one_before(world: World) -> None:
    world.upload("a.parquet", b"no Parquet at all")
    world.work()
    (thing,) = inbox.things(world.services)
    assert (thing.alert, thing.subject) == (Alert.FILE_QUARANTINED, "posts/a.parquet")
    world.upload("a.parquet", posts(PYTHON))
    remedied(world)
    assert topics_of_day(world.lake, DAY).posts == 1


def test_a_file_in_quarantine_is_discarded_or_withdrawn_with_its_bytes(world: World) -> None:
    for name in ("a.parquet", "b.parquet"):
        world.upload(name, b"no Parquet at all")
    world.work()
    kept = inbox.discard(world.services, newest_version(world.services, "a.parquet"))
    withdraw(world.services, newest_version(world.services, "b.parquet"), erase=True)
    remedied(world)
    assert kept.quarantine is not None
    assert world.lake.stat(kept.quarantine)
    assert [name for name in world.files() if name.startswith("quarantine")] == [
        kept.quarantine,
        paths.quarantine_reason(kept.source_id, kept.version),
    ]
    with pytest.raises(BadInput, match="is discarded: only a file that failed or lies in quarantine is discarded"):
        inbox.discard(world.services, kept)


def test_a_file_that_failed_is_retried_and_counts(world: World) -> None:
    world.runs.outcomes = [FAILED] * 3
    world.upload("a.parquet", posts(PYTHON))
    world.work()
    (thing,) = inbox.things(world.services)
    assert (thing.alert, "no room" in thing.reason) == (Alert.FILE_FAILED, True)
    inbox.retry(world.services, newest_version(world.services, "a.parquet"))
    remedied(world)
    assert topics_of_day(world.lake, DAY).posts == 1
    with pytest.raises(BadInput, match="is published: only a file that failed"):
        inbox.retry(world.services, newest_version(world.services, "a.parquet"))


def test_a_file_that_still_breaks_its_contract_stays_in_quarantine(world: World) -> None:
    world.upload("a.parquet", b"no Parquet at all")
    world.work()
    with pytest.raises(BadInput, match="is not a Parquet file"):
        inbox.retry(world.services, newest_version(world.services, "a.parquet"))
    assert state_of(world, "a.parquet") is FileState.QUARANTINED


def test_a_file_that_the_job_refused_is_retried_from_quarantine(world: World) -> None:
    """As after a mended job: the check of the footer passes, and this time the run does too."""
    world.upload("a.parquet", posts(PYTHON))
    record = world.land("a.parquet")
    assert record is not None
    world.deliver(world.messages.pop()[1])
    record = newest_version(world.services, "a.parquet")
    world.lake.put(f"{record.output}/refused.txt", b"the job said no")
    world.runs.outcomes = [FAILED]
    world.settle()
    assert state_of(world, "a.parquet") is FileState.QUARANTINED
    world.lake.delete(f"{record.output}/refused.txt")
    inbox.retry(world.services, newest_version(world.services, "a.parquet"))
    remedied(world)
    assert state_of(world, "a.parquet") is FileState.PUBLISHED


def test_an_unreadable_message_is_discarded_by_its_name(world: World) -> None:
    world.services.queue("posts-landed-poison").put(b"\xff no message")
    world.reconcile()
    (thing,) = inbox.things(world.services)
    world.time += timedelta(minutes=1)
    inbox.discard_message(world.services, thing.subject)
    remedied(world)
    with pytest.raises(NotFound):
        inbox.discard_message(world.services, thing.subject)


def test_an_unfinished_blob_is_out_of_the_list_once_it_is_whole_or_gone(world: World) -> None:
    for name in ("a.parquet", "b.parquet"):
        world.upload(name, b"")
    world.reconcile(timedelta(hours=2))
    assert {thing.alert for thing in inbox.things(world.services)} == {Alert.FILE_UNFINISHED}
    del world.blobs["b.parquet"]
    world.upload("a.parquet", posts(PYTHON))
    remedied(world)


def test_a_damaged_day_is_reported_and_mended_by_a_replay(world: World) -> None:
    (record,) = filled(world, 1)
    assert record.output is not None
    for name in world.lake.list("topics"):
        world.lake.delete(name.path)
    world.lake.put(f"{record.output}/counts.parquet", b"damaged")
    world.reconcile()
    (thing,) = inbox.things(world.services)
    assert (thing.alert, thing.subject) == (Alert.DAY_DAMAGED, DAY.isoformat())
    again(world, files_of_days(world.services, DAY, DAY))
    remedied(world)
    assert topics_of_day(world.lake, DAY).posts == 1


# ---- alerts ---------------------------------------------------------------------------------------------------------


def alerts(caplog: pytest.LogCaptureFixture) -> list[dict[str, str]]:
    said = [record.getMessage() for record in caplog.records if record.name == "stacktopics.alerts"]
    return [json.loads(text.removeprefix("alert ")) for text in said if text.startswith("alert ")]


def test_an_alert_is_raised_once_for_each_thing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world.upload("bad.parquet", b"no Parquet at all")
    world.upload("empty.parquet", b"")
    world.services.queue("posts-landed-poison").put(b"{}")
    world.work()
    for _ in range(3):
        world.reconcile(timedelta(hours=2))
    events = sorted(alert["event"] for alert in alerts(caplog))
    assert events == ["file_quarantined", "file_unfinished", "message_unreadable"]


def test_a_name_cannot_break_the_line_of_its_alert(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.upload("a\r\nalert {}.parquet", b"no Parquet at all")
    world.work()
    (alert,) = alerts(caplog)
    assert alert["subject"] == "posts/a\r\nalert {}.parquet"
    assert all("\n" not in record.getMessage() for record in caplog.records if record.name == "stacktopics.alerts")


def test_every_alert_has_a_remedy() -> None:
    assert set(REMEDIES) == set(Alert)
