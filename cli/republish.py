"""`manage.py republish`: published days counted anew from the counts that their runs left."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import DEFAULT_FILE, AsJson, SettingsFile, open_services
from cli.screen import Screen, number_of, print_json
from serve.topics import parse_day
from shared.catalog import published_days
from shared.errors import BadInput

Day = Annotated[str | None, typer.Option(help="2026-11-22. Default: no limit.")]


def republish(since: Day = None, until: Day = None, file: SettingsFile = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """Write the topics files of published days anew, without a Databricks run: what a changed format needs.

    Days whose files would be the same stay as they are.
    """
    from pipeline.publish import republish

    first, last = parse_day(since), parse_day(until)
    if first and last and first > last:
        raise BadInput(f"--since {since} is later than --until {until}")
    services = open_services(file)
    days = [day for day in published_days(services.lake) if (not first or day >= first) and (not last or day <= last)]
    changed = republish(services, days)
    if as_json:
        print_json({"days": len(days), "changed": changed})
    else:
        Screen().line(f"{number_of(len(days), 'day')} counted anew, {number_of(len(changed), 'topics file')} changed")
