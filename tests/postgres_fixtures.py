"""Fixtures of a real Postgres: one server for all tests, and a new schema for each test."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg2
import pytest

from localcloud import postgres
from localcloud.processes import free_ports


@dataclass
class Database:
    """A schema of a running server: `run` changes it, `connect` reads it as the product does."""

    server: postgres.Postgres
    schema: str = field(default_factory=lambda: f"raw_{uuid4().hex[:8]}")
    user: str | None = None

    def connect(self) -> Any:
        server = self.server
        return psycopg2.connect(
            host=server.host,
            port=server.port,
            dbname=server.database,
            user=self.user or server.user,
            password=server.password,
            client_encoding="UTF8",
        )

    def run(self, statements: str) -> list[tuple[Any, ...]]:
        """Run SQL as the owner, with `raw` in place of the schema's name; returns the last statement's rows."""
        owner = Database(self.server).connect()
        try:
            with owner, owner.cursor() as cursor:
                cursor.execute(statements.replace("raw.", f"{self.schema}."))
                return cursor.fetchall() if cursor.description else []
        finally:
            owner.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Postgres]:
    """A server that runs until the tests end."""
    folder = Path(tempfile.mkdtemp(prefix="stacktopics-"))
    folder.chmod(0o755)
    server = postgres.start(folder, free_ports(1)[0], folder / "postgres.log", lambda _: None)
    yield server
    server.process.stop()
    postgres.remove(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database(postgres_server: postgres.Postgres) -> Database:
    """A new, empty schema."""
    made = Database(postgres_server)
    made.run(f"CREATE SCHEMA {made.schema}")
    return made
