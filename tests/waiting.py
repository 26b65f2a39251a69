"""Waiting for other threads and processes."""

import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE = 240.0
"""Seconds after which a waiting test fails with a message, before pytest's time-out ends it without one. The value is
large, so that no test depends on the speed of the machine."""

T = TypeVar("T")


def eventually(look: Callable[[], T | None], what: str | Callable[[], str], seconds: float = PATIENCE) -> T:
    """Wait until `look` returns a truthy value, and return it; fails with `what` in the message if it never does."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"the time-out passed while waiting for {what if isinstance(what, str) else what()}")
        time.sleep(0.03)
    return found
