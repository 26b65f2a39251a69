"""The documentation matches the code: settings, commands, options, links, pictures, files of the design."""

from __future__ import annotations

import configparser
import importlib
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from cli import main
from localcloud.__main__ import app as localcloud_app
from shared import paths
from shared.alerts import Alert
from shared.settings import BINDING_SETTINGS, Settings
from tests.documents import PAGES, anchors, blocks, code, links, sections
from tests.places import PROJECT

DOCS = PROJECT / "docs"
OPERATIONS = (DOCS / "operations.md").read_text()
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(PROJECT).as_posix())
SETTINGS = {name.upper() for name in Settings.model_fields} | BINDING_SETTINGS


# ---- settings ---------------------------------------------------------------------------------------------------


def test_every_setting_is_documented_with_its_default() -> None:
    documented = dict(re.findall(r"^\| `([A-Z_]+)` \| (.*?) \|", OPERATIONS, re.MULTILINE))
    assert documented.keys() == SETTINGS
    for name, field in Settings.model_fields.items():
        said = documented[name.upper()].strip("`")
        if field.is_required():
            assert said == "required", name
        elif field.default not in (None, ()):
            default = ",".join(field.default) if isinstance(field.default, tuple) else str(field.default)
            assert said == default.removesuffix(".0"), name


def examples() -> dict[str, dict[str, str]]:
    """The two examples of settings: for a laptop and for Azure."""
    (azure,) = blocks(OPERATIONS, "json")
    sample = json.loads((PROJECT / "local.settings.sample.json").read_text())["Values"]
    return {"sample": sample, "azure": json.loads(azure)}


@pytest.mark.parametrize("which", ["sample", "azure"])
def test_examples_of_settings_have_only_known_and_all_required_names(which: str) -> None:
    values = examples()[which]
    hosts = ("FUNCTIONS_WORKER_RUNTIME", "AzureWebJobsStorage", "AzureFunctionsJobHost")
    secrets = {
        str(field.default).replace("-", "_").upper()
        for name, field in Settings.model_fields.items()
        if name.endswith("_secret")
    }
    unknown = {name for name in values if name.split("__")[0] not in SETTINGS | secrets and not name.startswith(hosts)}
    assert not unknown
    required = {name.upper() for name, field in Settings.model_fields.items() if field.is_required()}
    assert required <= {name.split("__")[0] for name in values}


def test_the_example_for_azure_can_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {name: "7" if name.endswith("JOB_ID") else value for name, value in examples()["azure"].items()}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings = Settings.load()
    assert settings.lake_uri == "abfss://stacktopics@<lake account>.dfs.core.windows.net"
    assert settings.posts_storage.endpoint("queue") == "https://<posts account>.queue.core.windows.net"
    assert settings.posts_storage.account_key() is None


@EVERY_PAGE
def test_pages_name_only_existing_settings(page: Path) -> None:
    prefixes = (
        "POSTGRES_",
        "REFERENCE_",
        "DATABRICKS_",
        "TRAINING_",
        "CLASSIF",
        "WATCH_",
        "LAKE_",
        "QUEUES_",
        "POSTS_",
    )
    named = {word.partition("=")[0].partition("__")[0] for text in code(page.read_text()) for word in text.split()}
    secrets = {"POSTGRES_PASSWORD", "DATABRICKS_TOKEN"}
    settings = {name for name in named if name.startswith(prefixes) and re.fullmatch(r"[A-Z_]+[A-Z]", name)}
    assert settings <= SETTINGS | secrets


def test_the_deadline_of_the_weekly_copy_leaves_the_function_time_to_publish() -> None:
    hours, minutes, seconds = json.loads((PROJECT / "host.json").read_text())["functionTimeout"].split(":")
    limit = int(hours) * 3600 + int(minutes) * 60 + int(seconds)
    assert Settings.model_fields["reference_deadline_seconds"].default <= limit - 600


# ---- commands ---------------------------------------------------------------------------------------------------


def _options(command: Any) -> set[str]:
    found = (option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts))
    return {option for option in found if option.startswith("--")} - {"--help"}


def _commands(program: str, command: Any) -> Iterator[tuple[str, set[str]]]:
    for name, child in getattr(command, "commands", {}).items():
        yield f"{program} {name}", _options(child)
        yield from _commands(f"{program} {name}", child)


