"""The cloud in one process, for unit tests: a folder as lake, lists as queues, a clock, and a job that runs at once.

Every call that leaves the process goes through `World.io`, where a test may let the process die after it.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from classify.model.model import TopicModel
from classify.registry.models import STARTER, CurrentModel
from classify.run.engine import run
from classify.run.parameters import JobParameters
from ingest.posts import land_posts
from pipeline.launch import launch
from pipeline.watch import watch
from shared import paths
from shared.databricks import RunState
from shared.errors import Conflict, NotFound, TerminalError, TransientError
from shared.lake import FileInfo, FolderLake
from shared.ledger import FileRecord
from shared.messages import ClassificationStarted, Message, PostsLanded
from shared.services import Services
from shared.settings import Settings
from shared.storage import NOTHING_KNOWN, BlobVersion, Copied, RangedReader, SourceBlob

CONTAINER = "posts"
START = datetime(2026, 11, 22, 6, 0, tzinfo=UTC)
MODEL_VERSION = "the-starter"


@lru_cache
def starter() -> TopicModel:
    return TopicModel.load(STARTER)


def settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {
        "posts_storage": "UseDevelopmentStorage=true",
        "queues_storage": "UseDevelopmentStorage=true",
        "lake_storage": "UseDevelopmentStorage=true",
        "postgres_host": "localhost",
        "postgres_database": "d",
        "postgres_user": "u",
        "databricks_host": "http://localhost",
        "databricks_job_id": 1,
        "lake_root_for_jobs": "the-lake",
        "watch_first_delay_seconds": 10,
        "classification_deadline_seconds": 300,
    }
    return Settings.model_validate(values | changes)


class Crash(Exception):
    """The process died here."""


class IoLake(FolderLake):
    """A folder lake whose every call passes `World.io`."""

    def __init__(self, root: Path, passes: Callable[[str], AbstractContextManager[None]]) -> None:
        super().__init__(root)
        self._io = passes

    def stat(self, path: str) -> FileInfo | None:
        with self._io(f"stat {path}"):
            return super().stat(path)

    def read_with_etag(self, path: str) -> tuple[bytes, str]:
        with self._io(f"read {path}"):
            return super().read_with_etag(path)

    def put(self, path: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        with self._io(f"put {path}"):
            return super().put(path, data, if_match=if_match, if_absent=if_absent)

    def list(self, prefix: str) -> Iterator[FileInfo]:
        with self._io(f"list {prefix}"):
            found = list(super().list(prefix))
        return iter(found)

    def delete(self, path: str) -> None:
        with self._io(f"delete {path}"):
            super().delete(path)

    def copy(self, source: str, target: str, proof_share: float = 0, known: Copied = NOTHING_KNOWN) -> None:
        with self._io(f"copy {target}"):
            super().copy(source, target, proof_share, known)

    def copy_from(self, source: SourceBlob, version: BlobVersion, path: str, proof_share: float = 0) -> Copied:
        with self._io(f"copy {path}"):
            return super().copy_from(source, version, path, proof_share)


def mortal(root: Path, calls: int) -> IoLake:
    """A lake whose user dies after so many calls."""
    left = itertools.count(calls, -1)

    @contextmanager
    def passes(what: str) -> Iterator[None]:
        yield
        if next(left) == 1:
            raise Crash(what)

    return IoLake(root, passes)


class WorldBlob(SourceBlob):
    def __init__(self, world: World, name: str) -> None:
        self.world, self.name, self.what = world, name, f"{CONTAINER}/{name}"

    def _content(self) -> tuple[bytes, BlobVersion]:
        if self.name not in self.world.blobs:
            raise NotFound(f"{self.what} does not exist")
        return self.world.blobs[self.name]

    def version(self) -> BlobVersion:
        with self.world.io(f"properties {self.name}"):
            return self._content()[1]

    def open(self, version: BlobVersion) -> RangedReader:
        def fetch(offset: int, length: int) -> bytes:
            with self.world.io(f"range of {self.name}"):
                data, now = self._content()
                if now.etag != version.etag:
                    raise Conflict(f"{self.what} has changed")
                return data[offset : offset + length]

        return RangedReader(fetch, version.size, self.what)

    def delete(self, version: BlobVersion) -> bool:
        with self.world.io(f"delete source {self.name}"):
            if self.name in self.world.blobs and self.world.blobs[self.name][1].etag == version.etag:
                del self.world.blobs[self.name]
                return True
            return False


class WorldQueue:
    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name

    def send(self, message: Message, delay: timedelta = timedelta()) -> None:
        with self.world.io(f"send {self.name}"):
            self.world.messages.append((self.world.time + delay, message))


class WorldRuns:
    """Databricks: a run is over at the first look; `outcomes` says how, success where it says nothing."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.by_token: dict[str, int] = {}
        self.parameters: dict[int, dict[str, str]] = {}
        self.outcomes: list[RunState] = []
        self.cancelled: list[int] = []
        self.ids = itertools.count(100)

    def start(self, job_id: int, parameters: dict[str, str], token: str) -> int:
        with self.world.io("run_now"):
            if token not in self.by_token:
                self.by_token[token] = next(self.ids)
                self.parameters[self.by_token[token]] = dict(parameters)
            return self.by_token[token]

    def look(self, run_id: int) -> RunState:
        with self.world.io("runs/get"):
            if self.outcomes:
                return self.outcomes.pop(0)
            with self.world.undisturbed():
                try:
                    run(self.world.lake, JobParameters.model_validate(self.parameters[run_id]))
                except TerminalError as error:
                    return RunState("failed", str(error))
            return RunState("succeeded")

    def failure(self, run_id: int) -> str:
        with self.world.io("runs/get-output"):
            return "what the task said"

    def cancel(self, run_id: int) -> None:
        with self.world.io("runs/cancel"):
            self.cancelled.append(run_id)


