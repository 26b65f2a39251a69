"""Training and measuring a topic model.

A topic model is K one-against-rest linear functions trained on all own tags of tagged questions. Before training each
feature is scaled, topic by topic, by how much its log-odds differ there, and a share of naive Bayes is added to what
was trained (NB-SVM, Wang and Manning 2012). What turns margins into probabilities is fitted on margins of posts that
the model which scored them had not seen.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import expit

from classify.learn.hinge import PARTS, Labels, train_left_out
from classify.model.files import OTHER
from classify.model.model import (
    KNOTS,
    Calibration,
    Classified,
    Floats,
    Integers,
    TopicModel,
    Vocabulary,
    softmax,
)
from classify.model.quantify import DayStatistics, Reference, estimate
from classify.model.text import FIELD_MASK, FIELDS, Field, Hashes, occurrences, parse_tags
from classify.posts import clean, rowgroups
from classify.posts.clean import EPOCH, QUESTION
from classify.registry.report import ANSWERS, DAY, SHIFT, DayReport, Report
from shared.errors import BadInput

Progress = Callable[[str, float], None]

COLUMNS = ("Id", "PostTypeId", "Title", "Body", "Tags")

FEWEST, QUESTIONS_A_TOPIC = 50, 10
"""Tagged questions without which nothing is learned or measured."""

# Chosen by 3-fold cross-validation inside four fifths of the development posts.
FIELD_WEIGHTS = {
    Field.ALL: 1.0,
    Field.TITLE: 1.0,
    Field.CODE: 0.5,
    Field.TITLE_PAIR: 0.5,
    Field.TEXT_PAIR: 0.3,
    Field.SYMBOL: 1.0,
    Field.SYMBOL_PAIR: 0.5,
    Field.TITLE_GRAM: 0.5,
}
MIN_POSTS = {  # a feature in fewer training posts than this is not learnt
    Field.ALL: 2,
    Field.TITLE: 2,
    Field.CODE: 2,
    Field.TITLE_PAIR: 3,
    Field.TEXT_PAIR: 10,
    Field.SYMBOL: 2,
    Field.SYMBOL_PAIR: 10,
    Field.TITLE_GRAM: 3,
}
MAX_COUNTED = 16_000_000  # features counted at a time; half a gigabyte
WEIGHTS = 2_700_000  # features times topics: a model of 5.9 MB; at 100 topics 74 % more gain .001 of hit@1

CALIBRATION_POSTS = 50_000
INTERACTION_PENALTY = 6.0  # on half the squared length of Calibration.interactions, against summed log-losses

DAYS = 60  # that a report samples


@dataclass(frozen=True)
class Posts:
    """Tagged questions, ready for training: Id, title, body, and their tags as lists."""

    ids: npt.NDArray[np.int64]
    titles: pa.Array
    bodies: pa.Array
    tags: pa.ListArray

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, chosen: npt.NDArray[Any]) -> "Posts":
        rows = pa.array(np.flatnonzero(chosen) if chosen.dtype == bool else chosen)
        return Posts(self.ids[rows], self.titles.take(rows), self.bodies.take(rows), self.tags.take(rows))


def read_questions(files: Sequence[Path], progress: Callable[[float], None]) -> Posts:
    """The tagged questions of Posts files on disk. Raises BadInput that names a file without any, or that is none."""

    def tables() -> Iterator[pa.Table]:
        for number, path in enumerate(files):
            with rowgroups.opened(path, COLUMNS) as file:
                for group in range(file.num_row_groups):
                    yield from questions_in(file, [group])
                    progress((number + (group + 1) / file.num_row_groups) / len(files))

    try:
        return tagged_questions(tables())
    except BadInput as error:
        raise BadInput(f"{error} (training reads {files_named(files)})") from error


def files_named(files: Sequence[Path]) -> str:
    """The files in a sentence: the first three by name, of the others their number."""
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(str(file) for file in files[:3]) + more


def questions_in(
    file: pq.ParquetFile, groups: Sequence[int] | None = None, days: range | None = None, file_day: date = EPOCH
) -> Iterator[pa.Table]:
    """The tagged questions of a Posts file's row groups that have an Id, in the columns that training reads, whatever
    types it uses. Raises what Arrow does where a column is of no use.

    With `days` (since 1970-01-01) those created on one of them; posts without a date were on `file_day`.
    """
    for batch in rowgroups.batches(file, (*COLUMNS, "CreationDate"), groups):
        posts = clean.clean(batch, file_day)
        chosen = (posts.types == QUESTION) & posts.has_id & np.asarray(parse_tags(posts.tags).is_valid())
        if days is not None:
            chosen &= (posts.days >= days.start) & (posts.days < days.stop)
        if chosen.any():
            kept = posts.where(chosen)
            titles, bodies = kept.titles.cast(pa.large_binary()), kept.bodies.cast(pa.large_binary())
            yield pa.table([kept.ids, kept.types, titles, bodies, kept.tags], names=list(COLUMNS))


def tagged_questions(posts: pa.Table | Iterable[pa.RecordBatch | pa.Table]) -> Posts:
    """The questions that have an Id and tags; of rows with one Id the last.

    Keeps nothing of the rest, so batches may be read from files one by one.
    """
    batches = [posts] if isinstance(posts, pa.Table) else posts
    kept: list[pa.Table] = []
    for batch in batches:
        table = pa.table({name: batch[name] for name in COLUMNS})
        table = table.filter(pc.and_(pc.equal(table["PostTypeId"], QUESTION), pc.is_valid(table["Id"])))
        tags = parse_tags(table["Tags"])
        plain = pa.table(
            {
                "Id": pc.cast(table["Id"], pa.int64()),
                "Title": pc.cast(table["Title"], pa.large_binary()),
                "Body": pc.cast(table["Body"], pa.large_binary()),
                "tags": tags,
            }
        )
        kept.append(plain.filter(pc.is_valid(tags)))
    table = pa.concat_tables(kept) if kept else None
    if table is None or not len(table):
        raise BadInput("no tagged question to learn from")
    kept.clear()
    last = last_of_each(np.asarray(table["Id"]))
    table = (table if last.all() else table.filter(pa.array(last))).combine_chunks()
    columns = {name: pa.concat_arrays(table[name].chunks) for name in table.column_names}
    return Posts(columns["Id"].to_numpy(), columns["Title"], columns["Body"], columns["tags"])


def last_of_each(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which rows are the last ones with their Id."""
    chosen = np.zeros(len(ids), np.bool_)
    chosen[len(ids) - 1 - np.unique(ids[::-1], return_index=True)[1]] = True
    return chosen


