"""Copying a source blob into the lake: inside the storage service where it allows that, else range by range through us.

Every way is bound to the ETag of the version that was checked, and the copy appears in one step. Where the service
answers with the CRC-64 of a block it has stored, the proof of the copy takes it (`shared.storage.same_content`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from shared.errors import Conflict, NotFound, TransientError
from shared.storage import COPY_RANGE, BlobVersion, BlockSum, SourceBlob, crc64, storage_errors

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient

STORAGE_SCOPE = "https://storage.azure.com/.default"
SERVER_COPY_POLL_SECONDS = 0.05
SERVER_COPY_LIMIT_SECONDS = 120
URL_BLOCK = 64 << 20
"""Bytes the service fetches by itself for one block; none of them passes through us."""
WORKERS = 2
"""With blocks of 4 MB through us 1 GB peaks at 97 MiB in a function that starts with 87."""
ACCESS_LASTS = timedelta(minutes=30)


def copy_blob(source: SourceBlob, version: BlobVersion, target: BlobClient) -> list[BlockSum]:
    """Copy that version of a source blob onto `target`; returns the sums of its blocks if the service gives them.

    Raises Conflict when the source has another content by then, NotFound when it is gone, TransientError.
    """
    if version.size > 0:
        within_the_service = _inside_the_account if _same_account(source.client, target) else _from_url
        sums = within_the_service(source, version, target)
        if sums is not None:
            return sums
    return _by_ranges(source, version, target)


def _same_account(source: BlobClient, target: BlobClient) -> bool:
    return source.primary_endpoint.split("/")[2] == target.primary_endpoint.split("/")[2] and (
        source.account_name == target.account_name
    )


def _none_if_refused(copy: Callable[[], list[BlockSum] | None]) -> list[BlockSum] | None:
    """None where the service will not do a copy (not implemented, not authorized for it): another way is tried."""
    from azure.core.exceptions import HttpResponseError

    try:
        return copy()
    except (NotFound, Conflict, TransientError):
        raise
    except Exception as error:
        if isinstance(error.__cause__, HttpResponseError):
            return None
        raise


def _inside_the_account(source: SourceBlob, version: BlobVersion, target: BlobClient) -> list[BlockSum] | None:
    """Copy Blob (https://learn.microsoft.com/rest/api/storageservices/copy-blob)."""
    from azure.core import MatchConditions

    def copy() -> list[BlockSum] | None:
        with storage_errors(source.what):
            started = target.start_copy_from_url(
                source.client.url, source_etag=version.etag, source_match_condition=MatchConditions.IfNotModified
            )
            status = str(started["copy_status"])
            limit = time.monotonic() + SERVER_COPY_LIMIT_SECONDS
            while status == "pending" and time.monotonic() < limit:
                time.sleep(SERVER_COPY_POLL_SECONDS)
                status = str(target.get_blob_properties().copy.status)
        return [] if status == "success" else None

    return _none_if_refused(copy)


def _from_url(source: SourceBlob, version: BlobVersion, target: BlobClient) -> list[BlockSum] | None:
    """Put Block From URL (https://learn.microsoft.com/rest/api/storageservices/put-block-from-url) across accounts.

    The service reads the source with this app's identity, or by a signature of the source's key that lasts 30 minutes.
    """
    url, access = _readable(source.client)

    def stage(offset: int) -> BlockSum:
        length = min(URL_BLOCK, version.size - offset)
        with storage_errors(source.what):
            staged = target.stage_block_from_url(
                _block_id(offset),
                url,
                source_offset=offset,
                source_length=length,
                source_authorization=access,
                headers={"x-ms-source-if-match": version.etag},
            )
        return BlockSum(offset, length, _given_crc64(staged))

    return _none_if_refused(lambda: _in_blocks(stage, URL_BLOCK, version, target))


def _readable(source: BlobClient) -> tuple[str, str | None]:
    """An address the service may read from, and the Authorization it needs there."""
    from azure.storage.blob import BlobSasPermissions, generate_blob_sas

    credential = source.credential
    if hasattr(credential, "get_token"):
        return source.url, f"Bearer {credential.get_token(STORAGE_SCOPE).token}"
    signature = generate_blob_sas(
        str(source.account_name),
        source.container_name,
        source.blob_name,
        account_key=credential.account_key,
        permission=BlobSasPermissions(read=True),
        expiry=datetime.now(UTC) + ACCESS_LASTS,
    )
    return f"{source.url}?{signature}", None


def _by_ranges(source: SourceBlob, version: BlobVersion, target: BlobClient) -> list[BlockSum]:
    """Ranged reads into staged blocks; what is in memory is 4 MB a worker, twice while it arrives."""

    def move(offset: int) -> BlockSum:
        reader = source.open(version)
        reader.seek(offset)
        data = reader.read(COPY_RANGE)
        with storage_errors(target.blob_name):
            staged = target.stage_block(_block_id(offset), data)
        stored = _given_crc64(staged)
        if stored is not None and stored != crc64(data):
            raise TransientError(f"{target.blob_name}: the block at byte {offset} changed on its way; copy it again")
        return BlockSum(offset, len(data), stored)

    return _in_blocks(move, COPY_RANGE, version, target)


def _block_id(offset: int) -> str:
    return f"{offset:020}"


def _given_crc64(staged: dict[str, Any]) -> int | None:
    """What the service computed over the block it stored: 8 bytes, the lowest first; None where it computes nothing."""
    given = staged.get("content_crc64")
    return int.from_bytes(given, "little") if given else None


def _in_blocks(
    stage: Callable[[int], BlockSum], block: int, version: BlobVersion, target: BlobClient
) -> list[BlockSum]:
    """Stage all blocks, commit them in one step; returns their sums if the service gave one for each."""
    from azure.storage.blob import BlobBlock, ContentSettings

    with ThreadPoolExecutor(WORKERS) as pool:
        sums = list(pool.map(stage, range(0, version.size, block)))
    settings = ContentSettings(content_md5=bytearray(version.md5) if version.md5 else None)
    with storage_errors(target.blob_name):
        target.commit_block_list([BlobBlock(_block_id(each.offset)) for each in sums], content_settings=settings)
    return sums if all(each.crc64 is not None for each in sums) else []
