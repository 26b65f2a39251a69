"""Copying a source blob into the lake: inside the storage service where it allows that, else range by range through us.

Every way is bound to the ETag of the version that was checked, and the copy appears in one step. Where the service
answers with the CRC-64 of a block it has stored, and where bytes pass through us, the proof of the copy takes what is
known from that (`shared.storage.same_content`).
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from shared.errors import Conflict, NotFound, StackTopicsError, TransientError
from shared.storage import (
    COPY_RANGE,
    NOTHING_KNOWN,
    BlobVersion,
    BlockSum,
    Copied,
    StorageBlob,
    crc64,
    error_code,
    storage_errors,
)

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient

STORAGE_SCOPE = "https://storage.azure.com/.default"
SERVER_COPY_POLL_SECONDS = 0.05
SERVER_COPY_LIMIT_SECONDS = 120
URL_BLOCK = 64 << 20
"""Bytes the service fetches by itself for one block; none of them passes through us."""
WORKERS = 2
"""With blocks of 4 MB through us a copy takes 17 MiB beyond what the function starts with, whatever its size."""
ACCESS_LASTS = timedelta(minutes=30)


def copy_blob(source: StorageBlob, version: BlobVersion, target: BlobClient) -> Copied:
    """Copy that version of a source blob onto `target`; returns what is known of the copy.

    Raises Conflict when the source has another content by then, NotFound when it is gone, TransientError.
    """
    if version.size > 0:
        within_the_service = _inside_the_account if _same_account(source.client, target) else blocks_from_url
        copied = within_the_service(source, version, target)
        if copied is not None:
            return copied
    return _by_ranges(source, version, target)


def _same_account(source: BlobClient, target: BlobClient) -> bool:
    return source.primary_endpoint.split("/")[2] == target.primary_endpoint.split("/")[2] and (
        source.account_name == target.account_name
    )


def _none_if_refused(copy: Callable[[], Copied | None]) -> Copied | None:
    """None where the service will not do a copy (not implemented, not authorized for it): another way is tried."""
    from azure.core.exceptions import HttpResponseError

    try:
        return copy()
    except (Conflict, TransientError):
        raise
    except StackTopicsError as error:
        is_gone = isinstance(error, NotFound) and error_code(error) != "CannotVerifyCopySource"
        if isinstance(error.__cause__, HttpResponseError) and not is_gone:
            return None
        raise


def _inside_the_account(source: StorageBlob, version: BlobVersion, target: BlobClient) -> Copied | None:
    """Copy Blob (https://learn.microsoft.com/rest/api/storageservices/copy-blob)."""
    from azure.core import MatchConditions
    from azure.core.exceptions import HttpResponseError

    def copy() -> Copied | None:
        with storage_errors(source.what):
            started = target.start_copy_from_url(
                source.client.url, source_etag=version.etag, source_match_condition=MatchConditions.IfNotModified
            )
            status = str(started["copy_status"])
            limit = time.monotonic() + SERVER_COPY_LIMIT_SECONDS
            while status == "pending" and time.monotonic() < limit:
                time.sleep(SERVER_COPY_POLL_SECONDS)
                status = str(target.get_blob_properties().copy.status)
            if status == "pending":  # while it is, no block can be staged
                try:
                    target.abort_copy(str(started["copy_id"]))
                except HttpResponseError as error:
                    if error_code(error) != "NoPendingCopyOperation":
                        raise
                    status = str(target.get_blob_properties().copy.status)
        return NOTHING_KNOWN if status == "success" else None

    return _none_if_refused(copy)


def blocks_from_url(source: StorageBlob, version: BlobVersion, target: BlobClient) -> Copied | None:
    """Put Block From URL (https://learn.microsoft.com/rest/api/storageservices/put-block-from-url).

    The service reads the source with this app's identity, or by a signature of the source's key that lasts 30 minutes.
    Returns None where it refuses.
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

    def copy() -> Copied:
        with ThreadPoolExecutor(WORKERS) as pool:
            return Copied(_commit(list(pool.map(stage, range(0, version.size, URL_BLOCK))), version, target))

    return _none_if_refused(copy)


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


def _by_ranges(source: StorageBlob, version: BlobVersion, target: BlobClient) -> Copied:
    """Ranges read one after the other and staged meanwhile; in memory are 4 MB a worker and those being read."""
    reader = source.open(version)
    hashed = hashlib.md5(usedforsecurity=False)
    sums: list[BlockSum] = []
    staging: deque[Future[BlockSum]] = deque()

    def stage(offset: int, data: bytes) -> BlockSum:
        with storage_errors(target.blob_name):
            stored = _given_crc64(target.stage_block(_block_id(offset), data))
        if stored is not None and stored != crc64(data):
            raise TransientError(f"{target.blob_name}: the block at byte {offset} changed on its way; copy it again")
        return BlockSum(offset, len(data), stored)

    with ThreadPoolExecutor(WORKERS) as pool:
        for offset in range(0, version.size, COPY_RANGE):
            data = reader.read(COPY_RANGE)
            staging.append(pool.submit(stage, offset, data))
            hashed.update(data)
            if len(staging) > WORKERS:
                sums.append(staging.popleft().result())
        sums += [each.result() for each in staging]
    return Copied(_commit(sums, version, target), hashed.digest())


def _block_id(offset: int) -> str:
    return f"{offset:020}"


def _given_crc64(staged: dict[str, Any]) -> int | None:
    """What the service computed over the block it stored: 8 bytes, the lowest first; None where it computes nothing."""
    given = staged.get("content_crc64")
    return int.from_bytes(given, "little") if given else None


def _commit(sums: list[BlockSum], version: BlobVersion, target: BlobClient) -> list[BlockSum]:
    """Make the staged blocks the blob in one step; returns their sums if the service gave one for each."""
    from azure.storage.blob import BlobBlock, ContentSettings

    settings = ContentSettings(content_md5=bytearray(version.md5) if version.md5 else None)
    with storage_errors(target.blob_name):
        target.commit_block_list([BlobBlock(_block_id(each.offset)) for each in sums], content_settings=settings)
    return sums if all(each.crc64 is not None for each in sums) else []
