"""Posts.xml to Parquet: one file a day or a month, each written once and complete."""

from __future__ import annotations

import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.dump.report import DumpReport, Rejected, Stopwatch, Tell, write_rejected
from ingest.dump.rows import MOMENT, Check, Flags, Room, RowParser, Rows, XmlTable, read_rows
from ingest.dump.scan import RUN, Array, Scan, Unit, row_ranges, scan_range
from ingest.dump.source import dump_file, dump_origin
from shared.errors import BadInput, Conflict
from shared.storage import storage_errors

if TYPE_CHECKING:
    from azure.storage.blob import ContainerClient

POSTS_XML = "Posts.xml"
WORK_FOLDER = ".import-dump"
INDEX_FILE = "index.npz"

POSTS = XmlTable(
    root="posts",
    schema=pa.schema(
        {
            "Id": pa.int64(),
            "PostTypeId": pa.int32(),
            "AcceptedAnswerId": pa.int64(),
            "ParentId": pa.int64(),
            "CreationDate": MOMENT,
            "Score": pa.int32(),
            "ViewCount": pa.int32(),
            "Body": pa.string(),
            "OwnerUserId": pa.int64(),
            "LastActivityDate": MOMENT,
            "Title": pa.string(),
            "Tags": pa.string(),
            "AnswerCount": pa.int32(),
            "CommentCount": pa.int32(),
            "FavoriteCount": pa.int32(),
            "ClosedDate": MOMENT,
            "OwnerDisplayName": pa.string(),
            "LastEditorUserId": pa.int64(),
            "LastEditorDisplayName": pa.string(),
            "LastEditDate": MOMENT,
            "CommunityOwnedDate": MOMENT,
            "ContentLicense": pa.string(),
        }
    ),
    required=("Id", "PostTypeId", "CreationDate"),
)
"""The columns of the contract for Posts and the others a dump has; a file keeps all of them."""

SCAN_BYTES = 64 << 20
"""The range one task scans."""
TASK_BYTES = 64 << 20
"""How much XML the files of one task hold together, where a file holds less."""
PARSE_BYTES = 1 << 20
GROUP_BYTES = 16 << 20
"""XML bytes of a row group: about 10,000 posts, and what a thread holds at a time."""

PAGE_BYTES = 256 << 10
"""What stays in cache while it is compressed: 4 % less time than with pages of 1 MB, 0.2 % more bytes."""

FEW_VALUES = ["PostTypeId", "ContentLicense"]
DIFFERENCES = [item.name for item in POSTS.schema if item.type in (pa.int64(), MOMENT) and item.name not in FEW_VALUES]

Item = TypeVar("Item")
Result = TypeVar("Result")


class Bucket(NamedTuple):
    """The rows of one file to write: the day 20120612 or the month 201206, and their runs in the order of the dump."""

    bucket: int
    runs: Array

    @property
    def name(self) -> str:
        """posts-2012-06-12.parquet, or posts-2012-06.parquet."""
        digits = f"{self.bucket:06}" if self.bucket < 1_000_000 else f"{self.bucket:08}"
        return f"posts-{'-'.join(filter(None, (digits[:4], digits[4:6], digits[6:])))}.parquet"

    @property
    def size(self) -> int:
        return int((self.runs["end"] - self.runs["start"]).sum())


@dataclass(frozen=True)
class Written:
    """A file that was written; `bytes` is 0 where all its rows were rejected and none was made."""

    name: str
    rows: int
    bytes: int
    rejected: list[Rejected]
    not_imported: dict[str, int]


