"""Loads the app in Microsoft's worker with the settings of a file, as `func start` does.

Run as `python func_start_probe.py SETTINGS_FILE APP_FILE` under Python 3.13. Prints JSON: the settings of the file, the
functions that the worker finds, and the response of GET /api/health.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from localcloud.host.bindings import http_value
from tests.integration.runtime_parity_probe import http_answer, runtime_index, runtime_invoke


def take_over(settings_file: Path) -> list[str]:
    """Put the values of a file into the environment, as Core Tools does; existing variables are kept."""
    document = json.loads(settings_file.read_text())
    assert document["IsEncrypted"] is False
    assert all(isinstance(value, str) for value in document["Values"].values())
    for name, value in document["Values"].items():
        os.environ.setdefault(name, value)
    return list(document["Values"])


async def probe(app_file: Path) -> dict[str, Any]:
    indexed = {function.name: function for function in await runtime_index(app_file)}
    request = http_value(
        method="GET", url="http://127.0.0.1:7071/api/health", headers=[], query=[], route_values={}, body=b""
    )
    answer = http_answer(await runtime_invoke(indexed["health"].function_id, "req", request))
    bindings = {name: [json.loads(each) for each in function.raw_bindings] for name, function in indexed.items()}
    return {"functions": bindings, "health": answer}


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    settings = take_over(Path(sys.argv[1]))
    seen = asyncio.run(probe(Path(sys.argv[2])))
    sys.stdout.write(json.dumps({"settings": settings, **seen}))
