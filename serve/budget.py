"""A limit on how long a caller waits for an answer, whatever the services behind it do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from functools import cache
from typing import TypeVar

from shared.errors import TransientError

ANSWER_SECONDS = 1.0
"""The whole of an HTTP answer; the SDK alone tries for 86 s before it says that nothing listens."""
THREADS = 16
"""Calls that may be under way at once. While a service hangs, others wait for a thread, and are told so in time."""

Answer = TypeVar("Answer")


def within(seconds: float, ask: Callable[[], Answer]) -> Answer:
    """What `ask` returns or raises, if that takes at most `seconds`; else raises TransientError.

    A call that took too long goes on in its thread until its own time-outs end it.
    """
    future = _threads().submit(ask)
    try:
        return future.result(seconds)
    except TookTooLong:
        future.cancel()
        raise TransientError(f"there was no answer within {seconds:g} s") from None


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, "answer")
