"""Every setting of StackTopics: one name in the app settings, one field here, one line in docs/operations.md.

Values come from the environment and, for the command line, from `local.settings.json` below it.
A connection is a connection string in `NAME`, or the identity-based parts `NAME__blobServiceUri` and so on,
as Azure Functions bindings spell them. Secrets are named here and read through `shared.secrets`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.sources import EnvSettingsSource

from shared.errors import SettingsError

LOCAL_SETTINGS_FILE = "local.settings.json"
EMULATOR = (
    "AccountName=devstoreaccount1;"
    "AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==;"
    "BlobEndpoint=http://127.0.0.1:10000/devstoreaccount1;"
    "QueueEndpoint=http://127.0.0.1:10001/devstoreaccount1"
)
"""What UseDevelopmentStorage=true means: Azurite's published account and default ports."""
BINDING_SETTINGS = {"REFERENCE_SCHEDULE", "RETRAIN_SCHEDULE", "RECONCILE_SCHEDULE", "POSTS_TRIGGER_SOURCE"}
"""App settings that only the functions' bindings read."""
HOST_SETTINGS = ("AzureWebJobs", "AzureFunctions", "FUNCTIONS_", "WEBSITE_", "APPLICATIONINSIGHTS_")
"""How the names of settings begin that Azure Functions itself reads."""
IDENTITY_PARTS = ("blobServiceUri", "queueServiceUri", "dfsServiceUri", "credential", "clientId")


class Connection(BaseModel):
    """A storage connection: a connection string, or service addresses and an identity."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    connection_string: SecretStr | None = None
    blob_service_uri: str | None = Field(default=None, alias="blobserviceuri")
    queue_service_uri: str | None = Field(default=None, alias="queueserviceuri")
    dfs_service_uri: str | None = Field(default=None, alias="dfsserviceuri")
    credential: Literal["managedidentity"] | None = None
    client_id: str | None = Field(default=None, alias="clientid")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"connection_string": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not (self.connection_string or self.blob_service_uri or self.queue_service_uri or self.dfs_service_uri):
            raise ValueError("neither a connection string nor a service address")
        if self.connection_string and not {"accountname", "accountkey"} <= self._parts().keys():
            raise ValueError("a connection string needs AccountName and AccountKey; without keys, use an identity")
        return self

    def endpoint(self, service: Literal["blob", "queue", "dfs"]) -> str:
        """The address of one of the account's services."""
        if self.connection_string is None:
            given = {"blob": self.blob_service_uri, "queue": self.queue_service_uri, "dfs": self.dfs_service_uri}
            if address := given[service]:
                return address
            other = next(address for address in given.values() if address)
            return other.replace(f".{_service_of(other)}.", f".{service}.", 1)
        parts = self._parts()
        if address := parts.get(f"{service}endpoint"):
            return address
        protocol, suffix = parts.get("defaultendpointsprotocol", "https"), parts.get("endpointsuffix")
        return f"{protocol}://{parts['accountname']}.{service}.{suffix or 'core.windows.net'}"

    def account_key(self) -> dict[str, str] | None:
        """Name and key for the SDK clients; None where an identity is used."""
        if self.connection_string is None:
            return None
        parts = self._parts()
        return {"account_name": parts["accountname"], "account_key": parts["accountkey"]}

    def _parts(self) -> dict[str, str]:
        text = self.connection_string.get_secret_value() if self.connection_string else ""
        if text.strip(" ;").lower() == "usedevelopmentstorage=true":
            text = EMULATOR
        pairs = (part.partition("=") for part in text.split(";") if part)
        return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _service_of(address: str) -> str:
    return next((service for service in ("blob", "queue", "dfs") if f".{service}." in address), "blob")


