"""What is wrong until something is mended, and is no file: the last weekly copy, the current model, the last training.

Each is read anew whenever somebody asks, so it is gone from every list as soon as it is mended.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pydantic import BaseModel

from classify.registry.models import check_stored, current_model
from classify.registry.summary import Training
from ingest.reference.records import last_record
from shared import paths
from shared.alerts import Alert
from shared.documents import decode
from shared.errors import ModelError

if TYPE_CHECKING:
    from shared.lake import FileInfo
    from shared.services import Services


COPY_DEAD_AFTER = timedelta(hours=1, minutes=5)
"""A copy that began so long ago has ended, or died: functionTimeout in host.json is an hour."""


class Waiting(BaseModel):
    """Something that waits for a person, and since when."""

    alert: Alert
    subject: str
    since: datetime
    reason: str


def conditions(services: Services) -> list[Waiting]:
    """What is wrong now."""
    return [*_reference(services), *_model(services), *_training(services)]


def _waiting(alert: Alert, subject: str, since: datetime, reason: str) -> Waiting:
    return Waiting(alert=alert, subject=subject, since=since, reason=reason)


def _reference(services: Services) -> Iterator[Waiting]:
    """The last weekly copy, if it failed."""
    copied = last_record(services.lake)
    if copied is None or copied.state == "published":
        return
    is_old = services.now() - copied.started_at > COPY_DEAD_AFTER
    if copied.state != "publishing" or copied.reason or is_old:
        reason = copied.reason or "it began and did not end"
        yield _waiting(Alert.REFERENCE_FAILED, f"the reference copy of {copied.week}", copied.started_at, reason)


def _model(services: Services) -> Iterator[Waiting]:
    """The current topic model, if it is damaged."""
    current, _ = current_model(services.lake)
    try:
        check_stored(services.lake, current.version)
    except ModelError as error:
        yield _waiting(Alert.MODEL_DAMAGED, current.version, current.promoted_at, str(error))


def last_training(services: Services) -> Training | None:
    """What came of the last training run; None before the first."""
    newest = _newest_training(services)
    return decode(Training, services.lake.read(newest.path), newest.path) if newest else None


def _newest_training(services: Services) -> FileInfo | None:
    return max(services.lake.list(paths.TRAINING_RECORDS), key=lambda info: info.last_modified, default=None)


def _training(services: Services) -> Iterator[Waiting]:
    """The last training run, if it could not read all of the archive."""
    training, file = last_training(services), _newest_training(services)
    if training is not None and file is not None and training.damaged:
        reason = f"not learned from: {'; '.join(training.damaged)}"
        yield _waiting(Alert.TRAINING_INCOMPLETE, training.candidate, file.last_modified, reason)
