"""The cloud on one machine: every part started, joined by one settings file, and stopped together."""

import fcntl
import json
import logging
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from localcloud import azurite, postgres
from localcloud.processes import (
    LOCALHOST,
    LocalCloudError,
    Process,
    free_ports,
    is_free,
    is_listening,
    wait_until,
)

PORT_NAMES = ("blob", "queue", "lake", "postgres", "databricks", "functions")
JOBS: Mapping[int, str] = {1: "classify.job", 2: "classify.train"}
DATABRICKS_TOKEN = "local-databricks-token"
POSTS_CONTAINER = "posts"
QUEUES = ("posts-landed", "classification-runs")
FILE_SYSTEM = "stacktopics"
SECONDS_TO_WAIT_FOR_ANOTHER = 15
SETTINGS_MARK = "python -m localcloud"


class PartEnded(LocalCloudError):
    """A part of the running cloud ended by itself."""

    def __init__(self, part: Process) -> None:
        super().__init__(f"{part.name} ended with code {part.return_code()}. Its log ends:\n{part.last_lines()}")


class LocalCloud:
    """A context manager: inside it everything runs, after it nothing does, also when this process is killed.

    `state_dir` keeps the data, the chosen ports and the logs (`logs/<part>.log`) between runs; one cloud at a time can
    use it. `ports` are by the names of `PORT_NAMES`; those not given are those of the last run, or free ones. Without
    `host` everything but the functions host is started. `settings` replace or add to what is written to
    `settings_file` (default: `local.settings.json` in `state_dir`). `jobs` are Databricks job ids to Python modules,
    `time_limit` is seconds a run. `tell` gets a sentence where something unexpected was decided.

    Entering raises `LocalCloudError`, with everything stopped again, if a part does not start.
    """

    def __init__(
        self,
        state_dir: Path,
        ports: Mapping[str, int] | None = None,
        host: bool = True,
        settings: Mapping[str, str] | None = None,
        *,
        settings_file: Path | None = None,
        jobs: Mapping[int, str] = JOBS,
        runs_at_once: int = 2,
        time_limit: float = 1800,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.state_dir = state_dir.resolve()
        self.logs = self.state_dir / "logs"
        self.settings_file = (settings_file or self.state_dir / "local.settings.json").resolve()
        self.ports: dict[str, int] = {}
        self.settings: dict[str, str] = {}
        self._given_ports = dict(ports or {})
        self._given_settings = dict(settings or {})
        self._with_host = host
        self._jobs = dict(jobs)
        self._runs_at_once = runs_at_once
        self._time_limit = time_limit
        self._tell = tell
        self._processes: list[Process] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._processes.clear()

    @property
    def functions_url(self) -> str:
        """Where the functions host listens, or would."""
        return f"http://{LOCALHOST}:{self.ports['functions']}"

    @property
    def databricks_url(self) -> str:
        """The workspace URL of the Databricks stand-in."""
        return f"http://{LOCALHOST}:{self.ports['databricks']}"

    def addresses(self) -> dict[str, str]:
        """Part to address, for people."""
        port = {name: f"{LOCALHOST}:{number}" for name, number in self.ports.items()}
        shown = {
            "blobs": azurite.endpoint(self.ports["blob"]),
            "queues": azurite.endpoint(self.ports["queue"]),
            "lake": azurite.endpoint(self.ports["lake"]),
            "postgres": f"postgresql://{postgres.USER}:{postgres.PASSWORD}@{port['postgres']}/{postgres.DATABASE}",
            "databricks": self.databricks_url,
        }
        return shown | ({"functions": self.functions_url} if self._with_host else {})

    def check(self) -> None:
        """Raise `PartEnded` if a part is no longer running."""
        for process in self._processes:
            if process.return_code() is not None:
                raise PartEnded(process)

    def inject_fault(self, kind: str, times: int = 1) -> None:
        """Have the Databricks stand-in do something bad `times` times; kinds: `localcloud.databricks.FAULTS`."""
        body = json.dumps({"kind": kind, "times": times}).encode()
        with urllib.request.urlopen(f"{self.databricks_url}/faults", body, timeout=10):
            return

    def _start(self, stack: ExitStack) -> None:
        self.state_dir.mkdir(parents=True, exist_ok=True)
        lock = _lock(self.state_dir, SECONDS_TO_WAIT_FOR_ANOTHER)
        stack.callback(os.close, lock)
        shutil.rmtree(self.logs, ignore_errors=True)
        self.logs.mkdir()
        self.ports = choose_ports(self.state_dir / "ports.json", self._given_ports, self._tell)
        self.settings = {**self._own_settings(), **self._given_settings}
        write_settings(self.settings_file, self.settings, self.ports["functions"], self._tell)
        with ThreadPoolExecutor(3) as pool:
            parts = (self._start_storage, self._start_postgres, self._start_services)
            starts = [pool.submit(start, stack, lock) for start in parts]
        for start in starts:
            start.result()
        self._create_places()
        if self._with_host:
            self._start_host(stack, lock)

    def _start_storage(self, stack: ExitStack, lock: int) -> None:
        folder = self.state_dir / "azurite"
        process = azurite.start(folder, self.ports["blob"], self.ports["queue"], self.logs / "azurite.log", lock)
        self._keep(stack, process)

    def _start_postgres(self, stack: ExitStack, lock: int) -> None:
        server = postgres.start(self.state_dir, self.ports["postgres"], self.logs / "postgres.log", self._tell, lock)
        self._keep(stack, server.process)

    def _start_services(self, stack: ExitStack, lock: int) -> None:
        """The gateway and the Databricks stand-in: threads of this process. Their imports cost 0.4 s, here at most."""
        from localcloud.databricks import JobsService, JobsSettings
        from localcloud.gateway import Gateway
        from localcloud.loop import LoopThread

        for name in ("lake", "databricks"):
            stack.enter_context(_log_to_file(f"localcloud.{name}", self.logs / f"{name}.log"))
        loop = LoopThread()
        stack.callback(loop.stop)
        loop.serve(Gateway(f"http://{LOCALHOST}:{self.ports['blob']}").application(), self.ports["lake"])
        jobs = JobsSettings(
            jobs=self._jobs,
            token=self.settings["DATABRICKS_TOKEN"],
            preload=("classify.job", "azure.storage.filedatalake"),
            environment={name: self.settings[name] for name in ("LAKE_STORAGE", "LAKE_FILE_SYSTEM")},
            runs_at_once=self._runs_at_once,
            time_limit=self._time_limit,
        )
        service = JobsService(jobs, self.state_dir / "databricks", self.logs, lock)
        loop.serve(service.application(), self.ports["databricks"])
        self._loop = loop

    def _create_places(self) -> None:
        """The container, the queues and the file system that the product expects to find."""
        from localcloud.blobs import create_places

        containers = [self.settings["POSTS_CONTAINER"], self.settings["LAKE_FILE_SYSTEM"]]
        queues = [self.settings["POSTS_LANDED_QUEUE"], self.settings["CLASSIFICATION_RUNS_QUEUE"]]
        blob_origin, queue_origin = (f"http://{LOCALHOST}:{self.ports[name]}" for name in ("blob", "queue"))
        self._loop.run(create_places(blob_origin, queue_origin, containers, queues))

    def _start_host(self, stack: ExitStack, lock: int) -> None:
        """The functions host, with no setting in its environment that would hide one of the file."""
        port = self.ports["functions"]
        files = ["--settings", str(self.settings_file), "--state", str(self.state_dir)]
        command = [sys.executable, "-m", "localcloud.host", *files, "--port", str(port)]
        environment = {name: value for name, value in os.environ.items() if name not in self.settings}
        environment["PYTHONUNBUFFERED"] = "1"
        process = Process("functions", command, self.logs / "functions.log", env=environment, hold=lock)
        self._keep(stack, process)
        wait_until(lambda: is_listening(port) and _answers(f"{self.functions_url}/admin/host/ping"), process, 60)

    def _keep(self, stack: ExitStack, process: Process) -> None:
        stack.callback(process.stop)
        self._processes.append(process)

    def _own_settings(self) -> dict[str, str]:
        ports = self.ports
        storage = azurite.connection_string(Blob=ports["blob"], Queue=ports["queue"])
        return {
            "FUNCTIONS_WORKER_RUNTIME": "python",
            "AzureWebJobsStorage": storage,
            "POSTS_STORAGE": storage,
            "POSTS_CONTAINER": POSTS_CONTAINER,
            "POSTS_TRIGGER_SOURCE": "LogsAndContainerScan",
            "QUEUES_STORAGE": storage,
            "POSTS_LANDED_QUEUE": QUEUES[0],
            "CLASSIFICATION_RUNS_QUEUE": QUEUES[1],
            "LAKE_STORAGE": azurite.connection_string(Blob=ports["blob"], Dfs=ports["lake"]),
            "LAKE_FILE_SYSTEM": FILE_SYSTEM,
            "LAKE_ROOT_FOR_JOBS": f"{azurite.endpoint(ports['lake'])}/{FILE_SYSTEM}",
            "REFERENCE_SCHEDULE": "0 0 2 * * 1",
            "REFERENCE_SCHEMA": "raw_st",
            "REFERENCE_TABLES": "users,post_types",
            "POSTGRES_HOST": LOCALHOST,
            "POSTGRES_PORT": str(ports["postgres"]),
            "POSTGRES_DATABASE": postgres.DATABASE,
            "POSTGRES_USER": postgres.USER,
            "POSTGRES_PASSWORD": postgres.PASSWORD,
            "POSTGRES_SSLMODE": "disable",
            "DATABRICKS_HOST": self.databricks_url,
            "DATABRICKS_TOKEN": DATABRICKS_TOKEN,
            "DATABRICKS_JOB_ID": str(next(iter(self._jobs))),
            "DATABRICKS_TRAINING_JOB_ID": str(list(self._jobs)[-1]),
            "RETRAIN_SCHEDULE": "0 0 4 * * 0",
            "WATCH_FIRST_DELAY_SECONDS": "1",
            "WATCH_MAX_DELAY_SECONDS": "2",
            "AzureFunctionsJobHost__extensions__queues__visibilityTimeout": "00:00:01",
        }


def reset(state_dir: Path) -> None:
    """Delete all that a local cloud kept in `state_dir`. `LocalCloudError` if one is running on it."""
    if not state_dir.exists():
        return
    lock = _lock(state_dir, seconds=2)
    try:
        postgres.remove(state_dir)
        shutil.rmtree(state_dir)
    finally:
        os.close(lock)


def choose_ports(file: Path, given: Mapping[str, int], tell: Callable[[str], None]) -> dict[str, int]:
    """A port for each of `PORT_NAMES`, written to `file`: the given one, else that of `file` if free, else a free one.

    Raises `LocalCloudError` for a name that is none, and for a given port that something listens on.
    """
    unknown = given.keys() - set(PORT_NAMES)
    taken = [f"{name} {port}" for name, port in given.items() if not is_free(port)]
    if unknown or taken:
        raise LocalCloudError(f"no such port name: {', '.join(unknown)}" if unknown else f"in use: {', '.join(taken)}")
    remembered: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
    chosen = {}
    for name, fresh in zip(PORT_NAMES, free_ports(len(PORT_NAMES)), strict=True):
        wanted = given.get(name, remembered.get(name, fresh))
        if not is_free(wanted):
            tell(f"port {wanted} of {name} is in use now: it moves to {fresh}")
            wanted = fresh
        chosen[name] = wanted
    file.write_text(json.dumps(chosen, indent=1) + "\n")
    return chosen


def write_settings(file: Path, values: Mapping[str, str], port: int, tell: Callable[[str], None]) -> None:
    """Write a settings file that `func start` reads too. One that somebody else wrote is kept beside it as `.bak`."""
    if file.exists() and json.loads(file.read_text()).get("GeneratedBy") != SETTINGS_MARK:
        kept = file.with_name(f"{file.name}.bak")
        file.rename(kept)
        tell(f"the {file.name} that was there is now {kept.name}")
    content = {"IsEncrypted": False, "GeneratedBy": SETTINGS_MARK, "Values": values, "Host": {"LocalHttpPort": port}}
    file.write_text(json.dumps(content, indent=2) + "\n")


def invoke(state_dir: Path, function: str, given: str = "") -> dict[str, object]:
    """Have the running functions host of a cloud run one function, and return what it says of the run.

    `given` is the trigger's input: a blob's path, a queue message, nothing for a timer. Raises `LocalCloudError` if no
    host runs or it refuses.
    """
    ports, keys = state_dir / "ports.json", state_dir / "host-keys.json"
    if not ports.exists() or not keys.exists():
        raise LocalCloudError(f"no functions host has run on {state_dir}")
    port = json.loads(ports.read_text())["functions"]
    request = urllib.request.Request(
        f"http://{LOCALHOST}:{port}/admin/functions/{function}?wait=true",
        json.dumps({"input": given}).encode(),
        {"Content-Type": "application/json", "x-functions-key": json.loads(keys.read_text())["master"]},
    )
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            outcome: dict[str, object] = json.load(answer)
            return outcome
    except urllib.error.HTTPError as error:
        with error:
            reason = error.read().decode().strip() or ("no such function" if error.code == 404 else error.reason)
        raise LocalCloudError(f"{function}: {reason}") from error
    except urllib.error.URLError as error:
        raise LocalCloudError(f"the functions host does not answer on port {port}: {error.reason}") from error


def _lock(state_dir: Path, seconds: float) -> int:
    """Take the state folder for this process and the parts it starts; they hold the lock until the last one has gone.

    So nothing of an earlier cloud runs any more once this returns, even if that one was killed.
    """
    lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                os.close(lock)
                raise LocalCloudError(f"another local cloud is running on {state_dir}") from error
            time.sleep(0.05)
        else:
            return lock


@contextmanager
def _log_to_file(name: str, file: Path) -> Iterator[None]:
    logger = logging.getLogger(name)
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False
