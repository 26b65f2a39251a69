"""What a Databricks training run executes: the archive's tagged questions in, a candidate model out.

    python -m classify.train --lake-root ROOT --until 2026-11-22 [--days 365] [--max-questions 1000000] [--topics 100]
        [--margin 0.002]

A fifth of the questions, chosen by a hash of their Id, is held out. The candidate is trained on the rest and becomes
the current model only if it finds more of the held-out posts' topics than the current one, by at least `margin`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from classify import clean, fit, rowgroups
from classify.card import card, mean_report
from classify.clean import EPOCH
from classify.models import current_model, load_model, promote, store_model
from classify.summary import Training
from classify.text import parse_tags
from shared import paths
from shared.catalog import source_pointer
from shared.errors import BadInput, Conflict, StackTopicsError
from shared.services import Services

if TYPE_CHECKING:
    import numpy.typing as npt

    from classify.fit import Posts
    from classify.model import TopicModel
    from shared.lake import Lake

log = logging.getLogger("stacktopics.classify.train")

HELD_OUT = 5
"""One fold of so many is held out."""
FEWEST, QUESTIONS_A_TOPIC = 50, 10
"""Tagged questions without which nothing is learned or measured."""
HASHES = 1 << 40


class TrainParameters(BaseModel):
    """What one training run is to do, as `run_now` passes it."""

    lake_root: str
    until: date
    days: int = 365
    """Questions created in so many days up to `until` are learned from."""
    max_questions: int = 1_000_000
    """If there are more, those with the smallest hashes of their Ids."""
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


def train(lake: Lake, parameters: TrainParameters, progress: Callable[[str, float], None] | None = None) -> Training:
    """Train, compare, and promote if it is worth it; what came of it is also in `runs/training/`.

    Raises BadInput when the window holds too little.
    """
    window = f"in the {parameters.days} days to {parameters.until}"
    archived = archived_questions(lake, parameters.until, parameters.days)
    questions = fit.tagged_questions(sample(archived, parameters.max_questions))
    number, held_out = len(questions), fit.folds_of(questions.ids, HELD_OUT) == 0
    check_enough(number, parameters.topics, window)
    tested, questions = questions.take(held_out), questions.take(~held_out)
    candidate, _ = fit.fit(questions, parameters.topics, progress=progress)
    pointer, etag = current_model(lake)
    current = load_model(lake, pointer.version)
    candidate_found, current_found = found(candidate, tested), found(current, tested)
    result = Training(
        candidate=candidate.version,
        current=pointer.version,
        questions=number,
        held_out=len(tested),
        candidate_found=candidate_found,
        current_found=current_found,
        promoted=candidate_found >= current_found + parameters.margin and candidate.version != pointer.version,
        reason=f"{candidate_found:.4f} against {current_found:.4f} of {pointer.version} on {len(tested)} held-out"
        f" questions, {parameters.margin} more is asked for",
    )
    if candidate.version == pointer.version:
        result.reason = f"{pointer.version} is the current model: the same questions make the same model"
    else:
        result.reason = f"{'better' if result.promoted else 'not better'}: {result.reason}"
        report = fit.evaluate(candidate, tested)
        text = card(
            candidate,
            [report],
            [f"the archive, {window}"],
            made_by="python -m classify.train",
            measured=f"Measured on {len(tested):,} questions held out by a hash of their Ids, of which it saw none.",
            remark=f"Compared with the model before it: {result.reason}.",
        )
        store_model(lake, candidate, mean_report([report]), text)
    if result.promoted:
        try:
            promote(lake, candidate.version, result.reason, (pointer, etag))
        except Conflict:
            result.promoted = False
            result.reason += f"; kept aside, because {pointer.version} is not the current model any more"
    lake.put(paths.training_record(parameters.until), result.model_dump_json(indent=1).encode())
    return result


def check_enough(questions: int, topics: int, where: str) -> None:
    """Raise BadInput when so many tagged questions are too few to learn so many topics from."""
    needed = max(QUESTIONS_A_TOPIC * topics, FEWEST)
    if questions < needed:
        raise BadInput(
            f"{questions} tagged questions {where} are too few for {topics} topics: {needed} are needed; take more"
            " posts or fewer topics"
        )


def archived_questions(lake: Lake, until: date, days: int) -> Iterator[pa.Table]:
    """The questions that were created in the `days` days up to `until`, of each source the version that counts.

    Where a file says so, row groups without posts of these days are not read: all files of the archive are looked at,
    because the day in the name of a file is not the day of its posts.
    """
    window = range((until - timedelta(days=days - 1) - EPOCH).days, (until - EPOCH).days + 1)
    files = [info.path for info in lake.list(paths.ARCHIVE)]
    versions = Counter(path.split("/")[-2] for path in files)
    for path in files:
        *_, year, month, day, source, name = path.split("/")
        if versions[source] > 1:
            pointer, _etag = source_pointer(lake, source)
            if pointer is not None and f"{pointer.version}.parquet" != name:
                continue
        file_day = date(int(year), int(month), int(day))
        data = lake.open(path)
        with rowgroups.reader(data, pq.read_metadata(data)) as file:
            groups = [
                group
                for group, bounds in enumerate(rowgroups.bounds(file, "CreationDate"))
                if bounds is None or _overlap(clean.days(bounds, file_day), window)
            ]
            yield from questions_in(file, groups, window, file_day)


def _overlap(bounds: npt.NDArray[np.int32], days: range) -> bool:
    return bool(bounds[0] < days.stop and bounds[1] >= days.start)


def read_questions(files: Sequence[Path], progress: Callable[[float], None]) -> Posts:
    """The tagged questions of Posts files on disk. Raises BadInput that names a file without any, or that is none."""

    def tables() -> Iterator[pa.Table]:
        for number, path in enumerate(files):
            with rowgroups.opened(path, fit.COLUMNS) as file:
                for group in range(file.num_row_groups):
                    yield from questions_in(file, [group])
                    progress((number + (group + 1) / file.num_row_groups) / len(files))

    try:
        return fit.tagged_questions(tables())
    except BadInput as error:
        raise BadInput(f"{', '.join(map(str, files))}: {error}") from error


def questions_in(
    file: pq.ParquetFile, groups: Sequence[int] | None = None, days: range | None = None, file_day: date = EPOCH
) -> Iterator[pa.Table]:
    """The tagged questions of a Posts file's row groups, in the columns that training reads, whatever types it uses.

    With `days` (since 1970-01-01) those created on one of them; posts without a date were on `file_day`.
    """
    for batch in rowgroups.batches(file, (*fit.COLUMNS, "CreationDate"), groups):
        posts = clean.clean(batch, file_day)
        chosen = (posts.types == clean.QUESTION) & np.asarray(parse_tags(posts.tags).is_valid())
        if days is not None:
            chosen &= (posts.days >= days.start) & (posts.days < days.stop)
        if chosen.any():
            kept = posts.where(chosen)
            yield pa.table([kept.ids, kept.types, kept.titles, kept.bodies, kept.tags], names=list(fit.COLUMNS))


def sample(batches: Iterable[pa.Table], most: int) -> Iterator[pa.Table]:
    """The rows with the smallest hashes of Id, at most so many: the same in whatever order they come.

    While it reads it holds a quarter more.
    """
    kept: list[pa.Table] = []
    hashes: list[npt.NDArray[np.int64]] = []
    below, rows = HASHES, 0

    def keep(table: pa.Table, hashed: npt.NDArray[np.int64]) -> None:
        chosen = hashed < below
        kept.append(table if chosen.all() else table.filter(pa.array(chosen)))
        hashes.append(hashed[chosen])

    def cut() -> None:
        """Keep what is below the hash of the first row too many."""
        nonlocal below, rows
        below = int(np.partition(np.concatenate(hashes), most)[most])
        for _ in range(len(kept)):  # one by one, so that no second copy of all is held
            keep(kept.pop(0), hashes.pop(0))
        rows = sum(map(len, hashes))

    for table in batches:
        keep(table, fit.folds_of(np.asarray(table["Id"]), HASHES))
        rows += len(hashes[-1])
        if rows > most + most // 4:
            cut()
    if rows > most:
        cut()
    while kept:
        yield kept.pop(0)


def found(model: TopicModel, posts: Posts) -> float:
    """Share of posts whose best topic is among their tags."""
    best = model.classify(posts.titles, posts.bodies).best
    return float(fit.own_topics(posts.tags, model.topics[:-1])[np.arange(len(posts)), best].mean())


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
