"""Asking for the topics of a day."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from serve.health import health
from serve.topics import check_names, latest_day, parse_day, parse_format, parse_question, parse_top, topics_of_day
from shared.catalog import DayPointer, move_pointer, note_latest
from shared.errors import BadInput, NotFound, TransientError
from shared.lake import FolderLake
from shared.paths import day_pointer, topics_file
from shared.services import Services


def publish(lake: FolderLake, day: date, lines: list[str]) -> None:
    file = topics_file(day, "p", "csv")
    lake.put(
        file, "\n".join(["day,rank,topic,posts,questions,answers,share,estimated_share,low,high", *lines]).encode()
    )
    pointer = DayPointer(
        day=day,
        publish_id="p",
        parquet="-",
        csv=file,
        posts=4 * bool(lines),
        questions=3 * bool(lines),
        answers=1 * bool(lines),
        sources={},
        published_at=datetime(2026, 11, 22, tzinfo=UTC),
    )
    move_pointer(lake, day_pointer(day), pointer, None)
    note_latest(lake, day, pointer.posts)


@pytest.fixture
def lake(tmp_path: Path) -> FolderLake:
    lake = FolderLake(tmp_path)
    publish(
        lake,
        date(2026, 11, 20),
        ["2026-11-20,1,python,3,2,1,0.75,0.7,0.6,0.8", '2026-11-20,2,"c, or so",1,1,0,0.25,0.3,0.2,0.4'],
    )
    publish(lake, date(2026, 11, 21), [])
    return lake


def test_the_latest_day_is_the_last_with_posts(lake: FolderLake) -> None:
    found = topics_of_day(lake)
    assert found.day == date(2026, 11, 20)
    assert [(topic.rank, topic.topic, topic.share) for topic in found.topics] == [
        (1, "python", 0.75),
        (2, "c, or so", 0.25),
    ]
    assert found.to_csv().splitlines()[2] == '2026-11-20,2,"c, or so",1,1,0,0.25,0.3,0.2,0.4'


def test_the_limit_of_topics_does_not_change_the_counts_of_a_day(lake: FolderLake) -> None:
    found = topics_of_day(lake, date(2026, 11, 20), top=1)
    assert (len(found.topics), found.posts) == (1, 4)
    assert topics_of_day(lake, date(2026, 11, 21)).topics == []


def test_a_day_that_is_not_published_is_not_found(lake: FolderLake, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no topics are published for 2026-11-19"):
        topics_of_day(lake, date(2026, 11, 19))
    with pytest.raises(NotFound, match="no day with posts is published yet"):
        latest_day(FolderLake(tmp_path / "empty"))


def test_request_parameters_are_checked() -> None:
    assert (parse_day(None), parse_day("latest"), parse_day("2026-11-20")) == (None, None, date(2026, 11, 20))
    assert (parse_top(None), parse_top("3")) == (10, 3)
    assert (parse_format(None, "text/csv"), parse_format("json", "text/csv"), parse_format(None, None)) == (
        "csv",
        "json",
        "json",
    )
    for parse, text in (
        (parse_day, "soon"),
        (parse_top, "0"),
        (parse_top, "-1"),
        (parse_top, "²"),
        (parse_top, "9" * 5_000),
    ):
        with pytest.raises(BadInput):
            parse(text)
    with pytest.raises(BadInput, match="format=xml: write json or csv"):
        parse_format("xml", None)


def test_the_refusal_of_an_unknown_parameter_lists_the_known_ones() -> None:
    asked = parse_question({"day": "2026-11-20", "top": "3", "format": "csv", "code": "a-key"}, None)
    assert asked == (date(2026, 11, 20), 3, "csv")
    with pytest.raises(BadInput, match=r"^date: unknown parameter; the names are day, top, format$"):
        parse_question({"date": "2026-11-20"}, None)
    with pytest.raises(BadInput, match=r"^Day, x: unknown parameter"):
        parse_question({"Day": "2026-11-20", "x": ""}, None)
    check_names({"code": "a-key"}, ())
    with pytest.raises(BadInput, match="day: unknown parameter; there are none here"):
        check_names({"day": "2026-11-20"}, ())


def test_health_reports_faults_but_no_secret(lake: FolderLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert health(Services().replace(lake=lake)).latest_day == date(2026, 11, 20)
    assert health(Services().replace(lake=FolderLake(tmp_path / "empty"))).healthy
    monkeypatch.setenv("POSTS_STORAGE", "AccountKey=secret")
    wrong = health(Services())
    assert not wrong.healthy
    assert "secret" not in str(wrong.problem)

    def fail(_: str) -> None:
        raise TransientError("account secret")

    monkeypatch.setattr(lake, "read_with_etag", fail)
    silent = health(Services().replace(lake=lake))
    assert (silent.healthy, silent.problem) == (False, "the lake does not answer: TransientError")
