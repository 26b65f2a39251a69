"""Tables and bars for a terminal: shared by `manage.py` and the demo."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.progress_bar import ProgressBar
from rich.table import Table

from serve.topics import Topic, TopicsOfDay
from shared.catalog import DayPointer
from shared.ledger import FileRecord, State

COLOURS = {
    State.PUBLISHED: "green",
    State.QUARANTINED: "red",
    State.FAILED: "red",
    State.SUPERSEDED: "dim",
}


def topics_table(found: TopicsOfDay) -> Table:
    """The topics of a day as bars."""
    drift = "; they are unlike those the model knows, mind the intervals" if found.drifted else ""
    table = Table(
        title=f"Topics of {found.day}: {found.posts:,} posts{drift}",
        title_justify="left",
        caption=f"Of {found.scored:,} posts that the model was asked about: margin {found.mean_margin:.2f}, vocabulary"
        f" {found.vocabulary_overlap:.0%}, other {found.other_share:.0%}"
        if found.scored
        else None,
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    for name in ("#", "topic", "posts", "share", "95 %"):
        table.add_column(name, justify="left" if name == "topic" else "right", no_wrap=True)
    table.add_column("", width=24)
    longest = max((topic.share for topic in found.topics), default=1)
    for topic in found.topics:
        bar = ProgressBar(total=longest, completed=topic.share, width=24)
        numbers = (f"{topic.posts:,}", f"{topic.estimated_share:.1%}", _interval(topic))
        table.add_row(str(topic.rank), topic.topic, *numbers, bar)
    return table


def _interval(topic: Topic) -> str:
    return "exact" if topic.high - topic.low < 1e-9 else f"{topic.low:.1%} to {topic.high:.1%}"


def files_table(records: Iterable[FileRecord]) -> Table:
    """What happened to each file version: the seconds between its states, or why it ended without counting."""
    table = Table(title="Files", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    for name in ("file", "state", "rows", "counted", "days", "attempt", "seconds"):
        table.add_column(
            name, justify="right" if name in ("rows", "counted", "days", "attempt") else "left", overflow="fold"
        )
    for record in records:
        colour = COLOURS.get(record.state, "yellow")
        table.add_row(
            record.source.name,
            f"[{colour}]{record.state}[/{colour}]",
            "" if record.rows is None else f"{record.rows:,}",
            "" if record.counted is None else f"{record.counted:,}",
            f"{len(record.days):,}" if record.days else "",
            str(record.attempt),
            record.reason or _durations(record),
        )
    return table


def days_table(days: int, last: Sequence[DayPointer]) -> Table:
    """The last of so many published days."""
    title = f"Days: {days:,}" + (f", the last {len(last)}" if days > len(last) else "")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    numbers = ("posts", "questions", "answers", "sources", "drift", "margin", "vocabulary", "other")
    for name in ("day", *numbers, "published"):
        table.add_column(name, justify="right" if name in numbers else "left")
    for pointer in last:
        counted = (pointer.posts, pointer.questions, pointer.answers, len(pointer.sources))
        drift = f"{pointer.drift:.1f}{'!' * pointer.drifted}" if pointer.guessed else ""
        known = (f"{pointer.mean_margin:.2f}", f"{pointer.vocabulary_overlap:.0%}", f"{pointer.other_share:.0%}")
        table.add_row(
            str(pointer.day),
            *(f"{number:,}" for number in counted),
            drift,
            *(known if pointer.scored else [""] * len(known)),
            f"{pointer.published_at:%Y-%m-%d %H:%M:%S}",
        )
    return table


def reference_table(record: Any) -> Table:
    """What the last weekly copy made of each table; takes an `ingest.reference.ReferenceRecord`."""
    colour = "green" if record.state == "published" else "red"
    table = Table(
        title=f"Reference tables of {record.week}: [{colour}]{record.state}[/{colour}], "
        f"begun {record.started_at:%Y-%m-%d %H:%M:%S}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    for name in ("table", "rows", "bytes", "key", "checksum", "seconds"):
        table.add_column(name, justify="right" if name in ("rows", "bytes", "seconds") else "left")
    for name, written in record.tables.items():
        numbers = (f"{written.rows:,}", f"{written.bytes:,}")
        table.add_row(name, *numbers, ", ".join(written.key), written.checksum, f"{written.seconds:.1f}")
    return table


def dump_line(report: Any) -> str:
    """What became of a file of a data dump; takes an `ingest.dump.DumpReport`."""
    line = f"{report.source}: {report.rows_in:,} rows in, {report.rows_out:,} out, {report.rejected:,} set aside"
    line += f", {len(report.files):,} files, {report.rate / 1e6:.0f} MB/s"
    if report.resumed_rows:
        files = f"{report.resumed:,} files with " if report.resumed else ""
        line += f"; {files}{report.resumed_rows:,} rows were done by an earlier import and are not done again"
    if report.rejected:
        line += f"; what was set aside is in {report.rejected_file}"
    if report.not_imported:
        line += "; attributes without a column: " + ", ".join(f"{k} {n:,}" for k, n in report.not_imported.items())
    return line + ("; the file is cut off" if report.truncated else "")


def _durations(record: FileRecord) -> str:
    """`landed 0.2, launched 1.1, …`: seconds from one state to the next."""
    times = sorted(record.times.items(), key=lambda entry: entry[1])
    steps = pairwise(times)
    return ", ".join(f"{name} {(moment - before).total_seconds():.1f}" for (_, before), (name, moment) in steps)
