"""The verification of a copy: row count and checksum of the file in the lake, compared with the server's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, Literal

import psycopg2
import pyarrow as pa

from ingest.postgres.checksum import batch_checksum, server_checksum
from ingest.postgres.plan import TablePlan
from ingest.postgres.wire import TableCopy
from ingest.reference.snapshot import opened
from shared.errors import TransientError
from shared.lake import Lake

READ_BACK_ROWS, READ_BACK_BYTES = 16 * 1024, 8 << 20
CANCEL_POLL_SECONDS = 0.1


def prove(connection: Any, copy: TableCopy, lake: Lake, path: str, proof: Literal["checksum", "rows"]) -> str | None:
    """Compare row count and checksum of the file in the lake with the server's; returns the checksum.

    With the proof "rows" only the row count is compared, and None is returned. Raises TransientError when they differ.
    """
    if proof == "rows":
        _compare(copy.plan.name, (copy.rows, 0), (_rows(lake, path), 0))
        return None
    pa.default_memory_pool().release_unused()  # else memory freed by the copy adds to that of reading back
    with ThreadPoolExecutor(1, "checksum") as pool:
        server = pool.submit(server_checksum, connection, copy.plan, copy.emptied)
        try:
            written = file_checksum(lake, path, copy.plan)
        except BaseException:
            while wait(
                [server], CANCEL_POLL_SECONDS
            ).not_done:  # a single cancel may arrive before the statement starts
                with suppress(psycopg2.Error):
                    connection.cancel()
            raise
        _compare(copy.plan.name, server.result(), written)
    return f"{written[1]:016x}"


def _compare(table: str, server: tuple[int, int], written: tuple[int, int]) -> None:
    if server != written:
        raise TransientError(
            f"{table}: the server has {server[0]} rows with checksum {server[1]:016x}, "
            f"but {written[0]} rows with checksum {written[1]:016x} were written"
        )


def _rows(lake: Lake, path: str) -> int:
    with opened(lake, path, TransientError, "copy it again") as parquet:
        return int(parquet.metadata.num_rows)


def file_checksum(lake: Lake, path: str, plan: TablePlan) -> tuple[int, int]:
    """Row count and checksum of a file that was just written. Raises TransientError when it cannot be read."""
    rows = checksum = 0
    with opened(lake, path, TransientError, "copy it again") as parquet:
        for number in range(parquet.num_row_groups):
            group = parquet.metadata.row_group(number)
            at_once = max(1, min(READ_BACK_ROWS, READ_BACK_BYTES * group.num_rows // max(1, group.total_byte_size)))
            for batch in parquet.iter_batches(at_once, row_groups=[number], use_threads=at_once == READ_BACK_ROWS):
                rows += batch.num_rows
                checksum = (checksum + batch_checksum(batch, plan.columns)) % 2**64
            if at_once < READ_BACK_ROWS:
                pa.default_memory_pool().release_unused()
    return rows, checksum
