"""The weekly copy of the reference tables, from a real Postgres to a lake in a folder."""

import io
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from azure.storage.blob import ContainerClient
from azure.storage.filedatalake import FileSystemClient
from tenacity import wait_none

from cli import check
from ingest.postgres import checksum, wire
from ingest.postgres import connect as connecting
from ingest.reference import copy as reference
from ingest.reference import proof, snapshot
from ingest.reference.copy import copy_reference
from ingest.reference.records import ReferenceRecord
from ingest.reference.snapshot import read_snapshot
from localcloud import azurite
from localcloud.cloud import LocalCloud
from shared import paths
from shared.errors import AccessDenied, BadInput, NotFound, SettingsError, StackTopicsError, TransientError
from shared.lake import AdlsLake, FolderLake
from shared.services import Services
from shared.storage import RangedReader
from tests.localcloud_fixtures import CREDENTIAL
from tests.postgres_fixtures import Database
from tests.world import settings

MONDAY = datetime(2026, 11, 16, 2, tzinfo=UTC)
WEEK = "2026-W47"
TABLES = """
    CREATE TABLE raw.post_types (id smallint, name varchar(50));
    CREATE TABLE raw.users (id int, name text, about text, born date, secret text);
    INSERT INTO raw.post_types VALUES (1, 'Question'), (2, 'Answer');
    INSERT INTO raw.users SELECT i, 'user ' || i, CASE i % 3 WHEN 0 THEN '' WHEN 1 THEN 'hello' END, '2026-01-01', 'x'
    FROM generate_series(1, 1000) i
"""


class Company:
    """The tables in Postgres, the lake, and the copy between them."""

    def __init__(self, database: Database, root: Path) -> None:
        self.database = database
        self.lake: Any = FolderLake(root)
        database.run(TABLES)

    def copy(self, weeks_later: int = 0, **changes: Any) -> ReferenceRecord:
        return copy_reference(self.services(**changes), MONDAY + timedelta(weeks=weeks_later))

    def services(self, **changes: Any) -> Services:
        values: dict[str, Any] = {
            "reference_schema": self.database.schema,
            "reference_exclude_columns": "users.secret",
            "reference_attempts": 1,
        }
        services = Services().replace(settings=settings(**values | changes), lake=self.lake)
        services.postgres = self.database.connect  # type: ignore[method-assign]
        return services

    def table(self, name: str = "users") -> pa.Table:
        return pq.read_table(self.lake.root / paths.reference(name))

    def checksum(self, table: str) -> int:
        """The checksum of the published file, computed on this side."""
        with closing(self.database.connect()) as connection:
            plan = reference.plan_of(connection, self.services().settings, table)
        return proof.file_checksum(self.lake, paths.reference(table), plan)[1]

    def record(self, week: str = WEEK) -> ReferenceRecord:
        return ReferenceRecord.model_validate_json(self.lake.read(paths.reference_record(week)))

    def files(self) -> dict[str, bytes]:
        """All files of the lake except the records."""
        found = (path.relative_to(self.lake.root).as_posix() for path in self.lake.root.rglob("*") if path.is_file())
        return {path: (self.lake.root / path).read_bytes() for path in found if not path.startswith("runs/")}


@pytest.fixture
def company(database: Database, tmp_path: Path) -> Company:
    return Company(database, tmp_path)


def test_both_tables_arrive_with_a_record(company: Company) -> None:
    record = company.copy()

    assert company.table("post_types").to_pylist() == [{"id": 1, "name": "Question"}, {"id": 2, "name": "Answer"}]
    users = company.table()
    assert users.schema.names == ["id", "name", "about", "born"]
    assert users["id"].to_pylist() == list(range(1, 1001))
    assert users["about"].to_pylist() == [["", "hello", None][i % 3] for i in range(1, 1001)]
    assert company.files().keys() == {paths.reference("users"), paths.reference("post_types")}
    assert company.record() == record
    assert (record.week, record.state, record.reason) == (WEEK, "published", None)
    written = record.tables["users"]
    assert written.rows == 1000
    assert written.bytes == (company.lake.root / paths.reference("users")).stat().st_size
    assert written.columns == {"id": "int32", "name": "string", "about": "string", "born": "date32[day]"}
    assert written.checksum is not None
    assert int(written.checksum, 16) == company.checksum("users")


def test_running_twice_gives_the_same_lake(company: Company) -> None:
    company.copy()
    before = company.files()
    company.copy()
    assert company.files() == before


