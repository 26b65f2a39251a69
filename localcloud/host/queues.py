"""Queue listener: takes messages, keeps them hidden, repeats failed ones, moves the hopeless to poison.

What Azure documents of queue triggers: a message is hidden while its function runs, deleted when it succeeded,
shown again after visibilityTimeout when it failed, and moved to `<queue>-poison` after maxDequeueCount tries.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from azure.core.exceptions import AzureError, ResourceNotFoundError
from azure.storage.queue import QueueMessage
from azure.storage.queue.aio import QueueClient

from localcloud.host.app import HostedFunction
from localcloud.host.bindings import queue_value
from localcloud.host.config import QueueOptions
from localcloud.host.runner import API_REASON, Outcome, Runner

log = logging.getLogger(__name__)
# Seconds between looks into an empty queue: from the first to the second, doubling. Azure waits up to
# maxPollingInterval (a minute); a person waits for a local run, and one look costs about 2 ms of CPU.
SHORTEST_POLL, LONGEST_POLL = 0.1, 0.5
# A message is hidden this long and renewed at a third of it. Azure hides for 10 minutes: a crashed local host
# would keep its messages from the next one for as long.
LEASE_SECONDS = 30
POISON_SECONDS = 7 * 24 * 60 * 60
"""Poison messages expire after a week, as in Azure."""
_ERROR_PAUSE = 2.0


@dataclass(frozen=True)
class Delivery:
    """A message as the listener hands it over: decoded body, and the message with its ids and times."""

    body: bytes
    message: QueueMessage


Handler = Callable[[Delivery], Awaitable[bool]]


class QueueListener:
    """Hands the messages of one queue to `handle`, which returns whether it succeeded and raises nothing.

    `poison` is the queue for messages that were tried too often or cannot be decoded; it is made when needed.
    """

    def __init__(self, queue: QueueClient, poison: QueueClient, options: QueueOptions, handle: Handler) -> None:
        self._queue = queue
        self._poison = poison
        self._options = options
        self._handle = handle
        self._running: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._stopping = False
        self._longest_poll = min(LONGEST_POLL, options.max_polling_interval.total_seconds())

    async def run(self) -> None:
        """Listens until `stop`."""
        idle = SHORTEST_POLL
        while not self._stopping:
            if len(self._running) > self._options.new_batch_threshold:
                await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
                continue
            batch = await self._receive()
            for message in batch:
                task = asyncio.create_task(self._process(message))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
            if batch:
                idle = SHORTEST_POLL
            else:
                await self._pause(idle)
                idle = min(idle * 2, self._longest_poll)
        if self._running:
            await asyncio.wait(self._running)

    def wake(self) -> None:
        """Looks into the queue at once: something was put there."""
        self._wake.set()

    def stop(self) -> None:
        """Takes no more messages; `run` ends when those at work are done."""
        self._stopping = True
        self.wake()

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._wake.wait(), seconds)
        except TimeoutError:
            return
        self._wake.clear()

    async def _receive(self) -> list[QueueMessage]:
        pages = self._queue.receive_messages(
            messages_per_page=self._options.batch_size, visibility_timeout=LEASE_SECONDS
        ).by_page()
        try:
            async for page in pages:
                return [message async for message in page]
        except ResourceNotFoundError:
            return []
        except AzureError as error:
            log.warning("Queue '%s' cannot be read: %s", self._queue.queue_name, error)
            await self._pause(_ERROR_PAUSE)
        return []

    async def _process(self, message: QueueMessage) -> None:
        try:
            await self._deliver(message)
        except AzureError as error:
            log.warning("Message %s of '%s' comes again: %s", message.id, self._queue.queue_name, error)

    async def _deliver(self, message: QueueMessage) -> None:
        tries = int(message.dequeue_count or 1)
        if tries > self._options.max_dequeue_count:
            await self._move_to_poison(message, f"was taken {tries} times without an end")
            return
        try:
            body = decode_body(message.content, self._options.message_encoding)
        except ValueError as error:
            await self._move_to_poison(message, str(error))
            return
        async with _Lease(self._queue, message) as lease:
            succeeded = await self._handle(Delivery(body, message))
        if succeeded:
            await self._settle(self._queue.delete_message(message.id, lease.receipt), message)
        elif tries >= self._options.max_dequeue_count:
            await self._move_to_poison(message, f"reached maxDequeueCount of {tries}", lease.receipt)
        else:
            visible_in = int(self._options.visibility_timeout.total_seconds())
            shown = self._queue.update_message(message.id, lease.receipt, visibility_timeout=visible_in)
            await self._settle(shown, message)

    async def _move_to_poison(self, message: QueueMessage, why: str, receipt: str | None = None) -> None:
        log.error(
            "Message %s of '%s' %s. Moving message to queue '%s'",
            message.id,
            self._queue.queue_name,
            why,
            self._poison.queue_name,
        )
        try:
            await self._poison.send_message(message.content, time_to_live=POISON_SECONDS)
        except ResourceNotFoundError:
            await self._poison.create_queue()
            await self._poison.send_message(message.content, time_to_live=POISON_SECONDS)
        await self._settle(self._queue.delete_message(message.id, receipt or message.pop_receipt), message)

    async def _settle(self, call: Awaitable[object], message: QueueMessage) -> None:
        try:
            await call
        except ResourceNotFoundError:
            log.warning(
                "Message %s of '%s' is gone: expired, or taken by another host", message.id, self._queue.queue_name
            )


class QueueInvoker:
    """Runs a function with a queue trigger."""

    def __init__(self, function: HostedFunction, runner: Runner) -> None:
        self._function = function
        self._runner = runner

    async def handle(self, delivery: Delivery) -> bool:
        """Runs it for a message; returns whether it succeeded."""
        message = delivery.message
        times = message.inserted_on, message.expires_on, message.next_visible_on
        inserted, expires, next_visible = (moment or datetime.now(UTC) for moment in times)
        value = queue_value(
            self._function,
            delivery.body,
            message_id=str(message.id),
            dequeue_count=int(message.dequeue_count or 1),
            pop_receipt=str(message.pop_receipt),
            inserted=inserted,
            expires=expires,
            next_visible=next_visible,
        )
        reason = f"New queue message detected on '{self._function.trigger['queueName']}'."
        return (await self._runner.run(self._function, value, reason)).succeeded

    async def fire(self, text: str) -> Outcome:
        """Runs it for a message that is in no queue."""
        now = datetime.now(UTC)
        value = queue_value(
            self._function,
            text.encode(),
            message_id=str(uuid.uuid4()),
            dequeue_count=1,
            pop_receipt="",
            inserted=now,
            expires=now + timedelta(days=7),
            next_visible=now,
        )
        return await self._runner.run(self._function, value, API_REASON)


class _Lease:
    """Keeps a message hidden while its function runs; `receipt` is the pop receipt that is valid afterwards."""

    def __init__(self, queue: QueueClient, message: QueueMessage) -> None:
        self._queue = queue
        self._message = message
        self._done = asyncio.Event()
        self.receipt = str(message.pop_receipt)

    async def __aenter__(self) -> _Lease:
        self._renewal = asyncio.create_task(self._renew())
        return self

    async def __aexit__(self, *_: object) -> None:
        # Not cancelled: a renewal under way changes the receipt, and its answer must be read.
        self._done.set()
        await self._renewal

    async def _renew(self) -> None:
        while True:
            try:
                await asyncio.wait_for(self._done.wait(), LEASE_SECONDS / 3)
            except TimeoutError:
                await self._renew_once()
            else:
                return

    async def _renew_once(self) -> None:
        try:
            renewed = await self._queue.update_message(self._message.id, self.receipt, visibility_timeout=LEASE_SECONDS)
        except AzureError as error:
            log.warning("Message %s of '%s' is not kept hidden: %s", self._message.id, self._queue.queue_name, error)
        else:
            self.receipt = str(renewed.pop_receipt)


def decode_body(content: str, encoding: str) -> bytes:
    """The bytes of a message. Raises ValueError when `encoding` is base64 and the text is not."""
    if encoding == "none":
        return content.encode()
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except binascii.Error:
        raise ValueError(
            "is not base64, as host.json's messageEncoding wants it "
            f"(send it with TextBase64EncodePolicy, or set messageEncoding to none): {content[:60]!r}"
        ) from None
