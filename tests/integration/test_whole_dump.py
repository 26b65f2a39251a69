"""Generated and real dumps, imported into a folder, a container and Postgres; another parser checks all values."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg2
import py7zr
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from azure.storage.blob import BlobServiceClient

from ingest.contracts import check_posts
from ingest.dump import import_dump, import_users, posts, users
from ingest.dump.posts import POSTS_TABLE
from ingest.dump.rows import XmlTable
from ingest.dump.source import WORK_FOLDER, dump_file
from ingest.dump.state import only_one
from ingest.dump.users import POST_TYPES, USERS
from localcloud.postgres import Postgres
from localcloud.samples import sample_users
from localcloud.tables import fill
from shared.errors import AccessDenied, BadInput, Conflict, NotFound, TerminalError
from tests.postgres_fixtures import Database
from tests.real_posts import RealPosts

CONVERT = {pa.int32(): int, pa.int64(): int, pa.string(): str}


@pytest.fixture(params=["made", "genuine"])
def any_dump(request: pytest.FixtureRequest) -> Path:
    if request.param == "made":
        return Path(request.getfixturevalue("dump"))
    real_posts: RealPosts = request.getfixturevalue("real_posts")
    real_posts("raspberrypi.meta/Users.xml")
    return real_posts("raspberrypi.meta/Posts.xml").parent


@pytest.fixture
def raw_st(postgres_server: Postgres) -> Database:
    """The schema for imported users, which does not exist yet."""
    database = Database(postgres_server, "raw_st")
    database.run("DROP SCHEMA IF EXISTS raw_st CASCADE")
    return database


def by_etree(file: Path, table: XmlTable) -> list[dict[str, Any]]:
    """The rows as Python's own XML parser reads them, with types converted independently of the product."""
    rows = [element.attrib for element in ET.parse(file).getroot()]
    return [
        {
            field.name: CONVERT.get(field.type, datetime.fromisoformat)(row[field.name]) if field.name in row else None
            for field in table.schema
        }
        for row in rows
    ]


def unknown_attributes(file: Path, table: XmlTable) -> Counter[str]:
    """The number of rows with each attribute that has no column."""
    rows = ET.parse(file).getroot()
    return Counter(name for row in rows for name in row.attrib if name not in table.schema.names)


@pytest.mark.parametrize(("by", "digits"), [("day", 10), ("month", 7), ("year", 4), ("all", 0)])
def test_every_value_of_every_post_is_imported(any_dump: Path, tmp_path: Path, by: Any, digits: int) -> None:
    def period(post: dict[str, Any]) -> str:
        return post["CreationDate"].isoformat()[:digits] or "all"

    expected = sorted(by_etree(any_dump / "Posts.xml", POSTS_TABLE), key=period)
    report = import_dump(any_dump, tmp_path, by=by, prefix="x")
    rows = len(expected)
    assert (report.rows_in, report.rows_out, report.rejected, report.truncated) == (rows, rows, 0, False)
    assert report.not_imported == unknown_attributes(any_dump / "Posts.xml", POSTS_TABLE)
    assert report.files == tuple(f"posts-x-{each}.parquet" for each in sorted({*map(period, expected)}))
    found = []
    for name in report.files:
        with (tmp_path / name).open("rb") as file:
            rows = check_posts(file, name).rows
        found_here = pq.read_table(tmp_path / name).to_pylist()
        assert len(found_here) == rows
        assert {f"posts-x-{period(post)}.parquet" for post in found_here} == {name}
        found += found_here
    assert found == expected
    assert {path.name for path in tmp_path.iterdir()} == {*report.files, WORK_FOLDER}


