"""Users.xml to Postgres: the reference tables `raw_st.users` and `raw_st.post_types`."""

from __future__ import annotations

import io
import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from psycopg2.extensions import encodings
from pydantic import ConfigDict

from ingest.dump.report import KEPT_BYTES, DumpReport, Rejected, Spool, Stopwatch, Tell, write_rejected
from ingest.dump.rows import MOMENT, Check, RowParser, XmlTable, read_rows
from ingest.dump.scan import MAX_ROW, Index, scan_file
from ingest.dump.source import WORK_FOLDER, DumpIdentity, Source, dump_file, dump_identity, dump_origin, printable
from ingest.dump.state import make_folder, only_one, write_whole
from ingest.postgres.errors import postgres_errors
from shared.arrays import Flags
from shared.documents import Record, decode
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
"""The attributes of a user for which the table has a column, named `id`, `creation_date` and so on."""

LONGEST = {"DisplayName": 40, "WebsiteUrl": 200, "Location": 100}
"""Maximum characters of a column, as in Stack Exchange's own schema."""

TEXTS = [field.name for field in USERS.schema if field.type == pa.string()]

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
"""The rows (Id, Name) of Stack Exchange's PostTypes; a dump has them only in its description."""

TABLES = {
    "post_types": "id smallint PRIMARY KEY, name varchar(50) NOT NULL",
    "users": """
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
    """,
}
COLUMNS = """
    SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped
"""
WRITING = (
    "USAGE on the schema raw_st, SELECT, INSERT and DELETE on its tables users and post_types, and TEMPORARY on the"
    " database; CREATE on the schema to make tables that are missing, CREATE on the database to make the schema"
)

INCOMING = "CREATE TEMPORARY TABLE incoming_users (LIKE raw_st.users, place bigint NOT NULL) ON COMMIT DROP"
LATER = """
    SELECT place FROM (SELECT place, row_number() OVER (PARTITION BY id ORDER BY place) AS n FROM incoming_users) AS x
    WHERE n > 1
"""
LOADED = "SELECT count(*), count(*) FILTER (WHERE xmin::text = %s) FROM raw_st.users"
"""The number of users, and the number of those that a given transaction wrote and nobody has changed since."""

MAX_SHRINK = 0.1
LATER_AT_ONCE = 10_000
_A_ROW = re.compile(rb"<row[^<]*/>")
COPY_BYTES = 1 << 16


def import_users(
    source: Source,
    connection: Any,
    *,
    rejected: Path,
    progress: Tell | None = None,
    work: Path | None = None,
    max_shrink: float = MAX_SHRINK,
    force: bool = False,
) -> DumpReport:
    """Replace the users and the post types in Postgres by those of a dump (a folder or archives with Users.xml).

    It runs and commits one transaction on a psycopg2 `connection`: readers see the old rows until the commit, and keep
    them if anything fails. So an interrupted import starts from the beginning. If the table still holds exactly what an
    earlier call loaded from the same file, nothing is done and the first report is returned. Memory is constant. A user
    goes to the file `rejected`, one JSON object a line, if it can't be read, if the table or the database's encoding
    can't hold it, or if an earlier user has the same Id. State is in `.import-dump/users` of `work`; without `work`, of
    the folder of `rejected`.

    Without `force`, a file is refused with BadInput and numbers if it is truncated, has no users, or has fewer users
    than the table by more than the share `max_shrink`. Also raises NotFound or BadInput when the source is no dump,
    BadInput when the table has other columns, Conflict when the file changes while it is read or another import holds
    the state, and what `postgres_errors` raises.
    """
    started = time.monotonic()
    origin = dump_origin(source, USERS_XML)
    make_folder(rejected.parent)
    state = make_folder((work or rejected.parent) / WORK_FOLDER / "users")
    with only_one(state):
        with _errors():
            connection.set_client_encoding("UTF8")
        server = connection.info
        identity = _Identity(**dump_identity(origin).model_dump(), database=(server.host, server.port, server.dbname))
        record = state / "loaded.json"
        if earlier := _report_if_loaded(record, identity, connection):
            return earlier
        with dump_file(origin, USERS_XML, state, progress) as xml:
            report, transaction = _load(
                xml, origin, connection, state, rejected, progress, None if force else max_shrink
            )
        report = report.model_copy(update={"seconds": time.monotonic() - started})
        write_whole(record, _Loaded(identity=identity, transaction=transaction, report=report).model_dump_json())
    return report


