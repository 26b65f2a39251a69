"""The whole local cloud, including the functions host, for the end-to-end tests."""

from collections.abc import Callable, Iterator

import pytest

from cli.follow import Uploaded, upload
from localcloud.cloud import LocalCloud
from shared.ledger import AT_REST, FileRecord
from shared.services import Services
from tests.localcloud_fixtures import running_cloud
from tests.waiting import eventually


@pytest.fixture(scope="module")
def cloud() -> Iterator[LocalCloud]:
    """A running cloud for one module, which asks for keys. It then stops, because it takes 0.2 of a core while idle."""
    with running_cloud(auth=True) as running:
        yield running


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
        return wait_until_ended(services, upload(services, name, data))

    return run


def wait_until_ended(services: Services, dropped: Uploaded) -> FileRecord:
    def look() -> FileRecord | None:
        record = services.ledger.find(dropped.source_id, dropped.version)
        return record if record is not None and record.state in AT_REST else None

    return eventually(look, lambda: f"the end of {services.ledger.find(dropped.source_id, dropped.version)}")
