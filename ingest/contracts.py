"""What a Posts file must look like, checked against its Parquet footer alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

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


@dataclass(frozen=True)
class PostsFooter:
    """What the footer says of a file that keeps the contract."""

    rows: int
    row_groups: int


def check_posts(file: BinaryIO, name: str) -> PostsFooter:
    """Read the footer of `file` by ranges and hold it against the contract.

    Raises BadInput with every fault of `name` at once: not Parquet, missing columns, wrong types, absurd sizes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(file)
        schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, EOFError) as error:
        raise BadInput(f"{name} is not a Parquet file: {error}") from error
    if metadata.num_columns > MAX_COLUMNS or metadata.num_row_groups > MAX_ROW_GROUPS:
        raise BadInput(
            f"{name} declares {metadata.num_columns} columns in {metadata.num_row_groups} row groups;"
            f" at most {MAX_COLUMNS} and {MAX_ROW_GROUPS} are read"
        )
    faults = [fault for column in POSTS if (fault := _fault(column, schema))]
    if faults:
        raise BadInput(f"{name} breaks the contract for Posts: {'; '.join(faults)}")
    return PostsFooter(metadata.num_rows, metadata.num_row_groups)


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
