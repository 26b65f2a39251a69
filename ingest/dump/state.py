"""The state that an import keeps between runs: its identity, the files it wrote, and a lock while it runs.

Each site and target has its own state folder in `.import-dump` of the target folder or of the work folder.
"""

from __future__ import annotations

import hashlib
import shlex
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pydantic import ConfigDict

from ingest.dump.source import WORK_FOLDER, DumpIdentity
from shared.documents import Record, decode
from shared.errors import BadInput, Conflict

IDENTITY, JOURNAL, LOCK = "identity.json", "written.jsonl", "lock"
END_BYTES = 1 << 20
HERE = "."
"""Stands for the target folder when the state lies in it, so that the folder can be moved."""

if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> None:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def make_folder(folder: Path) -> Path:
    """The folder, created if missing. Raises BadInput when a file has its name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next(place for place in (folder, *folder.parents) if place.exists() or place.is_symlink())
        raise BadInput(f"{file} is a file: give a folder for --out and --work") from error
    return folder


def write_whole(file: Path, text: str) -> None:
    """Write a file atomically: it never appears half written, even if this process dies."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


@contextmanager
def only_one(state: Path) -> Iterator[None]:
    """Lock a state folder while the context lasts, or until this process dies.

    Raises Conflict while another import holds the lock, BadInput where the file system does not support locks.
    """
    with (state / LOCK).open("a") as file:
        try:
            _lock(file.fileno())
        except (BlockingIOError, PermissionError) as error:
            raise Conflict(
                f"another import is running in {state}: wait until it has ended, then run the command again"
            ) from error
        except OSError as error:
            raise BadInput(
                f"{file.name} can't be locked ({error}): give a folder on a local disk with --work"
            ) from error
        yield


def is_held(state: Path) -> bool:
    """Whether an import is using the folder."""
    try:
        with only_one(state):
            return False
    except Conflict:
        return True


class Content(Record):
    """Identifies bytes without reading them all: their number, and a digest of the first and the last megabyte."""

    model_config = ConfigDict(frozen=True)

    size: int
    digest: str


def content_of(file: Path, size: int | None = None) -> Content:
    """Identifies the first `size` bytes of a file; all of them if None."""
    size = file.stat().st_size if size is None else size
    with file.open("rb") as opened:
        digest = hashlib.sha256(opened.read(min(size, END_BYTES)))
        opened.seek(max(0, size - END_BYTES))
        digest.update(opened.read(min(size, END_BYTES)))
    return Content(size=size, digest=digest.hexdigest())


class Identity(Record):
    """An import of posts: `origin` identifies the given file and its date, `content` the XML in it."""

    model_config = ConfigDict(frozen=True)

    origin: DumpIdentity
    by: str
    target: str
    prefix: str
    content: Content

    @classmethod
    def is_of(cls, state: Path, origin: DumpIdentity, by: str, target: str) -> bool:
        """Whether a state folder belongs to an import of exactly this file, its date included."""
        saved = cls.of(state)
        return saved is not None and (saved.origin, saved.by, saved.target) == (origin, by, target)

    @classmethod
    def of(cls, state: Path) -> Self | None:
        """The import that a state folder belongs to; None when it is unknown and no file was written.

        Raises BadInput when files were written but the identity can't be read.
        """
        try:
            return decode(cls, (state / IDENTITY).read_bytes(), IDENTITY)
        except (FileNotFoundError, BadInput) as error:
            if not has_begun(state):
                return None
            raise _unreadable(state / IDENTITY, error) from error

    def save(self, state: Path) -> None:
        write_whole(state / IDENTITY, self.model_dump_json())


def _unreadable(file: Path, error: Exception) -> BadInput:
    return BadInput(
        f"{file} can't be read ({error}): remove {file.parent}, then import the same dump with the same --prefix and"
        " --by again, which replaces the files that were written"
    )


def has_begun(state: Path) -> bool:
    """Whether an import has delivered files to the target."""
    journal = state / JOURNAL
    return journal.is_file() and journal.stat().st_size > 0


def refuse_another_unit(state: Path, by: str, target: str) -> None:
    """Raises BadInput when the folder belongs to an import by another unit: the files of both would be counted."""
    saved = Identity.of(state)
    if saved and has_begun(state) and saved.by != by:
        raise BadInput(
            f"{saved.origin.name} was imported into {target} by {saved.by}: by {by} as well, its posts would be"
            f" counted twice; continue with --by {saved.by}, or first {_taking_back(state, target)}"
        )


def refuse_a_second_copy(
    xml: Path, mine: Identity, state: Path, places: Iterable[tuple[Path, str]], target: str
) -> None:
    """Check that the same posts were not imported into `target` under other file names: both would be counted.

    `places` are folders that may hold the state of such an import, each with the name that `target` has there. Raises
    BadInput when one of them imported the same posts, or the first part of them; Conflict when that import is running.
    """
    for folder, address in places:
        for file in sorted((folder / WORK_FOLDER).glob(f"*/{IDENTITY}")):
            other = None if file.parent.samefile(state) else Identity.of(file.parent)
            if not other or other.target != address or (other.prefix, other.by) == (mine.prefix, mine.by):
                continue
            if content_of(xml, other.content.size) != other.content:
                continue
            if has_begun(file.parent):
                as_before = f"--prefix {shlex.quote(other.prefix)} --by {other.by}"
                raise BadInput(
                    f"the same posts were imported into {target} from {other.origin.name} with {as_before}: with"
                    f" --prefix {shlex.quote(mine.prefix)} --by {mine.by} as well, they would be counted twice;"
                    f" continue with {as_before}, or first {_taking_back(file.parent, target)}"
                )
            if is_held(file.parent):
                raise Conflict(f"another import of the same posts into {target} is running in {file.parent}")


def _taking_back(state: Path, target: str) -> str:
    return (
        f"take back the files that {state / JOURNAL} names (remove them from {target}; for files that were already"
        f" counted, upload files with the same names and no rows) and remove {state}"
    )


# ---- the journal --------------------------------------------------------------------------------------------------


class Written(Record):
    """A file that was written; `bytes` is 0 where all its rows were rejected and no file was created."""

    model_config = ConfigDict(frozen=True)

    name: str
    rows: int
    bytes: int
    rejected: int
    not_imported: dict[str, int]


class Journal:
    """The written files: one JSON line each, added when the file is at the target; the last line of a name counts.

    Raises BadInput when the journal can't be read.
    """

    def __init__(self, state: Path) -> None:
        self._file = state / JOURNAL
        self._lock = threading.Lock()
        try:
            whole, _, torn = (self._file.read_bytes() if self._file.exists() else b"").rpartition(b"\n")
            entries = [decode(Written, line, JOURNAL) for line in whole.splitlines()]
        except BadInput as error:
            raise _unreadable(self._file, error) from error
        if torn:  # the process was killed while it added a line
            write_whole(self._file, whole.decode() + "\n" if whole else "")
        self.written = {entry.name: entry for entry in entries}

    def add(self, written: Written) -> None:
        with self._lock, self._file.open("a", encoding="utf-8") as out:
            out.write(written.model_dump_json() + "\n")
