"""Child processes that end with this one and write to a log file."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PROJECT_ROOT = Path(__file__).parent.parent
LOCALHOST = "127.0.0.1"


class LocalCloudError(Exception):
    """The local cloud cannot fulfil a request; the message gives the cause and the remedy."""


class Process:
    """A running command, on a leash: it ends when `stop` is called and when this process dies, however it dies.

    Both output streams go to `log`, which is overwritten. `stop_signal` is sent first; after `grace` seconds the rest
    of the command's process group is killed. `user` is a numeric user and group to run as (only for root). `hold` is an
    open file descriptor, such as a lock's, that stays open until the command has ended. `stdin` is one that the command
    reads from; without it, the command's standard input is empty.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path = PROJECT_ROOT,
        stop_signal: str = "SIGTERM",
        grace: float = 5.0,
        user: int | None = None,
        hold: int | None = None,
        stdin: int | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._longest_stop = grace + 5
        leash = [sys.executable, "-I", "-S", str(Path(__file__).with_name("leash.py"))]
        limits = [stop_signal, str(grace), *("-" if given is None else str(given) for given in (user, stdin))]
        log.parent.mkdir(parents=True, exist_ok=True)
        self._leash, held_by_watch = socket.socketpair()
        with log.open("wb") as output, held_by_watch:
            self._popen = subprocess.Popen(
                [*leash, *limits, *command],
                stdin=held_by_watch.fileno(),
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=None if env is None else dict(env),
                pass_fds=[given for given in (hold, stdin) if given is not None],
            )

    @property
    def pid(self) -> int:
        """The command's own process id."""
        return self._popen.pid

    def return_code(self) -> int | None:
        """The return code: None while it runs; negative for the signal that ended it."""
        return self._popen.poll()

    def wait(self, timeout: float | None = None) -> int:
        """The return code, once there is one; `subprocess.TimeoutExpired` after `timeout` seconds."""
        return self._popen.wait(timeout)

    def stop(self) -> int:
        """End it and all processes that it started, and return its return code."""
        with self._leash:
            if self._leash.fileno() != -1:
                self._leash.shutdown(socket.SHUT_WR)
                self._leash.settimeout(self._longest_stop)
                self._leash.recv(1)  # returns when the watching process, the last one, has ended
        return self._popen.wait(self._longest_stop)

    def says(self, text: str) -> bool:
        """Whether its log contains a text. An open port would prove less: it may belong to another process."""
        return text.encode() in self.log.read_bytes()

    def last_lines(self, count: int = 20) -> str:
        """The end of its log."""
        return last_lines(self.log, count)


def last_lines(log: Path, count: int) -> str:
    """The last `count` lines of a text file, of which at most 64 kB are read; "" if there is no such file."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-count:])


def wait_until(ready: Callable[[], bool], process: Process, seconds: float) -> None:
    """Return once `ready()`; stop the process and raise `LocalCloudError` if it ends or `seconds` pass before that."""
    deadline = time.monotonic() + seconds
    while process.return_code() is None and time.monotonic() < deadline:
        if ready():
            return
        time.sleep(0.02)
    why = "did not answer in time" if process.return_code() is None else f"ended with code {process.return_code()}"
    process.stop()
    raise LocalCloudError(f"{process.name} {why}. The end of {process.log}:\n{process.last_lines()}")


def is_free(port: int) -> bool:
    """Whether a port of this machine is free now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOCALHOST, port))
        except OSError:
            return False
        return True


def free_ports(count: int) -> list[int]:
    """`count` different ports that are free now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((LOCALHOST, 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
