"""The Databricks stand-in: the calls of the Jobs 2.2 REST service that databricks-sdk makes, over local processes.

A job is a Python module. A run of it is `python -m MODULE --name value …`, one option a job parameter (underscores of
the name become dashes, the value is unchanged), with a time limit. As on a running cluster, a run does not wait for
imports: `localcloud.workers` provides interpreters that have already done them.
Every run is a JSON file, so run ids and idempotency tokens survive a restart; an interrupted run counts as failed.
Protocol: https://docs.databricks.com/api/workspace/jobs
"""

import asyncio
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from localcloud.processes import PROJECT_ROOT, last_lines
from localcloud.workers import Order, Worker, Workers

logger = logging.getLogger("localcloud.databricks")

FAULTS = ("fail", "hang", "drop_answer", "too_many_requests", "unavailable")
LONGEST_TOKEN = 64
OUTPUT_LINES = 100
USER = "local@stacktopics"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class StandinRun:
    """The stored form of one run of a job. Times are milliseconds since 1970; 0 means not yet.

    `life_cycle` and `result` are those of the service's older `state` block.
    """

    run_id: int
    task_run_id: int
    job_id: int
    number_in_job: int
    parameters: dict[str, str]
    idempotency_token: str
    created: int
    started: int = 0
    ended: int = 0
    life_cycle: str = "QUEUED"
    result: str = ""
    code: str = ""
    message: str = ""
    output: str = ""

    @property
    def is_over(self) -> bool:
        """Whether its result is final."""
        return self.life_cycle in ("TERMINATED", "INTERNAL_ERROR")


@dataclass
class JobsSettings:
    """The settings of the stand-in.

    `jobs` maps job ids to modules, `preload` names the modules that an interpreter imports before a run comes,
    `environment` is added to this process's own, `time_limit` is seconds a run.
    """

    jobs: Mapping[int, str]
    token: str
    environment: Mapping[str, str] = field(default_factory=dict)
    runs_at_once: int = 1
    time_limit: float = 1800
    preload: tuple[str, ...] = ()

    @classmethod
    def of_cloud(
        cls, settings: Mapping[str, str], jobs: Mapping[int, str], runs_at_once: int, time_limit: float = 1800
    ) -> Self:
        """Those of a cloud with these app settings; the job finds its lake in its environment."""
        return cls(
            jobs=jobs,
            token=settings["DATABRICKS_TOKEN"],
            preload=("classify.job", "azure.storage.filedatalake"),
            environment={name: settings[name] for name in ("LAKE_STORAGE", "LAKE_FILE_SYSTEM")},
            runs_at_once=runs_at_once,
            time_limit=time_limit,
        )


