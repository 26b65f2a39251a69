"""What a classification leaves in its output folder beside part-*.parquet: the job writes it, publishing reads it."""

from __future__ import annotations

from pydantic import BaseModel

SUMMARY = "summary.json"
COUNTS = "counts.parquet"


class Summary(BaseModel):
    """Written last: a folder with a summary is whole."""

    source_id: str
    version: str
    model: str
    rows: int
    """Rows of the file."""
    questions: int
    answers: int
    """Questions and answers counted."""
    duplicates: int
    """Rows left out because a later row has the same Id."""
    uncounted: dict[str, int]
    """Rows of other post types, by PostTypeId (`null` where it is missing)."""
    decided_by: dict[str, int]
    """Posts by what decided their topic: tags, model or parent."""
    engine: str
    seconds: dict[str, float]

    @property
    def counted(self) -> int:
        return self.questions + self.answers
