"""Users.xml to Postgres: the reference tables `raw_st.users` and `raw_st.post_types`."""

from __future__ import annotations

import io
import itertools
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ingest.dump.report import DumpReport, Rejected, Stopwatch, Tell, write_rejected
from ingest.dump.rows import MOMENT, Flags, RowParser, XmlTable, read_rows
from ingest.dump.scan import row_ranges, scan_range
from ingest.dump.source import dump_file
from ingest.pgcopy import postgres_errors
from shared.errors import BadInput, Conflict

USERS_XML = "Users.xml"

USERS = XmlTable(
    root="users",
    schema=pa.schema(
        {
            "Id": pa.int32(),
            "Reputation": pa.int32(),
            "CreationDate": MOMENT,
            "DisplayName": pa.string(),
            "LastAccessDate": MOMENT,
            "WebsiteUrl": pa.string(),
            "Location": pa.string(),
            "AboutMe": pa.string(),
            "Views": pa.int32(),
            "UpVotes": pa.int32(),
            "DownVotes": pa.int32(),
            "AccountId": pa.int32(),
        }
    ),
    required=("Id", "Reputation", "CreationDate", "DisplayName", "LastAccessDate", "Views", "UpVotes", "DownVotes"),
)
"""The attributes of a user that the table has a column for; `id`, `creation_date` and so on are their names there."""

LONGEST = {"DisplayName": 40, "WebsiteUrl": 200, "Location": 100}
"""Characters that a column of the table takes, as in Stack Exchange's own schema."""

POST_TYPES: tuple[tuple[int, str], ...] = (
    (1, "Question"),
    (2, "Answer"),
    (3, "Wiki"),
    (4, "TagWikiExcerpt"),
    (5, "TagWiki"),
    (6, "ModeratorNomination"),
    (7, "WikiPlaceholder"),
    (8, "PrivilegeWiki"),
)
"""The rows (Id, Name) of Stack Exchange's PostTypes, which a dump holds in its description only."""

TABLES = """
    CREATE SCHEMA IF NOT EXISTS raw_st;
    CREATE TABLE IF NOT EXISTS raw_st.post_types (id smallint PRIMARY KEY, name varchar(50) NOT NULL);
    CREATE TABLE IF NOT EXISTS raw_st.users (
        id integer PRIMARY KEY,
        reputation integer NOT NULL,
        creation_date timestamp NOT NULL,
        display_name varchar(40) NOT NULL,
        last_access_date timestamp NOT NULL,
        website_url varchar(200),
        location varchar(100),
        about_me text,
        views integer NOT NULL,
        up_votes integer NOT NULL,
        down_votes integer NOT NULL,
        account_id integer
    )
"""

SCAN_BYTES = 16 << 20
COPY_BYTES = 1 << 16


def import_users(source: Path, connection: Any, *, rejected: Path, progress: Tell | None = None) -> DumpReport:
    """Replace the users and the post types in Postgres by those of a dump (a folder or a .7z with Users.xml).

    One transaction on a psycopg2 `connection`, which is committed: readers see the old rows until it is, and keep
    them if anything fails. Memory is constant. Users that can't be read, or that the table can't hold, go to the file
    `rejected`, one JSON object a line; a .7z is unpacked beside it.

    Raises NotFound or BadInput when the source is no dump, BadInput when two users have one Id, Conflict when the file
    changes while it is read, and what `postgres_errors` makes of the server's other answers.
    """
    started = time.monotonic()
    rejected.parent.mkdir(parents=True, exist_ok=True)
    with dump_file(source, USERS_XML, rejected.parent, progress) as xml:
        reading = _Reading(xml, progress)
        rows_out = replace_reference_tables(connection, reading.batches())
        rejected_to = write_rejected(reading.rejected, xml, rejected)
        return DumpReport(
            source=str(source),
            bytes=xml.stat().st_size,
            rows_in=reading.rows,
            rows_out=rows_out,
            rejected=len(reading.rejected),
            rejected_file=str(rejected_to) if rejected_to else None,
            not_imported=dict(reading.not_imported),
            truncated=reading.truncated,
            seconds=time.monotonic() - started,
        )


