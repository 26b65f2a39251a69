"""The topic models in the lake: `models/topics/<version>/…` and the pointer to the current one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from shared import paths
from shared.errors import Conflict, ModelError, NotFound

if TYPE_CHECKING:
    from classify.model import TopicModel
    from classify.quantify import Reference
    from shared.lake import Lake

STARTER = Path(__file__).parent / "starter"
"""The model that makes a first run possible; its card says what it was trained on."""


def current_version(lake: Lake) -> str:
    """The version that new classifications use; a lake without any model gets the starter."""
    try:
        return str(json.loads(lake.read(paths.CURRENT_MODEL))["version"])
    except NotFound:
        return _install_starter(lake)
    except (ValueError, KeyError) as error:
        raise ModelError(f"{paths.CURRENT_MODEL} does not name a version: {error!r}") from error


def load_model(lake: Lake, version: str) -> TopicModel:
    """Read one version of the model. Raises ModelError when it is missing or damaged."""
    from classify.model import TopicModel

    folder = paths.model(version)
    files = {info.path.rsplit("/", 1)[-1]: lake.read(info.path) for info in lake.list(folder)}
    if not files:
        raise ModelError(f"there is no model {version} in {folder}")
    return TopicModel.from_files(files)


def load_reference(lake: Lake, version: str) -> Reference:
    """What counting needs of one version: its manifest and calibration, not its weights. Raises ModelError."""
    from classify.model import CALIBRATION, MANIFEST
    from classify.quantify import Reference

    folder = paths.model(version)
    try:
        return Reference.from_files(lake.read(f"{folder}/{MANIFEST}"), lake.read(f"{folder}/{CALIBRATION}"))
    except NotFound as error:
        raise ModelError(f"model {version} is not whole: {error}") from error


def _install_starter(lake: Lake) -> str:
    version = str(json.loads((STARTER / "model.json").read_text())["version"])
    for file in sorted(STARTER.iterdir()):
        lake.put(f"{paths.model(version)}/{file.name}", file.read_bytes())
    try:
        lake.put(paths.CURRENT_MODEL, json.dumps({"version": version}).encode(), if_absent=True)
    except Conflict:
        return current_version(lake)
    return version
