"""All of the host together: listeners for every function, the HTTP side, start and stop."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from azure.core.exceptions import AzureError, ResourceExistsError

from localcloud.host import LISTENS
from localcloud.host.app import HostedFunction
from localcloud.host.blobs import (
    POISON_QUEUE,
    BlobFunction,
    BlobInvoker,
    BlobMessage,
    ContainerScanner,
    announced_blobs,
    trigger_queue,
)
from localcloud.host.config import HOST_STORAGE, HostConfig, QueueOptions, host_id
from localcloud.host.errors import HostError
from localcloud.host.keys import KEYS_FILE, HostKeys
from localcloud.host.queues import QueueInvoker, QueueListener
from localcloud.host.runner import Outcome, Runner
from localcloud.host.server import HttpServer
from localcloud.host.store import Clients, HostStore
from localcloud.host.timers import TimerListener

log = logging.getLogger(__name__)
STOP_SECONDS = 10.0

Listener = TimerListener | QueueListener | ContainerScanner


class FunctionsHost:
    """The host of one app.

    `environ` holds the app's settings. `state` is the folder of the access keys; None opens everything to everyone on
    this machine, as `func start` does.
    Raises HostError for functions whose triggers or connections make no sense.
    """

    def __init__(
        self,
        functions: Sequence[HostedFunction],
        config: HostConfig,
        state: Path | None,
        environ: Mapping[str, str],
        cors_origins: Sequence[str] = (),
    ) -> None:
        self._config = config
        self._host_id = host_id(environ)
        self._runner = Runner(_thread_count(environ), config.function_timeout)
        self._clients = Clients(environ)
        self._store = HostStore(self._clients, self._host_id)
        self._blobs: dict[str, BlobFunction] = {}
        self._active: list[Listener] = []
        self._fire: dict[str, Callable[[str], Awaitable[Outcome]]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.keys = HostKeys.load(state / KEYS_FILE, [function.name for function in functions]) if state else None
        self.server = HttpServer(
            functions,
            self._runner,
            self.keys,
            route_prefix=config.route_prefix,
            cors_origins=cors_origins,
            host_id=self._host_id,
            fire=self.fire,
            publish=self.publish,
        )
        self._add_timers([function for function in functions if function.kind == "timerTrigger"])
        self._add_queues([function for function in functions if function.kind == "queueTrigger"])
        self._add_blobs([BlobFunction.of(function) for function in functions if function.kind == "blobTrigger"])

    async def start(self, port: int) -> int:
        """Listens to everything and returns the HTTP port. Raises HostError when the port or the storage is not to be
        had."""
        try:
            await self._create_places()
        except AzureError as error:
            raise HostError(f"the storage of {HOST_STORAGE} does not answer: {error}") from error
        chosen = await self.server.start(port)
        self._tasks = [asyncio.create_task(listener.run()) for listener in self._active]
        return chosen

    async def fail(self) -> None:
        """Waits until a listener breaks, and raises what broke it."""
        if not self._tasks:
            await asyncio.Event().wait()
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()

    async def stop(self) -> bool:
        """Stops listening and lets running functions finish, for up to 10 seconds.

        Returns False when one was still running: its message, if it had one, comes again.
        """
        for listener in self._active:
            listener.stop()
        ending = asyncio.gather(self.server.stop(), *self._tasks, return_exceptions=True)
        try:
            await asyncio.wait_for(ending, STOP_SECONDS)
            clean = True
        except TimeoutError:
            log.warning("A function did not end within %.0f s", STOP_SECONDS)
            clean = False
        await self._clients.close()
        self._runner.close(wait=clean)
        return clean

    async def fire(self, function: HostedFunction, text: str) -> Outcome:
        """Runs one function that is not HTTP: a queue function with `text` as its message, a blob function with the
        blob that `text` names (`container/name`), a timer as it is. Raises HostError when there is no such blob."""
        return await self._fire[function.name](text)

    async def publish(self, name: str, events: Any) -> int:
        """Queues the blobs that Event Grid events announce to a function and returns how many those are.

        As in Azure, events for an unknown function are accepted and dropped. Raises ValueError for invalid events.
        """
        item = self._blobs.get(name)
        if item is None:
            log.warning("Blob events for %r are dropped: there is no such function with a blob trigger", name)
            return 0
        messages = list(announced_blobs(events, item))
        for message in messages:
            await self._enqueue(message)
        return len(messages)

    def _add_timers(self, functions: Sequence[HostedFunction]) -> None:
        for function in functions:
            listener = TimerListener(function, self._runner, self._store)
            self._fire[function.name] = listener.fire
            if not function.disabled:
                self._active.append(listener)

    def _add_queues(self, functions: Sequence[HostedFunction]) -> None:
        for function in functions:
            invoker = QueueInvoker(function, self._runner)
            self._fire[function.name] = invoker.fire
            if not function.disabled:
                connection, name = str(function.trigger.get("connection", "")), str(function.trigger["queueName"])
                queue, poison = self._clients.queue(connection, name), self._clients.queue(connection, f"{name}-poison")
                self._active.append(QueueListener(queue, poison, self._config.queues, invoker.handle))

    def _add_blobs(self, items: Sequence[BlobFunction]) -> None:
        enabled = [item for item in items if not item.function.disabled]
        invoker = BlobInvoker(enabled, self._clients, self._runner)
        for item in items:
            self._fire[item.function.name] = functools.partial(invoker.fire, item)
        if not enabled:
            return
        waiting_below = self._config.blobs_at_once // 2
        options = QueueOptions(
            batch_size=min(32, self._config.blobs_at_once - waiting_below),
            new_batch_threshold=waiting_below,
            max_dequeue_count=self._config.poison_blob_threshold,
        )
        self._trigger_queue = self._clients.queue(HOST_STORAGE, trigger_queue(self._host_id))
        poison = self._clients.queue(HOST_STORAGE, POISON_QUEUE)
        self._trigger_listener = QueueListener(self._trigger_queue, poison, options, invoker.handle)
        self._active.append(self._trigger_listener)
        self._blobs = {item.function.name: item for item in enabled}
        scanned: dict[tuple[str, str], list[BlobFunction]] = {}
        for item in enabled:
            if not item.by_events:
                scanned.setdefault((item.connection, item.path.container), []).append(item)
        for (connection, container), waiting in scanned.items():
            client = self._clients.blobs(connection).get_container_client(container)
            self._active.append(ContainerScanner(client, waiting, self._store, self._enqueue))

    async def _create_places(self) -> None:
        if self._active:
            await self._store.create()
        if self._blobs:
            try:
                await self._trigger_queue.create_queue()
            except ResourceExistsError:
                return

    async def _enqueue(self, message: BlobMessage) -> None:
        await self._trigger_queue.send_message(message.encode())
        self._trigger_listener.wake()


def _thread_count(environ: Mapping[str, str]) -> int | None:
    text = environ.get("PYTHON_THREADPOOL_THREAD_COUNT")
    if text is None:
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 32:
        raise HostError(f"PYTHON_THREADPOOL_THREAD_COUNT is {text!r}, must be 1 to 32")
    return int(text)


async def serve(host: FunctionsHost, port: int, stop: Coroutine[Any, Any, object]) -> bool:
    """Runs the host until `stop` ends. Returns whether everything had finished; raises what broke a listener."""
    stopping = asyncio.create_task(stop)
    failing = None
    try:
        chosen = await host.start(port)
        log.info("%s http://127.0.0.1:%d", LISTENS, chosen)
        failing = asyncio.create_task(host.fail())
        await asyncio.wait([stopping, failing], return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            failing.result()
    finally:
        stopping.cancel()
        if failing:
            failing.cancel()
        clean = await host.stop()
    return clean
