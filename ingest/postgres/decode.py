"""Decodes values of COPY BINARY to Arrow arrays, one column of some thousands of rows at a time.

Source: the `*_send` functions of PostgreSQL's types.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shared.arrays import Flags, Int64s

EPOCH_DAYS = 10_957  # 1970-01-01 to 2000-01-01, from which Postgres counts
EPOCH_MICROSECONDS = EPOCH_DAYS * 86_400_000_000
FIRST_DAY, LAST_DAY = -730_119, 2_921_939  # 0001-01-01 and 9999-12-31, counted from 2000-01-01
FIRST_MICROSECOND, LAST_MICROSECOND = FIRST_DAY * 86_400_000_000, (LAST_DAY + 1) * 86_400_000_000 - 1


@dataclass(frozen=True)
class Cells:
    """One column of some rows: the values in wire form, and which of them are not NULL (None: no value is NULL).

    `starts` and `ends` are the bounds of each value in `buffer`; `fixed` holds the values of a fixed-width column,
    undefined at a NULL.
    """

    buffer: bytes | bytearray
    starts: Int64s
    ends: Int64s
    valid: Flags | None
    fixed: NDArray[Any]


NO_VALUES = np.empty(0, np.uint8)
Irregularities = Counter[tuple[str, str]]
"""How many irregular values were seen, by (column, "infinity" | "out_of_range" | "nan")."""
Decode = Callable[[Cells, str, pa.DataType, Irregularities], pa.Array]
"""Takes cells, the column's name and Arrow type, and the counter of irregular values; returns an array."""


@dataclass(frozen=True)
class Bounds:
    """The first and last day or microsecond, since 2000-01-01, that the lake accepts; `epoch` is the offset to 1970."""

    first: int
    last: int
    epoch: int


DAYS = Bounds(FIRST_DAY, LAST_DAY, EPOCH_DAYS)
MICROSECONDS = Bounds(FIRST_MICROSECOND, LAST_MICROSECOND, EPOCH_MICROSECONDS)


def native(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(values.dtype.newbyteorder("="))


def _bitmap(mask: Flags | None) -> pa.Buffer | None:
    return None if mask is None else pa.py_buffer(np.packbits(mask, bitorder="little"))


def _array(arrow: pa.DataType, values: NDArray[Any], valid: Flags | None) -> pa.Array:
    return pa.Array.from_buffers(arrow, len(values), [_bitmap(valid), pa.py_buffer(values)])


def numbers(cells: Cells, _: str, arrow: pa.DataType, __: Irregularities) -> pa.Array:
    """Values of a fixed width that need no conversion."""
    return _array(arrow, native(cells.fixed), cells.valid)


def moments(cells: Cells, name: str, arrow: pa.DataType, irregularities: Irregularities, *, bounds: Bounds) -> pa.Array:
    """Days or microseconds since 2000-01-01; the smallest and largest integer mean -infinity and infinity."""
    values, valid = native(cells.fixed), cells.valid
    ends = np.iinfo(values.dtype)
    outside = (values < bounds.first) | (values > bounds.last)
    if valid is not None:
        outside &= valid
    if count := int(np.count_nonzero(outside)):
        infinite = int(np.count_nonzero(outside & ((values == ends.min) | (values == ends.max))))
        irregularities[name, "infinity"] += infinite
        irregularities[name, "out_of_range"] += count - infinite
        valid = ~outside if valid is None else valid & ~outside
    return _array(arrow, values + values.dtype.type(bounds.epoch), valid)


def flags(cells: Cells, _: str, arrow: pa.DataType, __: Irregularities) -> pa.Array:
    """Booleans."""
    values = cells.fixed != 0
    return pa.Array.from_buffers(arrow, len(values), [_bitmap(cells.valid), _bitmap(values)])


def strings(cells: Cells, _: str, arrow: pa.DataType, __: Irregularities) -> pa.Array:
    """Text or bytes: Arrow reads the buffer as alternating values and gaps, and copies only the values.

    A single row is not copied: values of many megabytes arrive in this way.
    """
    rows = len(cells.starts)
    if rows == 1:
        offsets = np.array([cells.starts[0], cells.ends[0]], np.int32)
        return pa.Array.from_buffers(
            arrow, 1, [_bitmap(cells.valid), pa.py_buffer(offsets), pa.py_buffer(cells.buffer)]
        )
    offsets = np.empty(2 * rows, np.int32)
    offsets[0::2], offsets[1::2] = cells.starts, cells.ends
    alternating = pa.Array.from_buffers(arrow, 2 * rows - 1, [None, pa.py_buffer(offsets), pa.py_buffer(cells.buffer)])
    values = alternating.take(_even(rows))
    if cells.valid is None:
        return values
    return pa.Array.from_buffers(arrow, rows, [_bitmap(cells.valid), *values.buffers()[1:]])


@lru_cache(maxsize=2)
def _even(count: int) -> pa.Array:
    return _array(pa.int32(), np.arange(0, 2 * count, 2, dtype=np.int32), None)  # pa.array would import pandas


def decimals(cells: Cells, name: str, arrow: pa.DataType, irregularities: Irregularities) -> pa.Array:
    """Decimals from their text; NaN becomes NULL and is counted."""
    text = strings(cells, name, pa.string(), irregularities)
    nan = pc.equal(text, "NaN")
    if count := pc.sum(nan).as_py():
        irregularities[name, "nan"] += count
        text = pc.if_else(nan, None, text)
    return text.cast(arrow)