def test_earlier_snapshots_are_kept_for_the_set_number_of_weeks(company: Company) -> None:
    for week in range(5):
        company.copy(weeks_later=week, reference_keep_weeks=2)
        company.database.run(f"INSERT INTO raw.users (id) VALUES ({5000 + week})")
    folder = company.lake.root / "reference/users/previous"
    kept = {file.stem: pq.read_metadata(file).num_rows for file in folder.iterdir()}
    assert kept == {"2026-W49": 1002, "2026-W50": 1003}
    assert company.table().num_rows == 1004
    company.copy(weeks_later=4, reference_keep_weeks=0)
    assert not list(folder.iterdir())


def test_weeks_without_a_copy_count_towards_the_kept_weeks(company: Company) -> None:
    for week in (0, 1, 7, 8):  # from 2026-W47; the year has 53 weeks
        company.copy(weeks_later=week, reference_keep_weeks=2)
    kept = {file.stem for file in (company.lake.root / "reference/users/previous").iterdir()}
    assert kept == {"2027-W01"}
    company.copy(weeks_later=12, reference_keep_weeks=3)
    assert not list((company.lake.root / "reference/users/previous").iterdir())


def test_both_tables_are_of_the_same_snapshot(company: Company) -> None:
    class BusyLake(FolderLake):
        def create(self, path: str) -> Any:
            company.database.run(
                "INSERT INTO raw.post_types VALUES (9, 'late'); INSERT INTO raw.users VALUES (9, 'late')"
            )
            return super().create(path)

    company.lake = BusyLake(company.lake.root)
    company.copy(reference_tables="users,post_types")
    assert (company.table().num_rows, company.table("post_types").num_rows) == (1000, 2)
    company.copy(reference_tables="post_types,users")
    # Writes of the first copy's records have added rows, too.
    assert (company.table().num_rows, company.table("post_types").num_rows) == (1004, 6)


def spoil_born(company: Company) -> None:
    company.database.run("UPDATE raw.users SET born = 'infinity' WHERE id > 990")


def empty(company: Company) -> None:
    company.database.run("DELETE FROM raw.users")


def shrink(company: Company) -> None:
    company.database.run("DELETE FROM raw.users WHERE id > 899")


def drop(company: Company) -> None:
    company.database.run("DROP TABLE raw.users")


@pytest.mark.parametrize(
    ("happens", "error", "state", "said"),
    [
        (spoil_born, BadInput, "refused", "10 in column born: infinite dates (with REFERENCE_INFINITY=null"),
        (empty, BadInput, "refused", "users is empty; the lake keeps 1000 rows; if that is right, name users in"),
        (shrink, BadInput, "refused", "users shrank from 1000 to 899 rows, by more than 10%"),
        (drop, NotFound, "failed", "users does not exist"),
    ],
)
def test_a_refused_or_failed_copy_leaves_the_lake_unchanged(
    company: Company, happens: Callable[[Company], None], error: type[StackTopicsError], state: str, said: str
) -> None:
    company.copy()
    before = company.files()
    company.database.run("INSERT INTO raw.post_types VALUES (3, 'Wiki')")
    happens(company)
    with pytest.raises(error) as raised:
        company.copy(weeks_later=1, reference_tables="post_types,users")
    assert said in str(raised.value)
    assert company.files() == before
    record = company.record("2026-W48")
    assert (record.state, record.reason, record.tables) == (state, str(raised.value), {})


def test_a_table_may_shrink_by_the_set_share(company: Company) -> None:
    company.copy()
    company.database.run("DELETE FROM raw.users WHERE id > 900")
    company.copy()
    company.database.run("DELETE FROM raw.users WHERE id > 1")
    company.copy(reference_max_shrink=1)
    assert company.table().num_rows == 1


def test_the_error_of_a_damaged_snapshot_says_what_to_do(company: Company) -> None:
    company.copy()
    company.copy(weeks_later=1)
    published, before = company.lake.root / paths.reference("users"), paths.reference_previous("users", WEEK)
    for damage in (b"garbage", b"", published.read_bytes()[:-1], b"PAR1" + b"\xff" * 40 + b"\x28\0\0\0PAR1"):
        published.write_bytes(damage)
        files = company.files()
        with pytest.raises(BadInput) as refused:
            company.copy(weeks_later=2)
        assert str(refused.value).startswith("reference/users/users.parquet cannot be read as a Parquet file: ")
        assert "; delete it, or put one of reference/users/previous in its place, then start" in str(refused.value)
        record = company.record("2026-W49")
        assert (record.state, record.reason) == ("refused", str(refused.value))
        assert company.files() == files
    company.lake.copy(before, paths.reference("users"))
    shrink(company)
    with pytest.raises(BadInput, match="shrank from 1000 to 899 rows"):
        company.copy(weeks_later=2)
    published.unlink()
    assert company.copy(weeks_later=2).tables["users"].rows == 899


