"""Indexing: what the host reads from an app, and its errors about an app that it cannot run."""

from pathlib import Path

import pytest
from azurefunctions.extensions.bindings import blob

from localcloud.host.app import HostedFunction, load_functions
from localcloud.host.errors import HostError, NoFunctionsFound
from tests.host_functions import imported

HEAD = """
import azure.functions as func
from azurefunctions.extensions.bindings import blob
app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)
"""
ENVIRON = {"INBOX": "posts", "WHEN": "0 0 2 * * 1", "AzureWebJobs.nightly.Disabled": "true"}


def indexed(source: str, folder: Path) -> dict[str, HostedFunction]:
    with imported(HEAD + source, folder, "indexed_app", ENVIRON) as functions:
        return {function.name: function for function in functions}


def test_triggers_are_read_and_settings_resolved(tmp_path: Path) -> None:
    functions = indexed(
        """
@app.timer_trigger(arg_name="timer", schedule="%WHEN%", run_on_startup=True)
@app.retry(strategy="exponential_backoff", max_retry_count="3", minimum_interval="00:00:02",
           maximum_interval="00:00:05")
def nightly(timer: func.TimerRequest, context: func.Context) -> None: ...

@app.blob_trigger(arg_name="source", path="%INBOX%/{name}", connection="DATA", source="EventGrid")
def land(source: blob.BlobClient) -> None: ...

@app.function_name("topics-http")
@app.route(route="topics/{day?}", methods=["GET"])
async def topics(req: func.HttpRequest) -> func.HttpResponse: ...
""",
        tmp_path,
    )
    nightly, land, topics = functions["nightly"], functions["land"], functions["topics-http"]
    assert nightly.trigger["schedule"] == "0 0 2 * * 1"
    assert nightly.bindings[0]["schedule"] == "%WHEN%"
    assert (nightly.wants_context, nightly.disabled, nightly.retry_delays) == (True, True, (2.0, 4.0, 5.0))
    assert land.trigger["path"] == "posts/{name}"
    assert land.bindings[0]["properties"] == {"SupportsDeferredBinding": True}
    assert (land.deferred, land.parameter_type, land.disabled) == (True, blob.BlobClient, False)
    assert (topics.is_async, topics.returns_value, topics.kind) == (True, True, "httpTrigger")
    assert [binding["type"] for binding in topics.bindings] == ["httpTrigger", "http"]


def test_every_missing_setting_is_named_with_the_place_that_needs_it(tmp_path: Path) -> None:
    source = """
@app.timer_trigger(arg_name="timer", schedule="%NOWHERE%")
def nightly(timer: func.TimerRequest) -> None: ...

@app.queue_trigger(arg_name="message", queue_name="%NEITHER%", connection="DATA")
def work(message: func.QueueMessage) -> None: ...
"""
    with pytest.raises(HostError) as caught:
        indexed(source, tmp_path)
    assert "NOWHERE: function nightly, binding timer, schedule = '%NOWHERE%'" in str(caught.value)
    assert "NEITHER: function work, binding message, queueName = '%NEITHER%'" in str(caught.value)


def test_an_import_error_is_reported_as_the_real_host_does(tmp_path: Path) -> None:
    with pytest.raises(NoFunctionsFound, match=r"No job functions found[\s\S]*Traceback[\s\S]*no_such_module"):
        indexed("import no_such_module", tmp_path)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "declares none"),
        ("other = func.FunctionApp()", "it holds 2"),
        (
            '@app.timer_trigger(arg_name="timer", schedule="0 * * * * *")\ndef f(other: func.TimerRequest): ...',
            "do not match",
        ),
        (
            '@app.queue_trigger(arg_name="m", queue_name="q", connection="C")\ndef f(m: func.TimerRequest): ...',
            "cannot be a TimerRequest",
        ),
        (
            '@app.queue_trigger(arg_name="m", queue_name="q", connection="C")\n'
            '@app.queue_output(arg_name="o", queue_name="q", connection="C")\n'
            "def f(m: func.QueueMessage, o: func.Out[str]): ...",
            "no binding 'queue'",
        ),
        (
            '@app.event_grid_trigger(arg_name="event")\ndef f(event: func.EventGridEvent): ...',
            "no trigger 'eventGridTrigger'",
        ),
        (
            '@app.timer_trigger(arg_name="timer", schedule="0 * * * * *")\n'
            '@app.retry(strategy="fixed_delay", max_retry_count="-1", delay_interval="00:00:01")\n'
            "def f(timer: func.TimerRequest): ...",
            "for ever",
        ),
    ],
)
def test_an_app_that_cannot_run_is_an_error(tmp_path: Path, source: str, said: str) -> None:
    with pytest.raises(HostError, match=said):
        indexed(source, tmp_path)


def test_a_missing_app_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NoFunctionsFound, match=r"absent\.py"):
        load_functions(tmp_path / "absent.py", {})
