"""What is logged: one line for each event of ours, and of other people's libraries only what needs a person."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

OURS = "stacktopics"


def set_up_logs() -> None:
    """Quiet the SDKs, and keep each message of ours on one line. May be called again.

    azure: INFO is a line for every storage call. databricks.sdk: WARNING is a line for every workspace that has no host
    metadata, which all on Azure lack.
    """
    logging.getLogger("azure").setLevel(logging.WARNING)
    logging.getLogger("databricks.sdk").setLevel(logging.ERROR)
    make = logging.getLogRecordFactory()
    if not isinstance(make, _OneLine):
        logging.setLogRecordFactory(_OneLine(make))


def visible(text: str) -> str:
    """`text` with its control characters written as escapes: `\\n`, `\\x1b`.

    Names of files and columns come from outside: no name may start another line, or move a terminal's cursor.
    """
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


class _OneLine:
    """Makes log records, ours without control characters."""

    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self._make = make

    def __call__(self, *given: Any, **more: Any) -> logging.LogRecord:
        record = self._make(*given, **more)
        if record.name.partition(".")[0] == OURS and not (text := record.getMessage()).isprintable():
            record.msg, record.args = visible(text), None
        return record
