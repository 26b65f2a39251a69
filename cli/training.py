"""`manage.py train`, `evaluate` and `score`: topic models on files, without a lake."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cli.options import AsJson
from cli.screen import Heading, Screen, print_json, progress
from shared.errors import BadInput


def train(
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    posts: Annotated[list[Path], typer.Option(help="Posts files: --posts a b, or --posts a --posts b.")],
    more: Annotated[list[Path] | None, typer.Argument(hidden=True)] = None,
    topics: Annotated[int, typer.Option(min=2, help="How many topics, beside `other`.")] = 100,
    folds: Annotated[
        int | None,
        typer.Option("--cross-validate", min=2, help="Measure by so many models, on posts new to them."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a topic model on the tagged questions of Posts files; writes its card and evaluation too."""
    from classify.learn.fit import cross_validate, fit
    from classify.learn.questions import check_enough, files_named, read_questions
    from classify.registry.card import CARD, EVALUATION, card, mean_evaluation

    files = [*posts, *(more or [])]
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out} is a file: name a folder")
    with progress() as tell:
        questions = read_questions(files, partial(tell, "reading"))
        check_enough(len(questions), topics, f"in {files_named(files)}")
        model, evaluation = fit(questions, topics, progress=tell)
        evaluations = cross_validate(questions, topics, folds) if folds else [evaluation]
    measured = (
        f"Measured by {folds}-fold cross-validation (folds by a hash of Id; mean, and range over the folds)."
        if folds
        else f"Measured on {evaluation.posts:,} questions, each scored by a model that was trained without it; the"
        " vocabulary and the calibration had seen them."
    )
    text = card(model, evaluations, [file.name for file in files], made_by="manage.py train", measured=measured)
    figures = mean_evaluation(evaluations)
    out.mkdir(parents=True, exist_ok=True)
    (out / EVALUATION).write_text(json.dumps(figures, indent=1), encoding="utf-8")
    (out / CARD).write_text(text, encoding="utf-8")
    model.save(out)
    if as_json:
        print_json({"version": model.version, "folder": str(out), "evaluation": figures})
        return
    Screen().line(f"{model.version} is in {out}")
    _show_figures(figures, "on posts left out in turn")


def evaluate(
    posts: Annotated[Path, typer.Option(help="A Posts file with tagged questions.")],
    model: Annotated[Path, typer.Option(help="Folder of the model.")],
    as_json: AsJson = False,
) -> None:
    """Measure a topic model on the tagged questions of a file."""
    from classify.learn.evaluate import evaluate
    from classify.learn.questions import FEWEST, own_topics, read_questions
    from classify.model.model import TopicModel

    loaded = TopicModel.load(model)
    with progress() as tell:
        questions = read_questions([posts], partial(tell, "reading"))
        if len(questions) < FEWEST or not own_topics(questions.tags, loaded.topics[:-1]).any():
            raise BadInput(
                f"{posts} has {len(questions)} tagged questions: {FEWEST} are needed to measure a model, and among them"
                " one with one of its topics"
            )
        tell("scoring", None)
        evaluation = evaluate(loaded, questions).to_json()
    if as_json:
        print_json(evaluation)
    else:
        _show_figures(evaluation, f"on the tagged questions of {posts.name}")


def score(
    posts: Annotated[Path, typer.Option(help="A Posts file.")],
    model: Annotated[Path, typer.Option(help="Folder of the model.")],
    out: Annotated[Path, typer.Option(help="Parquet file for one row a post.")],
    topic_source: Annotated[
        Literal["tags", "model"],
        typer.Option(help="What decides a question that has tags; in the pipeline TOPIC_SOURCE."),
    ] = "model",
    as_json: AsJson = False,
) -> None:
    """The topics of a file's questions and answers, in the form in which the classification job writes them.

    The model is asked even about questions with tags: this command shows what the model says.
    """
    from classify.run.engine import score_file

    with progress() as tell:
        summary = score_file(posts, model, out, topic_source, partial(tell, "scoring"))
    if as_json:
        print_json(summary)
        return
    decided = ", ".join(f"{by} {count:,}" for by, count in summary.decided_by.items())
    Screen().line(f"{summary.counted:,} posts in {out}; their topic was decided by: {decided or 'nothing'}")


def _show_figures(evaluation: dict[str, Any], heading: str) -> None:
    flat = evaluation | {
        f"{kind}.{name}": value
        for kind in ("days", "shifted_days", "answered_days")
        for name, value in evaluation[kind].items()
    }
    rows = [[name, f"{value:.4g}"] for name, value in flat.items() if isinstance(value, int | float)]
    Screen().rows([Heading(heading), Heading("figure", right=True)], rows)
