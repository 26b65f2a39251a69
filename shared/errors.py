"""Every error StackTopics raises, in one tree.

    StackTopicsError
    ├── TransientError        the same call may succeed later: raise it and let the trigger redeliver
    ├── TerminalError         repeating the same call cannot help
    │   ├── BadInput          a file, table or message breaks its contract; its bytes are kept
    │   │   └── BadColumn     a column holds what it must not; whoever knows the file adds its name
    │   ├── SettingsError     settings are missing or wrong; lists every fault at once
    │   ├── AccessDenied      credentials are wrong or a role is missing
    │   ├── ModelError        a topic model is damaged, or of another format
    │   └── NotFound          a path, blob, table, job or run that must exist does not
    └── Conflict              somebody else changed the same thing first: read again, decide again

Vendors' errors are translated where the vendor is called (`shared/storage.py`, `shared/databricks.py`,
`ingest/postgres/errors.py`) and keep the original as `__cause__`.
"""

from __future__ import annotations


class StackTopicsError(Exception):
    """The root of the tree. `str()` is one sentence a person on call can act on."""


class TransientError(StackTopicsError):
    """A service was busy, unreachable or too slow; the same call may succeed later."""


class TerminalError(StackTopicsError):
    """Repeating the same call cannot help."""


class BadInput(TerminalError):
    """A file, table or message that breaks its contract. The message names it and the way out."""


class BadColumn(BadInput):
    """A column holds a value that it must not hold. Raised by what sees columns alone; `shared.parquet.readable`, which
    knows the file, raises it again with the file's name."""


class SettingsError(TerminalError):
    """Settings that are missing or wrong; `faults` holds one sentence for each."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__("settings are not complete:\n" + "\n".join(f"  - {fault}" for fault in faults))


class AccessDenied(TerminalError):
    """Credentials are wrong, or the identity lacks a role."""


class ModelError(TerminalError):
    """A topic model that is damaged or of another format."""


class NotFound(TerminalError):
    """Something that must exist does not."""


class Conflict(StackTopicsError):
    """A condition (ETag, absence) did not hold: somebody else was first."""
