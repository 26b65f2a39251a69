"""`manage.py replay` and `withdraw`: files classified again from the archive, and files taken back."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import DEFAULT_FILE, AsJson, SettingsFile, open_services
from cli.screen import Screen, number_of, print_json
from cli.status import length
from pipeline import replay as replaying
from pipeline import withdraw as withdrawing
from serve.topics import parse_day
from shared.errors import BadInput
from shared.ledger import FileState

if TYPE_CHECKING:
    from shared.ledger import FileRecord
    from shared.services import Services

Day = Annotated[str | None, typer.Option(help="2026-11-22.")]


def replay(
    day: Day = None,
    source: Annotated[str | None, typer.Option(help="A file: the blob's path, or its id.")] = None,
    since: Day = None,
    until: Day = None,
    model: Annotated[str | None, typer.Option(help="A version of the topic model; else the current one.")] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Runs at once.")] = 4,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and change nothing.")] = False,
    file: SettingsFile = DEFAULT_FILE,
    as_json: AsJson = False,
) -> None:
    """Classify files again from the archive; their counts replace the earlier ones when each is published.

    Name a day, a file, or days from --since to --until. Ask for the same again to go on after an interruption. The exit
    code is 1 when a file was not published.
    """
    services = open_services(file, patient=True)
    records = _chosen(services, parse_day(day), source, parse_day(since), parse_day(until))
    if model is not None:
        from classify.registry.models import check_stored, whole_version

        model = whole_version(services.lake, model)
        check_stored(services.lake, model)
    expected = replaying.forecast(records, parallel)
    screen = Screen()
    if dry_run:
        if as_json:
            print_json({"files": [record.file for record in records], **expected._asdict()})
            return
        for record in records:
            screen.line(f"{record.file}  {record.state}  {record.counted or 0:,} posts")
        screen.line(_said(expected))
        return
    if not as_json:
        screen.line(_said(expected))
    asked_for = f"{day=} {source=} {since=} {until=} {model=}"
    ended = replaying.replay(
        services,
        records,
        asked_for=asked_for,
        model=model,
        parallel=parallel,
        tell=None if as_json else lambda done, of: screen.passing(f"{done:,} of {of:,} files have ended"),
    )
    failed = [record for record in ended if record.state is not FileState.PUBLISHED]
    if as_json:
        print_json([record.model_dump(mode="json") for record in ended])
    else:
        for record in failed:
            screen.line(f"{record.file} is {record.state}: {record.reason}", "red")
        screen.line(f"{number_of(len(ended) - len(failed), 'file')} published anew")
    if failed:
        raise typer.Exit(1)


def _said(expected: replaying.Forecast) -> str:
    from datetime import timedelta

    work = length(timedelta(seconds=expected.seconds)) if expected.seconds else "an unknown time"
    return f"{number_of(expected.files, 'file')} with {expected.posts:,} posts; about {work} of work"


def _chosen(
    services: Services, day: date | None, source: str | None, since: date | None, until: date | None
) -> list[FileRecord]:
    if sum((day is not None, source is not None, since is not None or until is not None)) != 1:
        raise BadInput("name one of --day, --source, or --since with --until")
    if source is not None:
        return [replaying.newest_version(services, source)]
    if day is not None:
        since = until = day
    if since is None or until is None:
        raise BadInput("--since and --until belong together")
    if since > until:
        raise BadInput(f"--since {since} is later than --until {until}")
    return replaying.files_of_days(services, since, until)


def withdraw(
    source: Annotated[str, typer.Argument(help="The blob's path, or the file's id.")],
    erase: Annotated[bool, typer.Option("--erase", help="Delete its bytes and the rows of its posts, too.")] = False,
    file: SettingsFile = DEFAULT_FILE,
    as_json: AsJson = False,
) -> None:
    """Take a file back: it stops counting, and its days are published anew without it."""
    services = open_services(file, patient=True)
    record = replaying.newest_version(services, source)
    days = withdrawing.withdraw(services, record, erase=erase)
    if as_json:
        print_json({"file": record.file, "days": days, "erased": erase})
        return
    kept = "its bytes are deleted" if erase else "its bytes stay in the archive"
    Screen().line(f"{record.file} is withdrawn, {number_of(len(days), 'day')} published anew; {kept}")
