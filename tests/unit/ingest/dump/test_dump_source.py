"""The site of a dump, and the prefix of its files."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.dump import import_dump, site_prefix
from shared.errors import BadInput
from shared.paths import file_day
from tests.dump_rows import Container, row, write


def test_two_sites_can_share_a_container(tmp_path: Path) -> None:
    container: Any = Container()
    for site, number in (("cooking.stackexchange.com", 1), ("askubuntu.com", 2)):
        import_dump(write(tmp_path / site, [row(number)]), container, by="month", work=tmp_path)
    import_dump(write(tmp_path / "dump", [row(3)]), container, prefix="x.y", work=tmp_path)
    ids = {name: pq.read_table(pa.BufferReader(data))["Id"].to_pylist() for name, data in container.blobs.items()}
    assert ids == {
        "posts-cooking-2012-06.parquet": [1],
        "posts-askubuntu-2012-06.parquet": [2],
        "posts-x.y-2012-06-12.parquet": [3],
    }
    assert file_day("posts-x.y-2012-06-12.parquet", datetime.now(UTC)) == date(2012, 6, 12)


def test_two_sites_without_a_name_do_not_replace_each_other(tmp_path: Path) -> None:
    container: Any = Container()
    import_dump(write(tmp_path / "one", [row(1)]), container, work=tmp_path)
    with pytest.raises(BadInput, match="give its --prefix"):
        import_dump(write(tmp_path / "two", [row(2), row(3)]), container, work=tmp_path)


@pytest.mark.parametrize(
    ("place", "prefix"),
    [
        ("raspberrypi.meta.stackexchange.com.7z", "raspberrypi.meta"),
        ("stackoverflow.com-Posts.7z", "stackoverflow"),
        ("ru.stackoverflow.com.7z", "ru.stackoverflow"),
        ("mathoverflow.net/Posts.xml", "mathoverflow"),
        ("raspberrypi.meta/Posts.xml", "raspberrypi.meta"),
        ("my-dump.7z", ""),
        ("2012.06/Posts.xml", ""),
        ("dump/Posts.xml", ""),
    ],
)
def test_the_site_is_read_from_the_name_of_the_dump(place: str, prefix: str) -> None:
    assert site_prefix(Path("/dumps") / place, None) == prefix
    assert site_prefix(Path("/dumps") / place, "given") == "given"


@pytest.mark.parametrize("prefix", ["a/b", "..", "a b", "2012-06-12", "dump_20240630", "x" * 101])
def test_a_prefix_that_cannot_be_part_of_a_name_is_refused(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(BadInput, match="--prefix"):
        import_dump(write(tmp_path, [row(1)]), tmp_path / "out", prefix=prefix)
    assert not (tmp_path / "out").exists()
