"""Hosted functions for unit tests, made without an app."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from localcloud.host.app import HostedFunction, load_functions


def hosted(call: Callable[..., Any], trigger: dict[str, Any], **changes: Any) -> HostedFunction:
    """A function `f` whose trigger parameter is `value`."""
    known: dict[str, Any] = {
        "name": "f",
        "directory": Path(),
        "bindings": (trigger,),
        "parameter_type": None,
        "deferred": False,
        "wants_context": False,
        "returns_value": False,
    }
    return HostedFunction(call=call, trigger={"name": "value", **trigger}, **(known | changes))


@contextmanager
def imported(source: str, folder: Path, name: str, environ: dict[str, str]) -> Iterator[list[HostedFunction]]:
    """The functions of an app whose source is given as text; the app is unloaded afterwards."""
    file = folder / f"{name}.py"
    file.write_text(source)
    path = list(sys.path)
    try:
        yield load_functions(file, environ)
    finally:
        sys.path[:] = path
        sys.modules.pop(name, None)
