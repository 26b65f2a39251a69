"""Behaviour of the storage service that no emulator has: a token for the source, a pending copy, a lost response."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.storage.blob import BlobClient, BlobServiceClient, ExponentialRetry
from azure.storage.filedatalake import DataLakeServiceClient

from shared import copying
from shared.copying import copy_blob
from shared.errors import Conflict, NotFound
from shared.lake import AdlsLake
from shared.storage import NOTHING_KNOWN, BlobVersion, BlockSum, RangedReader, StorageBlob, crc64
from tests.azure_stub import CREDENTIAL, Blob, StubAccount, stub_account

DATA = bytes(range(256)) * 40
NAME = "posts/in/a b.parquet"
AT_ONCE: Any = {"retry_policy": ExponentialRetry(initial_backoff=0, increment_base=0, random_jitter_range=0)}


@pytest.fixture
def account() -> Iterator[StubAccount]:
    with stub_account() as account:
        yield account


class Identity:
    """A managed identity that gives tokens only for storage."""

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        assert scopes == ("https://storage.azure.com/.default",)
        return AccessToken("the-token", 2_000_000_000)


def target(account: StubAccount) -> BlobClient:
    return BlobServiceClient(account.address, CREDENTIAL, **AT_ONCE).get_blob_client("lake", "landed")


def source(account: StubAccount, etag: str = '"1"') -> tuple[StorageBlob, BlobVersion]:
    """A blob of another account, which this app reads with its identity."""
    container, name = NAME.split("/", 1)
    client = BlobClient("https://other.blob.core.windows.net", container, name, credential=Identity())
    account.token = "the-token"
    account.elsewhere[client.url] = Blob(DATA, '"1"')
    version = BlobVersion("posts", "in/a b.parquet", etag, datetime(2026, 11, 22, tzinfo=UTC), len(DATA), None)
    return StorageBlob(client), version


def test_the_service_reads_the_source_with_this_apps_identity(
    account: StubAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "URL_BLOCK", 4_000)
    copied = copy_blob(*source(account), target(account))
    assert account.blobs["lake/landed"].content == DATA
    sums = [BlockSum(start, len(block), crc64(block)) for start in (0, 4_000, 8_000) if (block := DATA[start:][:4_000])]
    assert copied.sums == sums
    assert account.calls == ["PUT block x-ms-copy-source"] * 3 + ["PUT blocklist"]


def test_a_source_whose_content_has_changed_is_not_copied(account: StubAccount) -> None:
    with pytest.raises(Conflict, match="SourceConditionNotMet"):
        copy_blob(*source(account, etag='"0"'), target(account))
    assert account.blobs == {}


def test_a_source_that_the_service_may_not_read_is_copied_through_this_process(
    account: StubAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob, version = source(account)
    account.token = "another one"
    reader = RangedReader(lambda start, length: DATA[start : start + length], len(DATA), "source")
    monkeypatch.setattr(blob, "open", lambda _: reader)
    copied = copy_blob(blob, version, target(account))
    assert account.blobs["lake/landed"].content == DATA
    assert copied.sums == [BlockSum(0, len(DATA), crc64(DATA))]
    assert account.calls == ["PUT block x-ms-copy-source", "PUT block", "PUT blocklist"]


@pytest.mark.parametrize("copies_end", ["never", "when aborted"])
def test_a_copy_that_stays_pending_is_aborted_before_blocks_are_staged(
    account: StubAccount, copies_end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "SERVER_COPY_LIMIT_SECONDS", 0.1)
    account.copies_end = copies_end
    client = BlobServiceClient(account.address, CREDENTIAL, **AT_ONCE).get_blob_client("posts", "a")
    blob, version = StorageBlob(client), source(account)[1]
    reader = RangedReader(lambda start, length: DATA[start : start + length], len(DATA), "source")
    monkeypatch.setattr(blob, "open", lambda _: reader)
    copied = copy_blob(blob, version, target(account))
    assert account.calls.count("PUT copy x-ms-copy-action") == 1
    if copies_end == "never":
        assert account.blobs["lake/landed"].content == DATA
    else:
        assert copied == NOTHING_KNOWN
        assert "PUT block" not in account.calls


def lake(account: StubAccount) -> AdlsLake:
    files = DataLakeServiceClient(account.address, CREDENTIAL, **AT_ONCE).get_file_system_client("lake")
    return AdlsLake(files, BlobServiceClient(account.address, CREDENTIAL, **AT_ONCE).get_container_client("lake"))


def test_a_rename_whose_response_is_lost_succeeds_on_retry(account: StubAccount) -> None:
    account.blobs = {"lake/_tmp": Blob(b"new", '"2"'), "lake/users": Blob(b"old", '"1"')}
    account.answers_to_lose = 1
    lake(account).rename("_tmp", "users")
    assert account.blobs == {"lake/users": Blob(b"new", '"2"')}
    assert account.calls.count("PUT x-ms-rename-source") == 2


def test_a_missing_source_is_not_found_even_if_the_target_exists(account: StubAccount) -> None:
    account.blobs = {"lake/users": Blob(b"old", '"1"')}
    with pytest.raises(NotFound, match="_tmp does not exist"):
        lake(account).rename("_tmp", "users")
    with pytest.raises(NotFound, match="_tmp does not exist"):  # it existed when its ETag was read
        lake(account)._rename("_tmp", "users", '"2"')
    assert account.blobs == {"lake/users": Blob(b"old", '"1"')}
