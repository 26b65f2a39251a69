"""Parameters of a job, as its task passes them."""

from __future__ import annotations

import logging
from datetime import date

import pytest

from classify import job, train
from classify.learn.train import TrainParameters
from classify.run.parameters import JobParameters
from shared.errors import BadInput

GIVEN = ["--lake-root", "/lake", "--source-id", "s", "--version", "v", "--file-day", "2026-11-22", "--model", "m"]


def test_each_parameter_is_an_option_and_optional_ones_have_defaults() -> None:
    found = JobParameters.from_arguments([*GIVEN, "--spark-from-bytes", "7"])
    assert (found.lake_root, found.file_day, found.spark_from_bytes) == ("/lake", date(2026, 11, 22), 7)
    assert (found.engine, found.topic_source) == ("auto", "tags")


def test_one_error_names_every_fault_of_the_arguments() -> None:
    with pytest.raises(BadInput) as refused:
        JobParameters.from_arguments(["--lake-root", "r", "--file-day", "soon", "--engine", "magic", "--speed", "9"])
    said = str(refused.value)
    for fault in ("--speed is no parameter", "--source-id is missing", "--file-day soon: ", "--engine magic: "):
        assert fault in said
    with pytest.raises(BadInput, match="--topics 1: Input should be greater than or equal to 2"):
        TrainParameters.from_arguments(["--lake-root", "/lake", "--until", "2026-11-22", "--topics", "1"])
    with pytest.raises(BadInput, match="expected one argument"):
        JobParameters.from_arguments([*GIVEN, "--engine"])


@pytest.mark.parametrize(("main", "said"), [(job.main, "nothing was classified"), (train.main, "no model was trained")])
def test_a_wrong_value_logs_one_line_and_returns_1(main: object, said: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert main(["--lake-root", "/lake", "--until", "soon"]) == 1  # type: ignore[operator]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{said}: ")
    assert record.exc_info is None
