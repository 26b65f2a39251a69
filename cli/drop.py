"""`manage.py drop`: one's own files into the container, followed to the end."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.follow import Uploaded, follow, upload
from cli.options import DEFAULT_FILE, AsJson, SettingsFile, open_services
from cli.screen import Screen, number_of, print_json
from ingest.prepare import prepared
from shared.ledger import AT_REST, FileRecord, FileState

if TYPE_CHECKING:
    from shared.services import Services

TOLD_STEP_BY_STEP = 5
"""With more files, only those that were not published are named."""
SAID = {
    FileState.LANDED: "landed in the lake, waits for its run",
    FileState.LAUNCHED: "being classified",
    FileState.CLASSIFIED: "classified, being published",
}


def drop(
    files: Annotated[list[Path], typer.Argument(help="Posts files, Parquet or CSV.")],
    today: Annotated[bool, typer.Option("--today", help="Give every post today's date; its time stays.")] = False,
    wait: Annotated[bool, typer.Option(help="Follow the files until they have ended.")] = True,
    patience: Annotated[float, typer.Option(min=1, help="Seconds without any news after which it gives up.")] = 300,
    file: SettingsFile = DEFAULT_FILE,
    as_json: AsJson = False,
) -> None:
    """Upload Posts files to the container and follow each to its end.

    A CSV file, as the Stack Exchange Data Explorer writes it, is converted to Parquet first. The exit code is 1 when a
    file was not published.
    """
    services, screen = open_services(file), Screen()
    with ExitStack() as stack:
        ready = [
            stack.enter_context(prepared(path, services.now().date() if today else None)) for path in files
        ]  # all are read before the first is uploaded, so an invalid file stops the command and nothing is half done
        services.posts_landed.length()  # one short attempt shows whether the services answer
        patient = open_services(file, patient=True)
        uploaded = [upload(patient, name, data) for name, data in ready]
    if not as_json:
        names = [dropped.name for dropped in uploaded]
        shown = ", ".join(names) if len(names) <= TOLD_STEP_BY_STEP else number_of(len(names), "file")
        screen.line(f"{shown}: uploaded to the container {services.settings.posts_container}")
    if not wait:
        if as_json:
            print_json([dropped._asdict() for dropped in uploaded])
        return
    _follow(patient, uploaded, screen, patience, as_json)  # one busy moment of the lake must not end it


def _follow(services: Services, uploaded: list[Uploaded], screen: Screen, patience: float, as_json: bool) -> None:
    states: dict[Uploaded, FileState] = {}

    def seen(dropped: Uploaded, record: FileRecord) -> None:
        if as_json or states.get(dropped) is record.state:
            return
        states[dropped] = record.state
        if len(uploaded) <= TOLD_STEP_BY_STEP:
            screen.line(f"{dropped.name}: {SAID.get(record.state) or outcome(record)}")
        elif record.state in AT_REST and record.state is not FileState.PUBLISHED:
            screen.line(f"{dropped.name}: {outcome(record)}")
        screen.passing(f"{published(states)} of {len(uploaded)} published")

    records = follow(services, uploaded, seen, patience)
    if not as_json:
        screen.line(f"{published(states)} of {number_of(len(uploaded), 'file')} published")
    if as_json:
        print_json([record.model_dump(mode="json") for record in records])
    elif any(record.days for record in records):
        day = max(day for record in records for day in record.days)
        screen.line(f"See the topics with: python manage.py topics --day {day}")
    if not all(record.state is FileState.PUBLISHED for record in records):
        raise typer.Exit(1)


def published(states: Mapping[Uploaded, FileState]) -> int:
    """How many files have been published."""
    return sum(state is FileState.PUBLISHED for state in states.values())


def outcome(record: FileRecord) -> str:
    """What became of a file version that has ended, in a sentence."""
    if record.state is not FileState.PUBLISHED:
        return f"{record.state}: {record.reason}"
    days = f"{record.days[0]}" if len(record.days) == 1 else f"{len(record.days):,} days"
    seconds = (max(record.times.values()) - min(record.times.values())).total_seconds()
    return f"published: {number_of(record.counted or 0, 'post')} on {days}, after {seconds:.1f} s"