def _load(
    xml: Path, origin: Path, connection: Any, state: Path, rejected: Path, tell: Tell | None, max_shrink: float | None
) -> tuple[DumpReport, str]:
    """Replace the users by those of a file; if `max_shrink` is None, the file is not checked for loss. Returns the
    report, without `seconds`, and the id of the transaction."""
    found, spooled = state / "rejected-by-scan.spool", state / "rejected.spool"
    index = scan_file(xml, USERS.root, None, rejected=found, spread=_one_by_one, tell=tell)
    if max_shrink is not None and (index.truncated or not index.rows):
        write_rejected([found], xml, rejected)
        why = f"ends without </{USERS.root}>, after {index.rows:,} rows" if index.truncated else "has no users"
        raise BadInput(f"{origin}: {USERS_XML} {why}; {_WAY_OUT}")
    with _errors(), connection, connection.cursor() as cursor:
        _make_tables(cursor)
        cursor.execute(INCOMING)
        with Spool(spooled) as spool:
            reading = _Reading(xml, index, spool, tell, _unfit_for(connection))
            rows_out = _copy(cursor, "incoming_users", _named(reading.batches()))
            rows_out -= _set_aside_later(connection, xml, spool)
        rejected_to = write_rejected([found, spooled], xml, rejected)
        if max_shrink is not None:
            _check_shrink(cursor, origin, rows_out, max_shrink)
        transaction = _replace(cursor)
    report = DumpReport(
        source=printable(origin),
        bytes=xml.stat().st_size,
        rows_in=index.rows,
        rows_out=rows_out,
        rejected=index.rejected + spool.count,
        rejected_file=printable(rejected_to) if rejected_to else None,
        not_imported=dict(reading.not_imported),
        truncated=index.truncated,
        seconds=0.0,
    )
    return report, transaction


def replace_reference_tables(connection: Any, users: Iterable[pa.RecordBatch]) -> int:
    """Replace the rows of both tables in one transaction, creating missing tables; returns the number of users.

    `users` has the columns of `USERS`. Raises BadInput when two users have the same Id, and what `postgres_errors`
    raises.
    """
    with _errors(), connection, connection.cursor() as cursor:
        _make_tables(cursor)
        _replace_post_types(cursor)
        cursor.execute("DELETE FROM raw_st.users")
        return _copy(cursor, "raw_st.users", _named(users))


def _errors() -> AbstractContextManager[None]:
    return postgres_errors("raw_st.users", WRITING)


def _make_tables(cursor: Any) -> None:
    """Create only what is missing: the server requires the right to create even for what exists. Raises BadInput for
    tables that lack columns."""
    cursor.execute("SELECT to_regnamespace('raw_st')")
    if cursor.fetchone() == (None,):
        cursor.execute("CREATE SCHEMA IF NOT EXISTS raw_st")
    needed = {"post_types": ["id", "name"], "users": _snake_case(USERS.schema)}
    for table, columns in TABLES.items():
        cursor.execute(COLUMNS, [f"raw_st.{table}"])
        found = {name for (name,) in cursor.fetchall()}
        if not found:
            cursor.execute(f"CREATE TABLE IF NOT EXISTS raw_st.{table} ({columns})")
        elif lost := [name for name in needed[table] if name not in found]:
            raise BadInput(
                f"raw_st.{table} has no column {' or '.join(lost)}: add it, or rename the table, and the import"
                " creates a new one"
            )


_WAY_OUT = "raw_st.users is unchanged; --force-users loads the file without this check"


