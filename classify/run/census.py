"""The first pass over a file: it reads the Ids, PostTypeIds and ParentIds, before the texts are read."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq

from classify.posts import clean
from classify.posts.clean import ANSWER, QUESTION
from classify.posts.repeats import repeated_rows
from classify.posts.rowgroups import batches
from shared.arrays import Flags, among


class Census:
    """The result of the first pass: which rows count, and to which questions the file holds answers."""

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
        self.repeated = repeated_rows(ids, has_id)
        """Numbers of the rows whose Id a later row repeats: only the last one counts."""
        asks &= has_id
        answers &= parents != 0
        asks[self.repeated] = answers[self.repeated] = False
        # np.unique would make a hash table of 60 bytes per Id, whose memory is never given back.
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
