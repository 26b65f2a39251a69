"""The messages between the functions. Each only names a file version; its next step is read from its record."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    """Names a file version that may have a next step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    source_id: str
    version: str


class PostsLanded(Message):
    """`posts-landed`: a version of a Posts file is in landing and waits for classification."""


class ClassificationStarted(Message):
    """`classification-runs`: a run is due for a look."""
