"""The messages between the functions. Each says which file version it is about; the state lies in the ledger."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1


class PostsLanded(Message):
    """`posts-landed`: a version of a Posts file is in landing and waits for classification."""

    source_id: str
    version: str


class ClassificationStarted(Message):
    """`classification-runs`: look at this run; `check` counts the looks already taken."""

    source_id: str
    version: str
    attempt: int
    run_id: int
    check: int = 0
