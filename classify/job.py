"""The job of a Databricks run: it reads one version of a Posts file, and writes a topic for every question and answer.

    python -m classify.job --lake-root ROOT --source-id ID --version V --file-day D --model M --topic-source tags

Reads `landing/posts/…`; writes to the folder of `paths.post_topics`, in this order: part-00000.parquet (one row per
post), counts.parquet (one row per day and topic), summary.json. It is idempotent.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import pyarrow as pa

from classify.model.model import TopicModel
from classify.registry.models import STARTER
from classify.run.engine import run
from classify.run.parameters import JobParameters
from shared.errors import StackTopicsError
from shared.logs import set_up_logs
from shared.services import Services

log = logging.getLogger("stacktopics.classify.job")


def warm_up() -> None:
    """Load the compiled code of scoring, or compile it the first time, so that a run need not wait a second or more."""
    TopicModel.load(STARTER).classify(pa.nulls(1, pa.string()), pa.nulls(1, pa.string()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from a command line. Returns 0 when the file was classified, else 1, with the reason in the log."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    set_up_logs()
    what = "nothing was classified"
    try:
        job = JobParameters.from_arguments(sys.argv[1:] if arguments is None else arguments)
        what = f"{job.source_id}/{job.version} was not classified"
        summary = run(Services().lake_at(job.lake_root), job)
    except StackTopicsError as error:
        log.error("%s: %s", what, error)  # noqa: TRY400 - the reason is the message
        return 1
    log.info("%s/%s is classified: %s", job.source_id, job.version, summary.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