def test_every_value_of_every_user_is_imported(any_dump: Path, raw_st: Database, tmp_path: Path) -> None:
    with closing(raw_st.connect()) as connection:
        report = import_users(any_dump, connection, rejected=tmp_path / "rejected-users.jsonl")
        again = import_users(any_dump, connection, rejected=tmp_path / "rejected-users.jsonl")
    expected = by_etree(any_dump / "Users.xml", USERS)
    rows = len(expected)
    assert (report.rows_in, report.rows_out, report.rejected, report.truncated) == (rows, rows, 0, False)
    assert again.rows_out == rows
    assert report.not_imported == unknown_attributes(any_dump / "Users.xml", USERS)
    columns = [re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower() for name in USERS.schema.names]
    found = raw_st.run(f"SELECT {', '.join(columns)} FROM raw_st.users ORDER BY id")
    assert found == sorted((tuple(user.values()) for user in expected), key=lambda user: user[0])
    assert raw_st.run("SELECT id, name FROM raw_st.post_types ORDER BY id") == list(POST_TYPES)


def test_null_and_empty_values_of_sample_users_are_distinguished(raw_st: Database) -> None:
    samples = sample_users(200)
    with closing(raw_st.connect()) as connection:
        fill(connection, samples)
    found = raw_st.run("SELECT id, website_url, location, about_me, account_id FROM raw_st.users ORDER BY id")
    columns = samples.select(["Id", "WebsiteUrl", "Location", "AboutMe", "AccountId"])
    assert found == [tuple(user.values()) for user in columns.to_pylist()]
    assert {None, ""} <= {user[1] for user in found}


def test_users_that_do_not_fit_the_table_are_set_aside(dump: Path, raw_st: Database, tmp_path: Path) -> None:
    rows = (dump / "Users.xml").read_bytes().split(b"\r\n")
    user = rows[4]
    rows[3:3] = [
        re.sub(rb'Id="\d+"', b'Id="-7"', user, count=1).replace(b'DisplayName="', b'DisplayName="' + b"x" * 50),
        re.sub(rb' DisplayName="[^"]*"', b"", user),
        user.replace(b'DisplayName="', b'DisplayName="\0'),
        user.replace(b'AccountId="', b'AccountId="99999999999'),
        user[:-9],
    ]
    (tmp_path / "Users.xml").write_bytes(b"\r\n".join(rows))
    with closing(raw_st.connect()) as connection:
        report = import_users(tmp_path, connection, rejected=tmp_path / "rejected-users.jsonl")
    entries = [json.loads(line) for line in (tmp_path / "rejected-users.jsonl").read_text().splitlines()]
    assert (report.rows_in, report.rows_out, report.rejected) == (3593, 3588, 5)
    assert [entry["line"] for entry in entries] == [4, 5, 6, 7, 8]
    reasons = [
        "longer than 40",
        "DisplayName is missing",
        "not a well-formed row",
        "AccountId",
        "the row has no end",
    ]
    for entry, reason in zip(entries, reasons, strict=True):
        assert re.search(reason, entry["reason"])


