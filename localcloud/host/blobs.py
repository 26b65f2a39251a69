"""Blob triggers: a container scan or an Event Grid event -> a message -> an invocation.

As in Azure, each blob becomes a message in a queue of the host's own, and that queue gives blob triggers their
retries (poisonBlobThreshold, 5 by default) and their poison queue, `webjobs-blobtrigger-poison`.
A receipt for each function and ETag, kept by `HostStore`, records which blobs the scan has announced.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from azure.core.exceptions import AzureError, ResourceNotFoundError
from azure.storage.blob import BlobClient, BlobProperties
from azure.storage.blob.aio import ContainerClient

from localcloud.host.app import HostedFunction
from localcloud.host.bindings import BlobReference, TriggerValue, blob_value
from localcloud.host.config import HOST_STORAGE
from localcloud.host.errors import HostError
from localcloud.host.queues import Delivery
from localcloud.host.runner import API_REASON, Outcome, Runner
from localcloud.host.store import Clients

log = logging.getLogger(__name__)
POISON_QUEUE = "webjobs-blobtrigger-poison"
SCAN_SECONDS = 0.5
_ERROR_PAUSE = 2.0
_PATTERN_PART = re.compile(r"\{\{|\}\}|\{(\w+)\}|([^{}]+)")


def trigger_queue(host_id: str) -> str:
    """The name of the host's own queue of blob trigger messages."""
    return f"azure-webjobs-blobtrigger-{host_id}"


@dataclass(frozen=True)
class BlobPath:
    """A trigger's path, `container/pattern`, where {name} stands for any text and {{ }} for braces."""

    container: str
    pattern: re.Pattern[str]
    prefix: str

    @classmethod
    def parse(cls, path: str) -> BlobPath:
        """Raises HostError for a path without container, or with braces that do not pair."""
        container, _, template = path.partition("/")
        if not re.fullmatch(r"[a-z0-9$](-?[a-z0-9])*", container):
            raise HostError(f"blob path {path!r}: {container!r} is no container name")
        template = template or "{blob}"
        expression, prefix, end = "", "", 0
        for part in _PATTERN_PART.finditer(template):
            if part.start() != end:
                break
            end = part.end()
            literal = None if part[1] else part[2] or part[0][0]
            expression += f"(?P<{part[1]}>.*)" if literal is None else re.escape(literal)
            if literal is not None and "(?P<" not in expression:
                prefix += literal
        if end != len(template):
            raise HostError(f"blob path {path!r}: braces do not pair")
        return cls(container, re.compile(expression, re.DOTALL), prefix)

    def match(self, container: str, blob: str) -> dict[str, str] | None:
        """What the {names} stand for, or None when this is no blob of the trigger."""
        found = self.pattern.fullmatch(blob) if container == self.container else None
        return found.groupdict() if found else None


@dataclass(frozen=True)
class BlobFunction:
    """A function with a blob trigger, and its path."""

    function: HostedFunction
    path: BlobPath

    @classmethod
    def of(cls, function: HostedFunction) -> BlobFunction:
        return cls(function, BlobPath.parse(str(function.trigger["path"])))

    @property
    def connection(self) -> str:
        return str(self.function.trigger.get("connection") or HOST_STORAGE)

    @property
    def by_events(self) -> bool:
        return self.function.trigger.get("source") == "EventGrid"


@dataclass(frozen=True)
class BlobMessage:
    """One blob for one function; the JSON is what Azure puts into its queue and into the poison queue."""

    function_id: str
    container: str
    blob: str
    etag: str
    blob_type: str = "BlockBlob"

    def encode(self) -> str:
        document = {
            "Type": "BlobTrigger",
            "FunctionId": self.function_id,
            "BlobType": self.blob_type,
            "ContainerName": self.container,
            "BlobName": self.blob,
            "ETag": self.etag,
        }
        return base64.b64encode(json.dumps(document, indent=2).encode()).decode()

    @classmethod
    def decode(cls, body: bytes) -> BlobMessage:
        """Raises ValueError or KeyError for any other body."""
        document = json.loads(body)
        return cls(
            function_id=document["FunctionId"],
            container=document["ContainerName"],
            blob=document["BlobName"],
            etag=document["ETag"],
            blob_type=document["BlobType"],
        )


class Receipts(Protocol):
    """Where receipts are kept; `HostStore` is one."""

    async def has_receipt(self, function_id: str, etag: str, container: str, blob: str) -> bool: ...

    async def write_receipt(self, function_id: str, etag: str, container: str, blob: str) -> None: ...


Enqueue = Callable[[BlobMessage], Awaitable[None]]


