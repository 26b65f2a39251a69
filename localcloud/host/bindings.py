"""What the host knows of an event -> the argument that Microsoft's worker would give the function.

The host and its worker talk in typed data; `azure.functions` turns it into TimerRequest, QueueMessage, BlobClient
and the others. This module makes the same typed data (field names and JSON forms as the Azure Functions host sends
them) and leaves the turning to that library.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from azure.functions.meta import Datum
from azurefunctions.extensions.base import get_binding_registry as get_deferred_registry

from localcloud.host.app import HostedFunction, binding_registry
from localcloud.host.config import HOST_STORAGE


@dataclass(frozen=True)
class TriggerValue:
    """The typed data of the trigger's parameter, and the metadata that comes beside it."""

    data: Datum
    metadata: Mapping[str, Datum] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelBindingData:
    """How the host refers to a blob that the function will open itself; field names are the protocol's."""

    content: bytes
    version: str = "1.0"
    source: str = "AzureStorageBlobs"
    content_type: str = "application/json"


@dataclass(frozen=True)
class ScheduleStatus:
    """When a timer last fired, will fire next, and when that was written (UTC)."""

    last: datetime
    next: datetime
    last_updated: datetime

    def to_json(self) -> dict[str, str]:
        return {
            "Last": self.last.isoformat(),
            "Next": self.next.isoformat(),
            "LastUpdated": self.last_updated.isoformat(),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, str]) -> ScheduleStatus:
        times = [datetime.fromisoformat(record[key]) for key in ("Last", "Next", "LastUpdated")]
        return cls(*times)


def timer_value(*, past_due: bool, status: ScheduleStatus | None) -> TriggerValue:
    """`status` is None for a schedule that is not monitored (more often than once a minute)."""
    return TriggerValue(
        _json(
            {
                "Schedule": {"AdjustForDST": True},
                "ScheduleStatus": None if status is None else status.to_json(),
                "IsPastDue": past_due,
            }
        )
    )


def queue_value(
    function: HostedFunction,
    body: bytes,
    *,
    message_id: str,
    dequeue_count: int,
    pop_receipt: str,
    inserted: datetime,
    expires: datetime,
    next_visible: datetime,
) -> TriggerValue:
    """`body` is the decoded message; it goes as text unless the function asks for binary or it is no UTF-8."""
    return TriggerValue(
        _text_or_bytes(function, body),
        {
            "QueueTrigger": _text_or_bytes(function, body),
            "Id": _text(message_id),
            "DequeueCount": _json(dequeue_count),
            "PopReceipt": _text(pop_receipt),
            "InsertionTime": _json(inserted.isoformat()),
            "ExpirationTime": _json(expires.isoformat()),
            "NextVisibleTime": _json(next_visible.isoformat()),
        },
    )


@dataclass(frozen=True)
class BlobReference:
    """A blob as the trigger found it. `values` are what the path pattern's {names} matched."""

    container: str
    name: str
    uri: str
    properties: Mapping[str, Any]
    metadata: Mapping[str, str]
    values: Mapping[str, str]


def blob_value(function: HostedFunction, blob: BlobReference, content: bytes | None) -> TriggerValue:
    """`content` is what the blob holds, or None for a function that opens the blob itself."""
    if content is None:
        reference = {
            "Connection": function.trigger.get("connection") or HOST_STORAGE,
            "ContainerName": blob.container,
            "BlobName": blob.name,
        }
        data = Datum(ModelBindingData(json.dumps(reference).encode()), "model_binding_data")
    else:
        data = Datum(content, "bytes")
    return TriggerValue(
        data,
        {
            "BlobTrigger": _text(f"{blob.container}/{blob.name}"),
            "Uri": _json(blob.uri),
            "Properties": _json(blob.properties),
            "Metadata": _json(blob.metadata),
            **{name: _text(value) for name, value in blob.values.items()},
        },
    )


def http_value(
    *,
    method: str,
    url: str,
    headers: Iterable[tuple[str, str]],
    query: Iterable[tuple[str, str]],
    route_values: Mapping[str, str],
    body: bytes,
) -> TriggerValue:
    """Repeated headers and query values are joined by commas, empty query values left out, as the host does."""
    return TriggerValue(
        Datum(
            {
                "method": _text(method),
                "url": _text(url),
                "headers": _joined((name.lower(), value) for name, value in headers),
                "query": _joined((name, value) for name, value in query if value),
                "params": {name: _text(value) for name, value in route_values.items()},
                "body": Datum(body, "bytes"),
            },
            "http",
        )
    )


def argument(function: HostedFunction, value: TriggerValue) -> Any:
    """What the function's trigger parameter gets."""
    if function.deferred:
        converter = get_deferred_registry().get(function.kind)
        return converter.decode(value.data, trigger_metadata=value.metadata, pytype=function.parameter_type)
    if function.parameter_type in (str, bytes):
        return _coerced(value.data.value, function.parameter_type)
    return binding_registry().get(function.kind).decode(value.data, trigger_metadata=value.metadata)


def _coerced(value: Any, wanted: type) -> Any:
    if wanted is str and isinstance(value, bytes):
        return value.decode()
    return value


@dataclass(frozen=True)
class HttpReply:
    """An HTTP function's answer, ready to be sent."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def http_reply(result: Any) -> HttpReply:
    """Encodes what an HTTP function returned: HttpResponse, text, or None (204).

    Raises TypeError for anything else, as the worker does.
    """
    if result is None:
        return HttpReply(204, (), b"")
    try:
        datum = binding_registry().get("http").encode(result, expected_type=type(result))
    except NotImplementedError:
        raise TypeError(f"an HTTP function cannot return a {type(result).__name__}") from None
    if datum.type == "string":
        return HttpReply(200, (("content-type", "text/plain; charset=utf-8"),), datum.value.encode())
    headers = [(name, item.value) for name, item in datum.value["headers"].items()]
    for cookies in datum.value["cookies"] or ():
        headers += [("set-cookie", morsel.OutputString()) for morsel in cookies.values()]
    return HttpReply(int(datum.value["status_code"].value), tuple(headers), datum.value["body"].value)


def _text(value: str) -> Datum:
    return Datum(value, "string")


def _json(value: Any) -> Datum:
    return Datum(json.dumps(value), "json")


def _text_or_bytes(function: HostedFunction, body: bytes) -> Datum:
    if function.trigger.get("dataType") == "BINARY" or function.parameter_type is bytes:
        return Datum(body, "bytes")
    try:
        return _text(body.decode())
    except UnicodeDecodeError:
        return Datum(body, "bytes")


def _joined(pairs: Iterable[tuple[str, str]]) -> dict[str, Datum]:
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return {name: _text(",".join(parts)) for name, parts in values.items()}
