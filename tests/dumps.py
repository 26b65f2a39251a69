"""Data dumps that tests generate, in the format of Stack Exchange."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

POSTS, DAYS, MONTHS, USERS, PICTURES = 1073, 464, 76, 3588, 2539
"""The numbers of a generated dump; PICTURES users have an attribute for which the table has no column."""

_ESCAPED = {'"': "&quot;", "\n": "&#xA;", "\r": "&#xD;"}
_TEXT = '<p>Is "this" on topic, or isn\'t it? 3 < 4 && 4 > 3: naïve.</p>\n\n<pre><code>a &lt; b\n</code></pre>\n'


def write_xml(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of a dump, whose root element is named after the file; an attribute of None (NULL) is left out."""
    root = file.stem.lower()
    lines = [f"  <row {' '.join(_attributes(row))} />" for row in rows]
    text = "\r\n".join(['<?xml version="1.0" encoding="utf-8"?>', f"<{root}>", *lines, f"</{root}>"])
    file.write_text(text, encoding="utf-8-sig", newline="")


def _attributes(row: Mapping[str, Any]) -> Iterable[str]:
    for name, value in row.items():
        text = value.isoformat(timespec="milliseconds") if isinstance(value, datetime) else str(value)
        if value is not None:
            yield f'{name}="{escape(text, _ESCAPED)}"'


def write_dump(folder: Path) -> Path:
    """Write a generated dump, ordered by Id and time, into `folder`, which is created; returns the folder."""
    folder.mkdir(parents=True)
    write_xml(folder / "Posts.xml", map(_post, range(POSTS)))
    write_xml(folder / "Users.xml", map(_user, range(USERS)))
    write_xml(folder / "Tags.xml", [{"Id": 1, "TagName": "discussion", "Count": POSTS}])
    return folder


def _moments() -> list[datetime]:
    """One time on each day that has posts."""
    months = [month for month in range(5, 5 + 2 * MONTHS) if month % 7][:MONTHS]  # from June 2012, some without a post
    each = [(months[number % MONTHS], 1 + 4 * (number // MONTHS)) for number in range(DAYS)]
    return [datetime(2012 + month // 12, 1 + month % 12, day, 19, 49, 26, 940_000) for month, day in sorted(each)]


_MOMENTS = _moments()


def _post(number: int) -> dict[str, Any]:
    created = _MOMENTS[number * DAYS // POSTS] + timedelta(minutes=number % 100)
    is_question = number % 3 == 0
    return {
        "Id": number + 1,
        "PostTypeId": 1 if is_question else 2,
        "ParentId": None if is_question else number - number % 3 + 1,
        "AcceptedAnswerId": number + 2 if number % 6 == 0 else None,
        "CreationDate": created,
        "Score": number % 9 - 2,
        "ViewCount": 7 * number if is_question else None,
        "Body": f"<p>東京 — 😀 {number}</p>\n" + _TEXT * (1 + number % 13),
        "OwnerUserId": None if number % 20 == 7 else number % USERS or -1,
        "OwnerDisplayName": f"user{number}" if number % 20 == 7 else None,
        "LastEditorUserId": number % 50 + 1 if number % 2 else None,
        "LastEditorDisplayName": "" if number % 40 == 9 else None,
        "LastEditDate": created + timedelta(days=40) if number % 2 else None,
        "LastActivityDate": created + timedelta(days=number % 60),
        "Title": f'"Question" {number} & more' if is_question else None,
        "Tags": ("<discussion><c++>" if number % 2 else "|discussion|c++|") if is_question else None,
        "AnswerCount": 2 if is_question else None,
        "CommentCount": number % 5,
        "FavoriteCount": 1 if number % 15 == 0 else None,
        "ClosedDate": created + timedelta(days=3) if number % 41 == 0 else None,
        "CommunityOwnedDate": created if number % 17 == 0 else None,
        "ContentLicense": "CC BY-SA 3.0" if number < 700 else "CC BY-SA 4.0",
    }


def _user(number: int) -> dict[str, Any]:
    made = datetime(2012, 6, 12, 18, 47, 39, 147_000) + number * timedelta(hours=20)
    return {
        "Id": number or -1,
        "Reputation": 1 + number % 101,
        "CreationDate": made,
        "DisplayName": f"Дарья {number}" if number % 11 == 0 else f'"User" {number}',
        "LastAccessDate": made + timedelta(days=number % 900),
        "WebsiteUrl": ("" if number % 4 else f"https://example.org/?a={number}&b=1") if number % 3 == 0 else None,
        "Location": ("東京" if number % 10 == 1 else "Köln") if number % 5 == 1 else None,
        "AboutMe": _TEXT * (number % 3) if number % 4 < 3 else None,
        "Views": number % 53,
        "UpVotes": number % 7,
        "DownVotes": number % 2,
        "ProfileImageUrl": f"https://i.example.org/{number:032x}.png" if number < PICTURES else None,
        "AccountId": None if number % 9 == 8 else number - 1,
    }
