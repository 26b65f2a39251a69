"""Whether the app can do its work; anybody may ask, and the answer holds no secret."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

from pydantic import BaseModel

from serve.budget import ANSWER_SECONDS, within
from serve.topics import latest_day
from shared.errors import NotFound, SettingsError, StackTopicsError

if TYPE_CHECKING:
    from shared.services import Services


class Health(BaseModel):
    """`problem` names what is wrong in general words: the answer is public, the log has the rest."""

    healthy: bool
    latest_day: date | None = None
    problem: str | None = None


def health(services: Services, seconds: float = ANSWER_SECONDS) -> Health:
    """Check the settings and read the lake's catalog, within that time."""
    try:
        lake = services.lake
        return Health(healthy=True, latest_day=within(seconds, lambda: latest_day(lake)))
    except NotFound:
        return Health(healthy=True)
    except SettingsError:
        return Health(healthy=False, problem="the settings are not complete: `manage.py settings` lists them")
    except StackTopicsError as error:
        return Health(healthy=False, problem=f"the lake does not answer: {type(error).__name__}")
