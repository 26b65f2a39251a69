"""`manage.py import-dump`: a Stack Exchange data dump becomes Posts files and reference tables."""

from __future__ import annotations

import os
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import Progress, TextColumn

from cli.options import DEFAULT_FILE, AsJson, SettingsFile, open_services
from cli.screen import Screen, number_of, print_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ingest.dump import DumpReport
    from ingest.dump import Progress as DumpStep


def import_dump_command(
    source: Annotated[
        list[Path], typer.Argument(help="Folder with Posts.xml and Users.xml or archives, or archives (.7z).")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the Posts files. Default: the posts container.")] = None,
    by: Annotated[Literal["day", "month", "year", "all"], typer.Option(help="What one file holds.")] = "day",
    prefix: Annotated[
        str | None,
        typer.Option(help="The site, for the files' names. Default: what the folder or archive is named by."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads.")] = os.cpu_count() or 1,
    posts: Annotated[bool, typer.Option(help="Write the Posts files.")] = True,
    users: Annotated[bool, typer.Option(help="Fill the reference tables in Postgres, before the posts.")] = True,
    force_users: Annotated[
        bool, typer.Option("--force-users", help="Replace the users even by a cut-off, empty or much smaller file.")
    ] = False,
    truncated: Annotated[
        bool,
        typer.Option("--truncated", help="Take what a cut-off Posts.xml has; the whole file replaces it later."),
    ] = False,
    work: Annotated[
        Path | None, typer.Option(help="Folder for the state. Default: that of the files, or the current one.")
    ] = None,
    file: SettingsFile = DEFAULT_FILE,
    as_json: AsJson = False,
) -> None:
    """Import a Stack Exchange data dump as Posts files and reference tables; malformed rows are set aside."""
    from ingest.dump import dump_origin, import_dump, import_users, site_prefix
    from ingest.dump.posts import POSTS_XML
    from ingest.dump.source import WORK_FOLDER
    from ingest.postgres.connect import connect

    services, screen = open_services(file, patient=True), Screen(Console(stderr=True, highlight=False, markup=False))
    if posts and out is None:
        open_services(file).posts_landed.length()  # one short attempt shows whether the services answer
    work = work or out or Path()
    if posts:
        site_prefix(dump_origin(source, POSTS_XML), prefix)  # refuses before the users are replaced
    reports: list[DumpReport] = []
    with _progress(screen) as tell:
        if users:
            with closing(connect(services)) as connection:
                report = import_users(
                    source,
                    connection,
                    rejected=(out or work / WORK_FOLDER) / "rejected-users.jsonl",
                    progress=tell,
                    work=work,
                    max_shrink=services.settings.reference_max_shrink,
                    force=force_users,
                )
            reports.append(report)
            screen.line(dump_line(report))
        if posts:
            report = import_dump(
                source,
                out or services.posts_container,
                by=by,
                prefix=prefix,
                workers=workers,
                progress=tell,
                work=work,
                truncated=truncated,
            )
            reports.append(report)
            screen.line(dump_line(report))
    if as_json:
        print_json([report.model_dump() for report in reports])
    elif posts and out is None:
        screen.line("Follow the files with `python manage.py status`; see the topics with `python manage.py topics`.")


def dump_line(report: DumpReport) -> str:
    """What became of a file of a data dump, in a sentence."""
    line = f"{report.source}: {report.rows_in:,} rows in, {report.rows_out:,} out, {report.rejected:,} set aside"
    line += f", {number_of(len(report.files), 'file')}" if report.files else ""
    line += f", {report.rate / 1e6:.0f} MB/s" if report.rate >= 0.5e6 else ""
    if report.resumed_rows:
        files = f"{number_of(report.resumed, 'file')} with " if report.resumed else ""
        line += f"; {files}{report.resumed_rows:,} rows were done by an earlier import and are not done again"
    if report.rejected:
        line += f"; the rows set aside are in {report.rejected_file}"
    if report.not_imported:
        line += "; attributes without a column: " + ", ".join(f"{k} {n:,}" for k, n in report.not_imported.items())
    return line + ("; the file is cut off" if report.truncated else "")


@contextmanager
def _progress(screen: Screen) -> Iterator[Callable[[DumpStep], None]]:
    """A bar a step on a terminal; elsewhere a line when a step begins."""
    if screen.width is None:
        begun: set[str] = set()

        def say(step: DumpStep) -> None:
            if step.step not in begun:
                begun.add(step.step)
                screen.line(f"{step.step} …")

        yield say
        return
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, console=screen.console) as bars:
        tasks: dict[str, Any] = {}

        def tell(step: DumpStep) -> None:
            if step.step not in tasks:
                tasks[step.step] = bars.add_task(step.step, rate="")
            rate = f"{step.rate / 1e6:.0f} MB/s"
            bars.update(tasks[step.step], completed=step.done, total=step.total, rate=rate)

        yield tell
