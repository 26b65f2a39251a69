"""local.settings.json, host.json and connections, read as Azure Functions reads them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from localcloud import jsonc
from localcloud.host.errors import HostError
from localcloud.processes import LocalCloudError
from localcloud.settings import SettingsFile

HOST_STORAGE = "AzureWebJobsStorage"
OVERRIDE = "AzureFunctionsJobHost"
DEFAULT_PORT = 7071
_BLOBS_PER_CORE = 8
_TIME_SPAN = re.compile(r"(?:(\d+)\.)?(\d{1,2}):(\d{2}):(\d{2}(?:\.\d+)?)")
_HOST_ID = re.compile(r"[a-z0-9](?:-?[a-z0-9]){0,31}")


@dataclass(frozen=True)
class LocalSettings:
    """What local.settings.json says: the app's settings, and the `Host` section of Core Tools."""

    values: Mapping[str, str]
    port: int = DEFAULT_PORT
    cors_origins: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> LocalSettings:
        """Reads the file. Raises HostError when it is missing, encrypted, or holds values that are not text."""
        if not path.exists():
            raise HostError(f"{path} does not exist")
        try:
            file = SettingsFile.read(path)
        except LocalCloudError as error:
            raise HostError(str(error)) from error
        if file.document.get("IsEncrypted"):
            raise HostError(f"{path} is encrypted: run `func settings decrypt`")
        host = file.document.get("Host", {})
        origins = tuple(origin.strip() for origin in host.get("CORS", "").split(",") if origin.strip())
        return cls(values=file.values, port=int(host.get("LocalHttpPort", DEFAULT_PORT)), cors_origins=origins)

    def export(self) -> list[str]:
        """Puts the values into the environment; what is set there already wins, as with Core Tools.

        Returns the names that were left as they were.
        """
        kept = [name for name, value in self.values.items() if os.environ.get(name, value) != value]
        for name, value in self.values.items():
            os.environ.setdefault(name, value)
        return kept