def users_xml(folder: Path, lines: list[bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "Users.xml").write_bytes(b"\r\n".join(lines))
    return folder


def test_users_are_replaced_completely_or_not_at_all(
    dump: Path, raw_st: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (dump / "Users.xml").read_bytes().split(b"\r\n")
    few = users_xml(tmp_path / "few", [*lines[:12], *lines[-1:]])
    with closing(raw_st.connect()) as connection, closing(raw_st.connect()) as reader:
        import_users(dump, connection, rejected=tmp_path / "rejected.jsonl")
        reader.set_session(isolation_level="REPEATABLE READ", readonly=True)
        with reader.cursor() as cursor:
            cursor.execute("SELECT 1 FROM raw_st.post_types")  # so the reader's snapshot is older than the next import
            with monkeypatch.context() as without:
                without.setattr(users, "LATER", "SELECT no_such_column FROM incoming_users")
                with pytest.raises(TerminalError, match="no_such_column"):
                    import_users(few, connection, rejected=tmp_path / "rejected.jsonl", force=True)
            assert raw_st.run("SELECT count(*) FROM raw_st.users") == [(3588,)]
            import_users(few, connection, rejected=tmp_path / "rejected.jsonl", force=True)
            cursor.execute("SELECT count(*) FROM raw_st.users")
            assert cursor.fetchone() == (3588,)
    assert raw_st.run("SELECT count(*) FROM raw_st.users") == [(10,)]


def test_of_users_with_the_same_id_the_first_is_kept(dump: Path, raw_st: Database, tmp_path: Path) -> None:
    lines = (dump / "Users.xml").read_bytes().split(b"\r\n")
    again = re.sub(rb'DisplayName="[^"]*"', b'DisplayName="again"', lines[5])
    invalid = lines[20].replace(b'Reputation="', b'Reputation="x')
    with_an_entity = lines[7].replace(b'DisplayName="', b'DisplayName="&#38;amp;&#x9;')
    source = users_xml(
        tmp_path, [*lines[:12], again, *lines[12:20], invalid, *lines[20:], again, with_an_entity, b"</users>"]
    )
    text = (source / "Users.xml").read_bytes().replace(b"</users>", b"", 1)
    (source / "Users.xml").write_bytes(text)
    with closing(raw_st.connect()) as connection:
        report = import_users(source, connection, rejected=tmp_path / "rejected.jsonl")
    entries = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert (report.rows_in, report.rows_out, report.rejected) == (3592, 3588, 4)
    assert [entry["reason"][:8] for entry in entries] == ["an earli", "Reputati", "an earli", "an earli"]
    for entry, line in zip(entries, (again, invalid, again, with_an_entity), strict=True):
        assert entry["text"] == line.strip().decode()
        assert text[entry["offset"] :][: entry["bytes"]] == line.strip()
        assert entry["line"] == text[: entry["offset"]].count(b"\n") + 1
    columns = [re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower() for name in USERS.schema.names]
    found = raw_st.run(f"SELECT {', '.join(columns)} FROM raw_st.users ORDER BY id")
    assert found == [tuple(user.values()) for user in by_etree(dump / "Users.xml", USERS)]


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (lambda lines: lines[:-1], "ends without </users>, after 3,588 rows"),
        (lambda lines: [*lines[:-2], lines[-2][:-9]], "ends without </users>, after 3,588 rows"),
        (lambda lines: [*lines[:2], lines[-1]], "has no users"),
        (lambda lines: [*lines[:3000], lines[-1]], "Users.xml has 2,998 valid users, and .* has 3,588"),
        (lambda lines: [*lines[:2], *[b"<row/>"] * 3588, lines[-1]], "Users.xml has 0 valid users"),
    ],
    ids=["no end", "cut off", "empty", "shrunk", "all malformed"],
)
def test_too_few_users_replace_nothing_unless_forced(
    dump: Path, raw_st: Database, tmp_path: Path, cut: Any, words: str
) -> None:
    source = users_xml(tmp_path / "less", cut((dump / "Users.xml").read_bytes().split(b"\r\n")))
    with closing(raw_st.connect()) as connection:
        import_users(dump, connection, rejected=tmp_path / "rejected.jsonl")
        with pytest.raises(BadInput, match=words) as refused:
            import_users(source, connection, rejected=tmp_path / "rejected.jsonl")
        assert "--force-users" in str(refused.value)
        assert raw_st.run("SELECT count(*) FROM raw_st.users") == [(3588,)]
        report = import_users(source, connection, rejected=tmp_path / "rejected.jsonl", force=True)
    assert raw_st.run("SELECT count(*) FROM raw_st.users") == [(report.rows_out,)]
    assert report.rows_out < 3588 or report.truncated


def test_users_are_loaded_again_only_after_a_change_of_file_or_table(
    dump: Path, raw_st: Database, tmp_path: Path
) -> None:
    def resumed() -> int:
        with closing(raw_st.connect()) as connection:
            return import_users(source, connection, rejected=tmp_path / "rejected.jsonl").resumed_rows

    source = users_xml(tmp_path / "dump", (dump / "Users.xml").read_bytes().split(b"\r\n"))
    assert (resumed(), resumed(), resumed()) == (0, 3588, 3588)
    raw_st.run("UPDATE raw_st.users SET views = views + 1 WHERE id = 2")
    assert (resumed(), resumed()) == (0, 3588)
    raw_st.run("DELETE FROM raw_st.users WHERE id = 2")
    assert (resumed(), resumed()) == (0, 3588)
    raw_st.run("DROP TABLE raw_st.users")
    assert (resumed(), resumed()) == (0, 3588)
    os.utime(source / "Users.xml", (1, 1))
    assert (resumed(), resumed()) == (0, 3588)


