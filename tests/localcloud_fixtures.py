"""Fixtures of the local cloud: one running cloud without the functions host, shared by all tests of a session."""

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import BlobServiceClient
from azure.storage.filedatalake import DataLakeServiceClient, FileSystemClient

from localcloud import azurite
from localcloud.cloud import LocalCloud, reset
from tests.waiting import eventually

CREDENTIAL = {"account_name": azurite.ACCOUNT, "account_key": azurite.ACCOUNT_KEY}


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """An empty state folder that Postgres can use even if root runs the tests, unlike pytest's own folders."""
    folder = Path(tempfile.mkdtemp(prefix="stacktopics-"))
    folder.chmod(0o755)
    yield folder
    reset(folder)


@contextmanager
def running_cloud(**options: Any) -> Iterator[LocalCloud]:
    """A running local cloud in a folder of its own, which is deleted afterwards; `options` are those of LocalCloud."""
    folder = Path(tempfile.mkdtemp(prefix="stacktopics-"))
    folder.chmod(0o755)
    with LocalCloud(folder, **options) as cloud:
        yield cloud
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def local_cloud() -> Iterator[LocalCloud]:
    """The running local cloud without a functions host. Tests share it, so each makes its own containers and paths."""
    with running_cloud(host=False) as cloud:
        yield cloud


@pytest.fixture
def file_system(local_cloud: LocalCloud) -> Iterator[FileSystemClient]:
    """A new, empty file system of the lake, through the gateway, without retries, so that errors appear at once."""
    url = azurite.endpoint(local_cloud.ports["lake"])
    with DataLakeServiceClient(url, credential=CREDENTIAL, retry_total=0) as service:
        client = service.create_file_system(f"t{uuid.uuid4().hex}")
        yield client
        client.delete_file_system()


@pytest.fixture
def blob_service(local_cloud: LocalCloud) -> Iterator[BlobServiceClient]:
    """Azurite's blob service, without the gateway."""
    url = azurite.endpoint(local_cloud.ports["blob"])
    with BlobServiceClient(url, credential=CREDENTIAL, retry_total=0) as service:
        yield service


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not count as running."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for_the_end(pid: int) -> None:
    """Wait until a process has ended."""
    eventually(lambda: not is_alive(pid), f"the end of process {pid}")