@dataclass
class Index:
    """What the scan found in the whole file."""

    runs: Array
    rejected: list[Rejected]
    rows: int
    truncated: bool

    def save(self, file: Path) -> None:
        said = {"rejected": self.rejected, "rows": self.rows, "truncated": self.truncated}
        part = file.with_name(file.name + ".part")
        with part.open("wb") as out:
            np.savez(out, runs=self.runs, said=np.array(json.dumps(said)))
        part.replace(file)

    @classmethod
    def load(cls, file: Path) -> Index:
        with np.load(file) as saved:
            said = json.loads(str(saved["said"]))
            rejected = [Rejected(*entry) for entry in said.pop("rejected")]
            return cls(runs=saved["runs"], rejected=rejected, **said)

    def buckets(self) -> list[Bucket]:
        """The files to write, oldest first."""
        ordered = self.runs[np.argsort(self.runs["bucket"], kind="stable")]
        numbers, starts = np.unique(ordered["bucket"], return_index=True)
        return [Bucket(int(n), runs) for n, runs in zip(numbers, np.split(ordered, starts[1:]), strict=False)]


class Target(Protocol):
    """Where finished files go."""

    def take(self, file: Path, name: str) -> None:
        """Put a finished file in its place, whole; the file is gone afterwards."""

    def holds(self, written: Written) -> bool:
        """Whether a file that was taken earlier needs no second writing."""


@dataclass(frozen=True)
class _Folder:
    folder: Path

    def take(self, file: Path, name: str) -> None:
        file.replace(self.folder / name)

    def holds(self, written: Written) -> bool:
        file = self.folder / written.name
        return not written.bytes or (file.is_file() and file.stat().st_size == written.bytes)


@dataclass(frozen=True)
class _Container:
    """The incoming container: the pipeline takes a file away once it has landed, so what was sent is not looked for."""

    client: ContainerClient

    def take(self, file: Path, name: str) -> None:
        with storage_errors(f"{self.client.container_name}/{name}"), file.open("rb") as data:
            self.client.upload_blob(name, data, overwrite=True)
        file.unlink()

    def holds(self, written: Written) -> bool:  # noqa: ARG002
        return True


def import_dump(
    source: Path,
    target: Path | ContainerClient,
    *,
    by: Unit = "day",
    workers: int = 1,
    progress: Tell | None = None,
    work: Path | None = None,
) -> DumpReport:
    """Write the posts of a dump (a folder or a .7z with Posts.xml) as Parquet files into a folder or a container.

    Each day (UTC) or month becomes one file, `posts-2012-06-12.parquet` or `posts-2012-06.parquet`, which appears only
    when complete, its rows in the order of the dump. `workers` threads share the work. `work` is the folder for state
    and unfinished files: `.import-dump` in the target folder, for a container in the current one unless given.

    Interrupted and called again it goes on where it was: finished files are not written again. Called again when
    all is done it returns the first report. Rows that can't be read are in `rejected.jsonl`, in the target folder or,
    for a container, in `work`.

    Raises NotFound or BadInput when the source is no dump, BadInput when `work` belongs to another import, and Conflict
    when the dump changes while it is read.
    """
    started = time.monotonic()
    identity = _identity(source, by)
    work = work or (target if isinstance(target, Path) else Path()) / WORK_FOLDER
    work.mkdir(parents=True, exist_ok=True)
    place: Target = _Folder(target) if isinstance(target, Path) else _Container(target)
    rejected_file = (target if isinstance(target, Path) else work) / "rejected.jsonl"
    journal = _Journal(work / "written.jsonl")
    finished = work / "report.json"
    _claim(work / "identity.json", identity)
    if finished.exists() and all(map(place.holds, journal.written.values())):
        report = DumpReport.from_json(finished.read_text())
        return replace(report, resumed=len(report.files))

    with dump_file(source, POSTS_XML, work, progress) as xml, _threads(workers) as spread:
        passes = _Passes(xml, by, work, spread, progress)
        index = passes.index()
        earlier = {name: written for name, written in journal.written.items() if place.holds(written)}
        todo = [bucket for bucket in index.buckets() if bucket.name not in earlier]
        written = [*earlier.values(), *passes.write(todo, place, journal)]
        rejected = index.rejected + [entry for each in written for entry in each.rejected]
        rejected_to = write_rejected(rejected, xml, rejected_file)
        rows_out = sum(each.rows for each in written)
        if index.rows != rows_out + len(rejected):
            raise Conflict(
                f"{xml} held {index.rows} rows, and {rows_out} were written and {len(rejected)} rejected:"
                f" it was changed while it was read; remove {work} and start again"
            )
        report = DumpReport(
            source=str(source),
            bytes=xml.stat().st_size,
            rows_in=index.rows,
            rows_out=rows_out,
            rejected=len(rejected),
            rejected_file=str(rejected_to) if rejected_to else None,
            not_imported=dict(sum((Counter(each.not_imported) for each in written), Counter())),
            truncated=index.truncated,
            seconds=time.monotonic() - started,
            files=tuple(sorted(each.name for each in written if each.bytes)),
            resumed=len(earlier),
        )
    finished.write_text(report.to_json())
    (work / INDEX_FILE).unlink()
    return report