@pytest.mark.parametrize("torn", [0, 1, 300])
def test_after_damage_of_their_record_users_are_loaded_again(
    dump: Path, raw_st: Database, tmp_path: Path, torn: int
) -> None:
    with closing(raw_st.connect()) as connection:
        import_users(dump, connection, rejected=tmp_path / "rejected.jsonl")
        (record,) = tmp_path.rglob("loaded.json")
        record.write_bytes(record.read_bytes()[:torn])
        report = import_users(dump, connection, rejected=tmp_path / "rejected.jsonl")
        assert (report.rows_out, report.resumed_rows) == (3588, 0)
        with only_one(record.parent), pytest.raises(Conflict, match="another import is running"):
            import_users(dump, connection, rejected=tmp_path / "rejected.jsonl")
        assert import_users(dump, connection, rejected=tmp_path / "rejected.jsonl").resumed_rows == 3588


@pytest.fixture
def role(raw_st: Database) -> Iterator[str]:
    """A role without any rights, not even the TEMPORARY right that PUBLIC usually has."""
    name = f"importer_{uuid.uuid4().hex[:8]}"
    database = raw_st.server.database
    raw_st.run(f"CREATE ROLE {name} LOGIN PASSWORD '{raw_st.server.password}'")
    raw_st.run(f"REVOKE TEMPORARY ON DATABASE {database} FROM public")
    yield name
    raw_st.run(f"DROP SCHEMA IF EXISTS raw_st CASCADE; DROP OWNED BY {name}; DROP ROLE {name}")
    raw_st.run(f"GRANT TEMPORARY ON DATABASE {database} TO public")


def test_a_role_needs_no_right_to_create_existing_objects(
    dump: Path, raw_st: Database, role: str, tmp_path: Path
) -> None:
    def imported() -> int:
        with closing(Database(raw_st.server, "raw_st", role).connect()) as connection:
            return import_users(dump, connection, rejected=tmp_path / "rejected.jsonl").rows_out

    database = raw_st.server.database
    with pytest.raises(AccessDenied, match=r"permission denied for database .*CREATE on the database to make the sche"):
        imported()
    raw_st.run(f"CREATE SCHEMA raw_st; GRANT USAGE ON SCHEMA raw_st TO {role}")
    with pytest.raises(AccessDenied, match=r"permission denied for schema raw_st .* needs .*CREATE on the schema"):
        imported()
    raw_st.run(f"GRANT CREATE ON SCHEMA raw_st TO {role}")
    with pytest.raises(AccessDenied, match=r"temporary tables.* TEMPORARY on the database"):
        imported()
    raw_st.run(f"GRANT TEMPORARY ON DATABASE {database} TO {role}")
    assert imported() == 3588
    raw_st.run(f"REVOKE CREATE ON SCHEMA raw_st FROM {role}; ALTER TABLE raw_st.users OWNER TO CURRENT_USER")
    raw_st.run("ALTER TABLE raw_st.post_types OWNER TO CURRENT_USER; DELETE FROM raw_st.users WHERE id = 2")
    with pytest.raises(AccessDenied, match=r"permission denied for table .* SELECT, INSERT and DELETE"):
        imported()
    raw_st.run(f"GRANT SELECT, INSERT, DELETE ON raw_st.users, raw_st.post_types TO {role}")
    assert imported() == 3588