def test_a_first_copy_of_an_empty_table_is_refused(company: Company) -> None:
    empty(company)
    with pytest.raises(BadInput, match="is empty; the lake keeps no rows"):
        company.copy()
    assert company.files() == {}


def test_an_empty_table_is_published_only_if_a_setting_allows_it(company: Company) -> None:
    company.copy()
    empty(company)
    company.database.run("INSERT INTO raw.post_types VALUES (3, 'Wiki')")
    with pytest.raises(BadInput, match="users is empty"):
        company.copy(weeks_later=1, reference_allow_empty="post_types", reference_max_shrink=1)
    record = company.copy(weeks_later=1, reference_allow_empty="users")
    assert (record.tables["users"].rows, company.table().num_rows, company.table("post_types").num_rows) == (0, 0, 3)
    assert company.table().schema.names == ["id", "name", "about", "born"]
    company.database.run("INSERT INTO raw.users (id) VALUES (1)")
    company.copy(weeks_later=2)
    assert company.table().num_rows == 1
    with pytest.raises(SettingsError, match="REFERENCE_ALLOW_EMPTY: user names no table"):
        company.copy(reference_allow_empty="user")


def test_the_primary_key_is_the_key_unless_a_setting_names_another(company: Company) -> None:
    company.database.run("ALTER TABLE raw.post_types ADD PRIMARY KEY (id)")
    tables = company.copy(reference_keys="users.id, users.name").tables
    assert {name: table.key for name, table in tables.items()} == {"post_types": ["id"], "users": ["id", "name"]}
    company.database.run("ALTER TABLE raw.users ADD PRIMARY KEY (id)")
    # Without a column of the key there is no key.
    assert company.copy(reference_exclude_columns="users.id").tables["users"].key == []


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        ("UPDATE raw.users SET id = 7 WHERE id IN (8, 9)", "(id) is not a key: 0 rows have NULL in it, 2 rows repeat"),
        ("UPDATE raw.users SET id = NULL WHERE id IN (8, 9, 10)", "(id) is not a key: 3 rows have NULL in it, 0 rows"),
    ],
)
def test_the_refusal_of_a_duplicate_or_null_key_has_the_numbers(company: Company, happens: str, said: str) -> None:
    company.copy(reference_keys="users.id")
    before = company.files()
    company.database.run(happens)
    with pytest.raises(BadInput) as refused:
        company.copy(reference_keys="users.id")
    assert f"{company.database.schema}.users: {said}" in str(refused.value)
    assert company.files() == before
    assert company.record().state == "refused"


def test_a_key_of_unknown_columns_is_refused(company: Company) -> None:
    for key in ("users.Id", "users.secret"):
        with pytest.raises(BadInput, match=r"has no columns \['(Id|secret)'\] among those that are copied"):
            company.copy(reference_keys=key)
    with pytest.raises(SettingsError, match=r"REFERENCE_KEYS: user\.id names no table"):
        company.copy(reference_keys="user.id")


CHANGE = """
    ALTER TABLE raw.users DROP COLUMN about; ALTER TABLE raw.users ADD COLUMN likes int;
    ALTER TABLE raw.users ALTER COLUMN id TYPE bigint
"""


def test_changed_columns_are_reported(company: Company) -> None:
    first = company.copy().tables["users"]
    assert (first.added, first.dropped, first.retyped) == ([], [], [])
    company.database.run(CHANGE)
    changed = company.copy().tables["users"]
    assert (changed.added, changed.dropped, changed.retyped) == (["likes"], ["about"], ["id: integer -> bigint"])
    assert company.table().schema.names == ["id", "name", "born", "likes"]


def test_a_frozen_schema_refuses_changed_columns(company: Company) -> None:
    company.copy(reference_schema_policy="freeze")
    before = company.files()
    company.database.run(CHANGE)
    with pytest.raises(BadInput, match=r"added \['likes'\], dropped \['about'\], retyped \['id: integer -> bigint'\]"):
        company.copy(reference_schema_policy="freeze")
    assert company.files() == before


ALIKE = {"about": ("text", "jsonb", "to_jsonb(about)"), "name": ("text", "character varying(99)", "name")}


