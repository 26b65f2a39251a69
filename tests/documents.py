"""The Markdown pages of the project: their code, sections, links and anchors."""

import re
from collections.abc import Iterator

from tests.places import PROJECT

PAGES = [PROJECT / "README.md", PROJECT / "CHANGELOG.md", *sorted((PROJECT / "docs").glob("**/*.md"))]

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"`([^`\n]+)`")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def sections(page: str) -> list[str]:
    """The sections of a page; each begins with its heading."""
    starts = [0, *(found.start() for found in _HEADING.finditer(_FENCED.sub(lambda code: "\n" * len(code[0]), page)))]
    return [page[start:end] for start, end in zip(starts, [*starts[1:], len(page)], strict=True)]


def blocks(page: str, language: str) -> list[str]:
    """The fenced code blocks in a language."""
    return [code for name, code in _FENCED.findall(page) if name == language]


def code(text: str) -> Iterator[str]:
    """The code of a text: each line of a code block, without its comment, and each text in backticks."""
    for _, fenced in _FENCED.findall(text):
        yield from (line.partition(" #")[0].strip() for line in fenced.splitlines())
    text = _FENCED.sub("", text)
    for line in text.splitlines():
        if line.startswith("    ") and "`" not in line:
            yield line.partition(" #")[0].strip()
        else:
            yield from _SPAN.findall(line)


def links(page: str) -> list[str]:
    """The targets of a page's links, in order."""
    return re.findall(r"\]\(([^)\s]+)\)", page)


def anchors(page: str) -> set[str]:
    """The anchors of a page, made of its headings as GitHub does."""
    words = (re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in _HEADING.findall(_FENCED.sub("", page)))
    return {heading.replace(" ", "-") for heading in words}
