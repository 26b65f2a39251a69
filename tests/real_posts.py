"""Where real posts lie, which the project does not contain: see docs/real-posts.md."""

import os
from collections.abc import Callable
from pathlib import Path

from tests.places import SAMPLES

FOLDER = Path(os.environ.get("REAL_POSTS") or SAMPLES / "data")
"""Beside the project, unless the variable REAL_POSTS names another folder."""

RealPosts = Callable[[str], Path]
"""The fixture `real_posts`: a file of the folder by its name; the test is skipped where it is missing."""


def what_is_missing(name: str) -> str | None:
    """How to get a file of the folder; None where it is there."""
    file = FOLDER / name
    return None if file.is_file() else f"real posts are missing, {file}: docs/real-posts.md says how to get them"
