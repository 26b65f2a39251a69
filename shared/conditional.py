"""Read, decide, write under the ETag that was read, and try again when somebody else was first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from shared.errors import Conflict, StackTopicsError, TransientError

TRIES = 20
"""Of 16 workers on one pointer, the last one needs 16."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.005, 0.5
"""Between two tries: the bounds of a random wait, the first doubling up to the second."""

Result = TypeVar("Result")


def until_first(
    attempt: Callable[[], Result], what: str, also: type[StackTopicsError] = Conflict, tries: int = TRIES
) -> Result:
    """What `attempt` returns, called again for as long as it raises Conflict, or `also`.

    `attempt` must read anew what it decides by. Raises TransientError that names `what` when `tries` are used up.
    """
    policy = Retrying(
        stop=stop_after_attempt(tries),
        wait=wait_random_exponential(multiplier=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS),
        retry=retry_if_exception_type((Conflict, also)),
    )
    try:
        return policy(attempt)
    except RetryError as error:
        last = error.last_attempt.exception()
        raise TransientError(f"{what} is being changed by too many others: {last}") from last
