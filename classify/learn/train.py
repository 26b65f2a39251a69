"""The training run: train a candidate on the archive, compare it with the current model, promote it if it is better.

A fifth of the questions, chosen by a hash of their Id, is held out. The candidate is trained on the rest. It becomes
the current model only if its hit@1 on the held-out questions exceeds that of the current model by at least `margin`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from classify.learn.evaluate import evaluate
from classify.learn.fit import fit
from classify.learn.questions import check_enough, folds_of, own_topics, questions_in, tagged_questions
from classify.posts import clean, rowgroups
from classify.posts.clean import EPOCH
from classify.posts.repeats import last_of_each
from classify.registry.card import card, mean_evaluation
from classify.registry.models import current_model, load_model, promote, store_model
from classify.registry.summary import Training
from shared import paths
from shared.arguments import JobArguments
from shared.arrays import Flags, Int32s
from shared.catalog import source_pointer
from shared.errors import BadInput, Conflict, ModelError
from shared.parquet import readable

if TYPE_CHECKING:
    from classify.learn.questions import TrainingPosts
    from classify.model.model import TopicModel
    from shared.lake import Lake

log = logging.getLogger("stacktopics.classify.learn.train")

HELD_OUT = 5
"""One of this many folds is held out."""
HASHES = 1 << 40


class TrainParameters(JobArguments):
    """The parameters of one training run, as `run_now` passes them."""

    lake_root: str
    until: date
    days: int = Field(default=365, ge=1)
    """The window: training uses questions created in this many days up to and including `until`."""
    max_questions: int = Field(default=1_000_000, ge=1)
    """If there are more questions, those with the smallest hashes of their Ids are used."""
    topics: int = Field(default=100, ge=2)
    margin: float = Field(default=0.002, allow_inf_nan=False)


def train(lake: Lake, parameters: TrainParameters, progress: Callable[[str, float], None] | None = None) -> Training:
    """Train, compare, and promote if the candidate is better; also writes the result to `runs/training/`.

    Raises BadInput when the window holds too few questions.
    """
    most, topics = parameters.max_questions, parameters.topics
    window = f"in the {parameters.days} days to {parameters.until}"
    damaged: list[str] = []
    rows = 0

    def archived() -> Iterator[pa.Table]:
        nonlocal rows
        for table in archived_questions(lake, parameters.until, parameters.days, damaged):
            rows += len(table)
            yield table

    try:
        questions = tagged_questions(sample(archived(), most))
    except BadInput as error:
        raise BadInput("; ".join([f"{error} {window}: raise TRAINING_DAYS", *damaged])) from error
    sampled = rows > most == len(questions)
    more = f"TRAINING_MAX_QUESTIONS takes {most} of {rows} rows: raise it" if sampled else "raise TRAINING_DAYS"
    check_enough(len(questions), topics, window, "; ".join([f"{more}, or lower TRAINING_TOPICS", *damaged]))
    number, held_out = len(questions), folds_of(questions.ids, HELD_OUT) == 0
    tested, questions = questions.take(held_out), questions.take(~held_out)
    candidate, _ = fit(questions, topics, progress=progress)
    pointer, etag = current_model(lake)
    candidate_found, current_found, broken = found(candidate, tested), 0.0, False
    try:
        current_found = found(load_model(lake, pointer.version), tested)
        compared = f"{candidate_found:.4f} against {current_found:.4f} of {pointer.version}"
    except ModelError as error:  # any model is better than one that cannot be used
        broken = True
        compared = f"{candidate_found:.4f} against 0 of the unusable {pointer.version} ({error})"
    result = Training(
        candidate=candidate.version,
        current=pointer.version,
        questions=number,
        held_out=len(tested),
        candidate_found=candidate_found,
        current_found=current_found,
        promoted=candidate_found >= current_found + parameters.margin and candidate.version != pointer.version,
        damaged=damaged,
        reason=f"{compared} on {len(tested)} held-out questions, {parameters.margin} more is required",
    )
    is_current = candidate.version == pointer.version
    if is_current and not broken:
        result.reason = f"{pointer.version} is the current model: the same questions make the same model"
    else:
        judged = "written again" if is_current else "better" if result.promoted else "not better"
        result.reason = f"{judged}: {result.reason}"
        evaluation = evaluate(candidate, tested)
        text = card(
            candidate,
            [evaluation],
            [f"the archive, {window}"],
            made_by="python -m classify.train",
            measured=f"Measured on {len(tested):,} questions held out by a hash of their Ids, unseen in training.",
            remark=f"Compared with the current model at that time: {result.reason}.",
        )
        store_model(lake, candidate, mean_evaluation([evaluation]), text)
    if result.promoted:
        try:
            promote(lake, candidate.version, result.reason, (pointer, etag))
        except Conflict:
            result.promoted = False
            result.reason += f"; kept aside, because {pointer.version} is no longer the current model"
    _record(lake, parameters.until, result)
    return result


def _record(lake: Lake, until: date, result: Training) -> None:
    """Store the result of a run; runs with the same `until` get files with different numbers."""
    for number in count(1):
        try:
            lake.put(paths.training_record(until, number), result.model_dump_json(indent=1).encode(), if_absent=True)
        except Conflict:
            continue
        return


def archived_questions(lake: Lake, until: date, days: int, damaged: list[str]) -> Iterator[pa.Table]:
    """The questions created in the `days` days up to `until`, from the version of each source that counts.

    Nothing is learned from a withdrawn file. The newest file comes last, because the last row with an Id counts
    (`sample`). All files of the archive are opened, because the day in a file's name need not be that of its posts; row
    groups are skipped if their statistics exclude these days. A damaged file is read up to the damage, and reported in
    `damaged` and in the log.
    """
    last = (until - EPOCH).days
    window = range(last - days + 1, last + 1)
    files = sorted((info.path for info in lake.list(paths.ARCHIVE)), key=lambda path: path.split("/")[:-3:-1])
    for path in files:
        *_, year, month, day, source, name = path.split("/")
        pointer, _etag = source_pointer(lake, source)
        if pointer is not None and (pointer.output is None or f"{pointer.version}.parquet" != name):
            continue
        file_day = date(int(year), int(month), int(day))
        try:
            with readable(path):
                data = lake.open(path)
                with rowgroups.reader(data, pq.read_metadata(data)) as file:
                    groups = [
                        group
                        for group, bounds in enumerate(rowgroups.bounds(file, "CreationDate"))
                        if bounds is None or _overlap(clean.days(bounds, file_day), window)
                    ]
                    yield from questions_in(file, groups, window, file_day)
        except BadInput as error:
            damaged.append(str(error))
            log.warning("training leaves out this file, or a part of it: %s", damaged[-1])


def _overlap(bounds: Int32s, days: range) -> bool:
    return bool(bounds[0] < days.stop and bounds[1] >= days.start)


def sample(batches: Iterable[pa.Table], most: int) -> Iterator[pa.Table]:
    """The last row of each Id, and of these at most `most`: those with the smallest hashes of their Ids.

    The chosen Ids do not depend on the order of the rows. While reading it holds up to a quarter more rows.
    """
    kept: list[pa.Table] = []
    below, rows = HASHES, 0

    def keep(table: pa.Table, chosen: Flags) -> None:
        kept.append(table if chosen.all() else table.filter(pa.array(chosen)))

    def cut() -> None:
        nonlocal below, rows
        ids = np.concatenate([np.zeros(0, np.int64), *(np.asarray(table["Id"]) for table in kept)])
        chosen, hashes = last_of_each(ids), folds_of(ids, HASHES)
        rows = int(chosen.sum())
        if rows > most:
            below = int(np.partition(hashes[chosen], most)[most])  # the hash of the first row beyond `most`
            chosen &= hashes < below
            rows = int(chosen.sum())
        for _ in range(len(kept)):  # one by one: memory never holds two copies of all tables
            table = kept.pop(0)
            keep(table, chosen[: len(table)])
            chosen = chosen[len(table) :]

    for table in batches:
        keep(table, folds_of(np.asarray(table["Id"]), HASHES) < below)
        rows += len(kept[-1])
        if rows > most + most // 4:
            cut()
    cut()
    while kept:
        yield kept.pop(0)


def found(model: TopicModel, posts: TrainingPosts) -> float:
    """The share of posts whose best topic is among their tags."""
    best = model.classify(posts.titles, posts.bodies).best
    return float(own_topics(posts.tags, model.topics[:-1])[np.arange(len(posts)), best].mean())
