"""The demo waits as long as something happens."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from localcloud import demo
from localcloud.processes import LocalCloudError
from shared.ledger import State

STEPS = [State.LANDED, State.LAUNCHED, State.CLASSIFIED, State.PUBLISHED]
VERSIONS = [(f"source-{number}", "version") for number in range(2)]


def wait(every: float, stops_after: int, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Wait for two files, one of which gets on by a step each `every` seconds, up to `stops_after` steps in all. The
    clock goes on while somebody sleeps, and only then."""
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(demo, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))

    def find(source: str, _: str) -> Any:
        steps = min(int(now / every), stops_after)
        its_steps = (steps + (source == VERSIONS[0][0])) // 2
        return SimpleNamespace(state=STEPS[its_steps - 1], source=SimpleNamespace(name=source)) if its_steps else None

    settings = SimpleNamespace(posts_landed_queue="a", classification_runs_queue="b")
    queue = SimpleNamespace(length=lambda: 0)
    services: Any = SimpleNamespace(settings=settings, queue=lambda _: queue, ledger=SimpleNamespace(find=find))
    cloud: Any = SimpleNamespace(check=lambda: None, logs=Path("logs"))
    return demo._wait(cloud, services, VERSIONS, Console(file=io.StringIO()))


def test_files_that_get_on_are_waited_for_beyond_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [record.state for record in wait(demo.PATIENCE_SECONDS - 1, 8, monkeypatch)] == [State.PUBLISHED] * 2


def test_files_that_stand_still_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LocalCloudError, match=f"nothing happened in {demo.PATIENCE_SECONDS} s"):
        wait(demo.PATIENCE_SECONDS - 1, 5, monkeypatch)
