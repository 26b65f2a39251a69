"""The cloud in one process, for unit tests: a folder as lake, lists as queues, a clock, and a job that runs at once.

Every call that leaves the process goes through `World.io`, where a test may let the process die after it.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
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
from pipeline.advance import advance, advance_blob
from pipeline.reconcile import Pass, reconcile
from shared import paths
from shared.catalog import day_pointer, published_days
from shared.databricks import JobRuns, RunState
from shared.errors import Conflict, NotFound, TerminalError, TransientError
from shared.lake import FileInfo, FolderLake
from shared.ledger import FileRecord
from shared.messages import Message
from shared.queues import LETTERS_HIDDEN_SECONDS, Letter, Queue
from shared.services import Services
from shared.settings import Settings
from shared.storage import BlobVersion, Copied, RangedReader, SourceBlob

CONTAINER = "posts"
START = datetime(2026, 11, 22, 6, 0, tzinfo=UTC)
MODEL_VERSION = str(json.loads((STARTER / "model.json").read_text())["version"])


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

    def list(self, prefix: str, at_most: int | None = None) -> Iterator[FileInfo]:
        with self._io(f"list {prefix}"):
            found = list(super().list(prefix, at_most))
        return iter(found)

    def delete(self, path: str) -> None:
        with self._io(f"delete {path}"):
            super().delete(path)

    def copy(self, source: str, target: str, *, with_sums: bool = False) -> Copied:
        with self._io(f"copy {target}"):
            return super().copy(source, target, with_sums=with_sums)

    def copy_in(self, source: SourceBlob, version: BlobVersion, path: str) -> Copied:
        with self._io(f"copy {path}"):
            return super().copy_in(source, version, path)


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
                data, now = self.world.blobs.get(self.name, (b"", None))
                if now is None or now.etag != version.etag:
                    raise Conflict(f"{self.what} has changed")
                return data[offset : offset + length]

        return RangedReader(fetch, version.size, self.what)

    def delete(self, version: BlobVersion) -> bool:
        with self.world.io(f"delete source {self.name}"):
            if self.name in self.world.blobs and self.world.blobs[self.name][1].etag == version.etag:
                del self.world.blobs[self.name]
                return True
            return False


class WorldQueue(Queue):
    """A queue: what is sent becomes visible when it is due; `held` are messages that failed for good."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.held: dict[Letter, datetime] = {}
        """Messages, and until when each is hidden."""

    def send(self, message: Message, delay: timedelta = timedelta()) -> None:
        with self.world.io(f"send {self.name}"):
            self.world.messages.append((self.world.time + delay, message))

    def put(self, body: bytes) -> None:
        """Have a message lie there that failed for good."""
        self.held[Letter(str(next(self.world.etags)), body, self.world.time, "receipt")] = self.world.time

    def letters(self) -> list[Letter]:
        with self.world.io(f"receive {self.name}"):
            seen = [letter for letter, hidden in self.held.items() if hidden <= self.world.time]
            until = self.world.time + timedelta(seconds=LETTERS_HIDDEN_SECONDS)
            self.held |= dict.fromkeys(seen, until)
            return seen

    def discard(self, letter: Letter) -> None:
        with self.world.io(f"discard {self.name}"):
            self.held.pop(letter, None)

    def length(self) -> int:
        return len(self.held)


