"""A function app with every trigger; each call appends a line to the file that OBSERVATIONS names."""

import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import azure.functions as func
from azurefunctions.extensions.bindings import blob

app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)
_lock = threading.Lock()


def observe(function: str, **seen: Any) -> None:
    line = json.dumps({"function": function, "at": time.time(), **seen})
    with _lock, Path(os.environ["OBSERVATIONS"]).open("a") as file:
        file.write(line + "\n")


def behave(text: str) -> None:
    """Behave as the text of a message or blob says: `fail`, `sleep 3`; any other text succeeds."""
    if text == "fail":
        raise RuntimeError("failed on request")
    if text.startswith("sleep "):
        time.sleep(float(text.split()[1]))


@app.timer_trigger(arg_name="timer", schedule="%TICK_SCHEDULE%", run_on_startup=False)
def tick(timer: func.TimerRequest) -> None:
    observe("tick", past_due=timer.past_due, status=getattr(timer, "schedule_status", None))


@app.timer_trigger(arg_name="timer", schedule="0 0 0 1 1 *", run_on_startup=True, use_monitor=False)
def at_startup(timer: func.TimerRequest, context: func.Context) -> None:
    observe("at_startup", past_due=timer.past_due, name=context.function_name, id=context.invocation_id)


@app.blob_trigger(arg_name="source", path="%INBOX%/{name}.txt", connection="DATA")
def on_blob(source: blob.BlobClient) -> None:
    text = source.download_blob().readall().decode()
    observe("on_blob", container=source.container_name, blob=source.blob_name, text=text)
    behave(text)


@app.blob_trigger(arg_name="stream", path="streams/{name}", connection="DATA")
def on_stream(stream: func.InputStream) -> None:
    observe("on_stream", name=stream.name, text=stream.read().decode(), length=stream.length)


@app.blob_trigger(arg_name="source", path="events/in/{name}", connection="DATA", source=func.BlobSource.EVENT_GRID)
def on_event(source: blob.BlobClient) -> None:
    observe("on_event", blob=source.blob_name)


@app.queue_trigger(arg_name="message", queue_name="%WORK_QUEUE%", connection="DATA")
def on_message(message: func.QueueMessage, context: func.Context) -> None:
    text = message.get_body().decode()
    logging.info("working on %s", text)
    observe(
        "on_message",
        text=text,
        count=message.dequeue_count,
        id=message.id,
        receipt=message.pop_receipt,
        inserted=str(message.insertion_time),
        expires=str(message.expiration_time),
        next_visible=str(message.time_next_visible),
        invocation=context.invocation_id,
    )
    behave(text)


@app.queue_trigger(arg_name="message", queue_name="async-work", connection="DATA")
async def on_message_async(message: func.QueueMessage) -> None:
    observe("on_message_async", text=message.get_body().decode())


@app.route(route="echo/{kind}/{number:int?}", methods=["GET", "POST"], auth_level=func.AuthLevel.ANONYMOUS)
def echo(req: func.HttpRequest) -> func.HttpResponse:
    seen = {
        "method": req.method,
        "url": req.url,
        "route": dict(req.route_params),
        "query": dict(req.params),
        "header": req.headers.get("X-Given"),
        "body": req.get_body().decode(),
    }
    return func.HttpResponse(json.dumps(seen), status_code=201, mimetype="application/json", headers={"X-Sent": "yes"})


@app.route(route="guarded")
async def guarded(req: func.HttpRequest) -> str:
    return "open"


@app.route(route="breaks", auth_level=func.AuthLevel.ANONYMOUS)
def breaks(req: func.HttpRequest) -> func.HttpResponse:
    raise RuntimeError("failed on request")


@app.route(route="owner", auth_level=func.AuthLevel.ADMIN)
def owner(req: func.HttpRequest) -> func.HttpResponse:
    return func.HttpResponse("the owner")
