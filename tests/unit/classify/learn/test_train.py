"""Training from the archive: which posts are read, when a candidate is promoted, and the rollback."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from classify.learn import train as train_module
from classify.learn.fit import cross_validate, fit
from classify.learn.questions import tagged_questions
from classify.learn.train import TrainParameters, archived_questions, sample, train
from classify.model.files import ARRAYS, CALIBRATION, MANIFEST
from classify.model.model import TopicModel
from classify.posts import rowgroups
from classify.registry import models
from classify.registry.card import CARD, EVALUATION, card, mean_evaluation
from classify.registry.models import (
    Stored,
    current_model,
    current_version,
    load_behaviour,
    load_model,
    promote,
    rollback,
    store_model,
    versions,
)
from classify.registry.summary import Training
from classify.train import main
from shared import paths
from shared.catalog import SourcePointer, move_pointer
from shared.errors import BadInput, Conflict, ModelError, TransientError
from shared.lake import FolderLake
from shared.storage import RangedReader
from tests.topic_posts import questions
from tests.world import Crash, IoLake, mortal, parquet, posts

UNTIL = date(2026, 11, 22)
MODEL_FILES = (MANIFEST, ARRAYS, CALIBRATION)
NOW = datetime(2026, 11, 22, tzinfo=UTC)


def parameters(**changes: object) -> TrainParameters:
    return TrainParameters.model_validate({"lake_root": "-", "until": UNTIL, "days": 7, "topics": 4} | changes)


def created(table: pa.Table, moment: datetime) -> pa.Table:
    return table.append_column("CreationDate", pa.repeat(pa.scalar(moment, pa.timestamp("us")), len(table)))


@pytest.fixture
def lake(tmp_path: Path) -> FolderLake:
    return FolderLake(tmp_path)


@pytest.fixture
def filled(lake: FolderLake) -> FolderLake:
    lake.put(paths.archive(UNTIL, "s", "v"), parquet(created(questions(500), datetime(2026, 11, 20))))
    return lake


@pytest.fixture(scope="module")
def others() -> list[TopicModel]:
    """Two models that were trained on very few posts."""
    return [fit(questions(60, seed), topics=2)[0] for seed in (1, 2)]


def titles(lake: FolderLake, days: int = 7) -> list[str]:
    damaged: list[str] = []
    found = archived_questions(lake, UNTIL, days, damaged)
    read = sorted(title.decode() for table in found for title in table["Title"].to_pylist())
    assert damaged == []
    return read


def test_only_the_current_version_of_a_source_is_read(lake: FolderLake) -> None:
    for day, source, version in ((20, "a", "v1"), (20, "a", "v2"), (21, "b", "v1"), (10, "c", "v1")):
        table = posts({"Title": f"{source} {version}", "Tags": "<x>"}).drop_columns(["ParentId"])
        lake.put(paths.archive(date(2026, 11, day), source, version), parquet(table))
    pointer = SourcePointer(version="v2", sequence=2, output="-", days=[], left=[])
    move_pointer(lake, paths.source_pointer("a"), pointer, None)
    assert titles(lake) == ["a v2", "b v1", "c v1"]


def test_nothing_is_learned_from_a_withdrawn_file(lake: FolderLake) -> None:
    table = parquet(created(questions(30), datetime(2026, 11, 20)))
    for source in ("kept", "withdrawn"):
        lake.put(paths.archive(UNTIL, source, "v"), table)
    nothing = SourcePointer(version="v", sequence=1, output=None, days=[], left=[])
    move_pointer(lake, paths.source_pointer("withdrawn"), nothing, None)
    assert sum(found.num_rows for found in archived_questions(lake, UNTIL, 365, [])) == 30


def test_posts_are_chosen_by_their_creation_date_and_not_by_the_day_of_the_file(lake: FolderLake) -> None:
    days = {"first": datetime(2026, 11, 16), "last": datetime(2026, 11, 22, 23, 59), "none": None}
    days |= {"before": datetime(2026, 11, 15, 23, 59), "after": datetime(2026, 11, 23)}
    table = posts(*({"Title": name, "Tags": "<x>", "CreationDate": day} for name, day in days.items()))
    lake.put(paths.archive(date(2011, 1, 1), "monthly", "v"), parquet(table))
    untagged = posts({"Title": "untagged"}, {"Title": "no question", "Tags": "<x>", "PostTypeId": 2})
    lake.put(paths.archive(UNTIL, "daily", "v"), parquet(untagged))
    assert titles(lake) == ["first", "last"]
    lake.put(paths.archive(UNTIL, "monthly", "v"), parquet(table))
    lake.delete(paths.archive(date(2011, 1, 1), "monthly", "v"))
    assert titles(lake) == ["first", "last", "none"]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_row_groups_without_wanted_days_are_not_read(
    lake: FolderLake, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = datetime(2026, 11, 1, 12)
    rows = [{"Title": f"{day:02}", "Tags": "<x>", "CreationDate": first + timedelta(day)} for day in range(30)]
    table = posts(*rows)
    place = table.schema.get_field_index("CreationDate")
    table = table.set_column(place, "CreationDate", table["CreationDate"].cast(pa.timestamp(unit, "Europe/Berlin")))
    path = lake.root / paths.archive(UNTIL, "s", "v")
    path.parent.mkdir(parents=True)
    pq.write_table(table, path, row_group_size=3)
    read: list[int] = []
    batches = rowgroups.batches

    def noted(file: Any, columns: Any, groups: Any = None) -> Any:
        read.extend(groups)
        return batches(file, columns, groups)

    monkeypatch.setattr(rowgroups, "batches", noted)
    assert titles(lake) == [f"{day:02}" for day in range(15, 22)]
    assert read == [5, 6, 7]


def damaged(data: bytes) -> bytes:
    """A Posts file with a valid footer, a valid first row group, and a second one with damaged titles."""
    group = pq.read_metadata(pa.BufferReader(data)).row_group(1)
    (column,) = (group.column(at) for at in range(group.num_columns) if group.column(at).path_in_schema == "Title")
    start = column.dictionary_page_offset or column.data_page_offset
    return data[:start] + b"\xff" * 60 + data[start + 60 :]


def in_groups(table: pa.Table, rows: int) -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(table, out, row_group_size=rows)
    return bytes(out.getvalue())


def test_damaged_files_do_not_stop_a_training(filled: FolderLake, caplog: pytest.LogCaptureFixture) -> None:
    day, table = datetime(2026, 11, 20), questions(200)
    others = created(table.set_column(0, "Id", pa.array(range(1_001, 1_201))), day)
    structures = others.set_column(others.schema.get_field_index("Title"), "Title", pa.array([{"a": 1}] * 200))
    spoilt = {
        "a-pages": damaged(in_groups(others, 100)),
        "b-structures": parquet(structures),
        "c-cut": parquet(others)[:-9],
        "d-text": b"Id,Title\n" * 9,
    }
    for source, data in spoilt.items():
        filled.put(paths.archive(UNTIL, source, "v"), data)
    result = train(filled, parameters())
    assert result.questions == 500 + 100
    told = [line.partition(" cannot be read as a Parquet file: ")[0] for line in result.damaged]
    assert told == [paths.archive(UNTIL, source, "v") for source in spoilt]
    assert all(line.isprintable() for line in result.damaged)
    assert Training.model_validate_json(filled.read(paths.training_record(UNTIL))) == result
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == result.damaged

    filled.delete(paths.archive(UNTIL, "s", "v"))
    filled.delete(paths.archive(UNTIL, "a-pages", "v"))
    with pytest.raises(BadInput, match=r"no tagged .* 2026-11-22: raise TRAINING_DAYS; .*b-structures.*; .*c-cut"):
        train(filled, parameters())


@pytest.mark.parametrize("error", [TransientError("the lake is busy"), OSError(errno.EIO, "the disk is slow")])
def test_an_unavailable_lake_is_not_reported_as_a_damaged_file(
    filled: FolderLake, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    size = len(filled.read(paths.archive(UNTIL, "s", "v")))

    def fetch(offset: int, length: int) -> bytes:
        if offset < size // 2:
            raise error
        return filled.read(paths.archive(UNTIL, "s", "v"))[offset : offset + length]

    monkeypatch.setattr(filled, "open", lambda path: RangedReader(fetch, size, path))
    with pytest.raises(type(error), match=str(error.args[-1])):
        train(filled, parameters())
    assert filled.stat(paths.training_record(UNTIL)) is None


def test_of_a_duplicate_question_the_last_row_of_the_newest_file_is_used(lake: FolderLake) -> None:
    def row(number: int | None, title: str, **other: Any) -> dict[str, Any]:
        return {"Id": number, "Title": title, "Tags": "<x>"} | other

    files = [
        (
            UNTIL,
            "a",
            "20261122T000000Z-a",
            [row(1, "1 older"), row(2, "2 older"), row(3, "3"), row(2, "2 old")],
        ),
        (date(2026, 11, 1), "monthly", "20261123T000000Z-m", [row(1, "1 first"), row(2, "2"), row(1, "1")]),
        (UNTIL, "z", "20261121T000000Z-z", [row(1, "1 oldest"), row(4, "4"), row(None, "no Id"), row(None, "no Id")]),
    ]
    for day, source, version, rows in files:
        lake.put(paths.archive(day, source, version), parquet(posts(*rows)))
    for most in (100, 4):
        found = tagged_questions(sample(archived_questions(lake, UNTIL, 7, []), most))
        assert sorted(title.decode() for title in found.titles.to_pylist()) == ["1", "2", "3", "4"]
    assert found.ids.dtype == np.int64


def test_a_duplicate_file_is_used_once(filled: FolderLake) -> None:
    once = train(filled, parameters(margin=1.0))
    filled.put(paths.archive(date(2026, 11, 1), "monthly", "v"), filled.read(paths.archive(UNTIL, "s", "v")))
    twice = train(filled, parameters(margin=1.0))
    assert (twice.candidate, twice.questions, twice.held_out) == (once.candidate, 500, once.held_out)
    fewer = train(filled, parameters(margin=1.0, max_questions=200))
    assert fewer.questions == 200


def test_a_sample_has_each_question_once_and_at_most_the_given_number_of_rows() -> None:
    ids = np.random.default_rng(0).integers(0, 5_000, 40_000)
    rows = pa.table({"Id": ids, "at": np.arange(len(ids))})
    tables = [rows.slice(first, 500) for first in range(0, len(rows), 500)]
    found = pa.concat_tables(sample(iter(tables), 1_000))
    held = found["Id"].to_pylist()
    assert len(held) == len(set(held)) == 1_000
    last = dict(zip(ids.tolist(), range(len(ids)), strict=True))
    assert found["at"].to_pylist() == [last[number] for number in held]
    alone = pa.concat_tables(sample(iter([pa.table({"Id": np.unique(ids)})]), 1_000))
    assert sorted(alone["Id"].to_pylist()) == sorted(held)


def test_a_sample_does_not_depend_on_the_order_of_its_input() -> None:
    ids = np.arange(10_000)
    tables = [pa.table({"Id": part}) for part in np.array_split(ids, 100)]

    def sampled(tables: list[pa.Table]) -> list[int]:
        return sorted(number for table in sample(tables, 1_000) for number in table["Id"].to_pylist())

    found = sampled(tables)
    assert found == sampled(tables[::-1])
    assert len(found) == 1_000
    assert np.mean(found) == pytest.approx(5_000, abs=300)
    assert sampled(tables[:10]) == ids[:1_000].tolist()


def test_a_training_uses_at_most_the_set_number_of_questions(filled: FolderLake) -> None:
    kept = train(filled, parameters(max_questions=100, margin=1.0))
    assert kept.questions == 100
    assert load_model(filled, kept.candidate).trained_on["questions"] == 100 - kept.held_out


def test_a_candidate_is_promoted_only_if_it_is_better(filled: FolderLake) -> None:
    starter = current_version(filled)
    kept = train(filled, parameters(margin=1.0))
    assert (kept.promoted, kept.current, current_version(filled)) == (False, starter, starter)
    assert kept.reason.startswith("not better: ")
    assert f" of {starter} on " in kept.reason
    assert kept.questions > 5 * kept.held_out * 0.8 > 0
    assert load_model(filled, kept.candidate).topics[-1] == "other"
    assert Training.model_validate_json(filled.read(paths.training_record(UNTIL))) == kept

    better = train(filled, parameters(margin=-1.0))
    assert better.promoted
    assert better.candidate == kept.candidate == current_version(filled)
    assert [found.version for found in versions(filled)] == [starter, kept.candidate]
    assert rollback(filled).version == starter
    assert current_model(filled)[0].reason == f"rolled back from {kept.candidate}"


def test_a_model_that_cannot_be_used_is_replaced(filled: FolderLake) -> None:
    pointer, _ = current_model(filled)
    manifest = f"{paths.model(pointer.version)}/{MANIFEST}"
    filled.put(manifest, filled.read(manifest).replace(b'"format": 2', b'"format": 3'))
    result = train(filled, parameters())
    assert result.promoted
    assert current_version(filled) == result.candidate
    assert "against 0 of the unusable" in result.reason
    assert "has format 3" in result.reason
    arrays = f"{paths.model(result.candidate)}/{ARRAYS}"
    filled.put(arrays, b"damaged")
    again = train(filled, parameters())
    assert (again.promoted, again.candidate, current_version(filled)) == (False, again.current, result.candidate)
    assert again.reason.startswith("written again: ")
    assert load_model(filled, result.candidate).version == result.candidate


def test_the_card_and_the_evaluation_have_the_measured_figures(filled: FolderLake) -> None:
    kept = train(filled, parameters(margin=1.0))
    folder = paths.model(kept.candidate)
    report, text = json.loads(filled.read(f"{folder}/{EVALUATION}")), filled.read(f"{folder}/{CARD}").decode()
    assert (report["folds"], report["posts"], report["topics"]) == (1, kept.held_out, 4)
    assert {found.version: found.evaluation for found in versions(filled) if isinstance(found, Stored)}[
        kept.candidate
    ] == report
    for said in (kept.reason, "CC BY-SA", "in the 7 days to 2026-11-22", f"{report['hit_at_1']:.4f}"):
        assert said in text
    for part in ("days", "shifted_days"):
        for name in ("histogram_error", "counted_error", "coverage", "drifted"):
            assert f"| {report[part][name]:.4f} |" in text, name
    for row in report["by_topic"]:
        assert f"| {row['topic']} | {row['posts']:,} | {row['found']:,} | {row['right']:,} | {row['f1']:.3f} |" in text


def test_the_report_of_several_folds_is_their_mean() -> None:
    model, _ = fit(questions(300), topics=4)
    reports = cross_validate(questions(300), topics=4, folds=2)
    found = mean_evaluation(reports)
    assert (found["folds"], found["posts"], found["topics"]) == (2, 300, 4)
    assert found["days"]["coverage"] == pytest.approx((reports[0].days.coverage + reports[1].days.coverage) / 2)
    assert sum(row["posts"] for row in found["by_topic"]) == 300
    assert found.keys() - {"folds"} == reports[0].to_json().keys()
    text = card(model, reports, ["a.parquet"], made_by="me", measured="Measured by halves.")
    low, high = sorted(report.hit_at_1 for report in reports)
    assert f"| {found['hit_at_1']:.4f} | {low:.4f} to {high:.4f} |" in text


def test_a_training_on_the_same_questions_leaves_the_current_model_unchanged(filled: FolderLake) -> None:
    first = train(filled, parameters(margin=-1.0))
    written = filled.read(f"{paths.model(first.candidate)}/{CARD}")
    again = train(filled, parameters(margin=-1.0))
    assert (again.candidate, again.promoted) == (first.candidate, False)
    assert again.reason == f"{first.candidate} is the current model: the same questions make the same model"
    assert filled.read(f"{paths.model(first.candidate)}/{CARD}") == written
    assert current_model(filled)[0].history == [first.current]


def test_a_repeated_run_leaves_the_record_of_the_promotion(filled: FolderLake) -> None:
    first = train(filled, parameters(margin=-1.0))
    again = train(filled, parameters(margin=-1.0))
    worse = train(filled, parameters(margin=1.0, max_questions=100))
    records = [info.path for info in filled.list(paths.TRAINING_RECORDS)]
    found = {path: Training.model_validate_json(filled.read(path)) for path in records}
    assert found == {paths.training_record(UNTIL, number): run for number, run in enumerate((first, again, worse), 1)}
    assert (first.became, again.became, worse.became) == ("promoted", "the current model already", "kept aside")
    assert paths.training_record(UNTIL) == "runs/training/2026-11-22.json"


def test_a_candidate_replaces_only_the_model_it_was_compared_with(
    filled: FolderLake, others: list[TopicModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    starter, other = current_version(filled), store_model(filled, others[0], {}, "")

    def store_while_another_is_promoted(*arguments: Any) -> str:
        promote(filled, other, "by hand")
        return store_model(*arguments)

    monkeypatch.setattr(train_module, "store_model", store_while_another_is_promoted)
    result = train(filled, parameters(margin=-1.0))
    assert (result.promoted, result.current, current_version(filled)) == (False, starter, other)
    assert result.reason.startswith("better: ")
    assert result.reason.endswith(f"; kept aside, because {starter} is no longer the current model")
    assert Training.model_validate_json(filled.read(paths.training_record(UNTIL))) == result
    assert load_model(filled, result.candidate)


def test_every_rollback_goes_one_model_further_back(lake: FolderLake, others: list[TopicModel]) -> None:
    starter = current_version(lake)
    good, bad = (store_model(lake, model, {}, "") for model in others)
    for version in (good, bad):
        promote(lake, version, "better")
    assert rollback(lake).version == good
    assert rollback(lake).version == current_version(lake) == starter
    with pytest.raises(ModelError, match="the first model"):
        rollback(lake)
    promote(lake, good, "again")
    assert (rollback(lake).version, current_model(lake)[0].history) == (starter, [])


def test_only_complete_models_are_promoted(lake: FolderLake, others: list[TopicModel]) -> None:
    starter = current_version(lake)
    for version in ("nothing", ""):
        with pytest.raises(ModelError, match=f"there is no model {version} in"):
            promote(lake, version, "why")
    with pytest.raises(ModelError, match="the first model"):
        rollback(lake)
    assert promote(lake, starter, "again").reason == "the starter"
    seen = current_model(lake)
    promote(lake, store_model(lake, others[0], {}, ""), "first")
    with pytest.raises(Conflict):
        promote(lake, store_model(lake, others[1], {}, ""), "second", instead_of=seen)


def test_a_half_written_model_has_no_manifest(tmp_path: Path, others: list[TopicModel]) -> None:
    calls: list[str] = []

    @contextmanager
    def counted(what: str) -> Iterator[None]:
        calls.append(what)
        yield

    store_model(IoLake(tmp_path, counted), others[0], {}, "")
    assert list(versions(FolderLake(tmp_path))) == [(others[0].version, others[0].trained_on, {})]
    halves = 0
    for number in range(1, len(calls) + 1):
        lake = FolderLake(tmp_path / str(number))
        with pytest.raises(Crash):
            store_model(mortal(lake.root, number), others[0], {}, "")
        if list(versions(lake)):
            assert load_model(lake, others[0].version).topics == others[0].topics
        else:
            halves += 1
            with pytest.raises(ModelError):
                load_model(lake, others[0].version)
    assert halves > 4


def test_a_model_must_have_the_version_in_its_folder_name(lake: FolderLake, others: list[TopicModel]) -> None:
    one, other = (store_model(lake, model, {}, "") for model in others)
    for name in MODEL_FILES:
        lake.put(f"{paths.model(other)}/{name}", lake.read(f"{paths.model(one)}/{name}"))
    for load in (load_model, load_behaviour):
        with pytest.raises(ModelError, match=f"{other} holds {one}, not the model"):
            load(lake, other)
    with pytest.raises(ModelError, match="holds"):
        promote(lake, other, "why")


def test_only_the_known_files_of_a_model_are_read(lake: FolderLake, others: list[TopicModel]) -> None:
    version = store_model(lake, others[0], {}, "")
    for stray in ("old/model.json", "old/arrays.npz", "huge.bin"):
        lake.put(f"{paths.model(version)}/{stray}", b"stray")
    calls: list[str] = []

    @contextmanager
    def noted(what: str) -> Iterator[None]:
        calls.append(what)
        yield

    assert load_model(IoLake(lake.root, noted), version).version == version
    assert {call.rpartition(f"{version}/")[2] for call in calls} == {*MODEL_FILES}
    lake.delete(f"{paths.model(version)}/{ARRAYS}")
    with pytest.raises(ModelError, match=f"model {version} is incomplete: .*{ARRAYS}"):
        load_model(lake, version)


def test_the_starter_comes_with_its_evaluation(
    lake: FolderLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: list[TopicModel]
) -> None:
    starter = tmp_path / "starter"
    others[0].save(starter)
    (starter / EVALUATION).write_text('{"folds": 5, "hit_at_1": 0.5}')
    monkeypatch.setattr(models, "STARTER", starter)
    assert list(versions(lake)) == []
    version = current_version(lake)
    assert [found.evaluation for found in versions(lake) if isinstance(found, Stored)] == [
        {"folds": 5, "hit_at_1": 0.5}
    ]
    assert (starter / MANIFEST).read_bytes() == lake.read(f"{paths.model(version)}/{MANIFEST}")


def test_a_training_on_too_few_questions_is_refused(lake: FolderLake, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no tagged question"):
        train(lake, parameters())
    lake.put(paths.archive(UNTIL, "s", "v"), parquet(posts(*({"Tags": "<python>"} for _ in range(30)))))
    with pytest.raises(BadInput, match="30 tagged questions in the 7 days to 2026-11-22 are too few for 4 topics: 50"):
        train(lake, parameters())
    assert main(["--lake-root", str(tmp_path), "--until", "2026-11-22", "--days", "7"]) == 1


def test_the_refusal_of_too_few_questions_names_the_setting_to_raise(filled: FolderLake) -> None:
    few = "500 tagged questions in the 7 days to 2026-11-22 are too few for 60 topics: 600 are needed; "
    with pytest.raises(BadInput, match=f"{few}raise TRAINING_DAYS, or lower TRAINING_TOPICS"):
        train(filled, parameters(topics=60))
    with pytest.raises(BadInput, match="600 are needed; TRAINING_MAX_QUESTIONS takes 400 of 500 rows: raise it, or"):
        train(filled, parameters(topics=60, max_questions=400))
    filled.put(paths.archive(date(2026, 11, 1), "monthly", "v"), filled.read(paths.archive(UNTIL, "s", "v")))
    with pytest.raises(BadInput, match=f"{few}raise TRAINING_DAYS, or"):
        train(filled, parameters(topics=60, max_questions=550))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--topics 0", "--topics 0: Input should be greater than or equal to 2"),
        ("--topics -1", "--topics -1: Input should be greater than or equal to 2"),
        ("--topics x", "--topics x: Input should be a valid integer"),
        ("--days 0", "--days 0: "),
        ("--max-questions 0", "--max-questions 0: "),
        ("--margin nan", "--margin nan: Input should be a finite number"),
        ("--margin inf", "--margin inf: Input should be a finite number"),
        ("--until today", "--until today: "),
    ],
)
def test_an_invalid_parameter_is_logged_in_one_line(
    filled: FolderLake, given: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = {"--lake-root": str(filled.root), "--until": "2026-11-22", "--topics": "4"}
    name, value = given.split()
    arguments[name] = value
    assert main([f"{name}={value}" for name, value in arguments.items()]) == 1
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"no model was trained: {said}")
    assert "\n" not in line


def test_a_window_beyond_the_calendar_takes_all_days(filled: FolderLake) -> None:
    assert train(filled, parameters(days=10**9, margin=1.0)).questions == 500
