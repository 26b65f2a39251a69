"""What arrays hold, by name, and looking numbers up in sorted ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
TopicNumbers = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]


def places(ids: Ids, known: Ids) -> Ids:
    """Where these are among the known ones, which are ascending; where one is not, any place."""
    return np.minimum(np.searchsorted(known, ids), len(known) - 1)


def among(ids: Ids, known: Ids) -> npt.NDArray[np.bool_]:
    """Which of these are known ones, which are ascending."""
    return known[places(ids, known)] == ids if len(known) else np.zeros(len(ids), bool)
