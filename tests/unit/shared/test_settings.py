"""Settings, connections and secrets: how their text becomes the values that services need."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import SecretStr

from shared.errors import NotFound, SettingsError
from shared.lake import AdlsLake, FolderLake
from shared.secrets import Secrets
from shared.services import Services
from shared.settings import Connection, Settings, read_local_settings

ACCOUNT = "DefaultEndpointsProtocol=https;AccountName=acc;AccountKey=c2VjcmV0;EndpointSuffix=core.windows.net"
NEEDED = {
    "POSTS_STORAGE": ACCOUNT,
    "QUEUES_STORAGE__queueServiceUri": "https://acc.queue.core.windows.net",
    "LAKE_STORAGE__dfsServiceUri": "https://lake.dfs.core.windows.net",
    "LAKE_STORAGE__credential": "managedidentity",
    "LAKE_STORAGE__clientId": "1234",
    "POSTGRES_HOST": "db",
    "POSTGRES_DATABASE": "so",
    "POSTGRES_USER": "reader",
    "DATABRICKS_HOST": "https://adb",
    "DATABRICKS_JOB_ID": "7",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in NEEDED.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_both_kinds_of_connection_are_read(environment: pytest.MonkeyPatch) -> None:
    settings = Settings.load()
    assert settings.posts_storage.endpoint("blob") == "https://acc.blob.core.windows.net"
    assert settings.posts_storage.account_key() == {"account_name": "acc", "account_key": "c2VjcmV0"}
    assert settings.queues_storage.account_key() is None
    assert settings.lake_storage.client_id == "1234"
    assert settings.lake_storage.endpoint("blob") == "https://lake.blob.core.windows.net"
    assert settings.lake_uri == "abfss://stacktopics@lake.dfs.core.windows.net"
    assert settings.reference_tables == ("users", "post_types")


def test_one_error_names_all_faults_and_every_name_tried(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("POSTGRES_HOST")
    environment.delenv("POSTS_STORAGE")
    environment.setenv("DATABRICKS_JOB_ID", "seven")
    environment.setenv("CLASSIFICATION_ATTEMPTS", "0")
    environment.setenv("REFERENCE_KEEP_WEEKS", "200000")
    with pytest.raises(SettingsError) as refused:
        Settings.load()
    told = "\n".join(refused.value.faults)
    assert len(refused.value.faults) == 5
    assert "POSTS_STORAGE is missing (tried POSTS_STORAGE, POSTS_STORAGE__blobServiceUri" in told
    assert "POSTGRES_HOST is missing" in told
    assert "DATABRICKS_JOB_ID is wrong" in told
    assert "CLASSIFICATION_ATTEMPTS is wrong: Input should be greater than or equal to 1" in told
    assert "REFERENCE_KEEP_WEEKS is wrong: Input should be less than or equal to 5200" in told


@pytest.mark.parametrize("margin", ["nan", "inf"])
def test_a_training_margin_must_be_a_finite_number(environment: pytest.MonkeyPatch, margin: str) -> None:
    environment.setenv("TRAINING_MARGIN", margin)
    with pytest.raises(SettingsError, match="TRAINING_MARGIN is wrong: Input should be a finite number"):
        Settings.load()


def test_no_text_of_the_settings_shows_a_secret(environment: pytest.MonkeyPatch) -> None:
    settings = Settings.load()
    assert "c2VjcmV0" not in repr(settings) + str(settings) + settings.model_dump_json()
    environment.setenv("POSTS_STORAGE", "AccountKey=c2VjcmV0")
    with pytest.raises(SettingsError, match="needs AccountName and AccountKey") as refused:
        Settings.load()
    assert "c2VjcmV0" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_the_environment_overrides_the_local_file(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "local.settings.json"
    file.write_text(json.dumps({"Values": {"POSTGRES_HOST": "from-file", "POSTS_CONTAINER": "from-file"}}))
    settings = Settings.load(file)
    assert (settings.postgres_host, settings.posts_container) == ("db", "from-file")
    file.write_text("[]")
    with pytest.raises(SettingsError, match="not a settings file"):
        read_local_settings(file)


def test_the_short_connection_string_of_the_emulator_is_read() -> None:
    connection = Connection.model_validate("UseDevelopmentStorage=true")
    assert connection.endpoint("queue") == "http://127.0.0.1:10001/devstoreaccount1"
    account = connection.account_key()
    assert account is not None
    assert account["account_name"] == "devstoreaccount1"


class Vault:
    vault_url = "https://vault"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def get_secret(self, name: str) -> object:
        self.asked.append(name)
        return type("Secret", (), {"value": f"{name}-{len(self.asked)}"})()


def test_a_secret_is_kept_until_it_expires_or_is_refused() -> None:
    now = [0.0]
    vault = Vault()
    secrets = Secrets({}, vault, cache_seconds=60, clock=lambda: now[0])  # type: ignore[arg-type]
    assert secrets.get("postgres-password") == SecretStr("postgres-password-1")
    now[0] = 59
    assert secrets.get("postgres-password") == SecretStr("postgres-password-1")
    now[0] = 61
    assert secrets.get("postgres-password") == SecretStr("postgres-password-2")
    secrets.forget("postgres-password")
    assert secrets.get("postgres-password") == SecretStr("postgres-password-3")


def test_without_a_vault_secrets_are_environment_variables() -> None:
    secrets = Secrets({"POSTGRES_PASSWORD": "hidden"})
    assert secrets.get("postgres-password").get_secret_value() == "hidden"
    assert "hidden" not in repr(secrets.get("postgres-password"))
    with pytest.raises(NotFound, match="set DATABRICKS_TOKEN, or KEY_VAULT_URL to a vault that holds databricks-token"):
        secrets.get("databricks-token")


@pytest.mark.parametrize("root", ["abfss://fs@lake.dfs.core.windows.net", "https://lake.dfs.core.windows.net/fs/"])
def test_a_job_opens_the_lake_at_its_root(root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAKE_STORAGE", ACCOUNT)
    services = Services()
    lake = services.lake_at(root)
    assert isinstance(lake, AdlsLake)
    assert lake._blobs.container_name == "fs"
    services.close()
    local = services.lake_at(str(tmp_path))
    assert isinstance(local, FolderLake)
    assert local.root == tmp_path
