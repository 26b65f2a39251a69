"""The retry policy for every change under an ETag."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared.conditional import TRIES, until_first
from shared.errors import Conflict, NotFound, TerminalError, TransientError
from shared.lake import FolderLake


def test_sixteen_concurrent_workers_lose_no_change(tmp_path: Path) -> None:
    lake = FolderLake(tmp_path)
    lake.put("catalog/count", b"0")

    def add(_: int) -> int:
        def attempt() -> int:
            data, etag = lake.read_with_etag("catalog/count")
            lake.put("catalog/count", str(int(data) + 1).encode(), if_match=etag)
            return int(data) + 1

        return until_first(attempt, "the count")

    with ThreadPoolExecutor(16) as pool:
        found = sorted(pool.map(add, range(64)))
    assert found == list(range(1, 65))


def test_a_worker_that_always_conflicts_raises_a_transient_error() -> None:
    tries: list[int] = []

    def attempt() -> None:
        tries.append(1)
        raise Conflict("the pointer has moved")

    said = "the pointer of a day is being changed by too many others: the pointer has moved"
    with pytest.raises(TransientError, match=said):
        until_first(attempt, "the pointer of a day")
    assert len(tries) == TRIES


def test_other_errors_are_not_tried_again() -> None:
    tries: list[int] = []

    def attempt() -> None:
        tries.append(1)
        raise (TerminalError if len(tries) > 1 else NotFound)("gone")

    with pytest.raises(NotFound):
        until_first(attempt, "it")
    with pytest.raises(TerminalError):
        until_first(attempt, "it", also=NotFound)
    assert len(tries) == 2
