"""A CSV export of posts as the Stack Exchange Data Explorer writes it, and the usual conversions to Parquet.

The Data Explorer (its `CsvResult.cs`) writes the names of the columns without quotes, joined by commas. Then it writes
each row with every value in quotes, quotes inside a value doubled, NULL as an empty value, dates to the second, and
CRLF between rows, but not after the last. A line break inside a body is a single line feed.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

COLUMNS = (
    "Id",
    "PostTypeId",
    "AcceptedAnswerId",
    "ParentId",
    "CreationDate",
    "DeletionDate",
    "Score",
    "ViewCount",
    "Body",
    "OwnerUserId",
    "OwnerDisplayName",
    "LastEditorUserId",
    "LastEditDate",
    "LastActivityDate",
    "Title",
    "Tags",
    "AnswerCount",
    "CommentCount",
    "FavoriteCount",
    "ClosedDate",
    "CommunityOwnedDate",
    "ContentLicense",
)
"""The columns of `SELECT * FROM Posts`, without those that are always empty in the Data Explorer."""
DATES = tuple(column for column in COLUMNS if column.endswith("Date"))

Post = dict[str, Any]


def question(number: int, **values: Any) -> Post:
    """A question as a row of the Data Explorer: every column, None for NULL; `values` replace what is made up."""
    asked = datetime(2026, 11, 22, 13, 14, 15) + timedelta(minutes=number)
    post = {
        "Id": number,
        "PostTypeId": 1,
        "CreationDate": asked,
        "Score": number % 7 - 1,
        "ViewCount": 40 + number,
        "Body": f"<p>How do I sort list {number}, by \"key\"?</p>\n\n<pre><code>sorted(x, key='a')\n</code></pre>\n",
        "OwnerUserId": 1000 + number,
        "LastActivityDate": asked + timedelta(hours=2),
        "Title": f'Sort list {number} by "key", naïvely — 東京',
        "Tags": "<python><list>",
        "AnswerCount": 1,
        "CommentCount": number % 3,
        "ContentLicense": "CC BY-SA 4.0",
    }
    return dict.fromkeys(COLUMNS) | post | values


def answer(number: int, parent: int, **values: Any) -> Post:
    """An answer to the question `parent`: it has no title, tags, views or answers; `values` replace what is made up."""
    empty = dict.fromkeys(("Title", "Tags", "ViewCount", "AnswerCount"))
    said = f"<p>Like so, {number}:</p>\n<code>x.sort()</code>\n"
    return question(number) | empty | {"PostTypeId": 2, "ParentId": parent, "Body": said} | values


def posts(questions: int = 10) -> list[Post]:
    """Questions, each followed by its answer. Among them are an accepted answer, an edit, a closed question and
    owners without an account."""
    made = []
    for number in range(1, 2 * questions, 2):
        some: Post = {}
        if number % 3 == 0:
            some["AcceptedAnswerId"] = number + 1
        if number % 5 == 0:
            edited = datetime(2026, 11, 23, 1, 2, 3)
            some |= {"LastEditorUserId": 77, "LastEditDate": edited, "ClosedDate": edited}
        if number % 7 == 0:
            some |= {"OwnerUserId": None, "OwnerDisplayName": f"user{number}"}
        made += [question(number, **some), answer(number + 1, number)]
    return made


def explorer_csv(rows: Iterable[Mapping[str, Any]], columns: Iterable[str] = COLUMNS) -> bytes:
    """The file that the Data Explorer's link "Download CSV" gives for these rows."""
    columns = tuple(columns)
    lines = [",".join(columns), *(",".join(f'"{_value(row[column])}"' for column in columns) for row in rows)]
    return "\r\n".join(lines).encode()


def _value(value: Any) -> str:
    if value is None:
        return ""
    return value.strftime("%Y-%m-%d %H:%M:%S") if isinstance(value, datetime) else str(value).replace('"', '""')


# ---- CSV to Parquet, by the usual tools ----------------------------------------------------------------------------


def by_pandas(csv: Path, parquet: Path) -> None:
    """A column of whole numbers with a missing value becomes double, and dates stay text."""
    import pandas as pd

    pd.read_csv(csv).to_parquet(parquet)


def by_pandas_with_dates(csv: Path, parquet: Path) -> None:
    """Dates become timestamps."""
    import pandas as pd

    dates = [column for column in pd.read_csv(csv, nrows=0).columns if column in DATES]
    pd.read_csv(csv, parse_dates=dates).to_parquet(parquet)


def by_pandas_with_nulls(csv: Path, parquet: Path) -> None:
    """A column of whole numbers with a missing value keeps its type."""
    import pandas as pd

    pd.read_csv(csv).convert_dtypes().to_parquet(parquet)


def by_polars(csv: Path, parquet: Path) -> None:
    """A column of numbers or dates with a missing value becomes text, because polars reads `""` as text."""
    import polars as pl

    pl.read_csv(csv, try_parse_dates=True).write_parquet(parquet)


def by_duckdb(csv: Path, parquet: Path) -> None:
    """DuckDB's sniffer finds the types."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute(f"COPY (FROM read_csv('{csv}')) TO '{parquet}' (FORMAT parquet)")


CONVERSIONS: dict[str, Callable[[Path, Path], None]] = {
    "pandas": by_pandas,
    "pandas-dates": by_pandas_with_dates,
    "pandas-nulls": by_pandas_with_nulls,
    "polars": by_polars,
    "duckdb": by_duckdb,
}
"""By name: functions that read a CSV file and write a Parquet file, with the defaults of their library."""
