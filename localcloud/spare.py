"""A Python interpreter that has imported what jobs need before there is one: `python -m localcloud.spare ORDER MODULE…`

It imports the modules, calls `warm_up` of those that have one, and waits for a file: a JSON list of a module and its
arguments, which it then runs as `python -m MODULE ARGUMENT…` would, in this very process.
"""

import json
import runpy
import sys
import time
from importlib import import_module
from pathlib import Path


def main(order: Path, modules: list[str]) -> None:
    for name in modules:
        getattr(import_module(name), "warm_up", lambda: None)()
    while not order.exists():
        time.sleep(0.01)
    module, *arguments = json.loads(order.read_text())
    order.unlink()
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
