"""Loops over bytes and features, compiled to machine code.

The first call compiles for some seconds and keeps the result in `__pycache__` (or NUMBA_CACHE_DIR, or the user's cache
where that cannot be written); later processes load it in milliseconds. Compiled functions that call each other stand in
one file, because the cache of one is renewed only when its own file changes.
"""

from collections.abc import Callable
from typing import TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., object])


def compiled(function: _Function) -> _Function:
    """The function as machine code that runs without the interpreter's lock."""
    return cast("_Function", numba.njit(function, cache=True, nogil=True))
