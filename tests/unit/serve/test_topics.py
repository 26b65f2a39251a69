"""Asking for the topics of a day."""

from __future__ import annotations

import functools
import socket
import threading
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from serve.budget import within
from serve.health import health
from serve.topics import check_names, latest_day, parse_day, parse_format, parse_question, parse_top, topics_of_day
from shared.catalog import DayPointer, move_pointer, note_latest
from shared.errors import BadInput, NotFound, TransientError
from shared.lake import FolderLake
from shared.paths import day_pointer, topics_file
from shared.services import Services
from tests.world import settings


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
        sums="-",
        posts=4 * bool(lines),
        questions=3 * bool(lines),
        answers=1 * bool(lines),
        guessed=0,
        drift=0.0,
        drifted=False,
        scored=0,
        mean_margin=0.0,
        vocabulary_overlap=0.0,
        other_share=0.0,
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
    with pytest.raises(BadInput, match="day: unknown parameter; it takes no parameters"):
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


def test_an_answer_is_not_waited_for_beyond_its_time() -> None:
    """The lake accepts a connection and never answers, as one behind a broken network does."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/a"
        connection = f"AccountName=a;AccountKey=a2V5;BlobEndpoint={address};DfsEndpoint={address}"
        services = Services(patient=False).replace(settings=settings(lake_storage=connection))
        found = health(services, 0.05)
        assert (found.healthy, found.problem) == (False, "the lake does not answer: TransientError")
        services.close()


def test_a_call_that_takes_too_long_ends_as_transient_and_one_that_fails_as_what_it_raises() -> None:
    go_on = threading.Event()
    with pytest.raises(TransientError, match=r"no answer within 0\.05 s"):
        within(0.05, go_on.wait)
    go_on.set()
    assert within(60, lambda: 3) == 3
    with pytest.raises(BadInput, match="as it is"):
        within(60, functools.partial(parse_day, "as it is"))


def test_the_latest_topics_take_three_calls_of_the_lake_however_many_days_there_are(
    lake: FolderLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    read = lake.read_with_etag

    def counted(path: str) -> tuple[bytes, str]:
        calls.append(path)
        return read(path)

    monkeypatch.setattr(lake, "read_with_etag", counted)
    monkeypatch.setattr(lake, "_walk", None)
    topics_of_day(lake)
    assert len(calls) == 3
    calls.clear()
    assert health(Services().replace(lake=lake)).healthy
    assert len(calls) == 1
