"""`manage.py status`: what happened to files, days, reference tables and models, and what needs a person."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel

from classify.registry.summary import Training
from cli.options import DEFAULT_FILE, AsJson, SettingsFile, open_services
from cli.screen import Cell, Heading, Screen, number_of, print_json
from ingest.reference.records import last_record
from pipeline.conditions import last_training
from pipeline.inbox import Thing, things
from pipeline.reconcile import Pass, last_pass
from shared.catalog import DayPointer, day_pointer, latest_day, source_pointer
from shared.errors import StackTopicsError
from shared.ledger import AT_REST, NEEDS_A_PERSON, FileRecord, FileState
from shared.queues import poison_queues

if TYPE_CHECKING:
    from shared.services import Services

DAYS_SHOWN, DAYS_LOOKED_AT = 10, 60
STYLES = {
    FileState.PUBLISHED: "green",
    FileState.QUARANTINED: "red",
    FileState.FAILED: "red",
    FileState.SUPERSEDED: "dim",
    FileState.CANCELLED: "dim",
    FileState.WITHDRAWN: "dim",
    FileState.DISCARDED: "dim",
}
DOING = {
    FileState.ARRIVING: "being landed",
    FileState.LANDED: "waits for its run",
    FileState.LAUNCHED: "launched",
    FileState.CLASSIFIED: "being published",
}
"""What a file version that has not ended does, where Databricks says no more."""


class FileStatus(BaseModel):
    """One version of a Posts file, as `status` lists it."""

    file: str
    source_id: str
    version: str
    state: FileState
    since: datetime
    counts: bool
    """This version is the one that is counted for its file."""
    counted: int | None
    days: int
    doing: str | None
    """What it waits for, or what works on it; None once it has ended."""
    reason: str | None


class Status(BaseModel):
    """All that `status` shows."""

    files: list[FileStatus]
    """Those that have not ended and those seen last, the newest first."""
    open_files: int
    """File versions that have a next step."""
    days: list[DayPointer]
    reference: Any
    training: Training | None
    poison: dict[str, int]
    reconciled: Pass | None
    """The last pass of reconcile."""
    needs_a_person: list[Thing]
    """The newest first; empty when all is well."""


def status(
    file: SettingsFile = DEFAULT_FILE,
    last: Annotated[int, typer.Option(min=1, help="How many file versions.")] = 20,
    as_json: AsJson = False,
) -> None:
    """What happened to files, days and reference tables lately, and what needs a person.

    The exit code is 1 when something needs a person.
    """
    services = open_services(file)
    found = _status(services, last)
    if as_json:
        print_json(found)
    else:
        _show(found)
    if found.needs_a_person:
        raise typer.Exit(1)


def _status(services: Services, last: int) -> Status:
    copied = last_record(services.lake)
    open_files = services.ledger.open_files()
    return Status(
        files=[file_status(services, record) for record in _newest(services, open_files, last)],
        open_files=len(open_files),
        days=_last_days(services),
        reference=copied.model_dump(mode="json") | {"changes": copied.changes} if copied else None,
        training=last_training(services),
        poison={name: services.queue(name).length() for name in poison_queues(services.settings)},
        reconciled=last_pass(services),
        needs_a_person=things(services),
    )


def _newest(services: Services, open_files: list[tuple[str, str]], last: int) -> list[FileRecord]:
    """The file versions seen last, and open ones that are older; at most `last`, the newest first."""
    found = {
        (record.source_id, record.version): record for record in services.ledger.newest(services.now().date(), last)
    }
    for key in [*services.ledger.waiting_for_a_person(), *reversed(open_files)][:last]:
        if key not in found and (record := services.ledger.find(*key)) is not None:
            found[key] = record
    ordered = sorted(found.values(), key=lambda record: min(record.times.values()), reverse=True)
    return ordered[:last]


def _last_days(services: Services) -> list[DayPointer]:
    """The last published days, oldest first, found by walking back from the latest."""
    latest = latest_day(services.lake)
    found: list[DayPointer] = []
    for back in range(DAYS_LOOKED_AT if latest else 0):
        assert latest is not None
        pointer, _ = day_pointer(services.lake, latest - timedelta(days=back))
        found += [pointer] if pointer is not None else []
        if len(found) == DAYS_SHOWN:
            break
    return found[::-1]


def file_status(services: Services, record: FileRecord) -> FileStatus:
    pointer, _ = source_pointer(services.lake, record.source_id)
    return FileStatus(
        file=record.source.name,
        source_id=record.source_id,
        version=record.version,
        state=record.state,
        since=max(record.times.values()),
        counts=pointer is not None and pointer.output == record.output,
        counted=record.counted,
        days=len(record.days),
        doing=None if record.state in AT_REST else _doing(services, record),
        reason=record.reason if record.state in NEEDS_A_PERSON else None,
    )


def _doing(services: Services, record: FileRecord) -> str:
    """What happens to a file version now, and for how long; of a launched one Databricks is asked."""
    doing = DOING[record.state]
    if record.state is FileState.LAUNCHED and record.runs:
        try:
            found = services.job_runs.look(record.runs[-1].run_id)
            doing = (
                "run is over" if found.is_over else "queued in Databricks" if found.status == "waiting" else "running"
            )
        except StackTopicsError as error:
            doing = f"launched, and Databricks does not say more ({type(error).__name__})"
    return f"{doing}, for {length(services.now() - max(record.times.values()))}"


def _show(found: Status) -> None:
    screen = Screen()
    screen.heading(f"Files: the {len(found.files)} newest, {found.open_files:,} on their way")
    if found.files:
        screen.rows(FILE_COLUMNS, [_file_row(each) for each in found.files])
        screen.line("* is the version that counts", "dim")
    screen.heading(f"Days: the last {len(found.days)}")
    show_days(screen, found.days)
    _show_reference(screen, found.reference)
    if (training := found.training) is not None:
        screen.heading("Training")
        screen.paragraph(f"{training.candidate} was {training.became}; {training.reason}")
    screen.heading("Poison queues (messages that failed for good; reconcile clears those that name a file)")
    screen.paragraph(", ".join(f"{name} {count:,}" for name, count in found.poison.items()))
    screen.heading("Reconcile")
    screen.paragraph(told(found.reconciled) if found.reconciled else "it has not run yet")
    if not found.needs_a_person:
        screen.heading("Nothing needs a person.")
        return
    show_things(screen, found.needs_a_person)


def show_things(screen: Screen, found: list[Thing]) -> None:
    """What needs a person, with what to do about each."""
    screen.heading(f"{number_of(len(found), 'thing')} {'needs' if len(found) == 1 else 'need'} a person")
    for thing in found:
        screen.line(f"{moment(thing.since)}  {thing.alert.value}  {thing.subject}", "red")
        screen.paragraph(thing.reason, indent="    ")
        screen.paragraph(f"What to do: {thing.remedy}", "dim", indent="    ")


def told(found: Pass) -> str:
    """A pass of reconcile in a sentence."""
    numbers = {
        "blobs looked at": found.blobs,
        "landed": found.landed,
        "open files": found.open_files,
        "brought on": found.advanced,
        "poison messages cleared": found.poison,
        "files deleted": found.deleted,
        "days checked": found.days,
        "days mended": found.mended_days,
        "faults": len(found.faults),
    }
    said = ", ".join(f"{number:,} {name}" for name, number in numbers.items() if number)
    return f"{moment(found.started_at)}, {found.seconds:.1f} s: {said or 'nothing to do'}"


FILE_COLUMNS = (
    Heading(""),
    Heading("file"),
    Heading("state"),
    Heading("since (UTC)"),
    Heading("posts", right=True),
    Heading("days", right=True),
    Heading("now"),
)


def _file_row(each: FileStatus) -> list[Cell | str]:
    return [
        "*" if each.counts else "",
        each.file,
        Cell(each.state.value, STYLES.get(each.state, "yellow")),
        moment(each.since),
        "" if each.counted is None else f"{each.counted:,}",
        f"{each.days:,}" if each.days else "",
        each.doing or "",
    ]


def show_days(screen: Screen, days: list[DayPointer]) -> None:
    """Days with what was counted on them, oldest first."""
    if not days:
        return
    numbers = ("posts", "questions", "answers", "files", "drift")
    columns = [Heading("day"), *(Heading(name, right=True) for name in numbers), Heading("published (UTC)")]
    rows: list[list[Cell | str]] = []
    for day in days:
        counted = (day.posts, day.questions, day.answers, len(day.sources))
        drift = f"{day.drift:.1f}{'!' * day.drifted}" if day.guessed else ""
        rows.append([str(day.day), *(f"{number:,}" for number in counted), drift, moment(day.published_at)])
    screen.rows(columns, rows)
    if any(day.guessed for day in days):
        screen.paragraph(
            "drift: how unlike the posts of its training the model finds a day's posts; about 1 is alike, ! marks days"
            " whose intervals may be too narrow",
            "dim",
        )


def _show_reference(screen: Screen, copied: dict[str, Any] | None) -> None:
    if copied is None:
        screen.heading("Reference tables: never copied")
        return
    started = moment(datetime.fromisoformat(copied["started_at"]))
    screen.heading(f"Reference tables of {copied['week']}: {copied['state']}, begun {started}")
    columns = [Heading("table"), Heading("rows", right=True), Heading("bytes", right=True), Heading("key")]
    columns += [Heading("seconds", right=True), Heading("checksum")]
    rows = [
        [
            name,
            f"{table['rows']:,}",
            f"{table['bytes']:,}",
            ", ".join(table["key"]),
            f"{table['seconds']:.1f}",
            table["checksum"],
        ]
        for name, table in copied["tables"].items()
    ]
    if rows:
        screen.rows(columns, rows)
    for change in copied["changes"]:
        screen.line(f"columns changed in {change}")


def moment(when: datetime) -> str:
    """A moment as tables show it, in UTC."""
    return f"{when:%Y-%m-%d %H:%M:%S}"


def length(time: timedelta) -> str:
    """A length of time in words: 0.4 s, 3 min, 5 h, 2 days."""
    seconds = max(0.0, time.total_seconds())
    if seconds < 60:
        return f"{seconds:.1f} s"
    for unit, size in (("min", 60), ("h", 3600), ("days", 86_400)):
        if seconds < 120 * size or unit == "days":
            return f"{seconds / size:.0f} {unit}"
    raise AssertionError
