"""The operator's commands over topic models: on files, and on those of a lake."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import cli.options
from classify.learn.fit import fit
from classify.model.files import ARRAYS, CALIBRATION, MANIFEST
from classify.model.model import TopicModel
from classify.registry.card import CARD, EVALUATION
from classify.registry.models import current_version, load_model, store_model, versions
from classify.registry.summary import Training
from classify.run.output import POST_TOPICS
from cli import check, main
from shared import paths
from shared.catalog import DayPointer, move_pointer, note_latest
from shared.lake import FolderLake
from tests.topic_posts import questions
from tests.world import START, World, parquet, posts, settings

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command in the folder of the test; returns its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["manage.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return command


@pytest.fixture(scope="module")
def model() -> TopicModel:
    return fit(questions(300), topics=4)[0]


@pytest.fixture
def files(tmp_path: Path, model: TopicModel) -> None:
    """In the folder of the test: two files of posts and a model."""
    table = questions(300)
    for name, rows in (("a.parquet", table.slice(0, 150)), ("b.parquet", table.slice(150))):
        pq.write_table(rows, tmp_path / name)
    model.save(tmp_path / "model")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    "given",
    [
        ("--posts", "a.parquet", "b.parquet", "--out", "new"),
        ("--out", "new", "--posts", "a.parquet", "--posts", "b.parquet"),
    ],
)
def test_train_reads_all_files_and_writes_model_card_and_report(
    run: Run, tmp_path: Path, given: tuple[str, ...]
) -> None:
    code, out, err = run("train", *given, "--topics", "4")
    assert code == 0
    made = TopicModel.load(tmp_path / "new")
    assert made.trained_on["questions"] == 300
    assert f"{made.version} is in new" in out
    assert "on posts left out in turn" in out
    report = json.loads((tmp_path / "new" / EVALUATION).read_text())
    assert (report["folds"], report["posts"], report["topics"]) == (1, 300, 4)
    assert "a.parquet, b.parquet by `manage.py train`" in (tmp_path / "new" / CARD).read_text()
    assert f"hit_at_1              {report['hit_at_1']:.4g}".split() in [line.split() for line in out.splitlines()]
    assert "reading" in err


@pytest.mark.usefixtures("files")
def test_train_measures_by_cross_validation(run: Run, tmp_path: Path) -> None:
    given = ("--posts", "a.parquet", "b.parquet", "--out", "new", "--topics", "4", "--cross-validate", "3", "--json")
    code, out, _ = run("train", *given)
    report = json.loads(out)["evaluation"]
    assert (code, report["folds"], report["posts"]) == (0, 3, 300)
    assert report["hit_at_1"] > 0.8
    card = (tmp_path / "new" / CARD).read_text()
    assert "300 tagged questions" in card
    assert "Measured by 3-fold cross-validation" in card
    assert "CC BY-SA" in card


@pytest.mark.usefixtures("files")
def test_evaluate_measures_what_fit_measures(run: Run) -> None:
    code, out, _ = run("evaluate", "--posts", "b.parquet", "--model", "model", "--json")
    report = json.loads(out)
    assert (code, report["posts"], report["topics"]) == (0, 150, 4)
    assert report["hit_at_1"] > 0.9
    code, out, err = run("evaluate", "--posts", "b.parquet", "--model", "model")
    assert (code, "on the tagged questions of b.parquet" in out, "reading" in err) == (0, True, True)


@pytest.mark.usefixtures("files")
def test_score_asks_the_model_unless_tags_shall_decide(run: Run, tmp_path: Path) -> None:
    for options, decided in (((), {"model"}), (("--topic-source", "tags"), {"tags"})):
        code, out, err = run("score", "--posts", "a.parquet", "--model", "model", "--out", "rows.parquet", *options)
        assert (code, "150 posts in rows.parquet" in out, "scoring" in err) == (0, True, True)
        rows = pq.read_table(tmp_path / "rows.parquet")
        assert rows.schema.remove_metadata() == POST_TOPICS
        assert set(rows["decided_by"].to_pylist()) == decided
    assert {path.name for path in tmp_path.iterdir()} == {"a.parquet", "b.parquet", "model", "rows.parquet"}


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("score --posts a.parquet --model nowhere --out r", "no topic model in nowhere: it has no model.json"),
        ("score --posts nowhere --model model --out r", "nowhere does not exist, or is not a file"),
        ("score --posts model --model model --out r", "model does not exist, or is not a file"),
        ("score --posts text --model model --out r", "text cannot be read as a Parquet file: "),
        ("score --posts no-id --model model --out r", "no-id has no column Id"),
        (
            "score --posts text-id --model model --out r",
            "text-id: column Id must hold whole numbers, but holds one",
        ),
        ("score --posts list-tags --model model --out r", "list-tags cannot be read as a Parquet file: "),
        (
            "score --posts a.parquet --model model --out a.parquet",
            "a.parquet is the Posts file itself: name another file",
        ),
        ("score --posts cut-off --model model --out r", "cut-off cannot be read as a Parquet file: "),
        (
            "score --posts a.parquet --model model --out model",
            "model is a folder, or its folder does not exist: name a file",
        ),
        (
            "score --posts a.parquet --model model --out new/r",
            "new/r is a folder, or its folder does not exist: name a file",
        ),
        ("evaluate --posts nowhere --model model", "nowhere does not exist, or is not a file"),
        ("evaluate --posts no-tags --model model", "no-tags has no column Tags"),
        ("evaluate --posts one --model model", "one has 1 tagged questions: 50 are needed to measure a model"),
        (
            "evaluate --posts cooking --model model",
            "cooking has 60 tagged questions: 50 are needed to measure a model, and",
        ),
        ("evaluate --posts a.parquet --model nowhere", "no topic model in nowhere: "),
        ("train --posts a.parquet nowhere --out new", "nowhere does not exist, or is not a file"),
        ("train --posts no-tags --out new", "no-tags has no column Tags"),
        ("train --posts one --out new", "1 tagged questions in one are too few for 100 topics: 1000 are needed"),
        ("train --posts a.parquet --out new", "150 tagged questions in a.parquet are too few for 100 topics"),
        ("train --posts a.parquet --out b.parquet --topics 4", "--out b.parquet is a file: name a folder"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(run: Run, tmp_path: Path, command: str, said: str) -> None:
    table = questions(60)
    (tmp_path / "text").write_text("Id,Title\n" * 100)
    (tmp_path / "cut-off").write_bytes((tmp_path / "a.parquet").read_bytes()[-1_000:])
    made = {"no-tags": table.drop_columns(["Tags"]), "no-id": table.drop_columns(["Id"]), "one": table.slice(0, 1)}
    made["text-id"] = table.set_column(0, "Id", [["one"] * 60])
    made["list-tags"] = table.set_column(4, "Tags", [[["one"]] * 60])
    made["cooking"] = table.set_column(4, "Tags", pa.repeat("<cooking>", 60))
    for name, rows in made.items():
        pq.write_table(rows, tmp_path / name)
    code, _, err = run(*command.split())
    *_, last = err.splitlines()
    assert (code, last[: len(said) + 11]) == (1, f"manage.py: {said}")
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            "score --posts a.parquet --model model --out r --topic-source nobody",
            "'nobody' is not one of 'tags', 'model'",
        ),
        ("train --posts a.parquet --out new --topics 0", "greater than or equal to 2"),
        ("train --out new", "Missing option '--posts'"),
    ],
)
def test_what_a_command_does_not_take_is_said(run: Run, command: str, said: str) -> None:
    code, _, err = run(*command.split())
    assert code == 2
    assert said in " ".join(err.replace("│", " ").split())


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderLake:
    """The lake of the environment that the commands work on."""
    world = World(tmp_path / "lake")
    with world.undisturbed():
        world.lake.delete(paths.CURRENT_MODEL)
    lake = FolderLake(tmp_path / "lake")
    services = world.services.replace(lake=lake, settings=settings())
    monkeypatch.setattr(cli.options, "Services", lambda *_, **__: services)
    return lake


def test_models_are_listed_promoted_and_rolled_back(run: Run, lake: FolderLake, model: TopicModel) -> None:
    starter = current_version(lake)
    report = {"hit_at_1": 0.91234, "posts": 1_234, "days": {"histogram_error": 0.05, "coverage": 0.95}}
    version = store_model(lake, model, report, "")

    def listed() -> dict[str, list[str]]:
        lines = [line.split() for line in run("models")[1].splitlines()]
        return {
            next(word for word in line if word.startswith("topics")): line for line in lines if "topics" in str(line)
        }

    assert listed()[starter][0] == "*"
    assert listed()[version] == [version, "0.9123", "0.0500", "0.9500", "1,234", "300"]
    assert run("models", "promote", version)[:2] == (0, f"{version} is current\n")
    assert listed()[version][0] == "*"
    assert run("models", "rollback")[:2] == (0, f"{starter} is current\n")
    assert current_version(lake) == starter
    code, _, err = run("models", "rollback")
    assert (code, err) == (1, f"manage.py: {starter} is the first model: there is no model before it\n")
    code, _, err = run("models", "promote", "nothing")
    assert (code, err) == (
        1,
        "manage.py: there is no model nothing in the lake: `manage.py models` lists the models\n",
    )


def test_a_model_made_of_files_is_added_and_promoted(
    run: Run, lake: FolderLake, model: TopicModel, tmp_path: Path
) -> None:
    current_version(lake)
    model.save(tmp_path / "made")
    (tmp_path / "made" / EVALUATION).write_text('{"hit_at_1": 0.91234}')
    (tmp_path / "made" / CARD).write_text("# A card")
    (tmp_path / "made" / "notes.txt").write_text("stays here")
    said = f"{model.version} is in the lake: `python manage.py models promote {model.version}` makes it current\n"
    assert run("models", "add", "made")[:2] == (0, said)
    folder = lake.root / paths.model(model.version)
    written = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert written.keys() == {MANIFEST, ARRAYS, CALIBRATION, EVALUATION, CARD}
    assert load_model(lake, model.version).topics == model.topics
    assert "0.9123" in run("models")[1]

    seen = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert run("models", "add", "made")[:2] == (0, said)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == seen
    (folder / ARRAYS).write_bytes(b"damaged")
    assert run("models", "add", "made")[:2] == (0, said)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == written
    assert run("models", "promote", model.version)[0] == 0
    assert current_version(lake) == model.version


def test_a_folder_that_is_no_model_is_not_added(run: Run, lake: FolderLake, model: TopicModel, tmp_path: Path) -> None:
    starter = current_version(lake)
    model.save(tmp_path / "damaged")
    (tmp_path / "damaged" / ARRAYS).write_bytes(b"damaged")
    model.save(tmp_path / "no-report")
    (tmp_path / "no-report" / EVALUATION).write_text('{"hit_at_1": "high"}')
    for folder, words in (
        ("nowhere", "no topic model in nowhere: "),
        ("damaged", f"{ARRAYS} does not match the checksum"),
        ("no-report", f"no-report/{EVALUATION} holds no ReportedFigures (hit_at_1: "),
    ):
        code, _, err = run("models", "add", folder)
        assert (code, err.startswith(f"manage.py: {words}")) == (1, True), err
    assert [found.version for found in versions(lake)] == [starter]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (MANIFEST, b"{}", "the topic model's manifest is invalid"),
        (MANIFEST, None, "holds topics"),
        (EVALUATION, b"[]", f"{EVALUATION} holds no ReportedFigures"),
        (EVALUATION, b"\xff", f"{EVALUATION} holds no ReportedFigures"),
        (EVALUATION, b'{"days": {"coverage": "all"}}', "days.coverage"),
    ],
)
def test_a_damaged_model_hides_no_other(
    run: Run, lake: FolderLake, model: TopicModel, name: str, content: bytes | None, reason: str
) -> None:
    starter, damaged = current_version(lake), "topics4-0123456789ab"
    whole = store_model(lake, model, {}, "")
    for file in (MANIFEST, EVALUATION):
        lake.put(f"{paths.model(damaged)}/{file}", lake.read(f"{paths.model(whole)}/{file}"))
    if content is not None:
        manifest = json.loads(lake.read(f"{paths.model(damaged)}/{MANIFEST}")) | {"version": damaged}
        lake.put(f"{paths.model(damaged)}/{MANIFEST}", json.dumps(manifest).encode())
        lake.put(f"{paths.model(damaged)}/{name}", content)
    code, out, _ = run("models")
    (line,) = (line for line in out.splitlines() if damaged in line)
    assert (code, line.startswith(f"{damaged} is damaged: "), reason in line) == (0, True, True), line
    for version in (starter, whole):
        assert version in out


class Silent:
    """A queue without messages."""

    def length(self) -> int:
        return 0


def test_status_tells_of_training_and_drift(run: Run, lake: FolderLake, monkeypatch: pytest.MonkeyPatch) -> None:
    services: Any = vars(cli.options)["Services"](Path())
    monkeypatch.setattr(services, "queue", lambda _: Silent())
    monkeypatch.setattr(cli.options, "Services", lambda *_, **__: services)
    day = date(2026, 11, 21)
    figures = {"scored": 90, "mean_margin": 0.456, "vocabulary_overlap": 0.87, "other_share": 0.12}
    figures |= {"guessed": 5, "drift": 4.25, "drifted": True}
    counted = {
        "publish_id": "p",
        "parquet": "-",
        "csv": "-",
        "sums": "-",
        "posts": 100,
        "questions": 60,
        "answers": 40,
        "sources": {},
    }
    pointer = DayPointer.model_validate({"day": day, "published_at": START, **counted, **figures})
    move_pointer(lake, paths.day_pointer(day), pointer, None)
    note_latest(lake, day, 100)
    lake.put("-", b"day,rank,topic,posts,questions,answers,share,estimated_share,low,high\n")
    training = Training(
        candidate="topics100-new",
        current="topics100-old",
        questions=10,
        held_out=2,
        candidate_found=0.5,
        current_found=0.6,
        promoted=False,
        reason="not better: 0.5 against 0.6",
        damaged=[],
    )
    lake.put(paths.training_record(day), training.model_dump_json().encode())
    code, out, _ = run("status")
    assert code == 0
    assert "topics100-new was kept aside; not better: 0.5 against 0.6" in out
    spoilt = training.model_copy(update={"damaged": ["archive/posts/a.parquet [cut] cannot be read"]})
    lake.put(paths.training_record(day, 2), spoilt.model_dump_json().encode())
    code, said, _ = run("status")
    assert (code, "archive/posts/a.parquet [cut] cannot be read" in said) == (1, True)
    (line,) = (line.split() for line in out.splitlines() if line.strip().startswith("2026-11-21"))
    assert line[1:6] == ["100", "60", "40", "0", "4.2!"]
    assert "Of 90 posts that the model was asked about: margin 0.46" in run("topics", "--details")[1]
    assert "margin" not in run("topics")[1]
    shown = json.loads(run("topics", "--json")[1])
    assert {name: shown[name] for name in figures} == figures


def test_the_training_job_is_checked_too(lake: FolderLake) -> None:
    services: Any = vars(cli.options)["Services"](Path())
    services.replace(settings=settings(databricks_training_job_id=8), posts_landed=Silent())
    looks = [what for what, _ in check._looks(services)]
    assert [what for what in looks if what.startswith("Databricks")] == ["Databricks job 1", "Databricks job 8"]


def test_long_titles_need_no_bodies_to_be_scored(run: Run, tmp_path: Path, model: TopicModel) -> None:
    model.save(tmp_path / "model")
    rows = posts(*({"Title": "how to sort a list " * 10_000} for _ in range(100))).drop_columns(["Body"])
    (tmp_path / "p.parquet").write_bytes(parquet(rows))
    assert run("score", "--posts", "p.parquet", "--model", "model", "--out", "r.parquet")[0] == 0
    assert pq.read_metadata(tmp_path / "r.parquet").num_rows == 100


def test_the_topics_of_other_posts_are_not_needed_to_score(run: Run, tmp_path: Path, model: TopicModel) -> None:
    model.save(tmp_path / "model")
    (tmp_path / "p.parquet").write_bytes(
        parquet(posts({"Tags": None}, {"PostTypeId": 2, "ParentId": 77}, {"PostTypeId": 5}))
    )
    assert run("score", "--posts", "p.parquet", "--model", "model", "--out", "r.parquet")[0] == 0
    rows = pq.read_table(tmp_path / "r.parquet")
    assert pc.unique(rows["decided_by"]).to_pylist() == ["model"]
    assert rows["PostTypeId"].to_pylist() == [1, 2]
