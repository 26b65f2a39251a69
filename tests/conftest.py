"""Fixtures every folder of tests may use."""

from pathlib import Path

import pytest

pytest_plugins = ["tests.guard", "tests.localcloud_fixtures", "tests.postgres_fixtures"]

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real posts beside the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real posts are needed for this test: {SHARED_DATA} is not there")
    return SHARED_DATA
