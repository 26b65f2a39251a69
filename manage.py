"""The operator's command line, against whatever environment the settings name, local or Azure."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import SecretStr
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table

from classify.summary import Training
from serve.show import days_table, dump_line, files_table, reference_table, topics_table
from serve.topics import parse_day, topics_of_day
from shared import paths
from shared.catalog import day_pointer, published_days
from shared.documents import decode
from shared.errors import BadInput, StackTopicsError
from shared.queues import poison_queues
from shared.services import Services
from shared.settings import LOCAL_SETTINGS_FILE, Connection, Settings, names_tried, read_local_settings
from shared.storage import storage_errors

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

CHECK_FILE = "runs/check.json"

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
models_app = typer.Typer(invoke_without_command=True)
app.add_typer(models_app, name="models")
SettingsFile = Annotated[Path, typer.Option("--settings", help="Fills what the environment leaves open.")]
DEFAULT_FILE = Path(LOCAL_SETTINGS_FILE)


@app.command()
def status(file: SettingsFile = DEFAULT_FILE, last: Annotated[int, typer.Option(help="How many files.")] = 20) -> None:
    """Files, days, reference tables and poison queues; exit code 1 when something needs a person."""
    from ingest.reference import last_record

    services, console = Services(file), Console()
    records = sorted(services.ledger.records(), key=lambda record: record.order)
    console.print(files_table(records[-last:]))
    days = published_days(services.lake)
    console.print(days_table(len(days), [found for day in days[-10:] if (found := day_pointer(services.lake, day)[0])]))
    copied = last_record(services.lake)
    console.print(reference_table(copied) if copied else "Reference tables: never copied")
    unread: list[str] = []
    for info in sorted(services.lake.list(paths.TRAINING_RECORDS), key=lambda info: info.last_modified)[-1:]:
        training = decode(Training, services.lake.read(info.path), info.path)
        became = f"{training.candidate} was {training.became}"
        line = f"Training: {info.path}, {info.last_modified:%Y-%m-%d %H:%M:%S}: {became}; {training.reason}"
        console.print(line, highlight=False, soft_wrap=True)
        unread = training.damaged
    for line in unread:
        console.print(f"not learned from: {line}", style="red", highlight=False, markup=False, soft_wrap=True)
    poison = {name: services.queue(name).length() for name in poison_queues(services.settings)}
    console.print("Poison queues: " + ", ".join(f"{name} {count}" for name, count in poison.items()))
    needing = [record for record in records if record.state in ("failed", "quarantined")]
    copy_needs_a_person = copied is not None and copied.state != "published"
    if copied and copy_needs_a_person:
        reason = copied.reason or "it began and did not end"
        if copied.state == "publishing":
            reason += "; start copy_reference again: it first renames what is left"
        console.print(f"[red]the reference copy of {copied.week} needs a person:[/red]")
        console.print(f"  {copied.state}: {reason}", highlight=False, markup=False, soft_wrap=True)
    for change in copied.changes if copied else []:
        console.print(f"columns changed in {change}", highlight=False, markup=False, soft_wrap=True)
    if needing or any(poison.values()):
        console.print(f"[red]{len(needing)} files and {sum(poison.values())} poison messages need a person[/red]")
        for record in needing[-last:]:
            console.print(f"  {record.source.name}: {record.reason}", highlight=False, soft_wrap=True)
    if needing or any(poison.values()) or copy_needs_a_person or unread:
        raise typer.Exit(1)


@app.command()
def topics(
    file: SettingsFile = DEFAULT_FILE,
    day: Annotated[str, typer.Option(help="2026-11-22, or latest.")] = "latest",
    top: Annotated[int, typer.Option(min=1, help="How many.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="As CSV.")] = False,
) -> None:
    """The topics of a day, most frequent first."""
    found = topics_of_day(Services(file).lake, parse_day(day), top)
    if as_json:
        typer.echo(found.model_dump_json(indent=1))
    elif as_csv:
        typer.echo(found.to_csv(), nl=False)
    else:
        Console().print(topics_table(found))


@app.command()
def settings(file: SettingsFile = DEFAULT_FILE) -> None:
    """What is set, and from where; secrets are hidden. Exit code 1 when something is missing or wrong."""
    table = Table(box=SIMPLE_HEAD)
    for name in ("setting", "value", "from"):
        table.add_column(name, overflow="fold")
    below = read_local_settings(file)
    for name, field in Settings.model_fields.items():
        table.add_row(*_setting(name, field, below, file))
    Console().print(table)
    Settings.load(file)


@app.command()
def check(file: SettingsFile = DEFAULT_FILE) -> None:
    """Whether everything the settings name can be reached and used; says what to do where it cannot."""
    console, failed = Console(), 0
    for what, look in _looks(Services(file)):
        try:
            console.print(f"[green]ok[/green]    {what}: {look()}")
        except StackTopicsError as error:
            failed += 1
            console.print(f"[red]wrong[/red] {what}: {error}")
    if failed:
        raise typer.Exit(1)


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    posts: Annotated[list[Path], typer.Option(help="Posts files: --posts a b, or --posts a --posts b.")],
    more: Annotated[list[Path] | None, typer.Argument(hidden=True)] = None,
    topics: Annotated[int, typer.Option(min=2, help="How many topics, beside `other`.")] = 100,
) -> None:
    """Train a topic model on the tagged questions of Posts files; writes its card and report too."""
    from classify.card import CARD, REPORT, card, mean_report
    from classify.fit import check_enough, fit, read_questions

    files = [*posts, *(more or [])]
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out} is a file: name a folder")
    with _progress() as tell:
        questions = read_questions(files, partial(tell, "reading"))
        check_enough(len(questions), topics, f"in {', '.join(map(str, files))}")
        model, report = fit(questions, topics, progress=tell)
    text = card(
        model,
        [report],
        [file.name for file in files],
        made_by="manage.py train",
        measured=f"Measured on {report.posts:,} questions, each scored by a model that was trained without it; the"
        " vocabulary and the calibration had seen them.",
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / REPORT).write_text(json.dumps(mean_report([report]), indent=1), encoding="utf-8")
    (out / CARD).write_text(text, encoding="utf-8")
    model.save(out)
    typer.echo(f"{model.version} is in {out}")
    Console().print(_figures(report.to_json(), "on posts left out in turn"))


@app.command()
def evaluate(
    posts: Annotated[Path, typer.Option(help="A Posts file with tagged questions.")],
    model: Annotated[Path, typer.Option(help="Folder of the model.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Measure a topic model on the tagged questions of a file."""
    from classify.fit import FEWEST, evaluate, own_topics, read_questions
    from classify.model import TopicModel

    loaded = TopicModel.load(model)
    with _progress() as tell:
        questions = read_questions([posts], partial(tell, "reading"))
        if len(questions) < FEWEST or not own_topics(questions.tags, loaded.topics[:-1]).any():
            raise BadInput(
                f"{posts} has {len(questions)} tagged questions: {FEWEST} are needed to measure a model, and among them"
                " one with one of its topics"
            )
        tell("scoring", None)
        report = evaluate(loaded, questions).to_json()
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    else:
        Console().print(_figures(report, f"on the tagged questions of {posts.name}"))


