"""The functions host compared with Microsoft's worker library, on every function of the app and of the host's test app.

Microsoft's azure-functions-runtime needs Python 3.13.
"""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from localcloud import azurite
from localcloud.cloud import LocalCloud
from localcloud.processes import PROJECT_ROOT
from tests.environments import make_environment
from tests.integration.host_cloud import APP as TEST_APP

RUNTIME = ("azure-functions-runtime==1.3.0", "azurefunctions-extensions-bindings-blob==1.1.2")
PROBE = Path(__file__).with_name("runtime_parity_probe.py")
FUNC_START = Path(__file__).with_name("func_start_probe.py")
STORAGE = azurite.connection_string(Blob=1, Queue=1)
SETTINGS = {
    "REFERENCE_SCHEDULE": "0 0 2 * * 1",
    "RETRAIN_SCHEDULE": "0 0 4 * * 0",
    "RECONCILE_SCHEDULE": "0 * * * * *",
    "POSTS_CONTAINER": "posts",
    "POSTS_LANDED_QUEUE": "posts-landed",
    "CLASSIFICATION_RUNS_QUEUE": "classification-runs",
    "POSTS_STORAGE": STORAGE,
    "QUEUES_STORAGE": STORAGE,
    "LAKE_STORAGE": STORAGE,
    "POSTGRES_HOST": "localhost",
    "POSTGRES_DATABASE": "none",
    "POSTGRES_USER": "none",
    "DATABRICKS_HOST": "http://localhost",
    "DATABRICKS_JOB_ID": "1",
    "TICK_SCHEDULE": "*/30 * * * * *",
    "INBOX": "inbox",
    "WORK_QUEUE": "work",
    "DATA": STORAGE,
}
APPS = [
    pytest.param(PROJECT_ROOT / "function_app.py", id="the-app"),
    pytest.param(TEST_APP, id="the-test-app"),
]


@pytest.fixture(scope="module")
def python313() -> Path:
    """A Python 3.13 with Microsoft's runtime and the app's requirements."""
    return make_environment("3.13", "requirements.txt", *RUNTIME)


@functools.cache
def probe(python: Path, side: str, app: Path) -> dict[str, Any]:
    """The results of one side under one interpreter."""
    environment = {**os.environ, **SETTINGS, "PYTHONPATH": str(PROJECT_ROOT)}
    command = [str(python), str(PROBE), side, str(app)]
    ended = subprocess.run(
        command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    seen: dict[str, Any] = json.loads(ended.stdout)
    return seen


@pytest.mark.timeout(300)
@pytest.mark.parametrize("app", APPS)
def test_indexing_and_values_equal_those_of_the_runtime_of_microsoft(python313: Path, app: Path) -> None:
    theirs = probe(python313, "runtime", app)
    assert theirs
    assert probe(python313, "host", app) == theirs


@pytest.mark.timeout(300)
@pytest.mark.parametrize("app", APPS)
def test_this_interpreter_gives_the_same_results(python313: Path, app: Path) -> None:
    """Python 3.11 and 3.12 run an older azure-functions: the same functions, bindings and values."""
    assert probe(Path(sys.executable), "host", app) == probe(python313, "host", app)


@pytest.mark.timeout(300)
def test_func_start_runs_the_app_with_the_settings_file_of_the_local_cloud(
    python313: Path, local_cloud: LocalCloud
) -> None:
    """Without Core Tools: their worker gets only the settings of that file, and the test calls /api/health."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = [str(python313), str(FUNC_START), str(local_cloud.settings_file), str(PROJECT_ROOT / "function_app.py")]
    ended = subprocess.run(
        command,
        cwd=PROJECT_ROOT,
        env={**environment, "PYTHONPATH": str(PROJECT_ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    seen = json.loads(ended.stdout)
    named = {
        setting
        for bindings in seen["functions"].values()
        for binding in bindings
        for value in binding.values()
        if isinstance(value, str)
        for setting in [*re.findall("%(.+?)%", value), *([value] if value == binding.get("connection") else [])]
    }
    assert {"POSTS_STORAGE", "POSTS_CONTAINER", "REFERENCE_SCHEDULE"} <= named <= {*seen["settings"]}
    (blobs,) = [binding for binding in seen["functions"]["land_posts"] if binding["type"] == "blobTrigger"]
    assert blobs["source"] == "LogsAndContainerScan"
    assert seen["health"]["status"] == "200"
    assert json.loads(seen["health"]["body"])["healthy"] is True
