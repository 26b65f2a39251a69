"""Every path of the lake, made in one place; all are relative to the lake's root."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, date, datetime, timedelta

TEMPORARY_PREFIX = "_tmp-"
"""File names that start so are unfinished; Spark, Synapse and pyarrow skip names that start with `_`."""

ARCHIVE = "archive/posts"
CURRENT_MODEL = "models/topics/current.json"
DAYS = "catalog/days"
FILE_RECORDS = "runs/posts"
OPEN_FILES = "runs/open"
WAITING_FILES = "runs/waiting"
INBOX = "runs/inbox"
SEEN_FILES = "runs/seen"
REPLAY = "runs/replay.json"
QUESTION_TOPICS = "question_topics"
LATEST_DAY = "catalog/latest.json"
LAST_RECONCILE = "runs/reconcile/last.json"
REFERENCE_RECORDS = "runs/reference"
TRAINING_RECORDS = "runs/training"

_DATE_IN_NAME = re.compile(r"(?<!\d)(\d{4})[-_]?(\d{2})[-_]?(\d{2})(?!\d)")


def source_id(container: str, name: str) -> str:
    """The id of a source blob, whatever its content: 16 hexadecimal digits of a hash of where it lies."""
    return hashlib.sha256(f"{container}/{name}".encode()).hexdigest()[:16]


def version_of(last_modified: datetime, etag: str) -> str:
    """The id of a blob's content: its Last-Modified (UTC, so versions sort by time) and a hash of its ETag."""
    digest = hashlib.sha256(etag.strip('"').encode()).hexdigest()[:12]
    return f"{last_modified:%Y%m%dT%H%M%SZ}-{digest}"


def file_day(name: str, last_modified: datetime) -> date:
    """The day of a file: the last date in its name (2026-11-22, 2026_11_22 or 20261122), else its Last-Modified."""
    for year, month, day in reversed(_DATE_IN_NAME.findall(name)):
        try:
            return date(int(year), int(month), int(day))
        except ValueError:
            continue
    return last_modified.date()


def landing(source: str, version: str) -> str:
    return f"landing/posts/{source}/{version}.parquet"


def archive(day: date, source: str, version: str) -> str:
    return f"{ARCHIVE}/{day:%Y/%m/%d}/{source}/{version}.parquet"


def quarantined(source: str, version: str) -> str:
    """The folder of a refused file version."""
    return f"quarantine/posts/{source}/{version}"


def quarantine(source: str, version: str, name: str) -> str:
    """Where the bytes of a refused file are kept: beside its reason, whatever it is called."""
    return f"{quarantined(source, version)}/file-{name.rsplit('/', 1)[-1]}"


def quarantine_reason(source: str, version: str) -> str:
    return f"{quarantined(source, version)}/reason.json"


def file_record(source: str, version: str) -> str:
    return f"{FILE_RECORDS}/{source}/{version}.json"


def open_file(source: str, version: str) -> str:
    """The note that a file version has not ended."""
    return f"{OPEN_FILES}/{source}-{version}.json"


def waiting_file(since: datetime, source: str, version: str) -> str:
    """The note that a run of a file version has waited for a slot since then; notes sort by that time."""
    return f"{WAITING_FILES}/{since.astimezone(UTC):%Y%m%dT%H%M%S%f}-{source}-{version}.json"


def inbox_file(source: str, version: str) -> str:
    """The note that a file version waits for a person."""
    return f"{INBOX}/{source}-{version}.json"


def seen_files(day: date) -> str:
    """The notes of what was first seen on a day (UTC)."""
    return f"{SEEN_FILES}/{day.isoformat()}"


def seen_file(day: date, source: str, version: str) -> str:
    return f"{seen_files(day)}/{source}-{version}.json"


def reference_record(iso_week: str) -> str:
    return f"{REFERENCE_RECORDS}/{iso_week}.json"


def training_record(until: date, number: int = 1) -> str:
    """The record of a training run: that one of those until this day."""
    return f"{TRAINING_RECORDS}/{until.isoformat()}{f'.{number}' if number > 1 else ''}.json"


def reference(table: str) -> str:
    return f"reference/{table}/{table}.parquet"


def reference_previous(table: str, iso_week: str) -> str:
    return f"reference/{table}/previous/{iso_week}.parquet"


def iso_week(moment: datetime) -> str:
    year, week, _ = moment.isocalendar()
    return f"{year}-W{week:02}"


def weeks_before(week: str, weeks: int) -> str:
    """The ISO week that lies so many weeks before another."""
    year, _, number = week.partition("-W")
    return iso_week(datetime.fromisocalendar(int(year), int(number), 1) - timedelta(weeks=weeks))


def model(version: str) -> str:
    return f"models/topics/{version}"


def post_topics_of(source: str, version: str) -> str:
    """The folder of all classifications of a file version."""
    return f"post_topics/source={source}/{version}"


def post_topics(source: str, version: str, model: str, topic_source: str, replay: int = 0) -> str:
    """The folder a classification writes: part-*.parquet, counts.parquet and, last, summary.json.

    Named by all that decides its content but one: which earlier questions were known when it ran (decision 0004). A
    replay writes a folder of its own, because somebody may be reading the one before.
    """
    again = f"-again-{replay}" if replay else ""
    return f"{post_topics_of(source, version)}/{model}-by-{topic_source}{again}"


def question_topics(bucket: int) -> str:
    """The folder with the topics of the questions whose Id // QUESTION_BUCKET is `bucket`."""
    return f"{QUESTION_TOPICS}/ids={bucket}"


def question_topics_of(bucket: int, origin: str) -> str:
    return f"{question_topics(bucket)}/{origin}.parquet"


QUESTION_BUCKET = 1 << 20


def topics_folder(day: date) -> str:
    """Where the topics files of a day lie, current and older."""
    return f"topics/day={day.isoformat()}"


def topics_file(day: date, publish_id: str, suffix: str) -> str:
    return f"{topics_folder(day)}/{publish_id}.{suffix}"


def day_sums_folder(day: date) -> str:
    """Where the sums of a day lie, current and older."""
    return f"day_sums/day={day.isoformat()}"


def day_sums(day: date, publish_id: str) -> str:
    """What the topics of that publish id were counted from, added up."""
    return f"{day_sums_folder(day)}/{publish_id}.parquet"


def day_pointer(day: date) -> str:
    """Which published topics of a day are current."""
    return f"{DAYS}/{day.isoformat()}.json"


def source_pointer(source: str) -> str:
    """Which version of a source counts."""
    return f"catalog/sources/{source}.json"