@app.command()
def score(
    posts: Annotated[Path, typer.Option(help="A Posts file.")],
    model: Annotated[Path, typer.Option(help="Folder of the model.")],
    out: Annotated[Path, typer.Option(help="Parquet file for one row a post.")],
    topic_source: Annotated[
        Literal["tags", "model"],
        typer.Option(help="Who decides a question that has tags; in the pipeline TOPIC_SOURCE."),
    ] = "model",
) -> None:
    """The topics of a file's questions and answers, in the form in which the classification job writes them.

    The model is asked, whatever tags a question has, because who calls this wants to know what it says.
    """
    from classify.job import score_file

    with _progress() as tell:
        summary = score_file(posts, model, out, topic_source, partial(tell, "scoring"))
    typer.echo(f"{summary.counted:,} posts in {out}: {summary.decided_by}")


@app.command("import-dump")
def import_dump_command(
    source: Annotated[
        list[Path], typer.Argument(help="Folder with Posts.xml and Users.xml or archives, or archives (.7z).")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the Posts files. Default: the posts container.")] = None,
    by: Annotated[str, typer.Option(help="One file a day or a month.")] = "day",
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
        typer.Option("--truncated", help="Take what is there of a cut-off Posts.xml; the whole replaces it later."),
    ] = False,
    work: Annotated[
        Path | None, typer.Option(help="Folder for the state. Default: that of the files, or the current one.")
    ] = None,
    file: SettingsFile = DEFAULT_FILE,
) -> None:
    """A Stack Exchange data dump becomes Posts files and reference tables; what is malformed is set aside."""
    from ingest.dump import Progress as DumpStep
    from ingest.dump import dump_origin, import_dump, import_users, site_prefix
    from ingest.dump.posts import POSTS_XML
    from ingest.dump.source import WORK_FOLDER

    services, console = Services(file), Console(stderr=True)
    if by not in ("day", "month"):
        raise BadInput(f"--by {by}: write day or month")
    work = work or out or Path()
    if posts:
        site_prefix(dump_origin(source, POSTS_XML), prefix)  # refuses before the users are replaced
    with Progress(*Progress.get_default_columns(), TextColumn("{task.fields[rate]}"), console=console) as bars:
        tasks: dict[str, Any] = {}

        def tell(step: DumpStep) -> None:
            if step.step not in tasks:
                tasks[step.step] = bars.add_task(step.step, rate="")
            rate = f"{step.rate / 1e6:.0f} MB/s"
            bars.update(tasks[step.step], completed=step.done, total=step.total, rate=rate)

        if users:
            rejected = (out or work / WORK_FOLDER) / "rejected-users.jsonl"
            shrink = services.settings.reference_max_shrink
            with closing(services.postgres()) as connection:
                report = import_users(
                    source,
                    connection,
                    rejected=rejected,
                    progress=tell,
                    work=work,
                    max_shrink=shrink,
                    force=force_users,
                )
            console.print(dump_line(report), soft_wrap=True)
        if posts:
            target = out or services.posts_container
            report = import_dump(
                source,
                target,
                by=by,  # type: ignore[arg-type]
                prefix=prefix,
                workers=workers,
                progress=tell,
                work=work,
                truncated=truncated,
            )
            console.print(dump_line(report), soft_wrap=True)


