"""The classification of one file: what decides each topic, and which posts are counted."""

from __future__ import annotations

import io
import random
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from classify import job
from classify.days import tally
from classify.days.day import Contribution
from classify.model.text import MAX_BODY_BYTES
from classify.posts import rowgroups
from classify.posts.rowgroups import BATCH_ROWS
from classify.registry.summary import COUNTS_FILE, REFUSED_FILE, SUMMARY_FILE, Summary
from classify.run import arrow, census, output
from classify.run.engine import run
from classify.run.parameters import JobParameters
from ingest.contracts import check_posts
from shared import paths
from shared.errors import BadInput, ModelError, NotFound, TerminalError
from shared.lake import FolderLake
from shared.storage import RangedReader
from tests.real_posts import RealPosts
from tests.world import MODEL_VERSION, damaged, parquet, posts, starter

PYTHON, JAVA = {"Tags": "<python>"}, {"Tags": "<java>"}
ANSWER = {"PostTypeId": 2, "Title": None}
CSS_BODY = {"Body": "<p>css: two css floats</p><pre><code>.menu { float: left; margin: 0; padding: 0 }</code></pre>"}


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderLake:
    monkeypatch.setattr(arrow, "load_model", lambda lake, version: {MODEL_VERSION: starter()}[version])
    return FolderLake(tmp_path)


def classify(lake: FolderLake, table: pa.Table, source: str = "s", **changes: Any) -> tuple[Summary, pa.Table]:
    lake.put(paths.landing(source, "v"), parquet(table))
    parameters = JobParameters(
        lake_root="-", source_id=source, version="v", file_day=date(2026, 1, 2), model=MODEL_VERSION, **changes
    )
    summary = run(lake, parameters)
    with lake.open(f"{parameters.output}/part-00000.parquet") as file:
        rows = pq.read_table(file)
    assert Summary.model_validate_json(lake.read(f"{parameters.output}/{SUMMARY_FILE}")) == summary
    with lake.open(f"{parameters.output}/{COUNTS_FILE}") as file:
        counts = pq.read_table(file)
    assert sum(counts["questions"].to_pylist()) == summary.questions
    assert sum(counts["answers"].to_pylist()) == summary.answers
    return summary, rows


def by_id(rows: pa.Table, column: str) -> dict[int, str]:
    return dict(zip(rows["Id"].to_pylist(), rows[column].to_pylist(), strict=True))


def test_the_tags_of_a_question_decide_its_topic(lake: FolderLake) -> None:
    table = posts(PYTHON, {"Tags": "|unheard-of|"}, {"Tags": None, **CSS_BODY}, {"Tags": "", **CSS_BODY})
    _, rows = classify(lake, table)
    assert by_id(rows, "decided_by") == {1: "tags", 2: "tags", 3: "model", 4: "model"}
    assert by_id(rows, "topic") == {1: "python", 2: "other", 3: "css", 4: "css"}
    _, rows = classify(lake, table, topic_source="model")
    assert set(rows["decided_by"].to_pylist()) == {"model"}


def test_answers_take_the_topic_of_a_question_of_this_or_an_earlier_file(lake: FolderLake) -> None:
    classify(lake, posts({**JAVA, "Id": 5_000_000}), source="earlier")
    before = {**ANSWER, "ParentId": 2, "Id": 1}  # comes before its question
    orphan = {**ANSWER, "ParentId": 999, "Id": 4, **CSS_BODY}
    table = posts(before, {**PYTHON, "Id": 2}, {**ANSWER, "ParentId": 5_000_000, "Id": 3}, orphan)
    summary, rows = classify(lake, table)
    assert by_id(rows, "topic") == {1: "python", 2: "python", 3: "java", 4: "css"}
    assert by_id(rows, "decided_by") == {1: "parent", 2: "tags", 3: "parent", 4: "model"}
    assert (summary.questions, summary.answers) == (1, 3)


def test_an_answer_is_as_uncertain_as_its_question(lake: FolderLake) -> None:
    """The model decides two questions, one of them in another file, and tags a third; all have answers on two days."""
    guessed = {"Tags": None, **CSS_BODY}
    classify(lake, posts({**guessed, "Id": 5_000_000}), source="earlier")
    parents = [5_000_000, 5_000_000, 2, 2, 2, 3]
    answers: list[dict[str, Any]] = [
        {**ANSWER, "ParentId": parent, "Id": 10 + number} for number, parent in enumerate(parents)
    ]
    answers[4]["CreationDate"] = datetime(2026, 11, 22)
    classify(lake, posts({**guessed, "Id": 2}, {**PYTHON, "Id": 3}, *answers))
    output = paths.post_topics("s", "v", MODEL_VERSION, "tags")
    counted = Contribution.from_parquet(lake.read(f"{output}/{COUNTS_FILE}"), "here").tally
    css = counted.topics.index("css")
    found = counted.of(date(2026, 11, 21))[1]
    assert (found.known.sum(), found.said.sum(), found.inherited.sum()) == (2, 1, 4)
    assert (found.inherited[css], found.bundled) == (4, 2**2 + 2**2)
    later = counted.of(date(2026, 11, 22))[1]
    assert (later.posts, later.inherited[css], later.bundled) == (1, 1, 1)


