"""Landing one Posts file: is it whole, check, land, archive, record, enqueue, and only then delete the source.

Every step may be repeated, by the same worker or another; the order is what keeps a post from being lost:
the record comes before the first copied byte, so that whatever dies is found again, and the source goes last, after the
message that carries its classification on.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, cast
from uuid import uuid4

from ingest.whole import ends_too_early, why_not_ours, why_unfinished
from shared import paths, proof
from shared.errors import BadInput, Conflict, NotFound, StackTopicsError
from shared.ledger import AT_REST, MAX_REASON, FileRecord, FileState, Source
from shared.messages import PostsLanded
from shared.quarantine import quarantine
from shared.storage import BlobVersion, SourceBlob

if TYPE_CHECKING:
    from typing import BinaryIO

    from shared.services import Services

    Check = int | BadInput
    """The rows of a file, or how it breaks its contract."""

log = logging.getLogger("stacktopics.ingest.posts")

GONE = "it is gone or has a newer content, so another delivery has landed it, or will"
LANDING_SECONDS = 30
LANDING_BYTES_A_SECOND = 4 << 20
"""How long a delivery has a file to itself: this many seconds, and one more for each so many bytes. Copies through this
process move 130 MB a second, so a delivery that takes longer is dead."""


def land_posts(services: Services, blob: SourceBlob) -> FileRecord | None:
    """Land the file that lies in `blob` now; returns its record, or None where there is nothing to land.

    Nothing to land is: a blob that is gone, a marker or a temporary file, and a file that is not whole yet. A file that
    breaks its contract goes to quarantine with a reason and is not retried. While another delivery lands the same
    version, this one ends as a success.
    Raises TransientError for what a later delivery of the same event may cure.
    """
    try:
        version = blob.version()
    except NotFound:
        _left(blob, GONE)
        return None
    if (left := why_not_ours(version) or why_unfinished(version)) is not None:
        _left(blob, left)
        return None
    try:
        record, check = _recorded(services, blob, version)
    except (Conflict, NotFound):
        if _has_still(blob, version):  # then something else is missing, such as the lake's file system
            raise
        _left(blob, GONE)
        return None
    if record is None:
        _left(blob, "it does not end as Parquet does, so its writer has not ended")
        return None
    if record.state is FileState.ARRIVING:
        record = _arrive(services, blob, version, record, check)
        if record.state is FileState.ARRIVING:
            _left(blob, "another delivery is landing it")
            return record
    if record.state in AT_REST:
        services.lake.delete(paths.landing(record.source_id, record.version))  # a slow worker may have copied it again
    if record.state is FileState.LANDED:
        services.posts_landed.send(PostsLanded(source_id=record.source_id, version=record.version))
    if not blob.delete(version):
        log.info("%s: the source was gone, or had a newer content, which has an event of its own", blob.what)
    return record


def _has_still(blob: SourceBlob, version: BlobVersion) -> bool:
    """Whether the blob has this content now."""
    try:
        return blob.version().etag == version.etag
    except NotFound:
        return False


def _left(blob: SourceBlob, why: str) -> None:
    log.info("%s is left where it is: %s", blob.what, why)


def _recorded(services: Services, blob: SourceBlob, version: BlobVersion) -> tuple[FileRecord | None, Check | None]:
    """The record of what lies in the blob, made before anything is copied, and what its check said if it was new.

    No record is made of a file that is not whole. The record's sequence orders the versions of a source without a
    clock: the record is older than the copy, and the copy is bound to the ETag, so a version that lands was the blob's
    content after its record was made.
    """
    source_id = paths.source_id(version.container, version.name)
    version_id = paths.version_of(version.last_modified, version.etag)
    before = services.ledger.versions(source_id)
    if version_id in before:
        return services.ledger.get(source_id, version_id), None
    check = _checked(blob, version)
    if isinstance(check, BadInput) and ends_too_early(cast("BinaryIO", blob.open(version))):
        return None, None
    source = Source(
        container=version.container,
        name=version.name,
        etag=version.etag,
        last_modified=version.last_modified,
        size=version.size,
    )
    record = FileRecord(
        source_id=source_id,
        version=version_id,
        source=source,
        state=FileState.ARRIVING,
        sequence=len(before) + 1,
        file_day=paths.file_day(version.name, version.last_modified),
        times={FileState.ARRIVING.value: services.now()},
    )
    return services.ledger.add(record), check


def _checked(blob: SourceBlob, version: BlobVersion) -> Check:
    """How many rows the file has, or how it breaks its contract."""
    from ingest.contracts import check_posts

    try:
        return check_posts(cast("BinaryIO", blob.open(version)), version.name).rows
    except BadInput as fault:
        return fault


def _arrive(
    services: Services, blob: SourceBlob, version: BlobVersion, record: FileRecord, check: Check | None
) -> FileRecord:
    """Copy the file to where it belongs; where another delivery does or did that, return the record unchanged."""
    now, delivery = services.now(), uuid4().hex
    until = now + timedelta(seconds=LANDING_SECONDS + version.size / LANDING_BYTES_A_SECOND)

    def claimed(current: FileRecord) -> FileRecord | None:
        is_taken = current.working_until is not None and current.working_until > now
        if current.state is not FileState.ARRIVING or is_taken:
            return None
        return current.model_copy(update={"working_until": until, "delivery": delivery})

    record = services.ledger.change(record, claimed)
    if record.delivery != delivery:
        return record
    try:
        return _taken_in(services, blob, version, record, check or _checked(blob, version))
    except (Conflict, NotFound):
        return recover(services, _let_go(services, record))
    except Exception:
        with suppress(StackTopicsError):  # if this fails, the claim expires by itself
            _let_go(services, record)
        raise


def _taken_in(
    services: Services, blob: SourceBlob, version: BlobVersion, record: FileRecord, check: Check
) -> FileRecord:
    """Copy the file to where it belongs. Raises Conflict or NotFound when the blob has another content by then."""
    if isinstance(check, BadInput):
        reason = str(check)[:MAX_REASON]
        target = quarantine(services, record, reason, partial(proof.copy_in, services.lake, blob, version))
        return _arrived(services, record, FileState.QUARANTINED, quarantine=target, reason=reason)
    landing, archive = _landing(record), _archive(record)
    share = services.settings.landing_proof_share
    landed = proof.copy_in(services.lake, blob, version, landing, share)
    proof.copy(services.lake, landing, archive, share, landed)
    log.info("%s landed: %d rows, %d bytes, version %s", blob.what, check, version.size, record.version)
    return _arrived(services, record, FileState.LANDED, rows=check, archive=archive)


def recover(services: Services, record: FileRecord) -> FileRecord:
    """Decide about a file version that was arriving when its blob was deleted, or got a newer content.

    If the copy in landing is whole, nothing is lost and it goes on from there. Else it ends: superseded by the newer
    content, or withdrawn by whoever deleted it. While a delivery is at work, the record stays as it is.
    """
    from ingest.contracts import check_posts

    if record.working_until is not None and record.working_until > services.now():
        return record
    landing, archive = _landing(record), _archive(record)
    copied = services.lake.stat(landing)
    if copied is not None and copied.size == record.source.size:
        proof.copy(services.lake, landing, archive, 1.0)
        with services.lake.open(landing) as file:
            rows = check_posts(cast("BinaryIO", file), record.source.name).rows
        return _arrived(services, record, FileState.LANDED, rows=rows, archive=archive)
    try:
        found = services.source_blob(record.source.container, record.source.name).version()
    except NotFound:
        return _arrived(services, record, FileState.WITHDRAWN, reason="the blob was deleted before it was landed")
    if found.etag == record.source.etag:
        return record
    reason = "the blob got a newer content before this one was landed"
    return _arrived(services, record, FileState.SUPERSEDED, reason=reason)


def _arrived(services: Services, record: FileRecord, state: FileState, **changes: object) -> FileRecord:
    """The record in its new state, if it is still arriving."""

    def arrived(current: FileRecord) -> FileRecord | None:
        if current.state is not FileState.ARRIVING:
            return None
        return current.entered(state, services.now(), working_until=None, delivery=None, **changes)

    return services.ledger.change(record, arrived)


def _let_go(services: Services, record: FileRecord) -> FileRecord:
    """Release the file at once, because this delivery has failed."""

    def free(current: FileRecord) -> FileRecord | None:
        if current.delivery != record.delivery:
            return None
        return current.model_copy(update={"working_until": None, "delivery": None})

    return services.ledger.change(record, free)


def _landing(record: FileRecord) -> str:
    return paths.landing(record.source_id, record.version)


def _archive(record: FileRecord) -> str:
    return paths.archive(record.file_day, record.source_id, record.version)
