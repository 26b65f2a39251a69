"""One landed file classified by the engine that its parameters ask for, or a file on disk without a lake."""

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
    """Classify one landed file, by the engine that `job` asks for.

    `auto` is spark for files of more than `spark_from_bytes` where Spark can be had, else arrow. The outputs are the
    same.
    Raises BadInput, with the reason left in the output, when the file cannot be read; ModelError, NotFound when it is
    not in landing, TransientError, and TerminalError when Spark is asked for and cannot be had.
    """
    landing = paths.landing(job.source_id, job.version)
    if lake.stat(landing) is None:  # published, or in quarantine: what is there of the output stays
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
    """The session to classify with, or None when the arrow engine is to do it."""
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
            raise TerminalError(f"engine=spark cannot be had: {error}") from error
        log.warning("%s/%s is large and goes through one machine: %s", job.source_id, job.version, error)
        return None


def score_file(
    posts: Path, model: Path, out: Path, topic_source: str, progress: Callable[[float], None] | None = None
) -> Summary:
    """Classify a file on disk with a model on disk, without a lake; writes the rows of POST_TOPICS to `out`.

    Raises ModelError for what is no model, BadInput for what is no file of posts or no place for `out`.
    """
    if not (model / MANIFEST).is_file():
        raise ModelError(f"no topic model in {model}: it has no {MANIFEST}")
    if out.exists() and out.samefile(posts):
        raise BadInput(f"{out} is the file of posts itself: name another")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise BadInput(f"{out} is a folder, or in one that is not there: name a file")
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
