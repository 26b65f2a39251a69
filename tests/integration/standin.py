"""The Databricks stand-in with a sample job, and a client of it."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from databricks.sdk import WorkspaceClient

from localcloud.databricks import JobsService, JobsSettings
from localcloud.loop import LoopThread
from localcloud.processes import LOCALHOST, free_ports
from tests.waiting import PATIENCE, eventually

SAMPLE = 7
SETTINGS = JobsSettings({SAMPLE: "tests.integration.sample_job"}, "secret", {"LAKE_FILE_SYSTEM": "lake"})


class StandIn:
    """A running stand-in and a client of it."""

    def __init__(self, folder: Path, settings: JobsSettings) -> None:
        self._loop = LoopThread()
        self._is_stopped = False
        (self.port,) = free_ports(1)
        self._service = JobsService(settings, folder / "databricks", folder / "logs")
        self._loop.serve(self._service.application(), self.port)
        self.client = self.connect(settings.token)
        self.jobs: Any = self.client.jobs

    @property
    def url(self) -> str:
        return f"http://{LOCALHOST}:{self.port}"

    def connect(self, token: str) -> WorkspaceClient:
        return WorkspaceClient(host=self.url, token=token)

    def change_token(self, token: str) -> None:
        """Take another token from now on, and refuse the one before."""
        self._service._settings = replace(self._service._settings, token=token)
        self.client = self.connect(token)
        self.jobs = self.client.jobs

    def start(self, **parameters: str) -> int:
        run_id: int = self.jobs.run_now(SAMPLE, job_parameters=parameters).run_id
        return run_id

    def wait(self, run_id: int) -> Any:
        """The run, once it is over, as the SDK's `Run`, all of whose fields it declares optional."""
        return self.wait_for(run_id, lambda run: run.state.life_cycle_state.value in ("TERMINATED", "INTERNAL_ERROR"))

    def wait_for(self, run_id: int, condition: Callable[[Any], bool]) -> Any:
        def look() -> Any:
            run = self.jobs.get_run(run_id)
            return run if condition(run) else None

        return eventually(look, lambda: f"a run that is {self.jobs.get_run(run_id).as_dict()}")

    def fault(self, kind: str, times: int = 1) -> None:
        body = json.dumps({"kind": kind, "times": times}).encode()
        with urllib.request.urlopen(f"{self.url}/faults", body, timeout=PATIENCE):
            return

    def stop(self) -> None:
        """End it; a second time nothing is left to do."""
        if not self._is_stopped:
            self._is_stopped = True
            self._loop.stop()


def no_other_databricks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide what this machine says of a Databricks workspace."""
    for name in [name for name in os.environ if name.startswith("DATABRICKS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(folder / "no-such-file"))
