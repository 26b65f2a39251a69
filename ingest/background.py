"""Work ahead in a thread: a bounded queue between who makes things and who uses them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import TypeVar

PUT_POLL_SECONDS = 0.1

T = TypeVar("T")


class Abandoned(Exception):
    """The consumer has gone; raised inside the producer so that it unwinds."""


def run_ahead(produce: Callable[[Callable[[T], None]], None], depth: int, name: str) -> Generator[T, None, None]:
    """Yield what `produce(put)` puts, while it runs in a thread of that name at most `depth` items ahead.

    An exception in `produce` is raised here, after the items before it. Closing the generator raises Abandoned in the
    producer's next `put` and waits for its end: a producer that may block elsewhere must be woken by the caller first.
    """
    items: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(depth)
    abandoned = threading.Event()

    def put(item: tuple[T] | BaseException | None) -> None:
        while not abandoned.is_set():
            with suppress(queue.Full):
                return items.put(item, timeout=PUT_POLL_SECONDS)
        raise Abandoned

    def run() -> None:
        end: BaseException | None = None
        try:
            produce(lambda item: put((item,)))
        except BaseException as error:  # noqa: BLE001 - carried over to the consumer
            end = error
        with suppress(Abandoned):
            put(end)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        while (item := items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        abandoned.set()
        thread.join()
