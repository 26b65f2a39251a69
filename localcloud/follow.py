"""Shows the logs of the parts as one stream, each line with the part's name before it."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self


class LogFollower:
    """Follows every `*.log` of a folder, also files that come later. `show` gets a line at a time."""

    def __init__(self, folder: Path, show: Callable[[str], None]) -> None:
        self._folder = folder
        self._show = show
        self._open: dict[Path, BinaryIO] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._open.values():
            file.close()

    def show_new_lines(self) -> None:
        """Show the whole lines that were written since the last call; the beginning of a line waits for its end."""
        for path in sorted(self._folder.glob("*.log")):
            if path not in self._open:
                self._open[path] = path.open("rb")
            file = self._open[path]
            start = file.tell()
            lines, _, unfinished = file.read().rpartition(b"\n")
            file.seek(-len(unfinished), 1)
            if file.tell() > start:
                for line in lines.decode(errors="replace").splitlines():
                    self._show(f"{path.stem:>11} | {line}")
