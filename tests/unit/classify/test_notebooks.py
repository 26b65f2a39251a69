"""The notebooks, run as Databricks runs them (widgets, `dbutils`) and as plain Python (arguments)."""

from __future__ import annotations

import runpy
import subprocess
import sys
from datetime import date, datetime
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from classify.registry.models import current_version, load_model
from classify.registry.summary import SUMMARY_FILE, Summary, Training
from classify.run.parameters import JobParameters
from shared import paths
from shared.errors import BadInput
from shared.lake import FolderLake
from tests.places import PROJECT
from tests.topic_posts import WORDS, questions
from tests.world import parquet, posts

NOTEBOOKS = PROJECT / "classify" / "notebooks"


class Notebook:
    """A stand-in for `dbutils`: widgets return the job's parameters, and `exit` stores its result."""

    def __init__(self, **given: str) -> None:
        self.values = given
        self.result = ""
        self.widgets = SimpleNamespace(text=self.values.setdefault, get=self.values.__getitem__)
        self.notebook = SimpleNamespace(exit=lambda result: setattr(self, "result", result))


def run_on_databricks(monkeypatch: pytest.MonkeyPatch, name: str, **given: str) -> str:
    """Run a notebook in its own folder with these parameters; returns its exit value."""
    monkeypatch.chdir(NOTEBOOKS)
    dbutils = Notebook(**given)
    runpy.run_path(str(NOTEBOOKS / name), init_globals={"dbutils": dbutils})
    return dbutils.result


@pytest.fixture
def landed(tmp_path: Path) -> tuple[FolderLake, dict[str, str]]:
    """A lake with one landed question, and the parameters of its classification."""
    lake = FolderLake(tmp_path)
    lake.put(paths.landing("s", "v"), parquet(posts({"Tags": "<python>"})))
    given = {"source_id": "s", "version": "v", "file_day": "2026-11-22", "model": current_version(lake)}
    return lake, {"lake_root": str(tmp_path), **given}


def test_the_classification_notebook_reads_the_parameters_of_the_job_from_widgets(
    landed: tuple[FolderLake, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, given = landed
    result = run_on_databricks(monkeypatch, "classify_posts.py", **given, topic_source="model")
    summary = Summary.model_validate_json(result)
    assert (summary.questions, summary.decided_by, summary.engine) == (1, {"model": 1}, "arrow")
    output = JobParameters.model_validate(given | {"topic_source": "model"}).output
    assert Summary.model_validate_json(lake.read(f"{output}/{SUMMARY_FILE}")) == summary


def test_the_classification_notebook_runs_as_plain_python_too(
    landed: tuple[FolderLake, dict[str, str]], tmp_path: Path
) -> None:
    lake, given = landed
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    subprocess.run([sys.executable, NOTEBOOKS / "classify_posts.py", *arguments], cwd=tmp_path, check=True)
    output = JobParameters.model_validate(given).output
    assert Summary.model_validate_json(lake.read(f"{output}/{SUMMARY_FILE}")).decided_by == {"tags": 1}


def test_a_missing_parameter_stops_the_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="--source-id is missing; --version is missing; --file-day is missing"):
        run_on_databricks(monkeypatch, "classify_posts.py", lake_root="r")


@pytest.fixture
def archived(tmp_path: Path) -> tuple[FolderLake, dict[str, str]]:
    """A lake with 400 questions of one day in its archive, and the parameters of a training whose model is promoted."""
    lake = FolderLake(tmp_path / "lake")
    table = questions(400)
    created = pa.repeat(pa.scalar(datetime(2026, 11, 20), pa.timestamp("us")), len(table))
    lake.put(paths.archive(date(2026, 11, 20), "s", "v"), parquet(table.append_column("CreationDate", created)))
    given = {"until": "2026-11-22", "days": "3", "topics": "4", "margin": "-1"}
    return lake, {"lake_root": str(lake.root), **given}


def test_the_training_notebook_reads_the_parameters_of_the_job_from_widgets(
    archived: tuple[FolderLake, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, given = archived
    before = current_version(lake)
    training = Training.model_validate_json(run_on_databricks(monkeypatch, "train_topics.py", **given))
    assert (training.questions, training.current, training.promoted) == (400, before, True)
    assert set(load_model(lake, training.candidate).topics) == {*WORDS, "other"}
    assert current_version(lake) == training.candidate
    assert Training.model_validate_json(lake.read(paths.training_record(date(2026, 11, 22)))) == training
    with pytest.raises(BadInput, match="60 tagged questions in the 3 days to 2026-11-22 are too few for 30 topics"):
        run_on_databricks(monkeypatch, "train_topics.py", **given | {"max_questions": "60", "topics": "30"})
    with pytest.raises(BadInput, match="no tagged question"):
        run_on_databricks(monkeypatch, "train_topics.py", **given | {"days": "2"})


def test_the_training_notebook_runs_as_plain_python_too(
    archived: tuple[FolderLake, dict[str, str]], tmp_path: Path
) -> None:
    lake, given = archived
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    subprocess.run([sys.executable, NOTEBOOKS / "train_topics.py", *arguments], cwd=tmp_path, check=True)
    training = Training.model_validate_json(lake.read(paths.training_record(date(2026, 11, 22))))
    assert (training.questions, training.promoted) == (400, True)
    assert current_version(lake) == training.candidate


@pytest.mark.parametrize("name", ["classify_posts.py", "train_topics.py"])
def test_databricks_recognises_the_files_as_notebooks(name: str) -> None:
    lines = (NOTEBOOKS / name).read_text().splitlines()
    assert lines[0] == "# Databricks notebook source"
    assert lines.count("# COMMAND ----------") >= 3
