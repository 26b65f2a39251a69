"""Interpreters that take the stand-in's runs, one after another each (`localcloud.worker` is what runs in them)."""

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
"""After so many runs an interpreter makes room for a new one, so that what runs leave behind cannot add up for ever."""


@dataclass(frozen=True)
class Order:
    """What to run: `python -m module arguments…`, with its output in `log`."""

    log: Path
    module: str
    arguments: tuple[str, ...]

    def encode(self) -> bytes:
        document = {"log": str(self.log), "module": self.module, "arguments": self.arguments}
        return f"{json.dumps(document)}\n".encode()


class Worker:
    """One interpreter. `log` gets what it says outside of runs; `sources` is what `source_files` said at its start."""

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
        """Whether it lives, is not in the middle of a run, and has not had RUNS_EACH."""
        return not self._busy and self._runs < RUNS_EACH and self._process.return_code() is None

    async def run(self, order: Order) -> int:
        """Carry an order out and return the exit code; that of the interpreter where the run ended it.

        Cancelled, it leaves the interpreter in the middle of the run: then only `stop` is left to do.
        """
        self._runs += 1
        self._busy = True
        if answer := await self._answer_to(order):
            self._busy = False
            return int(answer)
        while self._process.return_code() is None:  # it waits for threads that the run has left
            await asyncio.sleep(0.02)
        return await self.stop()

    async def _answer_to(self, order: Order) -> bytes:
        """A whole line, or nothing when the interpreter ends without one."""
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
        """End it and what it started; returns its exit code."""
        self._orders.close()
        return await asyncio.to_thread(self._process.stop)

    def last_lines(self, count: int) -> str:
        """The end of its log."""
        return self._process.last_lines(count)


class Workers:
    """Workers with the same imports: one that waits for a run, and as many as run at a time.

    Each has a log `worker-<number>.log` in `logs`. Whoever edits the Python files of `packages` finds them in the next
    run: a worker that has read older ones gets none.
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
        """Have at least one that waits, so that the next run finds its imports done."""
        if self._is_open and not self._idle:
            self._idle.append(self._new())

    async def take(self) -> Worker:
        """One that waits, the one that waited least; a new one where there is none."""
        while self._idle:
            worker = self._idle.pop()
            if worker.can_go_on and worker.sources == source_files(self._packages):
                return worker
            await worker.stop()
        return self._new()

    async def give_back(self, worker: Worker) -> None:
        """After a run: it waits for the next one, or ends if it cannot take one, and another takes its place."""
        if worker.can_go_on:
            self._idle.append(worker)
        else:
            self.prepare()
            await worker.stop()

    def close(self) -> None:
        """Make no more of them: what is given back from now on waits for `stop`."""
        self._is_open = False

    async def stop(self) -> None:
        """End those that wait."""
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
