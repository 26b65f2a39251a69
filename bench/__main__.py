"""`python -m bench [NAME …]`: run one benchmark, or all without a name. `--list` lists them; with `--check` the exit
code is 1 if a figure breaks its bound. `python -m bench NAME --help` shows the options of a benchmark."""

import ast
import importlib
import sys
from pathlib import Path

MINUTES = {
    "hostile": 1,
    "pipeline": 1,
    "scale": 3,
    "dump": 4,
    "copy": 6,
    "landing": 10,
    "load": 15,
    "faults": 20,
    "topics": 60,
}
"""The approximate duration of each on two idle cores."""


def main(arguments: list[str]) -> int:
    """Run one benchmark with its arguments, or every benchmark; returns the highest exit code, 2 for a wrong name."""
    if arguments == ["--list"]:
        print(listing())
        return 0
    if arguments and not arguments[0].startswith("-"):
        name, *rest = arguments
        if name not in MINUTES:
            print(f"unknown benchmark {name}; the benchmarks are:\n{listing()}", file=sys.stderr)
            return 2
        return run(name, rest)
    if "--json" not in arguments:
        print(f"{listing()}\nOnly one: python -m bench NAME (in the environment: .venv/bin/python)\n", flush=True)
    return max([run(name, arguments) for name in MINUTES])


def run(name: str, arguments: list[str]) -> int:
    code: int = importlib.import_module(f"bench.{name}").main(arguments)
    return code


def listing() -> str:
    """A line for each benchmark: its name, approximate duration and purpose. Does not import the benchmarks."""
    lines = []
    for name, minutes in MINUTES.items():
        module = ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
        about = (ast.get_docstring(module) or "").partition(": ")[2].partition("\n")[0]
        lines.append(f"{name:10}about {minutes:2} min  {about}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