def test_an_answer_without_a_question_does_not_inherit_from_question_0(lake: FolderLake) -> None:
    table = posts({**PYTHON, "Id": 0}, {**ANSWER, "Id": 1, "ParentId": None, **CSS_BODY})
    _, rows = classify(lake, table)
    assert by_id(rows, "decided_by") == {0: "tags", 1: "model"}
    assert by_id(rows, "topic") == {0: "python", 1: "css"}


def test_the_fit_of_the_model_is_stored_also_where_tags_decide(lake: FolderLake) -> None:
    table = posts(
        {**PYTHON, **CSS_BODY}, {**PYTHON, "Title": "qwrtzp", "Body": "<p>xkcdq</p>"}, {**ANSWER, "ParentId": 1}
    )
    found = []
    for source in ("tags", "model"):
        summary, _ = classify(lake, table, topic_source=source)
        output = paths.post_topics("s", "v", MODEL_VERSION, source)
        tally = Contribution.from_parquet(lake.read(f"{output}/{COUNTS_FILE}"), source).tally
        found.append(tally.of(date(2026, 11, 21))[1])
        assert summary.answers == 1
    by_tags, by_model = found
    assert (by_tags.guessed, by_model.guessed) == (0, 2)
    assert by_tags.scored == by_model.scored == 2
    assert by_tags.others == by_model.others == 1
    assert by_tags.mean_margin == by_model.mean_margin != 0
    assert 0 < by_tags.vocabulary_overlap == by_model.vocabulary_overlap < 1


def test_every_parent_that_is_not_in_the_file_is_looked_up_once() -> None:
    least, most = -(2**63), 2**63 - 1  # their difference exceeds int64
    out = io.BytesIO()
    parents = [None, 1000, least, 1001, most, 1000, 7]
    pq.write_table(pa.table({"Id": [7, 8, 9, 10, 11, 12, 13], "PostTypeId": [1] + [2] * 6, "ParentId": parents}), out)
    found = census.Census(pq.ParquetFile(out))
    assert found.parents_elsewhere.tolist() == [least, 1000, 1001, most]
    assert found.questions.tolist() == [7]


def test_the_last_of_several_rows_with_one_id_counts(lake: FolderLake) -> None:
    summary, rows = classify(
        lake, posts({**PYTHON, "Id": 7}, {**JAVA, "Id": 7}, {**JAVA, "Id": None}, {"Id": None, **JAVA})
    )
    assert by_id(rows.filter(pc.is_valid(rows["Id"])), "topic") == {7: "java"}
    assert (summary.questions, summary.duplicates, summary.rows) == (3, 1, 4)


def test_other_post_types_are_reported_but_not_counted(lake: FolderLake) -> None:
    summary, rows = classify(lake, posts(PYTHON, {"PostTypeId": 5}, {"PostTypeId": 5}, {"PostTypeId": None}))
    assert summary.uncounted == {"5": 2, "null": 1}
    assert rows.num_rows == summary.counted == 1


def test_a_file_without_optional_columns_or_without_rows_is_classified(lake: FolderLake) -> None:
    summary, _ = classify(lake, posts(CSS_BODY).drop_columns(["ParentId", "Tags"]))
    assert summary.decided_by == {"model": 1}
    summary, rows = classify(lake, posts(PYTHON).slice(0, 0))
    assert (summary.counted, rows.num_rows) == (0, 0)


NO_UTF8 = pa.array([b"2026-01-01", b"2026-01-\xff\xff"]).cast(pa.large_binary()).view(pa.large_string())


