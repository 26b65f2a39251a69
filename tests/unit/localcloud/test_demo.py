"""The demo: the options it passes on, its output, and its wait for files."""

import io
import os
import time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cli import follow
from cli.follow import Uploaded
from cli.screen import Screen
from localcloud import __main__ as command
from localcloud import demo, samples
from localcloud.cloud import DEFAULT_PORTS
from localcloud.processes import LocalCloudError
from shared.ledger import FileRecord, FileState, Source

STEPS = [FileState.LANDED, FileState.LAUNCHED, FileState.CLASSIFIED, FileState.PUBLISHED]
MOMENT = datetime(2026, 11, 22, tzinfo=UTC)
CLOUD: Any = SimpleNamespace(check=lambda: None, logs=Path("logs"))
Find = Callable[[str, str], Any]


def record(name: str, state: FileState = FileState.PUBLISHED, reason: str | None = None) -> FileRecord:
    return FileRecord(
        source_id=name,
        version="version",
        source=Source(container="posts", name=name, etag="e", last_modified=MOMENT, size=1),
        state=state,
        sequence=1,
        file_day=date(2026, 11, 22),
        reason=reason,
        counted=7,
        times={"seen": MOMENT, state.value: MOMENT + timedelta(seconds=2)},
    )


def services_that_find(find: Find) -> Any:
    settings = SimpleNamespace(queues=["a", "b"])
    queue = SimpleNamespace(length=lambda: 0)
    return SimpleNamespace(settings=settings, queue=lambda _: queue, ledger=SimpleNamespace(find=find))


def screen_on(terminal: bool) -> tuple[Screen, io.StringIO]:
    output = io.StringIO()
    return Screen(Console(file=output, force_terminal=terminal, width=100, highlight=False)), output


def named(count: int) -> list[Uploaded]:
    return [Uploaded(f"posts-{number}.parquet", f"posts-{number}.parquet", "version") for number in range(count)]


