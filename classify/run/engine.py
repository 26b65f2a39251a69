"""Classify one landed file by the engine that its parameters name, or a file on disk without a lake."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from classify.model.files import MANIFEST, read_manifest
from classify.posts import rowgroups
from classify.registry.summary import REFUSED_FILE, Summary
from classify.run.arrow import run_arrow
from classify.run.output import begin_output
from classify.run.parameters import JobParameters
from shared import paths
from shared.errors import BadInput, ModelError, NotFound, TerminalError
from shared.lake import FolderLake

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from shared.lake import Lake

log = logging.getLogger("stacktopics.classify.run")


def run(lake: Lake, job: JobParameters) -> Summary:
    """Classify one landed file, by the engine that `job` names.

    `auto` means spark for files of more than `spark_from_bytes` if Spark is available, else arrow. The outputs are the
    same.
    Raises BadInput when the file cannot be read, and writes the reason to the output; ModelError, NotFound when it is
    not in landing, TransientError, and TerminalError when `engine` is spark and Spark is unavailable.
    """
    landing = paths.landing(job.source_id, job.version)
    if lake.stat(landing) is None:  # published, or in quarantine: its output must stay
        raise NotFound(f"{landing} does not exist")
    begin_output(lake, job)
    spark = _spark(lake, job)
    try:
        if spark is None:
            return run_arrow(lake, job)
        from classify.run.spark import run_spark

        return run_spark(spark, lake, job)
    except BadInput as error:
        lake.put(f"{job.output}/{REFUSED_FILE}", str(error).encode())
        raise


def _spark(lake: Lake, job: JobParameters) -> SparkSession | None:
    """The Spark session for this run, or None if the arrow engine classifies the file."""
    if job.engine == "arrow":
        return None
    if job.engine == "auto":
        landed = lake.stat(paths.landing(job.source_id, job.version))
        if landed is None or landed.size <= job.spark_from_bytes:
            return None
    try:
        from classify.run.spark import session

        return session()
    except (ImportError, TerminalError) as error:
        if job.engine == "spark":
            raise TerminalError(f"engine=spark is unavailable: {error}") from error
        log.warning("%s/%s is large but is classified on one machine: %s", job.source_id, job.version, error)
        return None


def score_file(
    posts: Path, model: Path, out: Path, topic_source: str, progress: Callable[[float], None] | None = None
) -> Summary:
    """Classify a file on disk with a model on disk, without a lake; writes the rows of POST_TOPICS to `out`.

    Raises ModelError when the model is missing or damaged, BadInput when `posts` is not a Posts file or `out` cannot be
    written.
    """
    if not (model / MANIFEST).is_file():
        raise ModelError(f"no topic model in {model}: it has no {MANIFEST}")
    if out.exists() and out.samefile(posts):
        raise BadInput(f"{out} is the Posts file itself: name another file")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise BadInput(f"{out} is a folder, or its folder does not exist: name a file")
    version = read_manifest({MANIFEST: (model / MANIFEST).read_bytes()}).version
    with rowgroups.opened(posts, ("Id", "PostTypeId")), TemporaryDirectory(dir=out.absolute().parent) as folder:
        lake = FolderLake(Path(folder))
        job = JobParameters.model_validate(
            {
                "lake_root": folder,
                "source_id": "file",
                "version": "1",
                "file_day": paths.file_day(posts.name, datetime.fromtimestamp(posts.stat().st_mtime, UTC)),
                "model": version,
                "topic_source": topic_source,
            }
        )
        for link, target in ((paths.landing("file", "1"), posts), (paths.model(version), model)):
            (lake.root / link).parent.mkdir(parents=True)
            (lake.root / link).symlink_to(target.absolute())
        summary = run_arrow(lake, job, progress, str(posts))
        (lake.root / job.output / "part-00000.parquet").replace(out)
    return summary