def replace_reference_tables(connection: Any, users: Iterable[pa.RecordBatch]) -> int:
    """Replace the rows of both tables, made if missing, in one transaction; returns the number of users.

    `users` has the columns of `USERS`. Raises BadInput when two users have one Id, and what `postgres_errors` makes of
    the server's other answers.
    """
    types = pa.record_batch({"id": [number for number, _ in POST_TYPES], "name": [name for _, name in POST_TYPES]})
    with postgres_errors("raw_st.users"), connection, connection.cursor() as cursor:
        cursor.execute(TABLES)
        # TRUNCATE would be faster, but shows empty tables to a transaction that took its snapshot before.
        cursor.execute("DELETE FROM raw_st.users; DELETE FROM raw_st.post_types")
        _copy(cursor, "post_types", [types])
        return _copy(cursor, "users", (batch.rename_columns(_snake_case(batch.schema)) for batch in users))


def _snake_case(schema: pa.Schema) -> list[str]:
    """Id is id, CreationDate is creation_date."""
    return [re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower() for name in schema.names]


def _copy(cursor: Any, table: str, batches: Iterable[pa.RecordBatch]) -> int:
    """COPY batches of one schema into a table; returns the number of rows."""
    waiting = iter(batches)
    first = next(waiting, None)
    if first is None:
        return 0
    text = _CsvText(itertools.chain([first], waiting))
    statement = f"COPY raw_st.{table} ({', '.join(first.schema.names)}) FROM STDIN (FORMAT csv)"
    try:
        cursor.copy_expert(statement, text, size=COPY_BYTES)
    except psycopg2.IntegrityError as error:
        raise BadInput(f"raw_st.{table} refuses the dump: {' '.join(str(error).split())}") from error
    except psycopg2.Error:
        if text.failure:
            raise text.failure from None  # psycopg2 makes a database error of it
        raise
    return int(cursor.rowcount)


class _CsvText:
    """What psycopg2 reads: batches as CSV, made one at a time. Strings stand in quotes, so '' is no NULL."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._left = memoryview(b"")
        self.failure: Exception | None = None

    def read(self, size: int) -> bytes:
        while not self._left:
            try:
                batch = next(self._batches, None)
            except Exception as error:
                self.failure = error
                raise
            if batch is None:
                return b""
            out = io.BytesIO()
            pyarrow.csv.write_csv(batch, out, pyarrow.csv.WriteOptions(include_header=False))
            self._left = memoryview(out.getvalue())
        taken, self._left = self._left[:size], self._left[size:]
        return bytes(taken)


class _Reading:
    """Users.xml as batches, and what is known of it once they were taken."""

    def __init__(self, xml: Path, tell: Tell | None) -> None:
        self._xml = xml
        self._stopwatch = Stopwatch("users", xml.stat().st_size, tell)
        self._parser = RowParser(USERS, _unfit)
        self.not_imported = self._parser.not_imported
        self.rejected: list[Rejected] = []
        self.rows = 0
        self.truncated = False

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Every user that the table can hold. Raises Conflict when the file changes meanwhile."""
        given = 0
        with self._xml.open("rb", buffering=0) as file:
            for lo, hi in row_ranges(self._xml, USERS.root, SCAN_BYTES):
                found = scan_range(self._xml, lo, hi, USERS.root, None)
                self.rejected += found.rejected
                self.rows, self.truncated = self.rows + found.rows, not found.closed
                for run in found.runs:
                    rows = read_rows(file, int(run["start"]), int(run["end"]), int(run["rows"]))
                    for batch in self._parser.parse([rows]):
                        given += batch.num_rows
                        yield batch
                self._stopwatch.advance(hi - lo)
        self.rejected += self._parser.rejected
        if self.rows != given + len(self.rejected):
            raise Conflict(f"{self._xml} held {self.rows} users, and {given} were read: it was changed meanwhile")


def _unfit(users: pa.RecordBatch) -> Iterator[tuple[Flags, str]]:
    """What the table would refuse, so that one user can't fail the COPY of all."""
    for name, longest in LONGEST.items():
        lengths = pc.utf8_length(users[name]).fill_null(0)
        yield np.asarray(lengths) > longest, f"{name} is longer than {longest} characters"
