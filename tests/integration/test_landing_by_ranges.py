"""The memory that landing takes when every byte of a file passes through the function."""

from __future__ import annotations

import os
import threading
import time
import uuid
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from azure.storage.blob import BlobClient

from ingest.posts import land_posts
from localcloud.cloud import LocalCloud
from shared import copying, paths, storage
from shared.ledger import FileState
from shared.services import Services
from shared.storage import BlobVersion, RangedReader, StorageBlob
from tests.world import posts

RANGE = 16 << 10


class Watched(StorageBlob):
    """A source that records the ranges that are read."""

    def __init__(self, client: BlobClient) -> None:
        super().__init__(client)
        self.ranges: list[tuple[int, int]] = []

    def open(self, version: BlobVersion) -> RangedReader:
        reader = super().open(version)
        fetch = reader._fetch

        def noting(offset: int, length: int) -> bytes:
            self.ranges.append((offset, length))
            return fetch(offset, length)

        reader._fetch = noting
        return reader


def test_a_file_is_copied_in_ranges_of_which_few_are_in_memory(
    local_cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (copying, storage):
        monkeypatch.setattr(module, "COPY_RANGE", RANGE)
    monkeypatch.setattr(copying, "_inside_the_account", lambda *_: None)
    services = Services(local_cloud.settings_file)
    source = services.posts_container.get_blob_client(f"{uuid.uuid4().hex}.parquet")
    table = posts(*({"Body": os.urandom(2_000).hex()} for _ in range(100)))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", use_dictionary=False)
    data = sink.getvalue().to_pybytes()
    source.upload_blob(data)
    blob, staged, most, lock = Watched(source), 0, 0, threading.Lock()
    stage_block = BlobClient.stage_block

    def noting(client: BlobClient, *given: Any, **named: Any) -> Any:
        nonlocal staged, most
        if not staged:
            time.sleep(0.3)  # meanwhile the reader may read ahead as far as it can
        answer = stage_block(client, *given, **named)
        with lock:
            most = max(most, sum(length == RANGE for _, length in blob.ranges) - staged)
            staged += 1
        return answer

    monkeypatch.setattr(BlobClient, "stage_block", noting)
    record = land_posts(services, blob)
    assert record is not None
    assert (record.state, record.rows) == (FileState.LANDED, 100)
    assert max(length for _, length in blob.ranges) <= RANGE
    whole = [(offset, min(RANGE, len(data) - offset)) for offset in range(0, len(data), RANGE)]
    assert [each for each in blob.ranges if each in whole] == whole
    assert len(whole) > 20
    assert most <= copying.WORKERS + 2
    for path in (paths.landing(record.source_id, record.version), str(record.archive)):
        assert services.lake.read(path) == data
    assert not source.exists()
    services.close()
