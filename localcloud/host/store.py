"""Storage clients by connection name, and what the host itself keeps in storage.

Receipts and schedule status lie in the container `azure-webjobs-hosts` of AzureWebJobsStorage, under the names the
Azure Functions host uses. So they live as long as the data that they are about: a new Azurite begins without any.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError
from azure.identity.aio import DefaultAzureCredential, ManagedIdentityCredential
from azure.storage.blob.aio import BlobServiceClient
from azure.storage.queue.aio import QueueClient, QueueServiceClient

from localcloud.host.config import HOST_STORAGE, Connection, find_connection

HOSTS_CONTAINER = "azure-webjobs-hosts"


class Clients:
    """One client a connection and service, made when first asked for."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._blob_services: dict[str, BlobServiceClient] = {}
        self._queue_services: dict[str, QueueServiceClient] = {}
        self._credentials: list[DefaultAzureCredential | ManagedIdentityCredential] = []

    def blobs(self, connection: str) -> BlobServiceClient:
        """Raises HostError when the connection is not set."""
        if connection not in self._blob_services:
            found = self._find(connection, "blob")
            self._blob_services[connection] = (
                BlobServiceClient.from_connection_string(found.connection_string)
                if found.connection_string
                else BlobServiceClient(str(found.account_url), self._credential(found))
            )
        return self._blob_services[connection]

    def queue(self, connection: str, name: str) -> QueueClient:
        """A client of one queue that leaves message texts as they are. Raises HostError as `blobs` does."""
        if connection not in self._queue_services:
            found = self._find(connection, "queue")
            self._queue_services[connection] = (
                QueueServiceClient.from_connection_string(found.connection_string)
                if found.connection_string
                else QueueServiceClient(str(found.account_url), credential=self._credential(found))
            )
        return self._queue_services[connection].get_queue_client(name)

    async def close(self) -> None:
        for client in (*self._blob_services.values(), *self._queue_services.values(), *self._credentials):
            await client.close()

    def _find(self, connection: str, service: Literal["blob", "queue"]) -> Connection:
        return find_connection(connection, service, self._environ)

    def _credential(self, found: Connection) -> DefaultAzureCredential | ManagedIdentityCredential:
        credential = (
            ManagedIdentityCredential(client_id=found.client_id)
            if found.managed_identity
            else DefaultAzureCredential(managed_identity_client_id=found.client_id)
        )
        self._credentials.append(credential)
        return credential


class HostStore:
    """Small JSON records in `azure-webjobs-hosts`."""

    def __init__(self, clients: Clients, host_id: str) -> None:
        self._clients = clients
        self._host_id = host_id

    async def create(self) -> None:
        """Makes the container when it is not there."""
        try:
            await self._clients.blobs(HOST_STORAGE).create_container(HOSTS_CONTAINER)
        except ResourceExistsError:
            return

    async def read_schedule(self, function_id: str) -> dict[str, Any] | None:
        return await self._read(f"timers/{self._host_id}/{function_id}/status")

    async def write_schedule(self, function_id: str, record: Mapping[str, Any]) -> None:
        await self._write(f"timers/{self._host_id}/{function_id}/status", record)

    async def has_receipt(self, function_id: str, etag: str, container: str, blob: str) -> bool:
        """Whether this content of this blob was already announced to this function."""
        return bool(await self._blob(self._receipt(function_id, etag, container, blob)).exists())

    async def write_receipt(self, function_id: str, etag: str, container: str, blob: str) -> None:
        await self._blob(self._receipt(function_id, etag, container, blob)).upload_blob(b"", overwrite=True)

    def _receipt(self, function_id: str, etag: str, container: str, blob: str) -> str:
        return f"blobreceipts/{self._host_id}/{function_id}/{etag}/{container}/{blob}"

    async def _read(self, name: str) -> dict[str, Any] | None:
        try:
            download = await self._blob(name).download_blob()
            record: dict[str, Any] = json.loads(await download.readall())
        except ResourceNotFoundError:
            return None
        return record

    async def _write(self, name: str, record: Mapping[str, Any]) -> None:
        await self._blob(name).upload_blob(json.dumps(record).encode(), overwrite=True)

    def _blob(self, name: str) -> Any:
        return self._clients.blobs(HOST_STORAGE).get_blob_client(HOSTS_CONTAINER, name)
