"""The data lake: one port, kept by an ADLS Gen2 file system (`AdlsLake`) and by a plain folder (`FolderLake`).

No reader ever sees half a file. Documents (`put`) are one atomic call. Data files (`create`) grow under a
temporary name and appear by one rename. Conditions are ETags: a failed one raises Conflict and changes nothing.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from shared import paths
from shared.copying import blocks_from_url, copy_blob
from shared.errors import Conflict, NotFound
from shared.storage import (
    COPY_RANGE,
    NOTHING_KNOWN,
    BlobVersion,
    Copied,
    RangedReader,
    SourceBlob,
    StorageBlob,
    error_code,
    storage_errors,
)

if TYPE_CHECKING:
    from azure.storage.blob import ContainerClient
    from azure.storage.filedatalake import FileSystemClient

UPLOAD_BLOCK = 4 << 20


@dataclass(frozen=True)
class FileInfo:
    """A file of the lake: path relative to its root, size in bytes, ETag, and when it was last changed (UTC)."""

    path: str
    size: int
    etag: str
    last_modified: datetime


class Lake(ABC):
    """What the product asks of a lake. Paths are relative, with `/`. Raises what `shared.errors` names."""

    @abstractmethod
    def stat(self, path: str) -> FileInfo | None:
        """The file at `path`, or None."""

    @abstractmethod
    def read_with_etag(self, path: str) -> tuple[bytes, str]:
        """The whole of a small file and the ETag it had. Raises NotFound."""

    @abstractmethod
    def put(self, path: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """Write a small file in one atomic call; returns its ETag. Conflict when the condition does not hold."""

    @abstractmethod
    def open(self, path: str) -> RangedReader:
        """A seekable reader, bound to the content that is there now. Raises NotFound."""

    @abstractmethod
    def create(self, path: str) -> Any:
        """`with lake.create(path) as out: out.write(…)`: streams to a temporary name, appears whole or not at all."""

    @abstractmethod
    def rename(self, source: str, target: str) -> None:
        """Move a file onto `target` in one step, replacing what is there. Raises NotFound."""

    def list(self, prefix: str, at_most: int | None = None) -> Iterator[FileInfo]:
        """Every finished file below the folder `prefix`, or the first so many, by name.

        Nothing when there is no such folder.
        """
        return islice((file for file in self._walk(prefix, at_most) if _finished(file.path)), at_most)

    def unfinished(self, prefix: str) -> Iterator[FileInfo]:
        """The files below `prefix` that `create` is writing, or was when its process died."""
        return (file for file in self._walk(prefix) if not _finished(file.path))

    @abstractmethod
    def _walk(self, prefix: str, page: int | None = None) -> Iterator[FileInfo]:
        """Every file below the folder `prefix`, by name; asked for by so many at a time."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Delete a file; one that is not there is fine."""

    @abstractmethod
    def copy_in(self, source: SourceBlob, version: BlobVersion, path: str) -> Copied:
        """Copy that version of a source blob to `path`; returns what is known of the copy.

        Raises Conflict when the blob has another content by then. `shared.proof` compares.
        """

    @abstractmethod
    def copy(self, source: str, target: str, *, with_sums: bool = False) -> Copied:
        """Copy a file within the lake; returns what is known of the copy.

        `with_sums` prefers a way by which the storage service gives the sums of what it stored. Raises NotFound.
        """

    def read(self, path: str) -> bytes:
        """The whole of a small file. Raises NotFound."""
        return self.read_with_etag(path)[0]


