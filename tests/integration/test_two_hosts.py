"""The local functions host beside the real listeners: one script of deliveries, two logs, which must be the same."""

from __future__ import annotations

import base64
import json
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import BlobClient, BlobServiceClient
from azure.storage.queue import QueueClient

from localcloud import azurite
from localcloud.processes import free_ports
from tests.integration.host_cloud import APP, Cloud, HostProcess
from tests.listeners.events import cloud_event, event, renamed
from tests.listeners.host import RealHost, what_is_missing
from tests.waiting import eventually

pytestmark = pytest.mark.skipif(what_is_missing() is not None, reason=str(what_is_missing()))


class Host(ABC):
    """What the script needs of a host that runs tests/integration/host_app."""

    def __init__(self, cloud: Cloud, observations: Path) -> None:
        self.cloud, self._observations = cloud, observations

    @abstractmethod
    def post(self, function: str, events: Any) -> int:
        """Event Grid delivers; returns the status of the answer."""

    def seen(self, function: str, **like: Any) -> list[dict[str, Any]]:
        if not self._observations.exists():
            return []
        lines = [json.loads(line) for line in self._observations.read_text().splitlines()]
        return [line for line in lines if line["function"] == function and like.items() <= line.items()]


class LocalHost(Host):
    def __init__(self, cloud: Cloud, process: HostProcess) -> None:
        super().__init__(cloud, process.folder / "observations.jsonl")
        self._process = process

    def post(self, function: str, events: Any) -> int:
        path = f"/runtime/webhooks/blobs?functionName=Host.Functions.{function}"
        return self._process.request("POST", path, events, aeg_event_type="Notification").status


class Real(Host):
    def __init__(self, cloud: Cloud, process: RealHost, observations: Path) -> None:
        super().__init__(cloud, observations)
        self._process = process

    def post(self, function: str, events: Any) -> int:
        return self._process.post_events(function, events)


HOST_ID = "compared"
SETTLED_SECONDS = 2
"""How long a call that should not come is waited for, after one that came later."""
POISON = ("work-poison", "webjobs-blobtrigger-poison")


def settings_of(cloud: Cloud, observations: Path) -> dict[str, str]:
    return {
        "AzureWebJobsStorage": cloud.connection,
        "DATA": cloud.connection,
        "TICK_SCHEDULE": "0 0 3 * * *",
        "OBSERVATIONS": str(observations),
        "INBOX": "inbox",
        "WORK_QUEUE": "work",
        "AzureFunctionsWebHost__hostid": HOST_ID,
        "AzureFunctionsJobHost__extensions__queues__visibilityTimeout": "00:00:01",
    }


def running(which: str, folder: Path) -> Iterator[Host]:
    """A host over an Azurite of its own, so that both have the same names."""
    blob_port, queue_port = free_ports(2)
    process = azurite.start(folder / "azurite", blob_port, queue_port, folder / "azurite.log")
    connection = azurite.connection_string(Blob=blob_port, Queue=queue_port)
    with BlobServiceClient.from_connection_string(connection) as blobs:
        cloud = Cloud(connection, blobs)
        cloud.create_queue("work")
        for container in ("inbox", "streams", "events", "other"):
            cloud.blobs.create_container(container)
        settings: dict[str, Any] = settings_of(cloud, folder / "observations.jsonl")
        if which == "local":
            local = HostProcess(folder, cloud, **settings)
            yield LocalHost(cloud, local)
            local.process.stop()
        else:
            with RealHost(folder, APP, settings, host_id=HOST_ID) as real:
                yield Real(cloud, real, folder / "observations.jsonl")
    process.stop()


def overwritten(blob: BlobClient) -> dict[str, Any]:
    before = event(blob)
    blob.upload_blob(b"newer", overwrite=True)
    return before


def deleted(blob: BlobClient) -> dict[str, Any]:
    before = event(blob)
    blob.delete_blob()
    return before


EVENTS: dict[str, Callable[[BlobClient], Any]] = {
    "fresh": event,
    "fresh, in no list": event,
    "twice": lambda blob: [event(blob)] * 2,
    "of a tier": lambda blob: event(blob, "BlobTierChanged"),
    "of a deletion": lambda blob: event(blob, "BlobDeleted"),
    "CloudEvent": cloud_event,
    "CloudEvent of a tier": lambda blob: cloud_event(blob, "BlobTierChanged"),
    "stale": overwritten,
    "of a blob that is gone": deleted,
    "with quotes": lambda blob: event(blob, eTag=blob.get_blob_properties().etag),
    "without eTag": lambda blob: event(blob, eTag=None),
    "without url": lambda blob: event(blob, url=None),
    "without blobType": lambda blob: event(blob, blobType=None),
    "of a rename": renamed,
    "nonsense": lambda _: {"a": 1},
    "text": lambda _: "text",
    "none": lambda _: [],
}
ELSEWHERE = {  # container, name, function
    "outside the path": ("events", "out/a", "on_event"),
    "of another container": ("other", "in/a", "on_event"),
    "for an unknown function": ("events", "in/unknown", "nobody"),
    "for a polled function": ("inbox", "in/polled.txt", "on_blob"),
}


