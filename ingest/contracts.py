"""The contract for a Posts file, checked by its Parquet footer alone.

Only columns that the pipeline reads are checked (`shared.posts.POSTS`). The footer does not say whether a double or a
text holds whole numbers, or whether a text holds dates: the job checks that, and also sends such a file to quarantine.
"""

from __future__ import annotations

from typing import BinaryIO

from ingest.footer import Footer, read_footer
from ingest.prepare import LOOKED_AT, header_of
from shared.errors import BadInput
from shared.posts import POST_COLUMNS, Kind, PostsColumn, columns_named

MAX_FOOTER_BYTES = 8 << 20
"""A footer is read at once and takes several times its size in memory. It has about 2 KB a row group of 16 columns."""
MAGIC, ENCRYPTED = b"PAR1", b"PARE"


def check_posts(file: BinaryIO, name: str) -> Footer:
    """Read the footer of `file` by ranges and check it against the contract.

    Raises BadInput that names the file as `name`, with all faults at once: not Parquet, encrypted, missing columns,
    wrong types, absurd sizes.
    """
    data, begins = _footer_of(file, name)
    try:
        footer = read_footer(data, begins)
    except BadInput as error:
        raise BadInput(f"{name} is not a Parquet file that can be read: {error}") from error
    if faults := [fault for column in POST_COLUMNS if (fault := _fault(column, footer.columns))]:
        raise BadInput(f"{name} breaks the contract for Posts: {'; '.join(faults)}")
    return footer


def _footer_of(file: BinaryIO, name: str) -> tuple[bytes, int]:
    """The bytes of the footer and their offset in the file; the last eight bytes of the file are read first."""
    size = file.seek(0, 2)
    if size < 2 * len(MAGIC) + 4:
        raise BadInput(f"{name} is not a Parquet file: it has {size} bytes")
    file.seek(-8, 2)
    tail = file.read(8)
    footer = int.from_bytes(tail[:4], "little")
    if tail[4:] == ENCRYPTED:
        raise BadInput(f"{name} is an encrypted Parquet file: deliver it unencrypted")
    if tail[4:] != MAGIC:
        raise BadInput(_no_parquet(file, name, tail[4:]))
    if footer > min(size - 12, MAX_FOOTER_BYTES):
        raise BadInput(
            f"{name} declares a footer of {footer} bytes, has {size} bytes in all, and at most {MAX_FOOTER_BYTES} bytes"
            " of footer are read"
        )
    begins = file.seek(-8 - footer, 2)
    return file.read(footer), begins


def _no_parquet(file: BinaryIO, name: str, end: bytes) -> str:
    """Why a file without the end mark of Parquet is refused; for a CSV file of posts, how to upload it."""
    file.seek(0)
    try:
        header_of(file.read(LOOKED_AT), name)
    except BadInput:
        return f"{name} is not a Parquet file: it ends in {end!r}, not in PAR1"
    return f"{name} is a CSV file, not Parquet: `python manage.py drop FILE.csv` converts and uploads it"


def _fault(column: PostsColumn, columns: list[tuple[str, str]]) -> str | None:
    names = columns_named((name for name, _ in columns), column.name)
    if not names:
        return f"column {column.name} is missing" if column.required else None
    if len(names) > 1:
        return f"columns {' and '.join(names)} differ only in case: remove the one that is not {column.name}"
    kind = dict(columns)[names[0]]
    if kind not in _TYPES[column.kind]:
        return f"column {names[0]} is {kind} and must be {_WORDS[column.kind]}"
    if kind == "null" and column.name in _COUNTED:
        return f"column {names[0]} has no value in any row"
    return None


_COUNTED = {"Id", "PostTypeId"}
"""Posts cannot be counted if one of these has no value in any row; for other columns that is unusual, but allowed."""
_MADE_OF_NULLS = {"null", "float", "double"}
"""Types of a column without values: some writers write NaN, and statistics cannot tell it from a number."""
_TYPES: dict[Kind, set[str]] = {
    "whole number": {"int32", "uint32", "int64", "uint64", "decimal", "string"} | _MADE_OF_NULLS,
    "text": {"string", "binary"} | _MADE_OF_NULLS,
    "date": {"timestamp", "date", "string"} | _MADE_OF_NULLS,
}
_WORDS: dict[Kind, str] = {
    "whole number": "a whole number: an integer, or a double, decimal or text that holds one",
    "text": "text (string)",
    "date": "a timestamp, a date or ISO 8601 text",
}
