"""What several commands take, and the services they work with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from shared.errors import SettingsError, StackTopicsError, TransientError
from shared.services import Services
from shared.settings import LOCAL_SETTINGS_FILE

if TYPE_CHECKING:
    from shared.settings import Settings

THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
DEFAULT_FILE = Path(LOCAL_SETTINGS_FILE)

SettingsFile = Annotated[Path, typer.Option("--settings", help="Gives what the environment does not.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]


_opened: list[Services] = []


def open_services(file: Path, *, patient: bool = False) -> Services:
    """The services that the settings name.

    Unless `patient`, each call is one short attempt: somebody waits for the answer and can ask again.
    """
    services = Services(file, patient=patient)
    _opened.append(services)
    return services


def hint(error: StackTopicsError) -> str | None:
    """The next step, where nothing answers on this machine or there are no settings at all; else None."""
    if isinstance(error, SettingsError) and not DEFAULT_FILE.exists():
        return f"There is no {DEFAULT_FILE} here: `make up` starts the local cloud and writes one."
    if not isinstance(error, TransientError) or not any(is_local(services.settings) for services in _opened):
        return None
    return "The settings lead to this machine, where nothing answers: is `make up` running?"


def is_local(settings: Settings) -> bool:
    """Whether a service that the settings name is on this machine."""
    addresses = [
        settings.posts_storage.endpoint("blob"),
        settings.queues_storage.endpoint("queue"),
        settings.lake_storage.endpoint("dfs"),
        settings.databricks_host,
        f"postgresql://{settings.postgres_host}",
    ]
    return any(urlsplit(address).hostname in THIS_MACHINE for address in addresses)
