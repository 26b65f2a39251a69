"""Whether a blob is a whole file of posts yet: a file is taken only when nobody is writing it any more.

A blob trigger tells of a blob when it first exists. Writers that create a blob and fill it later (Data Lake appends,
Put Block List after an empty Put Blob, append blobs) are still at work then, and a blob that is deleted then is lost.
A Parquet file shows where it ends: its last four bytes repeat the magic of its first four (Apache Parquet format,
"File Format"; `PARE` where the footer is encrypted).
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from shared.storage import BlobVersion

MAGIC = b"PAR1"
ENDS = (MAGIC, b"PARE")
SMALLEST = 12
"""Bytes of the two magics and the footer's length."""
CHECKSUM_SUFFIX = ".crc"


def why_not_ours(version: BlobVersion) -> str | None:
    """Why a blob is no Posts file at all, by its name alone; None where it may be one.

    Markers (`_SUCCESS`, `.part-0.crc`) and all below a folder of temporary files (`_temporary/…`) are not, by the rule
    of Hadoop, Spark and Synapse that names which start with `_` or `.` are not data; nor are checksums and the blobs
    that stand for folders.
    """
    hidden = any(part.startswith(("_", ".")) for part in version.name.split("/"))
    if version.is_folder or hidden or version.name.endswith(CHECKSUM_SUFFIX):
        return "it is a marker, a folder or a temporary file of its writer"
    return None


def why_unfinished(version: BlobVersion) -> str | None:
    """Why somebody may still be writing a blob, by its properties; None where they give no reason."""
    if version.size == 0:
        return "it is empty: its writer has not begun"
    return "it is leased: its writer has not ended" if version.is_leased else None


def ends_too_early(file: BinaryIO) -> bool:
    """Whether a file starts as Parquet does but does not end so; reads eight bytes.

    A file that starts otherwise is refused by its contract: no appended bytes can make it a Posts file.
    """
    start = file.read(len(MAGIC))
    size = file.seek(0, io.SEEK_END)
    file.seek(-min(size, len(MAGIC)), io.SEEK_END)
    return MAGIC.startswith(start) and (size < SMALLEST or file.read(len(MAGIC)) not in ENDS)
