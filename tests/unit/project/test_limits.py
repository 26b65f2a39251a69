"""docs/limits.md matches the code: each number of its tables equals the constant or setting beside it."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from ingest import footer
from shared.settings import Settings
from tests.places import PROJECT

PAGE = (PROJECT / "docs" / "limits.md").read_text()
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "h": 3600}


def rows() -> Iterator[tuple[str, str, str]]:
    """The rows of the tables: what is limited, the limit as text, and its place in the code."""
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and "`" in cells[-1]:
            what, limit, place = cells
            yield what, limit, place


LIMITS = list(rows())


def number(limit: str) -> float:
    """`8 MiB` -> 8388608: the number at the start of a cell, in bytes, in seconds or without a unit."""
    found = re.match(r"([\d,]+)(?: (\w+))?", limit)
    assert found, limit
    return int(found[1].replace(",", "")) * UNITS.get(found[2], 1)


def value(place: str) -> Any:
    """The value at a place in the code: `module.NAME`, `module.NAME[key]`, `host.json: a.b` or `setting NAME`."""
    if setting := re.fullmatch(r"setting `(\w+)`", place):
        return Settings.model_fields[setting[1].lower()].default
    if path := re.fullmatch(r"`host\.json: ([\w.]+)`", place):
        found: Any = json.loads((PROJECT / "host.json").read_text())
        for key in path[1].split("."):
            found = found[key]
        return _seconds(found) if isinstance(found, str) else found
    constant = re.fullmatch(r"`([\w.]+)\.(\w+)(?:\[(\w+)\])?`", place)
    assert constant, place
    found = getattr(importlib.import_module(constant[1]), constant[2])
    key = constant[3]
    return found if key is None else found[int(key) if key.isdigit() else key]


def _seconds(time: str) -> int:
    hours, minutes, seconds = map(int, time.split(":"))
    return (hours * 60 + minutes) * 60 + seconds


@pytest.mark.parametrize(("what", "limit", "place"), LIMITS, ids=[place.strip("`") for _, _, place in LIMITS])
def test_a_limit_on_the_page_equals_that_of_the_code(what: str, limit: str, place: str) -> None:
    assert number(limit) == value(place), what
    assert ("by default" in limit) == place.startswith("setting"), what


def test_every_limit_of_a_footer_is_on_the_page() -> None:
    limits = {name for name in vars(footer) if name.startswith("MAX_") or name == "FREE_BYTES"}
    assert limits
    listed = {place.strip("`").rpartition(".")[2] for _, _, place in LIMITS if "ingest.footer" in place}
    assert listed == limits


def test_every_setting_that_is_a_limit_is_on_the_page() -> None:
    bounds = re.compile(r"_(DEADLINE_SECONDS|MAX_\w+|ATTEMPTS)$")
    settings = {name.upper() for name in Settings.model_fields if bounds.search(name.upper())} - {
        "REFERENCE_MAX_SHRINK"
    }
    listed = {place.split("`")[1] for _, _, place in LIMITS if place.startswith("setting")}
    assert settings
    assert settings <= listed