class ContainerScanner:
    """Lists one container and announces its blobs to their functions, once for each ETag."""

    def __init__(
        self, container: ContainerClient, functions: Sequence[BlobFunction], receipts: Receipts, enqueue: Enqueue
    ) -> None:
        self._container = container
        self._functions = functions
        self._receipts = receipts
        self._enqueue = enqueue
        self._told: set[tuple[str, str]] = set()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Scans until `stop`."""
        while not self._stopping.is_set():
            pause = SCAN_SECONDS
            try:
                await self.scan()
            except AzureError as error:
                log.warning("Container '%s' cannot be scanned: %s", self._container.container_name, error)
                pause = _ERROR_PAUSE
            try:
                await asyncio.wait_for(self._stopping.wait(), pause)
            except TimeoutError:
                continue

    def stop(self) -> None:
        self._stopping.set()

    async def scan(self) -> None:
        """One listing. A container that does not exist is an empty one."""
        prefixes = {item.path.prefix for item in self._functions}
        prefix = prefixes.pop() if len(prefixes) == 1 else ""
        present: set[tuple[str, str]] = set()
        try:
            async for blob in self._container.list_blobs(name_starts_with=prefix or None):
                version = (blob.name, quoted(blob.etag))
                present.add(version)
                if version not in self._told:
                    await self._tell(blob)
                    self._told.add(version)
        except ResourceNotFoundError:
            present = set()
        self._told &= present

    async def _tell(self, blob: BlobProperties) -> None:
        container, etag = str(self._container.container_name), quoted(blob.etag)
        for item in self._functions:
            function_id = item.function.function_id
            if item.path.match(container, blob.name) is None:
                continue
            if await self._receipts.has_receipt(function_id, etag, container, blob.name):
                continue
            # Receipt last: after a crash in between the blob is announced twice, which a trigger may do; the other
            # order would lose it.
            await self._enqueue(BlobMessage(function_id, container, blob.name, etag, str(blob.blob_type.value)))
            await self._receipts.write_receipt(function_id, etag, container, blob.name)


class BlobInvoker:
    """Runs the function that a blob trigger message names."""

    def __init__(self, functions: Sequence[BlobFunction], clients: Clients, runner: Runner) -> None:
        self._functions = {item.function.function_id: item for item in functions}
        self._clients = clients
        self._runner = runner

    async def handle(self, delivery: Delivery) -> bool:
        """True when the message is done with: the function succeeded, or its blob is gone or has changed."""
        try:
            message = BlobMessage.decode(delivery.body)
        except (ValueError, KeyError):
            log.exception("invalid blob trigger message: %r", delivery.body[:200])
            return False
        item = self._functions.get(message.function_id)
        if item is None:
            log.warning("Blob '%s' is for %s, which does not exist or is disabled", message.blob, message.function_id)
            return True
        try:
            value, etag = await read_blob(item, self._clients, message.container, message.blob)
        except ResourceNotFoundError:
            log.info("Blob '%s/%s' is gone; nothing to do", message.container, message.blob)
            return True
        if etag != message.etag:
            log.info(
                "Blob '%s/%s' has changed; its newer content has a message of its own", message.container, message.blob
            )
            return True
        source = item.function.trigger.get("source", "LogsAndContainerScan")
        reason = f"New blob detected({source}): {message.container}/{message.blob}"
        return (await self._runner.run(item.function, value, reason)).succeeded

    async def fire(self, item: BlobFunction, text: str) -> Outcome:
        """Runs a function for the blob `text`, written `container/name`. Raises HostError when it is missing."""
        container, _, name = text.partition("/")
        if item.path.match(container, name) is None:
            path = item.function.trigger["path"]
            raise HostError(f"{text!r} is no blob of {item.function.name}: its path is {path}")
        try:
            value, _ = await read_blob(item, self._clients, container, name)
        except ResourceNotFoundError:
            raise HostError(f"blob {text!r} does not exist") from None
        return await self._runner.run(item.function, value, API_REASON)


async def read_blob(item: BlobFunction, clients: Clients, container: str, name: str) -> tuple[TriggerValue, str]:
    """What a function gets for one blob, and the blob's ETag. Raises ResourceNotFoundError."""
    blob = clients.blobs(item.connection).get_blob_client(container, name)
    properties = await blob.get_blob_properties()
    content = None
    if not item.function.deferred:
        content = await (await blob.download_blob()).readall()
    reference = BlobReference(
        container=container,
        name=name,
        uri=blob.url,
        properties=_properties(properties),
        metadata=properties.metadata,
        values=item.path.match(container, name) or {},
    )
    return blob_value(item.function, reference, content), quoted(properties.etag)


def announced_blobs(events: Any, item: BlobFunction) -> Iterator[BlobMessage]:
    """The blobs that Event Grid events (parsed JSON, Event Grid schema or CloudEvents) announce to one function.

    As in Azure, neither the type of an event nor the function's path is looked at, and an event without a bare eTag is
    dropped. Raises ValueError for an event that does not say where the blob lies and of which type it is, as that of a
    rename does not.
    """
    for event in events if isinstance(events, list) else [events]:
        data = event.get("data") if isinstance(event, Mapping) else None
        if not isinstance(data, Mapping) or not data.get("url") or not data.get("blobType"):
            raise ValueError("an event without url and blobType in its data")
        blob, etag = BlobClient.from_blob_url(str(data["url"])), str(data.get("eTag") or "")
        if not etag or etag.startswith('"'):
            log.info("An event about '%s/%s' is dropped: its eTag is %r", blob.container_name, blob.blob_name, etag)
            continue
        yield BlobMessage(
            item.function.function_id,
            container=str(blob.container_name),
            blob=str(blob.blob_name),
            etag=quoted(etag),
            blob_type=str(data["blobType"]),
        )


def quoted(etag: str) -> str:
    """An ETag as HTTP has it; listings and events leave the quotes out."""
    return etag if etag.startswith('"') else f'"{etag}"'


def _properties(properties: BlobProperties) -> dict[str, Any]:
    return {
        "ContentLength": properties.size,
        "Length": properties.size,
        "ContentType": properties.content_settings.content_type,
        "ETag": properties.etag,
        "LastModified": properties.last_modified.isoformat(),
        "CreatedOn": properties.creation_time.isoformat() if properties.creation_time else None,
        "BlobType": str(properties.blob_type.value),
    }
