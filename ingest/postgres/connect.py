"""The connection to the reference database, and the one session that reads all tables from the same snapshot."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

from ingest.postgres.errors import connection_errors, postgres_errors
from shared.errors import AccessDenied

if TYPE_CHECKING:
    from shared.services import Services


PINNED_SESSION = """
    SET LOCAL search_path = pg_catalog;
    SET LOCAL row_security = off;
    SET LOCAL DateStyle = 'ISO, YMD';
    SET LOCAL IntervalStyle = 'postgres';
    SET LOCAL TimeZone = 'UTC';
    SET LOCAL extra_float_digits = 1;
    SET LOCAL bytea_output = 'hex';
    SET LOCAL lc_monetary = 'C';
    SET LOCAL synchronize_seqscans = off;
    SET LOCAL jit = off;
    SET LOCAL lock_timeout = '60s';
    SET LOCAL idle_in_transaction_session_timeout = 0;
"""
"""Text forms and row order must not depend on the role's settings or on other readers. With row_security off, rows that
the role may not see raise an error instead of being left out."""


def begin_snapshot(connection: Any, seconds: float) -> None:
    """Start the one read-only transaction that reads every table from the same snapshot; see `limit_statements`.

    Raises what `postgres_errors` raises.
    """
    with postgres_errors("the snapshot"):
        connection.set_client_encoding("UTF8")
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True, autocommit=False)
        with connection.cursor() as cursor:
            cursor.execute(PINNED_SESSION)
    limit_statements(connection, seconds)


def limit_statements(connection: Any, seconds: float) -> None:
    """Have the server cancel each later statement of the transaction after `seconds`, at once if not positive."""
    with postgres_errors("the snapshot"), connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = %s", [max(1, ceil(seconds * 1000))])  # 0 would be no limit


def connect(services: Services) -> Any:
    """A new psycopg2 connection to the reference database; the caller closes it.

    Raises TransientError when the server cannot be reached, AccessDenied when it refuses the login, NotFound when
    the database does not exist, TerminalError when its certificate is not trusted or it does not support TLS. A refused
    password is read again the next time.
    """
    settings = services.settings
    where = f"Postgres {settings.postgres_host}:{settings.postgres_port}/{settings.postgres_database}"
    try:
        with connection_errors(where, settings.postgres_user):
            return services.postgres()
    except AccessDenied:
        services.secrets.forget(settings.postgres_password_secret)
        raise
