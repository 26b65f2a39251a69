"""Posts.xml to Parquet: one file a day, a month or a year, or one for all; each written once and complete."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.dump.report import DumpReport, Spool, Stopwatch, Tell, write_rejected
from ingest.dump.rows import MOMENT, Check, Room, RowParser, XmlTable
from ingest.dump.scan import Array, Index, Spread, Unit, scan_file
from ingest.dump.source import (
    WORK_FOLDER,
    Source,
    discard_unpacked,
    dump_file,
    dump_identity,
    dump_origin,
    printable,
    site_prefix,
)
from ingest.dump.state import (
    HERE,
    Identity,
    Journal,
    Written,
    content_of,
    has_begun,
    make_folder,
    only_one,
    refuse_a_second_copy,
    refuse_another_unit,
    write_whole,
)
from shared.arrays import Flags
from shared.errors import BadInput, Conflict, StackTopicsError
from shared.memory import give_back_memory
from shared.storage import storage_errors

if TYPE_CHECKING:
    from azure.storage.blob import ContainerClient

POSTS_XML = "Posts.xml"
INDEX_FILE = "index.npz"
REPORT = "report.json"
SCAN_REJECTED = "rejected-by-scan.spool"

POSTS_TABLE = XmlTable(
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
"""The columns of the contract for Posts, and all others of a dump; a file keeps all of them."""

TASK_BYTES = 64 << 20
"""Bytes of XML of one task: smaller files are grouped until they reach it."""
PARSE_BYTES = 768 << 10
GROUP_BYTES = 16 << 20
"""Bytes of XML for one row group: about 10,000 posts. A thread holds one row group in memory."""
MAX_GROUPS = 2_000
"""Most row groups of a file: landing refuses a footer with too many, see `MAX_CHUNKS` of `ingest.footer`. A file of
more than 32 GB of XML gets larger row groups."""

UPLOAD_BYTES = 4 << 20

PAGE_BYTES = 256 << 10
"""A page of this size stays in cache while it is compressed: 4 % less time than with 1 MB, 0.2 % more bytes."""

FEW_VALUES = ["PostTypeId", "ContentLicense"]
DIFFERENCES = [
    item.name for item in POSTS_TABLE.schema if item.type in (pa.int64(), MOMENT) and item.name not in FEW_VALUES
]

Item = TypeVar("Item")
Result = TypeVar("Result")


class Bucket(NamedTuple):
    """One file to write: its number (see `DAYS_OF`) and the runs of its rows, in the order of the dump."""

    bucket: int
    runs: Array

    @property
    def period(self) -> str:
        """2012-06-12, 2012-06, 2012 or all."""
        digits = str(self.bucket)
        return "-".join(filter(None, (digits[:4], digits[4:6], digits[6:]))) if self.bucket else "all"

    def name(self, prefix: str) -> str:
        """posts-2012-06-12.parquet, posts-2012-06.parquet, posts-2012.parquet or posts-all.parquet; with a
        prefix posts-<prefix>-…"""
        return f"{'-'.join(filter(None, ('posts', prefix, self.period)))}.parquet"

    @property
    def size(self) -> int:
        return int((self.runs["end"] - self.runs["start"]).sum())

    @property
    def rows(self) -> int:
        return int(self.runs["rows"].sum())


def buckets(runs: Array) -> list[Bucket]:
    """The files to write, oldest first."""
    ordered = runs[np.argsort(runs["bucket"], kind="stable")]
    numbers, starts = np.unique(ordered["bucket"], return_index=True)
    return [Bucket(int(n), its) for n, its in zip(numbers, np.split(ordered, starts[1:]), strict=False)]


class Target(Protocol):
    """The destination of finished files; used by several threads."""

    def take(self, file: Path, name: str) -> None:
        """Move a finished file to the target, atomically."""

    def holds(self, written: Written) -> bool:
        """Whether a file that was taken earlier need not be written again."""


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
    """The incoming container. Sent files are not looked up there: the pipeline deletes each file once it has landed."""

    client: ContainerClient

    def take(self, file: Path, name: str) -> None:
        with storage_errors(f"{self.client.container_name}/{name}"), file.open("rb") as data:
            if file.stat().st_size <= UPLOAD_BYTES:
                self.client.upload_blob(name, data, overwrite=True)
            else:
                self._upload_in_blocks(data, name)
        file.unlink()

    def _upload_in_blocks(self, data: BinaryIO, name: str) -> None:
        """Upload by hand: the SDK would hold up to 64 MB of a file in memory, in each thread."""
        from azure.storage.blob import BlobBlock

        blob = self.client.get_blob_client(name)
        blocks: list[BlobBlock] = []
        while part := data.read(UPLOAD_BYTES):
            blocks.append(BlobBlock(f"{len(blocks):08}"))
            blob.stage_block(blocks[-1].id, part)
        blob.commit_block_list(blocks)

    def holds(self, written: Written) -> bool:  # noqa: ARG002
        return True


def import_dump(
    source: Source,
    target: Path | ContainerClient,
    *,
    by: Unit = "day",
    prefix: str | None = None,
    workers: int = 1,
    progress: Tell | None = None,
    work: Path | None = None,
    truncated: bool = False,
) -> DumpReport:
    """Write the posts of a dump (a folder or archives with Posts.xml) as Parquet files into a folder or a container.

    Each day (UTC), month or year becomes one file, `posts-2012-06-12.parquet`, `posts-2012-06.parquet` or
    `posts-2012.parquet`; or the whole dump becomes `posts-all.parquet`. A file appears only when complete, its rows in
    the order of the dump. With `prefix` its name is `posts-<prefix>-2012-06.parquet`, see `site_prefix`. `workers`
    threads share the work, uploads included; each file is written by one thread. State and unfinished files are in the
    folder `.import-dump` of `work`; without `work`, of the target folder or, for a container, of the current folder.
    Each prefix and target has its own folder there; a container that was deleted and created again is a new target.

    An interrupted import resumes when called again: finished files are not written again. If everything is done, it
    returns the first report. Rows that can't be read go to `rejected.jsonl` (`rejected-<prefix>.jsonl`) in the target
    folder or, for a container, in the state folder.

    A truncated Posts.xml is imported only with `truncated`. The complete file can be imported later: then only the
    files that get more posts are written again.

    Raises NotFound or BadInput when the source is no dump or is truncated, NotFound when the container does not exist,
    BadInput when the state can't be read or belongs to another import, or when the same posts were imported into files
    with other names, and Conflict when the dump changes while it is read or another import holds the state.
    """
    started = time.monotonic()
    origin = dump_origin(source, POSTS_XML)
    prefix = site_prefix(origin, prefix)
    place, where = _place(target, work)
    state = make_folder(where.state(prefix))
    folder = make_folder(target) if isinstance(target, Path) else state
    rejected_file = folder / f"{'-'.join(filter(None, ('rejected', prefix)))}.jsonl"
    finished = state / REPORT
    with only_one(state):
        refuse_another_unit(state, by, where.shown)
        journal = Journal(state)
        mine = dump_identity(origin), by, where.target
        report = DumpReport.load(finished) if Identity.is_of(state, *mine) else None
        if report and all(map(place.holds, journal.written.values())):
            _check_end(origin, report.truncated, report.rows_in, allowed=truncated)
            return report.model_copy(update={"resumed": len(report.files), "resumed_rows": report.rows_out})

        with dump_file(origin, POSTS_XML, state, progress) as xml, _threads(workers) as spread:
            try:
                identity = Identity(origin=mine[0], by=by, target=where.target, prefix=prefix, content=content_of(xml))
                _claim(state, xml, identity, where)
            except StackTopicsError:
                discard_unpacked(origin, xml)
                raise
            index = _index(xml, by, state, spread, progress)
            _check_end(origin, index.truncated, index.rows, allowed=truncated)
            files = _Files(xml, prefix, state, place, journal)
            report = _import(index, files, rejected_file, spread, progress)
            report = report.model_copy(update={"source": printable(origin), "seconds": time.monotonic() - started})
        write_whole(finished, report.model_dump_json(indent=1))
        (state / INDEX_FILE).unlink()
    return report


def _import(index: Index, files: _Files, rejected_file: Path, spread: Spread, tell: Tell | None) -> DumpReport:
    """Write the files that are missing at the target. The report covers all files; `source` and `seconds` are filled in
    by the caller."""
    names = {bucket.name(files.prefix): bucket for bucket in buckets(index.runs)}
    earlier = {
        name: written
        for name, written in files.journal.written.items()
        if name in names and names[name].rows == written.rows + written.rejected and files.place.holds(written)
    }
    todo = [bucket for name, bucket in names.items() if name not in earlier]
    written = [*earlier.values(), *files.write(todo, spread, tell)]
    rows_out = sum(each.rows for each in written)
    rejected = index.rejected + sum(each.rejected for each in written)
    if index.rows != rows_out + rejected:
        raise Conflict(
            f"{files.xml} had {index.rows} rows, but {rows_out} were written and {rejected} rejected:"
            f" it changed while it was read; remove {files.state} and start again"
        )
    spools = [files.state / SCAN_REJECTED, *(files.spool(each.name) for each in written if each.rejected)]
    rejected_to = write_rejected(spools, files.xml, rejected_file)
    return DumpReport(
        source=printable(files.xml),
        bytes=files.xml.stat().st_size,
        rows_in=index.rows,
        rows_out=rows_out,
        rejected=rejected,
        rejected_file=printable(rejected_to) if rejected_to else None,
        not_imported=dict(sum((Counter(each.not_imported) for each in written), Counter())),
        truncated=index.truncated,
        seconds=0.0,
        files=tuple(sorted(each.name for each in written if each.bytes)),
        resumed=sum(bool(each.bytes) for each in earlier.values()),
        resumed_rows=sum(each.rows for each in earlier.values()),
    )


# ---- state --------------------------------------------------------------------------------------------------------


class _Where(NamedTuple):
    """The place of the state of imports into a target: `folder`. The state names the target `target`; messages name it
    `shown`. `places` are all folders that may hold the state of other imports into it, with the target's name there."""

    folder: Path
    target: str
    shown: str
    suffix: str
    places: tuple[tuple[Path, str], ...]

    def state(self, prefix: str) -> Path:
        return self.folder / WORK_FOLDER / "-".join(filter(None, ("posts", prefix, self.suffix)))


