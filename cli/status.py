"""`manage.py status`: what happened to files, days, reference tables and models, and what needs a person."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel

from classify.registry.summary import Training
from cli.options import DEFAULT_FILE, AsJson, SettingsFile, open_services
from cli.screen import Cell, Heading, Screen, number_of, print_json
from ingest.reference.records import last_record
from shared import paths
from shared.catalog import DayPointer, day_pointer, published_days, source_pointer
from shared.documents import decode
from shared.errors import BadInput, NotFound, StackTopicsError
from shared.ledger import ENDED, FileRecord, State
from shared.queues import poison_queues

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ingest.reference.records import ReferenceRecord
    from shared.services import Services

DAYS_SHOWN = 10
NEEDS_A_PERSON = (State.QUARANTINED, State.FAILED)
STYLES = {
    State.PUBLISHED: "green",
    State.QUARANTINED: "red",
    State.FAILED: "red",
    State.SUPERSEDED: "dim",
}
DOING = {
    State.LANDED: "waits for its run",
    State.LAUNCHED: "launched",
    State.CLASSIFIED: "being published",
}
"""What a file version that has not ended does, where Databricks says no more."""


class FileStatus(BaseModel):
    """One version of a Posts file, as `status` lists it."""

    file: str
    source_id: str
    version: str
    state: State
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

    files_in_all: int
    files: list[FileStatus]
    days_in_all: int
    days: list[DayPointer]
    reference: Any
    training: Training | None
    poison: dict[str, int]
    needs_a_person: list[str]
    """A sentence for each; empty when all is well."""


def status(
    which: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="A file's name, its id, or the beginning of a version.")
    ] = None,
    file: SettingsFile = DEFAULT_FILE,
    last: Annotated[int, typer.Option(min=1, help="How many file versions.")] = 20,
    as_json: AsJson = False,
) -> None:
    """What happened to files, days and reference tables; with FILE, the whole story of that file.

    The exit code is 1 when something needs a person.
    """
    services = open_services(file)
    records = sorted(services.ledger.records(), key=lambda record: record.order)
    if which is not None:
        _one_file(services, _matching(records, which), as_json)
        return
    found = _status(services, records, last)
    if as_json:
        print_json(found)
    else:
        _show(found)
    if found.needs_a_person:
        raise typer.Exit(1)


def _status(services: Services, records: list[FileRecord], last: int) -> Status:
    lake = services.lake
    days = published_days(lake)
    copied = last_record(lake)
    training = _last_training(services)
    poison = {name: services.queue(name).length() for name in poison_queues(services.settings)}
    return Status(
        files_in_all=len(records),
        files=[_file_status(services, record) for record in records[-last:]],
        days_in_all=len(days),
        days=[pointer for day in days[-DAYS_SHOWN:] if (pointer := day_pointer(lake, day)[0])],
        reference=copied.model_dump(mode="json") | {"changes": copied.changes} if copied else None,
        training=training,
        poison=poison,
        needs_a_person=[
            *(f"{record.source.name} is {record.state}: {record.reason}" for record in _needing(records)[-last:]),
            *_of_the_copy(copied),
            *(f"not learned from: {line}" for line in (training.damaged if training else [])),
            *(f"{count:,} messages are in the poison queue {name}" for name, count in poison.items() if count),
        ],
    )


def _needing(records: list[FileRecord]) -> list[FileRecord]:
    return [record for record in records if record.state in NEEDS_A_PERSON]


def _of_the_copy(copied: ReferenceRecord | None) -> Iterator[str]:
    """What the last weekly copy needs, if anything."""
    if copied is not None and copied.state != "published":
        reason = copied.reason or "it began and did not end"
        if copied.state == "publishing":
            reason += "; start copy_reference again: it first renames what is left"
        yield f"the reference copy of {copied.week} is {copied.state}: {reason}"


def _last_training(services: Services) -> Training | None:
    newest = sorted(services.lake.list(paths.TRAINING_RECORDS), key=lambda info: info.last_modified)[-1:]
    return next((decode(Training, services.lake.read(info.path), info.path) for info in newest), None)


def _file_status(services: Services, record: FileRecord) -> FileStatus:
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
        doing=None if record.state in ENDED else _doing(services, record),
        reason=record.reason if record.state in NEEDS_A_PERSON else None,
    )


def _doing(services: Services, record: FileRecord) -> str:
    """What happens to a file version now, and for how long; of a launched one Databricks is asked."""
    doing = DOING[record.state]
    if record.state is State.LAUNCHED and record.runs:
        try:
            found = services.job_runs.look(record.runs[-1].run_id)
            doing = "queued in Databricks" if found.waits else "running" if found.status == "running" else "run is over"
        except StackTopicsError as error:
            doing = f"launched, and Databricks does not say more ({type(error).__name__})"
    return f"{doing}, for {_length(services.now() - max(record.times.values()))}"


def _show(found: Status) -> None:
    screen = Screen()
    shown = len(found.files)
    newest = f", the {shown} newest" if found.files_in_all > shown else ""
    screen.heading(f"Files: {found.files_in_all:,}{newest}")
    if found.files:
        screen.rows(FILE_COLUMNS, [_file_row(each) for each in found.files])
        screen.line("* is the version that counts", "dim")
    newest = f", the last {len(found.days)}" if found.days_in_all > len(found.days) else ""
    screen.heading(f"Days: {found.days_in_all:,}{newest}")
    show_days(screen, found.days)
    _show_reference(screen, found.reference)
    if (training := found.training) is not None:
        screen.heading("Training")
        screen.paragraph(f"{training.candidate} was {training.became}; {training.reason}")
    screen.heading("Poison queues (messages that failed for good)")
    screen.paragraph(", ".join(f"{name} {count:,}" for name, count in found.poison.items()))
    if not found.needs_a_person:
        screen.heading("Nothing needs a person.")
        return
    things = len(found.needs_a_person)
    screen.heading(f"{number_of(things, 'thing')} {'needs' if things == 1 else 'need'} a person")
    for sentence in found.needs_a_person:
        screen.line(sentence, "red")
    screen.line("What to do for each: docs/operations.md; `manage.py status FILE` has a file's whole story.", "dim")


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


def _matching(records: list[FileRecord], which: str) -> list[FileRecord]:
    """The versions of the one file that `which` means: its name, its source id, or the beginning of a version.

    Raises NotFound, and BadInput where it may mean several files.
    """
    for means in (
        lambda record: which in (record.source.name, f"{record.source.container}/{record.source.name}"),
        lambda record: which == record.source_id,
        lambda record: record.version.startswith(which),
        lambda record: record.source.name.rsplit("/", 1)[-1] == which,
    ):
        found = [record for record in records if means(record)]
        if len({record.source_id for record in found}) > 1:
            names = ", ".join(sorted({record.source.name for record in found})[:5])
            raise BadInput(f"{which} may mean several files: {names}; give a file's whole name")
        if found:
            return found
    raise NotFound(f"no file {which} was seen: `manage.py status` lists the files")


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
    shown = _file_status(services, record)
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
        after = f"  {_length(when - before[name])} later" if name in before else ""
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


def moment(when: datetime) -> str:
    """A moment as tables show it, in UTC."""
    return f"{when:%Y-%m-%d %H:%M:%S}"


def _length(time: timedelta) -> str:
    """A length of time in words: 0.4 s, 3 min, 5 h, 2 days."""
    seconds = max(0.0, time.total_seconds())
    if seconds < 60:
        return f"{seconds:.1f} s"
    for unit, size in (("min", 60), ("h", 3600), ("days", 86_400)):
        if seconds < 120 * size or unit == "days":
            return f"{seconds / size:.0f} {unit}"
    raise AssertionError
