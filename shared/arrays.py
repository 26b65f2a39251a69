"""The types of arrays by what their elements are, and looking numbers up in sorted arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]
Hashes = npt.NDArray[np.uint64]
Halves = npt.NDArray[np.float16]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def places(ids: Int64s, known: Int64s) -> Int64s:
    """The index of each id in `known`, which is ascending; an arbitrary index for an id that is not in it."""
    return np.minimum(np.searchsorted(known, ids), len(known) - 1)


def among(ids: Int64s, known: Int64s) -> Flags:
    """Which of the ids are in `known`, which is ascending."""
    return known[places(ids, known)] == ids if len(known) else np.zeros(len(ids), bool)
