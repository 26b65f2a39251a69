"""Landing one Posts file: check, land, archive, record, enqueue, and only then delete the source.

Every step may be repeated, by the same worker or another; the order is what keeps a post from being lost:
the source goes last, after the message that carries its classification on.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, cast

from shared import paths
from shared.errors import BadInput, Conflict, NotFound, TransientError
from shared.ledger import ENDED, MAX_REASON, FileRecord, Source, State
from shared.messages import PostsLanded
from shared.storage import BlobVersion, SourceBlob

if TYPE_CHECKING:
    from typing import BinaryIO

    from shared.services import Services

log = logging.getLogger("stacktopics.ingest.posts")


def land_posts(services: Services, blob: SourceBlob) -> FileRecord | None:
    """Land the file that lies in `blob` now; returns its record, or None when nothing lies there any more.

    A file that breaks its contract goes to quarantine with a reason and is not retried.
    Raises TransientError for what a later delivery of the same event may cure.
    """
    try:
        version = blob.version()
    except NotFound:
        log.info("%s is gone: an earlier delivery of its event has landed it", blob.what)
        return None
    source_id = paths.source_id(version.container, version.name)
    version_id = paths.version_of(version.last_modified, version.etag)
    record = services.ledger.find(source_id, version_id)
    if record is None:
        try:
            record = services.ledger.add(_taken_in(services, blob, version, source_id, version_id))
        except (Conflict, NotFound) as error:
            raise TransientError(f"{blob.what} changed while it was being landed: {error}") from error
    if record.state in ENDED:
        services.lake.delete(paths.landing(source_id, version_id))  # a slow worker may have copied it anew
    if record.state is State.LANDED:
        services.posts_landed.send(PostsLanded(source_id=source_id, version=version_id))
    if not blob.delete(version):
        log.info("%s: the source was gone, or had a newer content, which has an event of its own", blob.what)
    return record


def _taken_in(
    services: Services, blob: SourceBlob, version: BlobVersion, source_id: str, version_id: str
) -> FileRecord:
    """Copy the file to where it belongs and describe it."""
    now = services.now()
    record = FileRecord(
        source_id=source_id,
        version=version_id,
        source=Source(
            container=version.container,
            name=version.name,
            etag=version.etag,
            last_modified=version.last_modified,
            size=version.size,
        ),
        state=State.LANDED,
        file_day=paths.file_day(version.name, version.last_modified),
        times={"seen": now},
    )
    try:
        rows = _rows(blob, version)
    except BadInput as fault:
        return _quarantined(services, blob, version, record, str(fault)[:MAX_REASON])
    landing = paths.landing(source_id, version_id)
    archive = paths.archive(record.file_day, source_id, version_id)
    share = services.settings.landing_proof_share
    landed = services.lake.copy_from(blob, version, landing, share)
    services.lake.copy(landing, archive, share, landed)
    log.info("%s landed: %d rows, %d bytes, version %s", blob.what, rows, version.size, version_id)
    return record.entered(State.LANDED, services.now(), rows=rows, archive=archive)


def _rows(blob: SourceBlob, version: BlobVersion) -> int:
    from ingest.contracts import check_posts

    return check_posts(cast("BinaryIO", blob.open(version)), version.name).rows


def _quarantined(
    services: Services, blob: SourceBlob, version: BlobVersion, record: FileRecord, reason: str
) -> FileRecord:
    """Keep the bytes and say why; the reason is written first, so that no file lies there without one."""
    target = paths.quarantine(record.source_id, record.version, version.name)
    why = paths.quarantine_reason(record.source_id, record.version)
    services.lake.put(why, record.source.refused_because(reason))
    services.lake.copy_from(blob, version, target, services.settings.landing_proof_share)
    log.error("%s is in quarantine (%s): %s", blob.what, target, reason)
    return record.entered(State.QUARANTINED, services.now(), quarantine=target, reason=reason)
