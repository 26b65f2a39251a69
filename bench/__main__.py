"""`python -m bench [NAME …]`: run benchmarks; without a name, all of them."""

import importlib
import sys
from pathlib import Path

NAMES = sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py") if file.stem != "common")


def main(arguments: list[str]) -> int:
    """Run one benchmark with its arguments, or every benchmark."""
    if arguments and not arguments[0].startswith("-"):
        name, *rest = arguments
        if name not in NAMES:
            print(f"there is no benchmark {name}; there are {', '.join(NAMES)}", file=sys.stderr)
            return 2
        importlib.import_module(f"bench.{name}").main(rest)
        return 0
    for name in NAMES:
        importlib.import_module(f"bench.{name}").main(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
