"""The files of requirements, and the versions that are locked for them."""

import itertools
import re
import sys
from functools import cache
from importlib import metadata
from typing import NamedTuple

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.environments import VERSIONS
from tests.places import PROJECT
from tests.reach import modules_reached, source_of

LAYERS = ("requirements", "requirements-local", "requirements-dev", "requirements-bench")
"""Each file includes the one before it."""
MACHINES = {"linux": "x86_64", "darwin": "arm64", "win32": "AMD64"}
OF_THE_RUNTIME = {"pyspark", "py4j"}
"""A Databricks runtime brings its own Spark, and no other version may be installed there."""


class Pin(NamedTuple):
    """One package of a compiled file: its version and environments, its hashes, and the .in files that name it."""

    requirement: Requirement
    hashes: list[str]
    named_by: set[str]


def _wanted(name: str) -> list[Requirement]:
    """The requirements of a hand-written file and of the files that it includes."""
    wanted: list[Requirement] = []
    for line in (PROJECT / name).read_text().splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r"):
            wanted += _wanted(text.removeprefix("-r").strip())
        elif text and not text.startswith("-c"):
            wanted.append(Requirement(text))
    return wanted


@cache
def _locked(layer: str) -> list[Pin]:
    text = (PROJECT / f"{layer}.txt").read_text()
    blocks = re.findall(r"^[^\s#].*\n(?:\s+.*\n?)*", text, re.M)
    return [
        Pin(
            Requirement(block.splitlines()[0].rstrip("\\ ")),
            re.findall(r"^ +--hash=sha256:([0-9a-f]{64})(?: \\)?$", block, re.M),
            set(re.findall(r"-r (\S+)", block)),
        )
        for block in blocks
    ]


def _name(requirement: Requirement) -> str:
    return canonicalize_name(requirement.name)


def _holds(requirement: Requirement, environment: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(environment)


def _environments() -> list[dict[str, str]]:
    """The marker values of each supported Python on each system."""
    here = {name: str(value) for name, value in default_environment().items()}
    return [
        here
        | {"python_version": version, "python_full_version": f"{version}.1"}
        | {"sys_platform": system, "os_name": "nt" if system == "win32" else "posix", "platform_machine": machine}
        for version, (system, machine) in itertools.product(VERSIONS, MACHINES.items())
    ]


@pytest.mark.parametrize("layer", LAYERS)
def test_each_requirement_is_locked_once_for_each_python_and_system(layer: str) -> None:
    pins, wanted = _locked(layer), _wanted(f"{layer}.in")
    assert len(wanted) >= 15
    for environment in _environments():
        versions: dict[str, list[str]] = {}
        for pin in pins:
            if _holds(pin.requirement, environment):
                specifier = str(pin.requirement.specifier)
                assert specifier.startswith("=="), pin.requirement
                versions.setdefault(_name(pin.requirement), []).append(specifier.removeprefix("=="))
        assert [name for name, found in versions.items() if len(found) > 1] == []
        for requirement in wanted:
            if _holds(requirement, environment):
                [version] = versions.get(_name(requirement), ["missing"])
                assert version != "missing", f"{requirement} is not locked: run make lock"
                assert requirement.specifier.contains(version), f"{requirement} is locked as {version}: run make lock"


@pytest.mark.parametrize("layer", LAYERS)
def test_each_locked_package_has_hashes(layer: str) -> None:
    """If one package had none, pip would refuse the whole file."""
    assert [str(pin.requirement) for pin in _locked(layer) if not pin.hashes] == []


@pytest.mark.parametrize("layer", LAYERS)
def test_packages_that_are_no_longer_required_are_not_locked(layer: str) -> None:
    named = {_name(pin.requirement) for pin in _locked(layer) if pin.named_by}
    assert named == {_name(requirement) for requirement in _wanted(f"{layer}.in")}


@pytest.mark.parametrize(("layer", "larger"), [*itertools.pairwise(LAYERS)])
def test_a_larger_file_locks_all_that_a_smaller_one_locks(layer: str, larger: str) -> None:
    small, large = (
        {(_name(pin.requirement), str(pin.requirement.specifier)) for pin in _locked(each)} for each in (layer, larger)
    )
    assert len(small) > 20
    assert small < large


@pytest.mark.parametrize("layer", LAYERS)
def test_a_compiled_file_names_neither_a_registry_nor_a_folder(layer: str) -> None:
    """The user who installs the packages decides where they come from."""
    lines = (PROJECT / f"{layer}.txt").read_text().splitlines()
    assert lines[1] == (
        f"#    uv pip compile --universal --python-version 3.11 --generate-hashes {layer}.in -o {layer}.txt"
    )
    assert [line for line in lines if re.search(r"://|index|find-links|(?<![-\w])/", line)] == []


def test_the_job_requires_exactly_what_it_imports() -> None:
    imported = _packages("classify.job") | _packages("classify.train")
    assert imported >= OF_THE_RUNTIME
    assert imported - OF_THE_RUNTIME == {_name(requirement) for requirement in _wanted("classify/requirements.txt")}


def test_the_job_requires_no_exact_version() -> None:
    """An exact version would replace the version of the Databricks runtime."""
    operators = {each.operator for wanted in _wanted("classify/requirements.txt") for each in wanted.specifier}
    assert operators == {">=", "<"}


def test_the_function_app_requires_what_it_imports() -> None:
    assert _packages("function_app") <= {_name(requirement) for requirement in _wanted("requirements.in")}


@pytest.mark.parametrize("entry", ["cli.main", "localcloud.__main__"])
def test_the_local_requirements_have_what_the_commands_import(entry: str) -> None:
    named = {_name(requirement) for requirement in _wanted("requirements-local.in")}
    assert _packages(entry) - OF_THE_RUNTIME <= named


def _packages(entry: str) -> set[str]:
    """The packages that an entry point imports from."""
    foreign = {module for module in modules_reached(entry) if not source_of(module)}
    outside = {module for module in foreign if module.partition(".")[0] not in sys.stdlib_module_names}
    assert len(outside) > 5
    return {_packages_by_module()[module] for module in outside}


@cache
def _packages_by_module() -> dict[str, str]:
    """The package of each installed module, by the module's full name, because many packages share the name `azure`."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        package = canonicalize_name(distribution.metadata["Name"])
        for file in (line.rsplit(",", 2)[0] for line in (distribution.read_text("RECORD") or "").splitlines()):
            path, _, rest = file.partition(".")
            if rest.endswith(("py", "so", "pyd")):
                found[path.removesuffix("/__init__").replace("/", ".")] = package
    return found
