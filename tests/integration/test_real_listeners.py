"""The function app behind the real listeners of Azure Functions: whole ways from a file to the topics of its day."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import BlobServiceClient

from cli.follow import upload
from localcloud.cloud import LocalCloud
from pipeline.reconcile import YOUNG_BLOB_SECONDS
from serve.topics import topics_of_day
from shared.errors import NotFound
from shared.queues import BLOB_POISON_QUEUE
from shared.services import Services
from tests.listeners.events import event
from tests.listeners.host import RealHost, what_is_missing
from tests.localcloud_fixtures import running_cloud
from tests.places import PROJECT
from tests.waiting import eventually
from tests.world import parquet, posts

pytestmark = pytest.mark.skipif(what_is_missing() is not None, reason=str(what_is_missing()))
POSTS_A_FILE = 3
NEVER = "0 0 0 1 1 *"
"""Once a year."""
EVERY_TEN_SECONDS = "*/10 * * * * *"


@pytest.fixture(scope="module")
def cloud() -> Iterator[LocalCloud]:
    """A running cloud of its own without a host: its queues and containers are for one host at a time."""
    with running_cloud(host=False) as running:
        yield running


@pytest.fixture(scope="module")
def services(cloud: LocalCloud) -> Iterator[Services]:
    made = Services(cloud.settings_file)
    yield made
    made.close()


def id_of_host(folder: Path) -> str:
    return folder.name.replace("_", "-")[:32]


def real_host(cloud: LocalCloud, folder: Path, source: str, **settings: str) -> RealHost:
    """The app's listeners, not started yet; the folder's name is the host's.

    It sweeps when a test says so, unless the settings have another RECONCILE_SCHEDULE.
    """
    values = {**cloud.settings, "POSTS_TRIGGER_SOURCE": source, "RECONCILE_SCHEDULE": NEVER, **settings}
    return RealHost(folder, PROJECT / "function_app.py", values, id_of_host(folder))


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


def wait_for_a_delivery(host: RealHost, events: Any) -> None:
    """Post events, and return once the first of their deliveries has begun."""
    before = len(host.deliveries("land_posts"))
    assert host.post_events("land_posts", events) == 202
    eventually(lambda: len(host.deliveries("land_posts")) > before, host.told)


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


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_of_a_hundred_files_none_is_missing_with_the_sweep_on(
    cloud: LocalCloud, services: Services, tmp_path: Path
) -> None:
    """Polling misses what lands later in a second that it has seen; reconcile, every ten seconds here, does not."""
    day, files = date(2025, 1, 3), names(100, "quick")
    with real_host(cloud, tmp_path, "LogsAndContainerScan", RECONCILE_SCHEDULE=EVERY_TEN_SECONDS) as host:
        for name in files:
            drop(services, [name], day)
            time.sleep(0.15)
        wait_until_counted(host, services, day, len(files))
        assert host.stop() == 0
    assert (failures(host), left(services)) == ([], [])


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_what_lies_in_poison_is_gone_on_with_when_its_cause_has_passed(
    cloud: LocalCloud, services: Services, tmp_path: Path
) -> None:
    """The lake's file system is missing: every file fails for good. With the right one, reconcile ends them all."""
    day, files = date(2025, 1, 4), names(5, "poisoned")
    with real_host(cloud, tmp_path, "EventGrid", LAKE_FILE_SYSTEM="missing") as host:
        drop(services, files, day)
        events = [event(services.posts_container.get_blob_client(name)) for name in files]
        assert host.post_events("land_posts", events) == 202
        poison = services.queue(BLOB_POISON_QUEUE)
        eventually(lambda: poison.length() == len(files), host.log)
        host.stop()
        time.sleep(YOUNG_BLOB_SECONDS)
        host.start(LAKE_FILE_SYSTEM=cloud.settings["LAKE_FILE_SYSTEM"])
        assert host.sweep()
        wait_until_counted(host, services, day, len(files))
        assert host.stop() == 0
    assert (poison.length(), left(services)) == (0, [])


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_a_host_that_is_killed_twice_leaves_nothing_behind(
    cloud: LocalCloud, services: Services, tmp_path: Path
) -> None:
    """What it had begun comes back after ten minutes; reconcile does not wait so long."""
    day, files = date(2025, 1, 5), names(20, "killed")
    drop(services, files, day)
    events = [event(services.posts_container.get_blob_client(name)) for name in files]
    with real_host(cloud, tmp_path, "EventGrid", RECONCILE_SCHEDULE=EVERY_TEN_SECONDS) as host:
        for _ in range(2):
            wait_for_a_delivery(host, events)
            time.sleep(1)
            host.kill()
            host.start()
        wait_until_counted(host, services, day, len(files))
        eventually(lambda: services.ledger.open_files() == [], host.told, seconds=300)
        assert host.stop() == 0
    assert left(services) == []


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_a_host_that_is_stopped_ends_what_is_under_way(cloud: LocalCloud, services: Services, tmp_path: Path) -> None:
    day, files = date(2025, 1, 6), names(6, "stopped")
    drop(services, files, day)
    with real_host(cloud, tmp_path, "EventGrid") as host:
        host.post_events("land_posts", [event(services.posts_container.get_blob_client(name)) for name in files])
        eventually(lambda: host.deliveries("land_posts"), host.told)
        assert host.stop() == 0
        assert all(call.ended for call in host.deliveries("land_posts"))
        host.start()
        wait_until_counted(host, services, day, len(files))
        assert host.stop() == 0
    assert failures(host) == []


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_a_timer_that_is_past_due_fires_once_at_the_start(cloud: LocalCloud, tmp_path: Path) -> None:
    status = {"Last": "2026-11-01T00:00:00+00:00", "Next": "2026-11-01T01:00:00+00:00"}
    status["LastUpdated"] = status["Last"]
    with BlobServiceClient.from_connection_string(cloud.settings["AzureWebJobsStorage"]) as blobs:
        with suppress(ResourceExistsError):
            blobs.create_container("azure-webjobs-hosts")
        name = f"timers/{id_of_host(tmp_path)}/Host.Functions.reconcile/status"
        blobs.get_blob_client("azure-webjobs-hosts", name).upload_blob(json.dumps(status).encode())
    with real_host(cloud, tmp_path, "EventGrid", RECONCILE_SCHEDULE="0 0 * * * *") as host:
        eventually(lambda: host.deliveries("reconcile"), host.told)
        time.sleep(3)
        (call,) = host.deliveries("reconcile")
        assert call.trigger["isPastDue"]


def test_deliveries_of_one_blob_beside_each_other_are_successes(
    cloud: LocalCloud, services: Services, tmp_path: Path
) -> None:
    """Eight events of each of four files at once: one delivery lands a file, the others end as successes."""
    day, files = date(2025, 1, 7), names(4, "eightfold")
    drop(services, files, day)
    blobs = [services.posts_container.get_blob_client(name) for name in files]
    with real_host(cloud, tmp_path, "EventGrid") as host:
        assert host.post_events("land_posts", [event(blob) for blob in blobs] * 8) == 202
        wait_until_counted(host, services, day, len(files))
        assert host.stop() == 0
    assert failures(host) == []
    assert services.queue(BLOB_POISON_QUEUE).length() == 0
