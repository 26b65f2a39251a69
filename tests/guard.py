"""Fails a test run that changed files of the user in the project's folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.places import PROJECT

STATE = ".localcloud"
OF_THE_USER = ("local.settings.json*", STATE, ".import-dump")


@pytest.fixture(scope="session", autouse=True)
def what_belongs_to_the_user() -> Iterator[None]:
    """The settings, the local cloud and the imports of the project's folder are the same after the tests.

    Changes by a running local cloud of the user are allowed.
    """
    before, was_running = state_of(PROJECT), is_running(PROJECT / STATE)
    yield
    after = state_of(PROJECT)
    changed = [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
    if was_running or is_running(PROJECT / STATE):
        changed = [path for path in changed if path.split("/")[0] != STATE]
    if changed:
        pytest.fail(f"the tests changed files of the user in {PROJECT}: {', '.join(sorted(changed))}")


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each of the user's files, by path."""
    tops = [top for pattern in OF_THE_USER for top in folder.glob(pattern)]
    files = [file for top in tops for file in (top, *top.rglob("*"))]
    return {str(file.relative_to(folder)): (file.lstat().st_size, file.lstat().st_mtime_ns) for file in files}


def is_running(state: Path) -> bool:
    """Whether a local cloud of the user runs on a state folder."""
    try:
        with (state / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
