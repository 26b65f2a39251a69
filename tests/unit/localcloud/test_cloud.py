"""The parts of the local cloud that need no other process."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from azure.core.pipeline import PipelineContext, PipelineRequest
from azure.storage.blob._shared.authentication import SharedKeyCredentialPolicy
from requests.structures import CaseInsensitiveDict

from localcloud import tools
from localcloud.azurite import ACCOUNT, ACCOUNT_KEY, connection_string
from localcloud.blobs import DIRECTORY_MARK, Blob, StorageError
from localcloud.cloud import PORT_NAMES, choose_ports, claim_ports, invoke
from localcloud.follow import LogFollower
from localcloud.gateway import check_conditions, paths_below
from localcloud.processes import PROJECT_ROOT, LocalCloudError, free_ports, is_free, last_lines
from localcloud.sharedkey import authorization

MODIFIED = "Sun, 22 Nov 2026 12:00:00 GMT"
LATER, EARLIER = "Sun, 22 Nov 2026 12:00:01 GMT", "Sun, 22 Nov 2026 11:59:59 GMT"
FILE = Blob("d/f", 5, '"0x1"', MODIFIED)


class TestConditions:
    @pytest.mark.parametrize(
        ("headers", "code"),
        [
            ({"If-Match": '"0x2"'}, "ConditionNotMet"),
            ({"If-None-Match": '"0x1"'}, "ConditionNotMet"),
            ({"If-None-Match": "*"}, "PathAlreadyExists"),
            ({"If-Modified-Since": MODIFIED}, "ConditionNotMet"),
            ({"If-Unmodified-Since": EARLIER}, "ConditionNotMet"),
        ],
    )
    def test_a_condition_that_the_file_does_not_meet_is_refused(self, headers: dict[str, str], code: str) -> None:
        with pytest.raises(StorageError) as refused:
            check_conditions(headers, FILE)
        assert refused.value.code == code

    @pytest.mark.parametrize("headers", [{"If-Match": "*"}, {"If-Match": '"0x1"'}, {"If-Unmodified-Since": LATER}])
    def test_a_condition_that_the_file_meets_is_refused_without_a_file(self, headers: dict[str, str]) -> None:
        check_conditions(headers, FILE)
        with pytest.raises(StorageError, match="412"):
            check_conditions(headers, None)

    def test_conditions_on_a_source_do_not_apply_to_the_target(self) -> None:
        headers = {"x-ms-source-If-Match": '"0x2"'}
        check_conditions(headers, FILE)
        with pytest.raises(StorageError, match="SourceConditionNotMet"):
            check_conditions(headers, FILE, "x-ms-source-")


class TestListing:
    MARKED = Blob("d", 0, '"0x2"', MODIFIED, {DIRECTORY_MARK: "true"})

    def test_a_directory_with_its_own_blob_is_listed_once_with_its_etag(self) -> None:
        paths = paths_below("", [self.MARKED, FILE], recursive=True)
        assert list(paths) == ["d", "d/f"]
        assert (paths["d"]["isDirectory"], paths["d"]["etag"]) == ("true", "0x2")
        assert "isDirectory" not in paths["d/f"]

    def test_implied_directories_are_listed_at_every_depth(self) -> None:
        blobs = [Blob("a/b/c/f", 1, '"1"', MODIFIED)]
        assert sorted(paths_below("a", blobs, recursive=True)) == ["a/b", "a/b/c", "a/b/c/f"]
        assert sorted(paths_below("a", blobs, recursive=False)) == ["a/b"]


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/fs?restype=container&comp=list&prefix=a%2Fb%20c", {"x-ms-version": "2025-07-05"}),
        ("PUT", "/fs/d%C3%BC/x%20y?resource=file", {"If-None-Match": "*", "Content-Length": "0", "x-ms-b": "2"}),
        ("PUT", "/fs/f?comp=block&blockid=MDA%3D", {"Content-Length": "12", "Content-Type": "text/plain", "Range": ""}),
    ],
)
def test_the_signature_equals_that_of_the_sdk(method: str, path: str, headers: dict[str, str]) -> None:
    request = SimpleNamespace(
        method=method,
        url=f"http://127.0.0.1:10000/{ACCOUNT}{path}",
        query=dict(pair.split("=") for pair in path.partition("?")[2].split("&")),
        headers=CaseInsensitiveDict({**headers, "x-ms-date": MODIFIED}),
    )
    policy: Any = SharedKeyCredentialPolicy
    policy(ACCOUNT, ACCOUNT_KEY).on_request(PipelineRequest(request, PipelineContext(None)))
    due = request.headers.pop("Authorization")
    assert authorization(ACCOUNT, ACCOUNT_KEY, method, f"/{ACCOUNT}{path}", request.headers) == due


class TestPorts:
    PREFERRED: ClassVar = {name: 61_001 + number for number, name in enumerate(PORT_NAMES)}
    TAKEN = 61_099

    @pytest.fixture(autouse=True)
    def taken(self, monkeypatch: pytest.MonkeyPatch) -> int:
        """The only port that is in use, so that the test does not depend on other programs of this machine."""
        monkeypatch.setattr("localcloud.cloud.is_free", lambda port: port != self.TAKEN)
        return self.TAKEN

    def test_a_port_that_something_listens_on_is_not_free(self) -> None:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            assert not is_free(server.getsockname()[1])

    def test_ports_are_all_different_and_the_same_the_next_time(self, tmp_path: Path) -> None:
        first = choose_ports(tmp_path / "ports.json", {}, pytest.fail)
        assert (set(first), len(set(first.values()))) == (set(PORT_NAMES), len(PORT_NAMES))
        assert choose_ports(tmp_path / "ports.json", {}, pytest.fail) == first

    def test_the_refusal_of_an_unknown_name_lists_the_known_ones(self, tmp_path: Path) -> None:
        with pytest.raises(LocalCloudError, match="unknown port name: tables; the names are blob, queue"):
            choose_ports(tmp_path / "ports.json", {"tables": 1}, pytest.fail)

    def test_preferred_ports_are_chosen_before_those_of_the_last_run(self, tmp_path: Path) -> None:
        file = tmp_path / "ports.json"
        assert choose_ports(file, {}, pytest.fail) != self.PREFERRED
        assert choose_ports(file, {}, pytest.fail, self.PREFERRED) == self.PREFERRED
        assert json.loads(file.read_text()) == self.PREFERRED

    def test_a_taken_preferred_port_is_reported_and_the_last_port_is_used(self, tmp_path: Path, taken: int) -> None:
        file = tmp_path / "ports.json"
        said: list[str] = []
        before = choose_ports(file, {}, pytest.fail)
        chosen = choose_ports(file, {}, said.append, {**self.PREFERRED, "lake": taken})
        assert chosen == {**self.PREFERRED, "lake": before["lake"]}
        assert said == [f"port {taken} of lake is in use; this run uses {before['lake']}"]

    def test_only_one_of_two_clouds_that_start_together_gets_the_preferred_ports(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where clouds claim ports
        claim = claim_ports(self.PREFERRED)
        assert claim is not None
        assert claim_ports(self.PREFERRED) is None
        file = tmp_path / "ports.json"
        file.write_text(json.dumps(self.PREFERRED))  # the ports of the other cloud's last run
        chosen = choose_ports(file, {}, pytest.fail, avoided=tuple(self.PREFERRED.values()))
        assert not set(chosen.values()) & set(self.PREFERRED.values())
        os.close(claim)
        again = claim_ports(self.PREFERRED)
        assert again is not None
        os.close(again)

    def test_given_ports_are_used_or_refused(self, tmp_path: Path, taken: int) -> None:
        (other,) = free_ports(1)
        chosen = choose_ports(tmp_path / "ports.json", {"blob": other}, pytest.fail, self.PREFERRED)
        assert chosen == {**self.PREFERRED, "blob": other}
        with pytest.raises(LocalCloudError, match=f"in use: blob {taken}. Give another port"):
            choose_ports(tmp_path / "ports.json", {"blob": taken}, pytest.fail, self.PREFERRED)

    def test_the_port_of_func_start_may_be_in_use(self, tmp_path: Path, taken: int) -> None:
        preferred = {**self.PREFERRED, "functions": taken}
        chosen = choose_ports(tmp_path / "ports.json", {}, pytest.fail, preferred, opened=PORT_NAMES[:-1])
        assert chosen == preferred

    def test_two_parts_never_get_the_same_port(self, tmp_path: Path) -> None:
        (port,) = free_ports(1)
        said: list[str] = []
        chosen = choose_ports(tmp_path / "ports.json", {}, said.append, {"blob": port, "queue": port})
        assert (chosen["blob"], len(set(chosen.values()))) == (port, len(PORT_NAMES))


class TestAzuritePackage:
    def test_the_lock_names_no_registry(self) -> None:
        lock = json.loads((tools.AZURITE_PACKAGE / "package-lock.json").read_text())
        resolved = {package.get("resolved", "") for package in lock["packages"].values()}
        assert not [address for address in resolved if "://" in address]

    def test_the_lock_pins_the_versions_of_the_package(self) -> None:
        asked = json.loads((tools.AZURITE_PACKAGE / "package.json").read_text())["dependencies"]
        locked = json.loads((tools.AZURITE_PACKAGE / "package-lock.json").read_text())["packages"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", asked["azurite"])
        assert locked["node_modules/azurite"]["version"] == asked["azurite"]
        assert all(locked[f"node_modules/{name}"].get("link") for name in asked if name != "azurite")

    def test_a_changed_file_makes_a_new_installation(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tools, "AZURITE_PACKAGE", tmp_path)
        (tmp_path / "package.json").write_text("{}")
        before = tools.azurite_fingerprint()
        (tmp_path / "package.json").write_text("{} ")
        assert tools.azurite_fingerprint() != before


class TestLogs:
    def test_each_line_is_shown_once_when_it_is_complete(self, tmp_path: Path) -> None:
        shown: list[str] = []
        log = tmp_path / "azurite.log"
        follower = LogFollower(tmp_path, shown.append)
        with log.open("w") as writer:
            for text, lines in [("one\ntw", 1), ("o\nthree\n", 3), ("", 3)]:
                writer.write(text)
                writer.flush()
                follower.show_new_lines()
                assert len(shown) == lines
            (tmp_path / "job-7.log").write_text("late\n")
            follower.show_new_lines()
        assert [line.split(" | ") for line in shown] == [
            ["    azurite", "one"],
            ["    azurite", "two"],
            ["    azurite", "three"],
            ["      job-7", "late"],
        ]

    def test_following_many_logs_keeps_no_file_open(self, tmp_path: Path) -> None:
        shown: list[str] = []
        for number in range(50):
            (tmp_path / f"job-{number}.log").write_text("a line\n")
        before = len(list(Path("/proc/self/fd").iterdir()))
        follower = LogFollower(tmp_path, shown.append)
        follower.show_new_lines()
        assert len(shown) == 50
        assert len(list(Path("/proc/self/fd").iterdir())) == before

    def test_the_last_lines_of_a_log_are_found(self, tmp_path: Path) -> None:
        (tmp_path / "log").write_text("".join(f"line {number}\n" for number in range(100_000)))
        assert last_lines(tmp_path / "log", 2) == "line 99998\nline 99999"
        assert last_lines(tmp_path / "none", 2) == ""


def test_invoking_without_a_host_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LocalCloudError, match="no functions host"):
        invoke(tmp_path, "copy_reference")


def test_func_start_reports_only_the_start_of_the_function(tmp_path: Path) -> None:
    asked: list[tuple[str, str | None]] = []

    class FuncStart(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.path, self.headers["x-functions-key"]))
            self.send_response(202)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), FuncStart) as server:
        (tmp_path / "ports.json").write_text(json.dumps({"functions": server.server_port}))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(server.handle_request)
            assert invoke(tmp_path, "copy_reference") == {"function": "copy_reference", "succeeded": None}
    assert asked == [("/admin/functions/copy_reference?wait=true", None)]


def test_a_connection_string_names_each_endpoint() -> None:
    text = connection_string(Blob=1, Dfs=2)
    assert f"BlobEndpoint=http://127.0.0.1:1/{ACCOUNT};DfsEndpoint=http://127.0.0.1:2/{ACCOUNT};" in text


def test_proc_and_ps_list_the_same_processes_of_a_group() -> None:
    if not Path("/proc/self/stat").exists() or not shutil.which("ps"):
        pytest.skip("needs /proc, which only Linux has, and ps")
    program = """
        import os, subprocess
        from pathlib import Path
        from localcloud import worker
        child = subprocess.Popen(["sleep", "60"])
        by_proc = worker._processes()
        worker.PROC = Path("/no-such-folder")
        assert by_proc == worker._processes() == {os.getpid(), child.pid}, by_proc
        child.kill()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    subprocess.run(command, cwd=PROJECT_ROOT, start_new_session=True, timeout=60, check=True)
