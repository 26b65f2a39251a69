"""The Posts file: which columns are read, and in which types they may come. Everything else in a file is carried along.

The check of a file's footer (`ingest/contracts.py`), what reads it (`classify/posts/clean.py`) and the table in
docs/posts-file.md are made from this.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

Kind = Literal["whole number", "text", "date"]


class PostsColumn(NamedTuple):
    """A column that is read: its name, what it holds, whether a file may do without it, and what it is for."""

    name: str
    kind: Kind
    required: bool
    use: str


POST_COLUMNS = (
    PostsColumn("Id", "whole number", True, "identifies a post: of rows with the same Id the last counts"),
    PostsColumn("PostTypeId", "whole number", True, "1 is a question, 2 an answer; other posts are not counted"),
    PostsColumn("CreationDate", "date", True, "its date in UTC is the day on which the post counts"),
    PostsColumn("Title", "text", True, "read by the model"),
    PostsColumn("Body", "text", True, "read by the model; HTML or plain text"),
    PostsColumn("Tags", "text", False, "`<python><list>` or `|python|list|`; decides the topic of a question"),
    PostsColumn("ParentId", "whole number", False, "an answer's question; the answer takes its topic"),
)

ACCEPTED: dict[Kind, dict[str, str]] = {
    "whole number": {
        "integers": "of 8 to 64 bits, with or without a sign",
        "float, double": "when every value is whole; NaN is missing."
        " pandas turns integers with missing values into these types",
        "decimal": "when every value is whole",
        "text": "of digits: `42`, `-7`, `42.0`",
    },
    "text": {
        "string": "UTF-8, categories (dictionaries) included",
        "binary": "read as UTF-8 text",
    },
    "date": {
        "timestamp": "of any unit, with or without a time zone; without one it is UTC",
        "date": "",
        "text": "ISO 8601: `2026-11-22`, optionally followed by a space or `T` and `13:14` or `13:14:15.123`, then"
        " optionally by `Z` or an offset such as `+05:30`; without an offset it is UTC",
    },
}
"""For each kind of column the types that a file may use, and what is asked of the values."""


def columns_named(names: Iterable[str], wanted: str) -> list[str]:
    """The columns among `names` that may be the column `wanted`: that name, in whatever case."""
    return [name for name in names if name.lower() == wanted.lower()]
