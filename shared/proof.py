"""Copies that are proved: made by the lake, then compared with what they were made from.

How much is read again is a policy (LANDING_PROOF_SHARE); docs/delivery.md says what proves what.
"""

from __future__ import annotations

import hashlib
import logging
import math
import operator
from collections.abc import Iterator
from functools import reduce
from typing import TYPE_CHECKING

from shared.errors import TransientError
from shared.storage import COPY_RANGE, NOTHING_KNOWN, BlockSum, Copied, RangedReader, crc64, crc64_of

if TYPE_CHECKING:
    from shared.lake import Lake
    from shared.storage import BlobVersion, SourceBlob

log = logging.getLogger("stacktopics.shared.proof")


def copy_in(lake: Lake, source: SourceBlob, version: BlobVersion, path: str, share: float) -> Copied:
    """Copy that version of a source blob into the lake, and prove its length and `share` of its content.

    Returns what is known of the copy. Raises Conflict when the blob has another content by then, TransientError when
    the copy differs from the source.
    """
    copied = lake.copy_in(source, version, path)
    if not same_content(source.open(version), lake.open(path), version.md5, share, copied):
        raise TransientError(f"{path} differs from {source.what}; copy it again")
    return copied


def copy(lake: Lake, source: str, target: str, share: float, known: Copied = NOTHING_KNOWN) -> None:
    """Copy a file within the lake, and prove its length and content.

    If the sums of the source's blocks are `known`, and the storage service gives those of the target's, these prove
    every byte; else `share` of it is read. Raises NotFound, TransientError when the copy differs from the source.
    """
    expected = crc64_of(known.sums)
    copied = lake.copy(source, target, with_sums=expected is not None)
    stored = crc64_of(copied.sums) if expected is not None else None
    if stored is not None and stored != expected:
        raise TransientError(f"{target} differs from {source} as it was written; copy it again")
    if stored is None:
        with lake.open(source) as original, lake.open(target) as made:
            if not same_content(original, made, None, share, copied):
                raise TransientError(f"{target} differs from {source}; copy it again")


def same_content(
    original: RangedReader, copy: RangedReader, md5: bytes | None, share: float, copied: Copied = NOTHING_KNOWN
) -> bool:
    """Whether `copy` holds what `original` does, in constant memory.

    Bytes that passed through us with the original's MD5 prove what was read, and the sums of the blocks what was
    stored: nothing more is read. If the MD5 differs, everything is read. With `share` 1 and the original's MD5 the copy
    alone is read, if it has that MD5. With the sums of the copy's blocks the original alone is read and compared with
    them. Else ranges of 4 MB are read from both. Of blocks and ranges `share` are read, evenly spaced, at least the
    last one (a Parquet file's footer), unless `share` is 0.
    """
    size = original.size()
    if size != copy.size():
        return False
    if copied.md5 is not None and md5 is not None:
        if copied.md5 == md5 and copied.sums:
            return True
        if copied.md5 != md5:  # the read failed, or the source has a wrong MD5: services do not check it
            log.warning("the MD5 of %s differs from the one it was stored with: all of it is compared", original.name)
            share, md5 = 1, None
    if share == 1 and md5 is not None:
        hashed = hashlib.md5(usedforsecurity=False)
        for data in _pieces(copy, 0, size):
            hashed.update(data)
        if hashed.digest() == md5:
            return True  # else the original may have been stored with a wrong one
    parts = copied.sums or [
        BlockSum(start, min(COPY_RANGE, size - start), None) for start in range(0, size, COPY_RANGE)
    ]
    checked = math.ceil(len(parts) * share)
    return all(
        _is_stored(original, copy, parts[len(parts) - 1 - number * len(parts) // checked]) for number in range(checked)
    )


def _is_stored(original: RangedReader, copy: RangedReader, part: BlockSum) -> bool:
    pieces = _pieces(original, part.offset, part.length)
    if part.crc64 is not None:
        return reduce(lambda before, data: crc64(data, before), pieces, 0) == part.crc64
    return all(map(operator.eq, pieces, _pieces(copy, part.offset, part.length)))


def _pieces(reader: RangedReader, offset: int, length: int) -> Iterator[bytes]:
    for start in range(offset, offset + length, COPY_RANGE):
        reader.seek(start)
        yield reader.read(min(COPY_RANGE, offset + length - start))
