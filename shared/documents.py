"""Messages, records and pointers: JSON documents that must have the shape of their pydantic model."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.errors import BadInput

Document = TypeVar("Document", bound=BaseModel)


class Record(BaseModel):
    """A document that is changed in place. Fields that this version does not know, of a newer app that was rolled back,
    are read and written back as they are."""

    model_config = ConfigDict(extra="allow")


def decode(kind: type[Document], data: bytes, what: str) -> Document:
    """The document in `data`. Raises BadInput that names `what` (a path, a queue) and every fault."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in error.errors())
        raise BadInput(f"{what} holds no {kind.__name__} ({faults}): {data[:200]!r}") from error
