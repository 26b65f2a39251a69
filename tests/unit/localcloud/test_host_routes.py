"""Route templates and access keys."""

import stat
from pathlib import Path

import pytest

from localcloud.host.errors import HostError
from localcloud.host.keys import HostKeys
from localcloud.host.routes import Route
from tests.host_functions import hosted

GUID = "0f8fad5b-d9cb-469f-a165-70867728950e"


def route(template: str | None, prefix: str = "api", methods: tuple[str, ...] = ()) -> Route:
    return Route.of(hosted(print, {"type": "httpTrigger", "route": template, "methods": methods}), prefix)


@pytest.mark.parametrize(
    ("template", "path", "expected"),
    [
        ("topics", "/api/topics", {}),
        ("topics", "/API/Topics/", {}),
        ("topics", "/topics", None),
        (None, "/api/f", {}),
        ("topics/{day?}", "/api/topics", {}),
        ("topics/{day?}", "/api/topics/2026-11-22", {"day": "2026-11-22"}),
        ("topics/{day?}", "/api/topics/a/b", None),
        ("topics/{day:datetime}", "/api/topics/2026-11-22", {"day": "2026-11-22"}),
        ("topics/{day:datetime}", "/api/topics/today", None),
        ("runs/{id:int}", "/api/runs/-12", {"id": "-12"}),
        ("runs/{id:int}", "/api/runs/12a", None),
        ("runs/{id:int?}", "/api/runs", {}),
        ("runs/{id:guid}", f"/api/runs/{GUID}", {"id": GUID}),
        ("runs/{id:length(2,3)}", "/api/runs/abc", {"id": "abc"}),
        ("runs/{id:maxlength(3)}", "/api/runs/abcd", None),
        ("runs/{id:alpha:minlength(2)}", "/api/runs/a", None),
        ("runs/{id:alpha:minlength(2)}", "/api/runs/ab", {"id": "ab"}),
        ("runs/{day=latest}", "/api/runs", {"day": "latest"}),
        ("files/{*path}", "/api/files/a/b%20c", {"path": "a/b c"}),
        ("files/{*path}", "/api/files", {}),
        ("{kind}/of/{name}", "/api/x/of/y%2Fz", {"kind": "x", "name": "y/z"}),
    ],
)
def test_route_templates_are_matched(template: str | None, path: str, expected: dict[str, str] | None) -> None:
    assert route(template).match("GET", path) == expected


def test_methods_and_the_route_prefix_are_matched() -> None:
    assert route("x", methods=("GET",)).match("GET", "/api/x") == {}
    assert route("x", methods=("GET",)).match("HEAD", "/api/x") is None
    assert route("x").match("OPTIONS", "/api/x") == {}
    assert route("x", prefix="").match("GET", "/x") == {}


def test_literals_match_before_parameters_and_parameters_before_catch_all() -> None:
    ordered = sorted([route("{*rest}"), route("topics/{day}"), route("topics/latest")], key=lambda item: item.rank)
    assert [item.function.trigger["route"] for item in ordered] == ["topics/latest", "topics/{day}", "{*rest}"]


@pytest.mark.parametrize("template", ["{id:nosuch}", "a{b}", "{a}b", "{a"])
def test_invalid_templates_are_refused(template: str) -> None:
    with pytest.raises(HostError, match="function f"):
        route(template)


def test_keys_are_created_once_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "state" / "host-keys.json"
    first = HostKeys.load(file, ["topics"])
    again = HostKeys.load(file, ["topics", "health"])
    assert again.master == first.master
    assert again.functions["topics"] == first.functions["topics"]
    assert len({first.master, first.default, first.blobs_extension, *again.functions.values()}) == 5
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_each_key_opens_exactly_its_levels(tmp_path: Path) -> None:
    keys = HostKeys.load(tmp_path / "host-keys.json", ["topics", "health"])
    opens = {
        "": ["anonymous"],
        keys.functions["health"]: ["anonymous"],
        keys.functions["topics"]: ["anonymous", "function"],
        keys.default: ["anonymous", "function"],
        keys.master: ["anonymous", "function", "admin"],
        keys.blobs_extension: ["anonymous"],
    }
    for key, levels in opens.items():
        found = [level for level in ("anonymous", "function", "admin") if keys.allow(level, key, "topics")]
        assert found == levels
    assert keys.allow_system(keys.blobs_extension)
    assert not keys.allow_system(keys.default)
