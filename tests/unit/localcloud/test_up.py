"""The output of `python -m localcloud up`, and the options it passes to the cloud, which a stand-in replaces here."""

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import pytest
from typer.testing import CliRunner

from localcloud import __main__ as command
from localcloud import jsonc, screen
from localcloud.cloud import DEFAULT_PORTS, PORT_NAMES, LocalCloud
from localcloud.processes import PROJECT_ROOT, LocalCloudError

PARTS = ["blobs", "queues", "lake", "postgres", "databricks", "functions"]


class Cloud(LocalCloud):
    """Starts nothing; ends the command as Ctrl-C does, at its second check."""

    made: ClassVar[list[Any]]

    def __init__(self, state_dir: Path, ports: Any = None, **given: Any) -> None:
        super().__init__(state_dir, ports, **given)
        self.given = {"ports": ports, **given}
        self.looks = 0
        self.made.append(self)

    def __enter__(self) -> Self:
        self.ports = {**DEFAULT_PORTS, **self.given["ports"]}
        self.logs.mkdir(parents=True)
        (self.logs / "lake.log").write_text("a line of the lake\n")
        (self.state_dir / "host-keys.json").write_text('{"default": "the-key"}')
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def check(self) -> None:
        self.looks += 1
        if self.looks == 2:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Cloud]]:
    """The clouds that a command creates; the signal handlers are restored afterwards."""
    Cloud.made = []
    monkeypatch.setattr(command, "LocalCloud", Cloud)
    monkeypatch.setattr(command, "LOOK_SECONDS", 0.01)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield Cloud.made
    for number, handler in handlers.items():
        signal.signal(number, handler)


def up(tmp_path: Path, *options: str, code: int = 0) -> list[str]:
    """Run the command; returns the lines that it writes."""
    arguments = ["up", "--state", str(tmp_path / "state"), *options]
    done = CliRunner().invoke(command.app, arguments)
    assert done.exit_code == code, done.output
    return done.output.splitlines()


def test_up_shows_one_line_a_part_with_its_address_and_the_next_commands(tmp_path: Path) -> None:
    lines = up(tmp_path)
    start = lines.index("Starting the local cloud ...") + 1
    ready = lines.index("Ready")
    places = dict(line.split(maxsplit=1) for line in lines[start:ready] if line)
    assert [*places] == [*PARTS, "settings", "logs"]
    assert places["lake"] == "http://127.0.0.1:10010/devstoreaccount1"
    assert places["settings"] == screen.shown(PROJECT_ROOT / "local.settings.json")
    assert places["logs"] == str(tmp_path / "state" / "logs")
    tries = [line.strip() for line in lines[ready:] if line.startswith("  ")]
    assert tries == [
        screen.manage("drop FILE", PROJECT_ROOT / "local.settings.json"),
        screen.manage("topics", PROJECT_ROOT / "local.settings.json"),
        "curl 'http://127.0.0.1:7071/api/topics?day=latest'",
    ]


def test_logs_are_shown_only_on_request(tmp_path: Path) -> None:
    assert "a line of the lake" not in "\n".join(up(tmp_path))
    assert "       lake | a line of the lake" in up(tmp_path / "other", "--log")


def test_ctrl_c_shows_one_line(tmp_path: Path) -> None:
    lines = up(tmp_path)
    assert lines[-2:] == ["Ctrl-C ends it; `up --log` shows the logs here.", "The local cloud has stopped."]


def test_the_curl_command_has_a_key_only_with_auth(tmp_path: Path, made: list[Cloud]) -> None:
    (curl,) = [line.strip() for line in up(tmp_path, "--auth") if line.startswith("  curl ")]
    assert curl == "curl -H 'x-functions-key: the-key' 'http://127.0.0.1:7071/api/topics?day=latest'"
    assert made[0].given["auth"] is True


def test_without_a_host_the_next_step_is_func_start(tmp_path: Path, made: list[Cloud]) -> None:
    lines = up(tmp_path, "--no-host")
    assert lines[lines.index("Ready") + 1] == (
        "Next, in another terminal: func start (it listens on http://127.0.0.1:7071)"
    )
    assert [line for line in lines if line.startswith("  functions")] == []
    assert made[0].given["host"] is False


def test_with_another_settings_file_the_next_step_says_what_func_start_reads(tmp_path: Path) -> None:
    lines = up(tmp_path, "--no-host", "--settings-file", str(tmp_path / "mine.json"))
    after = lines[lines.index("Ready") + 1]
    assert after.startswith("Next: func start; it reads ")
    assert "must be copied there before" in after


def test_default_ports_are_preferred_but_given_ports_override_them(tmp_path: Path, made: list[Cloud]) -> None:
    up(tmp_path, "--blob-port", "1234")
    assert made[0].given["preferred"] == DEFAULT_PORTS
    assert made[0].given["ports"] == {"blob": 1234}
    assert DEFAULT_PORTS == {
        "blob": 10000,
        "queue": 10001,
        "lake": 10010,
        "postgres": 54330,
        "databricks": 10020,
        "functions": 7071,
    }
    assert tuple(DEFAULT_PORTS) == PORT_NAMES


