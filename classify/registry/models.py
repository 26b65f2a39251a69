"""The topic models in the lake: `models/topics/<version>/…` and the pointer to the current one."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel

from classify.model.files import ARRAYS, CALIBRATION, MANIFEST, is_version, read_manifest
from classify.registry.card import CARD, EVALUATION
from shared import paths
from shared.alerts import Alert, alert_text
from shared.catalog import move_pointer, read_pointer
from shared.documents import decode
from shared.errors import BadInput, Conflict, ModelError, NotFound

if TYPE_CHECKING:
    from classify.model.model import TopicModel
    from classify.model.quantify import Behaviour
    from shared.lake import Lake

log = logging.getLogger("stacktopics.classify.registry.models")

STARTER = Path(__file__).parents[1] / "starter"
"""The model for the first runs; its card describes its training posts."""


class CurrentModel(BaseModel):
    """The version that new classifications use, the versions before it (newest last), and why it changed."""

    version: str
    history: list[str] = []
    reason: str = ""
    promoted_at: datetime


def current_model(lake: Lake) -> tuple[CurrentModel, str]:
    """The pointer and its ETag. A lake without a model gets the starter model. Raises Conflict if the pointer is
    deleted meanwhile."""
    current, etag = read_pointer(lake, CurrentModel, paths.CURRENT_MODEL)
    if current is None:
        _install_starter(lake)
        current, etag = read_pointer(lake, CurrentModel, paths.CURRENT_MODEL)
    if current is None or etag is None:
        raise Conflict(f"{paths.CURRENT_MODEL} was deleted right after it was written")
    return current, etag


def current_version(lake: Lake) -> str:
    """The version that new classifications use."""
    return current_model(lake)[0].version


def whole_model(lake: Lake) -> str:
    """The version that new classifications use; if it is damaged, the newest undamaged one before it.

    Raises ModelError when every version is damaged.
    """
    current, _ = current_model(lake)
    faults: list[str] = []
    for version in (current.version, *reversed(current.history)):
        try:
            check_stored(lake, version)
        except ModelError as error:
            faults.append(str(error))
            continue
        if faults:
            log.error("%s", alert_text(Alert.MODEL_DAMAGED, current.version, f"{faults[0]}; {version} is used instead"))
        return version
    raise ModelError(f"every topic model in the lake is damaged: {'; '.join(faults)}")


def check_stored(lake: Lake, version: str) -> None:
    """Raises ModelError unless every file of a version matches its manifest. Unchanged files are read only once."""
    names = (MANIFEST, ARRAYS, CALIBRATION)
    found = [lake.stat(f"{paths.model(version)}/{name}") for name in names]
    missing = [name for name, info in zip(names, found, strict=True) if info is None]
    if missing:
        raise ModelError(f"model {version} is incomplete: {', '.join(missing)} missing in {paths.model(version)}")
    _checked_once(lake, version, tuple(info.etag for info in found if info))


@lru_cache(maxsize=32)
def _checked_once(lake: Lake, version: str, etags: tuple[str, ...]) -> None:
    """Check the files that have these ETags. Reading and hashing 2 MB of a model of 100 topics takes 15 ms."""
    del etags
    _files(lake, version, ARRAYS, CALIBRATION)


def known_topics(lake: Lake) -> tuple[str, list[str]]:
    """The current version and its topics, most frequent in training first, `other` last. Raises ModelError if it is
    missing or damaged."""
    version = current_version(lake)
    return version, list(read_manifest(_files(lake, version)).topics)


def load_model(lake: Lake, version: str) -> TopicModel:
    """Read one version of the model. Raises ModelError when it is missing, damaged or another version."""
    from classify.model.model import TopicModel

    return TopicModel.from_files(_files(lake, version, ARRAYS, CALIBRATION))


def load_behaviour(lake: Lake, version: str) -> Behaviour:
    """The behaviour of one version, which counting uses: it reads the manifest and the calibration, not the weights.

    Raises ModelError when the version is missing, damaged or another version.
    """
    from classify.model.quantify import Behaviour

    files = _files(lake, version, CALIBRATION)
    return Behaviour.from_files(files[MANIFEST], files[CALIBRATION])


def _files(lake: Lake, version: str, *names: str) -> dict[str, bytes]:
    """The manifest of a model and the files named. Raises ModelError if one is missing or belongs to another model."""
    folder = paths.model(version)
    try:
        files = {MANIFEST: lake.read(f"{folder}/{MANIFEST}")}
    except NotFound as error:
        raise ModelError(f"there is no model {version} in {folder}") from error
    if (found := read_manifest(files).version) != version:
        raise ModelError(f"{folder} holds {found}, not the model {version!r}")
    try:
        return files | {name: lake.read(f"{folder}/{name}") for name in names}
    except NotFound as error:
        raise ModelError(f"model {version} is incomplete: {error}") from error


def store_model(lake: Lake, model: TopicModel, evaluation: dict[str, Any], card: str) -> str:
    """Write a model, its evaluation and its card; returns its version. The same model has the same version."""
    beside = {EVALUATION: json.dumps(evaluation, indent=1).encode(), CARD: card.encode()}
    _put_files(lake, model.version, {**beside, **model.to_files()})
    return model.version


def _put_files(lake: Lake, version: str, files: dict[str, bytes]) -> None:
    """Write the manifest last: a folder with a manifest is complete."""
    for name in sorted(files, key=lambda name: name == MANIFEST):
        lake.put(f"{paths.model(version)}/{name}", files[name])


def add_model(lake: Lake, folder: Path) -> str:
    """Write the model in a folder to the lake, with its evaluation and card if they exist; returns its version.

    A version that the lake already has undamaged stays unchanged. Raises ModelError when the folder's model is missing
    or damaged, BadInput when its evaluation is invalid.
    """
    from classify.model.model import TopicModel

    version = TopicModel.load(folder).version
    names = (MANIFEST, ARRAYS, CALIBRATION, EVALUATION, CARD)
    files = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    decode(ReportedFigures, files.get(EVALUATION, b"{}"), str(folder / EVALUATION))
    try:
        load_model(lake, version)
    except ModelError:
        _put_files(lake, version, files)
    return version


class ReportedFigures(BaseModel):
    """The figures of a model's evaluation that lists show."""

    class Days(BaseModel):
        histogram_error: float | None = None
        coverage: float | None = None

    posts: int | None = None
    hit_at_1: float | None = None
    primary_accuracy: float | None = None
    macro_f1: float | None = None
    days: Days = Days()


