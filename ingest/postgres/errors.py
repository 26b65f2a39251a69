"""psycopg2's errors, translated into the tree of `shared.errors`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
from psycopg2 import errors

from shared.errors import AccessDenied, BadInput, NotFound, StackTopicsError, TerminalError, TransientError

READING = "SELECT, and BYPASSRLS where row security is on"


@contextmanager
def postgres_errors(what: str, needed: str = READING) -> Iterator[None]:
    """Translate psycopg2's errors about `what` (a table) into the tree of `shared.errors`.

    `needed` is what the role needs where permission is denied.
    """
    try:
        yield
    except psycopg2.Error as error:
        raise _translated(what, error, needed) from error


def _translated(what: str, error: psycopg2.Error, needed: str) -> StackTopicsError:
    said = f"{what}: {' '.join(str(error).split())}"
    of_statement = error.diag.statement_position is not None  # the statement itself fails, not a function in a view
    if isinstance(error, errors.UndefinedFunction) and of_statement:
        return TerminalError(f"{said}; the type of a key must be comparable (see REFERENCE_KEYS)")
    if isinstance(error, errors.UndefinedTable | errors.UndefinedFunction | errors.InvalidSchemaName):
        if of_statement:
            return NotFound(f"{what} does not exist (see REFERENCE_SCHEMA and REFERENCE_TABLES)")
        needed = "qualify names there with their schema, or ALTER FUNCTION … SET search_path"
        return NotFound(f"{said}; functions of a view find unqualified names only in pg_catalog: {needed}")
    if isinstance(error, errors.InsufficientPrivilege):
        return AccessDenied(f"{said}; the role in POSTGRES_USER needs {needed}")
    if isinstance(error, errors.QueryCanceled):
        return TransientError(f"{said} (see REFERENCE_DEADLINE_SECONDS)")
    if isinstance(error, errors.ObjectNotInPrerequisiteState):
        return BadInput(f"{said}; a materialized view is filled by REFRESH MATERIALIZED VIEW")
    if isinstance(error, psycopg2.DataError):
        return BadInput(said)
    no_answer = error.pgcode is None  # psycopg2 reports some broken connections as a bare DatabaseError
    if no_answer or isinstance(error, psycopg2.OperationalError | errors.SerializationFailure):
        return TransientError(f"{said}; the connection or the server failed")
    return TerminalError(said)


@contextmanager
def connection_errors(where: str, user: str) -> Iterator[None]:
    """Translate libpq's errors of a failed connection to `where` as `user`, by their text: they have no codes."""
    try:
        yield
    except psycopg2.OperationalError as error:
        raise _not_connected(where, user, " ".join(str(error).split())) from error


def _not_connected(where: str, user: str, said: str) -> StackTopicsError:
    if "does not match host name" in said:
        return TerminalError(f"{where}: {said}; POSTGRES_HOST must be a name in the certificate")
    if "certificate" in said:
        hint = "set POSTGRES_SSLROOTCERT to a file with the server's CA (for Amazon RDS, Amazon's bundle)"
        return TerminalError(f"{where}: {said}; {hint}")
    if "does not support SSL" in said:
        return TerminalError(
            f"{where}: {said}; enable TLS on the server; POSTGRES_SSLMODE=disable sends everything unencrypted"
        )
    if "authentication failed" in said or "no pg_hba.conf entry" in said:
        return AccessDenied(f"{where} refuses {user}: {said}")
    if "does not exist" in said:
        return NotFound(f"{where}: {said}")
    return TransientError(f"{where} cannot be reached: {said}")