@pytest.mark.parametrize(
    "dates",
    [
        pa.array([1_767_225_600_000_000, 1_767_225_600_000_000_000]).cast(pa.timestamp("us")),  # the last: nanoseconds
        pa.array([1_767_225_600_000, 2**62]).cast(pa.timestamp("ms")),
        pa.array(["2026-01-01T00:00:00", "9999-12-31T23:59:59-05:00"]),
        NO_UTF8,
    ],
    ids=["nanoseconds", "extreme", "beyond the calendar", "no UTF-8"],
)
def test_one_invalid_date_does_not_stop_a_file(lake: FolderLake, dates: pa.Array) -> None:
    table = posts(PYTHON, PYTHON)
    table = table.set_column(table.schema.get_field_index("CreationDate"), "CreationDate", dates)
    assert check_posts(io.BytesIO(parquet(table)), "a.parquet").rows == 2
    classify(lake, table)
    counts = lake.read(f"{paths.post_topics('s', 'v', MODEL_VERSION, 'tags')}/{COUNTS_FILE}")
    assert Contribution.from_parquet(counts, "counts").tally.days() == [date(2026, 1, 1), date(2026, 1, 2)]


@pytest.mark.parametrize("kind", [pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_texts_of_any_arrow_type_are_read(lake: FolderLake, kind: pa.DataType) -> None:
    table = posts(PYTHON, {"PostTypeId": 5}, {"Tags": None, **CSS_BODY})
    for name in ("Title", "Body", "Tags"):
        column = table[name].combine_chunks()
        column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
        table = table.set_column(table.schema.get_field_index(name), name, column)
    dates = pa.array(["2026-01-01", "2026-01-01", "2026-01-01T00:00:00"])
    dates = dates.dictionary_encode() if pa.types.is_dictionary(kind) else dates.cast(kind)
    table = table.set_column(table.schema.get_field_index("CreationDate"), "CreationDate", dates)
    assert pq.read_schema(io.BytesIO(parquet(table))).field("Body").type == kind
    assert check_posts(io.BytesIO(parquet(table)), "a.parquet").rows == 3
    _, rows = classify(lake, table)
    assert by_id(rows, "topic") == {1: "python", 3: "css"}
    assert set(rows["day"].to_pylist()) == {date(2026, 1, 1)}


@pytest.mark.parametrize("is_large", [True, False])
def test_a_large_row_group_is_read_in_small_parts(is_large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = pa.table({"Body": [random.randbytes(1_000) for _ in range(6_000)]})
    data = parquet(bodies)
    fetched: list[int] = []

    def fetch(offset: int, length: int) -> bytes:
        fetched.append(length)
        return data[offset : offset + length]

    if is_large:
        monkeypatch.setattr(rowgroups, "LARGE_GROUP", len(data) // 2)
        monkeypatch.setattr(rowgroups, "READ_BUFFER", 1 << 20)
    file = rowgroups.reader(RangedReader(fetch, len(data), "posts"), pq.read_metadata(io.BytesIO(data)))
    assert pa.Table.from_batches(rowgroups.batches(file, ["Body"])) == bodies
    assert (max(fetched) < len(data) / 2) == is_large


def test_the_size_of_batches_and_row_groups_does_not_change_the_result(
    lake: FolderLake, real_posts: RealPosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pq.read_table(real_posts("posts.parquet")).slice(4_000, 1_500)
    _, whole = classify(lake, table)
    monkeypatch.setattr(rowgroups, "BATCH_ROWS", 97)
    monkeypatch.setattr(arrow, "BATCH_ROWS", 97)
    monkeypatch.setattr(arrow, "ROWS_AT_ONCE", 10)
    monkeypatch.setattr(output, "GROUP_ROWS", 100)
    _, pieces = classify(lake, table)
    order = [("Id", "ascending")]
    assert (
        whole.drop_columns(["score_1", "score_2", "score_3"])
        .sort_by(order)
        .equals(pieces.drop_columns(["score_1", "score_2", "score_3"]).sort_by(order))
    )


def test_the_error_names_a_missing_file_or_model(
    lake: FolderLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--source-id", "s", "--version", "v", "--file-day", "2026-01-01", "--topic-source", "tags"]
    parameters = JobParameters.from_arguments(["--lake-root", "r", "--model", MODEL_VERSION, *arguments])
    with pytest.raises(NotFound, match=r"landing/posts/s/v\.parquet does not exist"):
        run(lake, parameters)
    monkeypatch.undo()
    lake.put(paths.landing("s", "v"), parquet(posts(PYTHON)))
    with pytest.raises(ModelError, match="there is no model nothing"):
        run(lake, parameters.model_copy(update={"model": "nothing"}))
    assert job.main(["--lake-root", str(tmp_path), "--model", "nothing", *arguments]) == 1


def test_invalid_dates_are_reported_and_a_majority_of_them_is_refused(lake: FolderLake) -> None:
    def dated(*dates: str | None) -> pa.Table:
        table = posts(*[{}] * len(dates), {"PostTypeId": 5})
        place = table.schema.get_field_index("CreationDate")
        return table.set_column(place, "CreationDate", pa.array([*dates, "02/03/2026"]))

    assert classify(lake, dated("2026-01-05", None, "", ""))[0].misdated == 0
    assert classify(lake, dated("02/03/2026", "2026-01-05", "2026-02-30", None))[0].misdated == 2
    with pytest.raises(BadInput, match="the CreationDate of 2 of 3 posts is invalid: it must be ISO 8601"):
        classify(lake, dated("02/03/2026", "2026-01-05", "yesterday"))


def test_a_file_with_too_many_days_is_refused(lake: FolderLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MAX_DAYS", 3)
    days = [{"CreationDate": datetime(2026, 1, day)} for day in (1, 2, 2, 4)]
    assert classify(lake, posts(*days))[0].questions == 4
    with pytest.raises(BadInput, match="belong to more than 3 days, from 2026-01-01 to 2026-01-09"):
        classify(lake, posts(*days, {"CreationDate": datetime(2026, 1, 9)}))


@pytest.mark.parametrize("column", ["Id", "Body"])
def test_the_error_of_damaged_data_names_the_file(lake: FolderLake, column: str) -> None:
    data = damaged(posts(*({"Body": f"<p>{number}</p>" * 50} for number in range(500))), column)
    check_posts(io.BytesIO(data), "a.parquet")
    lake.put(paths.landing("s", "v"), data)
    parameters = JobParameters(
        lake_root="-", source_id="s", version="v", file_day=date(2026, 1, 2), model=MODEL_VERSION
    )
    said = f"{paths.landing('s', 'v')} cannot be read as a Parquet file"
    with pytest.raises(BadInput, match=f"^{said}"):
        run(lake, parameters)
    (left,) = lake.list(parameters.output)
    assert left.path.endswith(REFUSED_FILE)
    assert said in lake.read(left.path).decode()
    classify(lake, posts(PYTHON))
    with pytest.raises(NotFound):
        lake.read(left.path)


def test_a_damaged_file_of_question_topics_is_not_blamed_on_the_posts(lake: FolderLake) -> None:
    classify(lake, posts({**JAVA, "Id": 5}), source="earlier")
    (kept,) = lake.list(paths.question_topics(0))
    lake.put(kept.path, b"PAR1 and nothing else PAR1")
    with pytest.raises(TerminalError, match=f"^{kept.path} cannot be read as a Parquet file"):
        classify(lake, posts({**ANSWER, "ParentId": 5}))
    assert not any(REFUSED_FILE in info.path for info in lake.list("post_topics"))


def test_a_run_after_the_publication_leaves_the_output_complete(lake: FolderLake) -> None:
    summary, _ = classify(lake, posts(PYTHON))
    lake.delete(paths.landing("s", "v"))
    parameters = JobParameters(
        lake_root="-", source_id="s", version="v", file_day=date(2026, 1, 2), model=MODEL_VERSION
    )
    with pytest.raises(NotFound):
        run(lake, parameters)
    assert Summary.model_validate_json(lake.read(f"{parameters.output}/{SUMMARY_FILE}")) == summary


def test_an_output_that_is_being_rewritten_is_not_marked_as_complete(
    lake: FolderLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = posts(PYTHON)
    classify(lake, table)
    output = paths.post_topics("s", "v", MODEL_VERSION, "tags")
    monkeypatch.setattr(arrow, "score", None)
    with pytest.raises(TypeError):
        classify(lake, table)
    with pytest.raises(NotFound):
        lake.read(f"{output}/{SUMMARY_FILE}")


def test_long_texts_come_in_smaller_batches(tmp_path: Path) -> None:
    """The texts take 4 KB on disk and 300 MB in memory."""
    long = pa.array(["<p>python</p>" + "x" * 1_000_000]).take(pa.array([0] * 300))
    table = pa.table({"Id": pa.array(range(3_300)), "Body": pa.chunked_array([["short"] * 3_000, long])})
    pq.write_table(table, tmp_path / "posts.parquet", compression="zstd")
    assert (tmp_path / "posts.parquet").stat().st_size < 100_000
    with pq.ParquetFile(tmp_path / "posts.parquet") as file:
        batches = list(arrow._batches_of_texts(file))
    assert [number for batch in batches for number in batch["Id"].to_pylist()] == list(range(3_300))
    assert max(batch.num_rows for batch in batches) == BATCH_ROWS
    assert max(batch.nbytes for batch in batches) < 1.1 * arrow.LARGEST_BATCH
    assert {len(body) for body in batches[-1]["Body"].to_pylist()} == {MAX_BODY_BYTES}
