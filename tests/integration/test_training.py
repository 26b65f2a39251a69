"""A training run that the timer function starts in the Databricks stand-in, on a lake in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from classify.registry.models import current_version, load_model
from classify.registry.summary import Training
from localcloud.databricks import JobsSettings
from pipeline.retrain import retrain
from shared import paths
from shared.databricks import JobRuns, RunState, WorkspaceRuns
from shared.lake import FolderLake
from shared.services import Services
from tests.integration.standin import StandIn
from tests.topic_posts import questions
from tests.waiting import eventually
from tests.world import parquet, settings

TRAINING_JOB = 8


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobRuns]:
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "no-such-file"))
    stand_in = StandIn(tmp_path / "databricks", JobsSettings({TRAINING_JOB: "classify.train"}, "secret"))
    yield WorkspaceRuns(stand_in.client)
    stand_in.stop()


def ended(runs: JobRuns, run_id: int | None) -> RunState:
    assert run_id is not None
    return eventually(
        lambda: state if (state := runs.look(run_id)).status != "running" else None, f"the end of run {run_id}"
    )


def test_a_run_without_questions_is_followed_by_one_that_trains(runs: JobRuns, tmp_path: Path) -> None:
    lake = FolderLake(tmp_path / "lake")
    values = {"databricks_training_job_id": TRAINING_JOB, "lake_root_for_jobs": str(lake.root)}
    services = Services().replace(settings=settings(**values, training_topics=4, training_margin=-1), job_runs=runs)
    today = datetime.now(UTC)

    first = retrain(services)
    assert ended(runs, first).status == "failed"
    assert lake.stat(paths.training_record(today.date())) is None

    table = questions(400)
    created = pa.repeat(pa.scalar(today.replace(tzinfo=None), pa.timestamp("us")), len(table))
    lake.put(paths.archive(today.date(), "s", "v"), parquet(table.append_column("CreationDate", created)))
    second = retrain(services)
    assert second != first
    assert ended(runs, second).status == "succeeded"
    training = Training.model_validate_json(lake.read(paths.training_record(today.date())))
    assert (training.promoted, training.questions) == (True, 400)
    assert current_version(lake) == training.candidate
    assert load_model(lake, training.candidate).trained_on["questions"] == 400 - training.held_out
