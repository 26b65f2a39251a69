"""One invocation: context, thread or coroutine, log lines, outcome."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import contextvars
import functools
import logging
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, TypeVar

import azure.functions as func

from localcloud.host.app import HostedFunction
from localcloud.host.bindings import TriggerValue, argument

log = logging.getLogger(__name__)
API_REASON = "This function was programmatically called via the host APIs."
_T = TypeVar("_T")

_current: contextvars.ContextVar[Invocation | None] = contextvars.ContextVar("invocation", default=None)


@dataclass(frozen=True)
class RetryState(func._abc.RetryContext):
    """How often this event was tried before, under the function's retry policy."""

    retry_count: int = 0
    max_retry_count: int = 0
    exception: Any = None


@dataclass(frozen=True)
class TraceState(func._abc.TraceContext):
    """W3C trace context; the local host starts no trace."""

    trace_parent: str = ""
    trace_state: str = ""
    attributes: Any = None


@dataclass(frozen=True)
class Invocation(func.Context):
    """What a function's `context` parameter gets. The defaults are what takes the place of abstract properties."""

    invocation_id: str = ""
    function_name: str = ""
    function_directory: str = ""
    retry_context: RetryState = RetryState()
    trace_context: TraceState = TraceState()
    thread_local_storage: Any = None


@dataclass(frozen=True)
class Outcome:
    """How an invocation ended; `result` is what the function returned, `error` the exception it raised."""

    invocation_id: str
    function: str
    duration: float
    result: Any = None
    error: BaseException | None = None

    @property
    def succeeded(self) -> bool:
        return self.error is None

    def to_json(self) -> dict[str, Any]:
        return {
            "invocationId": self.invocation_id,
            "function": self.function,
            "succeeded": self.succeeded,
            "durationMs": round(self.duration * 1000),
            "error": None if self.error is None else f"{type(self.error).__name__}: {self.error}",
        }


class Runner:
    """Runs functions: coroutines on the event loop, the others in a pool of threads.

    `threads` is PYTHON_THREADPOOL_THREAD_COUNT (None: Python's default); `timeout` is functionTimeout, which is
    logged when exceeded: a thread cannot be stopped from outside, and Azure would restart the whole worker.
    """

    def __init__(self, threads: int | None = None, timeout: timedelta | None = None) -> None:
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="function")
        self._timeout = timeout
        self._thread_local = threading.local()

    async def run(self, function: HostedFunction, value: TriggerValue, reason: str) -> Outcome:
        """Runs the function, again as its retry policy says, and returns the last outcome; never raises its error."""
        delays = function.retry_delays
        for tried, delay in enumerate(delays):
            outcome = await self._run_once(function, value, reason, RetryState(tried, len(delays)))
            if outcome.succeeded:
                return outcome
            log.warning("Retrying 'Functions.%s' in %.0f s", function.name, delay)
            await asyncio.sleep(delay)
        return await self._run_once(function, value, reason, RetryState(len(delays), len(delays)))

    def close(self, *, wait: bool = True) -> None:
        """Lets the threads end; without `wait`, those that run a function go on with it until the process ends."""
        self._pool.shutdown(wait=wait, cancel_futures=True)

    async def _run_once(self, function: HostedFunction, value: TriggerValue, reason: str, retry: RetryState) -> Outcome:
        invocation = Invocation(
            invocation_id=str(uuid.uuid4()),
            function_name=function.name,
            function_directory=str(function.directory),
            retry_context=retry,
            thread_local_storage=self._thread_local,
        )
        identity = f"Id={invocation.invocation_id}"
        log.info("Executing 'Functions.%s' (Reason='%s', %s)", function.name, reason, identity)
        token = _current.set(invocation)
        alarm = self._alarm(function, identity)
        started = time.monotonic()
        try:
            result = await self._call(function, value, invocation)
        except (Exception, SystemExit) as error:
            duration = time.monotonic() - started
            error.__traceback__ = _from_the_app(error.__traceback__)
            log.exception("Executed 'Functions.%s' (Failed, %s, Duration=%s)", function.name, identity, _ms(duration))
            return Outcome(invocation.invocation_id, function.name, duration, error=error)
        finally:
            if alarm:
                alarm.cancel()
            _current.reset(token)
        duration = time.monotonic() - started
        log.info("Executed 'Functions.%s' (Succeeded, %s, Duration=%s)", function.name, identity, _ms(duration))
        return Outcome(invocation.invocation_id, function.name, duration, result)

    async def _call(self, function: HostedFunction, value: TriggerValue, invocation: Invocation) -> Any:
        # Decoding may read a blob, so it happens in the pool too.
        arguments = {function.parameter: await self._in_thread(functools.partial(argument, function, value))}
        if function.wants_context:
            arguments["context"] = invocation
        self._thread_local.invocation_id = invocation.invocation_id
        if function.is_async:
            result = await function.call(**arguments)
        else:
            result = await self._in_thread(functools.partial(self._call_sync, function.call, arguments, invocation))
        if result is not None and not function.returns_value:
            raise RuntimeError(f"function {function.name} without a $return binding returned a non-None value")
        return result

    def _call_sync(self, call: Callable[..., _T], arguments: dict[str, Any], invocation: Invocation) -> _T:
        self._thread_local.invocation_id = invocation.invocation_id
        try:
            return call(**arguments)
        finally:
            self._thread_local.invocation_id = None

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._pool, context.run, work)

    def _alarm(self, function: HostedFunction, identity: str) -> asyncio.TimerHandle | None:
        if self._timeout is None:
            return None
        return asyncio.get_running_loop().call_later(
            self._timeout.total_seconds(),
            log.error,
            "Timeout value of %s exceeded by function 'Functions.%s' (%s): Azure would have ended it here",
            self._timeout,
            function.name,
            identity,
        )


def _from_the_app(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without the host's own frames at its top, unless there are no others."""
    plumbing = (__file__, concurrent.futures.thread.__file__)
    inner = trace
    while inner and inner.tb_frame.f_code.co_filename in plumbing:
        inner = inner.tb_next
    return inner or trace


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f}ms"


class LogFormatter(logging.Formatter):
    """`time LEVEL message` for the host's own lines; what a function logs says which function and invocation."""

    def format(self, record: logging.LogRecord) -> str:
        invocation = _current.get()
        if invocation and not record.name.startswith("localcloud.host"):
            speaker = f"{invocation.function_name} {invocation.invocation_id[:8]}: "
        else:
            speaker = ""
        moment = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        line = f"{moment} {record.levelname:<7} {speaker}{record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
