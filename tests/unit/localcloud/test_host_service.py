"""The whole host without storage: HTTP, starting a function by hand, and stopping."""

import asyncio
import sys
from pathlib import Path
from types import ModuleType

import aiohttp
import pytest
from azure.core.exceptions import ServiceRequestError

from localcloud.host import service
from localcloud.host.config import HostConfig
from localcloud.host.errors import HostError
from localcloud.host.service import FunctionsHost
from localcloud.host.store import HostStore
from tests.host_functions import imported
from tests.waiting import PATIENCE

APP = """
import threading
import azure.functions as func
app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)
begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

@app.timer_trigger(arg_name="timer", schedule="0 0 0 1 1 *")
def slow(timer: func.TimerRequest) -> None:
    begun.set()
    may_end.wait()
    ended.set()

@app.route(route="hello", methods=["GET"])
def hello(req: func.HttpRequest) -> func.HttpResponse:
    return func.HttpResponse("hello")
"""
ENVIRON = {"AzureWebJobs.slow.Disabled": "true"}


async def fire_and_stop(host: FunctionsHost, app: ModuleType, *, ends: bool) -> tuple[bool, bool]:
    """Start the slow function and stop the host; the function ends while `stop` waits, or only afterwards.

    Returns the result of `stop`, and whether the function had ended by then.
    """
    port = await host.start(0)
    url = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{url}/api/hello") as answer:
            assert await answer.text() == "hello"
        async with session.post(f"{url}/admin/functions/slow", json={}) as answer:
            assert answer.status == 202
    while not app.begun.is_set():
        await asyncio.sleep(0.01)
    stopping = asyncio.create_task(host.stop())
    await asyncio.sleep(0.1)
    if ends:
        assert not stopping.done()
        app.may_end.set()
    said = await stopping
    had_ended = app.ended.is_set()
    app.may_end.set()
    return said, had_ended


@pytest.mark.parametrize(("patience", "ends"), [(PATIENCE, True), (0.5, False)])
def test_stopping_waits_a_limited_time_for_running_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float, ends: bool
) -> None:
    monkeypatch.setattr(service, "STOP_SECONDS", patience)
    with imported(APP, tmp_path, "service_app", ENVIRON) as functions:

        async def run() -> tuple[bool, bool]:
            host = FunctionsHost(functions, HostConfig(), None, ENVIRON)
            return await fire_and_stop(host, sys.modules["service_app"], ends=ends)

        assert asyncio.run(run()) == (ends, ends)


@pytest.mark.parametrize("count", ["0", "33", "many"])
def test_thread_counts_outside_azures_bounds_are_refused(count: str) -> None:
    with pytest.raises(HostError, match="PYTHON_THREADPOOL_THREAD_COUNT"):
        FunctionsHost([], HostConfig(), None, {"PYTHON_THREADPOOL_THREAD_COUNT": count})


def test_unavailable_storage_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(_store: HostStore) -> None:
        raise ServiceRequestError("connection refused")

    async def run() -> None:
        host = FunctionsHost(functions, HostConfig(), None, {})
        try:
            await host.start(0)
        finally:
            await host.stop()

    monkeypatch.setattr(HostStore, "create", refuse)
    with (
        imported(APP, tmp_path, "storage_app", {}) as functions,
        pytest.raises(HostError, match="AzureWebJobsStorage does not answer: connection refused"),
    ):
        asyncio.run(run())
