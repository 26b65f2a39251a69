"""The settings of the local cloud, and the local.settings.json that `up` maintains.

Some settings are the cloud's own: the addresses, ports and keys of the parts that it starts. It overwrites them at each
start. All others belong to the user: the cloud adds missing ones and changes none. A file with addresses of another
machine is not changed.
"""

from __future__ import annotations

import difflib
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from localcloud import azurite, jsonc, postgres
from localcloud.processes import LOCALHOST, LocalCloudError

DATABRICKS_TOKEN = "local-databricks-token"
DEFAULTS: Mapping[str, str] = {
    "FUNCTIONS_WORKER_RUNTIME": "python",
    "POSTS_CONTAINER": "posts",
    "POSTS_TRIGGER_SOURCE": "LogsAndContainerScan",
    "POSTS_LANDED_QUEUE": "posts-landed",
    "CLASSIFICATION_RUNS_QUEUE": "classification-runs",
    "LAKE_FILE_SYSTEM": "stacktopics",
    "REFERENCE_SCHEDULE": "0 0 2 * * 1",
    "REFERENCE_SCHEMA": "raw_st",
    "REFERENCE_TABLES": "users,post_types",
    "RETRAIN_SCHEDULE": "0 0 4 * * 0",
    "RECONCILE_SCHEDULE": "0 * * * * *",
    "RECONCILE_PATIENCE_SECONDS": "30",
    "WATCH_FIRST_DELAY_SECONDS": "1",
    "WATCH_MAX_DELAY_SECONDS": "5",
    "AzureFunctionsJobHost__extensions__queues__visibilityTimeout": "00:00:01",
}
"""The values that the cloud sets if the user has not."""

CONNECTIONS = ("AzureWebJobsStorage", "POSTS_STORAGE", "QUEUES_STORAGE", "LAKE_STORAGE")
WAYS_IN = ("KEY_VAULT_URL", "POSTGRES_PASSWORD_SECRET")
DATABRICKS = "DATABRICKS_"
"""Settings with this prefix, like WAYS_IN, say how the app authenticates to the cloud's parts; Databricks' SDK reads
more of them than StackTopics does."""

TRIGGER_SOURCES = ("EventGrid", "LogsAndContainerScan")
HOST_SETTINGS = ("AzureFunctionsJobHost__", "AzureWebJobs.")
"""Prefixes of settings that override host.json or disable a function."""

_LOCAL_HOSTS = ("", "localhost", LOCALHOST, "::1")


def own_settings(ports: Mapping[str, int], file_system: str, jobs: Iterable[int]) -> dict[str, str]:
    """The cloud's own settings. `ports` are by name; of `jobs` the first classifies and the last trains."""
    storage = azurite.connection_string(Blob=ports["blob"], Queue=ports["queue"])
    job_ids = [str(job) for job in jobs]
    return {
        "AzureWebJobsStorage": storage,
        "POSTS_STORAGE": storage,
        "QUEUES_STORAGE": storage,
        "LAKE_STORAGE": azurite.connection_string(Blob=ports["blob"], Dfs=ports["lake"]),
        "LAKE_ROOT_FOR_JOBS": f"{azurite.endpoint(ports['lake'])}/{file_system}",
        "POSTGRES_HOST": LOCALHOST,
        "POSTGRES_PORT": str(ports["postgres"]),
        "POSTGRES_DATABASE": postgres.DATABASE,
        "POSTGRES_USER": postgres.USER,
        "POSTGRES_PASSWORD": postgres.PASSWORD,
        "POSTGRES_SSLMODE": "disable",
        "DATABRICKS_HOST": f"http://{LOCALHOST}:{ports['databricks']}",
        "DATABRICKS_TOKEN": DATABRICKS_TOKEN,
        "DATABRICKS_JOB_ID": job_ids[0],
        "DATABRICKS_TRAINING_JOB_ID": job_ids[-1],
    }


_OWN = frozenset(own_settings(dict.fromkeys(("blob", "queue", "lake", "postgres", "databricks"), 0), "", (0,)))


def is_own(name: str) -> bool:
    """Whether a setting is an address or a key of a part of the cloud, or says where the app finds one."""
    setting = name.upper()
    if setting.startswith(DATABRICKS) or _connection_of(name):
        return True
    return setting in {own.upper() for own in (*_OWN, *WAYS_IN)}


def _connection_of(name: str) -> str | None:
    """The connection that a setting belongs to: POSTS_STORAGE for AzureWebJobsPOSTS_STORAGE__accountName."""
    base = name.partition("__")[0].upper()
    return next((known for known in CONNECTIONS if base in (known.upper(), f"AZUREWEBJOBS{known.upper()}")), None)


