"""Bindings: the host converts the facts of an event into the arguments that azure.functions defines."""

from datetime import UTC, datetime
from typing import Any

import azure.functions as func
import pytest
from azurefunctions.extensions.bindings import blob

from localcloud.host.bindings import (
    BlobReference,
    ScheduleStatus,
    argument,
    blob_value,
    http_reply,
    http_value,
    queue_value,
    timer_value,
)
from tests.host_functions import hosted

MOMENT = datetime(2026, 11, 22, 13, 14, 15, 678901, UTC)
CONNECTION = "DefaultEndpointsProtocol=http;AccountName=a;AccountKey=a2V5;BlobEndpoint=http://127.0.0.1:1/a;"
BLOB = BlobReference("posts", "a/b.parquet", "http://x/a/b.parquet", {"Length": 3}, {"k": "v"}, {"name": "a/b"})


def nothing(value: Any) -> None: ...


def queue_message(body: bytes, **changes: Any) -> Any:
    function = hosted(nothing, {"type": "queueTrigger"}, **changes)
    value = queue_value(
        function,
        body,
        message_id="id",
        dequeue_count=2,
        pop_receipt="receipt",
        inserted=MOMENT,
        expires=MOMENT.replace(day=29),
        next_visible=MOMENT.replace(minute=44, microsecond=0),
    )
    return argument(function, value)


def status_of(timer: Any) -> Any:
    """An attribute that the converters set but the class does not declare."""
    return timer.schedule_status


def test_a_timer_request_has_the_state_of_its_schedule() -> None:
    function = hosted(nothing, {"type": "timerTrigger"})
    status = ScheduleStatus(MOMENT, MOMENT.replace(day=23), MOMENT)
    timer = argument(function, timer_value(past_due=True, status=status))
    assert isinstance(timer, func.TimerRequest)
    assert timer.past_due is True
    assert status_of(timer)["Next"] == "2026-11-23T13:14:15.678901+00:00"
    assert ScheduleStatus.from_json(status_of(timer)) == status
    assert argument(function, timer_value(past_due=False, status=None)).schedule_status == {}


def test_a_queue_message_has_its_text_and_metadata() -> None:
    message = queue_message('{"é": 1}'.encode())
    assert isinstance(message, func.QueueMessage)
    assert message.get_json() == {"é": 1}
    assert (message.id, message.dequeue_count, message.pop_receipt) == ("id", 2, "receipt")
    assert message.insertion_time == MOMENT
    assert message.expiration_time == MOMENT.replace(day=29)
    assert message.time_next_visible == MOMENT.replace(minute=44, microsecond=0)


def test_a_queue_message_that_is_not_text_keeps_its_bytes() -> None:
    assert queue_message(b"\xff\x00").get_body() == b"\xff\x00"
    assert queue_message(b"text", parameter_type=str) == "text"
    assert queue_message(b"text", parameter_type=bytes) == b"text"


def test_a_blob_client_has_the_blob_and_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", CONNECTION)
    function = hosted(
        nothing, {"type": "blobTrigger", "connection": "DATA"}, deferred=True, parameter_type=blob.BlobClient
    )
    with argument(function, blob_value(function, BLOB, None)) as client:
        assert (client.container_name, client.blob_name) == ("posts", "a/b.parquet")
        assert client.url == "http://127.0.0.1:1/a/posts/a/b.parquet"


def test_input_streams_and_plain_types_are_converted() -> None:
    function = hosted(nothing, {"type": "blobTrigger"}, parameter_type=func.InputStream)
    stream = argument(function, blob_value(function, BLOB, b"abc"))
    assert (stream.name, stream.length, stream.uri) == ("posts/a/b.parquet", 3, "http://x/a/b.parquet")
    assert (stream.read(), stream.metadata) == (b"abc", {"k": "v"})
    text = hosted(nothing, {"type": "blobTrigger"}, parameter_type=str)
    assert argument(text, blob_value(text, BLOB, b"abc")) == "abc"


def test_an_http_request_has_all_its_parts() -> None:
    function = hosted(nothing, {"type": "httpTrigger"})
    request = argument(
        function,
        http_value(
            method="post",
            url="http://127.0.0.1/api/topics/2026-11-22?top=1&top=2&empty=",
            headers=[("X-One", "a"), ("X-One", "b"), ("Content-Type", "application/json")],
            query=[("top", "1"), ("top", "2"), ("empty", "")],
            route_values={"day": "2026-11-22"},
            body=b'{"a": 1}',
        ),
    )
    assert isinstance(request, func.HttpRequest)
    assert (request.method, dict(request.params), dict(request.route_params)) == (
        "POST",
        {"top": "1,2"},
        {"day": "2026-11-22"},
    )
    assert (request.headers["x-one"], request.get_json(), request.get_body()) == ("a,b", {"a": 1}, b'{"a": 1}')


def test_http_responses_are_converted() -> None:
    reply = http_reply(func.HttpResponse(b"\x00", status_code=202, mimetype="image/png", headers={"X-A": "1"}))
    assert (reply.status, reply.body) == (202, b"\x00")
    assert dict(reply.headers) == {"X-A": "1", "content-type": "image/png"}
    cookie = func.HttpResponse(headers={"Set-Cookie": "a=b; Path=/"})
    assert ("set-cookie", "a=b; Path=/") in http_reply(cookie).headers
    assert http_reply("text").body == b"text"
    assert http_reply(None).status == 204
    with pytest.raises(TypeError, match="dict"):
        http_reply({})
