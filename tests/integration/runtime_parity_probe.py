"""The results of one side for an app: `host` (this project's) or `runtime` (Microsoft's, Python 3.13 only).

Prints JSON: the index of each function, and the value of its parameter for a set of made-up events. The events are
typed data from the host's own module; Microsoft's runtime gets them through stand-ins for its protobuf classes.
Run as `python runtime_parity_probe.py SIDE APP_FILE` with the app's settings in the environment.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import azure.functions as func

from localcloud.host.app import HostedFunction, load_functions
from localcloud.host.bindings import (
    BlobReference,
    ScheduleStatus,
    TriggerValue,
    argument,
    blob_value,
    http_reply,
    http_value,
    queue_value,
    timer_value,
)
from localcloud.host.runner import Invocation

MOMENT = datetime(2026, 11, 22, 13, 14, 15, 678901, UTC)
ANSWER = func.HttpResponse("é", status_code=202, mimetype="text/csv", headers={"X-Sent": "yes"})


def events(function: HostedFunction) -> list[TriggerValue]:
    """Events for a function's kind of trigger."""
    return _EVENTS[function.kind](function)


def _timers(_function: HostedFunction) -> list[TriggerValue]:
    status = ScheduleStatus(MOMENT, MOMENT.replace(day=23), MOMENT)
    return [timer_value(past_due=True, status=status), timer_value(past_due=False, status=None)]


def _messages(function: HostedFunction) -> list[TriggerValue]:
    times = {"inserted": MOMENT, "expires": MOMENT.replace(day=29), "next_visible": MOMENT.replace(microsecond=0)}
    return [
        queue_value(function, body, message_id="id", dequeue_count=3, pop_receipt="receipt", **times)
        for body in (b'{"a": 1}', "é".encode(), b"", b"\xff\x00")
    ]


def _blobs(function: HostedFunction) -> list[TriggerValue]:
    content = None if function.deferred else b"\x00content"
    return [
        blob_value(function, BlobReference("posts", name, f"http://x/{name}", {"Length": 8}, {"k": "v"}, {}), content)
        for name in ("a.parquet", "a b/ü.parquet")
    ]


def _requests(_function: HostedFunction) -> list[TriggerValue]:
    url = "http://127.0.0.1:7071/api/topics"
    headers = [("Host", "127.0.0.1:7071"), ("Accept", "text/csv"), ("Accept", "*/*")]
    query = [("day", "2026-11-22"), ("top", "1"), ("top", "2"), ("empty", "")]
    given: dict[str, Any] = {"url": url, "headers": headers, "query": query}
    return [
        http_value(method="GET", route_values={}, body=b"", **given),
        http_value(method="POST", route_values={"kind": "é"}, body=b'{"a": 1}', **given),
    ]


_EVENTS: dict[str, Callable[[HostedFunction], list[TriggerValue]]] = {
    "timerTrigger": _timers,
    "queueTrigger": _messages,
    "blobTrigger": _blobs,
    "httpTrigger": _requests,
}


def described(value: Any) -> dict[str, Any]:
    """A value's type and all its public attributes and results that can be written as JSON."""
    facts = {}
    for name in dir(value):
        if name.startswith("_") or name in ("api_version", "closed"):
            continue
        fact = _attempt(functools.partial(getattr, value, name))
        if name in ("get_body", "get_json", "read"):
            fact = _attempt(fact)
        if isinstance(fact, Mapping):
            fact = {str(key): str(item) for key, item in fact.items()}
        if isinstance(fact, str | int | float | bytes | bool | dict | datetime | None):
            facts[name] = str(fact)
    return {"type": f"{type(value).__module__}.{type(value).__qualname__}", "facts": facts}


def _attempt(call: Callable[[], Any]) -> Any:
    """The result of a call, or the name of its ValueError (no JSON in the body, no secondary endpoint)."""
    try:
        return call()
    except ValueError as error:
        return type(error).__name__


def host_side(functions: list[HostedFunction]) -> dict[str, Any]:
    return {
        function.name: {
            "bindings": function.bindings,
            "wants_context": function.wants_context,
            "is_async": function.is_async,
            "returns_value": function.returns_value,
            "parameter": function.parameter,
            "parameter_type": function.parameter_type.__qualname__ if function.parameter_type else None,
            "deferred": function.deferred,
            "values": [described(argument(function, value)) for value in events(function)],
            "context": sorted(name for name in dir(Invocation) if not name.startswith("_")),
            "answer": _plain_reply() if function.kind == "httpTrigger" else None,
        }
        for function in functions
    }


def _plain_reply() -> dict[str, Any]:
    reply = http_reply(ANSWER)
    return {"status": str(reply.status), "headers": dict(reply.headers), "body": reply.body.decode()}