@models_app.callback()
def models(context: typer.Context, file: SettingsFile = DEFAULT_FILE) -> None:
    """The topic models in the lake, oldest first, with their figures on held-out posts."""
    context.obj = Services(file)
    if context.invoked_subcommand:
        return
    from classify.models import Damaged, current_version, versions

    lake, damaged = context.obj.lake, []
    table, current = Table(box=SIMPLE_HEAD), current_version(lake)
    for name in ("", "version", "hit@1", "primary", "macro F1", "day's error", "coverage", "measured on", "trained on"):
        table.add_column(name)
    for found in versions(lake):
        if isinstance(found, Damaged):
            damaged.append(f"{found.version} is damaged: {found.reason}")
            continue
        version, trained_on, report = found
        days = report.get("days", {})
        figures = [*map(report.get, ("hit_at_1", "primary_accuracy", "macro_f1"))]
        figures += [*map(days.get, ("histogram_error", "coverage"))]
        shown = ["" if figure is None else f"{figure:.4f}" for figure in figures]
        posts = [f"{report['posts']:,}" if "posts" in report else "", f"{trained_on.get('questions', 0):,}"]
        table.add_row("*" if version == current else "", version, *shown, *posts)
    Console().print(table)
    for line in damaged:
        Console().print(line, style="red", highlight=False, markup=False, soft_wrap=True)


@models_app.command("add")
def add_model(context: typer.Context, folder: Path) -> None:
    """Put the model in FOLDER, as `train` writes it, into the lake; `models promote` makes it the current one."""
    from classify.models import add_model

    version = add_model(context.obj.lake, folder)
    typer.echo(f"{version} is in the lake: `python manage.py models promote {version}` makes it current")


