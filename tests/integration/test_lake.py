"""The lake port and its implementations: ADLS through the gateway, its blob calls on Azurite alone, and a folder."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from hashlib import md5
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobBlock, BlobClient, BlobServiceClient, ContentSettings
from azure.storage.filedatalake import FileSystemClient

from shared import copying, paths, proof
from shared.errors import Conflict, NotFound, TransientError
from shared.lake import AdlsLake, FolderLake, Lake
from shared.storage import RangedReader, StorageBlob, crc64


@pytest.fixture(params=["gateway", "folder"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    """Each implementation of the whole port."""
    if request.param == "folder":
        return FolderLake(tmp_path)
    return adls(request)


def adls(request: pytest.FixtureRequest) -> AdlsLake:
    files: FileSystemClient = request.getfixturevalue("file_system")
    blobs: BlobServiceClient = request.getfixturevalue("blob_service")
    return AdlsLake(files, blobs.get_container_client(files.file_system_name))


@pytest.fixture
def azure_lake(request: pytest.FixtureRequest) -> AdlsLake:
    return adls(request)


@pytest.fixture
def source(blob_service: BlobServiceClient) -> Iterator[BlobClient]:
    container = blob_service.create_container(f"in{uuid4().hex}")
    with container.get_blob_client("2026/posts ä#1.parquet") as client:
        yield client
    container.delete_container()


def test_a_document_is_written_in_full_and_under_its_condition(lake: Lake) -> None:
    first = lake.put("catalog/days/2026-11-22.json", b"1", if_absent=True)
    assert lake.read_with_etag("catalog/days/2026-11-22.json") == (b"1", first)
    with pytest.raises(Conflict):
        lake.put("catalog/days/2026-11-22.json", b"2", if_absent=True)
    second = lake.put("catalog/days/2026-11-22.json", b"2", if_match=first)
    with pytest.raises(Conflict):
        lake.put("catalog/days/2026-11-22.json", b"3", if_match=first)
    with pytest.raises((Conflict, NotFound)):
        lake.put("catalog/days/none.json", b"3", if_match=first)
    assert second != first
    assert lake.read("catalog/days/2026-11-22.json") == b"2"
    lake.put("catalog/days/2026-11-22.json", b"4")
    assert lake.read("catalog/days/2026-11-22.json") == b"4"


def test_of_many_concurrent_writers_one_succeeds(lake: Lake) -> None:
    etag = lake.put("pointer.json", b"0")

    def move(number: int) -> bool:
        try:
            lake.put("pointer.json", str(number).encode(), if_match=etag)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(move, range(8))) == 1


def test_a_data_file_appears_complete_or_not_at_all(lake: Lake) -> None:
    path, block = "reference/users/users.parquet", b"x" * (3 << 20)
    before = datetime.now(UTC).replace(microsecond=0)
    with lake.create(path) as out:
        for _ in range(3):
            out.write(block)
        assert lake.stat(path) is None
        assert list(lake.list("reference")) == []
        (unfinished,) = lake.unfinished("reference")
        assert unfinished.path.startswith(f"reference/users/{paths.TEMPORARY_PREFIX}")
    assert list(lake.unfinished("reference")) == []
    info = lake.stat(path)
    assert info is not None
    assert (info.path, info.size) == (path, 9 << 20)
    assert before <= info.last_modified <= datetime.now(UTC)

    class Died(Exception):
        pass

    def die() -> None:
        with lake.create(path) as out:
            out.write(block)
            raise Died

    with pytest.raises(Died):
        die()
    assert lake.stat(path) == info
    with lake.create("empty") as out:
        pass
    assert lake.read("empty") == b""


def test_a_reader_reads_ranges_of_a_file(lake: Lake) -> None:
    table = pa.table({"Id": range(100_000), "Body": [f"text {number}" for number in range(100_000)]})
    with lake.create("a/b.parquet") as out:
        pq.write_table(table, out, row_group_size=10_000)
    with lake.open("a/b.parquet") as file:
        assert pq.ParquetFile(file).read_row_group(7, ["Id"])["Id"].to_pylist() == list(range(70_000, 80_000))
        file.seek(-4, io.SEEK_END)
        assert (file.read(), file.read()) == (b"PAR1", b"")
    with pytest.raises(NotFound, match="nowhere does not exist"):
        lake.open("nowhere")
    with pytest.raises(NotFound):
        lake.read("nowhere")


def test_a_reader_never_mixes_two_contents_of_a_file(lake: Lake) -> None:
    lake.put("a", b"old content")
    with lake.open("a") as file:
        assert file.read(3) == b"old"
        lake.put("a", b"new and longer content")
        try:
            assert file.read() == b" content"
        except Conflict:
            assert isinstance(lake, AdlsLake)
    assert file.closed


def test_files_are_listed_renamed_copied_and_deleted(lake: Lake) -> None:
    for path in ("x/b/2", "x/a/1", "x/c", "xy/no"):
        lake.put(path, path.encode())
    assert [(info.path, info.size) for info in lake.list("x")] == [("x/a/1", 5), ("x/b/2", 5), ("x/c", 3)]
    assert [info.etag for info in lake.list("x/c")] in ([], [lake.read_with_etag("x/c")[1]])
    lake.rename("x/c", "x/a/1")
    assert lake.read("x/a/1") == b"x/c"
    lake.rename("x/a/1", "new/folder/1")
    assert lake.read("new/folder/1") == b"x/c"
    with pytest.raises(NotFound):
        lake.rename("x/c", "x/d")
    lake.copy("x/b/2", "copies/2")
    assert len(lake.read("copies/2")) == 5
    with pytest.raises(NotFound):
        lake.copy("nowhere", "copies/3")
    lake.delete("x/b/2")
    lake.delete("x/b/2")
    assert list(lake.list("x")) == []
    assert list(lake.list("no/such/folder")) == []


def test_a_listing_says_the_same_of_a_file_as_a_look_at_it(lake: Lake) -> None:
    """The dates of a dfs listing have no zone and its ETags no quotes, unlike those of every other call."""
    lake.put("x/a", b"1")
    lake.put("x/_tmp-0-users.parquet", b"half")
    for listed in [*lake.list("x"), *lake.unfinished("x")]:
        looked = lake.stat(listed.path)
        assert looked is not None
        assert listed.last_modified.utcoffset() == timedelta()
        assert abs(listed.last_modified - looked.last_modified) < timedelta(seconds=1)
        assert (listed.etag, listed.size) == (looked.etag, looked.size)


def test_a_listing_of_several_pages_is_complete(azure_lake: AdlsLake) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: azure_lake.put(f"many/{number:05}", b""), range(600)))
    assert [info.path for info in azure_lake.list("many")] == [f"many/{number:05}" for number in range(600)]


@pytest.mark.parametrize("size", [0, 1, 20 << 20])
@pytest.mark.parametrize("by_ranges", [False, True])
def test_a_source_blob_is_copied_only_in_its_version(
    lake: Lake, source: BlobClient, size: int, by_ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_ranges:
        monkeypatch.setattr(copying, "_inside_the_account", lambda *_: None)
    data = bytes(range(256)) * (size // 256) + b"a" * (size % 256)
    source.upload_blob(data, overwrite=True)
    blob = StorageBlob(source)
    version = blob.version()
    assert version.name == "2026/posts ä#1.parquet"
    proof.copy_in(lake, blob, version, "landing/posts/s/v.parquet", 1)
    assert md5(lake.read("landing/posts/s/v.parquet")).digest() == md5(data).digest()
    source.upload_blob(b"newer", overwrite=True)
    if size:
        with pytest.raises(Conflict):
            proof.copy_in(lake, blob, version, "landing/posts/s/late.parquet", 0)
        assert lake.stat("landing/posts/s/late.parquet") is None
    assert blob.delete(version) is False
    assert blob.delete(blob.version()) is True
    assert blob.delete(version) is False
    with pytest.raises(NotFound):
        blob.version()


def test_a_source_is_deleted_with_its_snapshots_and_not_while_it_is_leased(source: BlobClient) -> None:
    source.upload_blob(b"some bytes")
    source.create_snapshot()
    blob = StorageBlob(source)
    version = blob.version()
    lease = source.acquire_lease(15)
    with pytest.raises(TransientError, match="LeaseIdMissing: it is landed and cannot be deleted"):
        blob.delete(version)
    lease.release()
    assert blob.delete(version) is True
    assert not source.exists()


@pytest.mark.parametrize("size", [1, 5 << 20])
def test_between_accounts_the_service_reads_the_blocks_itself(
    azure_lake: AdlsLake, source: BlobClient, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_same_account", lambda *_: False)
    monkeypatch.setattr(copying, "_by_ranges", lambda *_: pytest.fail("bytes passed through this process"))
    monkeypatch.setattr(copying, "URL_BLOCK", 1 << 20)
    data = bytes(range(256)) * (size // 256) + b"a" * (size % 256)
    source.upload_blob(data, overwrite=True)
    blob = StorageBlob(source)
    version = blob.version()
    proof.copy_in(azure_lake, blob, version, "landed", 0.5)
    assert azure_lake.read("landed") == data
    source.upload_blob(b"newer", overwrite=True)
    with pytest.raises(Conflict):
        proof.copy_in(azure_lake, blob, version, "late", 0)


@pytest.mark.parametrize("way", ["blocks_from_url", "_by_ranges"])
def test_the_service_returns_the_checksum_of_each_stored_block(
    azure_lake: AdlsLake, source: BlobClient, blob_service: BlobServiceClient, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "URL_BLOCK", 3000)
    monkeypatch.setattr(copying, "COPY_RANGE", 3000)
    data = bytes(range(256)) * 27
    source.upload_blob(data)
    blob = StorageBlob(source)
    with blob_service.get_blob_client(source.container_name, "copy") as target:
        sums = getattr(copying, way)(blob, blob.version(), target).sums
        assert target.download_blob().readall() == data
    expected = [(start, crc64(data[start : start + 3000])) for start in (0, 3000, 6000)]
    assert [(each.offset, each.crc64) for each in sums] == expected


@pytest.mark.parametrize("proof_share", [0.3, 1])
def test_a_block_that_the_service_stored_wrongly_fails_the_verification(
    azure_lake: AdlsLake, source: BlobClient, proof_share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_same_account", lambda *_: False)
    monkeypatch.setattr(copying, "URL_BLOCK", 3000)
    stage = BlobClient.stage_block_from_url
    source.upload_blob(bytes(range(256)) * 27)
    monkeypatch.setattr(BlobClient, "stage_block_from_url", lambda *a, **k: stage(*a, **{**k, "source_offset": 1}))
    blob = StorageBlob(source)
    with pytest.raises(TransientError, match="landed differs from"):
        proof.copy_in(azure_lake, blob, blob.version(), "landed", proof_share)


def ranges_read(monkeypatch: pytest.MonkeyPatch, blob: BlobClient) -> list[int]:
    """The offsets at which this blob is read by ranges, filled in as it is read."""
    found: list[int] = []
    download = BlobClient.download_blob

    def noted(client: BlobClient, offset: int | None = None, *arguments: Any, **options: Any) -> Any:
        if client.url == blob.url and offset is not None:
            found.append(offset)
        return download(client, offset, *arguments, **options)

    monkeypatch.setattr(BlobClient, "download_blob", noted)
    return found


def test_bytes_that_pass_through_this_process_are_compared_with_the_source_md5(
    azure_lake: AdlsLake, source: BlobClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_inside_the_account", lambda *_: None)
    monkeypatch.setattr(copying, "COPY_RANGE", 3000)
    data = bytes(range(256)) * 27
    blob = StorageBlob(source)
    right, wrong = bytearray(md5(data).digest()), bytearray(md5(b"something else").digest())
    again = {"right": [], "none": [6000], "wrong": [6000, 3000, 0]}
    for kind, known in {"right": right, "none": None, "wrong": wrong}.items():
        source.stage_block("0", data)
        source.commit_block_list([BlobBlock("0")], content_settings=ContentSettings(content_md5=known))
        with monkeypatch.context() as patched:
            read = ranges_read(patched, source)
            copied = proof.copy_in(azure_lake, blob, blob.version(), "landed", 0.3)
        assert (read, copied.md5) == ([0, 3000, 6000, *again[kind]], md5(data).digest())
        assert azure_lake.read("landed") == data


def test_a_wrong_read_of_the_source_fails_the_verification(
    azure_lake: AdlsLake, source: BlobClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_inside_the_account", lambda *_: None)
    source.upload_blob(
        b"some bytes", content_settings=ContentSettings(content_md5=bytearray(md5(b"some bytes").digest()))
    )
    blob = StorageBlob(source)
    version = blob.version()
    readers = [blob.open(version), RangedReader(lambda *_: b"same bytes", 10, "wrong")]
    monkeypatch.setattr(blob, "open", lambda _: readers.pop())
    with pytest.raises(TransientError, match="landed differs from"):
        proof.copy_in(azure_lake, blob, version, "landed", 0)


@pytest.mark.parametrize("is_changed", [False, True])
def test_the_archived_copy_is_verified_by_the_checksums_of_the_landed_one(
    azure_lake: AdlsLake, source: BlobClient, is_changed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_inside_the_account", lambda *_: None)
    monkeypatch.setattr(copying, "URL_BLOCK", 4000)
    data = bytes(range(256)) * 27
    source.upload_blob(data)
    blob = StorageBlob(source)
    landed = proof.copy_in(azure_lake, blob, blob.version(), "landed", 1)
    if is_changed:
        azure_lake.put("landed", data[:-1] + b"!")
    monkeypatch.setattr(BlobClient, "download_blob", lambda *_, **__: pytest.fail("bytes passed through this process"))
    if is_changed:
        with pytest.raises(TransientError, match="archived differs from landed as it was written"):
            proof.copy(azure_lake, "landed", "archived", 1, landed)
    else:
        proof.copy(azure_lake, "landed", "archived", 1, landed)
        monkeypatch.undo()
        assert azure_lake.read("archived") == data


def test_a_copy_within_the_lake_is_verified(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.put("landed", b"some bytes")
    other = type(lake).open

    def damaged(self: Lake, path: str) -> RangedReader:
        return RangedReader(lambda *_: b"same bytes", 10, path) if path == "archived" else other(self, path)

    monkeypatch.setattr(type(lake), "open", damaged)
    with pytest.raises(TransientError, match="archived differs from landed"):
        proof.copy(lake, "landed", "archived", 0.1)
    proof.copy(lake, "landed", "archived", 0)


def test_a_block_that_changes_during_the_upload_is_not_committed(
    azure_lake: AdlsLake, source: BlobClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_inside_the_account", lambda *_: None)
    stage = BlobClient.stage_block
    monkeypatch.setattr(BlobClient, "stage_block", lambda client, name, data: stage(client, name, data[::-1]))
    source.upload_blob(b"some bytes")
    blob = StorageBlob(source)
    with pytest.raises(TransientError, match="block at byte 0 changed on its way"):
        proof.copy_in(azure_lake, blob, blob.version(), "landed", 0)
    assert azure_lake.stat("landed") is None


def test_a_copy_that_the_server_refuses_is_made_by_ranges(
    azure_lake: AdlsLake, source: BlobClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.upload_blob(b"some bytes")
    blob = StorageBlob(source)
    threads: set[str] = set()

    def refuse(*_: Any, **__: Any) -> None:
        threads.add(threading.current_thread().name)
        error = HttpResponseError("not implemented")
        error.status_code = 501
        raise error

    monkeypatch.setattr(BlobClient, "start_copy_from_url", refuse)
    proof.copy_in(azure_lake, blob, blob.version(), "a", 0)
    assert threads
    assert azure_lake.read("a") == b"some bytes"