class WorldRuns(JobRuns):
    """Databricks: a run is over at the first look; `outcomes` says how, success where it says nothing."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.by_token: dict[str, int] = {}
        self.parameters: dict[int, dict[str, str]] = {}
        self.outcomes: list[RunState] = []
        self.ended: dict[int, RunState] = {}
        self.cancelled: list[int] = []
        self.ids = itertools.count(100)

    def start(self, job_id: int, parameters: Mapping[str, str], token: str) -> int:
        with self.world.io("run_now"):
            if token not in self.by_token:
                self.by_token[token] = next(self.ids)
                self.parameters[self.by_token[token]] = dict(parameters)
            return self.by_token[token]

    def look(self, run_id: int) -> RunState:
        with self.world.io("runs/get"):
            self._check(run_id)
            if run_id not in self.ended:
                state = self.outcomes.pop(0) if self.outcomes else self._run(run_id)
                if not state.is_over:
                    return state
                self.ended[run_id] = state
            return self.ended[run_id]

    def _run(self, run_id: int) -> RunState:
        with self.world.undisturbed():
            try:
                run(self.world.lake, JobParameters.model_validate(self.parameters[run_id]))
            except TerminalError as error:
                return RunState("failed", str(error))
        return RunState("succeeded")

    def _check(self, run_id: int) -> None:
        if run_id not in self.parameters:
            raise NotFound(f"run {run_id} does not exist")

    def failure(self, run_id: int) -> str:
        with self.world.io("runs/get-output"):
            self._check(run_id)
            return "what the task said"

    def cancel(self, run_id: int) -> None:
        with self.world.io("runs/cancel"):
            self._check(run_id)
            self.cancelled.append(run_id)
            self.ended.setdefault(run_id, RunState("cancelled", "CANCELED"))

    def job_name(self, job_id: int) -> str:
        return f"job {job_id}"


class WorldServices(Services):
    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def now(self) -> datetime:
        return self._world.time

    def source_blob(self, container: str, name: str) -> SourceBlob:
        assert container == CONTAINER
        return WorldBlob(self._world, name)

    def arrived_blobs(self) -> Iterator[BlobVersion]:
        with self._world.io("list the container"):
            found = [version for _, version in self._world.blobs.values()]
        return iter(found)

    def queue(self, name: str) -> Any:
        return self._world.poison.setdefault(name, WorldQueue(self._world, name))


class World:
    def __init__(self, root: Path, **changes: Any) -> None:
        self.time = START
        self.blobs: dict[str, tuple[bytes, BlobVersion]] = {}
        self.messages: list[tuple[datetime, Message]] = []
        self.calls: list[str] = []
        self.fail_at: int | None = None
        self.disturbed = True
        self.etags = itertools.count(1)
        self.poison: dict[str, WorldQueue] = {}
        self.told: set[tuple[str, str]] = set()
        self.lake = IoLake(root, self.io)
        self.runs = WorldRuns(self)
        with self.undisturbed():
            current = CurrentModel(version=MODEL_VERSION, promoted_at=START)
            self.lake.put(paths.CURRENT_MODEL, current.model_dump_json().encode())
            model = root / paths.model(MODEL_VERSION)
            model.parent.mkdir(parents=True, exist_ok=True)
            if not model.is_symlink():
                model.symlink_to(STARTER)
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
        """Put a file into the container; returns its ETag. Each is of a minute later than the one before."""
        number = next(self.etags)
        modified = START + timedelta(minutes=number)
        self.time = max(self.time, modified)
        data = posts if isinstance(posts, bytes) else parquet(posts)
        etag = f'"0x{number}"'
        self.blobs[name] = data, BlobVersion(CONTAINER, name, etag, modified, len(data), None)
        return etag

    def land(self, name: str) -> FileRecord | None:
        return advance_blob(self.services, WorldBlob(self, name))

    def deliver(self, message: Message) -> FileRecord:
        return advance(self.services, message.source_id, message.version)

    def work(self, tries: int = 5) -> None:
        """Deliver events, at least once, until nothing is left: blobs, then messages as they become visible.

        What dies is delivered again, at most `tries` times.
        """
        failures = 0
        while self._undelivered() or self.messages:
            try:
                if undelivered := self._undelivered():
                    name, etag = undelivered[0]
                    self.land(name)
                    self.told.add((name, etag))
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

    def _undelivered(self) -> list[tuple[str, str]]:
        """The contents of blobs that no event has brought yet."""
        present = [(name, version.etag) for name, (_, version) in self.blobs.items()]
        return [each for each in present if each not in self.told]

    def settle(self) -> None:
        """Deliver what there is, then let reconcile find what no message brings, in two passes."""
        self.work()
        for _ in range(2):
            self.reconcile()

    def reconcile(self, later: timedelta = timedelta(hours=1)) -> Pass:
        """A pass some time later, and what its messages bring."""
        self.time += later
        try:
            return reconcile(self.services)
        except Crash:
            return reconcile(self.services)
        finally:
            self.work()

    def files(self) -> dict[str, bytes]:
        """Every file of the lake but those that hold times: the ledger's, the catalog's and the runs' summaries.

        Of the topics those that count: in which order files arrived, decides what was published between.
        """
        with self.undisturbed():
            pointers = [day_pointer(self.lake, day)[0] for day in published_days(self.lake)]
        current = {path for pointer in pointers if pointer for path in (pointer.parquet, pointer.csv, pointer.sums)}
        found = (path for path in self.lake.root.rglob("*") if path.is_file() and path.name != "summary.json")
        named = {str(path.relative_to(self.lake.root)): path for path in found}
        return {
            name: path.read_bytes()
            for name, path in sorted(named.items())
            if name.partition("/")[0] not in ("runs", "catalog", "models", "topics", "day_sums") or name in current
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