@dataclass(frozen=True)
class QueueOptions:
    """`extensions.queues` of host.json, with the defaults that Azure documents."""

    batch_size: int = 16
    new_batch_threshold: int = 8
    max_dequeue_count: int = 5
    visibility_timeout: timedelta = timedelta(0)
    max_polling_interval: timedelta = timedelta(minutes=1)
    message_encoding: Literal["base64", "none"] = "base64"

    @classmethod
    def from_json(cls, section: Mapping[str, Any]) -> QueueOptions:
        """Raises HostError for a value outside what Azure accepts."""
        batch_size = int(section.get("batchSize", cls.batch_size))
        if not 1 <= batch_size <= 32:
            raise HostError(f"host.json: extensions.queues.batchSize is {batch_size}, must be 1 to 32")
        encoding = str(section.get("messageEncoding", cls.message_encoding)).lower()
        if encoding not in ("base64", "none"):
            raise HostError(f"host.json: extensions.queues.messageEncoding is {encoding!r}, must be base64 or none")
        return cls(
            batch_size=batch_size,
            new_batch_threshold=int(section.get("newBatchThreshold", batch_size // 2)),
            max_dequeue_count=int(section.get("maxDequeueCount", cls.max_dequeue_count)),
            visibility_timeout=_time_span(section, "visibilityTimeout", cls.visibility_timeout),
            max_polling_interval=_time_span(section, "maxPollingInterval", cls.max_polling_interval),
            message_encoding="base64" if encoding == "base64" else "none",
        )


@dataclass(frozen=True)
class HostConfig:
    """The parts of host.json that this host honours."""

    route_prefix: str = "api"
    queues: QueueOptions = QueueOptions()
    poison_blob_threshold: int = 5
    blobs_at_once: int = _BLOBS_PER_CORE * (os.cpu_count() or 1)
    function_timeout: timedelta | None = None

    @classmethod
    def read(cls, path: Path) -> HostConfig:
        """Reads host.json as `read_host_json` does. Raises HostError when it is missing or holds an invalid value."""
        document = read_host_json(path, os.environ)
        if document.get("version") != "2.0":
            raise HostError(f'{path} must hold "version": "2.0"')
        extensions = document.get("extensions", {})
        blobs = extensions.get("blobs", {})
        timeout = document.get("functionTimeout", "-1")
        return cls(
            route_prefix=extensions.get("http", {}).get("routePrefix", cls.route_prefix).strip("/"),
            queues=QueueOptions.from_json(extensions.get("queues", {})),
            poison_blob_threshold=int(blobs.get("poisonBlobThreshold", cls.poison_blob_threshold)),
            blobs_at_once=int(blobs.get("maxDegreeOfParallelism", cls.blobs_at_once)),
            function_timeout=None if timeout == "-1" else parse_time_span(timeout, "host.json: functionTimeout"),
        )


def read_host_json(path: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """host.json, with what settings named `AzureFunctionsJobHost__a__b` say in place of its `a.b`.

    Raises HostError when it is missing or not a JSON object.
    """
    document = _read_json(path)
    for name, value in environ.items():
        start, *parents = name.split("__")
        if start == OVERRIDE and parents:
            *parents, key = parents
            section = document
            for parent in parents:
                section = section.setdefault(parent, {})
            section[key] = value
    return document


@dataclass(frozen=True)
class Connection:
    """Where a storage service is, and how to be let in.

    Either `connection_string` is set, or `account_url` with, for a user-assigned identity, its `client_id`.
    """

    connection_string: str | None = None
    account_url: str | None = None
    client_id: str | None = None
    managed_identity: bool = False


def find_connection(name: str, service: Literal["blob", "queue"], environ: Mapping[str, str]) -> Connection:
    """The account that a binding's connection name means for one service.

    Tried are, for `AzureWebJobs<name>` and then for `<name>`: the setting itself (a connection string), and
    `__<service>ServiceUri`, `__serviceUri`, `__accountName` (identity-based). An empty name is AzureWebJobsStorage.
    Raises HostError with every name that was tried.
    """
    name = name or HOST_STORAGE
    tried: list[str] = []
    for prefix in (f"AzureWebJobs{name}", name):
        tried.append(prefix)
        if environ.get(prefix):
            return Connection(connection_string=environ[prefix])
        for suffix in (f"{service}ServiceUri", "serviceUri", "accountName"):
            setting = f"{prefix}__{suffix}"
            tried.append(setting)
            if value := environ.get(setting):
                return Connection(
                    account_url=value if suffix != "accountName" else f"https://{value}.{service}.core.windows.net",
                    client_id=environ.get(f"{prefix}__clientId"),
                    managed_identity=environ.get(f"{prefix}__credential") == "managedidentity",
                )
    raise HostError(f"connection {name!r} is not set: tried {', '.join(tried)}")


def host_id(environ: Mapping[str, str]) -> str:
    """The id under which receipts and schedule status are kept: AzureFunctionsWebHost__hostid, or `localcloud`."""
    chosen = environ.get("AzureFunctionsWebHost__hostid", "localcloud")
    if not _HOST_ID.fullmatch(chosen):
        raise HostError(f"AzureFunctionsWebHost__hostid {chosen!r}: up to 32 lower-case letters, digits, single dashes")
    return chosen


def parse_time_span(text: object, where: str) -> timedelta:
    """A .NET time span, `[d.]hh:mm:ss[.fff]`. Raises HostError naming `where` for anything else."""
    match = _TIME_SPAN.fullmatch(text) if isinstance(text, str) else None
    if not match:
        raise HostError(f"{where} is {text!r}, must look like 00:05:00")
    days, hours, minutes, seconds = match.groups(default="0")
    return timedelta(days=int(days), hours=int(hours), minutes=int(minutes), seconds=float(seconds))


def _time_span(section: Mapping[str, Any], name: str, default: timedelta) -> timedelta:
    if name not in section:
        return default
    return parse_time_span(section[name], f"host.json: extensions.queues.{name}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = jsonc.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise HostError(f"{path} does not exist") from None
    except ValueError as error:
        raise HostError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise HostError(f"{path} must hold a JSON object")
    return document
