"""The weeks in the names of paths."""

import pytest

from shared import paths


@pytest.mark.parametrize(
    ("week", "weeks", "before"),
    [
        ("2026-W47", 0, "2026-W47"),
        ("2026-W47", 4, "2026-W43"),
        ("2027-W01", 1, "2026-W53"),
        ("2026-W01", 1, "2025-W52"),
        ("2027-W02", 60, "2025-W47"),
    ],
)
def test_earlier_weeks_are_right_across_years(week: str, weeks: int, before: str) -> None:
    assert paths.weeks_before(week, weeks) == before
