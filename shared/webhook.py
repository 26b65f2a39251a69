"""Sending an alert to a webhook, as a plain JSON body or as a card that Microsoft Teams shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import SecretStr

from shared.alerts import Alert, remedy
from shared.errors import TransientError

WEBHOOK_TIMEOUT_SECONDS = 5
Format = Literal["json", "teams"]


class Webhook:
    """An address that takes alerts. The address is a secret, asked for each time: whoever knows it can post there."""

    def __init__(self, address: Callable[[], SecretStr], form: Format) -> None:
        self._address, self._form = address, form

    def send(self, alert: Alert, subject: str, reason: str) -> None:
        """Post one alert. Raises TransientError when the address does not take it."""
        import requests

        body = body_of(self._form, alert, subject, reason)
        try:
            answer = requests.post(self._address().get_secret_value(), json=body, timeout=WEBHOOK_TIMEOUT_SECONDS)
        except requests.RequestException as error:
            raise TransientError(f"no answer: {type(error).__name__}") from None  # its text holds the address
        if not answer.ok:
            raise TransientError(f"the answer was {answer.status_code}")


def body_of(form: Format, alert: Alert, subject: str, reason: str) -> dict[str, Any]:
    """The JSON body of an alert.

    For Teams it is an Adaptive Card in the envelope that Workflows' "when a Teams webhook request is received" takes
    (Microsoft, "Create incoming webhooks with Workflows").
    """
    what_to_do = remedy(alert, subject)
    if form == "json":
        return {"event": alert.value, "subject": subject, "reason": reason, "remedy": what_to_do}
    facts = [{"title": "File", "value": subject}, {"title": "Why", "value": reason}]
    card = {
        "type": "AdaptiveCard",
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "version": "1.4",
        "body": [
            {"type": "TextBlock", "size": "Medium", "weight": "Bolder", "text": f"StackTopics: {alert.value}"},
            {"type": "FactSet", "facts": [*facts, {"title": "What to do", "value": what_to_do}]},
        ],
    }
    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "content": card}
    return {"type": "message", "attachments": [attachment]}
