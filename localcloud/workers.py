"""Interpreters for the stand-in's runs; each executes `localcloud.worker`, one run after another."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from localcloud.processes import Process

logger = logging.getLogger("localcloud.databricks")

Sources = frozenset[tuple[Path, int]]
RUNS_EACH = 50
"""Runs after which an interpreter is replaced, so that leaked memory does not accumulate."""


@dataclass(frozen=True)
class Order:
    """A run: `python -m module arguments…`, with its output in `log`."""

    log: Path
    module: str
    arguments: tuple[str, ...]

    def encode(self) -> bytes:
        document = {"log": str(self.log), "module": self.module, "arguments": self.arguments}
        return f"{json.dumps(document)}\n".encode()


class Worker:
    """One interpreter. `log` gets its output outside of runs; `sources` are its `source_files` at the start."""

    def __init__(
        self, modules: Sequence[str], environment: Mapping[str, str], log: Path, hold: int | None, sources: Sources
    ) -> None:
        self.sources = sources
        self._orders, given = socket.socketpair()
        with given:
            self._process = Process(
                log.stem,
                [sys.executable, "-m", "localcloud.worker", *modules],
                log,
                env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
                hold=hold,
                stdin=given.fileno(),
            )
        self._orders.setblocking(False)
        self._runs = 0
        self._busy = False

    @property
    def can_go_on(self) -> bool:
        """Whether it is alive, is not busy with a run, and has had fewer than RUNS_EACH runs."""
        return not self._busy and self._runs < RUNS_EACH and self._process.return_code() is None

    async def run(self, order: Order) -> int:
        """Execute an order and return its exit code, or that of the interpreter if the run ended it.

        If this is cancelled, the interpreter is still busy with the run: the caller must `stop` it.
        """
        self._runs += 1
        self._busy = True
        if answer := await self._answer_to(order):
            self._busy = False
            return int(answer)
        while self._process.return_code() is None:  # it waits for threads that the run left behind
            await asyncio.sleep(0.02)
        return await self.stop()

    async def _answer_to(self, order: Order) -> bytes:
        """The answer as a whole line; empty if the interpreter ends without one."""
        loop = asyncio.get_running_loop()
        answer = b""
        try:
            await loop.sock_sendall(self._orders, order.encode())
            while not answer.endswith(b"\n"):
                reading = loop.sock_recv(self._orders, 64)
                try:
                    piece = await asyncio.wait_for(reading, 1)
                except TimeoutError:
                    if self._process.return_code() is not None:  # a process that it forked holds the other end
                        return b""
                    continue
                if not piece:
                    return b""
                answer += piece
        except ConnectionError:
            return b""
        return answer

    async def stop(self) -> int:
        """End it and all processes that it started; returns its exit code."""
        self._orders.close()
        return await asyncio.to_thread(self._process.stop)

    def last_lines(self, count: int) -> str:
        """The end of its log."""
        return self._process.last_lines(count)


class Workers:
    """Workers with the same imports: one idle, and as many busy ones as there are runs.

    Each has a log `worker-<number>.log` in `logs`. A run always uses the current Python files of `packages`: a worker
    with older ones is stopped.
    """

    def __init__(
        self,
        modules: Sequence[str],
        packages: Sequence[Path],
        environment: Mapping[str, str],
        logs: Path,
        hold: int | None = None,
    ) -> None:
        self._modules = modules
        self._packages = packages
        self._environment = environment
        self._logs = logs
        self._hold = hold
        self._idle: list[Worker] = []
        self._made = 0
        self._is_open = True

    def prepare(self) -> None:
        """Ensure that at least one worker is idle, so that the next run finds its imports done."""
        if self._is_open and not self._idle:
            self._idle.append(self._new())

    async def take(self) -> Worker:
        """The worker that was idle for the shortest time; a new one if none is idle."""
        while self._idle:
            worker = self._idle.pop()
            if worker.can_go_on and worker.sources == source_files(self._packages):
                return worker
            await worker.stop()
        return self._new()

    async def give_back(self, worker: Worker) -> None:
        """After a run: the worker becomes idle or, if it cannot take another run, is replaced and stopped."""
        if worker.can_go_on:
            self._idle.append(worker)
        else:
            self.prepare()
            await worker.stop()

    def close(self) -> None:
        """Start no more workers. A worker given back later stays idle until `stop`."""
        self._is_open = False

    async def stop(self) -> None:
        """End all idle workers."""
        await asyncio.gather(*(worker.stop() for worker in self._idle))
        self._idle.clear()

    def _new(self) -> Worker:
        self._made += 1
        log, sources = self._logs / f"worker-{self._made}.log", source_files(self._packages)
        return Worker(self._modules, self._environment, log, self._hold, sources)


def source_files(packages: Sequence[Path]) -> Sources:
    """The Python files of some folders, each with its modification time."""
    found = set()
    for file in (file for package in packages for file in package.rglob("*.py")):
        with suppress(FileNotFoundError):  # an editor's file, deleted since it was listed
            found.add((file, file.stat().st_mtime_ns))
    return frozenset(found)
