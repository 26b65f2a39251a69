"""Training from the archive: what is read, when a candidate is promoted, and the way back."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from classify import train as train_module
from classify.models import current_model, current_version, load_model, promote, rollback, versions
from classify.train import TrainParameters, archived_questions, main, train
from shared import paths
from shared.catalog import SourcePointer, move_pointer
from shared.errors import BadInput, ModelError
from shared.lake import FolderLake
from tests.world import parquet, posts

UNTIL = date(2026, 11, 22)


def parameters(**changes: object) -> TrainParameters:
    return TrainParameters.model_validate({"lake_root": "-", "until": UNTIL, "days": 7, "topics": 5} | changes)


@pytest.fixture
def lake(tmp_path: Path) -> FolderLake:
    return FolderLake(tmp_path)


@pytest.fixture
def filled(lake: FolderLake, shared_data: Path) -> FolderLake:
    table = pq.read_table(shared_data / "posts.parquet").slice(0, 1_500)
    lake.put(paths.archive(UNTIL, "s", "v"), parquet(table))
    return lake


def test_the_window_and_the_version_that_counts_are_read(lake: FolderLake) -> None:
    for day, source, version in ((20, "a", "v1"), (20, "a", "v2"), (21, "b", "v1"), (10, "c", "v1")):
        table = posts({"Title": f"{source} {version}", "Tags": "<x>"}).drop_columns(["ParentId"])
        lake.put(paths.archive(date(2026, 11, day), source, version), parquet(table))
    now = datetime(2026, 11, 22, tzinfo=UTC)
    pointer = SourcePointer(version="v2", output="-", last_modified=now, first_seen=now, days=[])
    move_pointer(lake, paths.source_pointer("a"), pointer, None)
    titles = [title for table in archived_questions(lake, UNTIL, 7) for title in table["Title"].to_pylist()]
    assert sorted(titles) == ["a v2", "b v1"]


@pytest.mark.timeout(300)
def test_a_candidate_is_promoted_only_if_it_is_better(filled: FolderLake, monkeypatch: pytest.MonkeyPatch) -> None:
    starter = current_version(filled)
    kept = train(filled, parameters(margin=1.0))
    assert (kept.promoted, kept.current, current_version(filled)) == (False, starter, starter)
    assert "not better than" in kept.reason
    assert kept.questions > 5 * kept.held_out * 0.8 > 0
    assert load_model(filled, kept.candidate).topics[-1] == "other"
    assert json.loads(filled.read(paths.training_record(UNTIL)))["candidate"] == kept.candidate
    assert kept.reason.capitalize() in filled.read(f"{paths.model(kept.candidate)}/card.md").decode()

    monkeypatch.setattr(train_module.fit, "fit", lambda *_, **__: (load_model(filled, kept.candidate), None))
    better = train(filled, parameters(margin=-1.0))
    assert better.promoted
    assert current_version(filled) == kept.candidate
    assert {version for version, _ in versions(filled)} == {starter, kept.candidate}
    assert rollback(filled).version == starter
    assert current_model(filled)[0].reason == f"rolled back from {kept.candidate}"


def test_too_little_is_refused(lake: FolderLake, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no tagged question"):
        train(lake, parameters())
    lake.put(paths.archive(UNTIL, "s", "v"), parquet(posts(*({"Tags": "<python>"} for _ in range(30)))))
    with pytest.raises(BadInput, match="30 tagged questions in the 7 days to 2026-11-22 are too few for 5 topics"):
        train(lake, parameters())
    assert main(["--lake-root", str(tmp_path), "--until", "2026-11-22", "--days", "7"]) == 1


def test_only_whole_models_are_promoted(lake: FolderLake) -> None:
    starter = current_version(lake)
    with pytest.raises(ModelError, match="there is no model nothing"):
        promote(lake, "nothing", "why")
    with pytest.raises(ModelError, match="the first model"):
        rollback(lake)
    assert promote(lake, starter, "again").reason == "the starter"
