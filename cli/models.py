"""`manage.py models`: the topic models in the lake."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import DEFAULT_FILE, AsJson, SettingsFile, open_services
from cli.screen import Cell, Heading, Screen, print_json

if TYPE_CHECKING:
    from classify.registry.models import Damaged, Stored

app = typer.Typer(invoke_without_command=True)

VERSION = typer.Argument(help="A version, or the beginning of one.")


@app.callback()
def models(context: typer.Context, file: SettingsFile = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """The topic models in the lake, oldest first, with their figures on posts that they had not seen."""
    context.obj = open_services(file)
    if context.invoked_subcommand:
        return
    from classify.registry.models import Damaged, current_version, versions

    lake = context.obj.lake
    current = current_version(lake)
    found = list(versions(lake))
    whole = [stored for stored in found if not isinstance(stored, Damaged)]
    damaged = [stored for stored in found if isinstance(stored, Damaged)]
    if as_json:
        listed = [{**stored._asdict(), "current": stored.version == current} for stored in whole]
        print_json({"models": listed, "damaged": [stored._asdict() for stored in damaged]})
    else:
        _show(current, whole, damaged)


@app.command("add")
def add(context: typer.Context, folder: Path, as_json: AsJson = False) -> None:
    """Put the model in FOLDER, as `train` writes it, into the lake; `models promote` makes it the current one."""
    from classify.registry.models import add_model

    version = add_model(context.obj.lake, folder)
    _say(
        {"added": version},
        f"{version} is in the lake: `python manage.py models promote {version}` makes it current",
        as_json,
    )


@app.command("promote")
def promote(context: typer.Context, version: Annotated[str, VERSION], as_json: AsJson = False) -> None:
    """Let new classifications use VERSION."""
    from classify.registry.models import promote, whole_version

    lake = context.obj.lake
    current = promote(lake, whole_version(lake, version), "promoted by hand").version
    _say({"current": current}, f"{current} is current", as_json)


@app.command("rollback")
def rollback(context: typer.Context, as_json: AsJson = False) -> None:
    """Go back to the version before the current one."""
    from classify.registry.models import rollback

    current = rollback(context.obj.lake).version
    _say({"current": current}, f"{current} is current", as_json)


def _say(document: dict[str, Any], sentence: str, as_json: bool) -> None:
    if as_json:
        print_json(document)
    else:
        Screen().line(sentence)


def _show(current: str, whole: list[Stored], damaged: list[Damaged]) -> None:
    screen = Screen()
    names = ("hit@1", "primary", "day error", "cover", "measured", "trained on")
    columns = [Heading(""), Heading("version"), *(Heading(name, right=True) for name in names)]
    screen.rows(columns, [_row(stored, current) for stored in whole])
    for stored in damaged:
        screen.line(f"{stored.version} is damaged: {stored.reason}", "red")
    screen.line()
    screen.paragraph(
        "* is current. hit@1: share of posts whose best topic is one of their tags. primary: share whose most frequent"
        " tag is found. day error: total variation between the estimated and the true shares of a day. cover: share of"
        " true shares that lie in their 95 % interval. measured, trained on: numbers of questions.",
        "dim",
    )


def _row(stored: Stored, current: str) -> list[Cell | str]:
    figures_of = stored.evaluation
    days = figures_of.get("days", {})
    figures = [*map(figures_of.get, ("hit_at_1", "primary_accuracy")), *map(days.get, ("histogram_error", "coverage"))]
    return [
        "*" if stored.version == current else "",
        stored.version,
        *("" if figure is None else f"{figure:.4f}" for figure in figures),
        f"{figures_of['posts']:,}" if "posts" in figures_of else "",
        f"{stored.trained_on.get('questions', 0):,}",
    ]
