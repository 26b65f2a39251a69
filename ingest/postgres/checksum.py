"""An order-independent checksum of a table that both Postgres and Arrow can compute.

The hash of a row is the XOR of its columns' hashes, each seeded with the column's number (NULL counts as 0); the
checksum of the table is the sum of its rows' hashes modulo 2^64. It depends on every value, on the value's row and
column, and on how often a row occurs, but not on the order of rows. The server computes it in one aggregate
(`server_checksum`), this module from record batches that are read back from the written file (`batch_checksum`).

The hash of a value is part of its type's entry (`types`). All hash functions are available in SQL since Postgres 14.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from psycopg2 import sql

from ingest.postgres import lookup3
from ingest.postgres.errors import postgres_errors
from ingest.postgres.plan import TablePlan
from ingest.postgres.types import SourceColumn
from shared.errors import BadInput

OLDEST_SERVER = 14_00_00


def server_checksum(connection: Any, plan: TablePlan, emptied: frozenset[str] = frozenset()) -> tuple[int, int]:
    """Row count and checksum of the server's rows in the connection's snapshot.

    In the columns `emptied`, values that are copied as NULL count as NULL. Raises BadInput when the server is too old,
    and what `postgres_errors` raises.
    """
    if connection.server_version < OLDEST_SERVER:
        raise BadInput("checksums need Postgres 14 or newer; REFERENCE_PROOF=rows needs no checksum")
    hashes = [
        _server_hash(column, seed, column.name in emptied, plan.server_encoding)
        for seed, column in enumerate(plan.columns, start=1)
    ]
    statement = sql.SQL("SELECT count(*), coalesce(sum({}), 0) FROM {}").format(
        sql.SQL(" # ").join(hashes), plan.source
    )
    with postgres_errors(plan.name), connection.cursor() as cursor:
        cursor.execute(statement)
        rows, total = cursor.fetchone()
    return int(rows), int(total) % 2**64


def _server_hash(column: SourceColumn, seed: int, emptied: bool, encoding: str) -> sql.Composed:
    return sql.SQL("coalesce({}, 0)").format(column.type.server_hash(column, sql.Literal(seed), emptied, encoding))


def batch_checksum(batch: pa.RecordBatch, columns: Sequence[SourceColumn]) -> int:
    """The checksum of a batch's rows; that of a table is the sum over its batches modulo 2^64."""
    rows = np.zeros(batch.num_rows, np.uint64)
    for seed, (values, column) in enumerate(zip(batch.columns, columns, strict=True), start=1):
        rows ^= lookup3.without_nulls(column.type.hash, values, seed)
    return int(rows.sum(dtype=np.uint64))
