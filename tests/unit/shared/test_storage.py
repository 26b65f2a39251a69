"""Reading by ranges, and the verification of a copy."""

from __future__ import annotations

from hashlib import md5
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from azure.core import exceptions as azure

from shared import proof
from shared.errors import AccessDenied, Conflict, NotFound, StackTopicsError, TerminalError, TransientError
from shared.lake import AdlsLake
from shared.messages import PostsLanded
from shared.proof import same_content
from shared.queues import StorageQueue
from shared.secrets import Secrets
from shared.storage import BlockSum, Copied, RangedReader, StorageBlob, crc64, crc64_of, storage_errors

DATA = bytes(range(256)) * 40


def reader(data: bytes, asked: list[int] | None = None) -> RangedReader:
    def fetch(offset: int, length: int) -> bytes:
        if asked is not None:
            asked.append(offset)
        return data[offset : offset + length]

    return RangedReader(fetch, len(data), "data")


def flipped(at: int) -> bytes:
    return DATA[:at] + bytes([DATA[at] ^ 1]) + DATA[at + 1 :]


@pytest.fixture(autouse=True)
def _small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "COPY_RANGE", 1024)


@pytest.mark.parametrize("known_md5", [None, md5(DATA).digest()])
def test_a_full_comparison_detects_a_change_of_any_byte(known_md5: bytes | None) -> None:
    assert same_content(reader(DATA), reader(DATA), known_md5, 1)
    for at in (0, 5_000, len(DATA) - 1):
        assert not same_content(reader(DATA), reader(flipped(at)), known_md5, 1)
    assert not same_content(reader(DATA), reader(DATA[:-1]), known_md5, 0)


def test_an_original_with_a_wrong_stored_md5_is_compared_byte_by_byte() -> None:
    assert same_content(reader(DATA), reader(DATA), md5(b"something else").digest(), 1)


def test_a_known_md5_saves_reading_the_original() -> None:
    asked: list[int] = []
    assert same_content(reader(DATA, asked), reader(DATA), md5(DATA).digest(), 1)
    assert asked == []


def test_matching_md5_and_block_checksums_prove_a_copy_without_reading() -> None:
    sums = [BlockSum(0, len(DATA), crc64(DATA))]
    asked: list[int] = []
    assert same_content(
        reader(DATA, asked), reader(DATA, asked), md5(DATA).digest(), 0.1, Copied(sums, md5(DATA).digest())
    )
    assert asked == []
    assert same_content(reader(DATA, asked), reader(DATA), md5(DATA).digest(), 0.1, Copied(md5=md5(DATA).digest()))
    assert asked == [9216]


def test_a_copy_whose_md5_differs_is_compared_in_full(caplog: pytest.LogCaptureFixture) -> None:
    for sums in ([], [BlockSum(0, len(DATA), crc64(flipped(0)))]):
        copied = Copied(sums, md5(flipped(0)).digest())
        assert not same_content(reader(DATA), reader(flipped(0)), md5(DATA).digest(), 0, copied)
    assert "the MD5 of data differs" in caplog.text
    wrongly_stored = md5(b"something else").digest()
    assert same_content(reader(DATA), reader(DATA), wrongly_stored, 0, Copied(md5=md5(DATA).digest()))


def test_the_checksum_of_a_file_is_combined_from_those_of_its_blocks() -> None:
    starts = [0, 1, 5_000, 5_001, len(DATA)]
    parts = [DATA[start:end] for start, end in pairwise(starts)]
    blocks = [BlockSum(start, len(part), crc64(part)) for start, part in zip(starts, parts, strict=False)]
    assert crc64_of(blocks) == crc64(DATA)
    assert crc64_of([*blocks, BlockSum(len(DATA), 1, None)]) is None
    assert crc64_of([]) is None


def test_the_given_share_of_the_ranges_is_read_and_always_the_last_range() -> None:
    asked: list[int] = []
    assert same_content(reader(DATA, asked), reader(DATA), None, 0.3)
    assert asked == [9216, 6144, 3072]
    assert not same_content(reader(DATA), reader(flipped(len(DATA) - 1)), None, 0.01)
    assert same_content(reader(b""), reader(b""), None, 1)


def test_the_checksum_is_crc64_nvme() -> None:
    assert crc64(b"123456789") == 0xAE8B14860A799888  # the check value of the catalogue of parametrised CRC algorithms
    assert crc64(b"6789", crc64(b"12345")) == crc64(b"123456789")


def test_the_block_checksums_save_reading_the_copy() -> None:
    sums = [BlockSum(start, 2560, crc64(DATA[start : start + 2560])) for start in range(0, len(DATA), 2560)]
    asked: list[int] = []
    untouched: list[int] = []
    assert same_content(reader(DATA, asked), reader(DATA, untouched), None, 0.5, Copied(sums))
    assert asked == [7680, 8704, 9728, 2560, 3584, 4608]
    assert untouched == []
    for at in (0, 5_000, len(DATA) - 1):
        assert not same_content(reader(flipped(at)), reader(DATA), None, 1, Copied(sums))


def test_a_denied_access_names_the_missing_role() -> None:
    def forbid(*_: Any, **__: Any) -> None:
        error = azure.HttpResponseError("no")
        error.status_code = 403
        raise error

    asked: Any = SimpleNamespace(
        queue_name="q", blob_name="b", container_name="c", vault_url="v", url="u",
        send_message=forbid, get_secret=forbid, get_blob_properties=forbid, get_blob_client=lambda _: asked,
    )  # fmt: skip
    landed = PostsLanded(source_id="a", version="b")
    for call, role in (
        (lambda: StorageQueue(asked, asked).send(landed), "Storage Queue Data Contributor"),
        (lambda: Secrets({}, asked).get("postgres-password"), "Key Vault Secrets User"),
        (lambda: StorageBlob(asked).version(), "Storage Blob Data Contributor"),
        (lambda: AdlsLake(asked, asked).stat("a"), "Storage Blob Data Owner"),
    ):
        with pytest.raises(AccessDenied, match=f"grant the identity {role} on the"):
            call()


@pytest.mark.parametrize(
    ("error", "status", "becomes"),
    [
        (azure.ResourceNotFoundError("no"), 404, NotFound),
        (azure.ClientAuthenticationError("no"), 401, AccessDenied),
        (azure.HttpResponseError("no"), 403, AccessDenied),
        (azure.ResourceExistsError("no"), 409, Conflict),
        (azure.ResourceModifiedError("no"), 412, Conflict),
        (azure.HttpResponseError("busy"), 503, TransientError),
        (azure.HttpResponseError("slow down"), 429, TransientError),
        (azure.HttpResponseError("no"), 501, TerminalError),
        (azure.HttpResponseError("no"), 400, TerminalError),
        (azure.ServiceRequestError("no route"), None, TransientError),
    ],
)
def test_errors_of_the_azure_clients_become_errors_of_the_project(
    error: azure.AzureError, status: int | None, becomes: type[StackTopicsError]
) -> None:
    if isinstance(error, azure.HttpResponseError):
        error.status_code = status
    with pytest.raises(becomes, match=r"^a/b") as translated, storage_errors("a/b"):
        raise error
    assert type(translated.value) is becomes
    assert translated.value.__cause__ is error
