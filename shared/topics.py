"""The topics of a day as everybody sees them, declared once: the row of a topic, and the figures of the day.

The Parquet and CSV files of a day, the day's pointer in the catalog, the API and the terminal are made from these two
models. A new column is a field of `TopicRow` and the value that `classify/days/day.py` gives it; published days get it
by `manage.py republish`, because the columns are part of a publish id.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from datetime import date
from itertools import islice
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import pyarrow as pa

DAY = "day"
"""The first column of a topics file."""
ARROW = {int: "int64", float: "float64", str: "string"}
"""The Arrow type of a field's values, unless the field names another."""


class TopicRow(BaseModel):
    """One topic of a day. Shares are fractions of the day's posts.

    `share` is that of the posts counted for the topic. `estimated_share` corrects the model's bias, and the true share
    lies between `low` and `high` on some 95 of 100 days like those of the training (docs/performance.md has others).
    Where tags decided everything, those of the posts or of their questions, the three are the share itself.
    """

    model_config = ConfigDict(frozen=True)

    rank: Annotated[int, "int32"]
    topic: str
    posts: int
    questions: int
    answers: int
    share: float
    estimated_share: float
    low: float
    high: float


class DayFigures(BaseModel):
    """How many posts a day has, and how well the model knows them.

    `guessed` counts the posts of which the model said the topic, or that of their question; `drift` says how far they
    are from its training posts (about 1 where they are alike), `drifted` that the intervals may be too narrow. `scored`
    counts the posts that it was asked about, whatever decided; the last three are means over those.
    """

    posts: int
    questions: int
    answers: int
    guessed: int
    drift: float
    drifted: bool
    scored: int
    mean_margin: float
    vocabulary_overlap: float
    other_share: float


def arrow_types() -> dict[str, str]:
    """The columns of a topics file in their order, with the names of their Arrow types."""
    fields = TopicRow.model_fields.items()
    own = {name: next((kind for kind in field.metadata if isinstance(kind, str)), None) for name, field in fields}
    return {DAY: "date32"} | {name: own[name] or ARROW[field.annotation] for name, field in fields}  # type: ignore[index]


def to_arrow(day: date, rows: Iterable[TopicRow]) -> pa.Table:
    """The Parquet file of a day as a table."""
    import pyarrow as pa

    schema = pa.schema({name: pa.type_for_alias(kind) for name, kind in arrow_types().items()})
    return pa.Table.from_pylist([{DAY: day, **row.model_dump()} for row in rows], schema)


def to_csv(day: date, rows: Iterable[TopicRow]) -> str:
    """The CSV file of a day: a header line and one line a topic."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(arrow_types()), lineterminator="\n")
    writer.writeheader()
    writer.writerows({DAY: day, **row.model_dump()} for row in rows)
    return text.getvalue()


def from_csv(text: str, most: int | None = None) -> Iterator[TopicRow]:
    """The rows of a CSV file that `to_csv` wrote, at most `most`."""
    return (TopicRow.model_validate(line) for line in islice(csv.DictReader(io.StringIO(text)), most))