class Stored(NamedTuple):
    """A model in the lake: what it was trained on, and its evaluation (empty if it is missing)."""

    version: str
    trained_on: dict[str, Any]
    evaluation: dict[str, Any]


class Damaged(NamedTuple):
    """A folder with a damaged model, and what is wrong."""

    version: str
    reason: str


def versions(lake: Lake) -> Iterator[Stored | Damaged]:
    """Every version, oldest first. Reads only the manifests and evaluations."""
    manifests = (info for info in lake.list("models/topics") if info.path.endswith(f"/{MANIFEST}"))
    for info in sorted(manifests, key=lambda info: info.last_modified):
        version = info.path.split("/")[-2]
        path = f"{paths.model(version)}/{EVALUATION}"
        try:
            trained_on = read_manifest(_files(lake, version)).trained_on.model_dump(exclude_unset=True)
            evaluation = lake.read(path) if lake.stat(path) else b"{}"
            decode(ReportedFigures, evaluation, path)
            yield Stored(version, trained_on, json.loads(evaluation))
        except (BadInput, ModelError) as error:
            yield Damaged(version, str(error))


def whole_version(lake: Lake, beginning: str) -> str:
    """The version in the lake that starts with `beginning`. Raises ModelError if no version does, or several do."""
    found = [stored.version for stored in versions(lake) if stored.version.startswith(beginning)]
    if beginning in found:
        return beginning
    if len(found) == 1:
        return found[0]
    if found:
        raise ModelError(f"several models start with {beginning}: {', '.join(found)}")
    raise ModelError(f"there is no model {beginning} in the lake: `manage.py models` lists the models")


def promote(lake: Lake, version: str, reason: str, instead_of: tuple[CurrentModel, str] | None = None) -> CurrentModel:
    """Let new classifications use `version`.

    `instead_of` is the pointer on which the decision is based, and its ETag; by default the pointer is read now.
    Raises ModelError when the version is missing or damaged, Conflict when the current model has changed since.
    """
    _check_whole(lake, version)
    current, etag = instead_of or current_model(lake)
    if current.version == version:
        return current
    return _move(lake, version, [*current.history, current.version], reason, etag)


def rollback(lake: Lake) -> CurrentModel:
    """Go back to the version before the current one; the next call goes back one more.

    Raises ModelError when there is no version before or it is damaged, Conflict when the current model changes
    meanwhile.
    """
    current, etag = current_model(lake)
    if not current.history:
        raise ModelError(f"{current.version} is the first model: there is no model before it")
    *earlier, before = current.history
    _check_whole(lake, before)
    return _move(lake, before, earlier, f"rolled back from {current.version}", etag)


def _check_whole(lake: Lake, version: str) -> None:
    if not is_version(version):
        raise ModelError(f"there is no model {version} in {paths.model(version)}")
    load_model(lake, version)


def _move(lake: Lake, version: str, history: list[str], reason: str, etag: str) -> CurrentModel:
    pointer = CurrentModel(version=version, history=history, reason=reason, promoted_at=datetime.now(UTC))
    move_pointer(lake, paths.CURRENT_MODEL, pointer, etag)
    return pointer


def _install_starter(lake: Lake) -> None:
    version = str(json.loads((STARTER / "model.json").read_text())["version"])
    _put_files(lake, version, {file.name: file.read_bytes() for file in STARTER.iterdir()})
    first = CurrentModel(version=version, reason="the starter", promoted_at=datetime.now(UTC))
    try:
        move_pointer(lake, paths.CURRENT_MODEL, first, None)
    except Conflict:
        return
