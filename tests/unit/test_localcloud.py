"""The parts of the local cloud that need no other process."""

import json
import re
from pathlib import Path

import pytest
from azure.core.pipeline import PipelineContext, PipelineRequest
from azure.storage.blob._shared.authentication import SharedKeyCredentialPolicy
from requests.structures import CaseInsensitiveDict

from localcloud import tools
from localcloud.azurite import ACCOUNT, ACCOUNT_KEY, connection_string
from localcloud.blobs import DIRECTORY_MARK, Blob, StorageError
from localcloud.cloud import PORT_NAMES, choose_ports, invoke, write_settings
from localcloud.follow import LogFollower
from localcloud.gateway import check_conditions, paths_below
from localcloud.processes import LocalCloudError, last_lines
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
    def test_refused_for_what_is_there(self, headers: dict[str, str], code: str) -> None:
        with pytest.raises(StorageError) as refused:
            check_conditions(headers, FILE)
        assert refused.value.code == code

    @pytest.mark.parametrize("headers", [{"If-Match": "*"}, {"If-Match": '"0x1"'}, {"If-Unmodified-Since": LATER}])
    def test_refused_only_where_nothing_is(self, headers: dict[str, str]) -> None:
        check_conditions(headers, FILE)
        with pytest.raises(StorageError, match="412"):
            check_conditions(headers, None)

    def test_conditions_on_a_source_are_apart_from_those_on_a_target(self) -> None:
        headers = {"x-ms-source-If-Match": '"0x2"'}
        check_conditions(headers, FILE)
        with pytest.raises(StorageError, match="SourceConditionNotMet"):
            check_conditions(headers, FILE, "x-ms-source-")


class TestListing:
    MARKED = Blob("d", 0, '"0x2"', MODIFIED, {DIRECTORY_MARK: "true"})

    def test_a_directory_with_a_blob_of_its_own_is_listed_once_with_its_etag(self) -> None:
        paths = paths_below("", [self.MARKED, FILE], recursive=True)
        assert list(paths) == ["d", "d/f"]
        assert (paths["d"]["isDirectory"], paths["d"]["etag"]) == ("true", "0x2")
        assert "isDirectory" not in paths["d/f"]

    def test_implied_directories_at_every_depth(self) -> None:
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
def test_the_signature_is_that_of_the_sdk(method: str, path: str, headers: dict[str, str]) -> None:
    class Request:
        pass

    request = Request()
    request.method, request.url = method, f"http://127.0.0.1:10000/{ACCOUNT}{path}"
    query = path.partition("?")[2]
    request.query = dict(pair.split("=") for pair in query.split("&"))
    request.headers = CaseInsensitiveDict({**headers, "x-ms-date": MODIFIED})
    pipeline_request = PipelineRequest(request, PipelineContext(None))
    SharedKeyCredentialPolicy(ACCOUNT, ACCOUNT_KEY).on_request(pipeline_request)
    due = request.headers.pop("Authorization")
    assert authorization(ACCOUNT, ACCOUNT_KEY, method, f"/{ACCOUNT}{path}", request.headers) == due


class TestSettingsFile:
    def test_it_has_the_form_that_func_reads(self, tmp_path: Path) -> None:
        file = tmp_path / "local.settings.json"
        write_settings(file, {"A": "1"}, 7071, pytest.fail)
        content = json.loads(file.read_text())
        assert (content["IsEncrypted"], content["Values"], content["Host"]) == (
            False,
            {"A": "1"},
            {"LocalHttpPort": 7071},
        )

    def test_ones_own_is_kept_and_a_generated_one_is_not(self, tmp_path: Path) -> None:
        file, said = tmp_path / "local.settings.json", []
        file.write_text('{"Values": {"MINE": "1"}}')
        write_settings(file, {}, 7071, said.append)
        write_settings(file, {}, 7071, pytest.fail)
        assert json.loads((tmp_path / "local.settings.json.bak").read_text())["Values"] == {"MINE": "1"}
        assert "local.settings.json.bak" in said[0]


class TestPorts:
    def test_they_are_all_different_and_the_same_the_next_time(self, tmp_path: Path) -> None:
        first = choose_ports(tmp_path / "ports.json", {}, pytest.fail)
        assert (set(first), len(set(first.values()))) == (set(PORT_NAMES), len(PORT_NAMES))
        assert choose_ports(tmp_path / "ports.json", {}, pytest.fail) == first

    def test_a_name_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(LocalCloudError, match="no such port name: tables"):
            choose_ports(tmp_path / "ports.json", {"tables": 1}, pytest.fail)


class TestAzuritePackage:
    def test_the_lock_names_no_registry(self) -> None:
        lock = json.loads((tools.AZURITE_PACKAGE / "package-lock.json").read_text())
        resolved = {package.get("resolved", "") for package in lock["packages"].values()}
        assert not [address for address in resolved if "://" in address]

    def test_the_lock_pins_what_the_package_asks_for(self) -> None:
        asked = json.loads((tools.AZURITE_PACKAGE / "package.json").read_text())["dependencies"]
        locked = json.loads((tools.AZURITE_PACKAGE / "package-lock.json").read_text())["packages"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", asked["azurite"])
        assert locked["node_modules/azurite"]["version"] == asked["azurite"]
        assert all(locked[f"node_modules/{name}"].get("link") for name in asked if name != "azurite")

    def test_a_changed_file_is_another_installation(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tools, "AZURITE_PACKAGE", tmp_path)
        (tmp_path / "package.json").write_text("{}")
        before = tools.azurite_fingerprint()
        (tmp_path / "package.json").write_text("{} ")
        assert tools.azurite_fingerprint() != before


class TestLogs:
    def test_lines_are_shown_once_when_they_are_whole(self, tmp_path: Path) -> None:
        shown: list[str] = []
        log = tmp_path / "azurite.log"
        with LogFollower(tmp_path, shown.append) as follower, log.open("w") as writer:
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

    def test_the_last_lines_of_a_log(self, tmp_path: Path) -> None:
        (tmp_path / "log").write_text("".join(f"line {number}\n" for number in range(100_000)))
        assert last_lines(tmp_path / "log", 2) == "line 99998\nline 99999"
        assert last_lines(tmp_path / "none", 2) == ""


def test_invoking_without_a_host_says_so(tmp_path: Path) -> None:
    with pytest.raises(LocalCloudError, match="no functions host"):
        invoke(tmp_path, "copy_reference")


def test_a_connection_string_names_each_endpoint() -> None:
    text = connection_string(Blob=1, Dfs=2)
    assert f"BlobEndpoint=http://127.0.0.1:1/{ACCOUNT};DfsEndpoint=http://127.0.0.1:2/{ACCOUNT};" in text
