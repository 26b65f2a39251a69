"""Looking up the topics of questions of earlier files: what a look-up reads, and that a merge loses nothing."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from classify.run import questions
from classify.run.questions import MANY_FILES, merge, newest_topics, remember
from shared import paths
from shared.errors import TransientError
from shared.lake import FileInfo, FolderLake
from shared.storage import RangedReader
from tests.world import Crash, mortal, parquet


class CountingLake(FolderLake):
    """Counts the files that are opened and the bytes that are read from them."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.opened: list[str] = []
        self.bytes = 0

    def open(self, path: str) -> RangedReader:
        self.opened.append(path)
        found = super().open(path)

        def fetch(offset: int, length: int) -> bytes:
            self.bytes += length
            found.seek(offset)
            return found.read(length)

        return RangedReader(fetch, found.size(), path)


def origin(number: int) -> str:
    """The origin of the file of a day; later days sort after earlier ones."""
    return f"202601{number:02}T000000Z-a-s"


def known(lake: FolderLake, *ids: int) -> dict[int, str]:
    found = newest_topics(lake, np.array(ids, np.int64))
    assert found.column_names == ["Id", "topic", "guessed"]
    return dict(zip(found["Id"].to_pylist(), found["topic"].to_pylist(), strict=True))


def topics(ids: dict[int, str]) -> pa.Table:
    names = [ids[number] for number in sorted(ids)]
    return pa.table(
        {"Id": pa.array(sorted(ids), pa.int64()), "topic": names, "guessed": [name < "d" for name in names]}
    )


def files(lake: FolderLake, bucket: int = 0) -> list[str]:
    return [info.path.rpartition("/")[2] for info in lake.list(paths.question_topics(bucket))]


@pytest.fixture
def lake(tmp_path: Path) -> CountingLake:
    return CountingLake(tmp_path)


def test_the_topic_of_the_newest_version_counts(lake: CountingLake) -> None:
    far = 5 * paths.QUESTION_BUCKET
    remember(lake, origin(2), topics({1: "java", 2: "java", far: "css"}))
    remember(lake, origin(1), topics({1: "python", 3: "python"}))
    assert known(lake, 1, 3, far, 4, 1) == {1: "java", 3: "python", far: "css"}
    assert known(lake) == {}
    assert known(lake, -(2**63), 2**63 - 1) == {}


def test_a_look_up_reads_a_small_part_of_a_large_file(lake: CountingLake) -> None:
    random = np.random.default_rng(1)
    ids = np.cumsum(random.integers(1, 4, 200_000))
    names = np.array([f"topic {number}" for number in range(100)])
    remember(
        lake, origin(1), pa.table({"Id": ids, "topic": names[random.integers(0, 100, len(ids))], "guessed": ids > 0})
    )
    remember(lake, origin(2), topics({20 * paths.QUESTION_BUCKET: "css"}))
    size = sum(info.size for info in lake.list("question_topics/ids=0"))
    found = known(lake, *ids[100_000:100_003].tolist())
    assert list(found) == ids[100_000:100_003].tolist()
    assert len(lake.opened) == 1
    assert lake.bytes < (64 << 10) + size / 5  # reading any footer takes 64 KiB
    lake.bytes = 0
    assert known(lake, int(ids[-1]) + 1) == {}
    assert lake.bytes <= 64 << 10


def test_a_bucket_does_not_grow_with_every_file(lake: CountingLake) -> None:
    for day in range(1, 29):
        for version in ("a", "b"):
            remember(lake, f"202601{day:02}T000000Z-{version}-s", topics({day: f"{day}{version}", 1_000: f"{day}"}))
            assert len(files(lake)) <= MANY_FILES + 1
    everything = {day: f"{day}b" for day in range(1, 29)}
    lake.opened.clear()
    assert known(lake, *everything, 1_000) == everything | {1_000: "28"}
    assert len(lake.opened) <= MANY_FILES + 1


