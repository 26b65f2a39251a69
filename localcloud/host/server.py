"""The HTTP side: the app's own routes, the admin API, and the webhook that Event Grid calls."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web

from localcloud.host.app import HostedFunction
from localcloud.host.bindings import HttpReply, http_reply, http_value
from localcloud.host.errors import HostError
from localcloud.host.keys import HostKeys
from localcloud.host.routes import Route
from localcloud.host.runner import API_REASON, Outcome, Runner

log = logging.getLogger(__name__)
ADDRESS = "127.0.0.1"
# Azure Functions takes request bodies of up to 100 MB.
_MAX_BODY = 100 * 1024 * 1024

Fire = Callable[[HostedFunction, str], Awaitable[Outcome]]
Publish = Callable[[str, Any], Awaitable[int]]


class HttpServer:
    """Serves on 127.0.0.1.

    Without `keys` it asks for none. `fire` runs a function that has no HTTP trigger, with an input text, and waits for
    it. `publish` takes the name of a function (without `Host.Functions.`) and parsed Event Grid events, and returns how
    many blobs it queued; it raises ValueError for invalid events.
    """

    def __init__(
        self,
        functions: Sequence[HostedFunction],
        runner: Runner,
        keys: HostKeys | None,
        *,
        route_prefix: str,
        cors_origins: Sequence[str],
        host_id: str,
        fire: Fire,
        publish: Publish,
    ) -> None:
        self._functions = {function.name: function for function in functions}
        http = [function for function in functions if function.kind == "httpTrigger" and not function.disabled]
        self.routes = sorted((Route.of(function, route_prefix) for function in http), key=lambda route: route.rank)
        self._runner = runner
        self._keys = keys
        self._cors_origins = cors_origins
        self._host_id = host_id
        self._fire = fire
        self._publish = publish
        self._background: set[asyncio.Future[Outcome]] = set()
        self._started = time.monotonic()
        app = web.Application(client_max_size=_MAX_BODY)
        app.router.add_get("/admin/host/ping", self._ping)
        app.router.add_get("/admin/host/status", self._status)
        app.router.add_get("/admin/functions", self._list)
        app.router.add_post("/admin/functions/{name}", self._invoke)
        app.router.add_post("/runtime/webhooks/blobs", self._webhook)
        app.router.add_route("*", "/{path:.*}", self._function)
        self._server = web.AppRunner(app, access_log=None)

    async def start(self, port: int) -> int:
        """Listens and returns the port (a free one when 0 was asked). Raises HostError when it is taken."""
        await self._server.setup()
        try:
            await web.TCPSite(self._server, ADDRESS, port).start()
        except OSError as error:
            raise HostError(f"port {port} cannot be used: {error.strerror}") from error
        return int(self._server.addresses[0][1])

    async def stop(self) -> None:
        """Takes no more requests and lets those at work, and what they fired, finish."""
        await self._server.cleanup()
        if self._background:
            await asyncio.wait(self._background)

    async def _function(self, request: web.Request) -> web.Response:
        origin = self._allowed_origin(request)
        if origin and request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return web.Response(status=204, headers=_preflight_headers(request, origin))
        response = await self._route(request)
        if origin:
            response.headers["Access-Control-Allow-Origin"] = origin
        return response

    async def _route(self, request: web.Request) -> web.Response:
        for route in self.routes:
            values = route.match(request.method, request.rel_url.raw_path)
            if values is not None:
                return await self._call(route.function, request, values)
        if request.rel_url.raw_path == "/" and request.method in ("GET", "HEAD"):
            return web.Response(text="The functions host is up and running.\n")
        return web.Response(status=404)

    async def _call(self, function: HostedFunction, request: web.Request, values: dict[str, str]) -> web.Response:
        level = str(function.trigger.get("authLevel", "function")).lower()
        if self._keys and not self._keys.allow(level, _presented_key(request), function.name):
            return web.Response(status=401)
        value = http_value(
            method=request.method,
            url=str(request.url),
            headers=request.headers.items(),
            query=request.query.items(),
            route_values=values,
            body=await request.read(),
        )
        outcome = await self._runner.run(function, value, API_REASON)
        if not outcome.succeeded:
            return web.Response(status=500)
        try:
            return _response(http_reply(outcome.result))
        except TypeError:
            log.exception("'Functions.%s' gave no HTTP answer", function.name)
            return web.Response(status=500)

    async def _ping(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _status(self, request: web.Request) -> web.Response:
        if not self._is_admin(request):
            return web.Response(status=401)
        uptime = round((time.monotonic() - self._started) * 1000)
        return web.json_response(
            {"id": self._host_id, "state": "Running", "version": "localcloud", "processUptime": uptime}
        )

    async def _list(self, request: web.Request) -> web.Response:
        if not self._is_admin(request):
            return web.Response(status=401)
        return web.json_response(
            [
                {
                    "name": function.name,
                    "href": f"http://{request.host}/admin/functions/{function.name}",
                    "config": {"bindings": function.bindings},
                    "isDisabled": function.disabled,
                    "language": "python",
                }
                for function in self._functions.values()
            ]
        )

    async def _invoke(self, request: web.Request) -> web.Response:
        if not self._is_admin(request):
            return web.Response(status=401)
        function = self._functions.get(request.match_info["name"])
        if function is None:
            return web.Response(status=404)
        if function.kind == "httpTrigger":
            return web.Response(status=400, text=f"{function.name} is called at its own route\n")
        try:
            work = self._fire(function, _input_text(await request.text()))
            if request.query.get("wait") != "true":
                self._start_in_background(work)
                return web.Response(status=202)
            return web.json_response((await work).to_json())
        except HostError as error:
            return web.Response(status=400, text=f"{error}\n")

    async def _webhook(self, request: web.Request) -> web.Response:
        if self._keys and not self._keys.allow_system(_presented_key(request)):
            return web.Response(status=401)
        try:
            events = json.loads(await request.text())
            if request.headers.get("aeg-event-type") == "SubscriptionValidation":
                return web.json_response({"validationResponse": events[0]["data"]["validationCode"]})
            name = request.query.get("functionName", "").removeprefix("Host.Functions.")
            queued = await self._publish(name, events)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            log.warning("Blob events refused: %s", error)
            return web.Response(status=500, text=f"invalid blob events: {error}\n")
        log.info("Event Grid: %d blob(s) for 'Functions.%s'", queued, name)
        return web.Response(status=202)

    def _start_in_background(self, work: Awaitable[Outcome]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._end_in_background)

    def _end_in_background(self, task: asyncio.Future[Outcome]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("Not invoked: %s", error)

    def _is_admin(self, request: web.Request) -> bool:
        return self._keys is None or self._keys.allow("admin", _presented_key(request))

    def _allowed_origin(self, request: web.Request) -> str | None:
        origin = request.headers.get("Origin")
        if "*" in self._cors_origins:
            return "*" if origin else None
        return origin if origin in self._cors_origins else None


def _presented_key(request: web.Request) -> str:
    return request.headers.get("x-functions-key") or request.query.get("code", "")


def _input_text(body: str) -> str:
    try:
        document = json.loads(body) if body.strip() else {}
    except ValueError:
        document = None
    text = document.get("input", "") if isinstance(document, dict) else None
    if not isinstance(text, str):
        raise HostError('the body must look like {"input": "text"}')
    return text


def _response(reply: HttpReply) -> web.Response:
    response = web.Response(status=reply.status, body=reply.body)
    response.headers.popall("Content-Type", None)
    for name, value in reply.headers:
        if name.lower() not in ("content-length", "transfer-encoding"):
            response.headers.add(name, value)
    return response


def _preflight_headers(request: web.Request, origin: str) -> dict[str, str]:
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Methods": request.headers["Access-Control-Request-Method"],
        "Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers", "*"),
        "Access-Control-Max-Age": "600",
    }