def without_own(environ: Mapping[str, str], own: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The variables with the cloud's own settings, and the names of those whose values these replaced."""
    kept = {name: value for name, value in environ.items() if not is_own(name)}
    aside = [name for name, value in environ.items() if is_own(name) and value and value != own.get(name)]
    return kept | dict(own), sorted(aside)


def checked(assignments: Sequence[str]) -> dict[str, str]:
    """Settings written NAME=VALUE, by name.

    Raises LocalCloudError for a setting that is unknown, is the cloud's own or has an invalid value.
    """
    from shared.settings import BINDING_SETTINGS, Settings

    known = [*(name.upper() for name in Settings.model_fields), *BINDING_SETTINGS]
    values = {}
    for assignment in assignments:
        name, is_one, value = assignment.partition("=")
        if not is_one:
            raise LocalCloudError(f"--set {assignment}: write NAME=VALUE")
        if is_own(name):
            raise LocalCloudError(f"--set {name}: addresses and keys of what the local cloud starts are its own")
        if name not in known and not name.startswith(HOST_SETTINGS):
            near = difflib.get_close_matches(name.upper(), known, 1)
            raise LocalCloudError(f"--set {name}: there is no such setting{f'; is it {near[0]}?' if near else ''}")
        if fault := _fault(name, value):
            raise LocalCloudError(f"--set {name}: {fault}")
        values[name] = value
    return values


def _fault(name: str, value: str) -> str | None:
    """The fault of a value; None if it is valid. An empty value means the default, as in the environment."""
    from pydantic import ValidationError

    from localcloud.host.ncrontab import Schedule
    from shared.settings import Settings

    if name == "POSTS_TRIGGER_SOURCE" and value not in TRIGGER_SOURCES:
        return f"write one of {', '.join(TRIGGER_SOURCES)}"
    try:
        if name.endswith("_SCHEDULE"):
            Schedule.parse(value)
        elif value:
            Settings.model_validate({name.lower(): value})
    except ValidationError as error:
        faults = (str(fault["msg"]) for fault in error.errors() if fault["loc"][0] == name.lower())
        return next(faults, None)  # other faults are of missing settings
    except ValueError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class SettingsFile:
    """A local.settings.json; `document` is its content, empty if the file is missing."""

    path: Path
    document: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> SettingsFile:
        """Read a file; comments and trailing commas are allowed, as with `func`. Raises LocalCloudError if invalid."""
        if not path.exists():
            return cls(path, {})
        try:
            document = jsonc.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise LocalCloudError(f"{path} is not JSON: {error}. Correct it, or move it away") from error
        for part in ("Values", "Host"):
            if not isinstance(document, dict) or not isinstance(document.get(part, {}), dict):
                raise LocalCloudError(f"{path}: {part} must be a JSON object. Correct it, or move it away")
        for name, value in document.get("Values", {}).items():
            if not isinstance(value, str):
                raise LocalCloudError(f"{path}: Values.{name} must be a string, as app settings in Azure are")
        return cls(path, document)

    @property
    def values(self) -> dict[str, str]:
        """The settings."""
        return dict(self.document.get("Values", {}))

    @property
    def elsewhere(self) -> str | None:
        """Why the file does not belong to this cloud: it is encrypted or names another machine. None if it does."""
        if self.document.get("IsEncrypted"):
            return "it is encrypted"
        return next(
            (
                f"its {name} names another machine or Azure"
                for name, value in self.values.items()
                if _leads_away(name, value)
            ),
            None,
        )

    def with_cloud(self, own: Mapping[str, str], given: Mapping[str, str], port: int) -> SettingsFile:
        """The file with the cloud's own settings, the `given` ones, the port of the functions host, and defaults for
        missing settings. Parts of connections that contradict the cloud's own are left out."""
        names = {name.upper() for name in own}
        values = {
            name: value
            for name, value in self.values.items()
            if name in own or not (name.upper() in names or _connection_of(name))
        }
        missing = {name: value for name, value in DEFAULTS.items() if name not in values}
        host = {**self.document.get("Host", {}), "LocalHttpPort": port}
        rest = {"IsEncrypted": False, **self.document}
        return SettingsFile(self.path, {**rest, "Values": {**values, **missing, **own, **given}, "Host": host})

    def write(self) -> None:
        """Replace the file atomically; it is not written if it already has this content, without comments."""
        if self._is_written():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name(f".{self.path.name}.new")
        new.write_text(json.dumps(self.document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if self.path.exists():
            shutil.copymode(self.path, new)
        new.replace(self.path)

    def _is_written(self) -> bool:
        try:
            return bool(json.loads(self.path.read_text(encoding="utf-8")) == self.document)
        except (FileNotFoundError, ValueError):
            return False


def _leads_away(name: str, value: str) -> bool:
    """Whether a setting names another machine, or an identity of Azure."""
    setting = name.upper()
    if not value:
        return False
    if setting == "KEY_VAULT_URL":
        return True
    if setting == "DATABRICKS_AUTH":
        return value != "token"
    if setting == "POSTGRES_HOST":
        return value not in _LOCAL_HOSTS
    if setting == "DATABRICKS_HOST":
        return not _is_local(value)
    if setting == "LAKE_ROOT_FOR_JOBS":
        return "://" in value and not _is_local(value)
    if _connection_of(name) is None:
        return False
    part = name.partition("__")[2].lower()
    if part:
        return part == "accountname" or (part.endswith("uri") and not _is_local(value))
    endpoints = re.findall(r"endpoint=([^;]+)", value, re.IGNORECASE)
    return not all(map(_is_local, endpoints)) if endpoints else "usedevelopmentstorage=true" not in value.lower()


def _is_local(url: str) -> bool:
    try:
        host = urlsplit(url if "://" in url else f"//{url}").hostname
    except ValueError:
        return False
    return host in _LOCAL_HOSTS
