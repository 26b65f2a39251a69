"""Shows the logs of the parts as one stream; each line begins with the part's name."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path


class LogFollower:
    """Follows every `*.log` of a folder, including new files. `show` gets one line at a time."""

    def __init__(self, folder: Path, show: Callable[[str], None]) -> None:
        self._folder = folder
        self._show = show
        self._shown: defaultdict[Path, int] = defaultdict(int)

    def show_new_lines(self) -> None:
        """Show the complete lines written since the last call; an incomplete line is shown later."""
        for path in sorted(self._folder.glob("*.log")):
            if path.stat().st_size <= self._shown[path]:
                continue
            with path.open("rb") as file:  # files are not kept open: each run of a job has one
                file.seek(self._shown[path])
                lines, newline, _ = file.read().rpartition(b"\n")
            self._shown[path] += len(lines) + len(newline)
            for line in lines.decode(errors="replace").splitlines():
                self._show(f"{path.stem:>11} | {line}")
