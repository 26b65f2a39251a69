"""Fixtures for all folders of tests, and the summary of skipped tests at the end of a session."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dumps import write_dump
from tests.listeners.host import MISSING
from tests.real_posts import FOLDER, RealPosts, what_is_missing

pytest_plugins = ["tests.guard", "tests.localcloud_fixtures", "tests.postgres_fixtures"]


@pytest.fixture(autouse=True)
def _log_records_as_before() -> Iterator[None]:
    """Entry points set up the logs of their whole process; the next test begins with the records that Python makes."""
    before = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(before)


@pytest.fixture(scope="session")
def real_posts() -> RealPosts:
    def file(name: str) -> Path:
        if missing := what_is_missing(name):
            pytest.skip(missing)
        return FOLDER / name

    return file


@pytest.fixture(scope="session")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated data dump in a folder named after its site; tests must not change it."""
    return write_dump(tmp_path_factory.mktemp("dumps") / "raspberrypi.meta")


@pytest.hookimpl(wrapper=True, tryfirst=True)  # after the output of all other plugins
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """One line with the numbers of skipped tests, because a session without them proves less."""
    yield
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    posts = sum("real posts are missing" in why for why in skipped)
    listeners = sum(MISSING in why for why in skipped)
    if skipped:
        terminalreporter.write_line(
            f"{len(skipped)} tests were skipped, {posts} of them without real posts (docs/real-posts.md), "
            f"{listeners} without the real listeners (docs/real-listeners.md)",
            yellow=True,
        )


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than cores, because tests of processes wait a third of their time."""
    return (os.cpu_count() or 1) + 1
