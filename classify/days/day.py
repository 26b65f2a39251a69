"""The topics of a day, from the counts of each of its files: plain counts, and shares with 95 % intervals."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from classify.days.tally import COUNTS_SCHEMA, Tally
from classify.model.quantify import Behaviour, DayStatistics, Estimate, estimate, interval
from shared.arrays import Doubles
from shared.errors import BadInput
from shared.topics import DayFigures, TopicRow

DIGITS = 9
"""Shares are rounded to this many digits. A single post of a day changes its shares far more."""
MODEL, TOPICS = b"stacktopics.model", b"stacktopics.topics"
PARTS = b"stacktopics.parts"
PART = "part"


@dataclass(frozen=True)
class Contribution:
    """The counts that one classification adds to its days."""

    model: str
    tally: Tally

    def to_parquet(self) -> bytes:
        out = io.BytesIO()
        metadata = {MODEL: self.model.encode(), TOPICS: json.dumps(self.tally.topics).encode()}
        table = self.tally.to_table().replace_schema_metadata(metadata)
        pq.write_table(table, out, compression="zstd", compression_level=1, use_dictionary=["day", "topic"])
        return out.getvalue()

    @classmethod
    def from_parquet(cls, data: bytes, what: str) -> Contribution:
        """Read what `to_parquet` wrote. Raises BadInput, with `what` as the name of the file, if it is invalid."""
        try:
            table = pq.read_table(io.BytesIO(data))
            metadata = table.schema.metadata
            tally = Tally(tuple(json.loads(metadata[TOPICS])))
            tally.add_table(table)
            return cls(metadata[MODEL].decode(), tally)
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{what} does not hold the counts of a classification: {error!r}") from error


class DaySums:
    """What all files add to one day, by the model that classified them.

    A file is added, and taken out when another version replaces it, without reading the others: a day of 1,000 files
    costs as much to publish as one of a single file.
    """

    def __init__(self, day: date) -> None:
        self.day = day
        self._parts: dict[tuple[str, tuple[str, ...]], Tally] = {}

    @classmethod
    def of(cls, day: date, contributions: Iterable[Contribution]) -> Self:
        """Those of a day that is counted from the beginning."""
        sums = cls(day)
        for contribution in contributions:
            sums.add(contribution)
        return sums

    def add(self, contribution: Contribution, sign: Literal[1, -1] = 1) -> None:
        """Add a file, or take it out with a sign of -1."""
        topics = contribution.tally.topics
        self._parts.setdefault((contribution.model, topics), Tally(topics)).add_day(contribution.tally, self.day, sign)

    def parts(self) -> list[tuple[str, Tally]]:
        """For each model that counts, in the order of their names: its version, and what it counted."""
        return [(model, tally) for (model, _), tally in sorted(self._parts.items()) if tally.to_table().num_rows]

    def to_parquet(self) -> bytes:
        """COUNTS_SCHEMA with the number of the part in front; which part is which model's is in the metadata."""
        out, parts = io.BytesIO(), self.parts()
        tables = [
            tally.to_table().add_column(0, PART, pa.array([number] * tally.to_table().num_rows, pa.int32()))
            for number, (_, tally) in enumerate(parts)
        ]
        schema = COUNTS_SCHEMA.insert(0, pa.field(PART, pa.int32()))
        metadata = {PARTS: json.dumps([[model, tally.topics] for model, tally in parts]).encode()}
        table = pa.concat_tables(tables) if tables else schema.empty_table()
        pq.write_table(table.replace_schema_metadata(metadata), out, compression="zstd", compression_level=1)
        return out.getvalue()

    @classmethod
    def from_parquet(cls, day: date, data: bytes, what: str) -> Self:
        """What `to_parquet` wrote. Raises BadInput that names `what`."""
        try:
            table, sums = pq.read_table(io.BytesIO(data)), cls(day)
            number = np.asarray(table[PART])
            for part, (model, topics) in enumerate(json.loads(table.schema.metadata[PARTS])):
                tally = Tally(tuple(topics))
                tally.add_table(table.filter(pa.array(number == part)))
                sums._parts[model, tally.topics] = tally
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{what} does not hold the sums of a day: {error!r}") from error
        return sums


class DayTopics(NamedTuple):
    """A day's topics, most frequent first, and its figures."""

    rows: list[TopicRow]
    figures: DayFigures


