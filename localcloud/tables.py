"""The reference tables of the sample company: `raw_st.users` and `raw_st.post_types` in the local Postgres."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from ingest.dump import replace_reference_tables
from ingest.dump.users import USERS


def fill(connection: Any, users: pa.Table) -> None:
    """Replace the rows of both tables and commit; `users` has Stack Exchange's column names."""
    replace_reference_tables(connection, users.select(USERS.schema.names).to_batches())
