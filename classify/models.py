"""The topic models in the lake: `models/topics/<version>/…` and the pointer to the current one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel

from classify.card import CARD, REPORT
from shared import paths
from shared.documents import decode
from shared.errors import Conflict, ModelError, NotFound

if TYPE_CHECKING:
    from classify.model import TopicModel
    from classify.quantify import Reference
    from shared.lake import Lake

STARTER = Path(__file__).parent / "starter"
"""The model that makes a first run possible; its card says what it was trained on."""


class CurrentModel(BaseModel):
    """Which version new classifications use, which ones they used before (the last one last), and why it changed."""

    version: str
    history: list[str] = []
    reason: str = ""
    promoted_at: datetime


def current_model(lake: Lake) -> tuple[CurrentModel, str]:
    """The pointer and its ETag; a lake without any model gets the starter."""
    try:
        data, etag = lake.read_with_etag(paths.CURRENT_MODEL)
    except NotFound:
        _install_starter(lake)
        data, etag = lake.read_with_etag(paths.CURRENT_MODEL)
    return decode(CurrentModel, data, paths.CURRENT_MODEL), etag


def current_version(lake: Lake) -> str:
    """The version that new classifications use."""
    return current_model(lake)[0].version


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


def store_model(lake: Lake, model: TopicModel, report: dict[str, Any], card: str) -> str:
    """Write a model, its report and its card; returns its version. The same model is the same version."""
    beside = {REPORT: json.dumps(report, indent=1).encode(), CARD: card.encode()}
    _put_files(lake, model.version, {**beside, **model.to_files()})
    return model.version


def _put_files(lake: Lake, version: str, files: dict[str, bytes]) -> None:
    """The manifest last: a folder with a manifest is whole."""
    from classify.model import MANIFEST

    for name in sorted(files, key=lambda name: name == MANIFEST):
        lake.put(f"{paths.model(version)}/{name}", files[name])


class Stored(NamedTuple):
    """A model in the lake: what it was trained on, and its report (empty for one that has none)."""

    version: str
    trained_on: dict[str, Any]
    report: dict[str, Any]


def versions(lake: Lake) -> Iterator[Stored]:
    """Every version, oldest first. Raises ModelError for one that is damaged."""
    manifests = (info for info in lake.list("models/topics") if info.path.endswith("/model.json"))
    for info in sorted(manifests, key=lambda info: info.last_modified):
        version = info.path.split("/")[-2]
        try:
            report = lake.read(f"{paths.model(version)}/{REPORT}")
        except NotFound:
            report = b"{}"
        try:
            yield Stored(version, json.loads(lake.read(info.path))["trained_on"], json.loads(report))
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{paths.model(version)} is damaged: {error!r}") from error


def promote(lake: Lake, version: str, reason: str, instead_of: tuple[CurrentModel, str] | None = None) -> CurrentModel:
    """Let new classifications use `version`.

    `instead_of` is the pointer and its ETag that this was decided by; else what is there now.
    Raises ModelError when the version is damaged, Conflict when the current model has changed since.
    """
    load_model(lake, version)
    current, etag = instead_of or current_model(lake)
    if current.version == version:
        return current
    return _move(lake, version, [*current.history, current.version], reason, etag)


def rollback(lake: Lake) -> CurrentModel:
    """Go back to the version before, and the next time to the one before that.

    Raises ModelError when there is none or it is damaged, Conflict when the current model changes meanwhile.
    """
    current, etag = current_model(lake)
    if not current.history:
        raise ModelError(f"{current.version} is the first model: there is none before it")
    *earlier, before = current.history
    load_model(lake, before)
    return _move(lake, before, earlier, f"rolled back from {current.version}", etag)


def _move(lake: Lake, version: str, history: list[str], reason: str, etag: str) -> CurrentModel:
    pointer = CurrentModel(version=version, history=history, reason=reason, promoted_at=datetime.now(UTC))
    lake.put(paths.CURRENT_MODEL, pointer.model_dump_json(indent=1).encode(), if_match=etag)
    return pointer


def _install_starter(lake: Lake) -> None:
    version = str(json.loads((STARTER / "model.json").read_text())["version"])
    _put_files(lake, version, {file.name: file.read_bytes() for file in STARTER.iterdir()})
    first = CurrentModel(version=version, reason="the starter", promoted_at=datetime.now(UTC))
    try:
        lake.put(paths.CURRENT_MODEL, first.model_dump_json(indent=1).encode(), if_absent=True)
    except Conflict:
        return