class ApiError(Exception):
    """An error answer in Databricks' form."""

    def __init__(self, status: int, error_code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.error_code = error_code


class JobsService:
    """The web application. `folder` keeps the runs, `logs` gets one file `job-<run id>.log` a run."""

    def __init__(self, settings: JobsSettings, folder: Path, logs: Path, hold: int | None = None) -> None:
        self._settings = settings
        self._folder = folder
        self._logs = logs
        packages = {name.partition(".")[0] for name in (*settings.preload, *settings.jobs.values())} | {"shared"}
        folders = [PROJECT_ROOT / name for name in sorted(packages)]
        self._workers = Workers(settings.preload, folders, settings.environment, logs, hold)
        self._faults: Counter[str] = Counter()
        self._runs: dict[int, StandinRun] = {}
        self._cancels: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self._executions: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(settings.runs_at_once)

    def application(self) -> web.Application:
        """A new aiohttp application; runs of an earlier one are read when it starts and ended when it stops."""
        app = web.Application(middlewares=[self._guard])
        app.cleanup_ctx.append(self._lifetime)
        app.router.add_post("/api/2.2/jobs/run-now", self._run_now)
        app.router.add_get("/api/2.2/jobs/runs/get", self._get_run)
        app.router.add_get("/api/2.2/jobs/runs/get-output", self._get_output)
        app.router.add_post("/api/2.2/jobs/runs/cancel", self._cancel)
        app.router.add_get("/api/2.2/jobs/list", self._list_jobs)
        app.router.add_get("/api/2.2/jobs/get", self._get_job)
        app.router.add_post("/faults", self._set_fault)
        app.router.add_delete("/faults", self._clear_faults)
        return app

    async def _lifetime(self, _: web.Application) -> AsyncIterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        for file in self._folder.glob("run-*.json"):
            run = StandinRun(**json.loads(file.read_text()))
            self._runs[run.run_id] = run
            if not run.is_over:
                self._end(run, "FAILED", "INTERNAL_ERROR", "The stand-in was stopped during the run.", "INTERNAL_ERROR")
        self._workers.prepare()
        yield
        self._workers.close()
        for task in self._executions:
            task.cancel()
        await asyncio.gather(*self._executions, return_exceptions=True)
        await self._workers.stop()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Check the token, inject requested faults, and format errors."""
        try:
            if request.path.startswith("/api/"):
                self._check_token(request)
                if self._strikes("too_many_requests"):
                    return _error(429, "REQUEST_LIMIT_EXCEEDED", "Too many requests.", {"Retry-After": "1"})
                if self._strikes("unavailable"):
                    return _error(503, "TEMPORARILY_UNAVAILABLE", "The service is temporarily unavailable.")
            return await handler(request)
        except ApiError as error:
            return _error(error.status, error.error_code, str(error))
        except web.HTTPException as error:
            return _error(error.status, "ENDPOINT_NOT_FOUND", f"No API found for '{request.method} {request.path}'")

    def _check_token(self, request: web.Request) -> None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            message = "Credential was not sent or was of an unsupported type for this API."
            raise ApiError(401, "UNAUTHENTICATED", message)
        if token != self._settings.token:
            raise ApiError(403, "PERMISSION_DENIED", "Invalid access token.")

    def _strikes(self, fault: str) -> bool:
        """Whether a requested fault is still due; counts it as used."""
        due = self._faults[fault] > 0
        self._faults[fault] -= due
        if due:
            logger.info("fault as asked for: %s", fault)
        return due

    async def _run_now(self, request: web.Request) -> web.StreamResponse:
        body = await _json(request)
        job_id = self._job_id(body.get("job_id"))
        token = str(body.get("idempotency_token") or "")
        if len(token) > LONGEST_TOKEN:
            message = f"The idempotency token can have at most {LONGEST_TOKEN} characters."
            raise ApiError(400, "INVALID_PARAMETER_VALUE", message)
        run = self._of_token(token) or self._new_run(job_id, token, _texts(body.get("job_parameters") or {}))
        if self._strikes("drop_answer"):
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"run_id": run.run_id, "number_in_job": run.number_in_job})

    def _of_token(self, token: str) -> StandinRun | None:
        return next((run for run in self._runs.values() if token and run.idempotency_token == token), None)

    def _new_run(self, job_id: int, token: str, parameters: dict[str, str]) -> StandinRun:
        """Record a run and start it. There is no await in between, so two requests with one token start one run."""
        run_id = 1 + max((run.task_run_id for run in self._runs.values()), default=1000)
        number = 1 + sum(run.job_id == job_id for run in self._runs.values())
        run = StandinRun(run_id, run_id + 1, job_id, number, parameters, token, _now())
        self._runs[run_id] = run
        self._save(run)
        task = asyncio.create_task(self._execute(run))
        self._executions.add(task)
        task.add_done_callback(self._executions.discard)
        return run

    async def _execute(self, run: StandinRun) -> None:
        async with self._slots:
            if self._cancels[run.run_id].is_set():
                self._end(run, "CANCELED", "USER_CANCELED", "Run cancelled.")
                return
            run.life_cycle, run.started = "RUNNING", _now()
            self._save(run)
            worker = await self._workers.take()
            logger.info("run %d of %s: started", run.run_id, self._settings.jobs[run.job_id])
            try:
                code = await self._watch(run, worker)
            finally:
                await asyncio.shield(self._workers.give_back(worker))
        log = self._log(run)
        run.output = last_lines(log, OUTPUT_LINES) if log.exists() else worker.last_lines(OUTPUT_LINES)
        if code == 0:
            self._end(run, "SUCCESS", "SUCCESS", "")
        elif code is not None:
            self._end(run, "FAILED", "RUN_EXECUTION_ERROR", f"The job ended with code {code}.")
        elif self._cancels[run.run_id].is_set():
            self._end(run, "CANCELED", "USER_CANCELED", "Run cancelled.")
        else:
            self._end(run, "TIMEDOUT", "CANCELED", f"The run took longer than {self._settings.time_limit:g} s.")

    async def _watch(self, run: StandinRun, worker: Worker) -> int | None:
        """Wait for the end of a run and return its exit code; None if it was cancelled or reached the time limit."""
        working = asyncio.create_task(worker.run(self._order(run)))
        cancelling = asyncio.create_task(self._cancels[run.run_id].wait())
        try:
            await asyncio.wait({working, cancelling}, timeout=self._settings.time_limit, return_when="FIRST_COMPLETED")
            return working.result() if working.done() else None
        finally:
            working.cancel()
            cancelling.cancel()

    def _order(self, run: StandinRun) -> Order:
        for fault in ("fail", "hang"):
            if self._strikes(fault):
                return Order(self._log(run), "localcloud.faulty", (fault,))
        options = (word for name, value in run.parameters.items() for word in (f"--{name.replace('_', '-')}", value))
        return Order(self._log(run), self._settings.jobs[run.job_id], tuple(options))

    def _end(self, run: StandinRun, result: str, code: str, message: str, life_cycle: str = "TERMINATED") -> None:
        run.life_cycle, run.result, run.code, run.message, run.ended = life_cycle, result, code, message, _now()
        self._save(run)
        seconds = (run.ended - (run.started or run.ended)) / 1000
        logger.info("run %d of job %d: %s after %.1f s %s", run.run_id, run.job_id, result, seconds, message)

    def _save(self, run: StandinRun) -> None:
        """Replace the run's file atomically, so that a kill leaves the old or the new one."""
        file = self._folder / f"run-{run.run_id}.json"
        new = file.with_suffix(".new")
        new.write_text(json.dumps(asdict(run), indent=1))
        new.replace(file)

    def _log(self, run: StandinRun) -> Path:
        return self._logs / f"job-{run.run_id}.log"

    async def _get_run(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._described(self._run(request.query.get("run_id"))))

    async def _get_output(self, request: web.Request) -> web.StreamResponse:
        asked = request.query.get("run_id", "")
        run = next((run for run in self._runs.values() if str(run.task_run_id) == asked), None)
        if run is None:
            self._run(asked)
            message = (
                "Retrieving the output of runs with multiple tasks is not supported. "
                "Please retrieve the output of each individual task run instead."
            )
            raise ApiError(400, "INVALID_PARAMETER_VALUE", message)
        output = run.output if run.is_over else last_lines(self._log(run), OUTPUT_LINES)
        answer = {"metadata": self._described_task(run), "logs": output, "logs_truncated": False}
        if run.result not in ("", "SUCCESS"):
            answer |= {"error": (output.splitlines() or [run.message])[-1], "error_trace": output}
        return web.json_response(answer)

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        run = self._run((await _json(request)).get("run_id"))
        if not run.is_over:
            self._cancels[run.run_id].set()
            run.life_cycle = "TERMINATING"
        return web.json_response({})

    async def _list_jobs(self, request: web.Request) -> web.StreamResponse:
        name = request.query.get("name", "").lower()
        jobs = [self._described_job(job_id) for job_id, module in self._settings.jobs.items() if name in ("", module)]
        return web.json_response({"jobs": jobs, "has_more": False})

    async def _get_job(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._described_job(self._job_id(request.query.get("job_id"))))

    async def _set_fault(self, request: web.Request) -> web.StreamResponse:
        body = await _json(request)
        kind, times = body.get("kind"), body.get("times", 1)
        if kind not in FAULTS or not isinstance(times, int):
            message = f"kind is one of {', '.join(FAULTS)}; times is a whole number"
            raise ApiError(400, "INVALID_PARAMETER_VALUE", message)
        self._faults[kind] = times
        return web.json_response({})

    async def _clear_faults(self, _: web.Request) -> web.StreamResponse:
        self._faults.clear()
        return web.json_response({})

    def _job_id(self, given: object) -> int:
        job_id = int(str(given)) if str(given).isdigit() else None
        if job_id is None or job_id not in self._settings.jobs:
            raise ApiError(400, "INVALID_PARAMETER_VALUE", f"Job {given} does not exist.")
        return job_id

    def _run(self, given: object) -> StandinRun:
        found = self._runs.get(int(str(given))) if str(given).isdigit() else None
        if found is None:
            raise ApiError(400, "INVALID_PARAMETER_VALUE", f"Run {given} does not exist.")
        return found

    def _described(self, run: StandinRun) -> dict[str, Any]:
        return {
            **_described_state(run),
            "job_id": run.job_id,
            "run_id": run.run_id,
            "number_in_job": run.number_in_job,
            "original_attempt_run_id": run.run_id,
            "run_name": self._settings.jobs.get(run.job_id, ""),
            "run_type": "JOB_RUN",
            "format": "MULTI_TASK",
            "trigger": "ONE_TIME",
            "creator_user_name": USER,
            "job_parameters": [{"name": name, "value": value} for name, value in run.parameters.items()],
            "tasks": [self._described_task(run)],
        }

    def _described_task(self, run: StandinRun) -> dict[str, Any]:
        module = self._settings.jobs.get(run.job_id, "")
        return {
            **_described_state(run),
            "run_id": run.task_run_id,
            "task_key": module.rpartition(".")[2],
            "attempt_number": 0,
        }

    def _described_job(self, job_id: int) -> dict[str, Any]:
        module = self._settings.jobs[job_id]
        settings = {
            "name": module,
            "format": "MULTI_TASK",
            "max_concurrent_runs": self._settings.runs_at_once,
            "timeout_seconds": int(self._settings.time_limit),
            "tasks": [{"task_key": module.rpartition(".")[2]}],
        }
        return {"job_id": job_id, "creator_user_name": USER, "settings": settings}


def _described_state(run: StandinRun) -> dict[str, Any]:
    """The common part of a run and its task: times, the older `state` block and the newer `status` block."""
    state: dict[str, Any] = {"life_cycle_state": run.life_cycle, "state_message": run.message}
    status: dict[str, Any] = {"state": "TERMINATED" if run.is_over else run.life_cycle}
    if run.is_over:
        state["result_state"] = run.result
        state["user_cancelled_or_timedout"] = run.result in ("CANCELED", "TIMEDOUT")
        kind = {"SUCCESS": "SUCCESS", "INTERNAL_ERROR": "INTERNAL_ERROR"}.get(run.code, "CLIENT_ERROR")
        status["termination_details"] = {"code": run.code, "type": kind, "message": run.message}
    return {
        "state": state,
        "status": status,
        "start_time": run.created,
        "end_time": run.ended,
        "setup_duration": 0,
        "cleanup_duration": 0,
        "execution_duration": run.ended - run.started if run.ended and run.started else 0,
        "run_duration": run.ended - run.created if run.ended else 0,
    }


async def _json(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read())
    except ValueError as error:
        raise ApiError(400, "MALFORMED_REQUEST", f"The body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError(400, "MALFORMED_REQUEST", "The body must be a JSON object.")
    return body


def _texts(parameters: Mapping[str, object]) -> dict[str, str]:
    if not all(isinstance(value, str) for value in parameters.values()):
        raise ApiError(400, "INVALID_PARAMETER_VALUE", "The values of job_parameters must be strings.")
    return {name: str(value) for name, value in parameters.items()}


def _error(status: int, error_code: str, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.json_response({"error_code": error_code, "message": message}, status=status, headers=headers)


def _now() -> int:
    return time.time_ns() // 1_000_000