@models_app.command("promote")
def promote_model(context: typer.Context, version: str) -> None:
    """Let new classifications use VERSION."""
    from classify.models import promote

    typer.echo(f"{promote(context.obj.lake, version, 'promoted by hand').version} is current")


@models_app.command("rollback")
def rollback_model(context: typer.Context) -> None:
    """Go back to the version before the current one."""
    from classify.models import rollback

    typer.echo(f"{rollback(context.obj.lake).version} is current")


@contextmanager
def _progress() -> Iterator[Callable[[str, float | None], None]]:
    """A bar on standard error that is told a step and the share that is done; None where nobody knows."""
    with Progress(console=Console(stderr=True)) as bars:
        task = bars.add_task("", total=1.0)

        def tell(step: str, done: float | None) -> None:
            bars.update(task, description=step, completed=done or 0.0, total=None if done is None else 1.0)

        yield tell
        bars.update(task, description="done", completed=1.0, total=1.0)


def _figures(report: dict[str, Any], heading: str) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column(heading)
    table.add_column("", justify="right")
    flat = report | {
        f"{kind}.{name}": value
        for kind in ("days", "shifted_days", "answered_days")
        for name, value in report[kind].items()
    }
    for name, value in flat.items():
        if isinstance(value, int | float):
            table.add_row(name, f"{value:.4g}")
    return table


def _setting(name: str, field: FieldInfo, below: dict[str, str], file: Path) -> tuple[str, str, str]:
    """Name, value and origin of one setting."""
    places = (("environment", dict(os.environ)), (file.name, below))
    for place, values in places:
        known = {variable.lower(): value for variable, value in values.items() if value}
        for variable in names_tried(name, field):
            if variable.lower() in known:
                secret = field.annotation is Connection and "__" not in variable  # a connection string has the key
                shown = str(SecretStr(known[variable.lower()])) if secret else known[variable.lower()]
                return variable, shown, place
    missing = field.is_required()
    return name.upper(), "[red]missing[/red]" if missing else str(field.default), "" if missing else "default"


def _looks(services: Services) -> Iterator[tuple[str, Callable[[], str]]]:
    settings = services.settings
    yield f"container {settings.posts_container}", lambda: _container(services)
    yield f"queue {settings.posts_landed_queue}", lambda: f"{services.posts_landed.length()} messages"
    yield f"queue {settings.classification_runs_queue}", lambda: f"{services.classification_runs.length()} messages"
    yield f"lake {settings.lake_uri}", lambda: _lake(services)
    for table in settings.reference_tables:
        yield f"table {settings.reference_schema}.{table}", lambda table=table: _table(services, table)  # type: ignore[misc]
    for job in (settings.databricks_job_id, settings.databricks_training_job_id):
        if job is not None:
            yield f"Databricks job {job}", lambda job=job: services.job_runs.job_name(job)  # type: ignore[misc]


def _container(services: Services) -> str:
    with storage_errors(f"container {services.settings.posts_container}"):
        waiting = sum(1 for _ in services.posts_container.list_blob_names())
    return f"{waiting} files wait"


def _lake(services: Services) -> str:
    services.lake.put(CHECK_FILE, b"{}")
    found = services.lake.stat(CHECK_FILE) is not None
    services.lake.delete(CHECK_FILE)
    return "readable and writable" if found else "writable, not readable"


def _table(services: Services, table: str) -> str:
    from ingest.pgcopy import begin_snapshot
    from ingest.reference import plan_of

    with closing(services.postgres()) as connection:
        begin_snapshot(connection, services.settings.reference_deadline_seconds)
        plan = plan_of(connection, services.settings, table)
    key = f"key {', '.join(plan.key)}" if plan.key else "no key"
    return f"{len(plan.columns)} columns, {key}"


def main() -> None:
    """Run a command; an error of the product or the system is one line on standard error and exit code 1."""
    try:
        app()
    except (StackTopicsError, OSError) as error:
        typer.echo(f"manage.py: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
