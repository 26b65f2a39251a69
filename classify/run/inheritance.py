"""Answers that take over the topics of their questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from tempfile import TemporaryFile
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from classify.posts import clean
from classify.posts.clean import ANSWER, Posts
from classify.run.census import Census
from shared.arrays import Flags, Int32s, Int64s, among, places

DAY_BITS = 22
"""Enough bits for the days of the years 1 to 9999."""
HEIRS = pa.schema({"Id": pa.int64(), "ParentId": pa.int64(), "day": pa.int32()})


class Parents:
    """The topics of questions by Id: those of earlier files from the start, those of this file as they are decided."""

    def __init__(self, census: Census, earlier: pa.Table, names: Sequence[str]) -> None:
        self._names = pa.array(names)
        numbers = pc.index_in(earlier["topic"], self._names).combine_chunks()  # null for a topic unknown to the model
        there = np.asarray(numbers.is_valid())
        known, topics = np.asarray(earlier["Id"])[there], np.asarray(numbers.drop_null(), np.int32)
        places = np.searchsorted(census.questions, known)
        self._ids = np.insert(census.questions, places, known) if len(known) else census.questions
        guessed = np.asarray(earlier["guessed"])[there]
        self._topics = np.insert(np.full(len(census.questions), -1, np.int32), places, topics)
        self._guessed = np.insert(np.zeros(len(census.questions), bool), places, guessed)
        self._questions = census.questions

    def known(self, parents: Int64s) -> Flags:
        """Which of these questions have a topic, or will have one when the whole file is read."""
        return among(parents, self._ids)

    def learn(self, ids: Int64s, topics: Int32s, guessed: Flags) -> None:
        places = self._places(ids)
        self._topics[places], self._guessed[places] = topics, guessed

    def topics(self, parents: Int64s) -> Int32s:
        """The topics of known questions."""
        return np.asarray(self._topics[self._places(parents)] if len(parents) else self._topics[:0], np.int32)

    def guessed(self, parents: Int64s) -> Flags:
        """For which of these known questions the model decided the topic."""
        return self._guessed[self._places(parents)] if len(parents) else self._guessed[:0]

    def of_day(self, parents: Int64s, days: Int32s) -> Int64s:
        """A number for each pair of a known question and a day."""
        return self._places(parents) << DAY_BITS | (days.astype(np.int64) - clean.FIRST_DAY)

    def bundles(self, numbers: Int64s) -> tuple[Int32s, Int32s, Int64s]:
        """For each distinct number from `of_day`: its day, its topic, and how often it occurs. Sorts `numbers` in
        place."""
        numbers.sort()
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        days = (numbers[starts] & (1 << DAY_BITS) - 1) + clean.FIRST_DAY
        answers = np.diff(starts, append=len(numbers))
        return days.astype(np.int32), self._topics[numbers[starts] >> DAY_BITS], answers

    def of_this_file(self) -> pa.Table:
        topics = pa.DictionaryArray.from_arrays(self.topics(self._questions), self._names)
        return pa.table({"Id": self._questions, "topic": topics, "guessed": self.guessed(self._questions)})

    def _places(self, ids: Int64s) -> Int64s:
        return places(ids, self._ids)


class Heirs:
    """Answers that inherit, kept until all topics are known: 20 bytes each in a temporary file, none in memory."""

    def __enter__(self) -> Self:
        self._file = TemporaryFile()
        self._writer = pa.ipc.new_stream(self._file, HEIRS)
        return self

    def __exit__(self, *failure: object) -> None:
        self._file.close()

    def keep(self, posts: Posts) -> None:
        columns = [pa.array(posts.ids, mask=~posts.has_id), pa.array(posts.parents), pa.array(posts.days)]
        self._writer.write_batch(pa.record_batch(columns, HEIRS))

    def kept(self) -> Iterator[Posts]:
        """The answers that were kept, with null texts."""
        self._writer.close()
        self._file.seek(0)
        for batch in pa.ipc.open_stream(self._file):
            rows, ids, nothing = batch.num_rows, batch["Id"], pa.nulls(batch.num_rows)
            yield Posts(
                ids=clean.filled(ids),
                has_id=np.asarray(ids.is_valid()),
                types=np.full(rows, ANSWER),
                parents=np.asarray(batch["ParentId"]),
                days=np.asarray(batch["day"]),
                misdated=np.zeros(rows, bool),
                titles=nothing,
                bodies=nothing,
                tags=nothing,
            )