def folds_of(ids: npt.NDArray[np.int64], folds: int) -> npt.NDArray[np.int64]:
    """The fold each post falls into, by a hash of its Id (splitmix64's finaliser): the same on every machine."""
    mixed = ids.astype(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) % np.uint64(folds)).astype(np.int64)


def check_enough(questions: int, topics: int, where: str, way_out: str = "take more posts or fewer topics") -> None:
    """Raise BadInput when so many tagged questions are too few to learn so many topics from."""
    needed = max(QUESTIONS_A_TOPIC * topics, FEWEST)
    if questions < needed:
        raise BadInput(
            f"{questions} tagged questions {where} are too few for {topics} topics: {needed} are needed; {way_out}"
        )


def fit(
    posts: pa.Table | Iterable[pa.RecordBatch | pa.Table] | Posts,
    topics: int = 100,
    *,
    progress: Progress | None = None,
) -> tuple[TopicModel, Report]:
    """A model of the most frequent tags, and its report, measured on the folds its calibration was fitted on.

    Raises BadInput where there is nothing to learn, or too little to learn it from.
    """
    tell = progress or _say_nothing
    training = posts if isinstance(posts, Posts) else tagged_questions(posts)
    names, parts = most_frequent_tags(training.tags, topics), folds_of(training.ids, PARTS)
    if not names or len(np.unique(parts)) < 2:
        raise BadInput(f"nothing can be learned from {len(training)} questions with {len(names)} tags beside `{OTHER}`")
    labels = own_topics(training.tags, names)
    tell("vocabulary", 0.0)
    vocabulary = learn_vocabulary(training, WEIGHTS // topics)
    vectors = vectorise(training, vocabulary)
    tell("training", 0.1)
    linear, margins, unseen = train_left_out(vectors, labels, parts, CALIBRATION_POSTS)
    tell("calibration", 0.7)
    calibration = calibrate(margins, labels[unseen])
    model = TopicModel(
        topics=(*names, OTHER),
        vocabulary=vocabulary,
        weights=linear.weights.astype(np.float16),
        biases=linear.biases,
        calibration=calibration,
        reference=Reference.measure((*names, OTHER), calibration.posteriors(margins), primary_of(labels[unseen])),
        trained_on={"date": datetime.now(UTC).date().isoformat(), "questions": len(training)},
    )
    return model, report_on(model, margins, labels[unseen])


def _say_nothing(step: str, share: float) -> None:
    """The progress of somebody who does not ask for it."""
    del step, share


def evaluate(model: TopicModel, posts: pa.Table | Iterable[pa.RecordBatch | pa.Table] | Posts) -> Report:
    """How the model does on the tagged questions among these posts."""
    held_out = posts if isinstance(posts, Posts) else tagged_questions(posts)
    margins = model.score(held_out.titles, held_out.bodies)
    return report_on(model, margins, own_topics(held_out.tags, model.topics[:-1]))


def cross_validate(
    posts: pa.Table | Iterable[pa.RecordBatch | pa.Table] | Posts,
    topics: int = 100,
    folds: int = 5,
) -> list[Report]:
    """One report a fold, each of a model trained on the other folds."""
    questions = posts if isinstance(posts, Posts) else tagged_questions(posts)
    fold = folds_of(questions.ids, folds)
    reports = []
    for number in range(folds):
        model, _ = fit(questions.take(fold != number), topics)
        reports.append(evaluate(model, questions.take(fold == number)))
    return reports


def most_frequent_tags(tags: pa.ListArray, topics: int) -> tuple[str, ...]:
    """The names of the most frequent tags, most frequent first, ties by name; but `other`, and what is no UTF-8."""
    counted = pc.value_counts(tags.flatten())
    table = pa.table({"name": counted.field("values"), "posts": counted.field("counts")})
    table = table.filter(pc.not_equal(table["name"], OTHER))
    table = table.sort_by([("posts", "descending"), ("name", "ascending")])
    names = (name.decode(errors="replace") for name in table["name"].cast(pa.binary()).to_pylist())
    return tuple(islice((name for name in names if "\N{REPLACEMENT CHARACTER}" not in name), topics))


def own_topics(tags: pa.ListArray, names: tuple[str, ...]) -> Labels:
    """Which of the topics each post carries: bool [n, K]."""
    parents = pc.list_parent_indices(tags).to_numpy()
    numbers = pc.index_in(tags.flatten(), pa.array(names, pa.string()))
    known = np.flatnonzero(numbers.is_valid().to_numpy(zero_copy_only=False))
    labels = np.zeros((len(tags), len(names)), np.bool_)
    labels[parents[known], pc.drop_null(numbers).to_numpy()] = True
    return labels


def learn_vocabulary(posts: Posts, features: int) -> Vocabulary:
    keys, frequency = _document_frequencies(posts)
    fewest = np.array([MIN_POSTS[field] for field in Field])[(keys & FIELD_MASK).astype(np.int64)]
    keys, frequency = keys[frequency >= fewest], frequency[frequency >= fewest]
    order = np.argsort(-frequency, kind="stable")
    keys, frequency = keys[order[:features]], frequency[order[:features]]
    field = (keys & FIELD_MASK).astype(np.int64)
    field_weights = np.array([FIELD_WEIGHTS[field] for field in Field], np.float32)
    rarity = np.log((len(posts) + 1) / (frequency + 1)) + 1
    vocabulary = Vocabulary(keys, (rarity * field_weights[field]).astype(np.float32), np.ones(FIELDS, np.float32))
    lengths = np.zeros(FIELDS)
    for batch in occurrences(posts.titles, posts.bodies, passing=True):
        known, _, times = vocabulary.counts(batch)
        lengths += np.bincount(field[known], weights=times, minlength=FIELDS)
    return Vocabulary(keys, vocabulary.weights, np.maximum(lengths / len(posts), 1e-3).astype(np.float32))


def _document_frequencies(posts: Posts) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Features and the number of posts each is in; beyond MAX_COUNTED features those seen once are let go."""
    keys, counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    pending: list[Hashes] = []
    for batch in occurrences(posts.titles, posts.bodies, passing=True):
        pending.append(batch.once_a_post())
        if sum(map(len, pending)) > MAX_COUNTED // 2:
            keys, counts = _add_up(keys, counts, pending)
            pending = []
    return _add_up(keys, counts, pending)


def _add_up(keys: Hashes, counts: npt.NDArray[np.int64], pending: list[Hashes]) -> tuple[Hashes, npt.NDArray[np.int64]]:
    new_keys, new_counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *pending]), return_counts=True)
    distinct, which = np.unique(np.concatenate([keys, new_keys]), return_inverse=True)
    total = np.bincount(which, weights=np.concatenate([counts, new_counts]), minlength=len(distinct)).astype(np.int64)
    if len(distinct) > MAX_COUNTED:
        distinct, total = distinct[total > 1], total[total > 1]
    return distinct, total


def vectorise(posts: Posts, vocabulary: Vocabulary) -> sparse.csr_matrix:
    found: list[Integers] = []
    values: list[Floats] = []
    sizes = [np.zeros(1, np.int32)]
    for batch in occurrences(posts.titles, posts.bodies, passing=True):
        features, bounds, weighed = vocabulary.vectors(batch)
        found.append(features)
        values.append(weighed)
        sizes.append(np.diff(bounds))
    # One list after the other, which is freed at once: a million posts are 2 GB.
    indices = np.concatenate([np.zeros(0, np.int32), *found])
    found.clear()
    data = np.concatenate([np.zeros(0, np.float32), *values])
    values.clear()
    bounds = np.cumsum(np.concatenate(sizes), dtype=np.int64)  # scipy makes them int32 where that is enough
    return sparse.csr_matrix((data, indices, bounds), shape=(len(posts), len(vocabulary)))


def calibrate(margins: Floats, labels: Labels) -> Calibration:
    """Probabilities from margins of posts that were not trained on."""
    size = labels.shape[1] + 1
    plain = Calibration(chance_curve(margins.ravel(), labels.ravel()), np.zeros((size, size), np.float32))
    base, inputs = plain.chain(margins), plain.inputs(margins)
    primary, rows = primary_of(labels), np.arange(len(labels))
    penalty = INTERACTION_PENALTY / len(rows)

    def loss(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        chances = softmax(base + inputs @ flat.reshape(size, size).astype(np.float32))
        value = -np.log(np.maximum(chances[rows, primary], 1e-12)).mean(dtype=float) + penalty / 2 * (flat @ flat)
        chances[rows, primary] -= 1
        return float(value), (inputs.T @ chances / np.float32(len(rows))).ravel() + penalty * flat

    solved = minimize(loss, np.zeros(size * size), jac=True, method="L-BFGS-B", options={"maxiter": 60}).x
    return replace(plain, interactions=solved.reshape(size, size).astype(np.float32))


def chance_curve(margins: Floats, truth: npt.NDArray[np.bool_]) -> Floats:
    """The curve of `Calibration`: a rising linear spline of the log-odds by maximum likelihood, on 600 bins of margins.

    A straight line (Platt 1999) leaves a calibration error of .12 at 100 topics, this one .04.
    """
    bins = np.searchsorted(np.linspace(-3, 3, 601), margins)
    posts = np.bincount(bins, minlength=602).astype(np.float64)
    filled = posts > 0
    posts, hits = posts[filled], np.bincount(bins, weights=truth, minlength=602)[filled]
    middle = np.bincount(bins, weights=margins, minlength=602)[filled] / posts
    widths = np.diff(KNOTS, append=np.inf)
    segments = [np.clip(middle - knot, 0, width) for knot, width in zip(KNOTS, widths, strict=True)]
    terms = np.stack([np.ones_like(middle), np.minimum(middle, KNOTS[0]), *segments], axis=1)

    def loss(line: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        logits = terms @ line
        value = posts @ np.logaddexp(0, logits) - hits @ logits
        gradient = terms.T @ (posts * expit(logits) - hits)
        shrunk = 1e-6 * np.concatenate([[0.0], line[1:]])
        return float(value / posts.sum() + line @ shrunk / 2), gradient / posts.sum() + shrunk

    line: npt.NDArray[np.float64] = minimize(
        loss,
        np.concatenate([[-1.0], np.full(1 + len(KNOTS), 2.0)]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(None, None), *[(0.1, None)] * (1 + len(KNOTS))],
        options={"maxiter": 500, "ftol": 1e-14, "gtol": 1e-10},
    ).x
    curve: Floats = np.concatenate([line[:2], np.diff(line[1:])]).astype(np.float32)
    return curve


def primary_of(labels: Labels) -> Integers:
    """The primary topic: the first of a post's topics, they being ordered by frequency; K (`other`) if none."""
    return np.where(labels.any(axis=1), labels.argmax(axis=1), labels.shape[1]).astype(np.int32)


def report_on(model: TopicModel, margins: Floats, labels: Labels) -> Report:
    """The report of a model whose margins for posts with these own topics are given."""
    found = model.read_out(margins)
    primary, size = primary_of(labels), len(model.topics)
    tagged = np.flatnonzero(labels.any(axis=1))
    hits = labels[tagged, found.best[tagged]]
    right = np.bincount(primary[found.topic == primary], minlength=size)
    true_counts, said_counts = np.bincount(primary, minlength=size), np.bincount(found.topic, minlength=size)
    f1 = 2 * right / np.maximum(true_counts + said_counts, 1)
    return Report(
        posts=len(primary),
        topics=size - 1,
        hit_at_1=_share(hits),
        primary_accuracy=_share(found.posteriors[tagged, :-1].argmax(axis=1) == primary[tagged]),
        topic_accuracy=float((found.topic == primary).mean()),
        macro_f1=float(f1[true_counts > 0].mean()),
        calibration_error=_calibration_error(found.top_scores[:, 0], labels[np.arange(len(labels)), found.best]),
        days=report_on_days(model.reference, found, primary),
        shifted_days=report_on_days(model.reference, found, primary, shift=SHIFT),
        answered_days=report_on_days(model.reference, found, primary, answers=ANSWERS),
        by_topic=[
            {
                "topic": name,
                "posts": int(true_counts[k]),
                "found": int(said_counts[k]),
                "right": int(right[k]),
                "f1": float(f1[k]),
            }
            for k, name in enumerate(model.topics)
        ],
    )


def report_on_days(
    reference: Reference, found: Classified, primary: Integers, *, shift: float = 0.0, answers: float = 0.0
) -> DayReport:
    """Days drawn from these questions without repetition, of which the model said what is `found`.

    With a shift, the chance of every topic is multiplied by its own log-normal factor of that standard deviation, new
    for each day. With `answers`, each question has so many on the average, which take over what the model says of it.
    """
    random = np.random.default_rng(0)
    size = len(reference.topics)
    days = []
    for _ in range(DAYS):
        odds = np.exp(shift * random.standard_normal(size))[primary]
        day = random.choice(len(primary), min(DAY, len(primary) // 2), replace=False, p=odds / odds.sum())
        answered = random.poisson(answers, len(day)) if answers else np.zeros(len(day), np.int64)
        posts = 1 + answered
        truth = np.bincount(primary[day], posts, minlength=size) / posts.sum()
        posteriors, topic = found.posteriors[day], found.topic[day]
        statistics = DayStatistics.of_classified(topic, posteriors, found.margin[day])
        estimated = estimate(statistics + DayStatistics.of_inherited(topic, answered, size), reference)
        large = truth >= 0.02
        days.append(
            (
                _total_variation(estimated.share, truth),
                _total_variation(posts @ posteriors / posts.sum(), truth),
                _total_variation(np.bincount(topic, posts, minlength=size) / posts.sum(), truth),
                ((estimated.low <= truth) & (truth <= estimated.high))[large].mean(),
                estimated.drifted,
            )
        )
    return DayReport(*np.mean(days, axis=0).tolist())


def _share(happened: npt.NDArray[np.bool_]) -> float:
    """How often it happened; 0 where it could not."""
    return float(happened.sum() / max(len(happened), 1))


def _total_variation(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    return float(np.abs(one - other).sum() / 2)


def _calibration_error(stated: Floats, happened: npt.NDArray[np.bool_]) -> float:
    bins = np.minimum((stated * 10).astype(np.int64), 9)
    gaps = np.bincount(bins, weights=stated - happened, minlength=10)
    return float(np.abs(gaps).sum() / len(stated))
