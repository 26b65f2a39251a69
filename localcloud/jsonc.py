"""JSON as `func` reads it: comments and trailing commas are allowed."""

from __future__ import annotations

import json
import re
from typing import Any

_TEXT = r'"(?:[^"\\]|\\.)*"'
_TEXT_OR_COMMENT = re.compile(rf"{_TEXT}|//[^\n]*|/\*.*?\*/", re.DOTALL)
_TEXT_OR_LAST_COMMA = re.compile(rf"{_TEXT}|,(?=\s*[}}\]])", re.DOTALL)


def loads(text: str) -> Any:
    """The document; raises ValueError if it is invalid."""
    for pattern in (_TEXT_OR_COMMENT, _TEXT_OR_LAST_COMMA):
        text = pattern.sub(_keep_texts, text)
    return json.loads(text)


def _keep_texts(found: re.Match[str]) -> str:
    """Keeps a text in quotes; keeps only the line breaks of anything else, so that errors name the right line."""
    return found[0] if found[0].startswith('"') else "\n" * found[0].count("\n")
