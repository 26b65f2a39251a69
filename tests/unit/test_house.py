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
    rooms = ("ingest", "classify", "serve", "shared", "localcloud")
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
