"""What a topic model is stored as, and what is checked of it before anything is made of it.

Stored are a JSON manifest with checksums and two files of plain arrays; nothing in them can run code. Whatever else
the bytes may be, reading them ends in a model or in a ModelError.
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
    """What describes the training posts; more may stand there."""

    model_config = ConfigDict(strict=True, extra="allow")

    date: str = ""
    questions: int = Field(default=0, ge=0)


class Manifest(BaseModel):
    """`model.json`: what the model is called and knows, and the SHA-256 of its other files by name."""

    model_config = ConfigDict(strict=True)

    format: int
    version: str
    topics: tuple[str, ...]
    trained_on: TrainedOn
    sha256: dict[str, str]


def read_manifest(files: Mapping[str, bytes]) -> Manifest:
    """The manifest among some files of a model. Raises ModelError where it is none, or where a file is not the one
    that it tells the SHA-256 of."""
    try:
        manifest = decode(Manifest, files[MANIFEST], MANIFEST)
    except BadInput as error:
        raise ModelError(f"not a topic model's manifest with topics and checksums: {error}") from error
    if manifest.format != FORMAT:
        raise ModelError(
            f"the topic model has format {manifest.format}, this app reads {FORMAT}: train another, or give the lake"
            " the starter (manage.py models add classify/starter, then models promote)"
        )
    check_topics(manifest.topics)
    if not is_version(manifest.version):
        raise ModelError(f"{manifest.version!r} is no version of a topic model")
    for name in files.keys() - {MANIFEST}:
        if manifest.sha256.get(name) != hashlib.sha256(files[name]).hexdigest():
            raise ModelError(f"{name} does not match the checksum in {MANIFEST}")
    return manifest


def check_topics(topics: tuple[str, ...]) -> None:
    """Raises ModelError unless these are different names, `other` the last."""
    if topics[-1:] != (OTHER,) or len(topics) < 2:
        raise ModelError(f"topics were expected, and `{OTHER}` as the last; found {len(topics)}: {topics[-3:]}")
    if len(set(topics)) < len(topics):
        raise ModelError(f"{len(topics)} topics, of which only {len(set(topics))} differ")


def version_of(topics: Sequence[str], arrays: Mapping[str, bytes]) -> str:
    """The name of a model by its content: its topics and the files of its arrays."""
    content = json.dumps(list(topics)).encode() + b"".join(arrays[name] for name in sorted(arrays))
    return f"topics{len(topics) - 1}-{hashlib.sha256(content).hexdigest()[:12]}"


def is_version(name: str) -> bool:
    """Whether it is a name that `version_of` gives."""
    return re.fullmatch(r"topics\d+-[0-9a-f]{12}", name) is not None


def read_arrays(name: str, content: bytes) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a file in numpy's own zip format. Raises ModelError for anything else."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {key: np.asarray(arrays[key]) for key in arrays.files}
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds about bytes they cannot make sense of
        raise ModelError(f"{name} does not hold plain arrays: {error!r}") from error


def check_array(what: str, array: npt.NDArray[Any], kind: type[np.generic], shape: tuple[int, ...]) -> None:
    """Raises ModelError where an array is not what compiled loops, which check no bound, take it for."""
    if array.dtype != kind or array.shape != shape:
        raise ModelError(f"{what}: {array.dtype} {array.shape} instead of {np.dtype(kind)} {shape}")
    if not np.isfinite(array).all():
        raise ModelError(f"{what}: not all are finite numbers")
