"""Every trigger of StackTopics: decode, call one service, log. Names in %…% are app settings."""

import json
import logging
import os
from http import HTTPStatus

import azure.functions as func

from ingest.binding import BlobClient
from shared.logs import set_up_logs
from shared.services import hurried_services, services

set_up_logs()
log = logging.getLogger("stacktopics")

app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)

# Event Grid in Azure, the only source that Flex Consumption has; LogsAndContainerScan polls on a laptop.
POSTS_TRIGGER_SOURCE = func.BlobSource(os.environ.get("POSTS_TRIGGER_SOURCE", func.BlobSource.EVENT_GRID.value))


@app.timer_trigger(arg_name="timer", schedule="%REFERENCE_SCHEDULE%", run_on_startup=False, use_monitor=True)
def copy_reference(timer: func.TimerRequest) -> None:
    """Copy the reference tables from Postgres to the lake."""
    from ingest.reference.copy import copy_reference

    if timer.past_due:
        log.warning("the copy of the reference tables is late")
    copy_reference(services())


@app.blob_trigger(
    arg_name="source", path="%POSTS_CONTAINER%/{name}", connection="POSTS_STORAGE", source=POSTS_TRIGGER_SOURCE
)
def land_posts(source: BlobClient) -> None:
    """Land one Posts file in the lake and have it classified."""
    from pipeline.advance import advance_blob
    from shared.storage import StorageBlob

    advance_blob(services(), StorageBlob(source))


@app.queue_trigger(arg_name="message", queue_name="%POSTS_LANDED_QUEUE%", connection="QUEUES_STORAGE")
def launch_classification(message: func.QueueMessage) -> None:
    """Start the Databricks run for a landed file."""
    from pipeline.advance import advance
    from shared.documents import decode
    from shared.messages import PostsLanded

    named = decode(PostsLanded, message.get_body(), "a message of POSTS_LANDED_QUEUE")
    advance(services(), named.source_id, named.version)


@app.queue_trigger(arg_name="message", queue_name="%CLASSIFICATION_RUNS_QUEUE%", connection="QUEUES_STORAGE")
def watch_classification(message: func.QueueMessage) -> None:
    """Look at a run: publish it, try again, or look later."""
    from pipeline.advance import advance
    from shared.documents import decode
    from shared.messages import ClassificationStarted

    named = decode(ClassificationStarted, message.get_body(), "a message of CLASSIFICATION_RUNS_QUEUE")
    advance(services(), named.source_id, named.version)


@app.timer_trigger(arg_name="timer", schedule="%RECONCILE_SCHEDULE%", run_on_startup=False, use_monitor=True)
def reconcile(timer: func.TimerRequest) -> None:
    """Find what no event will bring up, and do its next step."""
    from pipeline.reconcile import reconcile

    reconcile(services())


@app.timer_trigger(arg_name="timer", schedule="%RETRAIN_SCHEDULE%", run_on_startup=False, use_monitor=True)
def retrain(timer: func.TimerRequest) -> None:
    """Start the training run that may replace the topic model."""
    from pipeline.retrain import retrain

    retrain(services())


@app.route(route="topics", methods=[func.HttpMethod.GET])
def topics(req: func.HttpRequest) -> func.HttpResponse:
    """The topics of a day: `day` (default the latest), `top` (default 10), `format` json or csv."""
    from serve.budget import ANSWER_SECONDS, within
    from serve.topics import parse_question, topics_of_day
    from shared.errors import BadInput, NotFound, TransientError

    try:
        asked = parse_question(req.params, req.headers.get("accept"))
        lake = hurried_services().lake
        found = within(ANSWER_SECONDS, lambda: topics_of_day(lake, asked.day, asked.top))
    except BadInput as error:
        return _problem(HTTPStatus.BAD_REQUEST, str(error))
    except NotFound as error:
        return _problem(HTTPStatus.NOT_FOUND, str(error))
    except TransientError as error:
        log.warning("topics: %s", error)
        return _problem(HTTPStatus.SERVICE_UNAVAILABLE, "the lake does not answer; try again in a minute")
    if asked.format == "csv":
        return func.HttpResponse(found.to_csv(), mimetype="text/csv", charset="utf-8")
    return func.HttpResponse(found.model_dump_json(), mimetype="application/json")


@app.route(route="health", methods=[func.HttpMethod.GET], auth_level=func.AuthLevel.ANONYMOUS)
def health(req: func.HttpRequest) -> func.HttpResponse:
    """Whether the settings are complete and the lake answers: 200, or 503 with what is wrong."""
    from serve.health import health
    from serve.topics import check_names
    from shared.errors import BadInput

    try:
        check_names(req.params, ())
    except BadInput as error:
        return _problem(HTTPStatus.BAD_REQUEST, str(error))
    report = health(hurried_services())
    status = HTTPStatus.OK if report.healthy else HTTPStatus.SERVICE_UNAVAILABLE
    return func.HttpResponse(report.model_dump_json(), status_code=status, mimetype="application/json")


def _problem(status: HTTPStatus, detail: str) -> func.HttpResponse:
    """An error answer (RFC 9457)."""
    body = json.dumps({"status": status.value, "title": status.phrase, "detail": detail})
    return func.HttpResponse(body, status_code=status, mimetype="application/problem+json")
