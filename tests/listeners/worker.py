"""The process that holds the functions for the real listeners: `python -m tests.listeners.worker APP INDEX LOG`.

It indexes APP as the local host does, writes to INDEX (JSON) the functions that have a listener, and says
`{"listening": PORT}`. `POST /invoke/NAME` with `{"invocation", "trigger"}` then calls that function, built with the
converters of azure.functions, in one of several threads: 200 when it returned, 500 with the error when it raised.
LOG gets a line of JSON when a call begins and one when it ends, so a call that was killed has no second line.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from aiohttp import web

from localcloud.host.app import HostedFunction, load_functions
from localcloud.host.bindings import BlobReference, ScheduleStatus, TriggerValue, blob_value, queue_value, timer_value
from localcloud.host.blobs import BlobFunction, read_blob
from localcloud.host.runner import LogFormatter, Runner
from localcloud.host.store import Clients
from localcloud.processes import LOCALHOST

Trigger = Mapping[str, Any]
WITH_A_LISTENER = ("blobTrigger", "queueTrigger", "timerTrigger")


class Worker:
    """Answers invocations; `log` gets what was delivered."""

    def __init__(self, functions: list[HostedFunction], log: TextIO, environ: Mapping[str, str]) -> None:
        self._functions = {function.name: function for function in functions}
        self._log = log
        self._clients = Clients(environ)
        self._runner = Runner()

    async def invoke(self, request: web.Request) -> web.Response:
        function = self._functions[request.match_info["name"]]
        order = await request.json()
        self._note(invocation=order["invocation"], function=function.name, trigger=order["trigger"])
        try:
            value = await self._value(function, order["trigger"])
            error = (await self._runner.run(function, value, "The listener delivered it.")).error
        except Exception as unbound:  # noqa: BLE001 - what a binding raises is a failure of the invocation
            error = unbound
        said = f"{type(error).__name__}: {error}" if error else None
        self._note(invocation=order["invocation"], error=said)
        return web.Response(status=500 if said else 200, text=said or "")

    async def close(self, _app: web.Application) -> None:
        self._runner.close()
        await self._clients.close()

    async def _value(self, function: HostedFunction, trigger: Trigger) -> TriggerValue:
        if function.kind == "queueTrigger":
            return _message(function, trigger)
        if function.kind == "timerTrigger":
            return _timer(trigger)
        item, container, name = BlobFunction.of(function), trigger["ContainerName"], trigger["BlobName"]
        if not function.deferred:
            return (await read_blob(item, self._clients, container, name))[0]
        # Azure hands over the name alone: the function is called even if the blob is gone.
        uri = self._clients.blobs(item.connection).get_blob_client(container, name).url
        values = item.path.match(container, name) or {}
        return blob_value(function, BlobReference(container, name, uri, {}, {}, values), None)

    def _note(self, **facts: object) -> None:
        self._log.write(json.dumps({"at": time.time(), **facts}) + "\n")
        self._log.flush()


def _message(function: HostedFunction, trigger: Trigger) -> TriggerValue:
    return queue_value(
        function,
        base64.b64decode(trigger["body"]),
        message_id=trigger["id"],
        dequeue_count=trigger["dequeueCount"],
        pop_receipt=trigger["popReceipt"],
        inserted=_moment(trigger["insertedOn"]),
        expires=_moment(trigger["expiresOn"]),
        next_visible=_moment(trigger["nextVisibleOn"]),
    )


def _timer(trigger: Trigger) -> TriggerValue:
    status = None
    if trigger["next"] is not None:
        status = ScheduleStatus(*(_moment(trigger[key]) for key in ("last", "next", "lastUpdated")))
    return timer_value(past_due=trigger["isPastDue"], status=status)


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _index(functions: list[HostedFunction]) -> str:
    """What the program takes: names and bindings, as the app declares them."""
    return json.dumps([{"name": function.name, "bindings": function.bindings} for function in functions])


async def _serve(worker: Worker, listening: Callable[[int], None]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    app = web.Application()
    app.router.add_post("/invoke/{name}", worker.invoke)
    app.on_cleanup.append(worker.close)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, LOCALHOST, 0).start()
    listening(int(runner.addresses[0][1]))
    await stop.wait()
    await runner.cleanup()


def main() -> None:
    app_file, index, log_file = map(Path, sys.argv[1:])
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("azure").setLevel(logging.WARNING)
    loaded = load_functions(app_file, os.environ)
    functions = [function for function in loaded if function.kind in WITH_A_LISTENER]
    index.write_text(_index(functions))
    with log_file.open("a") as log:
        asyncio.run(_serve(Worker(functions, log, os.environ), lambda port: print(json.dumps({"listening": port}))))  # noqa: T201


if __name__ == "__main__":
    main()
