"""What a Posts file must look like, checked against its Parquet footer alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from shared.errors import BadInput

if TYPE_CHECKING:
    import pyarrow as pa


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

MAX_COLUMNS = 1_000
MAX_ROW_GROUPS = 100_000
MAX_FOOTER_BYTES = 64 << 20
"""A footer is read into memory whole; that of 100,000 row groups of 16 columns is about 60 MB."""
MAGIC = b"PAR1"


@dataclass(frozen=True)
class PostsFooter:
    """What the footer says of a file that keeps the contract."""

    rows: int
    row_groups: int


def check_posts(file: BinaryIO, name: str, unknown_columns: Literal["keep", "refuse"] = "keep") -> PostsFooter:
    """Read the footer of `file` by ranges and hold it against the contract.

    Raises BadInput with every fault of `name` at once: not Parquet, missing columns, wrong types, absurd sizes, and
    columns the contract does not know where those are refused.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    room = _check_ends(file, name)
    try:
        metadata = pq.read_metadata(file)
        schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{name} is not a Parquet file: {error}") from error
    if metadata.num_columns > MAX_COLUMNS or metadata.num_row_groups > MAX_ROW_GROUPS:
        raise BadInput(
            f"{name} declares {metadata.num_columns} columns in {metadata.num_row_groups} row groups;"
            f" at most {MAX_COLUMNS} and {MAX_ROW_GROUPS} are read"
        )
    if metadata.num_rows < 0 or not 0 <= _stored(metadata) <= room:
        raise BadInput(f"{name} declares {_stored(metadata)} bytes of columns and has {room}")
    faults = [fault for column in POSTS if (fault := _fault(column, schema))]
    if unknown_columns == "refuse":
        strangers = sorted(set(schema.names) - {column.name for column in POSTS})
        faults += [f"column {stranger} is unknown (POSTS_UNKNOWN_COLUMNS is refuse)" for stranger in strangers]
    if faults:
        raise BadInput(f"{name} breaks the contract for Posts: {'; '.join(faults)}")
    return PostsFooter(metadata.num_rows, metadata.num_row_groups)


def _check_ends(file: BinaryIO, name: str) -> int:
    """Look at the last eight bytes, before the rest is believed; returns how many bytes stand before the footer."""
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
    file.seek(0)
    return size - footer - 8


def _stored(metadata: Any) -> int:
    """Bytes that the columns of all row groups are said to take."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return sum(group.column(place).total_compressed_size for group in groups for place in range(group.num_columns))


def _fault(column: Column, schema: pa.Schema) -> str | None:
    found = [field for field in schema if field.name == column.name]
    if not found:
        return f"column {column.name} is missing" if column.required else None
    if len(found) > 1:
        return f"column {column.name} stands there {len(found)} times"
    if not _carries(column.kind, found[0].type):
        return f"column {column.name} is {found[0].type} and must be {_WORDS[column.kind]}"
    return None


_WORDS = {
    "integer": "a whole number (int8 to int64)",
    "text": "text (string, large_string or a dictionary of them)",
    "moment": "a timestamp, a date or ISO 8601 text",
}


def _carries(kind: str, physical: Any) -> bool:
    """Whether a physical type can carry a kind; an all-null column carries anything."""
    import pyarrow as pa

    value = physical.value_type if pa.types.is_dictionary(physical) else physical
    text = pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)
    if pa.types.is_null(value):
        return True
    if kind == "integer":
        return bool(pa.types.is_integer(value) and not pa.types.is_uint64(value))
    if kind == "text":
        return bool(text)
    return bool(text or pa.types.is_timestamp(value) or pa.types.is_date(value))