def _place(target: Path | ContainerClient, work: Path | None) -> tuple[Target, _Where]:
    if isinstance(target, Path):
        address = printable(target.resolve())
        here = (target, HERE)
        if work is None or work.resolve() == target.resolve():
            return _Folder(target), _Where(target, HERE, address, "", (here,))
        where = _Where(work, address, address, f"{target.name}-{_digest(address)}", (here, (work, address)))
        return _Folder(target), where
    with storage_errors(f"container {target.container_name}"):
        made = target.get_container_properties()["etag"]  # not changed by adding or deleting files
    shown = target.url.partition("?")[0]  # a key may follow the `?`
    address, work = f"{shown} {made}", work or Path()
    suffix = f"{target.container_name}-{_digest(address)}"
    return _Container(target), _Where(work, address, shown, suffix, ((work, address),))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _claim(state: Path, xml: Path, mine: Identity, where: _Where) -> None:
    """Claim the state folder for this import, or continue an import of the same file when it was still truncated.

    Raises BadInput when the folder belongs to another import that has written files, or when the same posts were
    imported into files with other names.
    """
    saved = Identity.of(state)
    if saved != mine:
        if saved and has_begun(state) and not _goes_on(xml, mine, saved):
            raise BadInput(
                f"{state} belongs to an import of {saved.origin.name} ({saved.origin.size:,} bytes);"
                " for another site give its --prefix; to replace files with the same names by those of a changed or"
                " newer dump of the same site give --work FOLDER"
            )
        (state / INDEX_FILE).unlink(missing_ok=True)
        (state / REPORT).unlink(missing_ok=True)
        mine.save(state)
    refuse_a_second_copy(xml, mine, state, where.places, where.shown)


