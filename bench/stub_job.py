"""A job that writes an output prepared for its day, for `python -m bench load`: what the real job does costs more."""

from __future__ import annotations

import sys
from datetime import date

import numpy as np

from classify.days.day import Contribution
from classify.days.tally import Tally
from classify.posts.clean import EPOCH
from classify.registry.models import load_behaviour
from classify.registry.summary import COUNTS_FILE, SUMMARY_FILE, Summary
from classify.run.parameters import JobParameters
from shared.services import Services

POSTS = 20


def main() -> None:
    job = JobParameters.from_arguments(sys.argv[1:])
    lake = Services().lake_at(job.lake_root)
    topics = load_behaviour(lake, job.model).topics
    tally = Tally(topics)
    days = np.full(POSTS, (job.file_day - EPOCH).days, np.int32)
    tally.add(days, np.ones(POSTS, np.int64), np.arange(POSTS, dtype=np.int32) % len(topics))
    lake.put(f"{job.output}/{COUNTS_FILE}", Contribution(job.model, tally).to_parquet())
    summary = Summary(
        source_id=job.source_id,
        version=job.version,
        model=job.model,
        rows=POSTS,
        questions=POSTS,
        answers=0,
        duplicates=0,
        uncounted={},
        misdated=0,
        decided_by={"tags": POSTS},
        engine="arrow",
        seconds={},
    )
    lake.put(f"{job.output}/{SUMMARY_FILE}", summary.model_dump_json().encode())


def day_of(number: int, days: int) -> date:
    """The day of the n-th file when files are spread over so many days."""
    return date.fromordinal(date(2026, 1, 1).toordinal() + number % days)


if __name__ == "__main__":
    main()
