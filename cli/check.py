"""`manage.py check` and `manage.py settings`: what is set, and whether it works."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from pydantic import SecretStr

from cli.options import DEFAULT_FILE, AsJson, SettingsFile, hint, is_local, open_services
from cli.screen import Screen, print_json
from shared.errors import NotFound, StackTopicsError
from shared.settings import (
    BINDING_SETTINGS,
    HOST_SETTINGS,
    Connection,
    Settings,
    environment,
    names_tried,
    read_local_settings,
)
from shared.storage import storage_errors

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from shared.services import Services

CHECK_FILE = "runs/check.json"


def check(file: SettingsFile = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """Whether everything that the settings name can be reached and used; says what to do where it cannot.

    Each thing is tried once, for a few seconds at most. The exit code is 1 where one does not work.
    """
    screen, results, hints = Screen(), [], []
    for what, look in _looks(open_services(file)):
        if not as_json:
            screen.passing(f"trying {what} …")
        try:
            works, said = True, look()
        except StackTopicsError as error:
            works, said = False, str(error).removeprefix(f"{what}: ")
            hints += [advice] if (advice := hint(error)) else []
        results.append({"what": what, "works": works, "said": said})
        if not as_json:
            style = "green" if works else "red"
            screen.line(f"{'ok   ' if works else 'wrong'} {what}: {said}", style)
    if as_json:
        print_json(results)
    elif hints:
        screen.line(hints[0])
    if not all(result["works"] for result in results):
        raise typer.Exit(1)


def settings(file: SettingsFile = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """What is set, and from where; secrets are hidden. The exit code is 1 when something is missing or invalid."""
    below = read_local_settings(file)
    rows = [_setting(name, field, below, file) for name, field in Settings.model_fields.items()]
    unknown = list(_unknown(below, file))
    if as_json:
        listed = [dict(zip(("setting", "value", "from"), row, strict=True)) for row in rows]
        print_json({"settings": listed, "unknown": unknown})
    else:
        screen = Screen()
        longest = max(len(name) for name, _, _ in rows)
        for name, value, place in rows:
            shown = "missing" if value is None else f"{value}  ({place})" if value else f"({place})"
            screen.line(f"{name:<{longest}}  {shown}", "red" if value is None else "")
        for line in unknown:
            screen.line(line, "yellow")
    Settings.load(file)


def _setting(name: str, field: FieldInfo, below: dict[str, str], file: Path) -> tuple[str, str | None, str]:
    """Name, value (None: missing) and origin of one setting."""
    places = (("environment", environment()), (file.name, below))
    for place, values in places:
        known = {variable.lower(): value for variable, value in values.items() if value}
        for variable in names_tried(name, field):
            if variable.lower() in known:
                secret = field.annotation is Connection and "__" not in variable  # a connection string has the key
                shown = str(SecretStr(known[variable.lower()])) if secret else known[variable.lower()]
                return variable, shown, place
    missing = field.is_required()
    default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    return name.upper(), None if missing else "" if default is None else str(default), "" if missing else "default"


def _unknown(below: dict[str, str], file: Path) -> Iterator[str]:
    """A sentence for each name in the settings file that nothing reads."""
    known = {variable for name, field in Settings.model_fields.items() for variable in names_tried(name, field)}
    known |= BINDING_SETTINGS | _secret_names(below)
    folded = {name.lower() for name in known}
    for name in below:
        if name.lower() in folded or name.startswith(HOST_SETTINGS):
            continue
        near = difflib.get_close_matches(name.upper(), known, 1)
        hint = f": did you mean {near[0]}?" if near else ""
        yield f"{name} in {file.name} is no setting of StackTopics{hint}"


def _secret_names(below: dict[str, str]) -> set[str]:
    """The variables that hold secrets where no vault does."""
    names = (name for name in Settings.model_fields if name.endswith("_secret"))
    values = (below.get(name.upper(), str(Settings.model_fields[name].default)) for name in names)
    return {value.replace("-", "_").upper() for value in values}


def _looks(services: Services) -> Iterator[tuple[str, Callable[[], str]]]:
    settings = services.settings
    yield f"container {settings.posts_container}", partial(_container, services)
    yield f"queue {settings.posts_landed_queue}", lambda: f"{services.posts_landed.length()} messages"
    yield f"queue {settings.classification_runs_queue}", lambda: f"{services.classification_runs.length()} messages"
    yield f"lake {settings.lake_uri}", partial(_lake, services)
    for table in settings.reference_tables:
        yield f"table {settings.reference_schema}.{table}", partial(_table, services, table)
    for job in (settings.databricks_job_id, settings.databricks_training_job_id):
        if job is not None:
            yield f"Databricks job {job}", partial(_job, services, job)


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
    from ingest.postgres.connect import begin_snapshot, connect
    from ingest.reference.copy import plan_of

    with closing(connect(services)) as connection:
        begin_snapshot(connection, services.settings.reference_deadline_seconds)
        try:
            plan = plan_of(connection, services.settings, table)
        except NotFound as error:
            if not is_local(services.settings):
                raise
            raise NotFound(f"{error}; on this machine `make demo` fills it, or `manage.py import-dump`") from error
    key = f"key {', '.join(plan.key)}" if plan.key else "no key"
    return f"{len(plan.columns)} columns, {key}"


def _job(services: Services, job: int) -> str:
    return services.job_runs.job_name(job)