MANAGE, CLOUD = "manage.py", "-m localcloud"
COMMANDS: dict[str, set[str]] = {
    **dict(_commands(MANAGE, typer.main.get_command(main.app))),
    **dict(_commands(CLOUD, typer.main.get_command(localcloud_app))),
}
"""Each command, such as `manage.py models add`, with its own options."""
OF_ALL = {MANAGE: {"--settings", "--json"}, CLOUD: {"--state"}}
"""Options that operations.md explains once for each program."""
OF_OTHERS = {"--network", "--skipApiVersionCheck", "--check"}
"""Options of other programs (Docker, Azurite, bench), which pages name without a command."""


def _named(text: str) -> tuple[str, set[str]] | None:
    """The command that a piece of code calls, and its options; None if it calls no command of this project.

    `up --log` is short for `python -m localcloud up --log`. Raises KeyError for an unknown command.
    """
    words = text.split()
    given = {word.partition("=")[0] for word in words if re.match("--[a-z]", word)}
    if found := re.search(r"(manage\.py|-m localcloud) ([a-z].*)", text):
        program, words = found[1], found[2].split()
    elif given and (short := [key for key in COMMANDS if key.endswith(f" {words[0]}") and key.count(" ") < 3]):
        program = short[0].removesuffix(f" {words[0]}")
    else:
        return None
    if f"{program} {' '.join(words[:2])}" in COMMANDS:
        return f"{program} {' '.join(words[:2])}", given
    if f"{program} {words[0]}" not in COMMANDS:
        raise KeyError(text)
    return f"{program} {words[0]}", given


def _known(command: str) -> set[str]:
    """The options that a command accepts: its own, and those of its group."""
    return COMMANDS[command] | COMMANDS.get(command.rpartition(" ")[0], set())


@EVERY_PAGE
def test_every_command_and_option_on_a_page_exists(page: Path) -> None:
    for section in sections(page.read_text()):
        pieces = list(code(section))
        calls = [call for text in pieces if (call := _named(text))]
        for command, given in calls:
            assert given <= _known(command), command
        allowed = set().union(*(_known(command) for command, _ in calls)) | OF_OTHERS
        alone = {text.split()[0].partition("=")[0] for text in pieces if re.match("--[a-z]", text)}
        assert alone <= allowed, section.splitlines()[:2]


@pytest.mark.parametrize("command", COMMANDS)
def test_operations_lists_every_command_with_all_its_options(command: str) -> None:
    (row,) = [line for line in OPERATIONS.splitlines() if line.startswith(f"| `python {command}` |")]
    listed = {word.partition("=")[0] for text in code(row) for word in text.split() if word.startswith("--")}
    program = MANAGE if command.startswith(MANAGE) else CLOUD
    assert listed == COMMANDS[command] - OF_ALL[program]


def test_every_command_has_the_common_options_of_its_program() -> None:
    alone = {"manage.py train", "manage.py evaluate", "manage.py score"}
    for command in COMMANDS:
        if command in ("manage.py open",):  # a group
            continue
        if command.startswith(MANAGE):
            assert "--json" in COMMANDS[command], command
            assert ("--settings" in _known(command)) == (command not in alone), command
        else:
            assert "--state" in COMMANDS[command], command


