"""Alerts: one structured line in the log, and a call of a webhook if one is set, for each thing that needs a person.

The names are stable: rules in a log workspace search for them, `manage.py status` and `open list` show them, and
docs/operations.md has the remedy of each.
"""

from __future__ import annotations

import json
import logging
from enum import StrEnum
from typing import TYPE_CHECKING

from shared.errors import StackTopicsError

if TYPE_CHECKING:
    from shared.services import Services

log = logging.getLogger("stacktopics.alerts")


class Alert(StrEnum):
    """What needs a person."""

    FILE_QUARANTINED = "file_quarantined"
    FILE_FAILED = "file_failed"
    FILE_UNFINISHED = "file_unfinished"
    FILE_STUCK = "file_stuck"
    MESSAGE_UNREADABLE = "message_unreadable"
    MODEL_DAMAGED = "model_damaged"
    REFERENCE_FAILED = "reference_failed"
    DAY_DAMAGED = "day_damaged"
    TRAINING_INCOMPLETE = "training_incomplete"


REMEDIES = {
    Alert.FILE_QUARANTINED: "upload the mended file under the same name, or `manage.py open discard {subject}`",
    Alert.FILE_FAILED: "mend the cause, then `manage.py open retry {subject}`; or `manage.py open discard {subject}`",
    Alert.FILE_UNFINISHED: "end the upload, upload the file again, or delete the blob",
    Alert.FILE_STUCK: "mend the cause; `manage.py reconcile` then goes on with it",
    Alert.MESSAGE_UNREADABLE: "`manage.py open discard {subject}`",
    Alert.MODEL_DAMAGED: "`manage.py models rollback`, or `manage.py models add` a whole copy of it",
    Alert.REFERENCE_FAILED: "mend the cause and start copy_reference again",
    Alert.TRAINING_INCOMPLETE: "upload these files again, or `manage.py withdraw` them; the next training clears this",
    Alert.DAY_DAMAGED: "`manage.py replay --day {subject}`",
}


def remedy(alert: Alert, subject: str) -> str:
    """What a person does about it."""
    return REMEDIES[alert].format(subject=subject)


def alert_text(alert: Alert, subject: str, reason: str) -> str:
    """The log line of an alert: `alert` and one JSON object, so a file's name cannot break the line."""
    fields = {"event": alert.value, "subject": subject, "reason": reason, "remedy": remedy(alert, subject)}
    return f"alert {json.dumps(fields)}"


def raise_alert(services: Services, alert: Alert, subject: str, reason: str) -> None:
    """Write the alert to the log, and send it to the webhook if one is set.

    A failure of the webhook is logged and stops nothing.
    """
    log.error("%s", alert_text(alert, subject, reason))
    try:
        if services.webhook is not None:
            services.webhook.send(alert, subject, reason)
    except StackTopicsError as error:
        log.warning("the alert webhook was not reached: %s", error)
