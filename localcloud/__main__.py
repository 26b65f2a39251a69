"""`python -m localcloud`: the cloud on one machine, from the command line."""

import json
import os
import signal
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer

from localcloud.cloud import DEFAULT_PORTS, PORT_NAMES, SETTINGS_FILE, LocalCloud, invoke, reset
from localcloud.follow import LogFollower
from localcloud.processes import PROJECT_ROOT, LocalCloudError
from localcloud.screen import manage, program, screen, shown
from localcloud.settings import checked

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

StateFolder = Annotated[Path, typer.Option("--state", help="Folder of data, ports and logs; kept between runs.")]
DEFAULT_STATE = PROJECT_ROOT / ".localcloud"
LOOK_SECONDS = 0.2
"""How often `up` checks that all parts run, and reads their logs."""
OVER_THE_ECHO = "\r"
"""A terminal echoes Ctrl-C as ^C: the last line overwrites it."""


def _port_option(name: str) -> typer.models.OptionInfo:
    text = f"Default: {DEFAULT_PORTS[name]}, or a free one."
    info: typer.models.OptionInfo = typer.Option(f"--{name}-port", help=text, show_default=False)
    return info


@app.command()
def up(
    state: StateFolder = DEFAULT_STATE,
    no_host: Annotated[bool, typer.Option("--no-host", help="Leave the functions to `func start`.")] = False,
    auth: Annotated[bool, typer.Option("--auth", help="Ask for keys, as Azure does.")] = False,
    log: Annotated[bool, typer.Option("--log", help="Show the logs of all parts live.")] = False,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Write a setting into the settings file.")
    ] = None,
    settings_file: Annotated[Path, typer.Option(help="The settings file to write.")] = PROJECT_ROOT / SETTINGS_FILE,
    blob: Annotated[int | None, _port_option("blob")] = None,
    queue: Annotated[int | None, _port_option("queue")] = None,
    lake: Annotated[int | None, _port_option("lake")] = None,
    postgres: Annotated[int | None, _port_option("postgres")] = None,
    databricks: Annotated[int | None, _port_option("databricks")] = None,
    functions: Annotated[int | None, _port_option("functions")] = None,
) -> None:
    """Run everything until Ctrl-C."""
    given = dict(zip(PORT_NAMES, (blob, queue, lake, postgres, databricks, functions), strict=True))
    ports = {name: port for name, port in given.items() if port is not None}
    if no_host and auth:
        raise typer.BadParameter(
            "--auth is for the functions host that --no-host leaves out; func start asks for no keys"
        )
    signals = _stop_on_signals()
    _say("Starting the local cloud ...")
    try:
        cloud = LocalCloud(
            state,
            ports,
            host=not no_host,
            settings=checked(assignments or []),
            settings_file=settings_file,
            preferred=DEFAULT_PORTS,
            auth=auth,
            tell=_say,
        )
        with cloud:
            if not signals:
                _show(cloud, no_host)
            follower = LogFollower(cloud.logs, screen().line)
            while not signals:
                if log:
                    follower.show_new_lines()
                cloud.check()
                time.sleep(LOOK_SECONDS)
    except (LocalCloudError, OSError) as error:
        _fail(error)
    if sys.stdout.isatty():
        typer.echo(OVER_THE_ECHO, nl=False)
    _say("The local cloud has stopped.")


def _show(cloud: LocalCloud, no_host: bool) -> None:
    """Show the addresses of the parts, and commands to try."""
    places = {**cloud.addresses(), "settings": shown(cloud.settings_file), "logs": shown(cloud.logs)}
    for part, place in places.items():
        _say(f"{part:>11}  {place}")
    _say("")
    _say("Ready", "bold green")
    if no_host:
        _say(_func_start(cloud))
    _say("Try, in another terminal:")
    for command in (manage("drop FILE", cloud.settings_file), manage("topics", cloud.settings_file), cloud.curl()):
        _say(f"  {command}")
    _say("Ctrl-C ends it; `up --log` shows the logs here.")


