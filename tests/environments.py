"""Python environments with the packages of users, without the packages that only tests need.

uv makes each one once, in `.tools/environments/` of the project, and again when a file of requirements, the packages or
the interpreter changes. An interpreter of another version than the running one is searched first in an environment
variable such as PYTHON312, then on PATH, then in pyenv's folder. A test whose interpreter is missing is skipped.
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
from tests.places import PROJECT

VERSIONS = ("3.11", "3.12", "3.13")
"""All versions of Python that the project supports."""
THIS_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
EVERY_VERSION = [
    pytest.param(
        version,
        marks=() if version == THIS_VERSION else (pytest.mark.thorough, pytest.mark.xdist_group(f"Python {version}")),
    )
    for version in VERSIONS
]
"""Parameters of a test: the running interpreter's version, and in `make test-all` the others. The tests of one version
share their environment, so one process runs them."""


def make_environment(version: str, *wanted: str) -> Path:
    """The interpreter of an environment with exactly these packages and those of these compiled requirements files.

    Skips the test if no interpreter of the version is found. Raises CalledProcessError if uv fails.
    """
    base = find_python(version)
    if base is None:
        pytest.skip(
            f"Python {version} is missing: set {_variable(version)} to its path, or install it on PATH or in pyenv"
        )
    files = [name for name in wanted if name.endswith(".txt")]
    packages = [word for name in wanted for word in (("-r", name) if name in files else (name,))]
    key = hashlib.sha256(repr([_answer(base), packages, [(PROJECT / name).read_bytes() for name in files]]).encode())
    home = TOOLS / "environments" / f"{version}-{Path(wanted[0]).stem}{'-and-more' if len(wanted) > 1 else ''}"
    python, stamp = home / "bin" / "python", home / "made-of.sha256"
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_name(f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other processes of the test run may need the same environment
        if not stamp.exists() or stamp.read_text() != key.hexdigest():
            shutil.rmtree(home, ignore_errors=True)
            _uv("venv", "--seed", "--python", str(base), str(home))
            _uv("pip", "install", "--compile-bytecode", "--python", str(python), *packages)
            stamp.write_text(key.hexdigest())
    return python


@functools.cache
def find_python(version: str) -> Path | None:
    """An interpreter of that version; None if there is none."""
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
    """Version and folder of an interpreter; an empty text if it does not run.

    pyenv's `python3.13` on PATH, for example, does not run while pyenv selects another version.
    """
    question = "import platform, sys; print(platform.python_version(), sys.base_prefix)"
    return subprocess.run([python, "-c", question], capture_output=True, text=True, check=False).stdout


def _uv(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "uv", *arguments, "-q"], cwd=PROJECT, check=True)
