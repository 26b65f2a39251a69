"""The doubles of the unit tests against what they stand for: the same tests through the real SDKs and through them.

What is real here is Azurite and the Databricks stand-in, each behind its Microsoft or Databricks client. The lake,
whose double is a folder, has its own such tests in test_lake.py.
"""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pytest
from azure.storage.blob import BlobServiceClient
from azure.storage.queue import QueueServiceClient

from localcloud import azurite
from localcloud.cloud import LocalCloud
from shared.databricks import JobRuns, RunState, WorkspaceRuns
from shared.errors import Conflict, NotFound
from shared.messages import PostsLanded
from shared.queues import Queue
from shared.services import Services
from shared.storage import BlobVersion, SourceBlob, StorageBlob, listed_versions
from tests.integration.standin import SAMPLE, SETTINGS, StandIn, no_other_databricks
from tests.localcloud_fixtures import CREDENTIAL
from tests.waiting import eventually
from tests.world import World, WorldBlob, WorldQueue

BOTH = ["real", "double"]


# ---- a source blob --------------------------------------------------------------------------------------------------


class Blobs(ABC):
    """A container, real or not."""

    @abstractmethod
    def upload(self, name: str, data: bytes) -> None: ...

    @abstractmethod
    def blob(self, name: str) -> SourceBlob: ...

    @abstractmethod
    def listed(self) -> list[BlobVersion]: ...


class RealBlobs(Blobs):
    def __init__(self, service: BlobServiceClient) -> None:
        self.container = service.create_container(f"d{uuid4().hex}")

    def upload(self, name: str, data: bytes) -> None:
        self.container.upload_blob(name, data, overwrite=True)

    def blob(self, name: str) -> SourceBlob:
        return StorageBlob(self.container.get_blob_client(name))

    def listed(self) -> list[BlobVersion]:
        return list(listed_versions(self.container))


class DoubleBlobs(Blobs):
    def __init__(self, folder: Path) -> None:
        self.world = World(folder)

    def upload(self, name: str, data: bytes) -> None:
        self.world.upload(name, data)

    def blob(self, name: str) -> SourceBlob:
        return WorldBlob(self.world, name)

    def listed(self) -> list[BlobVersion]:
        return list(self.world.services.arrived_blobs())


@pytest.fixture(params=BOTH)
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "double":
        return DoubleBlobs(tmp_path)
    return RealBlobs(request.getfixturevalue("blob_service"))


def test_a_blob_has_a_version_that_the_listing_gives_too(blobs: Blobs) -> None:
    blobs.upload("2026/a ä#.parquet", b"12345")
    version = blobs.blob("2026/a ä#.parquet").version()
    assert (version.name, version.size, version.is_leased, version.is_folder) == ("2026/a ä#.parquet", 5, False, False)
    assert version.etag.startswith('"')
    assert version.etag.endswith('"')
    assert version.last_modified.utcoffset() == timedelta()
    assert version.last_modified.microsecond == 0
    (listed,) = blobs.listed()
    assert (listed.name, listed.etag, listed.size) == (version.name, version.etag, version.size)
    assert listed.last_modified == version.last_modified
    assert listed.container == version.container


def test_a_blob_is_read_in_the_version_that_was_asked_for_or_not_at_all(blobs: Blobs) -> None:
    blobs.upload("a", b"0123456789")
    blob = blobs.blob("a")
    version = blob.version()
    reader = blob.open(version)
    reader.seek(-4, 2)
    assert (reader.size(), reader.read(2), reader.read()) == (10, b"67", b"89")
    blobs.upload("a", b"another one")
    with pytest.raises(Conflict):
        blob.open(version).read(1)


def test_a_blob_is_deleted_in_the_version_that_was_asked_for_or_not_at_all(blobs: Blobs) -> None:
    blobs.upload("a", b"1")
    blob = blobs.blob("a")
    first = blob.version()
    blobs.upload("a", b"2")
    assert not blob.delete(first)
    second = blob.version()
    assert second.etag != first.etag
    assert blob.delete(second)
    assert not blob.delete(second)
    assert blobs.listed() == []
    with pytest.raises(NotFound):
        blob.version()
    with pytest.raises(Conflict):  # the condition of a range on its ETag does not hold
        blob.open(second).read(1)


# ---- a queue --------------------------------------------------------------------------------------------------------


class Queues(ABC):
    """A queue, real or not, and the host that puts messages there."""

    @abstractmethod
    def queue(self) -> Queue: ...

    @abstractmethod
    def put(self, body: bytes) -> None: ...


class RealQueues(Queues):
    def __init__(self, cloud: LocalCloud) -> None:
        self.name = f"d{uuid4().hex}"
        url = azurite.endpoint(cloud.ports["queue"])
        self.service = QueueServiceClient(url, credential=CREDENTIAL, retry_total=0)
        self.services = Services(cloud.settings_file)

    def queue(self) -> Queue:
        return self.services.queue(self.name)

    def put(self, body: bytes) -> None:
        client = self.service.get_queue_client(self.name)
        if self.name not in [found.name for found in self.service.list_queues(name_starts_with=self.name)]:
            client.create_queue()
        client.send_message(body.decode())

    def close(self) -> None:
        self.service.close()
        self.services.close()