def _func_start(cloud: LocalCloud) -> str:
    """The next step if Core Tools run the functions."""
    read = PROJECT_ROOT / SETTINGS_FILE
    if cloud.settings_file == read:
        return f"Next, in another terminal: func start (it listens on {cloud.functions_url})"
    return f"Next: func start; it reads {shown(read)}, so the settings above must be copied there before"


@app.command("demo")
def demo_command(
    posts: Annotated[
        list[Path] | None, typer.Option(help="A Posts file; may be repeated. Default: sample posts, made up.")
    ] = None,
    today: Annotated[bool, typer.Option("--today", help="Give every post today's date.")] = False,
    users: Annotated[Path | None, typer.Option(help="A Users table as Parquet. Default: sample users.")] = None,
    dump: Annotated[Path | None, typer.Option(help="A Stack Exchange data dump, in place of posts and users.")] = None,
    by: Annotated[
        Literal["day", "month", "year", "all"], typer.Option(help="What one file of the dump holds.")
    ] = "month",
    state: StateFolder = DEFAULT_STATE,
) -> None:
    """Run the main job and end: copy the tables, drop the files, show the topics of the day."""
    import pyarrow.parquet as pq

    from ingest.prepare import prepared
    from localcloud import samples
    from localcloud.demo import demo, demo_dump, sample_day
    from shared.errors import StackTopicsError

    try:
        with ExitStack() as stack:
            day = datetime.now(UTC).date() if today else None
            files = [stack.enter_context(prepared(path, day)) for path in posts or []]
            table = pq.read_table(users) if users else samples.sample_users()
            _say("Starting the local cloud: Azurite, lake gateway, Postgres, Databricks stand-in, functions host ...")
            # The demo loads its own users, possibly fewer than the last demo.
            settings = {"REFERENCE_MAX_SHRINK": "1"}
            cloud = stack.enter_context(LocalCloud(state, settings=settings, preferred=DEFAULT_PORTS, tell=_say))
            for name in cloud.left_aside:  # as in the host: the demo uses this cloud
                del os.environ[name]
            if dump:
                demo_dump(cloud, dump, by, screen())
            else:
                demo(cloud, files or [sample_day(screen())], table, screen())
    except (LocalCloudError, StackTopicsError, OSError) as error:
        _fail(error)
    _say("Try next:")
    up_again = "make up" if state == DEFAULT_STATE else program("-m", "localcloud", "up", "--state", str(state))
    commands = {
        up_again: "all of it until Ctrl-C",
        manage("drop FILE", PROJECT_ROOT / SETTINGS_FILE): "posts of your own",
    }
    for command, what in commands.items():
        _say(f"  {command:<{max(map(len, commands))}}  {what}")


@app.command("reset")
def reset_command(state: StateFolder = DEFAULT_STATE) -> None:
    """Delete what the local cloud kept: blobs, lake, database, runs, logs."""
    try:
        reset(state)
    except LocalCloudError as error:
        _fail(error)


@app.command("invoke")
def invoke_command(
    function: Annotated[str, typer.Argument(help="Its name in function_app.py.")],
    given: Annotated[str, typer.Option("--input", help="A blob's path or a queue message; nothing for a timer.")] = "",
    state: StateFolder = DEFAULT_STATE,
) -> None:
    """Fire one function of the running cloud and wait for it (with `func start`, only start it)."""
    try:
        outcome = invoke(state, function, given)
    except LocalCloudError as error:
        _fail(error)
    typer.echo(json.dumps(outcome, indent=2))
    if outcome["succeeded"] is False:
        raise typer.Exit(1)


def _stop_on_signals() -> list[int]:
    """A list that collects SIGINT and SIGTERM; a second signal ends the process, and with it the parts.

    Not a `threading.Event`: its lock may be held by the very thread that the handler interrupts.
    """
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return received


def _say(line: str, style: str = "") -> None:
    screen().line(line, style)


def _fail(error: Exception) -> None:
    typer.echo(f"localcloud: {error}", err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app()
