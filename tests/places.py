"""The project's folder, and the data that may be beside it."""

from pathlib import Path

PROJECT = Path(__file__).parents[1]
SAMPLES = PROJECT.parent / "shared"
"""Optional real posts and sample files; tests that need missing ones are skipped with a reason."""
