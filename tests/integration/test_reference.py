"""The weekly copy of the reference tables, from a real Postgres to a lake in a folder."""

import io
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from azure.storage.blob import ContainerClient
from azure.storage.filedatalake import FileSystemClient
from tenacity import wait_none

from ingest import reference
from ingest.reference import ReferenceRecord, copy_reference, read_snapshot
from localcloud import azurite
from localcloud.cloud import LocalCloud
from shared import paths
from shared.errors import AccessDenied, BadInput, NotFound, SettingsError, StackTopicsError, TransientError
from shared.lake import AdlsLake, FolderLake
from shared.services import Services
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
        self.database, self.lake = database, FolderLake(root)
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

    def record(self, week: str = WEEK) -> ReferenceRecord:
        return ReferenceRecord.model_validate_json(self.lake.read(paths.reference_record(week)))

    def files(self) -> dict[str, bytes]:
        """Everything in the lake but the records."""
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
    assert int(written.checksum, 16) == reference.file_checksum(company.lake, paths.reference("users"))[1]


def test_running_twice_gives_the_same_lake(company: Company) -> None:
    company.copy()
    before = company.files()
    company.copy()
    assert company.files() == before


def test_the_snapshots_before_are_kept_for_some_weeks(company: Company) -> None:
    for week in range(5):
        company.copy(weeks_later=week, reference_keep_weeks=2)
        company.database.run(f"INSERT INTO raw.users (id) VALUES ({5000 + week})")
    folder = company.lake.root / "reference/users/previous"
    kept = {file.stem: pq.read_metadata(file).num_rows for file in folder.iterdir()}
    assert kept == {"2026-W49": 1002, "2026-W50": 1003}
    assert company.table().num_rows == 1004
    company.copy(weeks_later=4, reference_keep_weeks=0)
    assert not list(folder.iterdir())


def test_both_tables_are_of_the_same_moment(company: Company) -> None:
    class BusyLake(FolderLake):
        def create(self, path: str) -> AbstractContextManager[BinaryIO]:
            company.database.run(
                "INSERT INTO raw.post_types VALUES (9, 'late'); INSERT INTO raw.users VALUES (9, 'late')"
            )
            return super().create(path)

    company.lake = BusyLake(company.lake.root)
    company.copy(reference_tables="users,post_types")
    assert (company.table().num_rows, company.table("post_types").num_rows) == (1000, 2)
    company.copy(reference_tables="post_types,users")
    assert (company.table().num_rows, company.table("post_types").num_rows) == (1004, 6)  # late ones of the records too


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
        (spoil_born, BadInput, "refused", "10 in column born: infinite dates (REFERENCE_INFINITY=null"),
        (empty, BadInput, "refused", "users is empty; the lake keeps 1000 rows"),
        (shrink, BadInput, "refused", "users shrank from 1000 to 899 rows, by more than 10%"),
        (drop, NotFound, "failed", "users does not exist"),
    ],
)
def test_what_must_not_be_published_leaves_the_lake_as_it_was(
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


def test_a_first_copy_of_an_empty_table_is_refused(company: Company) -> None:
    empty(company)
    with pytest.raises(BadInput, match="is empty; the lake keeps no rows"):
        company.copy()
    assert company.files() == {}


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


def test_values_emptied_by_a_setting_are_counted_and_still_proved(company: Company) -> None:
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
def test_damage_on_the_way_is_found_by_the_checksum(
    company: Company, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Batches], Batches]
) -> None:
    company.copy()
    before = company.files()
    intact = reference.write_parquet
    monkeypatch.setattr(reference, "write_parquet", lambda batches, *rest: intact(damage(batches), *rest))
    with pytest.raises(TransientError, match=r"users: the server has 1000 rows with checksum .* were written"):
        company.copy()
    assert company.files() == before
    if damage is one_row_lost:
        with pytest.raises(TransientError, match="but 999 rows"):
            company.copy(reference_proof="rows")


def test_a_lake_that_fails_half_way_leaves_no_thread_and_no_file(company: Company) -> None:
    class FullLake(FolderLake):
        @contextmanager
        def create(self, path: str) -> Iterator[BinaryIO]:
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


def test_counting_is_proof_enough_where_the_settings_say_so(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(reference, "server_checksum")
    assert company.copy(reference_proof="rows").tables["users"].checksum is None
    assert company.table().num_rows == 1000


def test_trouble_that_passes_is_tried_again(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_refused_login_is_not_tried_again(company: Company) -> None:
    services, tries = company.services(reference_attempts=3), []

    def postgres() -> Any:
        tries.append(1)
        raise AccessDenied("no")

    services.postgres = postgres  # type: ignore[method-assign]
    with pytest.raises(AccessDenied):
        copy_reference(services, MONDAY)
    assert len(tries) == 1


def test_leftovers_of_dead_runs_are_deleted_after_a_day(company: Company) -> None:
    dead = f"reference/users/{reference.INCOMING}dead"
    company.lake.put(dead, b"half")
    copy_reference(company.services(), datetime.now(UTC))
    assert company.lake.stat(dead)
    copy_reference(company.services(), datetime.now(UTC) + timedelta(days=2))
    assert company.lake.stat(dead) is None
    assert company.table().num_rows == 1000


@pytest.mark.parametrize("name", ["secret", "user.secret", "users.Secret"])
def test_an_exclusion_that_leads_nowhere_lets_nothing_through(company: Company, name: str) -> None:
    with pytest.raises((SettingsError, BadInput), match=name.rpartition(".")[2]):
        company.copy(reference_exclude_columns=name)
    assert company.files() == {}


def test_the_file_is_laid_out_for_its_readers(company: Company) -> None:
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


def test_a_snapshot_tells_its_week_rows_and_columns(company: Company) -> None:
    assert read_snapshot(company.lake, "users") is None
    company.copy()
    snapshot = read_snapshot(company.lake, "users")
    assert snapshot is not None
    assert (snapshot.week, snapshot.rows, snapshot.schema.names) == (WEEK, 1000, ["id", "name", "about", "born"])


def test_the_copy_through_a_real_lake(company: Company, local_cloud: LocalCloud, file_system: FileSystemClient) -> None:
    """ADLS calls through the gateway: the same rows, the snapshot before kept, nothing left over."""
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
