"""The weekly training run that may replace the topic model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pipeline.watch import look
from shared import paths
from shared.databricks import idempotency_token
from shared.errors import TerminalError

if TYPE_CHECKING:
    from shared.services import Services

log = logging.getLogger("stacktopics.pipeline.retrain")

TRAININGS_A_WEEK = 7
"""Runs that may be started in a week as long as all before them have failed."""


def retrain(services: Services) -> int | None:
    """Start this week's training run; returns its id, or None where no training job is set.

    Called again in the same week it finds the same run, unless that failed or the settings of the training changed:
    then it starts the next one. The run writes its result to `runs/training/…` in the lake.
    Raises TransientError when Databricks is busy, TerminalError when every run that a week may have has failed.
    """
    settings = services.settings
    if settings.databricks_training_job_id is None:
        log.warning("DATABRICKS_TRAINING_JOB_ID is not set: the topic model stays as it is")
        return None
    today = services.now().date()
    learned = {
        "lake_root": settings.lake_uri,
        "days": str(settings.training_days),
        "max_questions": str(settings.training_max_questions),
        "topics": str(settings.training_topics),
        "margin": str(settings.training_margin),
    }
    for attempt in range(1, TRAININGS_A_WEEK + 1):
        token = idempotency_token("training", paths.iso_week(services.now()), *learned.values(), attempt)
        parameters = learned | {"until": today.isoformat()}
        run_id = services.job_runs.start(settings.databricks_training_job_id, parameters, token)
        state = look(services, run_id)
        if state.status in ("waiting", "running", "succeeded"):
            log.info("the training until %s is run %d, attempt %d of this week", today, run_id, attempt)
            return run_id
        log.warning("training run %d has failed: %s", run_id, state.message)
    raise TerminalError(f"{TRAININGS_A_WEEK} training runs of this week have failed, the last one is {run_id}")
