"""Copying a source blob into the lake: inside the storage service where it allows that, else range by range through us.

Every way is bound to the ETag of the version that was checked, and the copy appears in one step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from shared.errors import Conflict, NotFound, TransientError
from shared.storage import COPY_RANGE, BlobVersion, SourceBlob, storage_errors

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient

STORAGE_SCOPE = "https://storage.azure.com/.default"
SERVER_COPY_POLL_SECONDS = 0.05
SERVER_COPY_LIMIT_SECONDS = 120
URL_BLOCK = 64 << 20
"""Bytes the service fetches by itself for one block; none of them passes through us."""
WORKERS = 2
"""With blocks of 8 MB through us: 1 GB at 87 MiB of memory."""
ACCESS_LASTS = timedelta(minutes=30)


def copy_blob(source: SourceBlob, version: BlobVersion, target: BlobClient) -> None:
    """Copy that version of a source blob onto `target`.

    Raises Conflict when the source has another content by then, NotFound when it is gone, TransientError.
    """
    ways = [_by_ranges]
    if version.size > 0:
        ways.insert(0, _inside_the_account if _same_account(source.client, target) else _from_url)
    for way in ways:
        if way(source, version, target):
            return


def _same_account(source: BlobClient, target: BlobClient) -> bool:
    return source.primary_endpoint.split("/")[2] == target.primary_endpoint.split("/")[2] and (
        source.account_name == target.account_name
    )


def _refusal_is_false(copy: Callable[[], bool]) -> bool:
    """False where the service will not do a copy (not implemented, not authorized for it): another way is tried."""
    from azure.core.exceptions import HttpResponseError

    try:
        return copy()
    except (NotFound, Conflict, TransientError):
        raise
    except Exception as error:
        if isinstance(error.__cause__, HttpResponseError):
            return False
        raise


def _inside_the_account(source: SourceBlob, version: BlobVersion, target: BlobClient) -> bool:
    """Copy Blob (https://learn.microsoft.com/rest/api/storageservices/copy-blob)."""
    from azure.core import MatchConditions

    def copy() -> bool:
        with storage_errors(source.what):
            started = target.start_copy_from_url(
                source.client.url, source_etag=version.etag, source_match_condition=MatchConditions.IfNotModified
            )
            status = str(started["copy_status"])
            limit = time.monotonic() + SERVER_COPY_LIMIT_SECONDS
            while status == "pending" and time.monotonic() < limit:
                time.sleep(SERVER_COPY_POLL_SECONDS)
                status = str(target.get_blob_properties().copy.status)
        return status == "success"

    return _refusal_is_false(copy)


def _from_url(source: SourceBlob, version: BlobVersion, target: BlobClient) -> bool:
    """Put Block From URL (https://learn.microsoft.com/rest/api/storageservices/put-block-from-url) across accounts.

    The service reads the source with this app's identity, or by a signature of the source's key that lasts 30 minutes.
    """
    url, access = _readable(source.client)

    def stage(offset: int) -> str:
        block = f"{offset:020}"
        with storage_errors(source.what):
            target.stage_block_from_url(
                block,
                url,
                source_offset=offset,
                source_length=min(URL_BLOCK, version.size - offset),
                source_authorization=access,
                headers={"x-ms-source-if-match": version.etag},
            )
        return block

    def copy() -> bool:
        with ThreadPoolExecutor(WORKERS) as pool:
            blocks = list(pool.map(stage, range(0, version.size, URL_BLOCK)))
        _commit(target, version, blocks)
        return True

    return _refusal_is_false(copy)


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


def _by_ranges(source: SourceBlob, version: BlobVersion, target: BlobClient) -> bool:
    """Ranged reads into staged blocks; what is in memory is 8 MB a worker."""

    def move(offset: int) -> str:
        reader = source.open(version)
        reader.seek(offset)
        data = reader.read(COPY_RANGE)
        block = f"{offset:020}"
        with storage_errors(target.blob_name):
            target.stage_block(block, data)
        return block

    with ThreadPoolExecutor(WORKERS) as pool:
        blocks = list(pool.map(move, range(0, version.size, COPY_RANGE)))
    _commit(target, version, blocks)
    return True


def _commit(target: BlobClient, version: BlobVersion, blocks: list[str]) -> None:
    from azure.storage.blob import BlobBlock, ContentSettings

    settings = ContentSettings(content_md5=bytearray(version.md5) if version.md5 else None)
    with storage_errors(target.blob_name):
        target.commit_block_list([BlobBlock(block) for block in blocks], content_settings=settings)
