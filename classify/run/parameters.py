"""The parameters of one run of the classification job."""

from __future__ import annotations

from datetime import date
from typing import Literal

from shared import paths
from shared.arguments import JobArguments

SPARK_FROM_BYTES = 2 << 30
"""Spark classifies files larger than this, if it is available and `engine` is auto."""


class JobParameters(JobArguments):
    """The parameters of one run, as `run_now` passes them."""

    lake_root: str
    source_id: str
    version: str
    file_day: date
    model: str
    topic_source: Literal["tags", "model"] = "tags"
    engine: Literal["auto", "arrow", "spark"] = "auto"
    spark_from_bytes: int = SPARK_FROM_BYTES
    """Spark classifies larger files if `engine` is auto."""
    replay: int = 0
    """How often the file was classified again on request; each time has its own output folder."""

    @property
    def origin(self) -> str:
        """The `origin` of this run's rows of `questions.QUESTION_TOPICS`; origins sort by version."""
        return f"{self.version}-{self.source_id}"

    @property
    def output(self) -> str:
        return paths.post_topics(self.source_id, self.version, self.model, self.topic_source, self.replay)
