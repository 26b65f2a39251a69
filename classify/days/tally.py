"""What a classification adds to each day: counts by topic, and the sums from which shares are estimated.

Both engines fill a tally batch by batch. It is stored as `counts.parquet`; publishing adds up the tallies of files.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from classify.model.quantify import DayStatistics
from classify.posts.clean import ANSWER, EPOCH, QUESTION
from shared.arrays import Flags, Int32s, Int64s
from shared.errors import BadInput

if TYPE_CHECKING:
    from classify.model.model import Classified

NUMBERS = ("questions", "answers", "known", "said", "inherited", "bundled", "scored")
FRACTIONS = ("posteriors", "margins", "overlaps")
SUMS = (*NUMBERS, *FRACTIONS)
ONE = 1 << 30
"""FRACTIONS are whole multiples of 1 / ONE, so that sums are exact in any order, and a file that is replaced can be
taken out again. A day may have 2 ** 33 posts before they overflow."""

COUNTS_SCHEMA = pa.schema({"day": pa.date32(), "topic": pa.string()} | {name: pa.int64() for name in SUMS})
"""One row per day and topic. `questions` and `answers` were counted for the topic. Of them, `known` were decided by
tags (their own or their question's), `said` by the model, and `inherited` took over the topic that the model gave their
question; `bundled` sums, over these questions, the squared number of their answers of the day. `posteriors` sums the
probability of this topic over all posts of the day that the model decided. `scored` counts the posts to which the model
gives this topic, also if tags decided; `margins` and `overlaps` sum their margins and vocabulary overlaps. FRACTIONS
are in units of 1 / ONE."""

MAX_DAYS = 20_000
"""The sums of a day take 6.5 KB at 100 topics. Stack Overflow has existed for 6,600 days."""

Columns = dict[str, npt.NDArray[Any]]


def check_days(days: Collection[int]) -> None:
    """Raises BadInput when there are more than MAX_DAYS days. Days are numbered from 1970-01-01."""
    if len(days) > MAX_DAYS:
        first, last = (EPOCH + timedelta(days=found(days)) for found in (min, max))
        raise BadInput(
            f"its posts belong to more than {MAX_DAYS} days, from {first} to {last}: correct their CreationDate, or"
            " split the file"
        )


class Tally:
    """Sums by day and topic; `topics` are the model's names, `other` last."""

    def __init__(self, topics: tuple[str, ...]) -> None:
        self.topics = topics
        self._days: dict[int, int] = {}
        self._sums: Columns = {name: np.zeros((0, len(topics)), np.int64) for name in SUMS}

    def add(
        self,
        days: Int32s,
        types: Int64s,
        topics: Int32s,
        guessed: Flags | None = None,
        asked: Classified | None = None,
    ) -> None:
        """Count n posts: their days, PostTypeIds and topics [n]. `asked` is the model's result for all n, if it scored
        them.

        `guessed` [n] marks the posts that the model decided; without `asked`, those whose question it decided.
        """
        if not len(days):
            return
        found, place = np.unique(days, return_inverse=True)
        cell = place * len(self.topics) + topics
        parts = {"questions": types == QUESTION, "answers": types == ANSWER}
        if guessed is None:
            guessed = np.zeros(len(days), bool)
        parts |= {"known": ~guessed, "inherited" if asked is None else "said": guessed}
        sums = {name: self._by_cell(cell, part, len(found)) for name, part in parts.items()}
        if asked is not None:
            said = place * len(self.topics) + asked.topic
            for name, part in {"scored": None, "margins": asked.margin, "overlaps": asked.overlap}.items():
                sums[name] = self._by_cell(said, part, len(found))
            order = np.argsort(place, kind="stable")
            starts = np.searchsorted(place[order], np.arange(len(found)))
            sums["posteriors"] = np.add.reduceat((asked.posteriors * guessed[:, None])[order], starts, dtype=np.float64)
        rows = self._rows(found.tolist())
        for name, values in sums.items():
            self._sums[name][rows] += (np.rint(values * ONE) if name in FRACTIONS else values).astype(np.int64)

    def add_bundles(self, days: Int32s, topics: Int32s, answers: Int64s) -> None:
        """Add questions that the model decided: one entry per question and day, with its topic and its number of
        counted answers on that day."""
        found, place = np.unique(days, return_inverse=True)
        np.add.at(self._sums["bundled"], (self._rows(found.tolist())[place], topics), np.square(answers))

    def to_table(self) -> pa.Table:
        """A table of COUNTS_SCHEMA, sorted by day, then topic in the model's order; without rows of zeros only."""
        order = np.array(sorted(self._days, key=int), np.int32)
        rows = self._rows(order.tolist())
        sums = {name: values[rows] for name, values in self._sums.items()}
        filled = np.any([values != 0 for values in sums.values()], axis=0)
        day, topic = np.nonzero(filled)
        columns = [pa.array(order[day]).cast(pa.date32()), pa.array(self.topics).take(pa.array(topic))]
        return pa.table([*columns, *(pa.array(sums[name][filled]) for name in SUMS)], schema=COUNTS_SCHEMA)

    def add_table(self, table: pa.Table) -> None:
        """Add a table that `to_table` gave for the same topics."""
        numbers = {name: number for number, name in enumerate(self.topics)}
        topic = np.array([numbers[name] for name in table["topic"].to_pylist()], np.int64)
        days = np.asarray(table["day"].cast(pa.int32()))
        self._rows(np.unique(days).tolist())
        row = np.array([self._days[day] for day in days.tolist()], np.int64)
        for name in SUMS:
            np.add.at(self._sums[name], (row, topic), np.asarray(table[name]))

    def add_day(self, other: Tally, day: date, sign: Literal[1, -1] = 1) -> None:
        """Add what another tally of the same topics has on a day, or take it out; a day that it lacks adds nothing."""
        number = (day - EPOCH).days
        if number not in other._days:
            return
        (row,) = self._rows([number])
        for name, values in other._sums.items():
            self._sums[name][row] += sign * values[other._days[number]]

    def days(self) -> list[date]:
        """The days that have posts."""
        return [EPOCH + timedelta(days=day) for day in sorted(self._days)]

    def of(self, day: date) -> tuple[dict[str, tuple[int, int]], DayStatistics]:
        """For one of `days`: the numbers of questions and answers by topic, and the statistics."""
        row = self._days[(day - EPOCH).days]
        sums = {name: values[row] for name, values in self._sums.items()}
        counted = {
            name: (int(asked), int(answered))
            for name, asked, answered in zip(self.topics, sums["questions"], sums["answers"], strict=True)
            if asked or answered
        }
        statistics = DayStatistics(
            sums["known"],
            sums["said"],
            sums["posteriors"] / ONE,
            sums["inherited"],
            bundled=int(sums["bundled"].sum()),
            margins=float(sums["margins"].sum()) / ONE,
            overlaps=float(sums["overlaps"].sum()) / ONE,
            scored=int(sums["scored"].sum()),
            others=int(sums["scored"][-1]),
        )
        return counted, statistics

    def _by_cell(self, cell: npt.NDArray[Any], values: npt.NDArray[Any] | None, days: int) -> npt.NDArray[Any]:
        size = len(self.topics)
        return np.bincount(cell, values, minlength=days * size).reshape(days, size)

    def _rows(self, days: list[int]) -> Int64s:
        """The rows of the days in the sums; new days get rows of zeros. Raises BadInput for more than MAX_DAYS days."""
        for day in days:
            self._days.setdefault(day, len(self._days))
        check_days(self._days)
        room = len(self._sums["said"])
        if len(self._days) > room:
            more = max(len(self._days), 2 * room) - room  # doubled, so that a file of many days needs few copies
            for name, values in self._sums.items():
                self._sums[name] = np.concatenate([values, np.zeros((more, len(self.topics)), values.dtype)])
        return np.array([self._days[day] for day in days], np.int64)
