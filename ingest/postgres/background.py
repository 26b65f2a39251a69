"""A producer thread that works ahead: a bounded queue between producer and consumer."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")


class Abandoned(Exception):
    """The consumer has stopped; raised inside the producer so that it unwinds."""


def run_ahead(
    produce: Callable[[Callable[[T], None]], None],
    depth: int,
    name: str,
    budget: int | None = None,
    size: Callable[[T], int] | None = None,
) -> Generator[T, None, None]:
    """Yield the items of `produce(put)`, which runs in a thread called `name`, at most `depth` items ahead.

    With a `budget`, the `size` of the queued items and of the one in use adds up to at most the budget; a larger item
    is queued only when all others were used.
    An exception in `produce` is raised here, after the items before it. Closing the generator raises Abandoned in the
    producer's next `put` and waits for the thread to end: if the producer may block elsewhere, the caller must wake it
    first.
    """
    waiting: deque[tuple[T, int]] = deque()
    changed = threading.Condition()
    held = 0
    over = abandoned = False
    failure: BaseException | None = None

    def put(item: T) -> None:
        nonlocal held
        weight = size(item) if size else 0

        def has_room() -> bool:
            return abandoned or (len(waiting) < depth and (budget is None or not held or held + weight <= budget))

        with changed:
            changed.wait_for(has_room)
            if abandoned:
                raise Abandoned
            waiting.append((item, weight))
            held += weight
            changed.notify()

    def run() -> None:
        nonlocal over, failure
        try:
            produce(put)
        except BaseException as error:  # noqa: BLE001 - raised in the consumer
            failure = error
        with changed:
            over = True
            changed.notify()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: waiting or over)
                if not waiting:
                    break
                item, weight = waiting.popleft()
                changed.notify()
            yield item
            del item  # else it stays in memory until the next one arrives
            with changed:
                held -= weight
                changed.notify()
        if failure is not None:
            raise failure
    finally:
        with changed:
            abandoned = True
            changed.notify()
        thread.join()
