"""Putting files into the posts container and following them until each has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import IO, TYPE_CHECKING, NamedTuple

from shared import paths
from shared.errors import TransientError
from shared.ledger import AT_REST, FileRecord, FileState
from shared.storage import SOURCE_ROLE, storage_errors

if TYPE_CHECKING:
    from shared.services import Services

POLL_SECONDS = 0.25
WAIT_FOR_A_LOOK = 4
"""The pause between looks, as a multiple of the time that a look takes: following must not slow the files."""
STEPS = (FileState.LANDED, FileState.LAUNCHED, FileState.CLASSIFIED, FileState.PUBLISHED)


class Uploaded(NamedTuple):
    """A version of a file in the container: its name there, and the ids that its record will have."""

    name: str
    source_id: str
    version: str


Seen = Callable[[Uploaded, FileRecord], None]


def upload(services: Services, name: str, data: bytes | IO[bytes]) -> Uploaded:
    """Put a file into the posts container, in place of any that has this name.

    Raises NotFound when there is no such container, AccessDenied, TransientError.
    """
    container = services.settings.posts_container
    blob = services.posts_container.get_blob_client(name)
    with storage_errors(f"{container}/{name}", SOURCE_ROLE):
        found = blob.upload_blob(data, overwrite=True)
    version = paths.version_of(found["last_modified"], found["etag"])
    return Uploaded(name, paths.source_id(container, name), version)


def follow(
    services: Services,
    files: Iterable[Uploaded],
    seen: Seen,
    patience: float,
    meanwhile: Callable[[], None] = lambda: None,
) -> list[FileRecord]:
    """The records of files once all have ended; `seen` gets each record in each state that it is found in.

    `meanwhile` is called at every look and may raise. Raises TransientError when for `patience` seconds nothing
    happened to any of them: a dump of many months takes long as a whole.
    """
    files = list(files)
    records: dict[Uploaded, FileRecord] = {}
    last_change = time.monotonic()
    while waiting := [file for file in files if file not in records or records[file].state not in AT_REST]:
        began = time.monotonic()
        for file in waiting:
            record = services.ledger.find(file.source_id, file.version)
            if record is not None and record != records.get(file):
                records[file], last_change = record, time.monotonic()
                seen(file, record)
        meanwhile()
        if time.monotonic() - last_change > patience:
            raise TransientError(_stuck(waiting, records, patience))
        time.sleep(max(POLL_SECONDS, WAIT_FOR_A_LOOK * (time.monotonic() - began)))
    return [records[file] for file in files]


def _stuck(waiting: list[Uploaded], records: dict[Uploaded, FileRecord], patience: float) -> str:
    names = ", ".join(file.name for file in waiting[:3]) + (f" and {len(waiting) - 3} more" if len(waiting) > 3 else "")
    unseen = not any(file in records for file in waiting)
    why = "no function has taken them: does the Functions host run?" if unseen else "`manage.py status` says where"
    return f"nothing happened for {patience:.0f} s to {names}; {why}"