def test_the_refusal_of_a_table_with_other_columns_names_it(dump: Path, raw_st: Database, tmp_path: Path) -> None:
    def imported() -> int:
        with closing(raw_st.connect()) as connection:
            return import_users(dump, connection, rejected=tmp_path / "rejected.jsonl").rows_out

    raw_st.run("CREATE SCHEMA raw_st; CREATE TABLE raw_st.users (id integer PRIMARY KEY, name text)")
    with pytest.raises(
        BadInput, match=r"raw_st\.users has no column reputation or .* or about_me or .* rename the tabl"
    ):
        imported()
    raw_st.run("ALTER TABLE raw_st.users RENAME TO own_users")
    assert imported() == 3588
    raw_st.run("ALTER TABLE raw_st.post_types RENAME name TO called; TRUNCATE raw_st.users")
    with pytest.raises(BadInput, match=r"raw_st\.post_types has no column name: add it"):
        imported()


def test_a_database_in_another_encoding_gets_the_users_that_it_can_store(
    dump: Path, raw_st: Database, tmp_path: Path
) -> None:
    server = replace(raw_st.server, database=f"latin_{uuid.uuid4().hex[:8]}")
    lines = (dump / "Users.xml").read_bytes().split(b"\r\n")
    rename = rb'DisplayName="[^"]*"'
    lines[10] = re.sub(rename, 'DisplayName="Dvořák"'.encode(), lines[10])
    lines[12] = re.sub(rename, f'DisplayName="{"é" * 40}"'.encode(), lines[12])
    source = users_xml(tmp_path / "dump", lines)
    text = ("DisplayName", "Location", "AboutMe", "WebsiteUrl")
    expected = [user for user in by_etree(source / "Users.xml", USERS) if is_latin(*(user[name] for name in text))]
    with closing(raw_st.connect()) as owner:
        owner.autocommit = True
        with owner.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {server.database} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
            try:
                with closing(
                    psycopg2.connect(
                        host=server.host,
                        port=server.port,
                        dbname=server.database,
                        user=server.user,
                        password=server.password,
                    )
                ) as connection:  # whose client encoding is LATIN1 by default
                    report = import_users(source, connection, rejected=tmp_path / "rejected.jsonl")
                found = Database(server).run("SELECT id, display_name, about_me FROM raw_st.users ORDER BY id")
            finally:
                cursor.execute(f"DROP DATABASE {server.database}")
    assert found == [(user["Id"], user["DisplayName"], user["AboutMe"]) for user in expected]
    assert report.rows_out == len(expected) == 3588 - report.rejected
    entries = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    (named,) = [entry for entry in entries if "Dvořák" in entry["text"]]
    assert named["line"] == 11
    assert named["reason"] == "DisplayName has characters that the encoding of the database, LATIN1, does not have"


def is_latin(*texts: str | None) -> bool:
    return all(ord(character) < 256 for text in texts for character in text or "")


def test_an_archive_gives_the_same_result_as_its_folder(dump: Path, raw_st: Database, tmp_path: Path) -> None:
    archive = tmp_path / "raspberrypi.meta.stackexchange.com.7z"
    with py7zr.SevenZipFile(archive, "w") as packed:
        for name in ("Posts.xml", "Users.xml", "Tags.xml"):
            packed.write(dump / name, name)
    told: Counter[str] = Counter()
    out = tmp_path / "out"
    report = import_dump(archive, out, by="month", progress=lambda progress: told.update([progress.step]))
    assert (report.rows_out, len(report.files)) == (1073, 76)
    assert told.keys() == {"unpacking Posts.xml", "scanning posts", "writing"}
    with closing(raw_st.connect()) as connection:
        assert import_users(archive, connection, rejected=out / "rejected-users.jsonl").rows_out == 3588
    assert not list(out.rglob("*.xml"))
    told.clear()
    assert import_dump(archive, out, by="month", progress=lambda progress: told.update([progress.step])) != report
    assert not told  # the archive was not even unpacked


def packed(archive: Path, *files: Path) -> Path:
    with py7zr.SevenZipFile(archive, "w") as opened:
        for file in files:
            opened.write(file, file.name)
    return archive