def events_script(host: Host) -> dict[str, Any]:
    """Each event's status; then which blobs the functions were called for, and how often."""

    def uploaded(container: str, name: str) -> BlobClient:
        blob = host.cloud.blobs.get_blob_client(container, name)
        blob.upload_blob(b"x", overwrite=True)
        return blob

    statuses = {name: host.post("on_event", make(uploaded("events", f"in/{name}"))) for name, make in EVENTS.items()}
    for name, (container, blob, function) in ELSEWHERE.items():
        statuses[name] = host.post(function, [event(uploaded(container, blob))])
    host.post("on_event", [event(uploaded("events", "in/last"))])
    eventually(lambda: host.seen("on_event", blob="in/last"), "the last event")
    time.sleep(SETTLED_SECONDS)
    calls = Counter((seen["function"], seen["blob"]) for name in ("on_event", "on_blob") for seen in host.seen(name))
    return {"statuses": statuses, "calls": {f"{function} {blob}": count for (function, blob), count in calls.items()}}


def storage_script(host: Host) -> dict[str, Any]:
    """Messages and polled blobs that succeed and that fail for good; then what the host keeps in storage."""
    host.cloud.send("work", "good")
    host.cloud.send("work", "fail")
    host.cloud.send("work", "not base64", encoded=False)
    for name, text in {"good.txt": "good", "bad.txt": "fail", "other.csv": "no"}.items():
        host.cloud.upload("inbox", name, text)
    eventually(lambda: len(host.seen("on_message", text="fail")) >= 3, "three tries of the message")
    eventually(lambda: len(host.seen("on_blob", blob="bad.txt")) >= 5, "five tries of the blob")
    eventually(lambda: host.cloud.peek("work-poison")[1:], "two poison messages")
    eventually(lambda: host.cloud.peek("webjobs-blobtrigger-poison"), "the poison message of the blob")
    time.sleep(SETTLED_SECONDS)
    etags = {
        host.cloud.blobs.get_blob_client("inbox", name).get_blob_properties().etag.strip('"'): f"ETag of {name}"
        for name in ("good.txt", "bad.txt", "in/polled.txt")
    }

    def named(text: str) -> str:
        for etag, name in etags.items():
            text = text.replace(etag, name)
        return text

    return {
        "messages": sorted((seen["text"], seen["count"]) for seen in host.seen("on_message")),
        "blobs": Counter(seen["blob"] for seen in host.seen("on_blob", container="inbox") if "/" not in seen["blob"]),
        "poison": {queue: sorted(map(named, poison(host.cloud, queue))) for queue in POISON},
        "receipts": sorted(
            (named(blob.name), blob.size)
            for blob in host.cloud.blobs.get_container_client("azure-webjobs-hosts").list_blobs("blobreceipts/")
        ),
        "timers": sorted(
            blob.name for blob in host.cloud.blobs.get_container_client("azure-webjobs-hosts").list_blobs("timers/")
        ),
    }


def poison(cloud: Cloud, queue: str) -> list[str]:
    """The texts of a poison queue, decoded if they were base64, with the days after which they expire."""
    found = []
    with QueueClient.from_connection_string(cloud.connection, queue) as client:
        for message in client.receive_messages(visibility_timeout=1):
            assert message.expires_on is not None
            assert message.inserted_on is not None
            text = message.content
            with suppress(ValueError):
                text = base64.b64decode(text, validate=True).decode()
            found.append(f"{text} for {(message.expires_on - message.inserted_on).days} days")
    return found


def test_both_hosts_do_the_same_with_the_same_deliveries(tmp_path: Path) -> None:
    logs = {}
    for which in ("local", "real"):
        folder = tmp_path / which
        (folder / "azurite").mkdir(parents=True)
        for host in running(which, folder):
            logs[which] = {"events": events_script(host), "storage": storage_script(host)}
    for name in ("statuses", "calls"):
        assert logs["local"]["events"][name] == logs["real"]["events"][name]
    for name, found in logs["local"]["storage"].items():
        assert found == logs["real"]["storage"][name], name
    assert logs["local"]["events"]["statuses"]["fresh"] == 202
    assert logs["local"]["storage"]["blobs"] == {"good.txt": 1, "bad.txt": 5}
