"""`manage.py topics`: the topics of a day, and the topics there are."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import DEFAULT_FILE, AsJson, SettingsFile, open_services
from cli.screen import Heading, Screen, number_of, print_json
from serve.topics import TopicsOfDay, parse_day, topics_of_day
from shared.topics import TopicRow

BAR = 24
OTHER = "other"


def topics(
    file: SettingsFile = DEFAULT_FILE,
    day: Annotated[str, typer.Option(help="2026-11-22, or latest.")] = "latest",
    top: Annotated[int, typer.Option(min=1, help="How many.")] = 10,
    show_list: Annotated[bool, typer.Option("--list", help="The topics that there are, in place of a day's.")] = False,
    details: Annotated[bool, typer.Option("--details", help="Also how well the model knows the day's posts.")] = False,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="As CSV.")] = False,
) -> None:
    """The topics of a day, most frequent first; with --list, every topic that a post can have."""
    lake = open_services(file).lake
    if show_list:
        from classify.registry.models import known_topics

        _list(*known_topics(lake), as_json)
        return
    found = topics_of_day(lake, parse_day(day), top)
    if as_json:
        print_json(found)
    elif as_csv:
        typer.echo(found.to_csv(), nl=False)
    else:
        show_topics(Screen(), found, details)


def show_topics(screen: Screen, found: TopicsOfDay, details: bool = False) -> None:
    """The topics of a day as a table with bars, and what its columns mean."""
    screen.heading(f"Topics of {found.day}: {number_of(found.posts, 'post')}")
    numbers = ("#", "posts", "share")
    columns = [Heading("#", right=True), Heading("topic")]
    columns += [Heading(name, right=True) for name in numbers[1:]]
    guessed = any(not _is_exact(topic) for topic in found.topics)
    columns += [Heading("95 % interval" if guessed else "", right=True), Heading("")]
    longest = max((topic.share for topic in found.topics), default=0) or 1
    screen.rows(
        columns,
        [
            [
                str(topic.rank),
                topic.topic,
                f"{topic.posts:,}",
                f"{topic.share:.1%}",
                _interval(topic) if guessed else "",
                "█" * max(1, round(BAR * topic.share / longest)) if topic.share else "",
            ]
            for topic in found.topics
        ],
    )
    if guessed:
        screen.paragraph(
            "A topic's true share lies in its interval on 95 of 100 days; `exact` where tags decided every post.", "dim"
        )
    elif found.topics:
        screen.paragraph("Every share is exact: the posts' own tags, or those of their questions, decided.", "dim")
    if any(topic.topic == OTHER for topic in found.topics):
        screen.paragraph("other: posts that are about none of the topics; `manage.py topics --list` has those.", "dim")
    if found.drifted:
        screen.paragraph(
            "The posts of this day are unlike those the model was trained on: the intervals may be too narrow.",
            "yellow",
        )
    if details and found.scored:
        screen.paragraph(
            f"Of {found.scored:,} posts that the model was asked about: margin {found.mean_margin:.2f} (how far their"
            f" best topic is from the boundary), vocabulary {found.vocabulary_overlap:.0%} (share of what is in them"
            f" that the model knows), other {found.other_share:.0%}. docs/operations.md, Drift, explains these figures."
        )


def _is_exact(topic: TopicRow) -> bool:
    return topic.high - topic.low < 1e-9


def _interval(topic: TopicRow) -> str:
    return "exact" if _is_exact(topic) else f"{topic.low:.1%} to {topic.high:.1%}"


def _list(version: str, names: list[str], as_json: bool) -> None:
    if as_json:
        print_json({"model": version, "topics": names})
        return
    screen = Screen()
    screen.heading(f"{len(names) - 1} topics of the model {version}, and `{OTHER}`")
    screen.paragraph(", ".join(names))
    screen.line()
    screen.paragraph(
        "Every question and answer has one topic. Of a question's tags it is the one that stands first in this list;"
        f" where none does, it is `{OTHER}`. An answer has its question's topic. Where there are no tags, the model"
        " finds the topic in the text. Training chooses the list: the most frequent tags of the posts it learned from"
        " (TRAINING_TOPICS says how many).",
        "dim",
    )
