"""What is logged."""

from __future__ import annotations

import logging

import pytest

from shared.logs import set_up_logs, visible


def test_a_name_from_outside_stays_on_its_line(caplog: pytest.LogCaptureFixture) -> None:
    set_up_logs()
    set_up_logs()
    caplog.set_level(logging.INFO)
    logging.getLogger("stacktopics.x").info("%s landed: %d rows", "a\r\nERROR b\x1b[2J.parquet", 3)
    logging.getLogger("somebody").info("two\nlines")
    said = [record.getMessage() for record in caplog.records]
    assert said == [r"a\r\nERROR b\x1b[2J.parquet landed: 3 rows", "two\nlines"]


def test_text_of_any_language_is_left_as_it_is() -> None:
    assert visible("naïve 東京 ¡") == "naïve 東京 ¡"
