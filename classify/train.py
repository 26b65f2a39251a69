"""What a Databricks training run executes: the archive's tagged questions in, a candidate model out.

    python -m classify.train --lake-root ROOT --until 2026-11-22 [--days 365] [--topics 100] [--margin 0.002]

A fifth of the questions, chosen by a hash of their Id, is held out. The candidate is trained on the rest and becomes
the current model only if it finds more of the held-out posts' topics than the current one, by at least `margin`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from classify import clean, fit
from classify.models import current_version, load_model, promote, store_model
from shared import paths
from shared.catalog import source_pointer
from shared.errors import BadInput, StackTopicsError
from shared.services import Services

if TYPE_CHECKING:
    from classify.fit import Posts
    from classify.model import TopicModel
    from shared.lake import Lake

log = logging.getLogger("stacktopics.classify.train")

HELD_OUT = 5
"""One fold of so many is held out."""


class TrainParameters(BaseModel):
    """What one training run is to do, as `run_now` passes it."""

    lake_root: str
    until: date
    days: int = 365
    topics: int = 100
    margin: float = 0.002

    @classmethod
    def from_arguments(cls, arguments: Sequence[str]) -> Self:
        """From `--lake-root …`, as the job's task hands them over."""
        parser = argparse.ArgumentParser(prog="classify.train", description="Train a candidate topic model.")
        for name, field in cls.model_fields.items():
            parser.add_argument(f"--{name.replace('_', '-')}", required=field.is_required())
        given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
        return cls.model_validate(given)


class Training(BaseModel):
    """What came of a training run; `runs/training/<until>.json`. `found` is the share of held-out tagged questions
    whose best topic is among their tags: it can be compared between models with different topics."""

    candidate: str
    current: str
    questions: int
    held_out: int
    candidate_found: float
    current_found: float
    promoted: bool
    reason: str


def train(lake: Lake, parameters: TrainParameters, progress: Callable[[str, float], None] | None = None) -> Training:
    """Train, compare, and promote if it is worth it. Raises BadInput when the window holds too little."""
    questions = fit.tagged_questions(archived_questions(lake, parameters.until, parameters.days))
    held_out = fit.folds_of(questions.ids, HELD_OUT) == 0
    if len(questions) < 10 * parameters.topics or not held_out.any():
        raise BadInput(
            f"{len(questions)} tagged questions in the {parameters.days} days to {parameters.until} are too few"
            f" for {parameters.topics} topics: widen the window or ask for fewer topics"
        )
    candidate, _ = fit.fit(questions.take(~held_out), parameters.topics, progress=progress)
    tested = questions.take(held_out)
    report = fit.evaluate(candidate, tested).to_json()
    current = current_version(lake)
    candidate_found, current_found = found(candidate, tested), found(load_model(lake, current), tested)
    better = candidate_found >= current_found + parameters.margin
    verdict = "better" if better else "not better"
    reason = (
        f"{verdict} than {current} on {len(tested)} held-out questions: {candidate_found:.4f} against"
        f" {current_found:.4f}, {parameters.margin} more is asked for"
    )
    version = store_model(lake, candidate, report, card(candidate, int((~held_out).sum()), report, parameters, reason))
    if better:
        promote(lake, version, reason)
    result = Training(
        candidate=version,
        current=current,
        questions=len(questions),
        held_out=len(tested),
        candidate_found=candidate_found,
        current_found=current_found,
        promoted=better,
        reason=reason,
    )
    lake.put(paths.training_record(parameters.until), result.model_dump_json(indent=1).encode())
    return result


def archived_questions(lake: Lake, until: date, days: int) -> Iterator[pa.Table]:
    """The questions of the archive's files of `days` days up to `until`, of each source the version that counts."""
    for number in range(days):
        for info in lake.list(paths.archive_of(until - timedelta(days=number))):
            source, name = info.path.split("/")[-2:]
            pointer, _ = source_pointer(lake, source)
            if pointer is not None and f"{pointer.version}.parquet" != name:
                continue
            with lake.open(info.path) as file, pq.ParquetFile(file) as parquet:
                present = [column for column in fit.COLUMNS if column in parquet.schema_arrow.names]
                for batch in parquet.iter_batches(columns=present):
                    yield _plain(batch)


def _plain(batch: pa.RecordBatch) -> pa.Table:
    """The columns training reads, whatever types the file used."""
    columns: dict[str, Any] = {name: clean.integers(clean.column(batch, name)) for name in ("Id", "PostTypeId")}
    return pa.table(columns | {name: clean.text(clean.column(batch, name)) for name in ("Title", "Body", "Tags")})


def found(model: TopicModel, posts: Posts) -> float:
    """Share of posts whose best topic is among their tags."""
    best = model.classify(posts.titles, posts.bodies).best
    return float(fit.own_topics(posts.tags, model.topics[:-1])[np.arange(len(posts)), best].mean())


def card(model: TopicModel, questions: int, report: dict[str, Any], parameters: TrainParameters, reason: str) -> str:
    """The model card: what it was trained on, and what was measured on posts it had not seen."""
    shown = {name: value for name, value in report.items() if isinstance(value, int | float)}
    figures = "\n".join(f"| {name} | {value:.4g} |" for name, value in shown.items())
    return (
        f"# {model.version}\n\n"
        f"Trained on {questions:,} tagged questions of the {parameters.days} days to"
        f" {parameters.until}, for {len(model.topics) - 1} topics and `other`.\n\n{reason.capitalize()}.\n\n"
        f"| on held-out questions | |\n|---|---|\n{figures}\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from a command line; 0 when a candidate was trained, promoted or not; 1 with the reason in the log."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("azure").setLevel(logging.WARNING)
    parameters = TrainParameters.from_arguments(sys.argv[1:] if arguments is None else arguments)
    try:
        result = train(Services().lake_at(parameters.lake_root), parameters)
    except StackTopicsError as error:
        log.error("no model was trained: %s", error)  # noqa: TRY400 - the reason is the message
        return 1
    log.info("%s is %s: %s", result.candidate, "promoted" if result.promoted else "kept aside", result.reason)
    return 0


if __name__ == "__main__":
    sys.exit(main())
