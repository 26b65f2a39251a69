"""`manage.py reconcile`: a pass over everything that stands still."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import DEFAULT_FILE, AsJson, SettingsFile, open_services
from cli.screen import Screen, print_json
from cli.status import told


def reconcile(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what there is to do, and change nothing.")] = False,
    file: SettingsFile = DEFAULT_FILE,
    as_json: AsJson = False,
) -> None:
    """Find what no event will bring up, and do its next step: missed blobs, records that stand still, poison messages.

    The exit code is 1 when something could not be done.
    """
    from pipeline.reconcile import reconcile

    found = reconcile(open_services(file, patient=True), dry_run=dry_run)
    if as_json:
        print_json(found)
    else:
        screen = Screen()
        screen.line(told(found))
        for fault in found.faults:
            screen.line(fault, "red")
    if found.faults:
        raise typer.Exit(1)
