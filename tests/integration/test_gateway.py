"""The lake gateway behaves as ADLS Gen2 does, tested with the real SDKs."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from azure.core import MatchConditions
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.storage.blob import BlobServiceClient
from azure.storage.filedatalake import ContentSettings, DataLakeServiceClient, FileSystemClient

from localcloud import azurite
from localcloud.cloud import LocalCloud
from tests.localcloud_fixtures import CREDENTIAL

STALE: dict[str, Any] = {"etag": '"0x0"', "match_condition": MatchConditions.IfNotModified}
MISSING: dict[str, Any] = {"match_condition": MatchConditions.IfMissing}


def code_of(refused: pytest.ExceptionInfo[Any]) -> str:
    """The storage service's error code, which the SDKs add to their exceptions."""
    code = refused.value.error_code
    return str(getattr(code, "value", code))


def put(file_system: FileSystemClient, path: str, content: bytes = b"x") -> str:
    """Write a file and return its ETag."""
    client = file_system.get_file_client(path)
    client.upload_data(content, overwrite=True)
    etag: str = client.get_file_properties().etag
    return etag


def read(file_system: FileSystemClient, path: str) -> bytes:
    return file_system.get_file_client(path).download_file().readall()


def names(file_system: FileSystemClient, path: str | None = None, **options: Any) -> list[tuple[str, bool]]:
    return [(entry.name, entry.is_directory) for entry in file_system.get_paths(path, **options)]


class TestWriting:
    def test_a_file_of_many_chunks_is_read_in_full_and_by_range(self, file_system: FileSystemClient) -> None:
        content = bytes(range(256)) * 8000
        client = file_system.get_file_client("a/b/large.bin")
        client.upload_data(content, overwrite=True, chunk_size=300_000, max_concurrency=3)
        assert client.download_file().readall() == content
        assert client.download_file(offset=1000, length=500).readall() == content[1000:1500]

    def test_appended_bytes_are_visible_only_after_the_flush(self, file_system: FileSystemClient) -> None:
        client = file_system.create_file("log.txt")
        client.append_data(b"one ", 0, 4)
        client.append_data(b"two", 4, 3)
        assert client.get_file_properties().size == 0
        client.flush_data(7)
        client.append_data(b"!", 7, 1)
        client.flush_data(8)
        assert client.download_file().readall() == b"one two!"

    @pytest.mark.parametrize("position", [2, 9])
    def test_a_flush_to_a_position_inside_a_chunk_is_refused(
        self, file_system: FileSystemClient, position: int
    ) -> None:
        client = file_system.create_file("log.txt")
        client.append_data(b"four", 0, 4)
        with pytest.raises(HttpResponseError) as refused:
            client.flush_data(position)
        assert (refused.value.status_code, code_of(refused)) == (400, "InvalidFlushPosition")

    def test_an_abandoned_upload_does_not_affect_the_next_one(self, file_system: FileSystemClient) -> None:
        abandoned = file_system.create_file("f")
        abandoned.append_data(b"abandoned", 0, 9)
        abandoned.append_data(b"more", 9, 4)
        put(file_system, "f", b"new")
        assert read(file_system, "f") == b"new"

    def test_appending_to_a_missing_file_is_refused(self, file_system: FileSystemClient) -> None:
        with pytest.raises(ResourceNotFoundError) as refused:
            file_system.get_file_client("none").append_data(b"x", 0, 1)
        assert code_of(refused) == "PathNotFound"

    def test_a_file_written_as_a_blob_can_be_appended_to(
        self, file_system: FileSystemClient, blob_service: BlobServiceClient
    ) -> None:
        blob_service.get_blob_client(file_system.file_system_name, "f").upload_blob(b"blob")
        client = file_system.get_file_client("f")
        client.append_data(b" and more", 4, 9)
        client.flush_data(13)
        assert client.download_file().readall() == b"blob and more"

    def test_metadata_and_content_type_are_kept_by_flush_and_rename(self, file_system: FileSystemClient) -> None:
        client = file_system.create_file(
            "f.csv", content_settings=ContentSettings(content_type="text/csv"), metadata={"rows": "7"}
        )
        client.append_data(b"x", 0, 1)
        client.flush_data(1)
        properties = client.rename_file(f"{file_system.file_system_name}/g.csv").get_file_properties()
        assert properties.content_settings.content_type == "text/csv"
        assert properties.metadata == {"rows": "7"}

    def test_names_may_contain_any_character(self, file_system: FileSystemClient) -> None:
        put(file_system, "day=2026-11-22/ü & +%#?.txt", "π".encode())
        renamed = "day=2026-11-22/é =2.txt"
        file_system.get_file_client("day=2026-11-22/ü & +%#?.txt").rename_file(
            f"{file_system.file_system_name}/{renamed}"
        )
        assert read(file_system, renamed).decode() == "π"
        assert names(file_system) == [("day=2026-11-22", True), (renamed, False)]

    def test_a_file_cannot_be_below_a_file(self, file_system: FileSystemClient) -> None:
        put(file_system, "a")
        with pytest.raises(HttpResponseError) as refused:
            put(file_system, "a/b")
        assert (refused.value.status_code, code_of(refused)) == (409, "PathConflict")

    def test_a_missing_file_system_is_not_found(self, local_cloud: LocalCloud, file_system: FileSystemClient) -> None:
        url = azurite.endpoint(local_cloud.ports["lake"])
        with (
            FileSystemClient(url, "missing", credential=CREDENTIAL, retry_total=0) as missing,
            pytest.raises(ResourceNotFoundError) as refused,
        ):
            missing.create_file("f")
        assert code_of(refused) == "FilesystemNotFound"


