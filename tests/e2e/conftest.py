"""The whole local cloud, functions host included, for the tests that go from end to end."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localcloud.cloud import LocalCloud
from localcloud.demo import PostsFile, upload
from shared.ledger import ENDED, FileRecord
from shared.services import Services


@pytest.fixture(scope="module")
def cloud() -> Iterator[LocalCloud]:
    """A running cloud of its own, stopped when its module is done: idle it takes a fifth of a core."""
    folder = Path(tempfile.mkdtemp(prefix="stacktopics-"))
    folder.chmod(0o755)
    with LocalCloud(folder) as running:
        yield running
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def services(cloud: LocalCloud) -> Iterator[Services]:
    made = Services(cloud.settings_file)
    yield made
    made.close()


Process = Callable[[str, bytes], FileRecord]


@pytest.fixture(scope="module")
def process(cloud: LocalCloud, services: Services) -> Process:
    """Drop a file into the container and wait until its record has ended."""

    def run(name: str, data: bytes) -> FileRecord:
        return wait_until_ended(services, upload(services, PostsFile(name, data)))

    return run


def wait_until_ended(services: Services, version: tuple[str, str], seconds: float = 240) -> FileRecord:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        record = services.ledger.find(*version)
        if record is not None and record.state in ENDED:
            return record
        time.sleep(0.1)
    raise AssertionError(f"{version} has not ended after {seconds} s: {record}")
