"""The messages between the functions. Each says which file version it is about; the state lies in the ledger."""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.errors import BadInput


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


AnyMessage = TypeVar("AnyMessage", bound=Message)


def decode(kind: type[AnyMessage], body: bytes) -> AnyMessage:
    """The message in a queue's body. Raises BadInput with every fault; the host then moves it to the poison queue."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in error.errors())
        raise BadInput(f"not a {kind.__name__} message ({faults}): {body[:200]!r}") from error