class Proto(SimpleNamespace):
    """Stands in for any protobuf message: fields are attributes, and a `oneof` is the given field."""

    def WhichOneof(self, _group: str) -> str | None:
        return next(iter(vars(self)), None)


class Protos:
    """Stands in for the module of protobuf classes of the runtime."""

    StatusResult = type("StatusResult", (Proto,), {"Success": "success", "Failure": "failure"})
    BindingInfo = type("BindingInfo", (Proto,), {"undefined": None, "out": 1, "inout": 2})

    def __getattr__(self, name: str) -> type[Proto]:
        return Proto


def _typed_data(datum: Any) -> Proto:
    if datum.type != "http":
        return Proto(**{datum.type: datum.value})
    fields = dict(datum.value)
    for group in ("headers", "query", "params"):
        fields[group] = {name: item.value for name, item in fields[group].items()}
    request = {"method": fields.pop("method").value, "url": fields.pop("url").value}
    return Proto(http=Proto(**request, **fields | {"body": _typed_data(fields["body"])}))


async def ask(call: Callable[[Any], Any], kind: str, **fields: Any) -> Any:
    """The response of Microsoft's runtime to a request of its host."""
    properties = {"host": "127.0.0.1", "protos": Protos()}
    return await call(Proto(request=Proto(**{kind: Proto(**fields)}), properties=properties))


async def runtime_index(app_file: Path) -> list[Any]:
    """The functions that Microsoft's runtime finds in the app."""
    from azure_functions_runtime import handle_event

    started = await ask(
        handle_event.worker_init_request,
        "worker_init_request",
        capabilities={},
        function_app_directory=str(app_file.parent),
    )
    assert started.result.status == "success", started.result.exception.stack_trace
    indexed = await ask(handle_event.functions_metadata_request, "functions_metadata_request")
    assert indexed.result.status == "success", indexed.result.exception.stack_trace
    return list(indexed.function_metadata_results)


async def runtime_invoke(function_id: str, parameter: str, value: TriggerValue) -> Any:
    """The result of an invocation by Microsoft's runtime."""
    from azure_functions_runtime import handle_event

    ended = await ask(
        handle_event.invocation_request,
        "invocation_request",
        invocation_id="id",
        function_id=function_id,
        input_data=[Proto(data=_typed_data(value.data), name=parameter)],
        trigger_metadata={name: _typed_data(datum) for name, datum in value.metadata.items()},
        trace_context=Proto(trace_parent="", trace_state="", attributes={}),
        retry_context=Proto(retry_count=0, max_retry_count=0, exception=None),
    )
    assert ended.result.status == "success", ended.result.exception.stack_trace
    return ended


def http_answer(ended: Any) -> dict[str, Any]:
    """The response of an HTTP function."""
    sent = ended.return_value.http
    return {"status": sent.status_code, "headers": sent.headers, "body": sent.body.bytes.decode()}


async def runtime_side(functions: list[HostedFunction], app_file: Path) -> dict[str, Any]:
    from azure_functions_runtime import handle_event

    indexed = await runtime_index(app_file)
    registry = handle_event._functions._functions
    by_name = {function.name: function for function in functions}

    sides = {}
    for metadata in indexed:
        info = registry[metadata.function_id]
        (parameter,) = info.input_types
        given: list[dict[str, Any]] = []
        contexts: list[Any] = []

        def capture(context: Any = None, *, given: Any = given, contexts: Any = contexts, **arguments: Any) -> Any:
            (value,) = arguments.values()
            given.append(described(value))
            contexts.append(context)
            return ANSWER if isinstance(value, func.HttpRequest) else None

        registry[metadata.function_id] = info._replace(func=capture, is_async=False, requires_context=True)
        answer = None
        for value in events(by_name[metadata.name]):
            ended = await runtime_invoke(metadata.function_id, parameter, value)
            if info.is_http_func:
                answer = http_answer(ended)
        sides[metadata.name] = {
            "bindings": [json.loads(binding) for binding in metadata.raw_bindings],
            "wants_context": info.requires_context,
            "is_async": info.is_async,
            "returns_value": info.has_return,
            "parameter": parameter,
            "parameter_type": info.input_types[parameter].pytype.__qualname__,
            "deferred": info.input_types[parameter].deferred_bindings_enabled,
            "values": given,
            "context": sorted(name for name in dir(contexts[0]) if not name.startswith("_")),
            "answer": answer,
        }
    return sides


def main() -> None:
    side, app_file = sys.argv[1], Path(sys.argv[2])
    logging.disable(logging.CRITICAL)
    functions = load_functions(app_file, os.environ)
    if side == "host":
        seen = host_side(functions)
    else:
        # The runtime must import the app itself. It refuses to index an app that is already loaded a second time.
        del sys.modules[app_file.stem]
        seen = asyncio.run(runtime_side(functions, app_file))
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main()
