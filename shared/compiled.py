"""Loops over bytes and features, compiled to machine code.

The first call compiles for some seconds and keeps the result in `__pycache__` (or NUMBA_CACHE_DIR, or the user's cache
where that cannot be written); later processes load it in milliseconds. A cached result is renewed when its function's
own file changes: so compiled functions that call each other stand in one file, and whoever changes this one clears the
caches (a new installation has new files and needs nothing).

`load_word` and `store_word` move eight bytes at once, from and to anywhere: a loop over words is several times as fast
as one over bytes (4.1 to 0.6 ns a byte for text with references in it). Neither checks a bound.
"""

import os
import platform
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.extending import intrinsic

from shared.arrays import Bytes

EACH_BYTE, HIGH_BITS, LOW_BITS = (np.uint64(byte * 0x0101010101010101) for byte in (0x01, 0x80, 0x7F))
"""One byte eight times. The first, multiplied by a byte, repeats that byte; the others mask the highest bit of every
byte, and all bits below it."""

_Function = TypeVar("_Function", bound=Callable[..., object])
_WORD, _INT, _BYTE_POINTER = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()


def compiled(function: _Function) -> _Function:
    """The function as machine code that runs without the interpreter's lock."""
    return cast("_Function", numba.njit(function, cache=True, nogil=True))


def inlined(function: _Function) -> _Function:
    """The same for a function that compiled ones call often.

    A call costs two atomic operations on the reference count of each array that is passed, some 10 ns each.
    """
    return cast("_Function", numba.njit(function, cache=True, nogil=True, forceinline=True, _nrt=False))  # type: ignore[call-overload]


def _address(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    byte = builder.gep(context.make_array(kind)(context, builder, array).data, [at])
    return builder.bitcast(byte, _WORD.as_pointer())


def _load_word(_: Any, array: Any, at: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_address(context, builder, signature.args[0], *arguments), align=1)

    return types.uint64(array, at), code


def _store_word(_: Any, array: Any, at: Any, word: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _address(context, builder, signature.args[0], *arguments[:2]), align=1)
        return context.get_dummy_value()

    return types.void(array, at, word), code


def _prefetch(_: Any, elements: Any, at: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        element = builder.gep(array.data, [arguments[1]])
        line = builder.bitcast(element, _BYTE_POINTER)
        kind = ir.FunctionType(ir.VoidType(), [_BYTE_POINTER, _INT, _INT, _INT])
        ask = builder.module.declare_intrinsic("llvm.prefetch", [_BYTE_POINTER], kind)
        builder.call(ask, [line, _INT(0), _INT(3), _INT(1)])  # to read, into the nearest cache, data
        return context.get_dummy_value()

    return types.void(elements, at), code


def _trailing_zeros(_: Any, word: Any) -> Any:  # noqa: ARG001
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), code


def _from_half(_: Any, bits: Any) -> Any:  # noqa: ARG001
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        if _converts_halves():
            return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())
        # Moved to where a float32 has them, exponent and fraction stand for 2 ** -112 times the number.
        wide = builder.zext(arguments[0], _INT)
        sign = builder.shl(builder.and_(wide, _INT(0x8000)), _INT(16))
        moved = builder.or_(sign, builder.shl(builder.and_(wide, _INT(0x7FFF)), _INT(13)))
        return builder.fmul(builder.bitcast(moved, ir.FloatType()), ir.FloatType()(2.0**112))

    return types.float32(types.uint16), code


def _converts_halves() -> bool:
    """Whether the processor has an instruction for it; where not, LLVM calls a library that may be missing."""
    if platform.machine() in ("aarch64", "arm64"):
        return True
    return os.environ.get("NUMBA_CPU_NAME") is None and bool(get_host_cpu_features().get("f16c"))


load_word = cast("Callable[[Bytes, int], np.uint64]", intrinsic(_load_word))
"""The eight bytes from `at` on, the first one lowest."""

store_word = cast("Callable[[Bytes, int, np.uint64], None]", intrinsic(_store_word))
"""Write eight bytes from `at` on, the lowest one first."""

prefetch = cast("Callable[[npt.NDArray[Any], int], None]", intrinsic(_prefetch))
"""Ask for the element at `at` (counted from the first one, whatever the shape), which will be read some loops later.

A processor waits for memory 10 to 100 ns; asked in time, it does not. Where there is no such element nothing happens.
"""

trailing_zeros = cast("Callable[[np.uint64], int]", intrinsic(_trailing_zeros))
"""How many of the lowest bits are 0; 64 when all are."""

from_half = cast("Callable[[np.uint16], np.float32]", intrinsic(_from_half))
"""The number that the bits of a finite float16 stand for."""
