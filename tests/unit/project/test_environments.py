"""How tests find the interpreters that they need."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.environments import THIS_VERSION, find_python, make_environment


@pytest.fixture(autouse=True)
def _forget_interpreters() -> Iterator[None]:
    find_python.cache_clear()
    yield
    find_python.cache_clear()


def test_a_missing_python_skips_a_test_with_a_hint() -> None:
    with pytest.raises(
        pytest.skip.Exception, match=r"Python 3\.99 is missing: set PYTHON399 to its path, or install it"
    ):
        make_environment("3.99", "requirements.txt")


@pytest.mark.parametrize("named", ["false", "/no/such/python", sys.executable])
def test_a_broken_interpreter_or_one_of_another_version_is_skipped(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"PYTHON{THIS_VERSION.replace('.', '')}", named)
    monkeypatch.setenv("PYTHON399", named)
    assert find_python(THIS_VERSION) == Path(sys.executable)
    assert find_python("3.99") is None


def test_the_interpreter_named_by_a_variable_has_priority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv(f"PYTHON{THIS_VERSION.replace('.', '')}", str(python))
    assert find_python(THIS_VERSION) == python
