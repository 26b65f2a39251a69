"""Where a dump lies: a folder with its XML files, or a .7z that holds them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.dump.report import Stopwatch, Tell
from shared.errors import BadInput, NotFound

if TYPE_CHECKING:
    from py7zr.callbacks import ExtractCallback


def dump_origin(source: Path, name: str) -> Path:
    """The file on disk that holds `name`: itself, or the archive. Raises NotFound when there is none."""
    if source.is_dir():
        file = source / name
        if not file.is_file():
            raise NotFound(f"{source} holds no {name}")
        return file
    if not source.is_file():
        raise NotFound(f"{source} is neither a folder nor a .7z file")
    return source


@contextmanager
def dump_file(source: Path, name: str, work: Path, tell: Tell | None = None) -> Iterator[Path]:
    """The XML file `name` of the dump, for as long as the context lasts.

    A folder's file is read where it lies. A .7z can only be unpacked from its beginning, and the import reads where it
    needs to: the file is unpacked into `work` (which needs room for it), kept there if the context ends by an error so
    that a resumed import finds it, and removed at the end. Raises NotFound when there is no such file, and BadInput
    for an archive that is damaged, has a password or uses a method that is not known.
    """
    origin = dump_origin(source, name)
    if origin.name == name:
        yield origin
        return
    file = _unpack(origin, name, work, tell)
    yield file
    file.unlink()


def _unpack(archive: Path, name: str, work: Path, tell: Tell | None) -> Path:
    import py7zr
    from py7zr.exceptions import ArchiveError, PasswordRequired

    unpacked, folder = work / name, work / "unpacking"
    try:
        with py7zr.SevenZipFile(archive) as opened:
            if name not in opened.getnames():
                raise NotFound(f"{archive} holds no {name}")
            size = opened.getinfo(name).uncompressed
            if unpacked.is_file() and unpacked.stat().st_size == size:
                return unpacked
            opened.extract(folder, [name], callback=_told_as(Stopwatch(f"unpacking {name}", size, tell)))
    except (ArchiveError, PasswordRequired, EOFError) as error:
        raise BadInput(f"{archive} can't be unpacked: {error or type(error).__name__}") from error
    (folder / name).replace(unpacked)
    folder.rmdir()
    return unpacked


def _told_as(stopwatch: Stopwatch) -> ExtractCallback:
    """py7zr's callbacks, of which one tells how many bytes more are unpacked."""
    from py7zr.callbacks import ExtractCallback

    class Told(ExtractCallback):
        def report_start_preparation(self) -> None: ...
        def report_start(self, processing_file_path: str, processing_bytes: str) -> None: ...
        def report_end(self, processing_file_path: str, wrote_bytes: str) -> None: ...
        def report_postprocess(self) -> None: ...
        def report_warning(self, message: str) -> None: ...
        def report_update(self, decompressed_bytes: str) -> None:
            stopwatch.advance(int(decompressed_bytes))

    return Told()
