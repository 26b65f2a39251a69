"""The guard of the user's files in the project's folder, tested on another folder."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.places import PROJECT


def run(folder: Path, body: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run one test under the guard, with `folder` in place of the project's folder."""
    tests = folder / "tests"
    tests.mkdir()
    test = f"from pathlib import Path\ndef test_it():\n    folder = Path({str(folder)!r})\n    {body}\n"
    (tests / "test_it.py").write_text(test)
    program = f"""
        import fcntl, sys
        from pathlib import Path
        import pytest
        from tests import guard
        guard.PROJECT = folder = Path({str(folder)!r})
        (folder / ".localcloud").mkdir()
        (folder / ".localcloud" / "lock").touch()
        (folder / "local.settings.json").write_text("mine")
        {before}
        options = ["-p", "tests.guard", "-p", "no:cacheprovider", "--rootdir", {str(tests)!r}, "-q"]
        sys.exit(pytest.main([*options, {str(tests)!r}]))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        ("(folder / 'local.settings.json').write_text('other')", "local.settings.json"),
        ("(folder / 'local.settings.json').rename(folder / 'local.settings.json.bak')", "local.settings.json.bak"),
        ("(folder / '.localcloud' / 'new').touch()", ".localcloud/new"),
        ("(folder / '.import-dump').mkdir()", ".import-dump"),
    ],
)
def test_a_run_that_changes_a_file_of_the_user_fails_and_names_it(tmp_path: Path, body: str, changed: str) -> None:
    ended = run(tmp_path, body)
    assert ended.returncode == 1
    assert "ERROR at teardown of test_it" in ended.stdout
    assert "the tests changed files of the user" in ended.stdout
    assert changed in ended.stdout


def test_a_run_that_changes_other_files_passes(tmp_path: Path) -> None:
    assert run(tmp_path, "(folder / 'other').touch()").returncode == 0


def test_changes_by_a_running_local_cloud_of_the_user_are_ignored(tmp_path: Path) -> None:
    running = "lock = (folder / '.localcloud' / 'lock').open(); fcntl.flock(lock, fcntl.LOCK_EX)"
    body = "(folder / '.localcloud' / 'new').touch()"
    assert run(tmp_path, body, running).returncode == 0
