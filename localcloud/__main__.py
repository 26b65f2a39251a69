"""`python -m localcloud`: the cloud on one machine, from the command line."""

import json
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from localcloud.cloud import PORT_NAMES, LocalCloud, invoke, reset
from localcloud.follow import LogFollower
from localcloud.processes import PROJECT_ROOT, LocalCloudError

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

State = Annotated[Path, typer.Option("--state", help="Folder of data, ports and logs; kept between runs.")]
DEFAULT_STATE = PROJECT_ROOT / ".localcloud"


def _port_option(name: str) -> typer.models.OptionInfo:
    info: typer.models.OptionInfo = typer.Option(f"--{name}-port", help="Default: the last run's, or a free one.")
    return info


@app.command()
def up(
    state: State = DEFAULT_STATE,
    no_host: Annotated[bool, typer.Option("--no-host", help="Leave the functions to `func start`.")] = False,
    blob: Annotated[int | None, _port_option("blob")] = None,
    queue: Annotated[int | None, _port_option("queue")] = None,
    lake: Annotated[int | None, _port_option("lake")] = None,
    postgres: Annotated[int | None, _port_option("postgres")] = None,
    databricks: Annotated[int | None, _port_option("databricks")] = None,
    functions: Annotated[int | None, _port_option("functions")] = None,
) -> None:
    """Run everything until Ctrl-C, and show what it logs."""
    given = dict(zip(PORT_NAMES, (blob, queue, lake, postgres, databricks, functions), strict=True))
    ports = {name: port for name, port in given.items() if port is not None}
    settings_file = PROJECT_ROOT / "local.settings.json"
    cloud = LocalCloud(state, ports, not no_host, settings_file=settings_file, tell=typer.echo)
    signals = _stop_on_signals()
    try:
        with cloud, LogFollower(cloud.logs, typer.echo) as follower:
            for part, address in cloud.addresses().items():
                typer.echo(f"{part:>11}  {address}")
            typer.echo(f"{'settings':>11}  {cloud.settings_file}\n{'logs':>11}  {cloud.logs}\n")
            while not signals:
                follower.show_new_lines()
                cloud.check()
                time.sleep(0.2)
    except LocalCloudError as error:
        _fail(error)


@app.command("demo")
def demo_command(
    posts: Annotated[
        list[Path] | None, typer.Option(help="A Posts file; may be repeated. Default: sample posts.")
    ] = None,
    today: Annotated[bool, typer.Option("--today", help="Give every post today's date.")] = False,
    users: Annotated[Path | None, typer.Option(help="A Users table as Parquet. Default: sample users.")] = None,
    dump: Annotated[Path | None, typer.Option(help="A Stack Exchange data dump, in place of posts and users.")] = None,
    state: State = DEFAULT_STATE,
) -> None:
    """Run the main job and end: copy the tables, drop the files, show the topics of the day."""
    import pyarrow.parquet as pq
    from rich.console import Console

    from localcloud import samples
    from localcloud.demo import demo, demo_dump, posts_file, sample_day
    from shared.errors import StackTopicsError

    console = Console()
    try:
        files = [posts_file(path, today) for path in posts] if posts else [sample_day()]
        table = pq.read_table(users) if users else samples.sample_users()
        console.print("starting the local cloud: Azurite, lake gateway, Postgres, Databricks stand-in, functions host")
        with LocalCloud(state, tell=console.print) as cloud:
            if dump:
                demo_dump(cloud, dump, console)
            else:
                demo(cloud, files, table, console)
    except (LocalCloudError, StackTopicsError, OSError) as error:
        _fail(error)


@app.command("reset")
def reset_command(state: State = DEFAULT_STATE) -> None:
    """Delete what the local cloud kept: blobs, lake, database, runs, logs."""
    try:
        reset(state)
    except LocalCloudError as error:
        _fail(error)


@app.command("invoke")
def invoke_command(
    function: Annotated[str, typer.Argument(help="Its name in function_app.py.")],
    given: Annotated[str, typer.Option("--input", help="A blob's path or a queue message; nothing for a timer.")] = "",
    state: State = DEFAULT_STATE,
) -> None:
    """Fire one function of the running cloud and wait for it."""
    try:
        outcome = invoke(state, function, given)
    except LocalCloudError as error:
        _fail(error)
    typer.echo(json.dumps(outcome, indent=2))
    if not outcome["succeeded"]:
        raise typer.Exit(1)


def _stop_on_signals() -> list[int]:
    """A list to which SIGINT and SIGTERM are added; a second one ends the process, and with it the parts.

    Not a `threading.Event`: its lock may be held by the very thread that the handler interrupts.
    """
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return received


def _fail(error: Exception) -> None:
    typer.echo(f"localcloud: {error}", err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app()
