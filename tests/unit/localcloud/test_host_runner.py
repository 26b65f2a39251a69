"""One invocation: contexts, threads, retries, time-outs and log lines."""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from localcloud.host.bindings import timer_value
from localcloud.host.runner import LogFormatter, Outcome, Runner
from tests.host_functions import hosted
from tests.waiting import PATIENCE

VALUE = timer_value(past_due=False, status=None)
TIMER = {"type": "timerTrigger"}


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The formatted lines of all log records."""
    said: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(LogFormatter().format(record))

    root, handler = logging.getLogger(), Collector()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield said
    root.removeHandler(handler)
    root.setLevel(level)


def run(call: Any, *, runner: Runner | None = None, **changes: Any) -> Outcome:
    runner = runner or Runner()
    outcome = asyncio.run(runner.run(hosted(call, TIMER, **changes), VALUE, "a test"))
    runner.close()
    return outcome


def test_sync_functions_run_in_threads_with_their_context() -> None:
    seen: dict[str, Any] = {}

    def call(value: Any, context: Any) -> None:
        seen.update(thread=threading.current_thread(), context=context)
        seen["local"] = context.thread_local_storage.invocation_id

    outcome = run(call, wants_context=True)
    assert outcome.succeeded
    assert seen["thread"] is not threading.main_thread()
    assert seen["context"].invocation_id == seen["local"] == outcome.invocation_id
    assert (seen["context"].function_name, seen["context"].retry_context.retry_count) == ("f", 0)


def test_async_functions_run_on_the_loop() -> None:
    seen: list[threading.Thread] = []

    async def call(value: Any) -> None:
        await asyncio.sleep(0)
        seen.append(threading.current_thread())

    assert run(call).succeeded
    assert seen == [threading.main_thread()]


def test_log_lines_name_function_and_invocation(lines: list[str]) -> None:
    def call(value: Any) -> None:
        logging.info("inside")

    outcome = run(call)
    assert f"Executing 'Functions.f' (Reason='a test', Id={outcome.invocation_id})" in lines[0]
    assert f"f {outcome.invocation_id[:8]}: inside" in lines[1]
    assert f"Executed 'Functions.f' (Succeeded, Id={outcome.invocation_id}, Duration=" in lines[2]


def test_failures_are_logged_with_the_apps_part_of_the_traceback(lines: list[str]) -> None:
    def call(value: Any) -> None:
        raise ZeroDivisionError("by design")

    outcome = run(call)
    assert outcome.to_json()["error"] == "ZeroDivisionError: by design"
    assert "(Failed, " in lines[1]
    assert "ZeroDivisionError: by design" in lines[1]
    assert "host/runner.py" not in lines[1]


@pytest.mark.parametrize("error", [SystemExit(3), ValueError("x")])
def test_no_error_of_a_function_reaches_the_host(error: BaseException) -> None:
    def call(value: Any) -> None:
        raise error

    assert run(call).error is error


def test_a_returned_value_without_a_return_binding_is_an_error() -> None:
    def call(value: Any) -> int:
        return 1

    assert isinstance(run(call).error, RuntimeError)
    assert run(call, returns_value=True).result == 1


def test_a_retry_policy_repeats_a_call_and_counts_the_retries() -> None:
    seen: list[tuple[int, int]] = []

    def call(value: Any, context: Any) -> None:
        seen.append((context.retry_context.retry_count, context.retry_context.max_retry_count))
        if len(seen) < 3:
            raise RuntimeError

    assert run(call, wants_context=True, retry_delays=(0.0, 0.0, 0.0)).succeeded
    assert seen == [(0, 3), (1, 3), (2, 3)]
    seen.append((9, 9))
    seen.clear()
    assert not run(call, wants_context=True, retry_delays=(0.0,)).succeeded
    assert seen == [(0, 1), (1, 1)]


def test_a_function_timeout_is_logged(lines: list[str]) -> None:
    def call(value: Any) -> None:
        time.sleep(0.05)

    run(call, runner=Runner(timeout=timedelta(milliseconds=10)))
    assert any("Timeout value of 0:00:00.010000 exceeded by function 'Functions.f'" in line for line in lines)


def test_the_number_of_threads_limits_concurrent_calls() -> None:
    most, now, lock, both = 0, 0, threading.Lock(), threading.Barrier(2, timeout=PATIENCE)

    def call(value: Any) -> None:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        both.wait()  # continues when two calls run
        with lock:
            now -= 1

    async def several() -> None:
        await asyncio.gather(*(runner.run(hosted(call, TIMER), VALUE, "a test") for _ in range(6)))

    runner = Runner(threads=2)
    asyncio.run(several())
    runner.close()
    assert most == 2
