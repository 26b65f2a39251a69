"""The ledger: one record a file version, in the lake, changed only under its ETag.

landed ──> launched ──> classified ──> published
   ^          │             │
   └──────────┘ next attempt└──> superseded (a newer version of the same source counts already)
quarantined, at landing or by the job, and failed: ended without counting; a replay starts a failed one anew
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import date, datetime
from enum import StrEnum
from typing import Self

from pydantic import Field

from shared import paths
from shared.conditional import until_first
from shared.documents import Record, decode
from shared.errors import Conflict, NotFound
from shared.lake import Lake

MAX_REASON = 4_000
"""Characters of a reason that are kept: a file decides how long its columns' names and types are."""


class State(StrEnum):
    LANDED = "landed"
    LAUNCHED = "launched"
    CLASSIFIED = "classified"
    PUBLISHED = "published"
    QUARANTINED = "quarantined"
    FAILED = "failed"
    SUPERSEDED = "superseded"


ENDED = frozenset({State.PUBLISHED, State.QUARANTINED, State.FAILED, State.SUPERSEDED})


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


class Run(Record):
    """One attempt at classifying a file version."""

    attempt: int
    token: str
    run_id: int
    launched_at: datetime
    page: str = ""
    worked_seconds: float | None = Field(default=None, description="of its tasks, waiting left out")
    error: str | None = None


class FileRecord(Record):
    """What happened to one version of one Posts file."""

    source_id: str
    version: str
    source: Source
    state: State
    file_day: date
    rows: int | None = None
    archive: str | None = None
    quarantine: str | None = None
    attempt: int = 1
    model: str | None = Field(default=None, description="the model of every attempt, fixed at the first launch")
    output: str | None = Field(default=None, description="the folder of post_topics that every attempt writes")
    runs: list[Run] = Field(default_factory=list)
    counted: int | None = Field(default=None, description="questions and answers that were counted")
    days: list[date] = Field(default_factory=list)
    reason: str | None = Field(default=None, description="why it ended without counting")
    times: dict[str, datetime] = Field(default={}, description="when each state was last entered (UTC)")

    def entered(self, state: State, now: datetime, **changes: object) -> Self:
        """A copy in `state`, entered at `now`, with other fields changed."""
        return self.model_copy(update={"state": state, "times": {**self.times, state.value: now}, **changes})

    @property
    def key(self) -> str:
        return f"{self.source_id}/{self.version}"

    @property
    def order(self) -> tuple[datetime, datetime]:
        """Of two versions of a source the one with the larger order is newer: Last-Modified counts whole seconds
        only, so within one second the later seen is the newer."""
        return self.source.last_modified, min(self.times.values())


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

    def add(self, record: FileRecord) -> FileRecord:
        """Write a new record, or return the one that another delivery of the same event wrote first."""
        try:
            self._lake.put(paths.file_record(record.source_id, record.version), _encoded(record), if_absent=True)
        except Conflict:
            return self.get(record.source_id, record.version)
        return record

    def change(self, record: FileRecord, decide: Callable[[FileRecord], FileRecord | None]) -> FileRecord:
        """Read the record as it is now, let `decide` return its successor (None: leave it), write under the ETag read.

        Retried when somebody else was first; returns the record as it then is.
        """
        path = paths.file_record(record.source_id, record.version)

        def change() -> FileRecord:
            data, etag = self._lake.read_with_etag(path)
            current = decode(FileRecord, data, path)
            successor = decide(current)
            if successor is None:
                return current
            self._lake.put(path, _encoded(successor), if_match=etag)
            return successor

        return until_first(change, f"the record of {record.key}")

    def records(self) -> Iterator[FileRecord]:
        """Every record; by source, then version."""
        for info in self._lake.list(paths.FILE_RECORDS):
            yield decode(FileRecord, self._lake.read(info.path), info.path)


def _encoded(record: FileRecord) -> bytes:
    return record.model_dump_json(indent=1, exclude_none=True).encode()