class TestWaiting:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        """A clock for the wait for files: it advances only in `sleep`, and where a test sets it."""
        clock = SimpleNamespace(now=0.0, slept=0.0)

        def sleep(seconds: float) -> None:
            clock.now += seconds
            clock.slept += seconds

        monkeypatch.setattr(follow, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
        return clock

    def wait(self, clock: SimpleNamespace, every: float, stops_after: int) -> list[FileRecord]:
        """Wait for two files; one of them advances by a step every `every` seconds, `stops_after` steps in all."""
        files = named(2)

        def find(source: str, _: str) -> FileRecord | None:
            steps = min(int(clock.now / every), stops_after)
            its_steps = (steps + (source == files[0].source_id)) // 2
            return record(source, STEPS[its_steps - 1]) if its_steps else None

        return demo.wait(CLOUD, services_that_find(find), files, screen_on(False)[0])

    def test_files_that_make_progress_are_awaited_beyond_the_time_limit(self, clock: SimpleNamespace) -> None:
        every = demo.PATIENCE_SECONDS - 1
        assert [record.state for record in self.wait(clock, every, 8)] == [FileState.PUBLISHED] * 2
        assert clock.now > 7 * every

    def test_files_without_progress_end_the_wait_with_an_error(self, clock: SimpleNamespace) -> None:
        with pytest.raises(LocalCloudError, match=r"nothing happened for 300 s to posts-.*the logs are in logs"):
            self.wait(clock, demo.PATIENCE_SECONDS - 1, 5)

    def test_following_many_files_takes_a_small_part_of_the_time(self, clock: SimpleNamespace) -> None:
        looks: list[str] = []

        def find(source: str, _: str) -> FileRecord:
            looks.append(source)
            clock.now += 0.01
            return record(source, STEPS[min(len(looks) // 150, 3)])

        demo.wait(CLOUD, services_that_find(find), named(100), screen_on(False)[0])
        assert clock.slept > 0.7 * clock.now


class TestProgress:
    def followed(self, count: int, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> str:
        """The output while `count` files are followed, each of which is published at the first look."""
        monkeypatch.setattr(demo, "PLAIN_LINE_SECONDS", 0)
        screen, output = screen_on(terminal)
        files = named(count)
        demo.wait(CLOUD, services_that_find(lambda source, _: record(source)), files, screen)
        return output.getvalue()

    def test_many_files_are_shown_in_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shown = self.followed(76, True, monkeypatch)
        assert "76 of 76 published" in shown
        assert ".parquet" not in shown
        assert "\n" not in shown

    def test_a_single_file_is_shown_with_its_name_and_state(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "posts-0.parquet: published" in self.followed(1, True, monkeypatch)

    def test_without_a_terminal_a_line_is_written_at_intervals(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lines = self.followed(3, False, monkeypatch).splitlines()
        assert lines == [f"{number} of 3 published" for number in (1, 2, 3)]
        monkeypatch.setattr(demo, "PLAIN_LINE_SECONDS", 1e9)
        screen, output = screen_on(False)
        demo.wait(CLOUD, services_that_find(lambda source, _: record(source)), named(3), screen)
        assert output.getvalue() == ""

    def test_quarantined_and_failed_files_are_counted(self) -> None:
        states = [
            FileState.PUBLISHED,
            FileState.LANDED,
            FileState.QUARANTINED,
            FileState.PUBLISHED,
            FileState.FAILED,
            FileState.QUARANTINED,
        ]
        assert demo.how_far(7, states) == "2 of 7 published, 2 quarantined, 1 failed"


class TestEnd:
    def end(self, records: list[FileRecord], monkeypatch: pytest.MonkeyPatch) -> list[str]:
        monkeypatch.setattr(demo, "wait", lambda *_: records)
        screen, output = screen_on(False)
        demo._follow(CLOUD, services_that_find(lambda *_: None), [], time.monotonic(), screen)
        return output.getvalue().splitlines()

    def test_only_the_last_few_of_many_files_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lines = self.end([record(f"posts-{number}.parquet") for number in range(76)], monkeypatch)
        assert lines[0] == "76 of 76 published"
        names = [line.split(":")[0].strip() for line in lines[1:]]
        assert names == [f"posts-{number}.parquet" for number in (73, 74, 75)]

    def test_the_demo_fails_if_files_are_not_published_and_names_a_few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        bad = [record(f"bad-{number}.parquet", FileState.QUARANTINED, "no Parquet file") for number in range(5)]
        with pytest.raises(LocalCloudError) as failed:
            self.end([record("good.parquet"), *bad], monkeypatch)
        assert str(failed.value).startswith("bad-0.parquet is quarantined: no Parquet file; bad-1.parquet is")
        assert "bad-3" not in str(failed.value)
        assert "and 2 more" in str(failed.value)


def test_the_demo_says_that_its_posts_are_made_up() -> None:
    screen, output = screen_on(False)
    name, data = demo.sample_day(screen)
    assert "posts of this demo are made up" in output.getvalue()
    assert name == f"posts-{datetime.now(UTC).date()}.parquet"
    assert data.startswith(b"PAR1")


class TestCommand:
    @pytest.fixture(autouse=True)
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """The arguments that the command passes to the demo, which itself is not run."""
        calls: dict[str, Any] = {"aside": []}

        @contextmanager
        def cloud(state: Path, **given: Any) -> Any:
            calls["cloud"] = given
            yield SimpleNamespace(left_aside=calls["aside"])

        def run(name: str) -> Callable[..., None]:
            def note(_: Any, *given: Any) -> None:
                calls[name] = given
                calls["environment"] = dict(os.environ)

            return note

        monkeypatch.setattr(command, "LocalCloud", cloud)
        monkeypatch.setattr(demo, "sample_day", lambda _: ("posts.parquet", b""))
        monkeypatch.setattr(samples, "sample_users", lambda: None)
        monkeypatch.setattr(demo, "demo", run("demo"))
        monkeypatch.setattr(demo, "demo_dump", run("demo_dump"))
        return calls

    def demo(self, *options: str, code: int = 0) -> list[str]:
        done = CliRunner().invoke(command.app, ["demo", *options])
        assert done.exit_code == code, done.output
        return done.output.splitlines()

    @pytest.mark.parametrize("by", ["day", "month", "year", "all"])
    def test_a_dump_is_imported_by_the_given_unit(self, calls: dict[str, Any], by: str) -> None:
        self.demo("--dump", "folder", "--by", by)
        assert calls["demo_dump"][:2] == (Path("folder"), by)

    def test_a_dump_is_imported_by_month_by_default(self, calls: dict[str, Any]) -> None:
        self.demo("--dump", "folder")
        assert calls["demo_dump"][1] == "month"
        self.demo("--dump", "folder", "--by", "week", code=2)

    def test_the_unit_is_passed_to_the_import(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.undo()
        asked: list[str] = []

        def import_dump(*_: Any, by: str, **__: Any) -> Any:
            asked.append(by)
            raise LocalCloudError("enough")

        monkeypatch.setattr(demo, "Services", lambda _: None)
        monkeypatch.setattr(demo, "connect", lambda _: SimpleNamespace(close=lambda: None))
        monkeypatch.setattr(demo, "import_users", lambda *_, **__: None)
        monkeypatch.setattr(demo, "dump_line", lambda _: "")
        monkeypatch.setattr(demo, "import_dump", import_dump)
        cloud: Any = SimpleNamespace(settings_file=tmp_path)
        with pytest.raises(LocalCloudError, match="enough"):
            demo.demo_dump(cloud, tmp_path, "year", screen_on(False)[0])
        assert asked == ["year"]

    def test_the_last_lines_name_the_next_commands(self) -> None:
        first, second = (line.split("  ") for line in self.demo()[-2:])
        assert first[1] == "make up"
        assert second[1].endswith("manage.py drop FILE")

    def test_the_default_ports_are_preferred(self, calls: dict[str, Any]) -> None:
        self.demo()
        assert calls["cloud"]["preferred"] == DEFAULT_PORTS

    def test_the_demo_ignores_addresses_in_the_environment_too(
        self, calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("os.environ", {**os.environ, "POSTS_STORAGE": "elsewhere"})
        calls["aside"] = ["POSTS_STORAGE"]
        self.demo()
        assert "POSTS_STORAGE" not in calls["environment"]

    def test_a_missing_file_is_reported_before_anything_starts(self, calls: dict[str, Any]) -> None:
        (line,) = self.demo("--posts", "no-such.parquet", code=1)
        assert line == "localcloud: no-such.parquet is missing or not a file"
        assert "cloud" not in calls
