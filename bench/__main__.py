"""`python -m bench [NAME …]`: run benchmarks; without a name, all of them. `--list` names them, `--check` ends with 1
when a figure breaks its bound; other options are those of a benchmark, see `python -m bench NAME --help`."""

import ast
import importlib
import sys
from pathlib import Path

MINUTES = {"hostile": 1, "pipeline": 1, "scale": 3, "dump": 4, "copy": 6, "landing": 10, "topics": 60}
"""About how long each takes on two cores that nobody else wants."""


def main(arguments: list[str]) -> int:
    """Run one benchmark with its arguments, or every benchmark; the exit code is 1 when one of theirs is."""
    if arguments == ["--list"]:
        print(listing())
        return 0
    if arguments and not arguments[0].startswith("-"):
        name, *rest = arguments
        if name not in MINUTES:
            print(f"there is no benchmark {name}; there are:\n{listing()}", file=sys.stderr)
            return 2
        return run(name, rest)
    if "--json" not in arguments:
        print(f"{listing()}\nOne alone: python -m bench NAME (in its environment: .venv/bin/python)\n", flush=True)
    return max([run(name, arguments) for name in MINUTES])


def run(name: str, arguments: list[str]) -> int:
    code: int = importlib.import_module(f"bench.{name}").main(arguments)
    return code


def listing() -> str:
    """A line for each benchmark: its name, about how long it takes, and what it measures, without importing it."""
    lines = []
    for name, minutes in MINUTES.items():
        module = ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
        about = (ast.get_docstring(module) or "").partition(": ")[2].partition("\n")[0]
        lines.append(f"{name:10}about {minutes:2} min  {about}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