@EVERY_PAGE
def test_every_benchmark_and_make_target_on_a_page_exists(page: Path) -> None:
    text = "\n".join(code(page.read_text()))
    benchmarks = {file.stem for file in (PROJECT / "bench").glob("[!_]*.py")}
    assert set(re.findall(r"-m bench ([a-z]\w*)", text)) <= benchmarks
    targets = set(re.findall(r"^([a-z-]+):.*## ", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|\bsudo -H -u \w+ )make ([a-z-]+)", text, re.MULTILINE)) <= targets


def test_make_lists_the_promised_commands() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    for target in ("demo", "test", "up", "bench", "lint", "format"):
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target


# ---- pages ------------------------------------------------------------------------------------------------------


@EVERY_PAGE
def test_the_target_of_every_link_exists(page: Path) -> None:
    for link in links(page.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_the_index_links_to_every_page_and_the_readme_to_the_index() -> None:
    led = {(DOCS / link).resolve() for link in links((DOCS / "README.md").read_text()) if "://" not in link}
    assert [page for page in DOCS.glob("**/*.md") if page.resolve() not in led | {DOCS / "README.md"}] == []
    assert {"docs/README.md", "docs/glossary.md"} <= set(links((PROJECT / "README.md").read_text()))


def test_the_readme_has_at_most_150_lines() -> None:
    assert len((PROJECT / "README.md").read_text().splitlines()) <= 150


def test_the_changelog_has_a_line_for_each_feature() -> None:
    lines = (PROJECT / "CHANGELOG.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("## ")] == ["## 0.1.0 (unreleased)"]
    assert len([line for line in lines if line.startswith("* ")]) == 10


@pytest.mark.parametrize("name", ["flow"])
def test_a_picture_equals_the_output_of_its_command(name: str) -> None:
    made = runpy.run_path(str(DOCS / "pictures" / f"{name}.py"))[name]()
    assert made == (DOCS / "pictures" / f"{name}.svg").read_text(encoding="utf-8")


TERMS = {
    *("topic", "other", "tag", "source", "version", "landing", "archive", "quarantine", "lake", "SCD type 1"),
    *("poison queue", "NCRONTAB", "drift", "margin", "vocabulary", "coverage", "95 % interval", "estimated share"),
    *("hit@1", "model version", "promote", "reference tables", "publish", "day", "exact", "Posts file", "run"),
    *("attempt", "ledger", "record", "pointer", "ETag", "idempotent"),
}
PEOPLES_PAGES = ("first-steps", "how-it-works", "posts-file", "operations", "without-azure", "changing-it")


def glossary() -> dict[str, str]:
    """Each term and its explanation; an entry may explain two terms."""
    entries = re.findall(
        r"^\*\*(.+?)\*\*: (.+?)(?:\n\n|\Z)", (DOCS / "glossary.md").read_text(), re.DOTALL | re.MULTILINE
    )
    return {name: said for names, said in entries for name in names.split(", ")}


def test_the_glossary_explains_each_term_in_a_few_lines() -> None:
    explained = glossary()
    assert explained.keys() == TERMS
    assert all(len(said.splitlines()) <= 3 for said in explained.values())
    names = [name.casefold() for name in explained if name[0].isalpha() and name != "record"]
    assert names == sorted(names)
    for page in PEOPLES_PAGES:
        assert "glossary.md" in links((DOCS / f"{page}.md").read_text()), page


def test_the_first_steps_explain_every_folder_of_the_lake() -> None:
    table = (DOCS / "first-steps.md").read_text()
    made = [paths.landing("s", "v"), paths.quarantine_reason("s", "v"), paths.reference("t"), paths.CURRENT_MODEL]
    made += [paths.post_topics("s", "v", "m", "tags"), paths.question_topics(0), paths.DAYS, paths.ARCHIVE]
    made += [paths.FILE_RECORDS, "topics/day="]
    for path in made:
        assert f"| `{path.partition('/')[0]}/" in table, path


def test_operations_has_instructions_for_every_alert() -> None:
    for alert in Alert:
        assert f"| `{alert}` |" in OPERATIONS


def test_the_tree_in_the_design_lists_all_existing_files() -> None:
    design = (PROJECT / "docs" / "design.md").read_text()
    drawn: set[str] = set()
    rooms: list[str] = []
    for line in re.findall(
        r"^    ( *)(.*)$", design.split("## The house")[1].split("\nImports point")[0], re.MULTILINE
    ):
        depth, words = len(line[0]) // 2, line[1].split("  ")[0].split()
        rooms = rooms[:depth]
        if words and words[0].endswith("/"):
            rooms.append(words[0])
        drawn |= {"".join(rooms) + word for word in words if word.endswith(".py")}
    there = {
        str(file.relative_to(PROJECT))
        for room in ("cli", "pipeline", "ingest", "classify", "serve", "shared")
        for file in (PROJECT / room).rglob("*.py")
        if file.name != "__init__.py"
    }
    assert drawn - {"function_app.py", "manage.py"} == there


def test_the_table_of_postgres_types_matches_the_code() -> None:
    from ingest.postgres.types import TYPES

    table = (DOCS / "operations.md").read_text().split("| Postgres | in the lake |\n|---|---|\n")[1]
    rows = [f"| {', '.join(f'`{name}`' for name in entry.names)} | {entry.becomes} |" for entry in TYPES]
    assert table.splitlines()[: len(rows)] == rows


RETRIES = re.compile(r"`([\w.]+|host\.json: [\w.]+)` = ([\w.:]+)")


def _limits_of_the_code() -> dict[str, object]:
    """Every retry limit, pause and time-out of the product: constants (found by name), settings, and host.json."""
    found: dict[str, object] = {}
    for room in ("cli", "pipeline", "ingest", "classify", "serve", "shared"):
        for file in (PROJECT / room).rglob("*.py"):
            named = re.findall(r"^([A-Z][A-Z_, ]*) = ", file.read_text(), re.MULTILINE)
            names = [name.strip() for each in named for name in each.split(",")]
            wanted = [name for name in names if name.endswith(("_SECONDS", "TRIES"))]
            if wanted:
                module = ".".join(file.relative_to(PROJECT).with_suffix("").parts)
                loaded = importlib.import_module(module)
                found |= {f"{module}.{name}": getattr(loaded, name) for name in wanted}
    for name, field in Settings.model_fields.items():
        if name.endswith(("_seconds", "_attempts", "_backoff")):
            found[name.upper()] = field.default
    host = json.loads((PROJECT / "host.json").read_text())
    found["host.json: functionTimeout"] = host["functionTimeout"]
    for part, name in (
        ("queues", "maxDequeueCount"),
        ("queues", "visibilityTimeout"),
        ("blobs", "poisonBlobThreshold"),
    ):
        found[f"host.json: {part}.{name}"] = host["extensions"][part][name]
    return found


def test_the_table_of_retries_matches_the_code() -> None:
    table = OPERATIONS.split("## What is tried again")[1].split("\n## ")[0]
    said = dict(RETRIES.findall(table))
    code = {
        name: value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in _limits_of_the_code().items()
    }
    assert {name: value.removesuffix(".0") for name, value in said.items()} == code


# ---- recipes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_recipes_for_a_posts_file_work(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ingest.contracts import check_posts
    from tests import exports

    page = (DOCS / "posts-file.md").read_text()
    (tmp_path / "QueryResults.csv").write_bytes(exports.explorer_csv(exports.posts(5)))
    monkeypatch.chdir(tmp_path)
    python = [script for script in blocks(page, "python") if "# Spark" not in script]
    assert len(python) == 2
    if number < len(python):
        exec(compile(python[number], "posts-file.md", "exec"), {})
    else:
        _run_sql(blocks(page, "sql")[0])
    with Path("2026-11-22.parquet").open("rb") as file:
        assert check_posts(file, "2026-11-22.parquet").rows == 10


def test_the_recipe_for_a_table_with_other_names_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ingest.contracts import check_posts

    monkeypatch.chdir(tmp_path)
    table = (
        "CREATE TABLE posts AS SELECT 1 AS id, 1 AS post_type_id, NULL::int AS parent_id, 'a' AS title, 'b' AS body,"
        " '<python>' AS tags, TIMESTAMP '2026-11-22 13:14:15' AS creation_date"
    )
    _run_sql(f"{table};\n{blocks((DOCS / 'posts-file.md').read_text(), 'sql')[1]}")
    with Path("2026-11-22.parquet").open("rb") as file:
        assert check_posts(file, "2026-11-22.parquet").rows == 1


def _run_sql(script: str) -> None:
    import duckdb

    with duckdb.connect() as connection:
        connection.execute(script)


def unit() -> configparser.ConfigParser:
    """The systemd unit of without-azure.md."""
    (text,) = blocks((DOCS / "without-azure.md").read_text(), "ini")
    parsed = configparser.ConfigParser()
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string(text)
    return parsed


def test_the_systemd_unit_starts_the_local_cloud_on_its_own_folder() -> None:
    service = unit()["Service"]
    call = _named(service["ExecStart"])
    assert call == ("-m localcloud up", {"--state"})
    assert service["ExecStart"].endswith(f"/var/lib/{service['StateDirectory']}")
    assert (service["Restart"], service["KillMode"]) == ("on-failure", "mixed")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    made = unit()
    made["Service"]["WorkingDirectory"] = str(PROJECT)
    made["Service"]["ExecStart"] = f"{sys.executable} -m localcloud up --state /var/lib/stacktopics"
    made["Service"]["User"] = "root"
    file = tmp_path / "stacktopics.service"
    with file.open("w") as text:
        made.write(text, space_around_delimiters=False)
    checked = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_page_describes_every_file_of_real_posts_that_tests_use() -> None:
    page = (DOCS / "real-posts.md").read_text()
    looked_for = re.compile(r"""(?:real_posts\(|(?:shared_data|SHARED_DATA|DATA|"data") / )"([^"\n]+)""")
    places = [*(PROJECT / "tests").glob("**/*.py"), *(PROJECT / "bench").glob("*.py")]
    found = {name for place in places for name in looked_for.findall(place.read_text())}
    assert found
    assert {name for name in found if f"`{name}" not in page} == set()