class TestConditions:
    def test_a_file_can_be_created_only_if_it_is_missing(self, file_system: FileSystemClient) -> None:
        put(file_system, "f", b"first")
        with pytest.raises(ResourceExistsError) as refused:
            file_system.get_file_client("f").create_file(**MISSING)
        assert (refused.value.status_code, code_of(refused)) == (409, "PathAlreadyExists")
        assert read(file_system, "f") == b"first"

    def test_writing_under_a_stale_etag_is_refused(self, file_system: FileSystemClient) -> None:
        etag = put(file_system, "f", b"first")
        client = file_system.get_file_client("f")
        with pytest.raises(ResourceModifiedError):
            client.upload_data(b"second", overwrite=True, **STALE)
        client.upload_data(b"second", overwrite=True, etag=etag, match_condition=MatchConditions.IfNotModified)
        assert read(file_system, "f") == b"second"

    def test_flushing_under_a_stale_etag_is_refused(self, file_system: FileSystemClient) -> None:
        client = file_system.create_file("f")
        client.append_data(b"x", 0, 1)
        with pytest.raises(ResourceModifiedError) as refused:
            client.flush_data(1, **STALE)
        assert code_of(refused) == "ConditionNotMet"

    def test_deleting_under_a_stale_etag_is_refused(self, file_system: FileSystemClient) -> None:
        put(file_system, "f")
        with pytest.raises(ResourceModifiedError):
            file_system.get_file_client("f").delete_file(**STALE)
        assert read(file_system, "f") == b"x"

    def test_renaming_onto_an_unexpected_file_is_refused(self, file_system: FileSystemClient) -> None:
        put(file_system, "new", b"new")
        etag = put(file_system, "old", b"old")
        target = f"{file_system.file_system_name}/old"
        source = file_system.get_file_client("new")
        with pytest.raises(ResourceExistsError) as exists:
            source.rename_file(target, **MISSING)
        with pytest.raises(ResourceModifiedError) as stale:
            source.rename_file(target, **STALE)
        assert (code_of(exists), code_of(stale)) == ("PathAlreadyExists", "ConditionNotMet")
        assert read(file_system, "old") == b"old"
        source.rename_file(target, etag=etag, match_condition=MatchConditions.IfNotModified)
        assert read(file_system, "old") == b"new"
        assert names(file_system) == [("old", False)]

    def test_renaming_under_an_etag_onto_a_missing_file_is_refused(self, file_system: FileSystemClient) -> None:
        etag = put(file_system, "f")
        with pytest.raises(ResourceModifiedError):
            file_system.get_file_client("f").rename_file(
                f"{file_system.file_system_name}/g", etag=etag, match_condition=MatchConditions.IfNotModified
            )

    def test_renaming_a_changed_source_is_refused(self, file_system: FileSystemClient) -> None:
        put(file_system, "f")
        conditions: dict[str, Any] = {"source_etag": '"0x0"', "source_match_condition": MatchConditions.IfNotModified}
        with pytest.raises(HttpResponseError) as refused:
            file_system.get_file_client("f").rename_file(f"{file_system.file_system_name}/g", **conditions)
        assert (refused.value.status_code, code_of(refused)) == (412, "SourceConditionNotMet")

    def test_of_concurrent_renames_onto_one_name_exactly_one_succeeds(self, file_system: FileSystemClient) -> None:
        writers = 8
        for number in range(writers):
            put(file_system, f"tmp-{number}", str(number).encode())
        together = threading.Barrier(writers)

        def rename(number: int) -> bool:
            together.wait()
            try:
                file_system.get_file_client(f"tmp-{number}").rename_file(
                    f"{file_system.file_system_name}/pointer.json", **MISSING
                )
            except ResourceExistsError:
                return False
            return True

        with ThreadPoolExecutor(writers) as pool:
            won = list(pool.map(rename, range(writers)))
        assert won.count(True) == 1
        assert read(file_system, "pointer.json") == str(won.index(True)).encode()

    def test_of_concurrent_replacements_of_one_version_exactly_one_succeeds(
        self, file_system: FileSystemClient
    ) -> None:
        writers = 8
        etag = put(file_system, "pointer.json", b"old")
        for number in range(writers):
            put(file_system, f"tmp-{number}", str(number).encode())
        together = threading.Barrier(writers)

        def rename(number: int) -> bool:
            together.wait()
            try:
                file_system.get_file_client(f"tmp-{number}").rename_file(
                    f"{file_system.file_system_name}/pointer.json",
                    etag=etag,
                    match_condition=MatchConditions.IfNotModified,
                )
            except ResourceModifiedError:
                return False
            return True

        with ThreadPoolExecutor(writers) as pool:
            won = list(pool.map(rename, range(writers)))
        assert won.count(True) == 1


