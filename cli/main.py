"""The operator's command line, against whatever environment the settings name, local or Azure."""

from __future__ import annotations

import sys

import typer

from cli import check, drop, dump, inbox, models, reconcile, replay, republish, status, topics, training
from cli.options import hint
from shared.errors import StackTopicsError
from shared.logs import set_up_logs

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(status.status)
app.command()(topics.topics)
app.command("drop")(drop.drop)
app.add_typer(inbox.app, name="open")
app.command()(reconcile.reconcile)
app.command()(replay.replay)
app.command()(replay.withdraw)
app.command()(republish.republish)
app.command()(check.check)
app.command()(check.settings)
app.command("import-dump")(dump.import_dump_command)
app.add_typer(models.app, name="models")
app.command()(training.train)
app.command()(training.evaluate)
app.command()(training.score)


def main() -> None:
    """Run a command; an error of the product or the system is one line on standard error and exit code 1."""
    set_up_logs()
    try:
        app()
    except (StackTopicsError, OSError) as error:
        typer.echo(f"manage.py: {error}", err=True)
        if isinstance(error, StackTopicsError) and (look := hint(error)):
            typer.echo(look, err=True)
        sys.exit(1)