def test_settings_are_set_by_name(tmp_path: Path, made: list[Cloud]) -> None:
    up(tmp_path, "--set", "REFERENCE_TABLES=users,badges", "--set", "REFERENCE_SCHEDULE=0 0 6 * * *")
    assert made[0].given["settings"] == {"REFERENCE_TABLES": "users,badges", "REFERENCE_SCHEDULE": "0 0 6 * * *"}


@pytest.mark.parametrize(
    ("options", "said", "code"),
    [
        (
            ["--set", "POSTS_STORAGE=x"],
            "localcloud: --set POSTS_STORAGE: addresses and keys of",
            1,
        ),
        (["--set", "REFERENCE_TABEL=x"], "localcloud: --set REFERENCE_TABEL: there is no such setting", 1),
        (["--no-host", "--auth"], "func start asks for no keys", 2),
    ],
)
def test_invalid_options_are_reported_before_anything_starts(
    tmp_path: Path, made: list[Cloud], options: list[str], said: str, code: int
) -> None:
    assert said in " ".join(" ".join(up(tmp_path, *options, code=code)).replace("│", " ").split())
    assert made == []


def test_the_end_of_a_part_is_shown_as_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(_: Cloud) -> None:
        raise LocalCloudError("azurite ended with code 1")

    monkeypatch.setattr(Cloud, "check", check)
    lines = up(tmp_path, code=1)
    assert lines[-1] == "localcloud: azurite ended with code 1"


@pytest.mark.parametrize(
    ("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)], ids=str
)
def test_no_color_means_plain_lines_on_a_terminal_too(variables: dict[str, str], coloured: bool) -> None:
    ours, theirs = pty.openpty()
    program = "from localcloud.screen import screen; screen().line('Ready', 'bold green')"
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm", **variables}
    command_line = [sys.executable, "-c", program]
    subprocess.run(command_line, cwd=PROJECT_ROOT, env=environment, stdin=theirs, stdout=theirs, timeout=60, check=True)
    written = os.read(ours, 100)
    for end in (ours, theirs):
        os.close(end)
    assert written == (b"\x1b[1;32mReady\x1b[0m\r\n" if coloured else b"Ready\r\n")


def test_commands_are_shown_as_a_user_would_type_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "my venv" / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.chdir(tmp_path)
    manage = str(PROJECT_ROOT / "manage.py")
    assert screen.manage("topics", tmp_path / "local.settings.json") == f"'my venv/bin/python' {manage} topics"
    other = tmp_path / "state" / "local.settings.json"
    assert screen.manage("topics", other).endswith("topics --settings state/local.settings.json")
    monkeypatch.setattr("shutil.which", lambda name: str(python) if name == "python" else None)
    assert screen.manage("drop FILE", tmp_path / "local.settings.json") == f"python {manage} drop FILE"


class TestEditor:
    """The tasks that Visual Studio Code runs and waits for."""

    @staticmethod
    def read(name: str) -> Any:
        return jsonc.loads((PROJECT_ROOT / ".vscode" / name).read_text())

    def test_func_start_waits_until_the_cloud_is_ready_or_has_failed(self, tmp_path: Path) -> None:
        tasks = {task["label"]: task for task in self.read("tasks.json")["tasks"]}
        cloud = tasks[tasks["func: host start"]["dependsOn"]]
        assert cloud["isBackground"] is True
        assert cloud["command"] == "make up ARGS=--no-host"
        makefile = (PROJECT_ROOT / "Makefile").read_text()
        assert "python -m localcloud up $(ARGS)\n" in makefile
        watch = cloud["problemMatcher"]["background"]
        begins, ends = (re.compile(watch[name]) for name in ("beginsPattern", "endsPattern"))
        lines = up(tmp_path, "--no-host")
        assert [line for line in lines if begins.match(line)] == ["Starting the local cloud ..."]
        assert [line for line in lines if ends.match(line)] == ["Ready"]
        (error,) = [line for line in up(tmp_path, "--set", "X=1", code=1) if ends.match(line)]
        assert re.fullmatch(cloud["problemMatcher"]["pattern"]["regexp"], error)

    def test_the_debugger_attaches_to_the_worker_that_func_start_runs(self) -> None:
        (attach,) = self.read("launch.json")["configurations"]
        assert (attach["name"], attach["type"], attach["request"]) == (
            "Attach to Python Functions",
            "debugpy",
            "attach",
        )
        assert attach["connect"] == {"host": "localhost", "port": 9091}
        assert attach["preLaunchTask"] in {task["label"] for task in self.read("tasks.json")["tasks"]}

    def test_the_extension_finds_the_project_and_its_folder_is_not_deployed(self) -> None:
        settings = self.read("settings.json")
        assert settings["azureFunctions.projectLanguage"] == "Python"
        assert settings["azureFunctions.projectLanguageModel"] == 2
        assert settings["azureFunctions.pythonVenv"] == ".venv"
        assert "ms-azuretools.vscode-azurefunctions" in self.read("extensions.json")["recommendations"]
        assert ".vscode/" in (PROJECT_ROOT / ".funcignore").read_text().splitlines()
