"""Helpers of the tests of the functions host: Azurite, its clients, and a host as a child process."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import BlobServiceClient
from azure.storage.queue import QueueClient, TextBase64EncodePolicy

from localcloud.host import LISTENS
from localcloud.processes import PROJECT_ROOT, Process, free_ports, wait_until
from tests.waiting import PATIENCE, eventually

APP = Path(__file__).parent / "host_app" / "function_app.py"


@dataclass(frozen=True)
class Cloud:
    """An Azurite and a client of its blobs."""

    connection: str
    blobs: BlobServiceClient

    def upload(self, container: str, name: str, text: str) -> None:
        self.blobs.get_blob_client(container, name).upload_blob(text.encode(), overwrite=True)

    def send(self, queue: str, text: str, *, encoded: bool = True) -> None:
        policy = TextBase64EncodePolicy() if encoded else None
        with QueueClient.from_connection_string(self.connection, queue, message_encode_policy=policy) as client:
            client.send_message(text)

    def peek(self, queue: str) -> list[str]:
        """The raw texts of the visible messages; an empty list if the queue does not exist."""
        with QueueClient.from_connection_string(self.connection, queue) as client:
            try:
                return [message.content for message in client.peek_messages(32)]
            except ResourceNotFoundError:
                return []

    def count(self, queue: str) -> int:
        """The number of messages, including hidden ones."""
        with QueueClient.from_connection_string(self.connection, queue) as client:
            return int(client.get_queue_properties().approximate_message_count or 0)

    def create_queue(self, name: str) -> None:
        with QueueClient.from_connection_string(self.connection, name) as client:
            client.create_queue()

    def delete_queue(self, name: str) -> None:
        with QueueClient.from_connection_string(self.connection, name) as client:
            client.delete_queue()


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Message  # ignores the case of names
    body: str


class HostProcess:
    """`python -m localcloud.host` with the app of these tests and its state in `folder`; `auth` requires keys."""

    def __init__(self, folder: Path, cloud: Cloud, *, auth: bool = False, **settings: str) -> None:
        self.folder = folder
        self._observations = folder / "observations.jsonl"
        values = {
            "AzureWebJobsStorage": cloud.connection,
            "DATA": cloud.connection,
            "TICK_SCHEDULE": "0 0 3 * * *",
            "OBSERVATIONS": str(self._observations),
            **settings,
        }
        settings_file = folder / "local.settings.json"
        settings_file.write_text(json.dumps({"Values": values, "Host": {"CORS": "http://page"}}))
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        options = ["--settings", str(settings_file), "--app", str(APP), "--state", str(folder), "--port", str(port)]
        command = [sys.executable, "-m", "localcloud.host", *options, *(["--auth"] if auth else [])]
        self.process = Process("functions host", command, folder / "host.log", cwd=PROJECT_ROOT, grace=15)
        wait_until(lambda: self.process.says(LISTENS), self.process, seconds=PATIENCE)

    @property
    def log(self) -> str:
        return (self.folder / "host.log").read_text()

    @property
    def keys(self) -> dict[str, Any]:
        keys: dict[str, Any] = json.loads((self.folder / "host-keys.json").read_text())
        return keys

    def seen(self, function: str, **like: Any) -> list[dict[str, Any]]:
        """The observations of the calls of a function that include `like`."""
        if not self._observations.exists():
            return []
        lines = [json.loads(line) for line in self._observations.read_text().splitlines()]
        return [line for line in lines if line["function"] == function and like.items() <= line.items()]

    def wait_for(self, function: str, count: int = 1, **like: Any) -> list[dict[str, Any]]:
        """Waits for at least `count` calls, and returns them."""

        def look() -> list[dict[str, Any]]:
            seen = self.seen(function, **like)
            return seen if len(seen) >= count else []

        return eventually(look, lambda: f"{count} call(s) of {function} with {like}\n{self.log}")

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        data = body.encode() if isinstance(body, str) else None if body is None else json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data, names, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return Reply(answer.status, answer.headers, answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, error.headers, error.read().decode())
