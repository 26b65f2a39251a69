"""`manage.py open`: all that needs a person, and what a person decides about it."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import DEFAULT_FILE, AsJson, SettingsFile, open_services
from cli.screen import Screen, number_of, print_json
from cli.status import STYLES, file_status, length, moment, show_things
from pipeline import inbox
from pipeline.replay import newest_version
from shared.queues import poison_queues

if TYPE_CHECKING:
    from shared.ledger import FileRecord
    from shared.services import Services

app = typer.Typer(help="All that needs a person, and what a person decides about it.", no_args_is_help=True)
Source = Annotated[str, typer.Argument(help="The blob's path, or the file's id.")]


@app.command("list")
def list_command(file: SettingsFile = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """All that needs a person, the newest first; the exit code is 1 when there is something."""
    found = inbox.things(open_services(file))
    if as_json:
        print_json([thing.model_dump(mode="json") for thing in found])
    elif found:
        show_things(Screen(), found)
    else:
        Screen().line("Nothing needs a person.")
    if found:
        raise typer.Exit(1)


@app.command()
def show(source: Source, file: SettingsFile = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """The story of one file: its versions, their states and times, their runs, and where their bytes lie."""
    services = open_services(file)
    newest = newest_version(services, source)
    versions = services.ledger.versions(newest.source_id)
    records = sorted(
        (services.ledger.get(newest.source_id, version) for version in versions), key=lambda record: record.sequence
    )
    _one_file(services, records, as_json)


@app.command()
def retry(source: Source, file: SettingsFile = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """Have a file that failed, or that lies in quarantine, classified again."""
    services = open_services(file, patient=True)
    record = inbox.retry(services, newest_version(services, source))
    _say(record, f"is classified again: `manage.py open show {record.source_id}` follows it", as_json)


@app.command()
def discard(source: Source, file: SettingsFile = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """End a file that failed, or that lies in quarantine, without counting it; or delete an unreadable message."""
    services = open_services(file, patient=True)
    if source.partition("/")[0] in poison_queues(services.settings):
        inbox.discard_message(services, source)
        if as_json:
            print_json({"deleted": source})
        else:
            Screen().line(f"the message {source} is deleted")
        return
    record = inbox.discard(services, newest_version(services, source))
    _say(record, "is discarded; its bytes stay in the lake", as_json)


def _say(record: FileRecord, what: str, as_json: bool) -> None:
    if as_json:
        print_json(record)
    else:
        Screen().line(f"{record.file} {what}")


def _one_file(services: Services, records: list[FileRecord], as_json: bool) -> None:
    if as_json:
        print_json([record.model_dump(mode="json") for record in records])
        return
    screen = Screen()
    name = records[-1].source.name
    screen.heading(f"{name} (id {records[-1].source_id}): {number_of(len(records), 'version')}")
    for record in records:
        _tell(services, screen, record)


def _tell(services: Services, screen: Screen, record: FileRecord) -> None:
    """The story of one version: when it came into each state, its runs, and where its bytes lie."""
    shown = file_status(services, record)
    mark = ", counts" if shown.counts else ""
    screen.line()
    screen.line(f"version {record.version}: {record.state}{mark}", STYLES.get(record.state, "yellow"))
    facts = {
        "size": f"{record.source.size:,} bytes, {number_of(record.rows, 'row')}" if record.rows is not None else None,
        "counted": _counted(record),
        "now": shown.doing,
        "reason": record.reason,
        "model": record.model,
        "archive": record.archive,
        "quarantine": record.quarantine,
        "output": record.output,
    }
    for name, value in facts.items():
        if value:
            screen.paragraph(f"{name + ':':<12}{value}", indent="  ")
    times = sorted(record.times.items(), key=lambda entry: entry[1])
    before = {name: moment for (_, moment), (name, _) in pairwise(times)}
    for name, when in times:
        after = f"  {length(when - before[name])} later" if name in before else ""
        screen.line(f"  {moment(when)}  {name}{after}")
    for run in record.runs:
        worked = f", worked for {run.worked_seconds:.1f} s" if run.worked_seconds is not None else ""
        screen.line(f"  attempt {run.attempt}: run {run.run_id}, launched {moment(run.launched_at)}{worked} {run.page}")
        if run.error:
            screen.paragraph(run.error, "red", indent="    ")


def _counted(record: FileRecord) -> str | None:
    if record.counted is None:
        return None
    days = sorted(record.days)
    when = f" on {days[0]}" if len(days) == 1 else f" on {len(days):,} days, {days[0]} to {days[-1]}" if days else ""
    return f"{number_of(record.counted, 'post')}{when}"
