"""Where the project lies, and what may lie beside it."""

from pathlib import Path

PROJECT = Path(__file__).parents[1]
SAMPLES = PROJECT.parent / "shared"
"""Real posts and sample files, where somebody has them; tests that need them say so where they are absent."""
