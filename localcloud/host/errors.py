"""What can be wrong with an app or its settings; the messages are for the person who starts the host."""

from __future__ import annotations

from localcloud.processes import LocalCloudError


class HostError(LocalCloudError):
    """The host cannot start, or cannot do what was asked; the message says what to change."""


class NoFunctionsFound(HostError):
    """The app module could not be imported or indexed; the message holds the traceback."""