class Settings(BaseSettings):
    """All settings, checked. Make one with `Settings.load()`."""

    model_config = SettingsConfigDict(
        env_nested_delimiter="__", extra="ignore", case_sensitive=False, frozen=True, env_ignore_empty=True
    )

    # The incoming files and the queues
    posts_storage: Annotated[Connection, NoDecode]
    posts_container: str = "posts"
    landing_proof_share: float = Field(default=0.1, ge=0, le=1)
    queues_storage: Annotated[Connection, NoDecode]
    posts_landed_queue: str = "posts-landed"
    classification_runs_queue: str = "classification-runs"

    # The lake
    lake_storage: Annotated[Connection, NoDecode]
    lake_file_system: str = "stacktopics"
    lake_root_for_jobs: str | None = Field(default=None, description="the lake as the Databricks job names it")

    # The reference tables
    postgres_host: str
    postgres_port: int = 5432
    postgres_database: str
    postgres_user: str
    postgres_password_secret: str = "postgres-password"
    postgres_sslmode: Literal["disable", "require", "verify-ca", "verify-full"] = "verify-full"
    postgres_sslrootcert: str | None = None
    reference_schema: str = "raw_st"
    reference_tables: Annotated[tuple[str, ...], NoDecode] = ("users", "post_types")
    reference_exclude_columns: Annotated[tuple[str, ...], NoDecode] = ()
    reference_keys: Annotated[tuple[str, ...], NoDecode] = ()
    reference_allow_empty: Annotated[tuple[str, ...], NoDecode] = ()
    reference_max_shrink: float = Field(default=0.1, ge=0, le=1)
    reference_keep_weeks: int = Field(default=4, ge=0, le=5200)
    reference_schema_policy: Literal["evolve", "freeze"] = "evolve"
    reference_infinity: Literal["refuse", "null"] = "refuse"
    reference_out_of_range: Literal["refuse", "null"] = "refuse"
    reference_nan: Literal["refuse", "null"] = "refuse"
    reference_proof: Literal["checksum", "rows"] = "checksum"
    reference_attempts: int = Field(default=3, ge=1)
    reference_deadline_seconds: float = Field(default=3000, gt=0, le=86_400)

    # The classification
    databricks_host: str
    databricks_job_id: int
    databricks_auth: Literal["token", "managed-identity"] = "token"
    databricks_client_id: str | None = None
    databricks_token_secret: str = "databricks-token"
    databricks_training_job_id: int | None = None
    training_days: int = Field(default=365, ge=1)
    training_max_questions: int = Field(default=1_000_000, ge=1)
    training_topics: int = Field(default=100, ge=2)
    training_margin: float = Field(default=0.002, allow_inf_nan=False)
    topic_source: Literal["tags", "model"] = "tags"
    classify_engine: Literal["auto", "arrow", "spark"] = "auto"
    classify_spark_from_bytes: int = Field(default=2 << 30, ge=0)
    classification_attempts: int = Field(default=3, ge=1)
    classification_deadline_seconds: float = Field(default=7200, gt=0)
    classification_queue_seconds: float = Field(default=86_400, gt=0)
    classification_platform_seconds: float = Field(default=21_600, ge=0)
    watch_first_delay_seconds: float = Field(default=15, ge=0)
    watch_max_delay_seconds: float = Field(default=120, ge=0)
    watch_backoff: float = Field(default=1.5, ge=1)

    # Watching over it
    posts_unfinished_after_seconds: float = Field(default=3600, ge=0)
    reconcile_patience_seconds: float = Field(default=300, ge=0)
    alert_webhook_secret: str | None = None
    alert_format: Literal["json", "teams"] = "json"

    # Secrets
    key_vault_url: str | None = None
    secret_cache_seconds: float = Field(default=300, ge=0)

    @property
    def queues(self) -> list[str]:
        """The names of all queues: the values of the settings that end with `_queue`."""
        return [getattr(self, name) for name in type(self).model_fields if name.endswith("_queue")]

    @field_validator(
        "reference_tables", "reference_exclude_columns", "reference_keys", "reference_allow_empty", mode="before"
    )
    @classmethod
    def _comma_separated(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @classmethod
    def load(cls, local_file: Path | None = None) -> Settings:
        """The settings of this process; `local_file` (a local.settings.json) gives what the environment does not.

        Raises SettingsError with every fault at once, each with every name that was tried.
        """
        try:
            return cls.model_validate(_Values(cls, environment(local_file))())
        except ValidationError as error:
            raise SettingsError([_fault(cls, fault) for fault in error.errors()]) from None  # values may be secret

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what the constructor is given: `load` is the one reader of the environment."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)

    @property
    def lake_uri(self) -> str:
        """The lake as a Databricks job names it: LAKE_ROOT_FOR_JOBS, else `abfss://…` of the lake's own account."""
        if self.lake_root_for_jobs:
            return self.lake_root_for_jobs
        host = self.lake_storage.endpoint("dfs").split("://", 1)[1].strip("/")
        return f"abfss://{self.lake_file_system}@{host}"


class _Values(EnvSettingsSource):
    """Reads a mapping the way pydantic-settings reads the environment."""

    def __init__(self, settings_cls: type[BaseSettings], values: Mapping[str, str]) -> None:
        self._values = {name.lower(): value for name, value in values.items() if value}
        super().__init__(settings_cls)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return self._values


def environment(local_file: Path | None = None) -> dict[str, str]:
    """This process's environment, and below it what `local_file` says; nothing else reads `os.environ`."""
    return {**read_local_settings(local_file), **os.environ}


def read_local_settings(file: Path | None) -> dict[str, str]:
    """The `Values` of a local.settings.json; empty when there is no such file. Raises SettingsError."""
    if file is None or not file.exists():
        return {}
    try:
        values = json.loads(file.read_text())["Values"]
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError([f"{file} is not a settings file with a `Values` object: {error!r}"]) from error
    return {name: str(value) for name, value in values.items()}


def _fault(settings: type[Settings], fault: Any) -> str:
    name = str(fault["loc"][0])
    field: FieldInfo | None = settings.model_fields.get(name)
    tried = names_tried(name, field) if field else [name.upper()]
    reason = "is missing" if fault["type"] == "missing" else f"is wrong: {fault['msg']}"
    return f"{tried[0]} {reason} (tried {', '.join(tried)})"


def names_tried(name: str, field: FieldInfo) -> list[str]:
    """The app settings that can set a field."""
    names = [name.upper()]
    if field.annotation is Connection:
        names += [f"{name.upper()}__{part}" for part in IDENTITY_PARTS]
    return names
