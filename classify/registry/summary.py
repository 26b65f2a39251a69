"""The results of runs: a classification's in its output folder, a training run's in `runs/training/`."""

from __future__ import annotations

from pydantic import BaseModel

SUMMARY_FILE = "summary.json"
COUNTS_FILE = "counts.parquet"
REFUSED_FILE = "refused.txt"
"""The reason why no attempt can classify the file; written in place of a summary."""


class Summary(BaseModel):
    """Written last: a folder with a summary is complete."""

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
    misdated: int
    """Posts counted on the day of the file, because their CreationDate is invalid."""
    decided_by: dict[str, int]
    """Posts by what decided their topic: tags, model or parent."""
    engine: str
    seconds: dict[str, float]

    @property
    def counted(self) -> int:
        return self.questions + self.answers


class Training(BaseModel):
    """The result of a training run: `runs/training/<until>.json`; a second run writes `<until>.2.json`.

    `candidate_found` and `current_found` are the share of held-out tagged questions whose best topic is among their
    tags. This share is comparable between models with different topics.
    """

    candidate: str
    current: str
    questions: int
    held_out: int
    candidate_found: float
    current_found: float
    promoted: bool
    reason: str
    damaged: list[str]
    """Files of the archive that could not be read, or not to their end, and why."""

    @property
    def became(self) -> str:
        """What became of the candidate."""
        if self.candidate == self.current:
            return "the current model already"
        return "promoted" if self.promoted else "kept aside"
