"""What importing costs and pulls in: the app must be indexed fast, and a cluster has no Azure Functions."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("function_app", {"pyarrow", "psycopg2", "databricks", "pydantic", "azure.storage", "azure.identity"}),
        ("classify.job", {"azure.functions", "azurefunctions", "sklearn", "psycopg2", "databricks"}),
        ("classify.train", {"azure.functions", "azurefunctions", "psycopg2", "databricks"}),
    ],
)
def test_an_import_does_not_pull_in(module: str, forbidden: set[str]) -> None:
    script = f"import sys, {module}; print('\\n'.join(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert forbidden.isdisjoint(ended.stdout.split())


def test_nothing_imports_the_entry_points_and_the_product_knows_no_localcloud() -> None:
    rooms = ("cli", "pipeline", "ingest", "classify", "serve", "shared", "localcloud")
    files = [(room, file) for room in rooms for file in (PROJECT / room).rglob("*.py")]
    assert len(files) > 50
    for room, file in files:
        imported = re.findall(
            r"^\s*(?:from|import) (function_app|manage|localcloud|tests|bench)\b", file.read_text(), re.M
        )
        assert [name for name in imported if not (room == "localcloud" and name == "localcloud")] == [], file


def test_the_app_is_thin() -> None:
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


def test_packages_say_nothing_when_they_are_imported() -> None:
    """So that importing one module of a room loads no other."""
    rooms = [PROJECT / room for room in ("cli", "pipeline", "ingest", "classify", "serve", "shared")]
    told = [file for room in rooms for file in room.rglob("__init__.py") if file.read_text().strip()]
    assert [str(file.relative_to(PROJECT)) for file in told] == ["ingest/dump/__init__.py"]  # a room with one door
