"""Output for people: on a terminal, or as plain lines if there is no terminal or NO_COLOR is set."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from rich.console import Console

from cli.screen import Screen
from localcloud.processes import PROJECT_ROOT


def screen() -> Screen:
    """A screen that writes no escape codes into a pipe or a file, or if NO_COLOR is set."""
    plain = bool(os.environ.get("NO_COLOR"))
    return Screen(Console(force_terminal=False if plain else None, highlight=False, markup=False, emoji=False))


def shown(path: Path) -> str:
    """A path as a user would type it: relative if it is below the current folder."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def program(*words: str) -> str:
    """The command line that starts this Python interpreter from the current folder."""
    found = shutil.which("python")
    python = "python" if found and Path(found) == Path(sys.executable) else shown(Path(sys.executable))
    return shlex.join([python, *words])


def manage(command: str, settings_file: Path) -> str:
    """The command line of `manage.py COMMAND` with a settings file."""
    default = Path.cwd() / "local.settings.json"
    options = [] if settings_file == default else ["--settings", shown(settings_file)]
    return f"{program(shown(PROJECT_ROOT / 'manage.py'))} {command} {shlex.join(options)}".rstrip()