class DoubleQueues(Queues):
    def __init__(self, folder: Path) -> None:
        self.made = WorldQueue(World(folder), "d-poison")

    def queue(self) -> Queue:
        return self.made

    def put(self, body: bytes) -> None:
        try:
            self.made.put(base64.b64decode(body, validate=True))
        except ValueError:
            self.made.put(body)


@pytest.fixture(params=BOTH)
def queues(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Queues]:
    if request.param == "double":
        yield DoubleQueues(tmp_path)
        return
    real = RealQueues(request.getfixturevalue("local_cloud"))
    yield real
    real.close()


def test_a_queue_that_nobody_made_is_empty(queues: Queues) -> None:
    assert queues.queue().length() == 0
    assert queues.queue().letters() == []


def test_a_message_that_failed_for_good_is_read_hidden_and_deleted(queues: Queues) -> None:
    message = PostsLanded(source_id="s", version="v").model_dump_json().encode()
    queues.put(base64.b64encode(message))
    queues.put(b"{no base64}")
    queue = queues.queue()
    assert queue.length() == 2
    letters = queue.letters()
    assert sorted(letter.body for letter in letters) == sorted([message, b"{no base64}"])
    assert all(letter.since.utcoffset() == timedelta() for letter in letters)
    assert len({letter.id for letter in letters}) == 2
    assert queue.letters() == []
    for letter in letters:
        queue.discard(letter)
        queue.discard(letter)
    assert queue.length() == 0


# ---- runs of a job --------------------------------------------------------------------------------------------------

Kind = Literal["succeeds", "fails", "works on"]


class Runs(ABC):
    """Job runs, real or not."""

    runs: JobRuns

    @abstractmethod
    def start(self, kind: Kind, token: str) -> int: ...


PARAMETERS: dict[Kind, dict[str, str]] = {
    "succeeds": {"say": "x"},
    "fails": {"exit_code": "3"},
    "works on": {"sleep_seconds": "600"},
}
OUTCOMES: dict[Kind, list[RunState]] = {
    "succeeds": [RunState("running"), RunState("succeeded", worked_seconds=1.0)],
    "fails": [RunState("failed", "FAILED")],
    "works on": [RunState("running")] * 100,
}


class RealRuns(Runs):
    def __init__(self, stand_in: StandIn) -> None:
        self.runs = WorkspaceRuns(stand_in.client)

    def start(self, kind: Kind, token: str) -> int:
        return self.runs.start(SAMPLE, PARAMETERS[kind], token)


class DoubleRuns(Runs):
    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.runs = self.world.runs

    def start(self, kind: Kind, token: str) -> int:
        if token not in self.world.runs.by_token:
            self.world.runs.outcomes = list(OUTCOMES[kind])
        return self.runs.start(SAMPLE, {}, token)


@pytest.fixture(params=BOTH)
def runs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    if request.param == "double":
        yield DoubleRuns(tmp_path)
        return
    no_other_databricks(tmp_path, monkeypatch)
    stand_in = StandIn(tmp_path, SETTINGS)
    yield RealRuns(stand_in)
    stand_in.stop()


def end_of(runs: JobRuns, run_id: int) -> RunState:
    def look() -> Any:
        state = runs.look(run_id)
        return state if state.is_over else None

    found: RunState = eventually(look, f"the end of run {run_id}")
    return found


def test_one_token_is_one_run_which_stays_as_it_ended(runs: Runs) -> None:
    run_id = runs.start("succeeds", "a")
    assert runs.start("succeeds", "a") == run_id
    state = end_of(runs.runs, run_id)
    assert state.status == "succeeded"
    assert state.worked_seconds is not None
    assert runs.runs.look(run_id) == state
    runs.runs.cancel(run_id)
    assert runs.runs.look(run_id).status == "succeeded"
    assert runs.start("succeeds", "b") != run_id


def test_a_run_that_failed_says_why_and_stays_failed(runs: Runs) -> None:
    run_id = runs.start("fails", "a")
    state = end_of(runs.runs, run_id)
    assert state.status == "failed"
    assert "FAILED" in state.message
    assert runs.runs.failure(run_id)
    assert runs.runs.look(run_id).status == "failed"


def test_a_run_that_is_cancelled_ends_so(runs: Runs) -> None:
    run_id = runs.start("works on", "a")
    assert not runs.runs.look(run_id).is_over
    runs.runs.cancel(run_id)
    state = end_of(runs.runs, run_id)
    assert (state.status, "CANCEL" in state.message) == ("cancelled", True)


def test_a_run_that_nobody_started_is_not_found(runs: Runs) -> None:
    for ask in (runs.runs.look, runs.runs.failure, runs.runs.cancel):
        with pytest.raises(NotFound, match="987654"):
            ask(987654)
