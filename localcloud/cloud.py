"""The cloud on one machine: all parts are started and stopped together, and connected by one settings file."""

import fcntl
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self

from localcloud import azurite, postgres
from localcloud.host import LISTENS
from localcloud.host.keys import KEYS_FILE
from localcloud.processes import (
    LOCALHOST,
    LocalCloudError,
    Process,
    free_ports,
    is_free,
    wait_until,
)
from localcloud.settings import DEFAULTS, SettingsFile, own_settings, without_own

DEFAULT_PORTS: Mapping[str, int] = {
    "blob": 10000,
    "queue": 10001,
    "lake": 10010,
    "postgres": 54330,
    "databricks": 10020,
    "functions": 7071,
}
"""The expected ports, among them the defaults of Azurite and `func start`."""
PORT_NAMES = tuple(DEFAULT_PORTS)
SETTINGS_FILE = "local.settings.json"
JOBS: Mapping[int, str] = {1: "classify.job", 2: "classify.train"}
SECONDS_TO_WAIT_FOR_ANOTHER = 15


class PartEnded(LocalCloudError):
    """A part of the running cloud ended unexpectedly."""

    def __init__(self, part: Process) -> None:
        super().__init__(f"{part.name} ended with code {part.return_code()}. Its log ends:\n{part.last_lines()}")


