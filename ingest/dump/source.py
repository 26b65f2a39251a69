"""Access to a dump: a folder with its XML files, or .7z archives that contain them."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ConfigDict

from ingest.dump.report import Stopwatch, Tell
from shared.documents import Record
from shared.errors import BadInput, NotFound, StackTopicsError
from shared.paths import file_day

if TYPE_CHECKING:
    from py7zr import SevenZipFile
    from py7zr.callbacks import ExtractCallback

Source = Path | Sequence[Path]
"""A folder with XML files or archives, an archive, or several of these that form one dump together."""

WORK_FOLDER = ".import-dump"
"""Holds the state of imports, and nothing else: files beside it belong to the user."""

CRC_BYTES = 1 << 20

_SITE = re.compile(r"[a-z][a-z0-9-]*(\.[a-z][a-z0-9-]*)+")
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def dump_origin(source: Source, name: str) -> Path:
    """The path of the XML file `name`, or of the archive that contains it.

    Raises NotFound when it is missing, BadInput when several places have it or when an archive can't be read.
    """
    places = [source] if isinstance(source, Path) else source
    found = [origin for place in places for origin in _origins(place, name)]
    if not found:
        raise NotFound(f"{' and '.join(map(str, places))} holds no {name}")
    if len(found) > 1:
        raise BadInput(f"{name} is in {found[0]} and in {found[1]}; import one site at a time")
    return found[0]


def _origins(place: Path, name: str) -> list[Path]:
    if not place.exists():
        raise NotFound(f"{place} is neither a folder nor a .7z file")
    if place.suffix.lower() == ".xml" and place.is_file():
        raise BadInput(f"{place} is one file of a dump: give its folder, {place.parent}")
    if (place / name).is_file():
        return [place / name]
    archives = sorted(place.glob("*.7z")) if place.is_dir() else [place]
    return [archive for archive in archives if _holds(archive, name)]


def _holds(archive: Path, name: str) -> bool:
    with _opened(archive) as opened:
        return name in opened.getnames()


class DumpIdentity(Record):
    """Identifies a dump's file and its content: a changed file has another size or time.

    `size` is in bytes, `modified` in nanoseconds since 1970.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    size: int
    modified: int


def dump_identity(origin: Path) -> DumpIdentity:
    found = origin.stat()
    return DumpIdentity(name=printable(origin.name), size=found.st_size, modified=found.st_mtime_ns)


def printable(path: Path | str) -> str:
    """The path as valid Unicode: bytes that are not UTF-8 become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def site_prefix(origin: Path, given: str | None) -> str:
    """The prefix of a dump's file names, so that two sites can share a container; may be empty.

    If none is given, it is the site, provided that the archive or the folder of the XML file has the name of a site:
    `raspberrypi.meta` for raspberrypi.meta.stackexchange.com.7z, `stackoverflow` for stackoverflow.com-Posts.7z. Raises
    BadInput for a prefix that can't be part of a blob's name, or that looks like the date of the file.
    """
    archive = origin.suffix == ".7z"
    name = re.sub(r"-[A-Z][A-Za-z]*$", "", origin.stem) if archive else origin.resolve().parent.name
    site = re.sub(r"\.(stackexchange\.com|com|net)$", "", name) if _SITE.fullmatch(name) else ""
    prefix = site if given is None else given
    epoch = datetime.fromtimestamp(0, UTC)
    if prefix and not (_PREFIX.fullmatch(prefix) and file_day(f"{prefix}-", epoch) == epoch.date()):
        raise BadInput(f"--prefix {prefix}: write letters, digits, dots and hyphens, and no date")
    return prefix


@contextmanager
def dump_file(origin: Path, name: str, work: Path, tell: Tell | None = None) -> Iterator[Path]:
    """The XML file `name` of an origin, for as long as the context lasts.

    A file in a folder is read in place. A .7z can only be unpacked from its beginning, but the import needs random
    access. So the file is unpacked into its own folder in `work`, which needs enough disk space. If the context ends
    with an error, the file stays there for a resumed import; otherwise it is removed. Raises BadInput for an archive
    that is damaged, has a password or uses an unknown compression method.
    """
    if origin.name == name:
        yield origin
        return
    file = _unpack(origin, name, work, tell)
    yield file
    discard_unpacked(origin, file)


def discard_unpacked(origin: Path, file: Path) -> None:
    """Remove the file that `dump_file` unpacked, if any: no import needs it any more."""
    if file != origin:
        file.unlink()
        file.parent.rmdir()


def _unpack(archive: Path, name: str, work: Path, tell: Tell | None) -> Path:
    with _opened(archive) as opened:
        info = opened.getinfo(name)
        folder = work / f"unpacked-{info.crc32 or 0:08x}"
        file = folder / name
        if file.is_file() and (file.stat().st_size, _crc32(file)) == (info.uncompressed, info.crc32):
            return file
        opened.extract(folder, [name], callback=_told_as(Stopwatch(f"unpacking {name}", info.uncompressed, tell)))
    return file


@contextmanager
def _opened(archive: Path) -> Iterator[SevenZipFile]:
    """An open archive. Any error becomes BadInput: py7zr raises the errors of all libraries that it unpacks with."""
    import py7zr

    try:
        with py7zr.SevenZipFile(archive) as opened:
            yield opened
    except StackTopicsError:
        raise
    except Exception as error:
        raise BadInput(f"{archive} can't be unpacked: {error or type(error).__name__}") from error


def _crc32(file: Path) -> int:
    crc = 0
    with file.open("rb") as opened:
        while chunk := opened.read(CRC_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc


def _told_as(stopwatch: Stopwatch) -> ExtractCallback:
    """py7zr's callbacks; one of them reports the number of newly unpacked bytes."""
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