class TestRenaming:
    def test_renaming_a_missing_source_is_refused(self, file_system: FileSystemClient) -> None:
        with pytest.raises(ResourceNotFoundError) as refused:
            file_system.get_file_client("none").rename_file(f"{file_system.file_system_name}/f")
        assert code_of(refused) == "SourcePathNotFound"

    def test_renaming_into_a_missing_directory_is_refused(self, file_system: FileSystemClient) -> None:
        put(file_system, "f")
        with pytest.raises(ResourceNotFoundError) as refused:
            file_system.get_file_client("f").rename_file(f"{file_system.file_system_name}/nowhere/f")
        assert code_of(refused) == "RenameDestinationParentPathNotFound"

    def test_a_directory_is_renamed_with_its_contents(self, file_system: FileSystemClient) -> None:
        put(file_system, "from/a", b"a")
        put(file_system, "from/deep/b", b"b")
        put(file_system, "from-else", b"stays")
        file_system.get_directory_client("from").rename_directory(f"{file_system.file_system_name}/to")
        expected = [("from-else", False), ("to", True), ("to/a", False), ("to/deep", True), ("to/deep/b", False)]
        assert names(file_system) == expected
        assert read(file_system, "to/deep/b") == b"b"

    def test_renaming_a_directory_into_itself_is_refused(self, file_system: FileSystemClient) -> None:
        put(file_system, "d/f")
        with pytest.raises(HttpResponseError) as refused:
            file_system.get_directory_client("d").rename_directory(f"{file_system.file_system_name}/d/e")
        assert code_of(refused) == "InvalidRenameSourcePath"

    def test_renaming_a_directory_onto_a_full_one_is_refused(self, file_system: FileSystemClient) -> None:
        put(file_system, "d/f")
        put(file_system, "e/f")
        with pytest.raises(ResourceExistsError):
            file_system.get_directory_client("d").rename_directory(f"{file_system.file_system_name}/e")
        assert read(file_system, "d/f") == b"x"

    def test_a_file_is_renamed_into_another_file_system(
        self, local_cloud: LocalCloud, file_system: FileSystemClient
    ) -> None:
        put(file_system, "f", b"moved")
        url = azurite.endpoint(local_cloud.ports["lake"])
        with DataLakeServiceClient(url, credential=CREDENTIAL) as service:
            other = service.create_file_system(f"{file_system.file_system_name}b")
            file_system.get_file_client("f").rename_file(f"{other.file_system_name}/f")
            content = read(other, "f")
            other.delete_file_system()
        assert content == b"moved"
        assert names(file_system) == []


class TestDeleting:
    def test_deleting_a_missing_file_is_refused(self, file_system: FileSystemClient) -> None:
        with pytest.raises(ResourceNotFoundError) as refused:
            file_system.get_file_client("none").delete_file()
        assert code_of(refused) == "PathNotFound"

    def test_a_directory_is_deleted_with_its_contents(self, file_system: FileSystemClient) -> None:
        put(file_system, "d/e/f")
        put(file_system, "d-else")
        file_system.get_directory_client("d").delete_directory()
        assert names(file_system) == [("d-else", False)]

    def test_deleting_a_full_directory_as_a_file_is_refused(self, file_system: FileSystemClient) -> None:
        put(file_system, "d/f")
        with pytest.raises(HttpResponseError) as refused:
            file_system.get_file_client("d").delete_file()
        assert (refused.value.status_code, code_of(refused)) == (409, "DirectoryNotEmpty")

    def test_a_directory_stays_when_its_last_file_is_deleted(self, file_system: FileSystemClient) -> None:
        put(file_system, "d/f")
        file_system.get_file_client("d/f").delete_file()
        assert names(file_system) == [("d", True)]

    def test_a_deleted_directory_can_be_created_again(self, file_system: FileSystemClient) -> None:
        put(file_system, "d/e/f")
        file_system.get_directory_client("d").delete_directory()
        put(file_system, "d/e/g")
        file_system.get_file_client("d/e/g").delete_file()
        assert names(file_system) == [("d", True), ("d/e", True)]


