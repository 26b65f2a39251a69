"""How `tests.reach` finds the modules that an entry point reaches."""

from pathlib import Path

import pytest

from tests import reach

SOURCES = {
    "entry.py": """
        from typing import TYPE_CHECKING
        import numpy
        from room.one import used
        if TYPE_CHECKING:
            import scipy

        def trigger():
            from room import two
            used()
        """,
    "room/__init__.py": "",
    "room/one.py": """
        def decorate(function):
            import requests
            return function

        def used():
            import tenacity
            def inner():
                import typer
            inner()

        def unused():
            import numba

        class Tool:
            def __init__(self):
                import yaml

            @decorate
            def never(self):
                import rich
        """,
    "room/two.py": "import xml.etree.ElementTree as ET",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in SOURCES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.replace("\n        ", "\n"))
    monkeypatch.setattr(reach, "PROJECT", tmp_path)


@pytest.mark.usefixtures("project")
def test_exactly_the_imports_of_used_code_are_reached() -> None:
    own, ran, called = {"entry", "room.one", "room.two"}, {"typing", "numpy"}, {"tenacity", "typer", "requests", "yaml"}
    assert reach.modules_reached("entry") == own | ran | called | {"xml.etree.ElementTree"}


def test_the_functions_reach_their_late_imports_but_not_those_of_the_job() -> None:
    reached = reach.modules_reached("function_app")
    assert {
        "ingest.posts",
        "ingest.postgres.checksum",
        "pipeline.publish",
        "serve.topics",
        "psycopg2",
        "azure.identity",
    } <= reached
    assert reached.isdisjoint({"classify.job", "classify.model.model", "ingest.dump", "numba", "scipy", "typer"})