def _goes_on(xml: Path, mine: Identity, saved: Identity) -> bool:
    """Whether the file begins with the whole content of the file that was imported before."""
    size = saved.content.size
    return mine.content.size > size and content_of(xml, size) == saved.content


def _check_end(origin: Path, is_truncated: bool, rows: int, *, allowed: bool) -> None:
    if is_truncated and not allowed:
        raise BadInput(
            f"{origin}: {POSTS_XML} ends without </{POSTS_TABLE.root}>, after {rows:,} rows, as after an interrupted"
            " download: download it again; or give --truncated to import the rows it has; the complete file can be"
            " imported later"
        )


# ---- the two passes -----------------------------------------------------------------------------------------------


def _index(xml: Path, by: Unit, state: Path, spread: Spread, tell: Tell | None) -> Index:
    """The scan of the whole file, or the scan that an interrupted import saved."""
    saved = state / INDEX_FILE
    if found := Index.load(saved):
        return found
    index = scan_file(xml, POSTS_TABLE.root, by, rejected=state / SCAN_REJECTED, spread=spread, tell=tell)
    index.save(saved)
    give_back_memory()  # only once: after every file it would take 10 % of the time
    return index


@dataclass(frozen=True)
class _Files:
    """The second pass: from `xml`, through the folder `state`, to the target `place`."""

    xml: Path
    prefix: str
    state: Path
    place: Target
    journal: Journal

    def write(self, todo: Sequence[Bucket], spread: Spread, tell: Tell | None) -> list[Written]:
        """Write the files of `todo`, move each to the target and add it to the journal."""
        stopwatch = Stopwatch("writing", sum(bucket.size for bucket in todo), tell)
        return [written for _, done in spread(partial(self._do, stopwatch), _tasks(todo)) for written in done]

    def spool(self, name: str) -> Path:
        """The spool with the rejected rows of a file."""
        return self.state / "rejected" / f"{name}.spool"

    def _do(self, stopwatch: Stopwatch, task: Iterable[Bucket]) -> list[Written]:
        room = Room(POSTS_TABLE)
        with self.xml.open("rb", buffering=0) as source:
            return [self._finish(self._write(source, bucket, room, stopwatch)) for bucket in task]

    def _finish(self, written: Written) -> Written:
        if written.bytes:
            self.place.take(self.state / written.name, written.name)
        self.journal.add(written)
        return written

    def _write(self, source: FileIO, bucket: Bucket, room: Room, stopwatch: Stopwatch) -> Written:
        name = bucket.name(self.prefix)
        file = self.state / name
        parser = RowParser(POSTS_TABLE, _dated(bucket), room)
        rows, group_bytes = 0, max(GROUP_BYTES, bucket.size // MAX_GROUPS)
        with open_writer(file) as writer, Spool(self.spool(name)) as spool:
            group: list[pa.RecordBatch] = []
            held = 0
            for runs in _together(bucket.runs):
                group += parser.parse(room.read(source, runs))
                spool.add(parser.rejected)
                parser.rejected.clear()
                held += sum(end - start for start, end, _ in runs)
                if held >= group_bytes:
                    rows += write_group(writer, group)
                    stopwatch.advance(held)
                    group, held = [], 0
            rows += write_group(writer, group)
            stopwatch.advance(held)
        if not rows:
            file.unlink()
        return Written(
            name=name,
            rows=rows,
            bytes=file.stat().st_size if rows else 0,
            rejected=spool.count,
            not_imported=dict(parser.not_imported),
        )


def _tasks(buckets: Sequence[Bucket]) -> Iterator[tuple[Bucket, ...]]:
    """Group neighbouring files, so that a site with one post a day does not need a task for each file."""
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
    """A pool of threads: the slow code runs without the GIL, and a process would take a second to start."""
    with ThreadPoolExecutor(workers) as pool:

        def spread(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
            started = {pool.submit(function, item): item for item in items}
            return ((started[future], future.result()) for future in as_completed(started))

        try:
            yield spread
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


# ---- a file -------------------------------------------------------------------------------------------------------


def open_writer(file: Path) -> pq.ParquetWriter:
    """The writer of a Posts file: zstd 1, dictionaries where values repeat, numbers and timestamps as deltas."""
    return pq.ParquetWriter(
        file,
        POSTS_TABLE.schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=FEW_VALUES,
        column_encoding=dict.fromkeys(DIFFERENCES, "DELTA_BINARY_PACKED"),
        write_statistics=DIFFERENCES,
        data_page_size=PAGE_BYTES,
    )


def write_group(writer: pq.ParquetWriter, batches: Sequence[pa.RecordBatch]) -> int:
    """Write the batches as one row group, or nothing if they have no rows; returns the number of rows."""
    table = pa.Table.from_batches(batches, POSTS_TABLE.schema)
    if len(table):
        writer.write_table(table, row_group_size=len(table))
    return len(table)


def _together(runs: Array) -> Iterator[list[tuple[int, int, int]]]:
    """The runs of a file (start, end, number of rows), about PARSE_BYTES at a time."""
    some: list[tuple[int, int, int]] = []
    held = 0
    for run in runs:
        _, start, end, rows = run.tolist()
        some.append((start, end, rows))
        held += end - start
        if held >= PARSE_BYTES:
            yield some
            some, held = [], 0
    if some:
        yield some


def _dated(bucket: Bucket) -> Check:
    """A check that rejects rows whose parsed CreationDate does not belong to the file."""
    if not bucket.bucket:
        return lambda _: ()
    first = np.datetime64(bucket.period)  # its numpy unit is a day, a month or a year
    start, end = (moment.astype("M8[us]") for moment in (first, first + 1))

    def check(batch: pa.RecordBatch) -> Iterator[tuple[Flags, str]]:
        created = np.asarray(batch["CreationDate"])
        yield (created < start) | (created >= end), "CreationDate has another date once it is parsed"

    return check
