"""Sending to a queue, in the encoding the Functions host expects."""

from __future__ import annotations

import base64
import binascii
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from shared.errors import NotFound
from shared.messages import Message
from shared.storage import storage_errors

if TYPE_CHECKING:
    from azure.storage.queue import QueueClient, QueueMessage

    from shared.settings import Settings

POISON_SUFFIX = "-poison"
ROLE = "Storage Queue Data Contributor on the account"
BLOB_POISON_QUEUE = "webjobs-blobtrigger-poison"


LETTERS_AT_ONCE, LETTERS_HIDDEN_SECONDS = 1_000, 30


def poison_queues(settings: Settings) -> list[str]:
    """Where the host puts what failed for good: messages of every queue, and blobs."""
    return [*(f"{name}{POISON_SUFFIX}" for name in settings.queues), BLOB_POISON_QUEUE]


@dataclass(frozen=True)
class Letter:
    """A message that lies in a queue: its text decoded where it was base64, and when it was put there."""

    id: str
    body: bytes
    since: datetime
    receipt: str


class Queue(Protocol):
    """What the product asks of a queue."""

    name: str

    def send(self, message: Message, delay: timedelta = timedelta()) -> None:
        """Enqueue a message that nobody sees before `delay` has passed."""

    def letters(self) -> list[Letter]:
        """What lies in the queue, hidden from others for a while."""

    def discard(self, letter: Letter) -> None:
        """Delete a message that `letters` gave."""

    def length(self) -> int:
        """About how many messages wait."""


class StorageQueue:
    """One storage queue."""

    def __init__(self, client: QueueClient, raw: QueueClient) -> None:
        """`raw` is the same queue without any encoding: others may put text there that is not base64."""
        self._client, self._raw = client, raw
        self.name = client.queue_name

    def send(self, message: Message, delay: timedelta = timedelta()) -> None:
        """Enqueue; nobody sees the message before `delay` has passed (its visibility timeout).

        The queue is made on first use, so that no message is lost because a queue was never deployed.
        """
        body, wait = message.model_dump_json(), max(0, round(delay.total_seconds()))
        try:
            with storage_errors(f"queue {self.name}", ROLE):
                self._client.send_message(body, visibility_timeout=wait, time_to_live=-1)
        except NotFound:
            with storage_errors(f"queue {self.name}", ROLE):
                self._client.create_queue()
                self._client.send_message(body, visibility_timeout=wait, time_to_live=-1)

    def letters(self, at_most: int = LETTERS_AT_ONCE) -> list[Letter]:
        """What lies in the queue; nobody else sees it for LETTERS_HIDDEN_SECONDS, unless it is discarded before."""
        try:
            with storage_errors(f"queue {self.name}", ROLE):
                received = self._raw.receive_messages(
                    messages_per_page=32, visibility_timeout=LETTERS_HIDDEN_SECONDS, max_messages=at_most
                )
                return [_letter(each) for each in received]
        except NotFound:
            return []

    def discard(self, letter: Letter) -> None:
        """Delete a message that `letters` gave; one that is gone is fine."""
        with suppress(NotFound), storage_errors(f"queue {self.name}", ROLE):
            self._raw.delete_message(letter.id, letter.receipt)

    def length(self) -> int:
        """About how many messages wait; 0 where there is no such queue."""
        try:
            with storage_errors(f"queue {self.name}", ROLE):
                return int(self._client.get_queue_properties().approximate_message_count or 0)
        except NotFound:
            return 0


def _letter(message: QueueMessage) -> Letter:
    assert message.inserted_on is not None
    assert message.pop_receipt is not None
    return Letter(message.id, _decoded(message.content), message.inserted_on, message.pop_receipt)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return text.encode()
