"""The timer function `retrain`: which run it starts, and when it starts another one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from azurefunctions.extensions.base import meta

from classify.learn.train import TrainParameters
from pipeline.retrain import TRAININGS_A_WEEK, retrain
from shared.databricks import RunState
from shared.errors import NotFound, TerminalError
from tests.world import START, World, WorldRuns, settings

TRAINING_JOB = 8


class TrainingRuns(WorldRuns):
    """Runs of the training job, which run until a test says how they end."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.jobs: list[int] = []
        self.ends: dict[int, str] = {}

    def start(self, job_id: int, parameters: Mapping[str, str], token: str) -> int:
        self.jobs.append(job_id)
        return super().start(job_id, parameters, token)

    def look(self, run_id: int) -> RunState:
        if self.ends.get(run_id) == "gone":
            raise NotFound(f"Databricks run {run_id} does not exist")
        return RunState(self.ends.get(run_id, "running"))  # type: ignore[arg-type]


class Training(World):
    def __init__(self, root: Path, **changes: Any) -> None:
        super().__init__(root, **{"databricks_training_job_id": TRAINING_JOB, **changes})
        self.training = TrainingRuns(self)
        self.services.replace(job_runs=self.training)

    def change(self, **changes: Any) -> None:
        self.services.replace(settings=settings(databricks_training_job_id=TRAINING_JOB, **changes))


@pytest.fixture
def world(tmp_path: Path) -> Training:
    return Training(tmp_path)


@pytest.fixture
def function_app(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The app with a registry of its own: Microsoft's blob binding, which other tests import, admits no other."""
    monkeypatch.setattr(meta._ConverterMeta, "_bindings", {})
    yield importlib.import_module("function_app")
    for name in ("function_app", "ingest.binding"):
        del sys.modules[name]


def test_the_function_starts_the_training_job(
    world: Training, function_app: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(function_app, "services", lambda: world.services)
    world.change(training_days=30, training_topics=20, training_margin=0.01, training_max_questions=5_000)
    (function,) = (found for found in function_app.app.get_functions() if found.get_function_name() == "retrain")
    assert [binding.type for binding in function.get_bindings()] == ["timerTrigger"]
    function.get_user_function()(None)
    assert world.training.jobs == [TRAINING_JOB]
    (parameters,) = world.training.parameters.values()
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in parameters.items()]
    assert TrainParameters.from_arguments(arguments) == TrainParameters(
        lake_root="the-lake", until=START.date(), days=30, max_questions=5_000, topics=20, margin=0.01
    )


def test_a_week_has_one_run_however_often_the_timer_fires(world: Training) -> None:
    first = retrain(world.services)
    world.training.ends[first or 0] = "succeeded"
    assert retrain(world.services) == first
    world.time += timedelta(days=7)
    assert retrain(world.services) != first


@pytest.mark.parametrize("end", ["failed", "gone"])
def test_after_a_failed_run_the_next_one_is_started(world: Training, end: str) -> None:
    first = retrain(world.services)
    world.training.ends[first or 0] = end
    second = retrain(world.services)
    assert second not in (first, None)
    assert retrain(world.services) == second


def test_with_other_settings_another_run_is_started(world: Training) -> None:
    first = retrain(world.services)
    world.change(training_days=30)
    second = retrain(world.services)
    assert first != second
    world.change()
    assert retrain(world.services) == first


def test_a_week_of_failures_is_loud(world: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.training, "look", lambda _: RunState("failed", "no cluster"))
    with pytest.raises(TerminalError, match=f"{TRAININGS_A_WEEK} training runs of this week have failed"):
        retrain(world.services)
    assert len(world.training.by_token) == TRAININGS_A_WEEK


def test_without_a_training_job_nothing_is_started(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = Training(tmp_path, databricks_training_job_id=None)
    assert retrain(world.services) is None
    assert world.training.jobs == []
    assert "DATABRICKS_TRAINING_JOB_ID is not set" in caplog.text
