"""Python environments that hold what users have, and nothing that only the tests bring.

They are made by uv in `.tools/environments/` of the project, once: again when a file of requirements, the packages or
the interpreter changes. Interpreters of other versions than the running one's are found where an environment variable
such as PYTHON312 names one, on PATH, or in pyenv's folder; tests that need a missing one are skipped.
"""

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from localcloud.tools import TOOLS

PROJECT = Path(__file__).parents[1]
VERSIONS = ("3.11", "3.12", "3.13")
"""All that the project supports."""
THIS_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
EVERY_VERSION = [
    pytest.param(
        version,
        marks=() if version == THIS_VERSION else (pytest.mark.thorough, pytest.mark.xdist_group(f"Python {version}")),
    )
    for version in VERSIONS
]
"""Parameters of a test: the running interpreter's version, and the others where all tests are run. Those of one version
share what they set up, so one process runs them."""


def make_environment(version: str, *wanted: str) -> Path:
    """The interpreter of an environment with these packages and what these files of requirements name, alone.

    Skips the test where no interpreter of the version is found. Raises CalledProcessError where uv fails.
    """
    base = find_python(version)
    if base is None:
        pytest.skip(f"no Python {version}: set {_variable(version)} to one, or have it on PATH or in pyenv")
    files = [name for name in wanted if name.endswith(".txt")]
    packages = [word for name in wanted for word in (("-r", name) if name in files else (name,))]
    key = hashlib.sha256(repr([_answer(base), packages, [_content(PROJECT / name) for name in files]]).encode())
    home = TOOLS / "environments" / f"{version}-{Path(wanted[0]).stem}{'-and-more' if len(wanted) > 1 else ''}"
    python, stamp = home / "bin" / "python", home / "made-of.sha256"
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_name(f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other processes of the session may want it too
        if not stamp.exists() or stamp.read_text() != key.hexdigest():
            shutil.rmtree(home, ignore_errors=True)
            _uv("venv", "--seed", "--python", str(base), str(home))
            _uv("pip", "install", "--compile-bytecode", "--python", str(python), *packages)
            stamp.write_text(key.hexdigest())
    return python


@functools.cache
def find_python(version: str) -> Path | None:
    """An interpreter of that version; None where none is found."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [
        os.environ.get(_variable(version), ""),
        sys.executable,
        f"python{version}",
        *map(str, sorted(pyenv.glob(f"versions/{version}*/bin/python{version}"), reverse=True)),
    ]
    found = [Path(python) for candidate in candidates if (python := shutil.which(candidate))]
    return next((python for python in found if _answer(python).startswith(f"{version}.")), None)


def _variable(version: str) -> str:
    return f"PYTHON{version.replace('.', '')}"


@functools.cache
def _answer(python: Path) -> str:
    """Version and folder of an interpreter; nothing where it does not run. It is asked, because pyenv's `python3.13` on
    PATH refuses to run where another version is chosen."""
    question = "import platform, sys; print(platform.python_version(), sys.base_prefix)"
    return subprocess.run([python, "-c", question], capture_output=True, text=True, check=False).stdout


def _content(requirements: Path) -> str:
    """What a file of requirements says, and those that it names."""
    text = requirements.read_text()
    named = [line.removeprefix("-r").strip() for line in text.splitlines() if line.startswith("-r")]
    return text + "".join(_content(requirements.with_name(name)) for name in named)


def _uv(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "uv", *arguments, "-q"], cwd=PROJECT, check=True)