# ---- state --------------------------------------------------------------------------------------------------------


def _identity(source: Path, by: Unit) -> dict[str, Any]:
    file = dump_origin(source, POSTS_XML)
    found = file.stat()
    return {"name": file.name, "size": found.st_size, "modified": found.st_mtime_ns, "by": by}


def _claim(file: Path, identity: dict[str, Any]) -> None:
    """Make the work folder this import's own. Raises BadInput when it is another's."""
    if not file.exists():
        file.write_text(json.dumps(identity))
    elif (other := json.loads(file.read_text())) != identity:
        raise BadInput(
            f"{file.parent} belongs to an import of {other['name']} ({other['size']:,} bytes) by {other['by']};"
            " choose another folder, or remove it and the files of that import"
        )


class _Journal:
    """Which files were written: one JSON line each, added when the file is in its place."""

    def __init__(self, file: Path) -> None:
        self._file = file
        whole, _, torn = (file.read_text() if file.exists() else "").rpartition("\n")
        if torn:  # by a kill while a line was added
            file.write_text(whole + "\n" if whole else "")
        entries = [json.loads(line) for line in whole.splitlines()]
        self.written = {
            entry["name"]: Written(**{**entry, "rejected": [Rejected(*kept) for kept in entry["rejected"]]})
            for entry in entries
        }

    def add(self, written: Written) -> None:
        with self._file.open("a") as out:
            out.write(json.dumps(asdict(written)) + "\n")


# ---- the two passes -----------------------------------------------------------------------------------------------

Spread = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[tuple[Any, Any]]]
"""Calls a function on each item, spread over threads; yields items with their results, in the order they come."""


@dataclass(frozen=True)
class _Passes:
    """Both passes over one file: `by` what unit, with `work` as the folder for what is not finished."""

    xml: Path
    by: Unit
    work: Path
    spread: Spread
    tell: Tell | None

    def index(self) -> Index:
        """The scan of the whole file, or what an interrupted import saved of it."""
        saved = self.work / INDEX_FILE
        if saved.exists():
            return Index.load(saved)
        stopwatch = Stopwatch("scanning", self.xml.stat().st_size, self.tell)
        ranges = row_ranges(self.xml, POSTS.root, SCAN_BYTES)
        scans = {}
        for piece, scan in self.spread(functools.partial(_scan_piece, self.xml, self.by), ranges):
            scans[piece] = scan
            stopwatch.advance(piece[1] - piece[0])
        in_order = [scans[piece] for piece in ranges]
        index = Index(
            runs=np.concatenate([np.empty(0, RUN), *(scan.runs for scan in in_order)]),
            rejected=[entry for scan in in_order for entry in scan.rejected],
            rows=sum(scan.rows for scan in in_order),
            truncated=bool(ranges) and not in_order[-1].closed,
        )
        index.save(saved)
        return index

    def write(self, buckets: Sequence[Bucket], place: Target, journal: _Journal) -> list[Written]:
        """Write the files of `buckets`, put each in its place and note it down."""
        stopwatch = Stopwatch("writing", sum(bucket.size for bucket in buckets), self.tell)
        done = []
        for task, files in self.spread(functools.partial(_write_files, self.xml, self.by, self.work), _tasks(buckets)):
            for written in files:
                if written.bytes:
                    place.take(self.work / written.name, written.name)
                journal.add(written)
            done += files
            stopwatch.advance(sum(bucket.size for bucket in task))
        return done


