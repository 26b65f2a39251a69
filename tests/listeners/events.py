"""Event Grid's events of a storage account, in the Event Grid schema and as CloudEvents."""

from __future__ import annotations

from typing import Any

from azure.storage.blob import BlobClient


def event(blob: BlobClient, kind: str = "BlobCreated", **data: Any) -> dict[str, Any]:
    """An event about a blob as it is now. `data` replaces what it says of the blob; None leaves a field out."""
    return {
        "topic": "/subscriptions/s/resourceGroups/g/providers/Microsoft.Storage/storageAccounts/a",
        "subject": _subject(blob),
        "eventType": f"Microsoft.Storage.{kind}",
        "id": "831e1650-001e-001b-66ab-eeb76e069631",
        "data": _data(blob, data),
        "dataVersion": "",
        "metadataVersion": "1",
        "eventTime": "2026-11-22T06:00:00Z",
    }


def cloud_event(blob: BlobClient, kind: str = "BlobCreated", **data: Any) -> dict[str, Any]:
    """The same as a CloudEvent."""
    return {
        "specversion": "1.0",
        "source": "/subscriptions/s/resourceGroups/g/providers/Microsoft.Storage/storageAccounts/a",
        "subject": _subject(blob),
        "type": f"Microsoft.Storage.{kind}",
        "id": "831e1650-001e-001b-66ab-eeb76e069631",
        "data": _data(blob, data),
        "time": "2026-11-22T06:00:00Z",
    }


def renamed(blob: BlobClient) -> dict[str, Any]:
    """What a rename sends in a storage account with folders: it names neither the blob's URL nor its ETag."""
    destination = {"api": "RenameFile", "destinationUrl": blob.url, "sourceUrl": f"{blob.url}.tmp"}
    return event(blob, "BlobRenamed", url=None, eTag=None, **destination)


def bare(etag: str) -> str:
    """An ETag as events have it: without the quotes that HTTP puts round it."""
    return etag.strip('"')


def _subject(blob: BlobClient) -> str:
    return f"/blobServices/default/containers/{blob.container_name}/blobs/{blob.blob_name}"


def _data(blob: BlobClient, changes: dict[str, Any]) -> dict[str, Any]:
    data = {
        "api": "PutBlob",
        "eTag": None if "eTag" in changes else bare(blob.get_blob_properties().etag),
        "contentType": "application/octet-stream",
        "blobType": "BlockBlob",
        "url": blob.url,
        "sequencer": "0000000000000000000000000000701d0000000000001234",
        **changes,
    }
    return {name: value for name, value in data.items() if value is not None}
