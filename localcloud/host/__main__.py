"""`python -m localcloud.host`: the functions host as a command. Exit code 1 when it cannot start or breaks."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from localcloud.host.app import HostedFunction, load_functions
from localcloud.host.config import HostConfig, LocalSettings
from localcloud.host.errors import HostError
from localcloud.host.keys import KEYS_FILE
from localcloud.host.runner import LogFormatter
from localcloud.host.service import FunctionsHost, serve

log = logging.getLogger("localcloud.host")


def main() -> int | str:
    """Returns what `sys.exit` takes: 0, 1 (a function did not end), or what is wrong in words."""
    arguments = _arguments()
    _log_to_stdout()
    try:
        settings = LocalSettings.read(arguments.settings)
        for name in settings.export():
            log.warning("%s keeps the value of the environment, not that of %s", name, arguments.settings)
        config = HostConfig.read(arguments.app.parent / "host.json")
        functions = load_functions(arguments.app, os.environ)
        clean = asyncio.run(_run(arguments, settings, config, functions))
    except HostError as error:
        return f"functions host: {error}"
    if not clean:
        # Threads of functions that do not end would hold up the interpreter.
        logging.shutdown()
        os._exit(1)
    return 0


async def _run(
    arguments: argparse.Namespace, settings: LocalSettings, config: HostConfig, functions: list[HostedFunction]
) -> bool:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    state = arguments.state if arguments.auth else None
    host = FunctionsHost(functions, config, state, os.environ, settings.cors_origins)
    for function in functions:
        log.info("Function %s: %s%s", function.name, function.kind, " (disabled)" if function.disabled else "")
    for route in host.server.routes:
        methods = ",".join(sorted(route.methods)) or "any"
        log.info("Route %s %s -> %s", methods, route.function.trigger.get("route"), route.function.name)
    return await serve(host, settings.port if arguments.port is None else arguments.port, stop.wait())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m localcloud.host", description="Runs a function app locally.")
    parser.add_argument("--settings", type=Path, default=Path("local.settings.json"))
    parser.add_argument("--app", type=Path, default=Path("function_app.py"), help="host.json lies beside it")
    parser.add_argument("--port", type=int, help="0 takes a free one; default: Host.LocalHttpPort, or 7071")
    parser.add_argument("--auth", action="store_true", help="ask for keys, as Azure does; `func start` does not")
    parser.add_argument("--state", type=Path, default=Path(".localcloud/host"), help=f"folder of {KEYS_FILE}")
    return parser.parse_args()


def _log_to_stdout() -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(LogFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # One line a request of every SDK client would drown the app's own.
    logging.getLogger("azure").setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
