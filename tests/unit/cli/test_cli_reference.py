"""What `manage.py status` says of the weekly copy."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli import main, options
from ingest.reference.records import ReferenceRecord, TableRecord
from shared import paths
from tests.world import START, World


class NoMessages:
    def length(self) -> int:
        return 0


def status(monkeypatch: pytest.MonkeyPatch, root: Path, *records: ReferenceRecord) -> Result:
    world = World(root)
    world.services.queue = lambda _: NoMessages()  # type: ignore[method-assign, assignment]
    for record in records:
        world.lake.put(paths.reference_record(record.week), record.model_dump_json().encode())
    monkeypatch.setattr(options, "Services", lambda *_, **__: world.services)
    return CliRunner().invoke(main.app, ["status"], env={"COLUMNS": "200"})


def record(week: str = "2026-W47", **changes: Any) -> ReferenceRecord:
    users = TableRecord(rows=12345, bytes=67890, columns={"id": "int32"}, key=["id"], checksum="c0ffee", seconds=1)
    given = {"week": week, "state": "published", "started_at": START, "seconds": 2, "tables": {"users": users}}
    return ReferenceRecord.model_validate(given | changes)


def test_a_copy_that_was_published_is_shown_and_needs_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "never copied" in status(monkeypatch, tmp_path / "empty").stdout
    shown = status(monkeypatch, tmp_path, record("2026-W46", state="failed", reason="long ago"), record())
    assert shown.exit_code == 0
    assert "Reference tables of 2026-W47: published, begun 2026-11-22 06:00:00" in " ".join(shown.stdout.split())
    assert ["users", "12,345", "67,890", "id", "1.0", "c0ffee"] in [line.split() for line in shown.stdout.splitlines()]
    assert "long ago" not in shown.stdout


@pytest.mark.parametrize("state", ["failed", "refused", "publishing"])
def test_a_copy_that_was_not_needs_a_person(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: str) -> None:
    shown = status(monkeypatch, tmp_path, record(state=state, reason="users is empty [see REFERENCE_ALLOW_EMPTY]"))
    assert shown.exit_code == 1
    assert "reference_failed  the reference copy of 2026-W47" in shown.stdout
    assert "users is empty [see REFERENCE_ALLOW_EMPTY]" in shown.stdout
    assert "12,345" in shown.stdout  # what stands


@pytest.mark.parametrize(
    ("reason", "said"), [(None, "it began and did not end"), ("the service is busy", "the service is busy")]
)
def test_a_copy_that_ended_between_renames_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reason: str | None, said: str
) -> None:
    long_ago = START - timedelta(hours=2)
    shown = status(monkeypatch, tmp_path, record(state="publishing", reason=reason, started_at=long_ago))
    assert said in shown.stdout
    assert "start copy_reference again" in shown.stdout


def test_a_copy_that_is_being_published_needs_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert status(monkeypatch, tmp_path, record(state="publishing")).exit_code == 0


def test_changed_columns_are_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    users = record().tables["users"].model_copy(update={"added": ["likes"], "retyped": ["about: text -> jsonb"]})
    shown = status(monkeypatch, tmp_path, record(tables={"users": users}, published_at=START + timedelta(hours=1)))
    assert shown.exit_code == 0
    assert "columns changed in users: added ['likes'], dropped [], retyped ['about: text -> jsonb']" in shown.stdout
