"""The ledger: one record a file version, in the lake, changed only under its ETag.

arriving ──> landed ──> launched ──> classified ──> published
               ^           │             │
               └───────────┘ next run    └──> superseded (a newer version of the same source counts)
ended without counting: superseded, cancelled (a person cancelled its run), withdrawn, discarded
open until a person decides: quarantined (at landing or by the job), failed

Small notes beside the records make looking cheap whatever the history: `runs/open/…` as long as a file version has a
next step, `runs/inbox/…` while it waits for a person, and `runs/seen/<day>/…` for the day it was first seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Literal, Self

from pydantic import Field

from shared import paths
from shared.conditional import until_first
from shared.documents import Record, decode
from shared.errors import Conflict, NotFound
from shared.lake import FileInfo, Lake

MAX_REASON = 4_000
"""Characters of a reason that are kept: it may quote a file's own, very long names."""


SEEN_DAYS = 8
"""Days in which the newest files are searched: enough for a file a week."""


class FileState(StrEnum):
    ARRIVING = "arriving"
    LANDED = "landed"
    LAUNCHED = "launched"
    CLASSIFIED = "classified"
    PUBLISHED = "published"
    QUARANTINED = "quarantined"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"
    WITHDRAWN = "withdrawn"
    DISCARDED = "discarded"


NEEDS_A_PERSON = frozenset({FileState.QUARANTINED, FileState.FAILED})
"""A file in one of these states stays open until a person retries, discards, withdraws or replaces it."""
ENDED = frozenset(
    {FileState.PUBLISHED, FileState.SUPERSEDED, FileState.CANCELLED, FileState.WITHDRAWN, FileState.DISCARDED}
)
AT_REST = ENDED | NEEDS_A_PERSON
"""Only a person's command leaves these states."""


class Source(Record):
    """Where a file version came from."""

    container: str
    name: str
    etag: str
    last_modified: datetime
    size: int

    def refused_because(self, reason: str) -> bytes:
        """The `reason.json` that lies in quarantine beside the file."""
        note = {"file": f"{self.container}/{self.name}", "etag": self.etag, "size": self.size, "reason": reason}
        return json.dumps(note, indent=1).encode()


Outcome = Literal["succeeded", "failed", "deadline", "skipped", "platform", "cancelled"]
"""How a run ended. The first two count as attempts of the job; `skipped` (no slot) and `platform` (Databricks or the
cloud failed) are started again without counting; `cancelled` is a person's decision."""


class JobRun(Record):
    """One run that was started to classify a file version."""

    attempt: int
    token: str
    run_id: int
    launched_at: datetime
    waits: bool = Field(default=False, description="it waited for a slot when it was looked at last")
    woken_at: datetime | None = Field(default=None, description="when a slot last became free for it")
    began_at: datetime | None = Field(default=None, description="when a look first found it running")
    cancelled_because: str | None = Field(default=None, description="why this app cancelled it")
    outcome: Outcome | None = None
    page: str = ""
    worked_seconds: float | None = Field(default=None, description="seconds of its tasks, without waiting")
    error: str | None = None


class Trouble(Record):
    """A step that keeps failing: since when, how often, why, and when it is tried next."""

    since: datetime
    tries: int
    reason: str
    next: datetime


class FileRecord(Record):
    """What happened to one version of one Posts file."""

    source_id: str
    version: str
    source: Source
    state: FileState
    file_day: date
    sequence: int = Field(description="the versions of a source in the order of their contents, from 1")
    working_until: datetime | None = Field(default=None, description="until when that delivery has the file to itself")
    delivery: str | None = Field(default=None, description="the delivery that is landing the file")
    rows: int | None = None
    archive: str | None = None
    quarantine: str | None = None
    attempt: int = 1
    replay: int = Field(default=0, description="how often it was classified again on request")
    model: str | None = Field(default=None, description="the model of every attempt, fixed at the first launch")
    topic_source: str | None = Field(default=None, description="who decides topics, fixed with the model")
    output: str | None = Field(default=None, description="the folder of post_topics that every attempt writes")
    runs: list[JobRun] = Field(default_factory=list)
    not_before: datetime | None = Field(default=None, description="when the next run may start")
    next_look: datetime | None = Field(default=None, description="when the run is looked at next")
    trouble: Trouble | None = None
    counted: int | None = Field(default=None, description="questions and answers that were counted")
    days: list[date] = Field(default_factory=list)
    reason: str | None = Field(default=None, description="why it does not count")
    erase: bool = Field(default=False, description="its bytes are to be deleted, because it was withdrawn for good")
    times: dict[str, datetime] = Field(default={}, description="when each state was last entered (UTC)")

    def entered(self, state: FileState, now: datetime, **changes: object) -> Self:
        """A copy in `state`, entered at `now`, with other fields changed and without the former state's trouble."""
        update = {"state": state, "times": {**self.times, state.value: now}, "trouble": None, **changes}
        return self.model_copy(update=update)

    @property
    def file(self) -> str:
        """The blob's path, its container first."""
        return f"{self.source.container}/{self.source.name}"

    @property
    def key(self) -> str:
        return f"{self.source_id}/{self.version}"

    @property
    def since(self) -> datetime:
        """When it came into its state."""
        return self.times[self.state.value]

    @property
    def job_failures(self) -> int:
        """How many runs of this classification the job itself has failed."""
        return sum(run.outcome in ("failed", "deadline") for run in self.runs_of_this_replay)

    @property
    def runs_of_this_replay(self) -> list[JobRun]:
        """The runs since it was last asked to be classified."""
        asked = self.times.get("asked")
        return [run for run in self.runs if asked is None or run.launched_at >= asked]


