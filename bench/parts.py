"""The local cloud in parts that can be killed one by one: gateway, Databricks stand-in, functions host and Postgres.

Azurite stays: what an emulator that is killed loses of writes that it has answered says nothing about the product.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from localcloud import azurite, postgres
from localcloud.cloud import JOBS, LocalCloud
from localcloud.databricks import JobsService, JobsSettings
from localcloud.gateway import Gateway
from localcloud.host import LISTENS
from localcloud.loop import LoopThread
from localcloud.processes import LOCALHOST, LocalCloudError, Process, free_ports, is_free, wait_until
from shared.services import Services

PARTS = ("host", "gateway", "databricks", "postgres")
READY_SECONDS = 60


class Parts:
    """A cloud whose parts run in processes of their own. A context manager; inside it every part runs.

    `settings` are added to those of the local cloud. `jobs` are modules by job id, as of LocalCloud.
    """

    def __init__(
        self, settings: Mapping[str, str], jobs: Mapping[int, str] = JOBS, runs_at_once: int = 2, hosts: int = 1
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="stacktopics-bench-"))
        self.folder.chmod(0o755)
        self.settings_file = self.folder / "local.settings.json"
        self.settings: dict[str, str] = {}
        self._given, self._jobs, self._runs_at_once = dict(settings), dict(jobs), runs_at_once
        self._hosts = [f"host{number}" if number else "host" for number in range(hosts)]
        self._cloud = LocalCloud(self.folder / "cloud", host=False, jobs=jobs)
        self._running: dict[str, Process] = {}
        self._starts = 0

    def __enter__(self) -> Self:
        self._cloud.__enter__()
        ports = dict(
            zip(("gateway", "databricks", "postgres", *self._hosts), free_ports(3 + len(self._hosts)), strict=True)
        )
        self.ports = ports
        lake = azurite.connection_string(Blob=self._cloud.ports["blob"], Dfs=ports["gateway"])
        self.settings = {
            **self._cloud.settings,
            "LAKE_STORAGE": lake,
            "LAKE_ROOT_FOR_JOBS": f"{azurite.endpoint(ports['gateway'])}/{self._cloud.settings['LAKE_FILE_SYSTEM']}",
            "DATABRICKS_HOST": f"http://{LOCALHOST}:{ports['databricks']}",
            "POSTGRES_PORT": str(ports["postgres"]),
            **self._given,
        }
        self.settings_file.write_text(json.dumps({"IsEncrypted": False, "Values": self.settings}, indent=1))
        try:
            for part in ("gateway", "databricks", "postgres", *self._hosts):
                self.start(part)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._running.values()):
            process.stop()
        self._running.clear()
        self._cloud.__exit__(kind, error, trace)
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def services(self) -> Services:
        """Clients of this cloud, for whoever looks on."""
        return Services(self.settings_file)

    def start(self, part: str) -> None:
        """Start a part and return once it is ready."""
        self._starts += 1
        log = self.folder / "logs" / f"{part}-{self._starts}.log"
        if part == "postgres":
            server = postgres.start(self.folder / "postgres", self.ports["postgres"], log, lambda _: None)
            self._running[part] = server.process
            return
        if part in self._hosts:
            options = ["--settings", str(self.settings_file), "--state", str(self.folder / part)]
            command = [sys.executable, "-m", "localcloud.host", *options, "--port", str(self.ports[part])]
        else:
            command = [sys.executable, "-m", "bench.parts", part, str(self.ports[part]), self._order(part)]
        process = Process(part, command, log, env={**os.environ, "PYTHONUNBUFFERED": "1"})
        self._running[part] = process
        if part in self._hosts:
            wait_until(lambda: process.says(LISTENS), process, READY_SECONDS)
        else:
            wait_until(lambda: not is_free(self.ports[part]), process, READY_SECONDS)

    def kill(self, part: str) -> None:
        """SIGKILL for a part, in the middle of whatever it does, and for what it started."""
        process = self._running.pop(part)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stop()

    def pause_storage(self, seconds: float) -> None:
        """Azurite answers nothing for so long; what it was asked meanwhile it answers afterwards."""
        (process,) = (part for part in self._cloud._processes if part.name == "azurite")
        os.kill(process.pid, signal.SIGSTOP)
        threading.Event().wait(seconds)
        os.kill(process.pid, signal.SIGCONT)

    def logs(self, part: str) -> str:
        """All that a part has logged in all its lives."""
        files = sorted((self.folder / "logs").glob(f"{part}-*.log"), key=lambda file: file.stat().st_mtime)
        return "\n".join(file.read_text(errors="replace") for file in files)

    def cpu_seconds(self, part: str) -> float:
        """User and system time of a part's process so far (proc(5), fields 14 and 15 of stat)."""
        stat = Path(f"/proc/{self._running[part].pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def pid(self, part: str) -> int:
        return self._running[part].pid

    def _order(self, part: str) -> str:
        if part == "gateway":
            return json.dumps({"origin": f"http://{LOCALHOST}:{self._cloud.ports['blob']}"})
        jobs = JobsSettings.of_cloud(self.settings, self._jobs, self._runs_at_once)
        return json.dumps(
            {"jobs": asdict(jobs), "folder": str(self.folder / "runs"), "logs": str(self.folder / "jobs")}
        )


def main(part: str, port: int, order: str) -> None:
    """Serve one part in this process until it is killed."""
    given, loop = json.loads(order), LoopThread()
    if part == "gateway":
        loop.serve(Gateway(given["origin"]).application(), port)
    else:
        jobs = given["jobs"] | {"jobs": {int(number): module for number, module in given["jobs"]["jobs"].items()}}
        jobs["preload"] = tuple(jobs["preload"])
        service = JobsService(JobsSettings(**jobs), Path(given["folder"]), Path(given["logs"]))
        loop.serve(service.application(), port)
    threading.Event().wait()


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    except LocalCloudError as error:
        sys.exit(str(error))
