"""How the tests find the interpreters that they need."""

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


def test_a_missing_python_skips_a_test_and_says_how_to_give_one() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"no Python 3\.99: set PYTHON399 to one, or have it on PATH"):
        make_environment("3.99", "requirements.txt")


@pytest.mark.parametrize("named", ["false", "/no/such/python", sys.executable])
def test_an_interpreter_that_does_not_run_or_has_another_version_is_passed_over(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"PYTHON{THIS_VERSION.replace('.', '')}", named)
    monkeypatch.setenv("PYTHON399", named)
    assert find_python(THIS_VERSION) == Path(sys.executable)
    assert find_python("3.99") is None


def test_the_interpreter_that_a_variable_names_comes_before_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv(f"PYTHON{THIS_VERSION.replace('.', '')}", str(python))
    assert find_python(THIS_VERSION) == python
