"""The files of requirements: what is wanted is what is locked, and the job names what it imports."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.places import PROJECT
from tests.reach import modules_reached, source_of

LOCKED = ["requirements", "requirements-local", "requirements-dev", "requirements-bench"]
PYTHONS = ["3.11", "3.12", "3.13"]


def wanted(file: Path) -> list[Requirement]:
    """What a file of requirements names, and the files that it includes."""
    found: list[Requirement] = []
    for line in file.read_text().splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r "):
            found += wanted(file.parent / text.removeprefix("-r ").strip())
        elif text and not text.startswith("-"):
            found.append(Requirement(text))
    return found


def locked(file: Path) -> list[tuple[Requirement, int]]:
    """What a compiled file pins, and the number of hashes of each."""
    entries = re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"^\s*#.*\n", "", file.read_text(), flags=re.MULTILINE).strip())
    return [(Requirement(entry.split("\\")[0].strip()), entry.count("--hash=sha256:")) for entry in entries]


@pytest.mark.parametrize("name", LOCKED)
def test_every_pin_has_hashes_and_names_no_registry(name: str) -> None:
    text = (PROJECT / f"{name}.txt").read_text()
    pins = locked(PROJECT / f"{name}.txt")
    assert len(pins) > 20
    assert [str(pin) for pin, hashes in pins if not hashes or not str(pin.specifier).startswith("==")] == []
    assert not re.search(r"https?://|--(?:extra-)?index-url|file:", text)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", LOCKED)
def test_what_is_wanted_is_locked_on_each_python(name: str, python: str) -> None:
    here: dict[str, str] = {name: str(value) for name, value in default_environment().items()}
    here |= {"python_version": python, "python_full_version": f"{python}.1"}
    pins = {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin, _ in locked(PROJECT / f"{name}.txt")
        if pin.marker is None or pin.marker.evaluate(here)
    }
    for requirement in wanted(PROJECT / f"{name}.in"):
        if requirement.marker is None or requirement.marker.evaluate(here):
            assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


DISTRIBUTIONS = {
    "azure.core": "azure-core",
    "azure.identity": "azure-identity",
    "azure.storage.blob": "azure-storage-blob",
    "azure.storage.extensions": "azure-storage-extensions",
    "azure.storage.filedatalake": "azure-storage-file-datalake",
    "pydantic_settings": "pydantic-settings",
}
"""Modules that are called otherwise than what brings them."""
OF_THE_RUNTIME = {"pyspark", "py4j"}


def test_the_job_names_what_it_imports() -> None:
    modules = {
        module
        for entry in ("classify.job", "classify.train")
        for module in modules_reached(entry)
        if source_of(module) is None and module.partition(".")[0] not in sys.stdlib_module_names
    }

    def distribution(module: str) -> str:
        named = (name for prefix, name in DISTRIBUTIONS.items() if f"{module}.".startswith(f"{prefix}."))
        return next(named, module.partition(".")[0])

    imported = {distribution(module) for module in modules} - OF_THE_RUNTIME
    assert imported == {requirement.name for requirement in wanted(PROJECT / "classify" / "requirements.txt")}


def test_what_the_job_names_has_no_exact_version() -> None:
    """A Databricks runtime brings most of it, in versions of its own."""
    operators = {
        each.operator for named in wanted(PROJECT / "classify" / "requirements.txt") for each in named.specifier
    }
    assert operators <= {">=", "<"}
