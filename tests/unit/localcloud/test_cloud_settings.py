"""The settings that the local cloud sets itself, and the local.settings.json that `up` maintains."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from localcloud.cloud import DEFAULT_PORTS, JOBS, LocalCloud
from localcloud.processes import PROJECT_ROOT, LocalCloudError
from localcloud.settings import DEFAULTS, SettingsFile, checked, is_own, own_settings, without_own
from shared.settings import Settings

OWN = own_settings(DEFAULT_PORTS, "stacktopics", JOBS)
MOVED = own_settings({name: port + 1 for name, port in DEFAULT_PORTS.items()}, "stacktopics", JOBS)
ACCOUNT = "DefaultEndpointsProtocol=https;AccountName=acme;AccountKey=a2V5;EndpointSuffix=core.windows.net"


def written(folder: Path, document: Any) -> Path:
    path = folder / "local.settings.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def keep(path: Path, given: dict[str, str] | None = None) -> dict[str, Any]:
    """Let `up` update a settings file, with every port moved by one; returns its content."""
    SettingsFile.read(path).with_cloud(MOVED, given or {}, 7072).write()
    document: dict[str, Any] = json.loads(path.read_text())
    return document


class TestSample:
    def test_the_sample_equals_the_file_that_up_writes_with_the_default_ports(self, tmp_path: Path) -> None:
        SettingsFile.read(tmp_path / "new.json").with_cloud(OWN, {}, DEFAULT_PORTS["functions"]).write()
        assert (tmp_path / "new.json").read_text() == (PROJECT_ROOT / "local.settings.sample.json").read_text()

    def test_every_line_of_the_sample_is_a_setting(self) -> None:
        values = SettingsFile.read(PROJECT_ROOT / "local.settings.sample.json").values
        assert values.pop("FUNCTIONS_WORKER_RUNTIME") == "python"
        of_the_user = {name: value for name, value in values.items() if not is_own(name)}
        assert checked([f"{name}={value}" for name, value in of_the_user.items()]) == of_the_user

    def test_the_sample_has_every_required_setting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.environ", {})
        settings = Settings.load(PROJECT_ROOT / "local.settings.sample.json")
        assert settings.posts_storage.endpoint("blob") == "http://127.0.0.1:10000/devstoreaccount1"
        assert settings.lake_uri == "http://127.0.0.1:10010/devstoreaccount1/stacktopics"


class TestKeeping:
    def test_changes_of_the_user_stay_and_only_addresses_ports_and_keys_are_written(self, tmp_path: Path) -> None:
        mine = {
            "REFERENCE_TABLES": "users,badges",
            "REFERENCE_SCHEDULE": "0 30 6 * * *",
            "POSTS_CONTAINER": "incoming",
            "MORE": "naïve",
            "AzureWebJobs.retrain.Disabled": "true",
        }
        before = {
            "IsEncrypted": False,
            "Values": {**DEFAULTS, **OWN, **mine},
            "Host": {"LocalHttpPort": 7071, "CORS": "*"},
            "ConnectionStrings": {"x": "y"},
        }
        after = keep(written(tmp_path, before))
        assert after["Values"] == {**DEFAULTS, **MOVED, **mine}
        assert after["Host"] == {"LocalHttpPort": 7072, "CORS": "*"}
        assert after["ConnectionStrings"] == {"x": "y"}

    def test_missing_settings_are_added(self, tmp_path: Path) -> None:
        assert keep(written(tmp_path, {"Values": {"REFERENCE_TABLES": ""}}))["Values"] == {
            **DEFAULTS,
            **MOVED,
            "REFERENCE_TABLES": "",
        }

    def test_settings_that_contradict_the_connections_of_the_cloud_are_removed(self, tmp_path: Path) -> None:
        parts = {
            "POSTS_STORAGE__blobServiceUri": "http://127.0.0.1:10000/devstoreaccount1",
            "posts_storage__credential": "managedidentity",
            "AzureWebJobsQUEUES_STORAGE": "UseDevelopmentStorage=true",
            "AzureWebJobsStorage__queueServiceUri": "http://localhost:10001/devstoreaccount1",
            "postgres_host": "localhost",
        }
        values = keep(written(tmp_path, {"Values": {**parts, "POSTGRES_SSLROOTCERT": "mine"}}))["Values"]
        assert values == {**DEFAULTS, **MOVED, "POSTGRES_SSLROOTCERT": "mine"}

    def test_given_settings_are_kept_in_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "local.settings.json"
        keep(path, {"REFERENCE_TABLES": "users,badges"})
        assert keep(path)["Values"]["REFERENCE_TABLES"] == "users,badges"

    def test_comments_are_accepted_but_not_kept(self, tmp_path: Path) -> None:
        text = """{ // mine
            "Values": {
                /* of two
                   lines */
                "A": "http://x // no comment", "B": "\\" /* \\"", // the last one
            },
        }"""
        values = keep(written(tmp_path, text))["Values"]
        assert (values["A"], values["B"]) == ("http://x // no comment", '" /* "')

    def test_a_correct_file_is_not_written_again(self, tmp_path: Path) -> None:
        path = written(tmp_path, "")
        path.unlink()
        keep(path)
        text = path.read_text().replace("  ", "\t")
        path.write_text(text)
        keep(path)
        assert path.read_text() == text

    def test_backups_and_permissions_stay(self, tmp_path: Path) -> None:
        path = written(tmp_path, {"Values": {}})
        path.chmod(0o600)
        backup = tmp_path / "local.settings.json.bak"
        backup.write_text("kept")
        keep(path)
        assert backup.read_text() == "kept"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, backup.name]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{", "is not JSON: .*Correct it, or move it away"),
            ("[]", "Values must be a JSON object"),
            ('{"Values": []}', "Values must be a JSON object"),
            ('{"Host": 7071}', "Host must be a JSON object"),
            ('{"Values": {"POSTGRES_PORT": 5432}}', "Values.POSTGRES_PORT must be a string"),
        ],
    )
    def test_an_invalid_settings_file_is_refused(self, tmp_path: Path, text: str, said: str) -> None:
        with pytest.raises(LocalCloudError, match=said):
            SettingsFile.read(written(tmp_path, text))


class TestElsewhere:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("POSTS_STORAGE", ACCOUNT),
            ("LAKE_STORAGE", OWN["LAKE_STORAGE"].replace("127.0.0.1:10010", "lake.example:10010")),
            ("AzureWebJobsStorage", "<connection string>"),
            ("AzureWebJobsStorage__accountName", "acme"),
            ("LAKE_STORAGE__dfsServiceUri", "https://<lake account>.dfs.core.windows.net"),
            ("AzureWebJobsPOSTS_STORAGE__serviceUri", "https://acme.blob.core.windows.net"),
            ("POSTGRES_HOST", "db.eu-west-1.rds.amazonaws.com"),
            ("DATABRICKS_HOST", "https://adb-1.azuredatabricks.net"),
            ("DATABRICKS_HOST", "adb-1.azuredatabricks.net"),
            ("DATABRICKS_AUTH", "managed-identity"),
            ("LAKE_ROOT_FOR_JOBS", "abfss://stacktopics@acme.dfs.core.windows.net"),
            ("KEY_VAULT_URL", "https://acme.vault.azure.net"),
        ],
    )
    def test_a_file_with_an_address_on_another_machine_is_recognised(
        self, tmp_path: Path, name: str, value: str
    ) -> None:
        path = written(tmp_path, {"Values": {**DEFAULTS, **OWN, name: value}})
        assert SettingsFile.read(path).elsewhere == f"its {name} names another machine or Azure"

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("POSTS_STORAGE", "UseDevelopmentStorage=true"),
            ("POSTS_STORAGE", MOVED["POSTS_STORAGE"]),
            ("POSTS_STORAGE", ""),
            ("QUEUES_STORAGE__queueServiceUri", "http://localhost:10001/devstoreaccount1"),
            ("QUEUES_STORAGE__credential", "managedidentity"),
            ("POSTGRES_HOST", "localhost"),
            ("DATABRICKS_HOST", "http://localhost:1"),
            ("DATABRICKS_AUTH", "token"),
            ("LAKE_ROOT_FOR_JOBS", "/Volumes/lake"),
            ("KEY_VAULT_URL", ""),
        ],
    )
    def test_a_file_with_addresses_on_this_machine_is_accepted(self, tmp_path: Path, name: str, value: str) -> None:
        assert SettingsFile.read(written(tmp_path, {"Values": {**DEFAULTS, **OWN, name: value}})).elsewhere is None

    def test_an_encrypted_settings_file_is_recognised(self, tmp_path: Path) -> None:
        path = written(tmp_path, {"IsEncrypted": True, "Values": {"A": "CfDJ8"}})
        assert SettingsFile.read(path).elsewhere == "it is encrypted"


class TestSet:
    def test_settings_of_the_app_and_of_its_host_can_be_set(self) -> None:
        given = {
            "REFERENCE_TABLES": "users,post_types,badges",
            "REFERENCE_SCHEDULE": "0 */5 * * * *",
            "POSTS_TRIGGER_SOURCE": "EventGrid",
            "TOPIC_SOURCE": "",
            "AzureWebJobs.retrain.Disabled": "true",
            "AzureFunctionsJobHost__logging__logLevel__default": "Debug",
        }
        assert checked([f"{name}={value}" for name, value in given.items()]) == given
        assert checked(["REFERENCE_TABLES=a=b"]) == {"REFERENCE_TABLES": "a=b"}

    @pytest.mark.parametrize(
        ("assignment", "said"),
        [
            ("REFERENCE_TABEL=users", "--set REFERENCE_TABEL: there is no such setting; is it REFERENCE_TABLES"),
            ("reference_tables=users", "--set reference_tables: there is no such setting; is it REFERENCE_TABLES"),
            ("PATH=/bin", "--set PATH: there is no such setting"),
            ("REFERENCE_TABLES", "write NAME=VALUE"),
            ("REFERENCE_SCHEDULE=daily", "--set REFERENCE_SCHEDULE: .*must have six fields"),
            ("RETRAIN_SCHEDULE=", "--set RETRAIN_SCHEDULE: .*must have six fields"),
            (
                "POSTS_TRIGGER_SOURCE=Polling",
                "--set POSTS_TRIGGER_SOURCE: write one of EventGrid, LogsAndContainerScan",
            ),
            ("REFERENCE_MAX_SHRINK=2", "--set REFERENCE_MAX_SHRINK: Input should be less than or equal to 1"),
            ("TOPIC_SOURCE=guess", "--set TOPIC_SOURCE: Input should be 'tags' or 'model'"),
        ],
    )
    def test_the_refusal_of_an_invalid_setting_names_it(self, assignment: str, said: str) -> None:
        with pytest.raises(LocalCloudError, match=said):
            checked([assignment])

    @pytest.mark.parametrize(
        "name", [*OWN, "LAKE_STORAGE__dfsServiceUri", "KEY_VAULT_URL", "POSTGRES_PASSWORD_SECRET", "DATABRICKS_AUTH"]
    )
    def test_the_refusal_of_an_address_or_key_names_it(self, name: str) -> None:
        with pytest.raises(LocalCloudError, match=f"--set {name}: addresses and keys"):
            checked([f"{name}=x"])


class TestEnvironment:
    def test_the_environment_does_not_override_the_settings_of_the_cloud(self) -> None:
        environ = {
            "PATH": "/bin",
            "POSTS_CONTAINER": "incoming",
            "POSTS_STORAGE": ACCOUNT,
            "LAKE_STORAGE__dfsServiceUri": "https://acme.dfs.core.windows.net",
            "postgres_host": "db.example",
            "POSTGRES_PORT": OWN["POSTGRES_PORT"],
            "DATABRICKS_CONFIG_PROFILE": "work",
            "KEY_VAULT_URL": "",
        }
        used, aside = without_own(environ, OWN)
        assert used == {**OWN, "PATH": "/bin", "POSTS_CONTAINER": "incoming"}
        assert aside == [
            "DATABRICKS_CONFIG_PROFILE",
            "LAKE_STORAGE__dfsServiceUri",
            "POSTS_STORAGE",
            "postgres_host",
        ]

    def test_the_environment_overrides_the_file_for_all_other_settings(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = written(tmp_path, {"Values": {"POSTS_CONTAINER": "of-the-file", "LAKE_FILE_SYSTEM": "of-the-file"}})
        variables = {"LAKE_FILE_SYSTEM": "of-the-environment", "POSTS_CONTAINER": "", "POSTGRES_HOST": "db.example"}
        monkeypatch.setattr("os.environ", variables)
        said: list[str] = []
        cloud = LocalCloud(tmp_path / "state", settings_file=path, tell=said.append)
        cloud.ports = dict(DEFAULT_PORTS)
        cloud._settle(cloud._written_settings())
        assert cloud.settings["LAKE_FILE_SYSTEM"] == "of-the-environment"
        assert cloud.settings["LAKE_ROOT_FOR_JOBS"].endswith("/of-the-environment")
        assert cloud.settings["POSTS_CONTAINER"] == "of-the-file"
        assert "POSTS_CONTAINER" not in cloud._environment
        assert said == ["ignored from the environment, because this cloud sets its own: POSTGRES_HOST"]
        values = json.loads(path.read_text())["Values"]
        assert values["LAKE_FILE_SYSTEM"] == "of-the-file"
        assert values["LAKE_ROOT_FOR_JOBS"].endswith("/of-the-file")

    def test_every_setting_belongs_to_the_cloud_or_to_the_user(self) -> None:
        own = {name for name in (field.upper() for field in Settings.model_fields) if is_own(name)}
        assert own == {
            *(name for name in OWN if name.lower() in Settings.model_fields),
            *("KEY_VAULT_URL", "POSTGRES_PASSWORD_SECRET"),
            *("DATABRICKS_AUTH", "DATABRICKS_CLIENT_ID", "DATABRICKS_TOKEN_SECRET"),
        }
        assert not any(is_own(name) for name in DEFAULTS)
        assert not is_own(f"AzureWebJobs.{os.name}.Disabled")
