"""Sending to a queue, in the encoding the Functions host expects."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from shared.errors import NotFound
from shared.messages import Message
from shared.storage import storage_errors

if TYPE_CHECKING:
    from azure.storage.queue import QueueClient

    from shared.settings import Settings

POISON_SUFFIX = "-poison"
ROLE = "Storage Queue Data Contributor on the account"
BLOB_POISON_QUEUE = "webjobs-blobtrigger-poison"


def poison_queues(settings: Settings) -> list[str]:
    """Where the host puts what failed for good: messages of both queues, and blobs."""
    own = (settings.posts_landed_queue, settings.classification_runs_queue)
    return [*(f"{name}{POISON_SUFFIX}" for name in own), BLOB_POISON_QUEUE]


class Queue:
    """One storage queue."""

    def __init__(self, client: QueueClient) -> None:
        self._client = client
        self.name = client.queue_name

    def send(self, message: Message, delay: timedelta = timedelta()) -> None:
        """Enqueue; nobody sees the message before `delay` has passed (its visibility timeout).

        The queue is made on first use, so that a message is never lost to a queue nobody deployed.
        """
        body, wait = message.model_dump_json(), max(0, round(delay.total_seconds()))
        try:
            with storage_errors(f"queue {self.name}", ROLE):
                self._client.send_message(body, visibility_timeout=wait, time_to_live=-1)
        except NotFound:
            with storage_errors(f"queue {self.name}", ROLE):
                self._client.create_queue()
                self._client.send_message(body, visibility_timeout=wait, time_to_live=-1)

    def length(self) -> int:
        """About how many messages wait; 0 where there is no such queue."""
        try:
            with storage_errors(f"queue {self.name}", ROLE):
                return int(self._client.get_queue_properties().approximate_message_count or 0)
        except NotFound:
            return 0
