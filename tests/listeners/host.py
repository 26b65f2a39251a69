"""The real listeners of Azure Functions, around the functions of an app: see docs/real-listeners.md."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from localcloud.host.config import read_host_json
from localcloud.processes import LOCALHOST, Process, wait_until
from tests.places import PROJECT, SAMPLES
from tests.waiting import PATIENCE

NAME = "triggerhost"
BESIDE = SAMPLES / "tools" / NAME
MISSING = "the real listeners are missing"
LONGEST_STOP = 120.0
"""Seconds that a stop waits for what is under way, before it is killed."""


def program() -> Path | None:
    """The program on PATH, or beside the project; None where it is in neither place."""
    found = shutil.which(NAME) or (BESIDE if os.access(BESIDE, os.X_OK) else None)
    return None if found is None else Path(found)


def what_is_missing() -> str | None:
    """How to get the program; None where it is there."""
    if program():
        return None
    return f"{MISSING}: {NAME} is neither on PATH nor at {BESIDE}; docs/real-listeners.md says what it is"


@dataclass
class Delivery:
    """One call of a function. `trigger` is what the listener said of it; `ended` is None while it runs, and for good
    if it was killed; `error` is what the function raised."""

    function: str
    trigger: dict[str, Any]
    began: float
    ended: float | None = None
    error: str | None = None

    @property
    def blob(self) -> str:
        return str(self.trigger["BlobName"])


class RealHost:
    """A host of one app: the program with its listeners, and a worker that holds the functions.

    `folder` takes files and logs, `settings` are the app's and go before the environment, `host_id` names what the host
    keeps in storage (`blobreceipts/…`, `timers/…`). host.json is the one beside the app, with the settings'
    overrides. A context manager; inside it `stop`, `kill` and `start` may be called at will.
    """

    def __init__(self, folder: Path, app: Path, settings: Mapping[str, str], host_id: str) -> None:
        self.host_id = host_id
        self._folder = folder
        self._app = app
        self._settings = dict(settings)
        self._deliveries = folder / "deliveries.jsonl"
        self._worker: Process | None = None
        self._listeners: Process | None = None
        self._url = ""
        self._starts = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self, **settings: str) -> None:
        """Start both processes; returns once all listeners run. `settings` are added to those of the host for good."""
        self._settings |= settings
        self._starts += 1
        self._folder.mkdir(parents=True, exist_ok=True)
        index = self._folder / "functions.json"
        environ = {**os.environ, **self._settings, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "tests.listeners.worker", str(self._app), str(index), str(self._deliveries)]
        self._worker = Process("functions", command, self._log("worker"), env=environ, cwd=PROJECT)
        port = self._said(self._worker, "listening")
        host_json = self._folder / "host.json"
        host_json.write_text(json.dumps(read_host_json(self._app.with_name("host.json"), self._settings)))
        app = {
            "hostId": self.host_id,
            "hostJson": str(host_json),
            "invoke": f"http://{LOCALHOST}:{port}/invoke/",
            "port": 0,
            "functions": json.loads(index.read_text()),
        }
        order = self._folder / "app.json"
        order.write_text(json.dumps(app))
        listeners = [str(program()), str(order)]
        self._listeners = Process(
            "listeners", listeners, self._log("listeners"), env=environ, cwd=self._folder, grace=LONGEST_STOP
        )
        self._url = f"http://{LOCALHOST}:{self._said(self._listeners, 'running')}"

    def stop(self) -> int:
        """SIGTERM, as Azure ends a host: returns once what was under way has ended, with the program's exit code."""
        assert self._listeners is not None
        code = self._listeners.stop()
        self.kill()
        return code

    def kill(self) -> None:
        """SIGKILL for the program and the functions, in the middle of whatever they do; nothing where none runs."""
        for process in (self._listeners, self._worker):
            if process is not None:
                if process.return_code() is None:
                    os.kill(process.pid, signal.SIGKILL)
                process.stop()
        self._listeners = self._worker = None

    def post_events(self, function: str, events: Any) -> int:
        """Event Grid delivers; returns the status of the answer."""
        path = f"/runtime/webhooks/blobs?functionName=Host.Functions.{function}"
        return self._post(path, events, {"aeg-event-type": "Notification", "Content-Type": "application/json"})

    def fire(self, function: str) -> int:
        """Fire a timer, and return once its function has ended: 202 when it returned, 500 when it raised."""
        return self._post(f"/admin/functions/{function}", {}, {"Content-Type": "application/json"})

    def sweep(self) -> bool:
        """Let the app look for what no event brought up; False where it has no function for that."""
        return self.fire("reconcile") != 404

    def status(self) -> dict[str, Any]:
        """`state`, and the numbers of `calls` so far and of those `active` now."""
        with urllib.request.urlopen(f"{self._url}/admin/host/status", timeout=PATIENCE) as answer:
            said: dict[str, Any] = json.load(answer)
            return said

    def deliveries(self, function: str | None = None) -> list[Delivery]:
        """All calls so far, those of earlier starts too, in the order in which they began."""
        calls: dict[str, Delivery] = {}
        lines = self._deliveries.read_text().splitlines() if self._deliveries.exists() else []
        for line in lines:
            note = json.loads(line)
            if "function" in note:
                calls[note["invocation"]] = Delivery(note["function"], note["trigger"], note["at"])
            else:
                calls[note["invocation"]].ended, calls[note["invocation"]].error = note["at"], note["error"]
        return [call for call in calls.values() if function in (None, call.function)]

    def told(self) -> str:
        """The end of what both processes logged since they were last started."""
        return "\n".join(process.last_lines(40) for process in (self._worker, self._listeners) if process)

    def log(self) -> str:
        """All that the listeners logged since they were last started."""
        return self._log("listeners").read_text(errors="replace")

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}-{self._starts}.log"

    def _said(self, process: Process, word: str) -> int:
        """The port that a process names in its log, once it does."""
        pattern = re.compile(rf'\{{"{word}":\s*(\d+)\}}'.encode())
        wait_until(lambda: pattern.search(process.log.read_bytes()) is not None, process, PATIENCE)
        found = pattern.search(process.log.read_bytes())
        assert found is not None
        return int(found[1])

    def _post(self, path: str, body: Any, headers: Mapping[str, str]) -> int:
        request = urllib.request.Request(self._url + path, json.dumps(body).encode(), dict(headers), method="POST")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