class Ledger:
    """The records of all file versions."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake

    def find(self, source_id: str, version: str) -> FileRecord | None:
        """The record of a file version, or None."""
        try:
            return self.get(source_id, version)
        except NotFound:
            return None

    def get(self, source_id: str, version: str) -> FileRecord:
        """The record of a file version. Raises NotFound."""
        path = paths.file_record(source_id, version)
        return decode(FileRecord, self._lake.read(path), path)

    def versions(self, source_id: str) -> list[str]:
        """The versions of a source that have a record, oldest Last-Modified first."""
        return [_version(info.path) for info in self._lake.list(f"{paths.FILE_RECORDS}/{source_id}")]

    def add(self, record: FileRecord) -> FileRecord:
        """Write a new record, or return the one that another delivery of the same event wrote first.

        Its notes are written first: without them nothing would find the record again.
        """
        self.reopen(record)
        seen = paths.seen_file(record.since.date(), record.source_id, record.version)
        self._lake.put(seen, _note(record))
        try:
            self._lake.put(paths.file_record(record.source_id, record.version), _encoded(record), if_absent=True)
        except Conflict:
            return self.get(record.source_id, record.version)
        return record

    def reopen(self, record: FileRecord) -> None:
        """Put the file version among the open ones."""
        self._lake.put(paths.open_file(record.source_id, record.version), _note(record))

    def park(self, record: FileRecord) -> None:
        """Leave the file version to a person, in whose inbox `change` has put it: it has no next step of its own."""
        self._lake.delete(paths.open_file(record.source_id, record.version))

    def close(self, record: FileRecord) -> None:
        """Remove the file version from the open ones: it has ended and is cleared away."""
        self._lake.delete(paths.inbox_file(record.source_id, record.version))
        self._lake.delete(paths.open_file(record.source_id, record.version))

    def close_inbox(self, record: FileRecord) -> None:
        """Remove the file version from those that wait for a person: somebody has decided."""
        self._lake.delete(paths.inbox_file(record.source_id, record.version))

    def forget(self, source_id: str, version: str) -> None:
        """Delete the note of a file version that has no record."""
        self._lake.delete(paths.open_file(source_id, version))

    def note_waiting(self, record: FileRecord) -> None:
        """Put the file version among those whose run waits for a slot."""
        self._lake.put(_waiting(record), _note(record))

    def forget_waiting(self, record: FileRecord) -> None:
        """Remove the file version from those whose run waits for a slot."""
        self._lake.delete(_waiting(record))

    def longest_waiting(self, at_most: int) -> list[FileRecord]:
        """Those whose run has waited longest for a slot; notes of others are deleted."""
        found = []
        for info in list(self._lake.list(paths.WAITING_FILES, at_most)):
            source_id, version = _key(info.path.partition("-")[2])
            record = self.find(source_id, version)
            if (
                record
                and record.state is FileState.LAUNCHED
                and record.runs[-1].waits
                and info.path == _waiting(record)
            ):
                found.append(record)
            else:
                self._lake.delete(info.path)
        return found

    def waiting_for_a_person(self) -> list[tuple[str, str]]:
        """Source id and version of every file that a person must decide about, the newest first."""
        return _by_time(self._lake.list(paths.INBOX))[::-1]

    def is_open(self, record: FileRecord) -> bool:
        """Whether the file version is among the open ones."""
        return self._lake.stat(paths.open_file(record.source_id, record.version)) is not None

    def open_files(self) -> list[tuple[str, str]]:
        """Source id and version of every file that has not ended, in the order in which they were seen.

        Its cost follows what is open, not history.
        """
        return _by_time(self._lake.list(paths.OPEN_FILES))

    def seen_on(self, day: date) -> list[tuple[str, str]]:
        """Source id and version of every file that was first seen on this day (UTC), in that order."""
        return _by_time(self._lake.list(paths.seen_files(day)))

    def newest(self, today: date, wanted: int) -> list[FileRecord]:
        """The file versions seen last, at most `wanted` and none older than SEEN_DAYS days, newest first."""
        found: list[FileRecord] = []
        for back in range(SEEN_DAYS):
            for source_id, version in reversed(self.seen_on(today - timedelta(days=back))):
                if len(found) == wanted:
                    return found
                found += filter(None, [self.find(source_id, version)])
        return found

    def change(self, record: FileRecord, decide: Callable[[FileRecord], FileRecord | None]) -> FileRecord:
        """Read the record as it is now, let `decide` return its successor (None: no change), and write that under
        the ETag that was read.

        Retried when somebody else was first; returns the record as it then is.
        """
        path = paths.file_record(record.source_id, record.version)

        def change() -> FileRecord:
            data, etag = self._lake.read_with_etag(path)
            current = decode(FileRecord, data, path)
            successor = decide(current)
            if successor is None:
                return current
            if successor.state in NEEDS_A_PERSON:  # its note first: no file may be missing in the inbox
                self._lake.put(paths.inbox_file(record.source_id, record.version), _note(record))
            self._lake.put(path, _encoded(successor), if_match=etag)
            return successor

        return until_first(change, f"the record of {record.key}")

    def records(self) -> Iterator[FileRecord]:
        """Every record; by source, then version."""
        for info in self._lake.list(paths.FILE_RECORDS):
            yield decode(FileRecord, self._lake.read(info.path), info.path)


def _by_time(notes: Iterable[FileInfo]) -> list[tuple[str, str]]:
    return [_key(info.path) for info in sorted(notes, key=lambda info: (info.last_modified, info.path))]


def _waiting(record: FileRecord) -> str:
    return paths.waiting_file(record.runs[-1].launched_at, record.source_id, record.version)


def _key(path: str) -> tuple[str, str]:
    """Source id and version, from the name of a note: `<source id>-<version>.json`."""
    source_id, _, version = _version(path).partition("-")
    return source_id, version


def _version(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".json")


def _note(record: FileRecord) -> bytes:
    return json.dumps({"file": f"{record.source.container}/{record.source.name}"}).encode()


def _encoded(record: FileRecord) -> bytes:
    return record.model_dump_json(indent=1, exclude_none=True).encode()
