"""Fixtures of the tests of dumps."""

from pathlib import Path

import pytest

from ingest.dump import posts
from tests.dump_rows import row, write


@pytest.fixture
def ten_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(posts, "TASK_BYTES", 1)
    rows = [row(number, f"2012-06-{1 + number % 10:02}") for number in range(50)]
    return write(tmp_path / "dump", [*rows, b"<rwo />", row(99, Score="x", Mood="bad")])
