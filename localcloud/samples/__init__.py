"""Sample posts for any day in the form of Stack Exchange's tables: variations of questions written by hand.

Each `<topic>.html` holds the questions of one topic in the HTML of the site:

    <article data-tags="c#,.net" data-swap="Order orders | Invoice invoices; 4.8 | 4.7.2">
    <h1>A title</h1>            if there are several, one is chosen
    <p>…</p> <pre><code>…</code></pre>
    <p data-maybe>…</p>         omitted from half of the variations
    <aside><p>…</p></aside>     the text of the first answer
    </article>

`data-swap` lists groups separated by `;`. The words before the first `|` occur in the text; a variation replaces all of
them by the words at the same positions of one alternative. A word also matches as a part of an identifier (`Order` in
`OrderService`, not in `Ordering`).
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

from localcloud.samples import phrases

_NAMES_AND_WEIGHTS = {
    "python": ("Python", 13.0),
    "javascript": ("JavaScript", 11.0),
    "java": ("Java", 10.0),
    "c#": ("C#", 10.0),
    "php": ("PHP", 7.0),
    "c++": ("C++", 5.5),
    ".net": (".NET", 5.0),
    "html": ("HTML", 4.5),
    "asp.net": ("ASP.NET", 4.5),
    "pandas": ("pandas", 4.5),
    "css": ("CSS", 4.0),
    "jquery": ("jQuery", 4.0),
    "sql-server": ("SQL Server", 4.0),
    "android": ("Android", 4.0),
    "mysql": ("MySQL", 4.0),
    "sql": ("SQL", 3.5),
    "c": ("C", 3.0),
    "linux": ("Linux", 2.5),
    "ruby-on-rails": ("Rails", 2.0),
    "regex": ("regex", 2.0),
}
"""Topic -> its usual spelling, and its share of an average day in percent."""

TOPICS: tuple[str, ...] = tuple(_NAMES_AND_WEIGHTS)
"""The topics of the sample questions, the most frequent first; each is the first tag of its questions."""

OWNERS = 2_000
"""Sample posts are owned by the users 1 to OWNERS, or have no owner if the account was deleted."""

POSTS_SCHEMA = pa.schema(
    [
        ("Id", pa.int64()),
        ("PostTypeId", pa.int32()),
        ("AcceptedAnswerId", pa.int64()),
        ("ParentId", pa.int64()),
        ("CreationDate", pa.timestamp("us")),
        ("Score", pa.int32()),
        ("ViewCount", pa.int32()),
        ("Body", pa.string()),
        ("OwnerUserId", pa.int64()),
        ("LastActivityDate", pa.timestamp("us")),
        ("Title", pa.string()),
        ("Tags", pa.string()),
        ("AnswerCount", pa.int32()),
        ("CommentCount", pa.int32()),
        ("FavoriteCount", pa.int32()),
        ("ClosedDate", pa.timestamp("us")),
    ]
)

USERS_SCHEMA = pa.schema(
    [
        ("Id", pa.int64()),
        ("Reputation", pa.int32()),
        ("CreationDate", pa.timestamp("us")),
        ("DisplayName", pa.string()),
        ("LastAccessDate", pa.timestamp("us")),
        ("WebsiteUrl", pa.string()),
        ("Location", pa.string()),
        ("AboutMe", pa.string()),
        ("Views", pa.int32()),
        ("UpVotes", pa.int32()),
        ("DownVotes", pa.int32()),
        ("AccountId", pa.int64()),
    ]
)

_IDS_PER_DAY = 1_000_000_000
_IDS_PER_SEED = 10_000_000
_MAX_QUESTIONS = 1_000_000
_HOURLY_LOAD = (5, 4, 4, 4, 5, 6, 7, 8, 9, 10, 10, 10, 9, 10, 11, 11, 10, 9, 8, 8, 8, 7, 7, 6)
_ANSWERS_PER_QUESTION = (0.30, 0.37, 0.19, 0.10, 0.04)

Row = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """A question written by hand; `body` and `answer` are HTML, `titles` plain text."""

    tags: tuple[str, ...]
    titles: tuple[str, ...]
    body: str
    answer: str
    swaps: tuple[tuple[tuple[str, ...], ...], ...]


def sample_posts(day: date, questions: int = 2000, seed: int = 0, untagged: float = 0.0) -> pa.Table:
    """Questions of a UTC day and their answers of that day, about 1.2 a question, in order of time.

    The same arguments give the same table. Ids differ between days, and on a day between the seeds 0 to 99. `untagged`
    is the share of questions, 0 to 1, with null Tags. 2,000 questions take about 0.5 s. No two bodies are equal.
    Raises ValueError for more than a million questions.
    """
    if questions > _MAX_QUESTIONS:
        raise ValueError(f"{questions} questions a day were requested; at most {_MAX_QUESTIONS} are possible")
    random = Random(f"posts of {day} {seed}")
    weights = [weight * random.lognormvariate(0, 0.3) for _, weight in _NAMES_AND_WEIGHTS.values()]
    rows: list[Row] = []
    bodies: set[str] = set()
    for topic in random.choices(TOPICS, weights, k=questions):
        thread = _thread(random, day, topic, untagged)
        while thread[0]["Body"] in bodies:
            thread = _thread(random, day, topic, untagged)
        bodies.add(thread[0]["Body"])
        rows += thread
    rows.sort(key=lambda row: row["CreationDate"])
    _number(rows, first=day.toordinal() * _IDS_PER_DAY + seed % 100 * _IDS_PER_SEED)
    return pa.Table.from_pylist(rows, schema=POSTS_SCHEMA)


def sample_users(count: int = OWNERS, seed: int = 0) -> pa.Table:
    """The users 1 to `count`; a count of OWNERS or more includes the owners of all sample posts.

    WebsiteUrl, Location and AboutMe are null for some and '' for others; the same arguments give the same table.
    """
    random = Random(f"users {seed}")
    start = datetime(2008, 9, 15)  # noqa: DTZ001 - Stack Exchange's timestamps are UTC without a zone
    rows = []
    for number in range(1, count + 1):
        joined = start + timedelta(days=6_000 * random.random() ** 0.7)
        standing = random.paretovariate(0.7)
        rows.append(
            {
                "Id": number,
                "Reputation": min(int(standing * 12) - 11, 1_400_000),
                "CreationDate": joined,
                "DisplayName": _display_name(random, number),
                "LastAccessDate": joined + timedelta(days=400 * random.random()),
                "WebsiteUrl": random.choice(phrases.WEBSITES),
                "Location": random.choice(phrases.LOCATIONS),
                "AboutMe": random.choice(phrases.ABOUT_ME),
                "Views": min(int(standing * 2), 2_000_000),
                "UpVotes": min(int(standing * random.random() * 3), 100_000),
                "DownVotes": min(int(standing * random.random() * 0.2), 20_000),
                "AccountId": 1_000 + 7 * number,
            }
        )
    return pa.Table.from_pylist(rows, schema=USERS_SCHEMA)


@cache
def sample_questions(topic: str) -> tuple[Question, ...]:
    """The questions written by hand for one of TOPICS, in the order of its file."""
    slug = topic.replace("#", "sharp").replace("++", "pp").replace(".", "dot").replace("-", "_")
    text = (Path(__file__).parent / f"{slug}.html").read_text(encoding="utf-8")
    return tuple(_parsed(article) for article in _ARTICLE.finditer(text))


_ARTICLE = re.compile(r'<article data-tags="([^"]*)"(?: data-swap="([^"]*)")?>\n(.*?)</article>', re.DOTALL)
_TITLE = re.compile(r"<h1>(.*?)</h1>\n+")
_ANSWER = re.compile(r"<aside>(.*?)</aside>\n*", re.DOTALL)
_MAYBE = re.compile(r"<p data-maybe>(.*?</p>\n+)", re.DOTALL)
_CODE = re.compile(r"<pre[^>]*><code>(.*?)</code></pre>", re.DOTALL)


def _parsed(article: re.Match[str]) -> Question:
    tags, swaps, text = article.groups(default="")
    return Question(
        tags=tuple(tags.split(",")),
        titles=tuple(html.unescape(title) for title in _TITLE.findall(text)),
        body=_ANSWER.sub("", _TITLE.sub("", text)).strip() + "\n",
        answer="".join(_ANSWER.findall(text)).strip(),
        swaps=tuple(
            tuple(tuple(words.split()) for words in group.split("|")) for group in swaps.split(";") if group.strip()
        ),
    )


def _thread(random: Random, day: date, topic: str, untagged: float) -> list[Row]:
    """A question and its answers. Before they have Ids, `parent` and `accepted` refer to rows."""
    source = random.choice(sample_questions(topic))
    swap = _swapper(random, source)
    body = swap(_varied_body(random, topic, source.body))
    asked = _moment_of(random, day)
    question = _post(random, 1, asked, body) | {
        "Title": swap(_varied_title(random, topic, source.titles)),
        "Tags": None if random.random() < untagged else _varied_tags(random, source.tags),
        "ViewCount": 3 + int(random.expovariate(1 / 40)),
        "FavoriteCount": 1 if random.random() < 0.06 else None,
    }
    end_of_day = datetime.combine(day + timedelta(days=1), time())
    answers = []
    for number in range(random.choices(range(len(_ANSWERS_PER_QUESTION)), _ANSWERS_PER_QUESTION)[0]):
        template = _advice(random, source) if number == 0 else random.choice(phrases.ANSWERS)
        text = swap(template).replace("{code}", _excerpt(body)) + "\n"
        answers.append(_post(random, 2, _later(random, asked, end_of_day), text) | {"parent": question})
    question["AnswerCount"] = len(answers)
    question["LastActivityDate"] = max(row["CreationDate"] for row in [question, *answers])
    if answers and random.random() < 0.35:
        question["accepted"] = random.choice(answers)
    if random.random() < 0.03:
        question["ClosedDate"] = _later(random, asked, end_of_day)
    return [question, *answers]


def _post(random: Random, post_type: int, created: datetime, body: str) -> Row:
    return {
        "PostTypeId": post_type,
        "CreationDate": created,
        "LastActivityDate": created,
        "Score": random.choices((-2, -1, 0, 1, 2, 3, 5), (2, 8, 52, 22, 9, 5, 2))[0],
        "Body": body,
        "OwnerUserId": None if random.random() < 0.01 else 1 + int(OWNERS * random.random() ** 2),
        "CommentCount": int(random.expovariate(0.7)),
    }


def _number(rows: Sequence[Row], first: int) -> None:
    """Number the rows in order, then set the answers' ParentId and the questions' AcceptedAnswerId."""
    for position, row in enumerate(rows):
        row["Id"] = first + position
    for row in rows:
        if "parent" in row:
            row["ParentId"] = row["parent"]["Id"]
        if "accepted" in row:
            row["AcceptedAnswerId"] = row["accepted"]["Id"]


def _moment_of(random: Random, day: date) -> datetime:
    hour = random.choices(range(24), _HOURLY_LOAD)[0]
    return datetime.combine(day, time(hour)) + timedelta(milliseconds=random.randrange(3_600_000 - 100))


def _later(random: Random, moment: datetime, end: datetime) -> datetime:
    """A moment after `moment`, mostly within two hours, and always before `end`."""
    milliseconds_left = (end - moment) // timedelta(milliseconds=1)
    delay = int(60_000 * (2 + random.expovariate(1 / 75)))
    if delay >= milliseconds_left:
        delay = random.randrange(1, milliseconds_left)
    return moment + timedelta(milliseconds=delay)


def _varied_body(random: Random, topic: str, body: str) -> str:
    parts = [_MAYBE.sub(lambda paragraph: "<p>" + paragraph[1] if random.random() < 0.5 else "", body).strip()]
    if random.random() < 0.5:
        parts.insert(0, _paragraph(random, phrases.OPENINGS, topic))
    if random.random() < 0.7:
        asks_already = parts[-1].endswith("?</p>")
        closings = phrases.CLOSING_REMARKS if asks_already else phrases.CLOSING_QUESTIONS + phrases.CLOSING_REMARKS
        parts.append(_paragraph(random, closings, topic))
    return "\n\n".join(parts) + "\n"


def _paragraph(random: Random, choices: Sequence[str], topic: str) -> str:
    text = random.choice(choices).format(topic=_spoken(topic), n=random.randint(2, 9), m=random.randint(10, 90))
    return f"<p>{text}</p>"


def _varied_title(random: Random, topic: str, titles: Sequence[str]) -> str:
    title = random.choice(titles)
    named = re.search(rf"(?<!\w){re.escape(_spoken(topic))}(?!\w)", title, re.IGNORECASE)
    if named or random.random() < 0.7:
        return title
    return random.choice(phrases.TITLES).format(topic=_spoken(topic), title=title)


def _spoken(topic: str) -> str:
    return _NAMES_AND_WEIGHTS[topic][0]


def _varied_tags(random: Random, tags: tuple[str, ...]) -> str:
    kept = [tags[0], *(tag for tag in tags[1:] if random.random() < 0.8)]
    return "".join(f"<{tag}>" for tag in kept)


def _advice(random: Random, question: Question) -> str:
    parts = [random.choice(phrases.ANSWER_OPENINGS), question.answer, random.choice(phrases.ANSWER_CLOSINGS)]
    return "\n\n".join(part for part in parts if part)


def _excerpt(body: str) -> str:
    """The first four lines of the first code block."""
    lines = _CODE.findall(body)[0].strip("\n").split("\n")
    return "<pre><code>" + "\n".join(lines[:4]) + "\n</code></pre>"


def _swapper(random: Random, question: Question) -> Callable[[str], str]:
    """A function that replaces words throughout the texts of one variation of the question."""
    replacements: dict[str, str] = {}
    for group in question.swaps:
        replacements.update(zip(group[0], random.choice(group), strict=True))
    if not replacements:
        return str
    return lambda text: _pattern_of(tuple(replacements)).sub(lambda found: replacements[found[0]], text)


@cache
def _pattern_of(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(_word_pattern(word) for word in sorted(words, key=len, reverse=True)))


def _word_pattern(word: str) -> str:
    """A pattern for a word, also as a part of a camelCase or snake_case identifier; a version matches only whole."""
    before = "(?<![A-Z])" if word[0].isupper() else r"(?<![\d.])" if word[0].isdigit() else "(?<![A-Za-z])"
    after = r"(?!\.?\d)" if word[-1].isdigit() else "(?![a-z])"
    return before + re.escape(word) + after


def _display_name(random: Random, number: int) -> str:
    first, last = random.choice(phrases.FIRST_NAMES), random.choice(phrases.LAST_NAMES)
    handle = f"{first}{random.choice(('', '_', '.'))}{last}".lower() + str(random.randint(1, 99))
    return random.choice((f"{first} {last}", f"{first} {last[0]}.", first, handle, f"user{1_000_000 + 3_571 * number}"))
