"""Repeated Ids: of several rows with one Id, only the last counts."""

import numpy as np

from shared.arrays import Flags, Int64s


def last_of_each(ids: Int64s) -> Flags:
    """Which rows are the last with their Id: bool [n]."""
    chosen = np.zeros(len(ids), np.bool_)
    chosen[len(ids) - 1 - np.unique(ids[::-1], return_index=True)[1]] = True
    return chosen


def repeated_rows(ids: Int64s, has_id: Flags) -> Int64s:
    """The numbers, ascending, of the rows that do not count because a later row has the same Id."""
    ordered = np.sort(ids[has_id])
    if not (ordered[1:] == ordered[:-1]).any():
        return np.empty(0, np.int64)  # a slice of `ordered` would keep the whole array in memory
    rows = np.flatnonzero(has_id)
    return rows[~last_of_each(ids[rows])]
