"""The rules of imports: the function app must be indexed fast, and a cluster does not have Azure Functions."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.places import PROJECT


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("function_app", {"pyarrow", "psycopg2", "databricks", "pydantic", "azure.storage", "azure.identity"}),
        ("classify.job", {"azure.functions", "azurefunctions", "sklearn", "psycopg2", "databricks"}),
        ("classify.train", {"azure.functions", "azurefunctions", "psycopg2", "databricks"}),
    ],
)
def test_an_entry_point_does_not_import_unneeded_packages(module: str, forbidden: set[str]) -> None:
    script = f"import sys, {module}; print('\\n'.join(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert forbidden.isdisjoint(ended.stdout.split())


def test_nothing_imports_the_entry_points_and_the_product_does_not_import_localcloud() -> None:
    rooms = ("cli", "pipeline", "ingest", "classify", "serve", "shared", "localcloud")
    files = [(room, file) for room in rooms for file in (PROJECT / room).rglob("*.py")]
    assert len(files) > 50
    for room, file in files:
        imported = re.findall(
            r"^\s*(?:from|import) (function_app|manage|localcloud|tests|bench)\b", file.read_text(), re.M
        )
        assert [name for name in imported if not (room == "localcloud" and name == "localcloud")] == [], file


def test_the_function_app_is_short_and_reads_one_variable_of_the_environment() -> None:
    lines = (PROJECT / "function_app.py").read_text().splitlines()
    assert len(lines) <= 150
    assert not re.search(r"os\.environ(?!\.get\(\"POSTS_TRIGGER_SOURCE\")", "\n".join(lines))


ROOMS = ("cli", "pipeline", "ingest", "classify", "serve", "shared", "localcloud")


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other, by Kosaraju's algorithm."""
    order: list[str] = []
    seen: set[str] = set()

    def visit(module: str, graph: dict[str, set[str]], found: list[str]) -> None:
        if module not in seen:
            seen.add(module)
            for imported in sorted(graph.get(module, ())):
                visit(imported, graph, found)
            found.append(module)

    for module in imports:
        visit(module, imports, order)
    backwards: dict[str, set[str]] = {}
    for module, imported in imports.items():
        for name in imported:
            backwards.setdefault(name, set()).add(module)
    seen.clear()
    groups: list[list[str]] = []
    for module in reversed(order):
        group: list[str] = []
        visit(module, backwards, group)
        if len(group) > 1:
            groups.append(sorted(group))
    return groups


def test_no_modules_import_each_other_in_a_circle() -> None:
    grimp = pytest.importorskip("grimp", reason="import-linter brings it")
    graph = grimp.build_graph(*ROOMS, exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    assert len(imports) > 100
    assert circles(imports) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_package_init_files_are_empty() -> None:
    """So the import of one module loads no other module of its package."""
    rooms = [PROJECT / room for room in ("cli", "pipeline", "ingest", "classify", "serve", "shared")]
    told = [file for room in rooms for file in room.rglob("__init__.py") if file.read_text().strip()]
    assert [str(file.relative_to(PROJECT)) for file in told] == [
        "ingest/dump/__init__.py"
    ]  # a package with one public interface


def test_only_the_settings_module_reads_the_environment() -> None:
    """Exceptions: the trigger's source, which a decorator needs before settings are read, and library variables."""
    rooms = [PROJECT / room for room in ROOMS if room != "localcloud"]
    reads = {
        str(file.relative_to(PROJECT)): len(re.findall(r"\bos\.(?:environ|getenv)\b", file.read_text()))
        for file in [*(file for room in rooms for file in room.rglob("*.py")), PROJECT / "function_app.py"]
    }
    assert {file: number for file, number in reads.items() if number} == {
        "function_app.py": 1,
        "shared/settings.py": 2,  # one of them in a sentence about it
        "classify/run/spark.py": 1,  # sets PYSPARK_PYTHON
        "shared/compiled.py": 1,  # checks whether a processor is set for Numba
    }


# ---- the contracts themselves ---------------------------------------------------------------------------------------

SEEDS = {
    "shared/memory.py": "import ingest.posts",
    "ingest/contracts.py": "import classify.job",
    "classify/posts/clean.py": "import classify.run.engine",
    "pipeline/launch.py": "import classify.learn.fit",
    "classify/model/files.py": "import shared.lake",
    "serve/topics.py": "import localcloud.settings",
    "serve/health.py": "import rich",
    "shared/logs.py": "import azurefunctions.extensions.base",
}
"""A wrong import for each contract of pyproject.toml, and for the two packages that must not import each other."""


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages, this file and the contracts, to which tests may add wrong imports."""
    folder = tmp_path_factory.mktemp("house")
    for room in ROOMS:
        shutil.copytree(PROJECT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__", "starter"))
    shutil.copy(PROJECT / "pyproject.toml", folder)
    (folder / "tests").mkdir()
    for file in (Path(__file__), PROJECT / "tests" / "places.py"):
        shutil.copy(file, folder / "tests")
    return folder


@contextmanager
def seeded(folder: Path, seeds: dict[str, str]) -> Iterator[None]:
    before = {name: (folder / name).read_text() for name in seeds}
    for name, line in seeds.items():
        (folder / name).write_text(f"{before[name]}\n{line}\n")
    yield
    for name, text in before.items():
        (folder / name).write_text(text)


def broken(folder: Path) -> list[str]:
    """The contracts that import-linter reports as broken in `folder`."""
    ran = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=folder, capture_output=True, text=True
    )
    assert "Contracts" in ran.stdout, ran.stdout + ran.stderr
    return re.findall(r"^(.+?) BROKEN$", re.sub(r"\n(?=[a-z])", " ", ran.stdout), re.MULTILINE)


def test_each_import_contract_is_broken_by_a_wrong_import(copied: Path) -> None:
    contracts = (PROJECT / "pyproject.toml").read_text().count("[[tool.importlinter.contracts]]")
    assert broken(copied) == []
    with seeded(copied, SEEDS):
        assert len(broken(copied)) == contracts
    with seeded(copied, {"ingest/contracts.py": SEEDS["ingest/contracts.py"]}):
        assert any(name.startswith("The command line asks the pipeline") for name in broken(copied))


def test_the_test_of_circles_fails_on_a_circle(copied: Path) -> None:
    test = f"tests/{Path(__file__).name}::{test_no_modules_import_each_other_in_a_circle.__name__}"
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    assert subprocess.run(run, cwd=copied, capture_output=True).returncode == 0
    with seeded(copied, {"ingest/contracts.py": "import ingest.posts"}):
        ran = subprocess.run(run, cwd=copied, capture_output=True, text=True)
    assert ran.returncode == 1
    assert "'ingest.contracts', 'ingest.posts'" in ran.stdout
