"""What a Posts file must look like, checked against its Parquet footer alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO, Literal

from ingest.footer import Footer, read_footer
from shared.errors import BadInput


@dataclass(frozen=True)
class Column:
    """A column of a contract: the kinds of physical type that carry it, and whether a file may leave it out."""

    name: str
    kind: str
    required: bool = False


POSTS = (
    Column("Id", "integer", required=True),
    Column("PostTypeId", "integer", required=True),
    Column("CreationDate", "moment", required=True),
    Column("Body", "text", required=True),
    Column("Title", "text", required=True),
    Column("ParentId", "integer"),
    Column("Tags", "text"),
    Column("AcceptedAnswerId", "integer"),
    Column("Score", "integer"),
    Column("ViewCount", "integer"),
    Column("OwnerUserId", "integer"),
    Column("LastActivityDate", "moment"),
    Column("AnswerCount", "integer"),
    Column("CommentCount", "integer"),
    Column("FavoriteCount", "integer"),
    Column("ClosedDate", "moment"),
)
"""The Posts table of Stack Exchange; a file may carry further columns, which are kept and not read."""

MAX_FOOTER_BYTES = 8 << 20
"""A footer is read whole and takes several times its size in memory; it has about 2 KB a row group of 16 columns."""
MAGIC = b"PAR1"


def check_posts(file: BinaryIO, name: str, unknown_columns: Literal["keep", "refuse"] = "keep") -> Footer:
    """Read the footer of `file` by ranges and hold it against the contract.

    Raises BadInput with every fault of `name` at once: not Parquet, missing columns, wrong types, absurd sizes, and
    columns the contract does not know where those are refused.
    """
    data, begins = _footer_of(file, name)
    try:
        footer = read_footer(data, begins)
    except BadInput as error:
        raise BadInput(f"{name} is not a Parquet file that can be read: {error}") from error
    faults = [fault for column in POSTS if (fault := _fault(column, footer.columns))]
    if unknown_columns == "refuse":
        strangers = sorted({stranger for stranger, _ in footer.columns} - {column.name for column in POSTS})
        faults += [f"column {stranger} is unknown (POSTS_UNKNOWN_COLUMNS is refuse)" for stranger in strangers]
    if faults:
        raise BadInput(f"{name} breaks the contract for Posts: {'; '.join(faults)}")
    return footer


def _footer_of(file: BinaryIO, name: str) -> tuple[bytes, int]:
    """The bytes of the footer and where in the file they begin; the last eight bytes of the file are read first."""
    size = file.seek(0, 2)
    if size < 2 * len(MAGIC) + 4:
        raise BadInput(f"{name} is not a Parquet file: it has {size} bytes")
    file.seek(-8, 2)
    tail = file.read(8)
    footer = int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC:
        raise BadInput(f"{name} is not a Parquet file: it ends in {tail[4:]!r}, not in PAR1")
    if footer > min(size - 12, MAX_FOOTER_BYTES):
        raise BadInput(
            f"{name} declares a footer of {footer} bytes, has {size} in all, and at most {MAX_FOOTER_BYTES} are read"
        )
    begins = file.seek(-8 - footer, 2)
    return file.read(footer), begins


def _fault(column: Column, columns: list[tuple[str, str]]) -> str | None:
    found = [kind for name, kind in columns if name == column.name]
    if not found:
        return f"column {column.name} is missing" if column.required else None
    if len(found) > 1:
        return f"column {column.name} stands there {len(found)} times"
    if found[0] not in _TYPES[column.kind] or (column.name in _COUNTED and found[0] == "null"):
        return f"column {column.name} is {found[0]} and must be {_WORDS[column.kind]}"
    return None


_COUNTED = {"Id", "PostTypeId"}
"""Without a value in any row no post can be counted; of other columns that is odd, but possible."""
_TYPES = {
    "integer": {"int32", "uint32", "int64", "null"},
    "text": {"string", "null"},
    "moment": {"timestamp", "date", "string", "null"},
}
_WORDS = {
    "integer": "a whole number (of at most 64 bits with a sign, 32 without)",
    "text": "text (string)",
    "moment": "a timestamp, a date or ISO 8601 text",
}
