"""An event loop in its own thread, which runs the web applications of this process."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from aiohttp import web

from localcloud.processes import LOCALHOST

T = TypeVar("T")


class LoopThread:
    """Runs coroutines and web applications until `stop`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._runners: list[web.AppRunner] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="localcloud", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop and return its result in the calling thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def serve(self, application: web.Application, port: int) -> None:
        """Serve an application on a port of this machine until `stop`."""
        self.run(self._serve(application, port))

    async def _serve(self, application: web.Application, port: int) -> None:
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, LOCALHOST, port).start()

    def stop(self) -> None:
        """Close the applications, last one first, and end the thread."""
        for runner in reversed(self._runners):
            self.run(runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
