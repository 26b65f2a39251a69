"""Waiting for what other threads and processes do."""

import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE = 240.0
"""Seconds after which a test that waits in vain fails, with a word, before pytest ends it without one. Nothing is
measured by it: no test passes or fails by how fast a machine is."""

T = TypeVar("T")


def eventually(look: Callable[[], T | None], what: str | Callable[[], str], seconds: float = PATIENCE) -> T:
    """What `look` returns once that is truthy; fails, naming `what` was waited for, when it never is."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain for {what if isinstance(what, str) else what()}")
        time.sleep(0.03)
    return found
