"""The whole host where no storage is needed: HTTP, firing by hand, and stopping."""

import asyncio
import time
from pathlib import Path

import aiohttp
import pytest
from azure.core.exceptions import ServiceRequestError

from localcloud.host import service
from localcloud.host.config import HostConfig
from localcloud.host.errors import HostError
from localcloud.host.service import FunctionsHost
from localcloud.host.store import HostStore
from tests.unit.host_functions import imported

APP = """
import time
import azure.functions as func
app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)

@app.timer_trigger(arg_name="timer", schedule="0 0 0 1 1 *")
def slow(timer: func.TimerRequest) -> None:
    time.sleep(1.5)

@app.route(route="hello", methods=["GET"])
def hello(req: func.HttpRequest) -> func.HttpResponse:
    return func.HttpResponse("hello")
"""
ENVIRON = {"AzureWebJobs.slow.Disabled": "true"}


async def fire_and_stop(host: FunctionsHost) -> tuple[bool, float]:
    """Fires the slow function without waiting for it; returns what `stop` said and how long it took (seconds)."""
    port = await host.start(0)
    url = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{url}/api/hello") as answer:
            assert await answer.text() == "hello"
        async with session.post(f"{url}/admin/functions/slow", json={}) as answer:
            assert answer.status == 202
    await asyncio.sleep(0.1)
    started = time.monotonic()
    clean = await host.stop()
    return clean, time.monotonic() - started


@pytest.mark.parametrize(("patience", "clean"), [(10.0, True), (0.2, False)])
def test_stopping_waits_for_running_functions_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float, clean: bool
) -> None:
    monkeypatch.setattr(service, "STOP_SECONDS", patience)
    with imported(APP, tmp_path, "service_app", ENVIRON) as functions:

        async def run() -> tuple[bool, float]:
            return await fire_and_stop(FunctionsHost(functions, HostConfig(), None, ENVIRON))

        ended, seconds = asyncio.run(run())
    assert ended is clean
    assert (1 < seconds < 5) if clean else (seconds < 1)


@pytest.mark.parametrize("count", ["0", "33", "many"])
def test_thread_counts_outside_azures_bounds_are_refused(count: str) -> None:
    with pytest.raises(HostError, match="PYTHON_THREADPOOL_THREAD_COUNT"):
        FunctionsHost([], HostConfig(), None, {"PYTHON_THREADPOOL_THREAD_COUNT": count})


def test_storage_that_does_not_answer_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