class LocalCloud:
    """A context manager: all parts run inside it, and none runs after it, even if this process is killed.

    `state_dir` keeps the data, the chosen ports and the logs (`logs/<part>.log`) between runs; one cloud at a time can
    use it. `ports` are by the names of `PORT_NAMES`; a port that is not given is the `preferred` one, that of the last
    run, or any other: the first that is free. Without `host`, the functions host is not started; with `auth`, the host
    requires keys, as Azure does. `settings` are written to `settings_file` (default: `local.settings.json` in
    `state_dir`), which keeps its other content. `jobs` maps Databricks job ids to Python modules, `time_limit` is in
    seconds a run. `tell` gets a sentence about each unexpected decision.

    Entering raises `LocalCloudError` if a part does not start; all parts are then stopped.
    """

    def __init__(
        self,
        state_dir: Path,
        ports: Mapping[str, int] | None = None,
        host: bool = True,
        settings: Mapping[str, str] | None = None,
        *,
        settings_file: Path | None = None,
        preferred: Mapping[str, int] | None = None,
        auth: bool = False,
        jobs: Mapping[int, str] = JOBS,
        runs_at_once: int = 2,
        time_limit: float = 1800,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.state_dir = state_dir.resolve()
        self.logs = self.state_dir / "logs"
        self.settings_file = (settings_file or self._own_file).resolve()
        self.ports: dict[str, int] = {}
        self.settings: dict[str, str] = {}
        """The effective settings of this cloud: its own, then those of the environment, then those of the file."""
        self.left_aside: list[str] = []
        """Ignored variables of the environment: they contradict the cloud's own settings."""
        self._given_ports = dict(ports or {})
        self._preferred_ports = dict(preferred or {})
        self._given_settings = dict(settings or {})
        self._environment: dict[str, str] = {}
        self._with_host = host
        self._auth = auth
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
    def _own_file(self) -> Path:
        return self.state_dir / SETTINGS_FILE

    @property
    def functions_url(self) -> str:
        """The URL of the functions host, also if it is not started."""
        return f"http://{LOCALHOST}:{self.ports['functions']}"

    @property
    def databricks_url(self) -> str:
        """The workspace URL of the Databricks stand-in."""
        return f"http://{LOCALHOST}:{self.ports['databricks']}"

    def addresses(self) -> dict[str, str]:
        """The address of each part, for people."""
        port = {name: f"{LOCALHOST}:{number}" for name, number in self.ports.items()}
        shown = {
            "blobs": azurite.endpoint(self.ports["blob"]),
            "queues": azurite.endpoint(self.ports["queue"]),
            "lake": azurite.endpoint(self.ports["lake"]),
            "postgres": f"postgresql://{postgres.USER}:{postgres.PASSWORD}@{port['postgres']}/{postgres.DATABASE}",
            "databricks": self.databricks_url,
        }
        return shown | ({"functions": self.functions_url} if self._with_host else {})

    def curl(self) -> str:
        """A command line that requests the topics of the latest day, with a key if the host requires one."""
        key = ""
        if self._auth:
            keys = json.loads((self.state_dir / KEYS_FILE).read_text())
            key = f"-H 'x-functions-key: {keys['default']}' "
        return f"curl {key}'{self.functions_url}/api/topics?day=latest'"

    def check(self) -> None:
        """Raise `PartEnded` if a part is no longer running."""
        for process in self._processes:
            if process.return_code() is not None:
                raise PartEnded(process)

    def inject_fault(self, kind: str, times: int = 1) -> None:
        """Make the Databricks stand-in fail `times` times; kinds: `localcloud.databricks.FAULTS`."""
        body = json.dumps({"kind": kind, "times": times}).encode()
        with urllib.request.urlopen(f"{self.databricks_url}/faults", body, timeout=10):
            return

    def _start(self, stack: ExitStack) -> None:
        self.state_dir.mkdir(parents=True, exist_ok=True)
        lock = _lock(self.state_dir, SECONDS_TO_WAIT_FOR_ANOTHER)
        stack.callback(os.close, lock)
        shutil.rmtree(self.logs, ignore_errors=True)
        self.logs.mkdir()
        preferred = {name: port for name, port in self._preferred_ports.items() if name not in self._given_ports}
        if preferred and (claim := claim_ports(self._preferred_ports)) is not None:
            stack.callback(os.close, claim)
        elif preferred:
            self._tell("another local cloud has the default ports; this one takes free ones")
            preferred = {}
        self.ports = choose_ports(
            self.state_dir / "ports.json",
            self._given_ports,
            self._tell,
            preferred,
            opened=PORT_NAMES if self._with_host else PORT_NAMES[:-1],
            # A cloud without the claim takes no default port, even if it is free now or was used in the last run.
            avoided=() if preferred else tuple(DEFAULT_PORTS.values()),
        )
        self._settle(self._written_settings())
        with ThreadPoolExecutor(3) as pool:
            parts = (self._start_storage, self._start_postgres, self._start_services)
            starts = [pool.submit(start, stack, lock) for start in parts]
        for start in starts:
            start.result()
        self._create_places()
        if self._with_host:
            self._start_host(stack, lock)

    def _written_settings(self) -> SettingsFile:
        """The settings file with this cloud's settings; the one in the state folder if the given one is foreign."""
        file = SettingsFile.read(self.settings_file)
        if file.elsewhere and self.settings_file != self._own_file:
            self.settings_file = self._own_file
            self._tell(
                f"{file.path} is not changed, because {file.elsewhere}. "
                f"This cloud's settings are in {self._own_file}: python manage.py status --settings {self._own_file}"
            )
            file = SettingsFile.read(self.settings_file)
        if file.elsewhere:
            raise LocalCloudError(f"{file.path}: {file.elsewhere}. Delete that file, or correct it")
        lake = {**DEFAULTS, **file.values, **self._given_settings}["LAKE_FILE_SYSTEM"]
        written = file.with_cloud(self._own_settings(lake), self._given_settings, self.ports["functions"])
        written.write()
        return written

    def _settle(self, file: SettingsFile) -> None:
        """Set the effective settings: the environment overrides the file, and the cloud's own settings both."""
        values = {name: os.environ.get(name) or value for name, value in file.values.items()}
        own = self._own_settings(values["LAKE_FILE_SYSTEM"])
        self.settings = {**values, **own}
        given = {name: value for name, value in os.environ.items() if value or name not in values}
        self._environment, self.left_aside = without_own(given, own)
        if self.left_aside:
            names = ", ".join(self.left_aside)
            self._tell(f"ignored from the environment, because this cloud sets its own: {names}")

    def _own_settings(self, file_system: str) -> dict[str, str]:
        return own_settings(self.ports, file_system, self._jobs)

    def _start_storage(self, stack: ExitStack, lock: int) -> None:
        folder, log = self.state_dir / "azurite", self.logs / "azurite.log"
        self._keep(stack, azurite.start(folder, self.ports["blob"], self.ports["queue"], log, lock, self._tell))

    def _start_postgres(self, stack: ExitStack, lock: int) -> None:
        server = postgres.start(self.state_dir, self.ports["postgres"], self.logs / "postgres.log", self._tell, lock)
        self._keep(stack, server.process)

    def _start_services(self, stack: ExitStack, lock: int) -> None:
        """Start the gateway and the Databricks stand-in in this process. Their imports here take up to 0.4 s."""
        from localcloud.databricks import JobsService, JobsSettings
        from localcloud.gateway import Gateway
        from localcloud.loop import LoopThread

        for name in ("lake", "databricks"):
            stack.enter_context(_log_to_file(f"localcloud.{name}", self.logs / f"{name}.log"))
        loop = LoopThread()
        stack.callback(loop.stop)
        loop.serve(Gateway(f"http://{LOCALHOST}:{self.ports['blob']}").application(), self.ports["lake"])
        jobs = JobsSettings.of_cloud(self.settings, self._jobs, self._runs_at_once, self._time_limit)
        service = JobsService(jobs, self.state_dir / "databricks", self.logs, lock)
        loop.serve(service.application(), self.ports["databricks"])
        self._loop = loop

    def _create_places(self) -> None:
        """Create the container, the queues and the file system that the product expects."""
        from localcloud.blobs import create_places

        containers = [self.settings["POSTS_CONTAINER"], self.settings["LAKE_FILE_SYSTEM"]]
        queues = [name for setting, name in self.settings.items() if setting.endswith("_QUEUE")]
        blob_origin, queue_origin = (f"http://{LOCALHOST}:{self.ports[name]}" for name in ("blob", "queue"))
        self._loop.run(create_places(blob_origin, queue_origin, containers, queues))

    def _start_host(self, stack: ExitStack, lock: int) -> None:
        port = self.ports["functions"]
        options = ["--settings", str(self.settings_file), "--state", str(self.state_dir), "--port", str(port)]
        command = [sys.executable, "-m", "localcloud.host", *options, *(["--auth"] if self._auth else [])]
        environment = {**self._environment, "PYTHONUNBUFFERED": "1"}
        process = Process("functions", command, self.logs / "functions.log", env=environment, hold=lock)
        self._keep(stack, process)
        wait_until(lambda: process.says(LISTENS), process, 60)

    def _keep(self, stack: ExitStack, process: Process) -> None:
        stack.callback(process.stop)
        self._processes.append(process)


def reset(state_dir: Path) -> None:
    """Delete everything in `state_dir`. `LocalCloudError` if a local cloud is using it."""
    if not state_dir.exists():
        return
    lock = _lock(state_dir, seconds=2)
    try:
        postgres.remove(state_dir)
        shutil.rmtree(state_dir)
    finally:
        os.close(lock)


def choose_ports(
    file: Path,
    given: Mapping[str, int],
    tell: Callable[[str], None],
    preferred: Mapping[str, int] | None = None,
    opened: Sequence[str] = PORT_NAMES,
    avoided: Sequence[int] = (),
) -> dict[str, int]:
    """A port for each of `PORT_NAMES`, written to `file`: the given one, or the first free of the preferred one, that
    of `file` (unless it is in `avoided`), and any other. Only ports of the names in `opened` must be free.

    Raises `LocalCloudError` for an unknown name, and for a given port that is in use.
    """
    unknown = given.keys() - set(PORT_NAMES)
    if unknown:
        raise LocalCloudError(f"unknown port name: {', '.join(sorted(unknown))}; the names are {', '.join(PORT_NAMES)}")
    taken = [f"{name} {port}" for name, port in given.items() if name in opened and not is_free(port)]
    if taken:
        raise LocalCloudError(f"in use: {', '.join(taken)}. Give another port, or end the program that uses it")
    earlier: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
    remembered = {name: port for name, port in earlier.items() if port not in avoided}
    chosen: dict[str, int] = {}
    for name, fresh in zip(PORT_NAMES, free_ports(len(PORT_NAMES)), strict=True):
        wanted = [ports[name] for ports in (given, preferred or {}, remembered) if name in ports]
        usable = (port for port in wanted if name not in opened or is_free(port))
        chosen[name] = next((port for port in usable if port not in chosen.values()), fresh)
        if wanted and chosen[name] != wanted[0]:
            tell(f"port {wanted[0]} of {name} is in use; this run uses {chosen[name]}")
    file.write_text(json.dumps(chosen, indent=1) + "\n")
    return chosen


def claim_ports(ports: Mapping[str, int]) -> int | None:
    """A file descriptor that reserves these ports for one cloud of this user; None if another cloud has reserved them.

    The reservation ends when it is closed. Two clouds that start at once could both find a port free.
    """
    name = "-".join(map(str, sorted(ports.values())))
    file = Path(tempfile.gettempdir()) / f"stacktopics-{os.getuid()}-{name}.lock"
    claim = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(claim)
        return None
    return claim


def invoke(state_dir: Path, function: str, given: str = "") -> dict[str, object]:
    """Make the running functions host of a cloud run one function; returns the host's report of the run.

    `given` is the trigger's input: a blob's path, a queue message, nothing for a timer. `succeeded` is None if the host
    does not wait for the run, as with `func start`. Raises `LocalCloudError` if no host runs or the host refuses.
    """
    ports, keys = state_dir / "ports.json", state_dir / KEYS_FILE
    if not ports.exists():
        raise LocalCloudError(f"no functions host has run on {state_dir}")
    port = json.loads(ports.read_text())["functions"]
    headers = {"Content-Type": "application/json"}
    if keys.exists():  # a host without keys ignores it
        headers["x-functions-key"] = json.loads(keys.read_text())["master"]
    request = urllib.request.Request(
        f"http://{LOCALHOST}:{port}/admin/functions/{function}?wait=true",
        json.dumps({"input": given}).encode(),
        headers,
    )
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            if answer.status == HTTPStatus.ACCEPTED:
                return {"function": function, "succeeded": None}
            outcome: dict[str, object] = json.load(answer)
            return outcome
    except urllib.error.HTTPError as error:
        with error:
            reason = error.read().decode().strip() or ("no such function" if error.code == 404 else error.reason)
        raise LocalCloudError(f"{function}: {reason}") from error
    except urllib.error.URLError as error:
        raise LocalCloudError(f"the functions host does not answer on port {port}: {error.reason}") from error


def _lock(state_dir: Path, seconds: float) -> int:
    """Lock the state folder for this process and the parts it starts; the lock is held until the last of them ends.

    So no part of an earlier cloud is running when this returns, even if that cloud was killed.
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
