"""The import of a dump into a container."""

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.dump import import_dump
from tests.dump_rows import Container


def test_each_file_is_uploaded_to_a_container_once(tmp_path: Path, ten_days: Path) -> None:
    container: Any = Container()
    report = import_dump(ten_days, container, work=tmp_path / "work")
    assert tuple(sorted(container.blobs)) == report.files
    assert sum(pq.read_metadata(pa.BufferReader(data)).num_rows for data in container.blobs.values()) == 50
    (kept,) = (tmp_path / "work").rglob("rejected.jsonl")
    assert report.rejected_file == str(kept)
    container.blobs.clear()  # the pipeline has landed them
    again = import_dump(ten_days, container, work=tmp_path / "work")
    assert (again.resumed, again.resumed_rows) == (10, 50)
    assert not container.blobs
    assert not list((tmp_path / "work").rglob("*.parquet"))
    assert not [file for file in (tmp_path / "work").rglob("*.json*") if "secret" in file.read_text()]


@pytest.mark.parametrize("change", [{"url": "https://other.blob.core.windows.net/posts"}, {"etag": "2"}])
def test_another_or_a_recreated_container_gets_all_files(
    tmp_path: Path, ten_days: Path, change: dict[str, str]
) -> None:
    first, second = Container(), Container()
    for name, value in change.items():  # another account, or a container that was created again
        setattr(second, name, value)
    import_dump(ten_days, first, work=tmp_path)  # type: ignore[arg-type]
    report = import_dump(ten_days, second, work=tmp_path)  # type: ignore[arg-type]
    assert (report.resumed, report.rows_out) == (0, 50)
    assert second.blobs == first.blobs


def test_at_most_one_file_a_thread_waits_for_its_upload(tmp_path: Path, ten_days: Path) -> None:
    """A thread uploads each file before it writes the next one."""
    waiting: list[int] = []

    class Slow(Container):
        def upload_blob(self, name: str, data: Any, overwrite: bool) -> None:
            time.sleep(0.02)
            waiting.append(len(list(tmp_path.rglob("*.parquet"))))
            super().upload_blob(name, data, overwrite)

    container: Any = Slow()
    import_dump(ten_days, container, work=tmp_path, workers=2)
    assert len(container.blobs) == 10
    assert max(waiting) <= 2