def _tasks(buckets: Sequence[Bucket]) -> Iterator[tuple[Bucket, ...]]:
    """Neighbouring files together, so that a site of one post a day does not pay a task for each."""
    task: list[Bucket] = []
    size = 0
    for bucket in buckets:
        task.append(bucket)
        size += bucket.size
        if size >= TASK_BYTES:
            yield tuple(task)
            task, size = [], 0
    if task:
        yield tuple(task)


@contextmanager
def _threads(workers: int) -> Iterator[Spread]:
    """Threads, for what takes the time runs without the interpreter's lock; a process would take a second to start."""
    with ThreadPoolExecutor(workers) as pool:

        def spread(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
            started = {pool.submit(function, item): item for item in items}
            return ((started[future], future.result()) for future in as_completed(started))

        try:
            yield spread
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


# ---- what a worker does -------------------------------------------------------------------------------------------


def _scan_piece(xml: Path, by: Unit, piece: tuple[int, int]) -> Scan:
    return scan_range(xml, *piece, POSTS.root, by)


def _write_files(xml: Path, by: Unit, folder: Path, buckets: Iterable[Bucket]) -> list[Written]:
    """Write files from one dump into a folder, under their names."""
    room = Room(POSTS)
    with xml.open("rb", buffering=0) as source:
        return [_write_file(source, bucket, by, folder / bucket.name, room) for bucket in buckets]


def _write_file(source: BinaryIO, bucket: Bucket, by: Unit, file: Path, room: Room) -> Written:
    parser = RowParser(POSTS, _dated(bucket.bucket, by), room)
    rows = 0
    with open_writer(file) as writer:
        group: list[pa.RecordBatch] = []
        held = 0
        for some in _read_runs(source, bucket.runs):
            group += parser.parse(some)
            held += sum(len(part.data) for part in some)
            if held >= GROUP_BYTES:
                rows += write_group(writer, group)
                group, held = [], 0
        rows += write_group(writer, group)
    if not rows:
        file.unlink()
    return Written(file.name, rows, file.stat().st_size if rows else 0, parser.rejected, dict(parser.not_imported))


def open_writer(file: Path) -> pq.ParquetWriter:
    """A Posts file: zstd 1, dictionaries where values repeat, numbers and moments as differences."""
    return pq.ParquetWriter(
        file,
        POSTS.schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=FEW_VALUES,
        column_encoding=dict.fromkeys(DIFFERENCES, "DELTA_BINARY_PACKED"),
        write_statistics=DIFFERENCES,
        data_page_size=PAGE_BYTES,
    )


def write_group(writer: pq.ParquetWriter, batches: Sequence[pa.RecordBatch]) -> int:
    """Write one row group, none for no rows; returns the number of rows."""
    table = pa.Table.from_batches(batches, POSTS.schema)
    if len(table):
        writer.write_table(table, row_group_size=len(table))
    return len(table)


def _read_runs(source: BinaryIO, runs: Array) -> Iterator[list[Rows]]:
    """The rows of a file, about PARSE_BYTES at a time."""
    some: list[Rows] = []
    for run in runs:
        some.append(read_rows(source, int(run["start"]), int(run["end"]), int(run["rows"])))
        if sum(len(part.data) for part in some) >= PARSE_BYTES:
            yield some
            some = []
    if some:
        yield some


def _dated(bucket: int, by: Unit) -> Check:
    """Refuses rows whose CreationDate, once parsed, is not that of the file."""
    day = bucket if by == "day" else bucket * 100 + 1
    first = np.datetime64(date(day // 10_000, day // 100 % 100, day % 100), "D" if by == "day" else "M")
    start, end = (moment.astype("M8[us]") for moment in (first, first + 1))

    def check(batch: pa.RecordBatch) -> Iterator[tuple[Flags, str]]:
        created = np.asarray(batch["CreationDate"])
        yield (created < start) | (created >= end), "CreationDate is read otherwise than it stands there"

    return check