def test_an_older_version_that_arrives_after_a_merge_does_not_win(lake: CountingLake) -> None:
    for day in range(3, 4 + MANY_FILES):
        remember(lake, origin(day), topics({1: f"of day {day}"}))
    (merged,) = files(lake)
    assert merged.startswith("merged-")
    remember(lake, origin(1), topics({1: "old", 2: "new"}))
    assert known(lake, 1, 2) == {1: f"of day {3 + MANY_FILES}", 2: "new"}


def test_a_version_that_is_classified_again_has_its_latest_topic(lake: CountingLake) -> None:
    for day in range(1, 2 + MANY_FILES):
        remember(lake, origin(day), topics({day: "before"}))
    remember(lake, origin(5), topics({5: "by another model"}))
    assert known(lake, 4, 5) == {4: "before", 5: "by another model"}
    for day in range(20, 20 + MANY_FILES):
        remember(lake, origin(day), topics({day: "later"}))
    assert sum(name.startswith("merged-") for name in files(lake)) == 1
    assert known(lake, 4, 5) == {4: "before", 5: "by another model"}


def full(root: Path) -> dict[int, str]:
    """Fill a bucket that must be merged; returns its topics by question."""
    lake = FolderLake(root)
    for day in range(1, 2 + MANY_FILES):
        table = topics({day: f"{day}", 1_000: f"{day}"}).append_column("origin", pa.repeat(origin(day), 2))
        lake.put(paths.question_topics_of(0, origin(day)), parquet(table))
    return {day: f"{day}" for day in range(1, 2 + MANY_FILES)} | {1_000: f"{1 + MANY_FILES}"}


def test_after_a_crash_at_any_step_of_a_merge_the_next_merge_completes_it(tmp_path: Path) -> None:
    deaths = 0
    for calls in range(1, 1_000):
        root = tmp_path / str(calls)
        expected = full(root)
        try:
            merge(mortal(root, calls), 0)
        except Crash:
            deaths += 1
            lake = FolderLake(root)
            assert known(lake, *expected) == expected, calls
            remember(lake, origin(31), topics({31: "31"}))
            for _ in range(MANY_FILES):
                merge(lake, 0)
            assert known(lake, *expected, 31) == expected | {31: "31"}
            assert len(files(lake)) <= MANY_FILES
        else:
            break
    assert deaths > MANY_FILES


def test_two_merging_workers_and_one_writer_lose_nothing(tmp_path: Path) -> None:
    for number in range(10):
        root = tmp_path / str(number)
        expected = full(root)

        def write(root: Path = root) -> None:
            for day in range(20, 29):
                remember(FolderLake(root), origin(day), topics({day: "new"}))

        with ThreadPoolExecutor(4) as pool:
            work = [pool.submit(merge, FolderLake(root), 0) for _ in range(3)] + [pool.submit(write)]
            looked_up = [known(FolderLake(root), *expected) for _ in range(3)]
        for done in work:
            done.result()
        assert looked_up == [expected] * 3
        assert known(FolderLake(root), *expected, *range(20, 29)) == expected | dict.fromkeys(range(20, 29), "new")


def test_a_file_that_is_merged_during_a_look_up_is_found_again(
    lake: CountingLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = full(lake.root)
    listed = lake.list

    def list_then_merge(prefix: str) -> Iterator[FileInfo]:
        found = list(listed(prefix))
        monkeypatch.undo()
        merge(lake, 0)
        return iter(found)

    monkeypatch.setattr(lake, "list", list_then_merge)
    assert known(lake, *expected) == expected
    gone = [FileInfo(paths.question_topics_of(0, "gone"), 1, "e", next(listed("question_topics")).last_modified)]
    monkeypatch.setattr(lake, "list", lambda _: iter(gone))
    with pytest.raises(TransientError, match=r"is being changed by too many others: .*gone\.parquet does not exist"):
        known(lake, 1)
    full(tmp := lake.root / "other")
    other = FolderLake(tmp)
    before = files(other)
    monkeypatch.setattr(questions, "_in_file", lambda lake, path, _: lake.open("gone"))
    merge(other, 0)
    assert files(other) == before
