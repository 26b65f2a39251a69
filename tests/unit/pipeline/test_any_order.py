"""In whatever order uploads, events, messages and passes of reconcile come, doubled or lost: the counts are right."""

from __future__ import annotations

import shutil
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from classify.run import arrow
from pipeline.inbox import things
from pipeline.reconcile import reconcile
from pipeline.replay import newest_version
from pipeline.withdraw import withdraw
from serve.topics import topics_of_day
from shared import paths
from shared.databricks import RunState
from shared.errors import NotFound
from tests.world import World, posts, starter

NAMES = ("a.parquet", "b.parquet", "c.parquet")
DAY = datetime(2026, 11, 21, 12)
PASSING = [RunState("skipped", "SKIPPED"), RunState("platform", "INTERNAL_ERROR"), RunState("running")]


class AnyOrder(RuleBasedStateMachine):
    """A world of three files; `wanted` is how many posts each must count."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="stacktopics-"))
        self.world = World(self.folder)
        self.wanted: dict[str, int] = {}
        self.ids = 0

    @rule(name=some.sampled_from(NAMES), count=some.integers(1, 3))
    def upload(self, name: str, count: int) -> None:
        """A new file, or a correction of one."""
        self.ids += 10
        self.world.upload(name, posts(*({"CreationDate": DAY, "Id": self.ids + number} for number in range(count))))
        self.wanted[name] = count

    @rule(name=some.sampled_from(NAMES))
    def blob_event(self, name: str) -> None:
        """An event of a blob, which may be gone or landed already."""
        self.world.land(name)

    @rule(data=some.data(), keep=some.booleans())
    def message(self, data: some.DataObject, keep: bool) -> None:
        """Any message, before its time or after it; it may come again."""
        if not self.world.messages:
            return
        number = data.draw(some.integers(0, len(self.world.messages) - 1))
        _due, message = self.world.messages[number] if keep else self.world.messages.pop(number)
        self.world.deliver(message)

    @rule(count=some.integers(1, 6))
    def work(self, count: int) -> None:
        """The next events and messages, in their order."""
        for name in list(self.world.blobs)[:count]:
            self.world.land(name)
        for _ in range(min(count, len(self.world.messages))):
            due, message = self.world.messages.pop(0)
            self.world.time = max(self.world.time, due)
            self.world.deliver(message)

    @rule(data=some.data())
    def lose_a_message(self, data: some.DataObject) -> None:
        if self.world.messages:
            self.world.messages.pop(data.draw(some.integers(0, len(self.world.messages) - 1)))

    @rule(seconds=some.integers(1, 7200))
    def wait(self, seconds: int) -> None:
        self.world.time += timedelta(seconds=seconds)

    @rule(state=some.sampled_from(PASSING))
    def next_look(self, state: RunState) -> None:
        """What Databricks says at the next look."""
        self.world.runs.outcomes = [state]

    @rule()
    def look_after_it(self) -> None:
        self.world.time += timedelta(minutes=30)
        assert reconcile(self.world.services).faults == []

    @rule(name=some.sampled_from(NAMES))
    def take_back(self, name: str) -> None:
        """A person withdraws a file that was landed; a blob that waits counts when it lands."""
        try:
            record = newest_version(self.world.services, name)
        except NotFound:
            return
        withdraw(self.world.services, record)
        waits = name in self.world.blobs and self.world.blobs[name][1].etag != record.source.etag
        self.wanted[name] = self.wanted[name] if waits else 0
        if not waits:
            self.world.blobs.pop(name, None)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.runs.outcomes = []
        for _ in range(2):
            self.world.settle()
        assert self.counted() == sum(self.wanted.values())
        assert self.world.services.ledger.open_files() == []
        assert things(self.world.services) == []
        assert self.world.blobs == {}
        assert list(self.world.lake.list("landing")) == []
        assert list(self.world.lake.list(paths.WAITING_FILES)) == []
        shutil.rmtree(self.folder)

    def counted(self) -> int:
        try:
            return topics_of_day(self.world.lake, DAY.date()).posts
        except NotFound:
            return 0


@pytest.fixture(autouse=True)
def _one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = starter()
    monkeypatch.setattr(arrow, "load_model", lambda *_: model)


class TestAnyOrder(AnyOrder.TestCase):  # type: ignore[valid-type, misc]
    settings = settings(
        max_examples=80,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
