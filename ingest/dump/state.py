"""What imports keep between their starts, in a folder each: whose it is, which files it wrote, and that one is at work.

A folder lies in `.import-dump` of the target folder or of the folder for work, one for each site and target.
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
"""The target of an import whose state lies in it, wherever the folder is moved."""

if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> None:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def make_folder(folder: Path) -> Path:
    """The folder, made if missing. Raises BadInput when a file is in its place."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next(place for place in (folder, *folder.parents) if place.exists() or place.is_symlink())
        raise BadInput(f"{file} is a file: name a folder for --out and --work") from error
    return folder


def write_whole(file: Path, text: str) -> None:
    """Write a file that is never seen half written, whenever this process dies."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


@contextmanager
def only_one(state: Path) -> Iterator[None]:
    """Hold a state folder while the context lasts, or until this process dies.

    Raises Conflict while another import holds it, BadInput where its file system knows no locks.
    """
    with (state / LOCK).open("a") as file:
        try:
            _lock(file.fileno())
        except (BlockingIOError, PermissionError) as error:
            raise Conflict(
                f"another import is at work in {state}: wait until it has ended, then give the command again"
            ) from error
        except OSError as error:
            raise BadInput(f"{file.name} can't be locked ({error}): name a folder on a local disk by --work") from error
        yield


def is_held(state: Path) -> bool:
    """Whether an import is at work there."""
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
    """An import of posts: `origin` identifies the file that was given and its date, `content` the XML in it."""

    model_config = ConfigDict(frozen=True)

    origin: DumpIdentity
    by: str
    target: str
    prefix: str
    content: Content

    @classmethod
    def is_of(cls, state: Path, origin: DumpIdentity, by: str, target: str) -> bool:
        """Whether a state folder is that of an import of just this file, its date included."""
        saved = cls.of(state)
        return saved is not None and (saved.origin, saved.by, saved.target) == (origin, by, target)

    @classmethod
    def of(cls, state: Path) -> Self | None:
        """Whose a state folder is; None when nobody's who has written a file.

        Raises BadInput when that can't be read.
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
    """Whether an import has put files in their place."""
    journal = state / JOURNAL
    return journal.is_file() and journal.stat().st_size > 0


def refuse_another_unit(state: Path, by: str, target: str) -> None:
    """Raises BadInput when the folder is that of an import by another unit: the files of both would count."""
    saved = Identity.of(state)
    if saved and has_begun(state) and saved.by != by:
        raise BadInput(
            f"{saved.origin.name} was imported into {target} by {saved.by}: by {by} too, its posts would be counted"
            f" twice; go on with --by {saved.by}, or first {_taking_back(state, target)}"
        )


def refuse_a_second_copy(
    xml: Path, mine: Identity, state: Path, places: Iterable[tuple[Path, str]], target: str
) -> None:
    """Raises BadInput when one of the `places`, with the name that `target` has there, knows an import of the same
    posts, or of the first of them, into files of other names, which would count as well; Conflict when that one is at
    work."""
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
                    f" --prefix {shlex.quote(mine.prefix)} --by {mine.by} too, they would be counted twice; go on with"
                    f" {as_before}, or first {_taking_back(file.parent, target)}"
                )
            if is_held(file.parent):
                raise Conflict(f"another import of the same posts into {target} is at work, in {file.parent}")


def _taking_back(state: Path, target: str) -> str:
    return (
        f"take back the files that {state / JOURNAL} names (remove them from {target}; for those that were counted"
        f" already upload files of the same names without rows) and remove {state}"
    )


# ---- the journal --------------------------------------------------------------------------------------------------


class Written(Record):
    """A file that was written; `bytes` is 0 where all its rows were rejected and no file was made."""

    model_config = ConfigDict(frozen=True)

    name: str
    rows: int
    bytes: int
    rejected: int
    not_imported: dict[str, int]


class Journal:
    """Which files were written: one JSON line each, added when the file is in its place; the last of a name counts.

    Raises BadInput when it can't be read.
    """

    def __init__(self, state: Path) -> None:
        self._file = state / JOURNAL
        self._lock = threading.Lock()
        try:
            whole, _, torn = (self._file.read_bytes() if self._file.exists() else b"").rpartition(b"\n")
            entries = [decode(Written, line, JOURNAL) for line in whole.splitlines()]
        except BadInput as error:
            raise _unreadable(self._file, error) from error
        if torn:  # by a kill while a line was added
            write_whole(self._file, whole.decode() + "\n" if whole else "")
        self.written = {entry.name: entry for entry in entries}

    def add(self, written: Written) -> None:
        with self._lock, self._file.open("a", encoding="utf-8") as out:
            out.write(written.model_dump_json() + "\n")
