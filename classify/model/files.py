"""The stored form of a topic model, and the checks before it is used.

A model is a JSON manifest with checksums and two files of plain arrays; nothing in them can run code. Reading any
bytes ends in a model or in a ModelError.
"""

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from shared.documents import decode
from shared.errors import BadInput, ModelError

FORMAT = 2
MANIFEST, ARRAYS, CALIBRATION = "model.json", "arrays.npz", "calibration.npz"
OTHER = "other"


class TrainedOn(BaseModel):
    """Describes the training posts; further fields are allowed."""

    model_config = ConfigDict(strict=True, extra="allow")

    date: str = ""
    questions: int = Field(default=0, ge=0)


class Manifest(BaseModel):
    """`model.json`: the model's version and topics, and the SHA-256 of its other files by name."""

    model_config = ConfigDict(strict=True)

    format: int
    version: str
    topics: tuple[str, ...]
    trained_on: TrainedOn
    sha256: dict[str, str]


def read_manifest(files: Mapping[str, bytes]) -> Manifest:
    """The manifest among some files of a model. Raises ModelError if it is invalid, or if a file does not match the
    SHA-256 in it."""
    try:
        manifest = decode(Manifest, files[MANIFEST], MANIFEST)
    except BadInput as error:
        raise ModelError(f"the topic model's manifest is invalid: {error}") from error
    if manifest.format != FORMAT:
        raise ModelError(
            f"the topic model has format {manifest.format}, but this app reads format {FORMAT}: train a new model, or"
            " use the starter model (manage.py models add classify/starter, then models promote)"
        )
    check_topics(manifest.topics)
    if not is_version(manifest.version):
        raise ModelError(f"{manifest.version!r} is not a model version")
    for name in files.keys() - {MANIFEST}:
        if manifest.sha256.get(name) != hashlib.sha256(files[name]).hexdigest():
            raise ModelError(f"{name} does not match the checksum in {MANIFEST}")
    return manifest


def check_topics(topics: tuple[str, ...]) -> None:
    """Raises ModelError unless the names are distinct and `other` is the last."""
    if topics[-1:] != (OTHER,) or len(topics) < 2:
        raise ModelError(
            f"expected two topics or more, `{OTHER}` last; found {len(topics)}, the last of them {topics[-3:]}"
        )
    if len(set(topics)) < len(topics):
        raise ModelError(f"only {len(set(topics))} of {len(topics)} topics are distinct")


def version_of(topics: Sequence[str], arrays: Mapping[str, bytes]) -> str:
    """The model version that follows from the content: the topics and the files of arrays."""
    content = json.dumps(list(topics)).encode() + b"".join(arrays[name] for name in sorted(arrays))
    return f"topics{len(topics) - 1}-{hashlib.sha256(content).hexdigest()[:12]}"


def is_version(name: str) -> bool:
    """Whether the name has the form that `version_of` gives."""
    return re.fullmatch(r"topics\d+-[0-9a-f]{12}", name) is not None


def read_arrays(name: str, content: bytes) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a file in numpy's npz format. Raises ModelError for anything else."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {key: np.asarray(arrays[key]) for key in arrays.files}
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds of errors for invalid bytes
        raise ModelError(f"{name} does not hold plain arrays: {error!r}") from error


def check_array(what: str, array: npt.NDArray[Any], kind: type[np.generic], shape: tuple[int, ...]) -> None:
    """Raises ModelError unless an array has this type and shape, and only finite numbers.

    The compiled loops rely on it: they check no bounds.
    """
    if array.dtype != kind or array.shape != shape:
        raise ModelError(f"{what}: {array.dtype} {array.shape} instead of {np.dtype(kind)} {shape}")
    if not np.isfinite(array).all():
        raise ModelError(f"{what}: some numbers are not finite")
