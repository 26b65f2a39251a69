"""What one run of the classification job is to do, as the job's task hands it over."""

from __future__ import annotations

from datetime import date
from typing import Literal

from shared import paths
from shared.arguments import JobArguments

SPARK_FROM_BYTES = 2 << 30
"""Files larger than this are classified by Spark, where it can be had and nobody chose the engine."""


class JobParameters(JobArguments):
    """What one run is to do, as `run_now` passes it."""

    lake_root: str
    source_id: str
    version: str
    file_day: date
    model: str
    topic_source: Literal["tags", "model"] = "tags"
    engine: Literal["auto", "arrow", "spark"] = "auto"
    spark_from_bytes: int = SPARK_FROM_BYTES
    """Larger files are classified by Spark, where the engine is auto."""
    replay: int = 0
    """How often the file was classified before on request; each time has an output folder of its own."""

    @property
    def origin(self) -> str:
        """Who wrote a row of `questions.QUESTION_TOPICS`; sorts by version."""
        return f"{self.version}-{self.source_id}"

    @property
    def output(self) -> str:
        return paths.post_topics(self.source_id, self.version, self.model, self.topic_source, self.replay)