@pytest.mark.parametrize("column", ALIKE)
def test_a_new_postgres_type_is_reported_even_if_the_arrow_type_is_the_same(
    company: Company, column: str, caplog: pytest.LogCaptureFixture
) -> None:
    company.copy()
    was, now, using = ALIKE[column]
    company.database.run(f"ALTER TABLE raw.users ALTER COLUMN {column} TYPE {now} USING {using}")
    with pytest.raises(BadInput, match="while REFERENCE_SCHEMA_POLICY is freeze") as refused:
        company.copy(reference_schema_policy="freeze")
    assert f"{column}: {was} -> {now}" in str(refused.value)
    record = company.copy()
    assert record.tables["users"].retyped == [f"{column}: {was} -> {now}"]
    assert f"users changed: added [], dropped [], retyped ['{column}: {was} -> {now}']" in caplog.text
    assert record.changes == [f"users: added [], dropped [], retyped ['{column}: {was} -> {now}']"]
    assert company.copy(weeks_later=1, reference_schema_policy="freeze").changes == []


def test_a_snapshot_without_declared_types_is_compared_by_its_arrow_types(company: Company) -> None:
    company.copy()
    path = company.lake.root / paths.reference("users")
    old = pq.read_table(path)
    pq.write_table(old.cast(pa.schema([pa.field(field.name, field.type) for field in old.schema])), path)
    assert company.copy(reference_schema_policy="freeze").changes == []


def test_values_that_a_setting_replaces_by_null_are_counted_and_verified(company: Company) -> None:
    spoil_born(company)
    record = company.copy(reference_infinity="null")
    assert record.tables["users"].nulled == {"born: infinity": 10}
    assert company.table()["born"].null_count == 10


Batches = Iterable[pa.RecordBatch]


def one_value_wrong(batches: Batches) -> Batches:
    for batch in batches:
        if "about" not in batch.schema.names:
            yield batch
            continue
        about = pc.if_else(pc.equal(batch["id"], 500), "a flipped bit", batch["about"])
        yield batch.set_column(2, "about", about)


def one_row_lost(batches: Batches) -> Batches:
    for batch in batches:
        yield batch.slice(1)


def two_values_swapped(batches: Batches) -> Batches:
    for batch in batches:
        yield batch.set_column(0, "id", batch["id"].take(pa.array([1, 0, *range(2, batch.num_rows)])))


@pytest.mark.parametrize("damage", [one_value_wrong, one_row_lost, two_values_swapped])
def test_the_checksum_detects_damage_during_the_copy(
    company: Company, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Batches], Batches]
) -> None:
    company.copy()
    before = company.files()
    intact = snapshot.write_parquet
    monkeypatch.setattr(reference, "write_parquet", lambda batches, *rest: intact(damage(batches), *rest))
    with pytest.raises(TransientError, match=r"users: the server has 1000 rows with checksum .* were written"):
        company.copy()
    assert company.files() == before
    if damage is one_row_lost:
        with pytest.raises(TransientError, match="but 999 rows"):
            company.copy(reference_proof="rows")