class WorldServices(Services):
    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def now(self) -> datetime:
        return self._world.time


class World:
    def __init__(self, root: Path, **changes: Any) -> None:
        self.time = START
        self.blobs: dict[str, tuple[bytes, BlobVersion]] = {}
        self.messages: list[tuple[datetime, Message]] = []
        self.calls: list[str] = []
        self.fail_at: int | None = None
        self.disturbed = True
        self.etags = itertools.count(1)
        self.lake = IoLake(root, self.io)
        self.runs = WorldRuns(self)
        with self.undisturbed():
            current = CurrentModel(version=MODEL_VERSION, promoted_at=START)
            self.lake.put(paths.CURRENT_MODEL, current.model_dump_json().encode())
        self.services = WorldServices(self).replace(
            settings=settings(**changes),
            lake=self.lake,
            job_runs=self.runs,
            posts_landed=WorldQueue(self, "posts-landed"),
            classification_runs=WorldQueue(self, "classification-runs"),
        )

    @contextmanager
    def io(self, what: str) -> Iterator[None]:
        """A call that leaves the process; `fail_at` kills the process after that many calls have had their effect."""
        number = len(self.calls)
        if self.disturbed:
            self.calls.append(what)
        disturbed = self.disturbed
        yield
        if disturbed and number == self.fail_at:
            raise Crash(what)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        before, self.disturbed = self.disturbed, False
        yield
        self.disturbed = before

    def upload(self, name: str, posts: pa.Table | bytes) -> str:
        """Put a file into the container; returns its ETag. Time goes on by a minute."""
        self.time += timedelta(minutes=1)
        data = posts if isinstance(posts, bytes) else parquet(posts)
        etag = f'"0x{next(self.etags)}"'
        self.blobs[name] = data, BlobVersion(CONTAINER, name, etag, self.time, len(data), None)
        return etag

    def land(self, name: str) -> FileRecord | None:
        return land_posts(self.services, WorldBlob(self, name))

    def deliver(self, message: Message) -> FileRecord:
        if isinstance(message, PostsLanded):
            return launch(self.services, message)
        assert isinstance(message, ClassificationStarted)
        return watch(self.services, message)

    def work(self, tries: int = 5) -> None:
        """Deliver events, at least once, until nothing is left: blobs, then messages as they become visible."""
        failures = 0
        while self.blobs or self.messages:
            try:
                if self.blobs:
                    self.land(next(iter(self.blobs)))
                    continue
                self.messages.sort(key=lambda entry: entry[0])
                due, message = self.messages[0]
                self.time = max(self.time, due)
                self.deliver(message)
                self.messages.remove((due, message))
            except (Crash, TransientError):
                failures += 1
                if failures > tries:
                    raise

    def files(self) -> dict[str, bytes]:
        """Every file of the lake but those that hold times: the ledger's, the catalog's and the runs' summaries."""
        found = sorted(path for path in self.lake.root.rglob("*") if path.is_file() and path.name != "summary.json")
        return {
            str(path.relative_to(self.lake.root)): path.read_bytes()
            for path in found
            if path.relative_to(self.lake.root).parts[0] not in ("runs", "catalog", "models")
        }


def parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def damaged(table: pa.Table, column: str = "Id") -> bytes:
    """A file whose footer is good and whose first page of a column is not."""
    data = bytearray(parquet(table))
    found = pq.read_metadata(io.BytesIO(data)).row_group(0).column(table.schema.names.index(column))
    first = found.dictionary_page_offset or found.data_page_offset
    data[first : first + 20] = b"\xff" * 20
    return bytes(data)


def posts(*rows: dict[str, Any]) -> pa.Table:
    """A Posts table; each row says what matters, the rest is filled in."""
    filled = [
        {
            "Id": number,
            "PostTypeId": 1,
            "ParentId": None,
            "CreationDate": datetime(2026, 11, 21, 12),
            "Title": "How do I sort a list?",
            "Body": "<p>I have a list and want it sorted.</p>",
            "Tags": None,
        }
        | row
        for number, row in enumerate(rows, 1)
    ]
    schema = pa.schema(
        {
            "Id": pa.int64(),
            "PostTypeId": pa.int32(),
            "ParentId": pa.int64(),
            "CreationDate": pa.timestamp("us"),
            "Title": pa.string(),
            "Body": pa.string(),
            "Tags": pa.string(),
        }
    )
    return pa.Table.from_pylist(filled, schema)
