"""What the ids of a file tell before its texts are read."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq

from classify.posts import clean
from classify.posts.clean import ANSWER, QUESTION
from classify.posts.rowgroups import batches
from shared.arrays import Flags, Int64s, among


class Census:
    """What the ids alone tell: which rows count, and whose answers the file holds."""

    def __init__(self, file: pq.ParquetFile) -> None:
        ids, parents, asks, answers, has_id = (np.empty(file.metadata.num_rows, kind) for kind in ("i8", "i8", *"???"))
        first = 0
        for batch in batches(file, ("Id", "PostTypeId", "ParentId")):
            rows = slice(first, first + batch.num_rows)
            found = clean.whole_numbers(batch, "Id")
            ids[rows], has_id[rows] = clean.filled(found), np.asarray(found.is_valid())
            types = clean.filled(clean.whole_numbers(batch, "PostTypeId"))
            asks[rows], answers[rows] = types == QUESTION, types == ANSWER
            parents[rows] = clean.filled(clean.whole_numbers(batch, "ParentId"))
            first += batch.num_rows
        self.repeated = _repeated(ids, has_id)
        """Numbers of the rows whose Id comes again further down: the last one counts."""
        asks &= has_id
        answers &= parents != 0
        asks[self.repeated] = answers[self.repeated] = False
        # np.unique would make a hash table of 60 bytes an Id, which is never given back.
        self.questions = np.sort(ids[asks])
        """Ids of the file's questions, ascending."""
        asked = np.sort(parents[answers])
        elsewhere = ~among(asked, self.questions)
        elsewhere[1:] &= asked[1:] != asked[:-1]
        self.parents_elsewhere = asked[elsewhere]

    def counts(self, first: int, rows: int) -> Flags:
        """Which of `rows` rows from row `first` on count."""
        low, high = np.searchsorted(self.repeated, [first, first + rows])
        counted = np.ones(rows, bool)
        counted[self.repeated[low:high] - first] = False
        return counted


def _repeated(ids: Int64s, has_id: Flags) -> Int64s:
    ordered = np.sort(ids[has_id])
    if not (ordered[1:] == ordered[:-1]).any():
        return np.empty(0, np.int64)  # a slice of `ordered` would keep all of it
    rows = np.flatnonzero(has_id)
    _, from_the_end = np.unique(ids[rows][::-1], return_index=True)
    return np.setdiff1d(rows, rows[len(rows) - 1 - from_the_end], assume_unique=True)
