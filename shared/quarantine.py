"""Keeping the bytes of a file that was refused, with the reason beside them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from shared import paths

if TYPE_CHECKING:
    from shared.ledger import FileRecord
    from shared.services import Services

log = logging.getLogger("stacktopics.quarantine")


def quarantine(services: Services, record: FileRecord, reason: str, copy: Callable[[str, float], object]) -> str:
    """Write why a file version is refused, then have `copy` bring its bytes beside that; returns their path.

    `copy` gets the path and the share of the copy that it is to prove. The reason is first, so that no file lies there
    without one.
    """
    target = paths.quarantine(record.source_id, record.version, record.source.name)
    services.lake.put(paths.quarantine_reason(record.source_id, record.version), record.source.refused_because(reason))
    copy(target, services.settings.landing_proof_share)
    log.warning("%s is in quarantine (%s): %s", record.source.name, target, reason)
    return target
