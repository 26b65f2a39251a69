"""The records of the weekly copies, kept in `runs/reference/`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Literal

from pydantic import Field

from shared import paths
from shared.documents import Record, decode
from shared.lake import Lake

CopyState = Literal["publishing", "published", "refused", "failed"]


class TableRecord(Record):
    """The result for one table. `retyped` has entries "column: old -> new"; `key` holds the columns of its key."""

    rows: int
    bytes: int
    columns: dict[str, str]
    key: list[str] = Field(default_factory=list)
    checksum: str | None = None
    added: list[str] = Field(default_factory=list)
    dropped: list[str] = Field(default_factory=list)
    retyped: list[str] = Field(default_factory=list)
    nulled: dict[str, int] = Field(default_factory=dict)
    seconds: float


class ReferenceRecord(Record):
    """The result of a weekly copy; `runs/reference/<yyyy>-W<ww>.json`.

    `state` and `reason` are those of the last run; `tables` is what was last published in this week, at `published_at`.
    `incoming` has the path of each table while the state is `publishing`, and is empty afterwards.
    """

    week: str
    state: CopyState
    started_at: datetime
    seconds: float
    tables: dict[str, TableRecord]
    reason: str | None = None
    published_at: datetime | None = None
    incoming: dict[str, str] = Field(default_factory=dict)

    @property
    def changes(self) -> list[str]:
        """One sentence for each table whose columns changed since the week before."""
        return [
            f"{name}: added {table.added}, dropped {table.dropped}, retyped {table.retyped}"
            for name, table in self.tables.items()
            if table.added or table.dropped or table.retyped
        ]


def last_record(lake: Lake) -> ReferenceRecord | None:
    """The record of the newest week; None when nothing was ever copied. Raises BadInput when it is invalid."""
    return next(records(lake), None)


def records(lake: Lake) -> Iterator[ReferenceRecord]:
    """The records, newest first."""
    for info in reversed(list(lake.list(paths.REFERENCE_RECORDS))):
        yield decode(ReferenceRecord, lake.read(info.path), info.path)


def put_record(lake: Lake, record: ReferenceRecord) -> None:
    lake.put(paths.reference_record(record.week), record.model_dump_json(indent=2).encode())
