"""The sample posts: one day of them resembles a day of the real site, and is the same each time."""

from __future__ import annotations

import re
from collections import Counter
from datetime import date, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.dump.users import POST_TYPES
from localcloud.samples import OWNERS, TOPICS, sample_posts, sample_questions, sample_users
from tests.real_posts import RealPosts

DAY = date(2026, 3, 14)


@pytest.fixture(scope="module")
def posts() -> pa.Table:
    return sample_posts(DAY)


@pytest.fixture(scope="module")
def questions(posts: pa.Table) -> list[dict[str, Any]]:
    return [row for row in posts.to_pylist() if row["PostTypeId"] == 1]


@pytest.fixture(scope="module")
def answers(posts: pa.Table) -> list[dict[str, Any]]:
    return [row for row in posts.to_pylist() if row["PostTypeId"] == 2]


class Balance(HTMLParser):
    """Fails on an end tag without a start tag, and on a start tag without an end tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"left open: {self.open} in {text}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another tag"


def tags_of(question: dict[str, Any]) -> list[str]:
    return re.findall(r"<([^>]+)>", question["Tags"])


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_has_six_questions_with_it_as_the_first_tag(topic: str) -> None:
    written = sample_questions(topic)
    assert len(written) >= 6
    assert len({question.body for question in written}) == len(written)
    for question in written:
        assert question.tags[0] == topic
        assert 1 <= len(set(question.tags)) == len(question.tags) <= 4
        assert len(question.titles) >= 2
        assert "<pre" in question.body
        Balance(question.body)
        Balance(question.answer)


@pytest.mark.parametrize("topic", TOPICS)
def test_every_swapped_word_occurs_in_the_text(topic: str) -> None:
    for question in sample_questions(topic):
        text = " ".join((*question.titles, question.body, question.answer))
        for group in question.swaps:
            assert {len(words) for words in group} == {len(group[0])}
            assert [word for word in group[0] if word not in text] == []


def test_no_title_occurs_twice_in_the_templates() -> None:
    titles = Counter(title for topic in TOPICS for question in sample_questions(topic) for title in question.titles)
    assert len(titles) >= 240
    assert titles.most_common(1)[0][1] == 1


def test_there_are_twenty_topics_and_the_post_types_of_the_site() -> None:
    assert len(set(TOPICS)) == len(TOPICS) == 20
    assert POST_TYPES[:2] == ((1, "Question"), (2, "Answer"))


def test_columns_and_types_equal_those_of_real_posts(posts: pa.Table, real_posts: RealPosts) -> None:
    real = pq.read_schema(real_posts("posts.parquet"))
    assert [real.field(name) for name in posts.schema.names] == [
        posts.schema.field(name) for name in posts.schema.names
    ]


def test_topics_are_frequent_tags_of_real_posts(real_posts: RealPosts) -> None:
    tags = Counter[str]()
    for text in pq.read_table(real_posts("posts.parquet"), columns=["Tags"])["Tags"].to_pylist():
        tags.update(re.findall(r"<([^>]+)>", text or ""))
    assert set(TOPICS) <= {tag for tag, _ in tags.most_common(60)}


def test_the_same_arguments_give_the_same_posts(posts: pa.Table) -> None:
    assert sample_posts(DAY).equals(posts)
    assert not sample_posts(DAY, 100, seed=1).equals(sample_posts(DAY, 100, seed=2))


def test_ids_rise_with_time_and_differ_between_days_and_seeds(posts: pa.Table) -> None:
    ids = posts["Id"].to_pylist()
    moments = posts["CreationDate"].to_pylist()
    assert ids == sorted(set(ids))
    assert moments == sorted(moments)
    for day, seed in ((DAY + timedelta(days=1), 0), (DAY, 1), (DAY, 99)):
        assert set(ids).isdisjoint(sample_posts(day, 100, seed)["Id"].to_pylist())


def test_all_dates_are_on_the_given_day(posts: pa.Table) -> None:
    for column in ("CreationDate", "LastActivityDate", "ClosedDate"):
        assert {moment.date() for moment in posts[column].drop_null().to_pylist()} == {DAY}


def test_there_are_the_given_number_of_questions_and_more_answers(
    questions: list[dict[str, Any]], answers: list[dict[str, Any]]
) -> None:
    assert len(questions) == 2000
    assert 1.1 < len(answers) / len(questions) < 1.3
    assert sample_posts(DAY, questions=0).num_rows == 0
    with pytest.raises(ValueError, match="at most 1000000"):
        sample_posts(DAY, questions=1_000_001)


def test_answers_belong_to_an_earlier_question(questions: list[dict[str, Any]], answers: list[dict[str, Any]]) -> None:
    asked: dict[int, datetime] = {question["Id"]: question["CreationDate"] for question in questions}
    assert all(asked[answer["ParentId"]] < answer["CreationDate"] for answer in answers)
    counts = Counter(answer["ParentId"] for answer in answers)
    assert all(question["AnswerCount"] == counts[question["Id"]] for question in questions)


def test_accepted_answers_are_answers_to_the_question(
    questions: list[dict[str, Any]], answers: list[dict[str, Any]]
) -> None:
    parents = {answer["Id"]: answer["ParentId"] for answer in answers}
    accepted = [question for question in questions if question["AcceptedAnswerId"]]
    assert accepted
    assert all(parents[question["AcceptedAnswerId"]] == question["Id"] for question in accepted)


def test_bodies_are_well_formed_without_remains_of_the_templates(posts: pa.Table) -> None:
    for body in posts["Body"].to_pylist():
        Balance(body)
        assert not re.search(r"data-maybe|<aside|<h1|\{(code|topic|title|n|m)\}|\n\n\n", body)


def test_no_question_occurs_twice(questions: list[dict[str, Any]]) -> None:
    assert len({question["Body"] for question in questions}) == len(questions)
    assert len({question["Title"] for question in questions}) > 400


def test_topics_are_skewed_and_shift_from_day_to_day(questions: list[dict[str, Any]]) -> None:
    today = Counter(tags_of(question)[0] for question in questions)
    tomorrow = Counter(
        tag[1:].split(">")[0] for tag in sample_posts(DAY + timedelta(days=1))["Tags"].drop_null().to_pylist()
    )
    assert set(today) == set(tomorrow) == set(TOPICS)
    assert max(today.values()) < 0.3 * len(questions)
    assert max(today.values()) > 4 * min(today.values())
    moved = sum(abs(today[topic] - tomorrow[topic]) for topic in TOPICS) / 2 / len(questions)
    assert 0.03 < moved < 0.4


def test_the_given_share_of_questions_has_no_tags(questions: list[dict[str, Any]]) -> None:
    assert all(question["Tags"] for question in questions)
    some = sample_posts(DAY, questions=1000, untagged=0.3)
    tags = [row["Tags"] for row in some.to_pylist() if row["PostTypeId"] == 1]
    assert 0.25 < tags.count(None) / len(tags) < 0.35


def test_all_owners_of_posts_are_among_the_users(posts: pa.Table) -> None:
    users = sample_users()
    assert users.num_rows == OWNERS
    assert set(posts["OwnerUserId"].drop_null().to_pylist()) <= set(users["Id"].to_pylist())
    assert 0 < posts["OwnerUserId"].null_count < 0.03 * posts.num_rows


def test_users_have_null_and_empty_values_and_are_the_same_each_time() -> None:
    users = sample_users(500, seed=3)
    assert users.equals(sample_users(500, seed=3))
    assert not users.equals(sample_users(500, seed=4))
    for column in ("WebsiteUrl", "Location", "AboutMe"):
        values = users[column].to_pylist()
        assert None in values
        assert "" in values
    for column in ("Id", "Reputation", "CreationDate", "DisplayName", "LastAccessDate", "AccountId"):
        assert users[column].null_count == 0