def count_topics(sums: DaySums, behaviour_of: Callable[[str], Behaviour]) -> DayTopics:
    """The topics of a day, most frequent first, ties by estimated share and name.

    A topic without counted posts has a row too if its interval ends above 0, so that estimated shares sum to one.
    `behaviour_of` gives the calibration of a model version; it is called only for models that decided a post of the
    day.
    """
    questions: dict[str, int] = defaultdict(int)
    answers: dict[str, int] = defaultdict(int)
    parts = []
    for model, tally in sums.parts():
        counted, statistics = tally.of(sums.day)
        for topic, (asked, answered) in counted.items():
            questions[topic] += asked
            answers[topic] += answered
        parts.append(_Part.of(statistics, tally.topics, behaviour_of, model))
    posts = {topic: questions[topic] + answers[topic] for topic in questions}
    total = sum(posts.values())
    shares = _combined(parts, total)
    there = [topic for topic, found in shares.items() if posts.get(topic) or found["high"]]
    ordered = sorted(there, key=lambda topic: (-posts.get(topic, 0), -shares[topic]["estimated_share"], topic))
    rows = [
        TopicRow(
            rank=rank,
            topic=topic,
            posts=posts.get(topic, 0),
            questions=questions.get(topic, 0),
            answers=answers.get(topic, 0),
            share=round(posts.get(topic, 0) / total, DIGITS),
            **shares[topic],
        )
        for rank, topic in enumerate(ordered, 1)
    ]
    guessed, scored = (sum(getattr(part.statistics, number) for part in parts) for number in ("uncertain", "scored"))
    estimates = [(part.estimate, part.statistics.uncertain) for part in parts if part.estimate]

    def mean(value: str) -> float:
        sums = (getattr(part.statistics, value) * part.statistics.scored for part in parts)
        return sum(sums) / scored if scored else 0.0

    figures = DayFigures(
        posts=total,
        questions=sum(questions.values()),
        answers=sum(answers.values()),
        guessed=guessed,
        drift=sum(estimate.drift * posts for estimate, posts in estimates) / guessed if guessed else 0.0,
        drifted=any(estimate.drifted for estimate, _ in estimates),
        scored=scored,
        mean_margin=mean("mean_margin"),
        vocabulary_overlap=mean("vocabulary_overlap"),
        other_share=mean("other_share"),
    )
    return DayTopics(rows, figures)


@dataclass(frozen=True)
class _Part:
    """The posts of a day that one model classified; `share` and `deviation` are by topic."""

    topics: tuple[str, ...]
    statistics: DayStatistics
    share: Doubles
    deviation: Doubles
    estimate: Estimate | None

    @classmethod
    def of(
        cls, statistics: DayStatistics, topics: tuple[str, ...], behaviour_of: Callable[[str], Behaviour], model: str
    ) -> _Part:
        if statistics.uncertain:
            found = estimate(statistics, behaviour_of(model))
            return cls(topics, statistics, found.share, found.deviation, found)
        return cls(topics, statistics, statistics.known / max(statistics.posts, 1), np.zeros(len(topics)), None)


def _combined(parts: Sequence[_Part], total: int) -> dict[str, dict[str, float]]:
    """The shares of the day: those of each model's posts, weighted by the number of posts; variances add up."""
    share: dict[str, float] = defaultdict(float)
    variance: dict[str, float] = defaultdict(float)
    certain: dict[str, float] = defaultdict(float)
    for part in parts:
        weight = part.statistics.posts / total if total else 0.0
        for number, topic in enumerate(part.topics):
            share[topic] += weight * part.share[number]
            variance[topic] += (weight * part.deviation[number]) ** 2
            certain[topic] += part.statistics.known[number] / total if total else 0.0
    uncertain = sum(part.statistics.uncertain for part in parts) / total if total else 0.0
    shares, variances, known = (np.array([sums[topic] for topic in share]) for sums in (share, variance, certain))
    ends = interval(shares, np.sqrt(variances), known, uncertain)
    names = ("estimated_share", "low", "high")
    return {
        topic: {name: round(float(value), DIGITS) for name, value in zip(names, values, strict=True)}
        for topic, *values in zip(share, shares, *ends, strict=True)
    }