class TestListing:
    def test_a_listing_is_recursive_or_of_one_level(self, file_system: FileSystemClient) -> None:
        for path in ("d/a/1", "d/a/2", "d/b", "e"):
            put(file_system, path)
        assert names(file_system, "d", recursive=False) == [("d/a", True), ("d/b", False)]
        assert names(file_system, "d") == [("d/a", True), ("d/a/1", False), ("d/a/2", False), ("d/b", False)]

    @pytest.mark.parametrize("page", [1, 2, 3, 7])
    def test_every_page_size_lists_every_path_once(self, file_system: FileSystemClient, page: int) -> None:
        for path in ("a/1", "a/2", "b", "c/d/e"):
            put(file_system, path)
        pages = list(file_system.get_paths(max_results=page).by_page())
        found = [[entry.name for entry in entries] for entries in pages]
        assert [name for entries in found for name in entries] == ["a", "a/1", "a/2", "b", "c", "c/d", "c/d/e"]
        assert max(len(entries) for entries in found) == page

    def test_listed_paths_have_size_time_and_etag(self, file_system: FileSystemClient) -> None:
        etag = put(file_system, "f", b"12345")
        (entry,) = file_system.get_paths()
        assert (entry.content_length, f'"{entry.etag}"') == (5, etag)
        modified = file_system.get_file_client("f").get_file_properties().last_modified
        assert entry.last_modified == modified.replace(tzinfo=None)

    def test_listing_a_missing_directory_is_refused(self, file_system: FileSystemClient) -> None:
        with pytest.raises(ResourceNotFoundError) as refused:
            names(file_system, "none")
        assert code_of(refused) == "PathNotFound"

    def test_the_listing_of_an_empty_directory_is_empty(self, file_system: FileSystemClient) -> None:
        file_system.create_directory("d")
        assert names(file_system, "d") == []

    def test_blobs_written_without_the_gateway_are_listed_with_their_directories(
        self, file_system: FileSystemClient, blob_service: BlobServiceClient
    ) -> None:
        blob_service.get_blob_client(file_system.file_system_name, "landing/posts/1.parquet").upload_blob(b"x")
        expected = [("landing", True), ("landing/posts", True), ("landing/posts/1.parquet", False)]
        assert names(file_system) == expected
        assert file_system.get_directory_client("landing/posts").exists()
        assert not file_system.get_directory_client("landing/pos").exists()
        file_system.get_directory_client("landing").rename_directory(f"{file_system.file_system_name}/moved")
        assert read(file_system, "moved/posts/1.parquet") == b"x"


class TestTheRest:
    def test_a_directory_is_distinguished_from_a_file(self, file_system: FileSystemClient) -> None:
        put(file_system, "d/f")
        assert file_system.get_directory_client("d").get_directory_properties().metadata["hdi_isfolder"] == "true"
        access = file_system.get_file_client("d/f").get_access_control()
        assert (access["owner"], access["permissions"]) == ("$superuser", "rw-r-----")

    def test_the_blob_and_dfs_services_return_the_same_etag(
        self, file_system: FileSystemClient, blob_service: BlobServiceClient
    ) -> None:
        etag = put(file_system, "d/f")
        blob = blob_service.get_blob_client(file_system.file_system_name, "d/f")
        assert blob.get_blob_properties().etag == etag

    def test_the_blob_and_dfs_services_refuse_a_wrong_key(
        self, local_cloud: LocalCloud, file_system: FileSystemClient
    ) -> None:
        put(file_system, "f")
        url = azurite.endpoint(local_cloud.ports["lake"])
        credential = {"account_name": azurite.ACCOUNT, "account_key": "d3Jvbmcga2V5"}
        with FileSystemClient(url, file_system.file_system_name, credential=credential, retry_total=0) as stranger:
            with pytest.raises(ClientAuthenticationError) as refused:
                stranger.create_file("g")
            assert code_of(refused) == "AuthenticationFailed"
            with pytest.raises(HttpResponseError) as refused_by_azurite:
                stranger.get_file_client("f").get_file_properties()
            assert refused_by_azurite.value.status_code == 403

    def test_an_unsupported_call_is_refused_as_not_implemented(self, file_system: FileSystemClient) -> None:
        put(file_system, "f")
        with pytest.raises(HttpResponseError) as refused:
            file_system.get_file_client("f").set_access_control(permissions="0777")
        assert (refused.value.status_code, code_of(refused)) == (501, "NotImplemented")