@pytest.mark.parametrize("proof", ["checksum", "rows"])
def test_a_file_that_was_damaged_during_the_copy_is_copied_again(
    company: Company, monkeypatch: pytest.MonkeyPatch, proof: str
) -> None:
    class DamagingLake(FolderLake):
        written = 0

        @contextmanager
        def create(self, path: str) -> Iterator[Any]:
            with super().create(path) as out:
                yield out
                self.written += snapshot.INCOMING in path
                if self.written == 1:
                    out.truncate(out.tell() // 2)

    monkeypatch.setattr(reference, "BACK_OFF", wait_none())
    company.lake = DamagingLake(company.lake.root)
    with pytest.raises(
        TransientError, match=rf"users/{snapshot.INCOMING}\w+ cannot be read as a Parquet file: .*; copy it again"
    ):
        company.copy(reference_proof=proof)
    company.lake = DamagingLake(company.lake.root)
    assert company.copy(reference_proof=proof, reference_attempts=2).state == "published"


def test_a_lake_that_fails_during_a_copy_leaves_no_thread_and_no_file(company: Company) -> None:
    class FullLake(FolderLake):
        @contextmanager
        def create(self, path: str) -> Iterator[Any]:
            with super().create(path) as out:
                yield LimitedFile(out)

    class LimitedFile(io.RawIOBase):
        def __init__(self, out: BinaryIO) -> None:
            self.out = out

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            if self.out.tell() > 1_000_000:
                raise TransientError("the service is busy")
            return self.out.write(data)

        def tell(self) -> int:
            return self.out.tell()

    company.database.run("INSERT INTO raw.users SELECT i, md5(i::text) FROM generate_series(1, 500000) i")
    company.lake = FullLake(company.lake.root)
    threads = threading.active_count()
    with pytest.raises(TransientError, match="the service is busy"):
        company.copy()
    assert threading.active_count() == threads
    assert company.files() == {}


def test_a_setting_reduces_the_verification_to_the_number_of_rows(
    company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(proof, "server_checksum")
    assert company.copy(reference_proof="rows").tables["users"].checksum is None
    assert company.table().num_rows == 1000


def test_a_transient_error_is_retried(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "BACK_OFF", wait_none())
    services, tries = company.services(reference_attempts=3), []

    def postgres() -> Any:
        tries.append(1)
        if len(tries) < 3:
            raise TransientError("no route to host")
        return company.database.connect()

    services.postgres = postgres  # type: ignore[method-assign]
    assert copy_reference(services, MONDAY).state == "published"
    tries.clear()
    services = company.services(reference_attempts=2)
    services.postgres = postgres  # type: ignore[method-assign]
    with pytest.raises(TransientError, match="no route to host"):
        copy_reference(services, MONDAY + timedelta(weeks=1))
    assert company.record("2026-W48").state == "failed"


def test_all_tables_and_attempts_share_one_deadline(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the test's own clock, writing a table takes 50 of the 80 seconds for both tables. Then no time is left for the
    verification of the second table, or for a second attempt."""
    monkeypatch.setattr(reference, "BACK_OFF", wait_none())
    company.database.run("""
        CREATE FUNCTION raw.slow() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1 FROM pg_sleep(0.05)';
        CREATE VIEW raw.a AS SELECT raw.slow() AS id; CREATE VIEW raw.b AS SELECT raw.slow() AS id
    """)
    tables: dict[str, Any] = {"reference_tables": "a,b", "reference_exclude_columns": (), "reference_attempts": 3}
    services, tries, limits = company.services(**tables, reference_deadline_seconds=80), [], []
    now, limit_statements, write_parquet = 1000.0, connecting.limit_statements, snapshot.write_parquet

    def limiting(connection: Any, seconds: float) -> None:
        limits.append(seconds)
        limit_statements(connection, seconds)

    def writing(*given: Any) -> None:
        nonlocal now
        write_parquet(*given)
        now += 50

    monkeypatch.setattr(reference, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(reference, "limit_statements", limiting)
    monkeypatch.setattr(reference, "write_parquet", writing)

    def postgres() -> Any:
        tries.append(1)
        return company.database.connect()

    services.postgres = postgres  # type: ignore[method-assign]
    with pytest.raises(TransientError, match=r"\.b: .*REFERENCE_DEADLINE_SECONDS"):
        copy_reference(services, MONDAY)
    assert limits == [80, 80, 30, 30, 30, -20]
    assert (len(tries), company.files(), company.record().state) == (1, {}, "failed")
    assert company.copy(**tables, reference_deadline_seconds=120).state == "published"


def test_a_copy_that_the_server_ends_is_retried(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend dies once while it sends rows."""
    monkeypatch.setattr(reference, "BACK_OFF", wait_none())
    company.database.run("INSERT INTO raw.users SELECT i, md5(i::text) FROM generate_series(1001, 400000) i")
    services, backends = company.services(reference_attempts=2), []

    def postgres() -> Any:
        connection = company.database.connect()
        backends.append(connection.info.backend_pid)
        return connection

    class EndingLake(FolderLake):
        @contextmanager
        def create(self, path: str) -> Iterator[Any]:
            with super().create(path) as out:
                yield out if len(backends) > 1 or "users" not in path else EndingFile(out)

    class EndingFile(io.RawIOBase):
        def __init__(self, out: BinaryIO) -> None:
            self.out = out

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            if self.out.tell() == 0:  # at the first row group, rows wait on both sides
                assert company.database.run(
                    f"SELECT state FROM pg_stat_activity WHERE pid = {backends[0]} AND query LIKE 'COPY%'"
                ) == [("active",)]
                company.database.run(f"SELECT pg_terminate_backend({backends[0]})")
            return self.out.write(data)

        def tell(self) -> int:
            return self.out.tell()

    services.replace(lake=EndingLake(company.lake.root))
    services.postgres = postgres  # type: ignore[method-assign]
    record = copy_reference(services, MONDAY)
    assert len(set(backends)) == 2
    assert (record.state, record.tables["users"].rows, company.table().num_rows) == ("published", 400000, 400000)
    assert company.files().keys() == {paths.reference("users"), paths.reference("post_types")}


def test_a_connection_that_is_lost_at_once_is_retried(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "BACK_OFF", wait_none())
    services, tries = company.services(reference_attempts=2), []

    def postgres() -> Any:
        connection = company.database.connect()
        tries.append(1)
        if len(tries) == 1:
            company.database.run(f"SELECT pg_terminate_backend({connection.info.backend_pid})")
        return connection

    services.postgres = postgres  # type: ignore[method-assign]
    assert copy_reference(services, MONDAY).state == "published"
    assert len(tries) == 2


def test_an_error_is_recorded_beside_the_tables_that_were_published(
    company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = company.copy()
    monkeypatch.setattr(proof, "file_checksum", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        company.copy()
    record = company.record()
    assert (record.state, record.reason) == ("failed", "integer division or modulo by zero")
    assert (record.tables, record.published_at) == (published.tables, published.published_at)
    assert record.published_at is not None


def test_a_failing_lake_does_not_hide_the_first_error(company: Company, caplog: pytest.LogCaptureFixture) -> None:
    class LostLake(FolderLake):
        def delete(self, path: str) -> None:
            raise TransientError(f"no {path}")

        def put(self, path: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
            raise TransientError(f"no {path}")

    spoil_born(company)
    company.lake = LostLake(company.lake.root)
    with pytest.raises(BadInput, match="10 in column born"):
        company.copy()
    for said in (f"{snapshot.INCOMING}", "could not be deleted", f"{WEEK}.json could not be written"):
        assert said in caplog.text


def test_an_error_of_reading_back_does_not_wait_for_the_server(company: Company) -> None:
    class UnreadableLake(FolderLake):
        def open(self, path: str) -> RangedReader:
            raise TransientError("the service is busy")

    company.lake = UnreadableLake(company.lake.root)
    company.database.run("CREATE VIEW raw.slow AS SELECT 1 AS id")
    company.database.run(
        "CREATE FUNCTION raw.wait() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1 FROM pg_sleep(100000)';"
        "CREATE OR REPLACE VIEW raw.slow AS SELECT CASE WHEN current_query() LIKE '%hashint4extended%'"
        " THEN raw.wait() ELSE 1 END AS id"
    )
    with pytest.raises(TransientError, match="the service is busy"):
        company.copy(reference_tables="slow", reference_exclude_columns=())


class Crash(BaseException):
    """The process died here."""


class MortalLake(FolderLake):
    """A lake whose process dies before the rename with the number `fatal`, counted from 1."""

    fatal: int | None = 2
    renames = 0

    def rename(self, source: str, target: str) -> None:
        self.renames += 1
        if self.renames == self.fatal:
            raise Crash
        super().rename(source, target)


def test_renames_that_a_crash_prevented_are_completed_later(company: Company) -> None:
    company.copy()
    company.database.run("INSERT INTO raw.users (id) VALUES (5000); INSERT INTO raw.post_types VALUES (3, 'Wiki')")
    company.lake = MortalLake(company.lake.root)
    with pytest.raises(Crash):
        company.copy(weeks_later=1)
    assert (company.table().num_rows, company.table("post_types").num_rows) == (1001, 2)
    assert company.record("2026-W48").state == "publishing"

    company.lake = FolderLake(company.lake.root)
    services = company.services()
    assert reference.finish_publication(services, idle_for=timedelta(days=9999)) is None
    finished = reference.finish_publication(services)
    assert finished == company.record("2026-W48")
    assert finished is not None
    assert (finished.state, finished.incoming, finished.tables["users"].rows) == ("published", {}, 1001)
    assert (company.table().num_rows, company.table("post_types").num_rows) == (1001, 3)
    kept = {paths.reference_previous(table, WEEK) for table in ("users", "post_types")}
    assert company.files().keys() == {paths.reference("users"), paths.reference("post_types"), *kept}
    assert reference.finish_publication(services) is None


def test_a_damaged_snapshot_does_not_stop_the_remaining_renames(company: Company) -> None:
    """The verified new file replaces it."""
    company.copy()
    company.database.run("INSERT INTO raw.users (id) VALUES (5000); INSERT INTO raw.post_types VALUES (3, 'Wiki')")
    company.lake = MortalLake(company.lake.root)
    with pytest.raises(Crash):
        company.copy(weeks_later=1)
    company.lake = FolderLake(company.lake.root)
    (company.lake.root / paths.reference("post_types")).write_bytes(b"garbage")
    assert company.copy(weeks_later=2).state == "published"
    assert company.record("2026-W48").state == "published"
    assert company.table("post_types").num_rows == 3
    kept = {paths.reference_previous(table, week) for table in ("users", "post_types") for week in (WEEK, "2026-W48")}
    assert company.files().keys() == {paths.reference("users"), paths.reference("post_types"), *kept}


def test_the_next_copy_first_completes_the_one_before(company: Company) -> None:
    company.lake = MortalLake(company.lake.root)
    with pytest.raises(Crash):
        company.copy()
    company.lake = FolderLake(company.lake.root)
    drop(company)
    with pytest.raises(NotFound):
        company.copy(weeks_later=1)
    assert (company.table().num_rows, company.table("post_types").num_rows) == (1000, 2)
    assert (company.record().state, company.record("2026-W48").state) == ("published", "failed")


def test_after_a_failed_rename_the_next_copy_continues_from_the_record(company: Company) -> None:
    class BusyLake(MortalLake):
        def rename(self, source: str, target: str) -> None:
            try:
                super().rename(source, target)
            except Crash:
                raise TransientError("the service is busy") from None

    company.lake = BusyLake(company.lake.root)
    with pytest.raises(TransientError, match="the service is busy"):
        company.copy()
    assert (company.record().state, company.record().reason) == ("publishing", "the service is busy")
    finished = reference.finish_publication(company.services())
    assert finished is not None
    assert (finished.state, finished.reason, company.table("post_types").num_rows) == ("published", None, 2)


def test_a_record_of_another_format_does_not_stop_the_copy(company: Company, caplog: pytest.LogCaptureFixture) -> None:
    company.lake.put(paths.reference_record("2026-W46"), b'{"format": 7}')
    assert company.copy().state == "published"
    assert "holds no ReferenceRecord" in caplog.text


def test_a_refused_login_is_not_retried(company: Company) -> None:
    services, tries = company.services(reference_attempts=3), []

    def postgres() -> Any:
        tries.append(1)
        raise AccessDenied("no")

    services.postgres = postgres  # type: ignore[method-assign]
    with pytest.raises(AccessDenied):
        copy_reference(services, MONDAY)
    assert len(tries) == 1


def test_files_left_by_dead_runs_are_deleted_after_a_day(company: Company) -> None:
    dead = f"reference/users/{snapshot.INCOMING}dead"
    company.lake.put(dead, b"half")
    unfinished = company.lake.root / "reference/users" / f"{paths.TEMPORARY_PREFIX}0-{snapshot.INCOMING}killed"
    unfinished.write_bytes(b"less than half")
    copy_reference(company.services(), datetime.now(UTC))
    assert company.lake.stat(dead)
    assert unfinished.exists()
    copy_reference(company.services(), datetime.now(UTC) + timedelta(days=2))
    assert company.lake.stat(dead) is None
    assert not unfinished.exists()
    assert company.table().num_rows == 1000


@pytest.mark.parametrize("name", ["secret", "user.secret", "users.Secret"])
def test_an_exclusion_of_an_unknown_column_publishes_nothing(company: Company, name: str) -> None:
    with pytest.raises((SettingsError, BadInput), match=name.rpartition(".")[2]):
        company.copy(reference_exclude_columns=name)
    assert company.files() == {}


def test_the_file_has_the_intended_row_groups_and_encodings(company: Company) -> None:
    company.database.run("""
        CREATE TABLE raw.wide AS
        SELECT i AS id, timestamp '2026-01-01' + i * interval '1 s' AS at, md5(i::text) AS name,
               (i % 5)::text AS kind, i % 3 = 0 AS yes FROM generate_series(1, 150000) i
    """)
    company.copy(reference_tables="wide", reference_exclude_columns=())
    metadata = pq.read_metadata(company.lake.root / paths.reference("wide"))
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [65536, 65536, 18928]
    columns = {column["path_in_schema"]: column for column in metadata.row_group(0).to_dict()["columns"]}
    assert {column["compression"] for column in columns.values()} == {"ZSTD"}
    assert {name for name, column in columns.items() if column["has_dictionary_page"]} == {"kind"}
    assert {name for name, column in columns.items() if "DELTA_BINARY_PACKED" in column["encodings"]} == {"id", "at"}


def test_a_snapshot_has_its_week_rows_and_columns(company: Company) -> None:
    assert read_snapshot(company.lake, "users") is None
    company.copy()
    snapshot = read_snapshot(company.lake, "users")
    assert snapshot is not None
    assert (snapshot.week, snapshot.rows, snapshot.schema.names) == (WEEK, 1000, ["id", "name", "about", "born"])


def test_a_copy_through_the_gateway_keeps_the_earlier_snapshot(
    company: Company, local_cloud: LocalCloud, file_system: FileSystemClient
) -> None:
    """By ADLS calls through the gateway: the same rows, the earlier snapshot kept, and no temporary files left."""
    url = azurite.endpoint(local_cloud.ports["blob"])
    with ContainerClient(url, file_system.file_system_name, credential=CREDENTIAL) as blobs:
        company.lake = AdlsLake(file_system, blobs)
        company.database.run(
            "INSERT INTO raw.users SELECT i, md5(i::text), repeat(md5(i::text), 9) FROM generate_series(1, 90000) i"
        )
        company.copy()
        company.copy(weeks_later=1)
        snapshots = {
            info.path: pq.read_metadata(company.lake.open(info.path)).num_rows
            for info in company.lake.list("reference")
        }
    assert snapshots == {
        paths.reference("post_types"): 2,
        paths.reference("users"): 91000,
        paths.reference_previous("post_types", WEEK): 2,
        paths.reference_previous("users", WEEK): 91000,
    }


def test_a_check_reads_a_table_with_the_settings_of_the_copy(company: Company) -> None:
    """It uses the excluded columns and the keys, and needs rights on every column that is copied."""
    assert check._table(company.services(reference_keys="users.id"), "users") == "4 columns, key id"
    assert check._table(company.services(), "post_types") == "2 columns, no key"
    with pytest.raises(BadInput, match="excluded column hidden does not exist"):
        check._table(company.services(reference_exclude_columns="users.hidden"), "users")
    with pytest.raises(BadInput, match=r"\(about\) is not a key"):
        check._table(company.services(reference_keys="users.about"), "users")
    with pytest.raises(NotFound, match=r"badges does not exist .*; on this machine `make demo` fills it, or"):
        check._table(company.services(reference_tables="badges", reference_exclude_columns=()), "badges")
    role = f"reader_{company.database.schema}"
    company.database.run(f"""
        CREATE ROLE {role} LOGIN PASSWORD '{company.database.server.password}';
        GRANT USAGE ON SCHEMA {company.database.schema} TO {role}; GRANT SELECT (id, name) ON raw.users TO {role};
        GRANT SELECT ON raw.post_types TO {role}; ALTER TABLE raw.post_types ENABLE ROW LEVEL SECURITY
    """)
    company.database.user = role
    with pytest.raises(AccessDenied, match="permission denied for table users"):
        check._table(company.services(), "users")
    with pytest.raises(AccessDenied, match="row-level security"):
        check._table(company.services(), "post_types")
    left_out = "users.secret,users.about,users.born"
    assert check._table(company.services(reference_exclude_columns=left_out), "users") == "2 columns, no key"


@pytest.mark.parametrize(("rows", "bytes_a_row"), [(40_000, 1_000), (60, 1_000_000), (3, 20_000_000)])
def test_memory_is_bounded_for_rows_of_any_width(
    company: Company, rows: int, bytes_a_row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows decoded, written and read back at once are limited in bytes, except for a single larger row."""
    company.database.run(f"""
        CREATE TABLE raw.wide AS SELECT i, repeat(md5(i::text), {bytes_a_row // 32}) AS s
        FROM generate_series(1, {rows}) i
    """)
    decoded: list[int] = []
    written: list[int] = []
    read_back: list[int] = []
    write_parquet, batch_checksum, write_table = (
        snapshot.write_parquet,
        checksum.batch_checksum,
        pq.ParquetWriter.write_table,
    )

    def writing(batches: Iterable[pa.RecordBatch], *given: Any) -> None:
        def noted() -> Iterator[pa.RecordBatch]:
            for batch in batches:
                decoded.append(batch.nbytes)
                yield batch

        write_parquet(noted(), *given)

    def writing_group(writer: pq.ParquetWriter, table: pa.Table, **given: Any) -> None:
        written.append(table.nbytes)
        write_table(writer, table, **given)

    def reading_back(batch: pa.RecordBatch, columns: Any) -> int:
        read_back.append(batch.nbytes)
        return batch_checksum(batch, columns)

    monkeypatch.setattr(reference, "write_parquet", writing)
    monkeypatch.setattr(proof, "batch_checksum", reading_back)
    monkeypatch.setattr(pq.ParquetWriter, "write_table", writing_group)
    record = company.copy(reference_tables="wide", reference_exclude_columns=())
    assert record.tables["wide"].rows == rows
    whole = rows * (bytes_a_row // 32 * 32 + 8)
    for held, most in (
        (decoded, wire.BYTES_PER_BATCH),
        (written, snapshot.BYTES_PER_GROUP + wire.BYTES_PER_BATCH),
        (read_back, proof.READ_BACK_BYTES),
    ):
        assert sum(held) == pytest.approx(whole, rel=0.01)
        assert max(held) <= max(1.1 * most, 1.001 * bytes_a_row)
