"""The one place where clients are made: each on first use, each replaceable in a test."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from shared.errors import TerminalError

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient, BlobServiceClient, ContainerClient

    from shared.databricks import JobRuns
    from shared.lake import Lake
    from shared.ledger import Ledger
    from shared.queues import Queue
    from shared.secrets import Secrets
    from shared.settings import Connection, Settings
    from shared.storage import BlobVersion, SourceBlob
    from shared.webhook import Webhook

CONNECT_TIMEOUT_SECONDS = 10
HURRIED_STORAGE = {"retry_total": 0, "connection_timeout": 3, "read_timeout": 20}
"""One attempt; the SDK's own policy tries for 86 s before it says that nothing listens."""
HURRIED_POSTGRES_SECONDS = 3
HURRIED_DATABRICKS = {"http_timeout_seconds": 10, "retry_timeout_seconds": 1}
"""The SDK's own limit is 5 minutes."""


class Services:
    """What the functions work with. `Services().replace(lake=…)` puts another in a service's place.

    `patient` is how a function calls: with the SDKs' own retries. Without it each call is one short attempt, for
    somebody who waits at a terminal.
    """

    def __init__(self, local_settings: Path | None = None, *, patient: bool = True) -> None:
        self._local_settings = local_settings
        self._patient = patient
        self._clients: list[Any] = []

    def replace(self, **services: Any) -> Self:
        """Use these instead of making them; returns self."""
        for name, service in services.items():
            if not isinstance(getattr(type(self), name, None), cached_property):
                raise TypeError(f"there is no service {name}")
            self.__dict__[name] = service
        return self

    def now(self) -> datetime:
        return datetime.now(UTC)

    @cached_property
    def settings(self) -> Settings:
        from shared.settings import Settings

        return Settings.load(self._local_settings)

    @cached_property
    def secrets(self) -> Secrets:
        from shared.secrets import Secrets
        from shared.settings import environment

        vault = None
        if self.settings.key_vault_url:
            from azure.keyvault.secrets import SecretClient

            vault = SecretClient(self.settings.key_vault_url, self.identity(None))
        return Secrets(environment(self._local_settings), vault, self.settings.secret_cache_seconds)

    @cached_property
    def lake(self) -> Lake:
        return self._adls(self.settings.lake_storage, self.settings.lake_file_system)

    @cached_property
    def ledger(self) -> Ledger:
        from shared.ledger import Ledger

        return Ledger(self.lake)

    @cached_property
    def posts_account(self) -> BlobServiceClient:
        from azure.storage.blob import BlobServiceClient

        connection = self.settings.posts_storage
        account = BlobServiceClient(connection.endpoint("blob"), self._credential(connection), **self._pace)
        self._clients.append(account)
        return account

    @property
    def posts_container(self) -> ContainerClient:
        """The container where Posts files arrive."""
        return self.posts_account.get_container_client(self.settings.posts_container)

    def blob_client(self, container: str, name: str) -> BlobClient:
        """A blob of the account where Posts files arrive."""
        return self.posts_account.get_blob_client(container, name)

    def arrived_blobs(self) -> Iterator[BlobVersion]:
        """What lies in the container where Posts files arrive, by one listing; nothing where it does not exist."""
        from shared.storage import listed_versions

        return listed_versions(self.posts_container)

    def source_blob(self, container: str, name: str) -> SourceBlob:
        """The same blob behind the product's own protocol."""
        from shared.storage import StorageBlob

        return StorageBlob(self.blob_client(container, name))

    @cached_property
    def posts_landed(self) -> Queue:
        return self.queue(self.settings.posts_landed_queue)

    @cached_property
    def classification_runs(self) -> Queue:
        return self.queue(self.settings.classification_runs_queue)

    @cached_property
    def job_runs(self) -> JobRuns:
        from databricks.sdk import WorkspaceClient
        from databricks.sdk.core import Config

        from shared.databricks import AZURE_DATABRICKS_SCOPE, WorkspaceRuns, bearer

        pace: dict[str, Any] = {} if self._patient else HURRIED_DATABRICKS

        def workspace(strategy: Any) -> WorkspaceClient:
            return WorkspaceClient(
                config=Config(host=self.settings.databricks_host, credentials_strategy=strategy, **pace)
            )

        if self.settings.databricks_auth == "managed-identity":
            identity = self.identity(self.settings.databricks_client_id)
            by_identity = bearer("managed-identity", lambda: str(identity.get_token(AZURE_DATABRICKS_SCOPE).token))
            return WorkspaceRuns(workspace(by_identity))
        secret = self.settings.databricks_token_secret
        by_token = bearer("token", lambda: self.secrets.get(secret).get_secret_value())
        return WorkspaceRuns(
            workspace(by_token), f"the token in the secret {secret}", lambda: self.secrets.forget(secret)
        )

    @cached_property
    def webhook(self) -> Webhook | None:
        """Where alerts are sent; None where ALERT_WEBHOOK_SECRET is not set."""
        from shared.webhook import Webhook

        secret = self.settings.alert_webhook_secret
        return Webhook(lambda: self.secrets.get(secret), self.settings.alert_format) if secret else None

    def queue(self, name: str) -> Queue:
        """A queue of the queues' account, by name."""
        from azure.storage.queue import QueueClient, TextBase64DecodePolicy, TextBase64EncodePolicy

        from shared.queues import StorageQueue

        connection = self.settings.queues_storage
        address, credential = connection.endpoint("queue"), self._credential(connection)
        encoded: dict[str, Any] = {
            "message_encode_policy": TextBase64EncodePolicy(),
            "message_decode_policy": TextBase64DecodePolicy(),
        }
        client = QueueClient(address, name, credential, **encoded, **self._pace)
        raw = QueueClient(address, name, credential, **self._pace)
        self._clients += [client, raw]
        return StorageQueue(client, raw)

    def postgres(self) -> Any:
        """A new psycopg2 connection to the reference database, with psycopg2's own errors; the caller closes it.

        `ingest.postgres.connect` is how the product asks for one.
        """
        import psycopg2

        settings = self.settings
        verifies = settings.postgres_sslmode.startswith("verify")
        return psycopg2.connect(
            host=settings.postgres_host,
            port=settings.postgres_port,
            dbname=settings.postgres_database,
            user=settings.postgres_user,
            password=self.secrets.get(settings.postgres_password_secret).get_secret_value(),
            sslmode=settings.postgres_sslmode,
            sslrootcert=settings.postgres_sslrootcert or (_system_certificates() if verifies else None),
            connect_timeout=CONNECT_TIMEOUT_SECONDS if self._patient else HURRIED_POSTGRES_SECONDS,
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
            application_name="stacktopics",
        )

    def lake_at(self, root: str) -> Lake:
        """The lake that a job's parameter names: a folder, `abfss://file-system@host`, or `https://host/file-system`.

        The file system's credentials are LAKE_STORAGE's where it is set, else this machine's identity.
        """
        from pydantic import ValidationError

        from shared.lake import FolderLake
        from shared.settings import Connection, environment

        if "://" not in root:
            return FolderLake(Path(root))
        if root.startswith("abfss://"):
            file_system, _, host = root.removeprefix("abfss://").rstrip("/").partition("@")
            address = f"https://{host}"
        else:
            address, _, file_system = root.rstrip("/").rpartition("/")
        given = environment().get("LAKE_STORAGE") or {"dfsserviceuri": address}
        try:
            return self._adls(Connection.model_validate(given), file_system)
        except ValidationError as error:
            raise TerminalError(f"LAKE_STORAGE is not a connection: {error.error_count()} faults") from None

    def close(self) -> None:
        """Close the storage clients that were made."""
        for client in self._clients:
            client.close()
        self._clients.clear()

    def _adls(self, connection: Connection, file_system: str) -> Lake:
        from azure.storage.blob import BlobServiceClient
        from azure.storage.filedatalake import DataLakeServiceClient

        from shared.lake import AdlsLake

        credential = self._credential(connection)
        files = DataLakeServiceClient(connection.endpoint("dfs"), credential, **self._pace)
        blobs = BlobServiceClient(connection.endpoint("blob"), credential, **self._pace)
        self._clients += [files, blobs]
        return AdlsLake(files.get_file_system_client(file_system), blobs.get_container_client(file_system))

    @property
    def _pace(self) -> dict[str, Any]:
        """What storage clients are given beside their address and credential."""
        return {} if self._patient else HURRIED_STORAGE

    def _credential(self, connection: Connection) -> Any:
        return connection.account_key() or self.identity(connection.client_id)

    def identity(self, client_id: str | None) -> Any:
        """The identity of this process in Azure: a managed one in a Function App, the developer's on a laptop."""
        from azure.identity import DefaultAzureCredential

        return DefaultAzureCredential(managed_identity_client_id=client_id)


def _system_certificates() -> str | None:
    """The system's file of CA certificates, where it has one.

    libpq's own `sslrootcert=system` looks in the folder where the OpenSSL inside psycopg2-binary was built: it does not
    exist here.
    """
    import ssl

    known = ssl.get_default_verify_paths()
    files = [known.cafile, f"{known.capath}/ca-certificates.crt" if known.capath else None]
    return next((file for file in files if file and Path(file).is_file()), None)


@cache
def services() -> Services:
    """The services of this process, for the entry points."""
    return Services()


@cache
def hurried_services() -> Services:
    """Those for entry points whose caller waits: each call is one short attempt."""
    return Services(patient=False)
