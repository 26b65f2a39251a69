"""The documentation names every setting and command, and no setting that is not there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer

from shared.settings import BINDING_SETTINGS, Settings

PROJECT = Path(__file__).parents[2]
OPERATIONS = (PROJECT / "docs" / "operations.md").read_text()


def test_every_setting_is_documented_with_its_default() -> None:
    documented = dict(re.findall(r"^\| `([A-Z_]+)` \| (.*?) \|", OPERATIONS, re.MULTILINE))
    assert documented.keys() == {name.upper() for name in Settings.model_fields} | BINDING_SETTINGS
    for name, field in Settings.model_fields.items():
        told = documented[name.upper()].strip("`")
        if field.is_required():
            assert told == "required", name
        elif field.default not in (None, ()):
            default = ",".join(field.default) if isinstance(field.default, tuple) else str(field.default)
            assert told == default.removesuffix(".0"), name


def test_every_command_is_documented() -> None:
    from cli import main
    from localcloud.__main__ import app as localcloud_app

    for program, app in (("manage.py", main.app), ("-m localcloud", localcloud_app)):
        for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
            assert f"`python {program} {name}" in OPERATIONS, f"{program} {name}"


def test_the_deadline_of_a_copy_leaves_time_to_publish_it_in_a_function() -> None:
    hours, minutes, seconds = json.loads((PROJECT / "host.json").read_text())["functionTimeout"].split(":")
    limit = int(hours) * 3600 + int(minutes) * 60 + int(seconds)
    assert Settings.model_fields["reference_deadline_seconds"].default <= limit - 600


def test_make_lists_the_promised_commands() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    for target in ("demo", "test", "up", "bench", "lint", "format"):
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target


@pytest.mark.parametrize(
    "page", [*sorted(PROJECT.glob("docs/**/*.md")), PROJECT / "README.md"], ids=lambda page: page.name
)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []
