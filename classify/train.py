"""The job of a Databricks training run: it reads the archive's tagged questions, and makes a candidate model.

python -m classify.train --lake-root ROOT --until 2026-11-22 [--days 365] [--max-questions 1000000] [--topics 100]
    [--margin 0.002]
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from classify.learn.train import TrainParameters, train
from shared.errors import StackTopicsError
from shared.logs import set_up_logs
from shared.services import Services

log = logging.getLogger("stacktopics.classify.train")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from a command line. Returns 0 when a candidate was trained, promoted or not; else 1, and logs the reason."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    set_up_logs()
    try:
        parameters = TrainParameters.from_arguments(sys.argv[1:] if arguments is None else arguments)
        result = train(Services().lake_at(parameters.lake_root), parameters)
    except StackTopicsError as error:
        log.error("no model was trained: %s", error)  # noqa: TRY400 - the reason is the message
        return 1
    log.info("%s is %s: %s", result.candidate, result.became, result.reason)
    return 0


if __name__ == "__main__":
    sys.exit(main())
