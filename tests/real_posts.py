"""The folder of real posts, which the project does not contain: see docs/real-posts.md."""

import os
from collections.abc import Callable
from pathlib import Path

from tests.places import SAMPLES

FOLDER = Path(os.environ.get("REAL_POSTS") or SAMPLES / "data")
"""The folder is beside the project, unless the variable REAL_POSTS names another one."""

RealPosts = Callable[[str], Path]
"""The fixture `real_posts`: returns a file of the folder by its name; the test is skipped if the file is missing."""


def what_is_missing(name: str) -> str | None:
    """How to get a missing file of the folder; None if the file exists."""
    file = FOLDER / name
    return None if file.is_file() else f"real posts are missing, {file}: docs/real-posts.md says how to get them"