def _one_by_one(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    return ((item, function(item)) for item in items)


def _replace(cursor: Any) -> str:
    """Replace the old users by the incoming ones, the first of each Id; returns the id of the transaction."""
    columns = ", ".join(_snake_case(USERS.schema))
    _replace_post_types(cursor)
    cursor.execute(
        "DELETE FROM raw_st.users;"
        f"INSERT INTO raw_st.users ({columns})"
        f" SELECT DISTINCT ON (id) {columns} FROM incoming_users ORDER BY id, place"
    )
    cursor.execute("SELECT pg_current_xact_id()::xid::text")
    return str(cursor.fetchone()[0])


def _replace_post_types(cursor: Any) -> None:
    types = pa.record_batch({"id": [number for number, _ in POST_TYPES], "name": [name for _, name in POST_TYPES]})
    # TRUNCATE would be faster, but a transaction with an older snapshot would see empty tables.
    cursor.execute("DELETE FROM raw_st.post_types")
    _copy(cursor, "raw_st.post_types", [types])


def _set_aside_later(connection: Any, xml: Path, spool: Spool) -> int:
    """Reject users whose Id an earlier user has; returns their number."""
    number = 0
    with connection.cursor("later") as cursor, xml.open("rb") as file:
        cursor.itersize = LATER_AT_ONCE
        cursor.execute(LATER)
        for (place,) in cursor:
            spool.add([Rejected(place, _row_length(file, place), "an earlier user has this Id")])
            number += 1
    return number


def _row_length(file: BinaryIO, place: int) -> int:
    for size in (KEPT_BYTES, MAX_ROW):
        file.seek(place)
        if row := _A_ROW.match(file.read(size)):
            return len(row[0])
    raise Conflict(f"{file.name} was changed while it was read")


def _check_shrink(cursor: Any, origin: Path, users: int, max_shrink: float) -> None:
    cursor.execute("SELECT count(*) FROM raw_st.users")
    (before,) = cursor.fetchone()
    if not users or users < before * (1 - max_shrink):
        raise BadInput(
            f"{origin}: {USERS_XML} has {users:,} valid users, and raw_st.users has {before:,}"
            f" (REFERENCE_MAX_SHRINK is {max_shrink}); {_WAY_OUT}"
        )


class _Identity(DumpIdentity):
    """The file that was loaded, and the host, port and name of the database."""

    database: tuple[str | None, int, str]


class _Loaded(Record):
    """Which transaction loaded which file, with its report."""

    model_config = ConfigDict(frozen=True)

    identity: _Identity
    transaction: str
    report: DumpReport


def _report_if_loaded(record: Path, identity: _Identity, connection: Any) -> DumpReport | None:
    """The report of an earlier import of the same file, if the table holds its users and no others."""
    try:
        saved = decode(_Loaded, record.read_bytes(), str(record))
    except (FileNotFoundError, BadInput):  # the users are loaded again
        return None
    if saved.identity != identity:
        return None
    with _errors(), connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('raw_st.users')")
        if cursor.fetchone() == (None,):
            return None
        cursor.execute(LOADED, [saved.transaction])
        if cursor.fetchone() != (saved.report.rows_out, saved.report.rows_out):
            return None
    return saved.report.model_copy(update={"resumed_rows": saved.report.rows_out})


def _named(users: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    return (batch.rename_columns(_snake_case(batch.schema)) for batch in users)


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
    statement = f"COPY {table} ({', '.join(first.schema.names)}) FROM STDIN (FORMAT csv)"
    try:
        cursor.copy_expert(statement, text, size=COPY_BYTES)
    except psycopg2.IntegrityError as error:
        raise BadInput(f"{table} refuses the dump: {' '.join(str(error).split())}") from error
    except psycopg2.Error:
        if text.failure:
            raise text.failure from None  # psycopg2 turned it into a database error
        raise
    return int(cursor.rowcount)


class _CsvText:
    """A file for psycopg2: batches as CSV, converted one at a time. Strings are quoted, so an empty one is not NULL."""

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
    """Users.xml as batches; `not_imported` is complete once all were read."""

    def __init__(self, xml: Path, index: Index, spool: Spool, tell: Tell | None, unfit: Check) -> None:
        self._xml = xml
        self._index = index
        self._spool = spool
        self._stopwatch = Stopwatch("users", int((index.runs["end"] - index.runs["start"]).sum()), tell)
        self._parser = RowParser(USERS, unfit)
        self.not_imported = self._parser.not_imported

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Every user that the table can hold, and its offset. Raises Conflict when the file changes meanwhile."""
        given = 0
        with self._xml.open("rb", buffering=0) as file:
            for run in self._index.runs:
                rows = read_rows(file, int(run["start"]), int(run["end"]), int(run["rows"]))
                for batch, places in self._parser.parse_with_places([rows]):
                    given += batch.num_rows
                    yield batch.append_column("Place", pa.array(places))
                self._spool.add(self._parser.rejected)
                self._parser.rejected.clear()
                self._stopwatch.advance(len(rows.data))
        if self._index.rows != given + self._index.rejected + self._spool.count:
            raise Conflict(f"{self._xml} had {self._index.rows} users, but {given} were read: it changed meanwhile")


def _unfit_for(connection: Any) -> Check:
    """A check for what the table would refuse, so that one user can't make the whole COPY fail."""
    encoding = connection.get_parameter_status("server_encoding")
    codec = None if encoding in ("UTF8", "SQL_ASCII") else encodings.get(encoding)

    def unfit(users: pa.RecordBatch) -> Iterator[tuple[Flags, str]]:
        for name, longest in LONGEST.items():
            lengths = pc.utf8_length(users[name]).fill_null(0)
            yield np.asarray(lengths) > longest, f"{name} is longer than {longest} characters"
        for name in TEXTS if codec else ():
            words = f"{name} has characters that the encoding of the database, {encoding}, does not have"
            yield _beyond(users[name], str(codec)), words

    return unfit


def _beyond(texts: pa.StringArray, codec: str) -> Flags:
    """Which texts can't be written in an encoding [n]."""
    beyond = np.array(pc.invert(pc.string_is_ascii(texts).fill_null(True)))
    for row in np.flatnonzero(beyond).tolist():
        with suppress(UnicodeEncodeError):
            texts[row].as_py().encode(codec)
            beyond[row] = False
    return beyond
