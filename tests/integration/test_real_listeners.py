"""The function app behind the real listeners of Azure Functions: whole ways from a file to the topics of its day."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from pathlib import Path

import pytest

from cli.follow import upload
from localcloud.cloud import LocalCloud
from serve.topics import topics_of_day
from shared.errors import NotFound
from shared.services import Services
from tests.listeners.events import event
from tests.listeners.host import RealHost, what_is_missing
from tests.places import PROJECT
from tests.waiting import eventually
from tests.world import parquet, posts

pytestmark = pytest.mark.skipif(what_is_missing() is not None, reason=str(what_is_missing()))
POSTS_A_FILE = 3
NEVER = "0 0 0 1 1 *"
"""Once a year."""


@pytest.fixture(scope="module")
def cloud() -> Iterator[LocalCloud]:
    """A running cloud of its own without a host: its queues and containers are for one host at a time."""
    folder = Path(tempfile.mkdtemp(prefix="stacktopics-"))
    folder.chmod(0o755)
    with LocalCloud(folder, host=False) as running:
        yield running
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def services(cloud: LocalCloud) -> Iterator[Services]:
    made = Services(cloud.settings_file)
    yield made
    made.close()


def real_host(cloud: LocalCloud, folder: Path, source: str) -> RealHost:
    """The app's listeners, not started yet; the folder's name is the host's. It sweeps when a test says so."""
    settings = {**cloud.settings, "POSTS_TRIGGER_SOURCE": source, "RECONCILE_SCHEDULE": NEVER}
    return RealHost(folder, PROJECT / "function_app.py", settings, host_id=folder.name.replace("_", "-")[:32])


def drop(services: Services, names: Sequence[str], day: date) -> None:
    """Files of POSTS_A_FILE posts each, all of one day."""
    moment = datetime(day.year, day.month, day.day, 12)
    row = {"CreationDate": moment, "Tags": "<python>"}
    for name in names:
        upload(services, name, parquet(posts(*[row] * POSTS_A_FILE)))


def counted(services: Services, day: date) -> int:
    """The posts that are published for a day."""
    try:
        return topics_of_day(services.lake, day).posts
    except NotFound:
        return 0


def left(services: Services) -> list[str]:
    """The files that still lie in the container."""
    return sorted(services.posts_container.list_blob_names())


def wait_until_counted(host: RealHost, services: Services, day: date, files: int) -> None:
    def story() -> str:
        return f"{files} files of {day}: {counted(services, day)} posts, {left(services)} are left\n{host.told()}"

    eventually(lambda: counted(services, day) >= files * POSTS_A_FILE, story)
    assert counted(services, day) == files * POSTS_A_FILE


def failures(host: RealHost) -> list[str]:
    return [f"{call.function}: {call.error}" for call in host.deliveries() if call.error]


def names(count: int, start: str) -> list[str]:
    return [f"{start}-{number:03}.parquet" for number in range(count)]


def test_files_that_are_polled_are_published(cloud: LocalCloud, services: Services, tmp_path: Path) -> None:
    """Twelve lie there when the host starts, eight come later, each in a second of its own: polling sees no other."""
    day = date(2025, 1, 1)
    early, late = names(12, "early"), names(8, "late")
    drop(services, early, day)
    with real_host(cloud, tmp_path, "LogsAndContainerScan") as host:
        for name in late:
            drop(services, [name], day)
            uploaded = services.posts_container.get_blob_client(name).get_blob_properties().last_modified
            time.sleep(max(0.0, uploaded.timestamp() + 1 - time.time()))
        wait_until_counted(host, services, day, 20)
        assert host.stop() == 0
    landed = sorted(call.blob for call in host.deliveries("land_posts"))
    assert (landed, failures(host), left(services)) == (sorted(early + late), [], [])


def test_one_post_of_events_publishes_its_files(cloud: LocalCloud, services: Services, tmp_path: Path) -> None:
    day = date(2025, 1, 2)
    announced, unannounced = names(12, "announced"), ["unannounced.parquet"]
    drop(services, announced + unannounced, day)
    with real_host(cloud, tmp_path, "EventGrid") as host:
        events = [event(services.posts_container.get_blob_client(name)) for name in announced]
        assert host.post_events("land_posts", events) == 202
        wait_until_counted(host, services, day, len(announced))
        assert host.stop() == 0
    assert sorted(call.blob for call in host.deliveries("land_posts")) == announced
    assert (failures(host), left(services)) == ([], unannounced)
    services.posts_container.delete_blob(*unannounced)