class AdlsLake(Lake):
    """An ADLS Gen2 file system: data files through its dfs endpoint, documents through its blob endpoint.

    A document is one Put Blob, which is atomic and takes ETag conditions; the dfs endpoint would need
    create, append, flush and rename for the same (four calls in place of one).
    """

    def __init__(self, files: FileSystemClient, blobs: ContainerClient) -> None:
        self._files, self._blobs = files, blobs

    def stat(self, path: str) -> FileInfo | None:
        try:
            with storage_errors(path):
                found = self._blobs.get_blob_client(path).get_blob_properties()
        except NotFound:
            return None
        return FileInfo(path, found.size, found.etag, found.last_modified)

    def read_with_etag(self, path: str) -> tuple[bytes, str]:
        with storage_errors(path):
            download = self._blobs.get_blob_client(path).download_blob()
            return download.readall(), download.properties.etag

    def put(self, path: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        from azure.core import MatchConditions

        condition: dict[str, Any] = {"overwrite": not if_absent}
        if if_match is not None:
            condition |= {"etag": if_match, "match_condition": MatchConditions.IfNotModified}
        with storage_errors(path):
            return cast(str, self._blobs.get_blob_client(path).upload_blob(data, **condition)["etag"])

    def open(self, path: str) -> RangedReader:
        from azure.core import MatchConditions

        info = self.stat(path)
        if info is None:
            raise NotFound(f"{path} does not exist")
        client = self._blobs.get_blob_client(path)

        def fetch(offset: int, length: int) -> bytes:
            with storage_errors(path):
                return client.download_blob(
                    offset, length, etag=info.etag, match_condition=MatchConditions.IfNotModified
                ).readall()

        return RangedReader(fetch, info.size, path)

    @contextmanager
    def create(self, path: str) -> Iterator[BinaryIO]:
        temporary = _temporary_name(path)
        client = self._files.get_file_client(temporary)
        try:
            with storage_errors(temporary):
                client.create_file()
            upload = _Upload(client, temporary)
            yield cast(BinaryIO, upload)
            self._rename(temporary, path, upload.finish())
        except BaseException:
            with suppress(NotFound), storage_errors(temporary):
                client.delete_file()
            raise

    def rename(self, source: str, target: str) -> None:
        info = self.stat(source)
        if info is None:
            raise NotFound(f"{source} does not exist")
        self._rename(source, target, info.etag)

    def _rename(self, source: str, target: str, etag: str) -> None:
        """Move the file that has this ETag, which a rename keeps."""
        client = self._files.get_file_client(source)
        try:
            with storage_errors(source):
                client.rename_file(f"{client.file_system_name}/{target}")
        except NotFound as error:
            if error_code(error) == "RenameDestinationParentPathNotFound":
                with storage_errors(target):
                    self._files.create_directory(target.rpartition("/")[0])
                self._rename(source, target, etag)
                return
            moved = self.stat(target)  # the answer may have been lost, and the SDK have asked again
            if moved is None or moved.etag != etag:
                raise

    def _walk(self, prefix: str, page: int | None = None) -> Iterator[FileInfo]:
        try:
            with storage_errors(prefix):
                for found in self._files.get_paths(prefix, recursive=True, max_results=page):
                    if not found.is_directory:
                        changed = found.last_modified.replace(tzinfo=UTC)  # a listing's dates are UTC without a zone
                        yield FileInfo(found.name, found.content_length, _quoted(found.etag), changed)
        except NotFound:
            return

    def delete(self, path: str) -> None:
        with suppress(NotFound), storage_errors(path):
            self._files.get_file_client(path).delete_file()

    def copy_in(self, source: SourceBlob, version: BlobVersion, path: str) -> Copied:
        if not isinstance(source, StorageBlob):
            raise TypeError(f"{source.what} is no blob of Azure Storage")
        return copy_blob(source, version, self._blobs.get_blob_client(path))

    def copy(self, source: str, target: str, *, with_sums: bool = False) -> Copied:
        blob = StorageBlob(self._blobs.get_blob_client(source))
        version = blob.version()
        made = self._blobs.get_blob_client(target)
        copied = blocks_from_url(blob, version, made) if with_sums else None
        return copied or copy_blob(blob, version, made)


class _Upload(io.RawIOBase):
    """Appends to a dfs file in blocks; nothing is readable before `finish` flushes."""

    def __init__(self, client: Any, name: str) -> None:
        super().__init__()
        self._client, self._name, self._pending, self._sent = client, name, bytearray(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._pending += data
        while len(self._pending) >= UPLOAD_BLOCK:
            self._append(UPLOAD_BLOCK)
        return len(data)

    def tell(self) -> int:
        return self._sent + len(self._pending)

    def _append(self, length: int) -> None:
        block = bytes(memoryview(self._pending)[:length])
        with storage_errors(self._name):
            self._client.append_data(block, offset=self._sent, length=length)
        del self._pending[:length]
        self._sent += length

    def finish(self) -> str:
        """Make what was written readable; returns the file's ETag."""
        if self._pending:
            self._append(len(self._pending))
        with storage_errors(self._name):
            return _quoted(self._client.flush_data(self._sent)["etag"])


class FolderLake(Lake):
    """A lake in a folder: `/Volumes/…` on a cluster, a temporary folder in a test.

    Conditions hold between the threads of one process; files appear whole for every reader.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.RLock()

    def stat(self, path: str) -> FileInfo | None:
        try:
            found = (self.root / path).stat()
        except FileNotFoundError:
            return None
        etag = f'"{found.st_mtime_ns:x}-{found.st_ino:x}-{found.st_size:x}"'
        return FileInfo(path, found.st_size, etag, datetime.fromtimestamp(found.st_mtime, UTC))

    def read_with_etag(self, path: str) -> tuple[bytes, str]:
        with self._lock:
            info = self.stat(path)
            if info is None:
                raise NotFound(f"{path} does not exist")
            return (self.root / path).read_bytes(), info.etag

    def put(self, path: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        with self._lock:
            info = self.stat(path)
            if if_absent and info is not None:
                raise Conflict(f"{path} exists already")
            if if_match is not None and (info is None or info.etag != if_match):
                raise Conflict(f"{path} was changed by somebody else")
            with self.create(path) as out:
                out.write(data)
            return cast(FileInfo, self.stat(path)).etag

    def open(self, path: str) -> RangedReader:
        try:
            file = (self.root / path).open("rb")
        except FileNotFoundError as error:
            raise NotFound(f"{path} does not exist") from error

        def fetch(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        return RangedReader(fetch, os.fstat(file.fileno()).st_size, path, file.close)

    @contextmanager
    def create(self, path: str) -> Iterator[BinaryIO]:
        temporary = self.root / _temporary_name(path)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as out:
                yield out
            temporary.replace(self.root / path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def rename(self, source: str, target: str) -> None:
        (self.root / target).parent.mkdir(parents=True, exist_ok=True)
        try:
            (self.root / source).replace(self.root / target)
        except FileNotFoundError as error:
            raise NotFound(f"{source} does not exist") from error

    def _walk(self, prefix: str, page: int | None = None) -> Iterator[FileInfo]:
        del page  # a folder is listed at once
        found = []
        for folder, _, names in os.walk(self.root / prefix, followlinks=True):
            base = Path(folder).relative_to(self.root)
            found += [(base / name).as_posix() for name in names]
        for path in sorted(found):
            if info := self.stat(path):
                yield info

    def delete(self, path: str) -> None:
        (self.root / path).unlink(missing_ok=True)

    def copy_in(self, source: SourceBlob, version: BlobVersion, path: str) -> Copied:
        hashed = hashlib.md5(usedforsecurity=False)
        with self.create(path) as out, source.open(version) as data:
            while piece := data.read(COPY_RANGE):
                out.write(piece)
                hashed.update(piece)
        return Copied(md5=hashed.digest())

    def copy(self, source: str, target: str, *, with_sums: bool = False) -> Copied:
        del with_sums  # a folder stores no sums
        with self.open(source) as data, self.create(target) as out:
            shutil.copyfileobj(data, out, COPY_RANGE)
        return NOTHING_KNOWN


def digest(data: bytes) -> str:
    """The content hash used in names: 16 hexadecimal digits of SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def _quoted(etag: str) -> str:
    return '"' + etag.strip('"') + '"'  # the dfs listing leaves the quotes off, every other call has them


def _temporary_name(path: str) -> str:
    folder, _, name = path.rpartition("/")
    temporary = f"{paths.TEMPORARY_PREFIX}{uuid.uuid4().hex}-{name}"
    return f"{folder}/{temporary}" if folder else temporary


def _finished(path: str) -> bool:
    return not path.rpartition("/")[2].startswith(paths.TEMPORARY_PREFIX)