def test_an_archive_does_not_change_files_of_the_user(dump: Path, raw_st: Database, tmp_path: Path) -> None:
    archive = packed(tmp_path / "raspberrypi.meta.stackexchange.com.7z", dump / "Posts.xml", dump / "Users.xml")
    out = tmp_path / "out"
    own = [out / "Users.xml", out / "Posts.xml", out / "unpacking" / "Users.xml", out / WORK_FOLDER / "Posts.xml"]
    for file in own:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * (dump / file.name).stat().st_size)
    import_dump(archive, out, by="month")
    with closing(raw_st.connect()) as connection:
        import_users(archive, connection, rejected=out / "rejected-users.jsonl")
    for file in own:
        assert set(file.read_bytes()) == {ord("x")}
    assert sorted(out.rglob("*.xml")) == sorted(own)


def test_unpacked_files_are_used_again_only_if_they_are_complete(dump: Path, tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.7z", dump / "Users.xml")
    told: list[str] = []

    def unpacked() -> Path:
        told.clear()
        opened = dump_file(archive, "Users.xml", tmp_path, lambda progress: told.append(progress.step))
        xml = opened.__enter__()  # without `__exit__`: the import fails, and the file stays
        assert xml.read_bytes() == (dump / "Users.xml").read_bytes()
        return xml

    kept = unpacked()
    assert told
    unpacked()
    assert not told
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    unpacked()
    assert told


def test_several_archives_of_one_file_each_are_one_dump(dump: Path, raw_st: Database, tmp_path: Path) -> None:
    """Stack Overflow's dump has this form. The archives are given one by one, or by their folder."""
    files = {
        name: packed(tmp_path / f"stackoverflow.com-{name}.7z", dump / f"{name}.xml") for name in ("Posts", "Users")
    }
    packed(tmp_path / "stackoverflow.com-Tags.7z", dump / "Tags.xml")
    sources: tuple[list[Path] | Path, ...] = ([files["Users"], files["Posts"]], tmp_path)
    for number, source in enumerate(sources):
        out = tmp_path / f"out{number}"
        report = import_dump(source, out, by="month")
        assert (report.rows_out, report.files[0]) == (1073, "posts-stackoverflow-2012-06.parquet")
        with closing(raw_st.connect()) as connection:
            assert import_users(source, connection, rejected=out / "rejected-users.jsonl").rows_out == 3588
    packed(tmp_path / "cooking.stackexchange.com.7z", dump / "Posts.xml")
    with pytest.raises(BadInput, match="one site at a time"):
        import_dump(tmp_path, tmp_path / "out")


def test_an_invalid_archive_is_refused(dump: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + b"damaged" * 9)
    with pytest.raises(BadInput, match="can't be unpacked"):
        import_dump(tmp_path / "damaged.7z", tmp_path / "out")
    with pytest.raises(NotFound, match=r"holds no Posts\.xml"):
        import_dump(packed(tmp_path / "tags.7z", dump / "Tags.xml"), tmp_path / "other")


@pytest.mark.parametrize(
    "method", [py7zr.FILTER_LZMA2, py7zr.FILTER_BZIP2, py7zr.FILTER_DEFLATE, py7zr.FILTER_ZSTD], ids=hex
)
def test_a_damaged_archive_is_refused_as_bad_input(dump: Path, tmp_path: Path, method: int) -> None:
    archive = tmp_path / "damaged.7z"
    with py7zr.SevenZipFile(archive, "w", filters=[{"id": method}]) as opened:
        opened.write(dump / "Posts.xml", "Posts.xml")
    whole = archive.read_bytes()
    for at in (40, len(whole) // 2, len(whole) - 20):
        archive.write_bytes(whole[:at] + bytes(byte ^ 0x5A for byte in whole[at : at + 8]) + whole[at + 8 :])
        with pytest.raises(BadInput, match=r"damaged\.7z can't be unpacked: .+"):
            import_dump(archive, tmp_path / "out", by="month")
    archive.write_bytes(whole)
    assert import_dump(archive, tmp_path / "whole", by="month").rows_out == 1073


def test_the_files_of_a_dump_are_uploaded_to_a_container(
    dump: Path, blob_service: BlobServiceClient, tmp_path: Path
) -> None:
    with blob_service.create_container(f"t{uuid.uuid4().hex}") as container:
        report = import_dump(dump, container, by="month", work=tmp_path)
        assert tuple(sorted(container.list_blob_names())) == report.files
        sizes = {blob.name: blob.size for blob in container.list_blobs()}
        (journal,) = tmp_path.rglob("written.jsonl")
        entries = map(json.loads, journal.read_text().splitlines())
        assert sizes == {entry["name"]: entry["bytes"] for entry in entries}
        assert import_dump(dump, container, by="month", work=tmp_path).resumed == 76
        first = container.download_blob(report.files[0]).readall()
        container.delete_container()
    with pytest.raises(NotFound, match="container"):
        import_dump(dump, container, by="month", work=tmp_path)
    assert pq.read_table(pa.BufferReader(first))["Id"].to_pylist()[:3] == [1, 2, 3]


def test_a_large_file_is_uploaded_in_blocks(
    dump: Path, blob_service: BlobServiceClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posts, "UPLOAD_BYTES", 1000)
    import_dump(dump, tmp_path / "folder", by="month")
    with blob_service.create_container(f"t{uuid.uuid4().hex}") as container:
        report = import_dump(dump, container, by="month", workers=2, work=tmp_path)
        blocks = 0
        for name in report.files:
            assert container.download_blob(name).readall() == (tmp_path / "folder" / name).read_bytes()
            blocks += len(container.get_blob_client(name).get_block_list()[0])
        container.delete_container()
    assert blocks > 2 * len(report.files)


def test_an_archive_of_posts_that_were_imported_is_refused_and_leaves_no_file(dump: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    import_dump(dump, out, by="month")
    archive = packed(tmp_path / "download.7z", dump / "Posts.xml")
    with pytest.raises(BadInput, match=r"with --prefix raspberrypi\.meta --by month: .* counted twice"):
        import_dump(archive, out, by="day")
    assert len(list(out.glob("*.parquet"))) == 76
    assert not list(out.rglob("*.xml"))
    assert import_dump(archive, out, by="month", prefix="raspberrypi.meta", work=tmp_path / "w").rows_out == 1073
    assert len(list(out.glob("*.parquet"))) == 76


def test_only_one_of_two_concurrent_imports_works(dump: Path, tmp_path: Path) -> None:
    """Of processes that start together, one works; the others report this, or find a finished import."""
    program = (
        "import sys; from pathlib import Path; from ingest.dump import import_dump\n"
        "print(import_dump(Path(sys.argv[1]), Path(sys.argv[2])).rows_out)"
    )
    command = [sys.executable, "-c", program, str(dump), str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [(*process.communicate(), process.returncode) for process in running]
    assert ("1073\n", "", 0) in said
    for out, error, code in said:
        assert (out, code) == ("1073\n", 0) or error.strip().splitlines()[-1].startswith(
            "shared.errors.Conflict: another import is running in"
        )
    assert sum(pq.read_metadata(file).num_rows for file in tmp_path.glob("*.parquet")) == 1073


def test_an_import_that_is_killed_and_restarted_loses_and_doubles_nothing(dump: Path, tmp_path: Path) -> None:
    """SIGKILL at any moment loses nothing and doubles nothing, and each start makes progress."""
    program = (
        "import sys; from pathlib import Path; from ingest.dump import import_dump, posts\n"
        "posts.TASK_BYTES = 1\n"
        "import_dump(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    started = 0
    out = tmp_path / "out"
    while not list(out.rglob("report.json")):
        before = len(list(out.glob("*.parquet")))
        running = subprocess.Popen([sys.executable, "-c", program, str(dump), str(out)])
        started += 1
        while running.poll() is None and len(list(out.glob("*.parquet"))) < before + 120:
            time.sleep(0.005)
        if running.poll() is None:
            os.kill(running.pid, signal.SIGKILL)
        running.wait()
    assert started >= 2
    report = import_dump(dump, out)
    assert report.resumed == len(report.files) == 464
    found = [post for name in report.files for post in pq.read_table(out / name).to_pylist()]
    assert found == by_etree(dump / "Posts.xml", POSTS_TABLE)
