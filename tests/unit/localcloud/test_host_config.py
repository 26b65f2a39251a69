"""local.settings.json, host.json and connection names."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from localcloud.host.config import Connection, HostConfig, LocalSettings, QueueOptions, find_connection, host_id
from localcloud.host.errors import HostError


def written(folder: Path, document: Any) -> Path:
    path = folder / "file.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_settings_go_into_the_environment_but_do_not_override_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOST_TEST_KEPT", "mine")
    monkeypatch.delenv("HOST_TEST_NEW", raising=False)
    settings = LocalSettings.read(
        written(
            tmp_path,
            {
                "Values": {"HOST_TEST_KEPT": "file", "HOST_TEST_NEW": "file"},
                "Host": {"LocalHttpPort": 7100, "CORS": "http://a, http://b"},
            },
        )
    )
    monkeypatch.setattr("os.environ", environ := {"HOST_TEST_KEPT": "mine"})
    assert settings.export() == ["HOST_TEST_KEPT"]
    assert environ == {"HOST_TEST_KEPT": "mine", "HOST_TEST_NEW": "file"}
    assert (settings.port, settings.cors_origins) == (7100, ("http://a", "http://b"))


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"IsEncrypted": True, "Values": {}}, "encrypted"),
        ({"Values": {"PORT": 1}}, "Values.PORT"),
        ("{", "not JSON"),
        ("[]", "JSON object"),
        ({"Values": [], "Host": {}}, "Values must be a JSON object"),
    ],
)
def test_invalid_settings_are_refused(tmp_path: Path, document: Any, said: str) -> None:
    with pytest.raises(HostError, match=said):
        LocalSettings.read(written(tmp_path, document))


def test_comments_are_read_as_func_reads_them(tmp_path: Path) -> None:
    settings = written(
        tmp_path, '{ /* mine */ "Values": {"A": "1", }, // and the port\n "Host": {"LocalHttpPort": 7100} }'
    )
    assert LocalSettings.read(settings) == LocalSettings({"A": "1"}, 7100)
    config = written(tmp_path, '{"version": "2.0", // of host.json\n "functionTimeout": "00:10:00"}')
    assert HostConfig.read(config).function_timeout == timedelta(minutes=10)


def test_the_error_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="absent"):
        LocalSettings.read(tmp_path / "absent.json")


def test_the_defaults_of_host_json_are_those_of_azure(tmp_path: Path) -> None:
    config = HostConfig.read(written(tmp_path, {"version": "2.0"}))
    assert config.route_prefix == "api"
    assert config.queues == QueueOptions(16, 8, 5, timedelta(0), timedelta(minutes=1), "base64")
    assert config.poison_blob_threshold == 5
    assert config.function_timeout is None


def test_the_options_of_host_json_are_used(tmp_path: Path) -> None:
    config = HostConfig.read(
        written(
            tmp_path,
            {
                "version": "2.0",
                "functionTimeout": "1.00:10:00",
                "extensions": {
                    "http": {"routePrefix": "/v1/"},
                    "blobs": {"poisonBlobThreshold": 2, "maxDegreeOfParallelism": 4},
                    "queues": {
                        "batchSize": 6,
                        "maxDequeueCount": 2,
                        "visibilityTimeout": "00:00:30",
                        "maxPollingInterval": "00:00:02",
                        "messageEncoding": "None",
                    },
                },
            },
        )
    )
    assert config.route_prefix == "v1"
    assert config.function_timeout == timedelta(days=1, minutes=10)
    assert (config.poison_blob_threshold, config.blobs_at_once) == (2, 4)
    assert config.queues == QueueOptions(6, 3, 2, timedelta(seconds=30), timedelta(seconds=2), "none")


@pytest.mark.parametrize(
    ("queues", "said"),
    [
        ({"batchSize": 33}, "batchSize"),
        ({"messageEncoding": "utf16"}, "messageEncoding"),
        ({"visibilityTimeout": 30}, "visibilityTimeout"),
    ],
)
def test_wrong_queue_options_are_refused(queues: dict[str, Any], said: str) -> None:
    with pytest.raises(HostError, match=said):
        QueueOptions.from_json(queues)


def test_host_json_without_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="version"):
        HostConfig.read(written(tmp_path, {}))


@pytest.mark.parametrize(
    ("name", "environ", "expected"),
    [
        ("DATA", {"DATA": "text"}, Connection(connection_string="text")),
        ("DATA", {"DATA": "plain", "AzureWebJobsDATA": "prefixed"}, Connection(connection_string="prefixed")),
        ("", {"AzureWebJobsStorage": "text"}, Connection(connection_string="text")),
        ("DATA", {"DATA__queueServiceUri": "https://q"}, Connection(account_url="https://q")),
        ("DATA", {"DATA__serviceUri": "https://s"}, Connection(account_url="https://s")),
        (
            "AzureWebJobsStorage",
            {"AzureWebJobsStorage__accountName": "acme"},
            Connection(account_url="https://acme.queue.core.windows.net"),
        ),
        (
            "DATA",
            {"DATA__queueServiceUri": "https://q", "DATA__credential": "managedidentity", "DATA__clientId": "id"},
            Connection(account_url="https://q", client_id="id", managed_identity=True),
        ),
    ],
)
def test_every_form_of_a_connection_is_found(name: str, environ: dict[str, str], expected: Connection) -> None:
    assert find_connection(name, "queue", environ) == expected


def test_the_error_of_a_missing_connection_lists_the_names_tried() -> None:
    with pytest.raises(HostError, match=r"AzureWebJobsDATA, .*DATA__blobServiceUri"):
        find_connection("DATA", "blob", {"DATA__queueServiceUri": "https://q"})


def test_the_host_id_is_checked_and_has_a_default() -> None:
    assert host_id({}) == "localcloud"
    assert host_id({"AzureFunctionsWebHost__hostid": "mine-2"}) == "mine-2"
    with pytest.raises(HostError, match="hostid"):
        host_id({"AzureFunctionsWebHost__hostid": "No Such"})


def test_app_settings_override_host_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "host.json"
    file.write_text('{"version": "2.0", "extensions": {"queues": {"visibilityTimeout": "00:00:30", "batchSize": 4}}}')
    monkeypatch.setenv("AzureFunctionsJobHost__extensions__queues__visibilityTimeout", "00:00:01")
    monkeypatch.setenv("AzureFunctionsJobHost__extensions__blobs__poisonBlobThreshold", "2")
    config = HostConfig.read(file)
    assert (config.queues.visibility_timeout, config.queues.batch_size) == (timedelta(seconds=1), 4)
    assert config.poison_blob_threshold == 2
