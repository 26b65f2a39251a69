"""The plan for copying a table: its columns from the server's catalogue, their types in the lake, and its key.

Pseudo-types are refused, and columns whose names differ only in case, which Spark and Synapse cannot distinguish. The
error names these columns.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from psycopg2 import sql

from ingest.postgres.errors import postgres_errors
from ingest.postgres.types import SourceColumn, column_of
from shared.errors import BadInput

LONGEST_STRETCH, LONGEST_FIELD = 64, 4 + 16
DECLARED = b"stacktopics.postgres_type"
"""The key in a field's metadata for the column's type as the server declares it."""


@dataclass(frozen=True)
class TablePlan:
    """How one table is copied; made by `plan_table`. `key` holds the columns of its key, if it has one."""

    schema: str
    table: str
    columns: tuple[SourceColumn, ...]
    server_encoding: str
    key: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.schema}.{self.table}"

    @cached_property
    def arrow_schema(self) -> pa.Schema:
        return pa.schema(
            [pa.field(column.name, column.arrow, metadata={DECLARED: column.declared}) for column in self.columns]
        )

    @cached_property
    def stretches(self) -> list[np.dtype[Any]]:
        """For each column: the fields that follow in every row from its length on, up to the next variable width."""
        return [_stretch(self.columns, first) for first in range(len(self.columns))]

    @property
    def source(self) -> sql.Composed:
        return sql.SQL("{}.{}").format(sql.Identifier(self.schema), sql.Identifier(self.table))

    @property
    def copy_statement(self) -> sql.Composed:
        """COPY of every column, as text if its binary form is not supported."""
        return sql.SQL("COPY ({}) TO STDOUT (FORMAT binary)").format(self._query)

    @property
    def probe_statement(self) -> sql.Composed:
        """The same query for no row: the server refuses it if the role may not read one of the columns."""
        return sql.SQL("{} LIMIT 0").format(self._query)

    @property
    def _query(self) -> sql.Composed:
        values = sql.SQL(", ").join(column.value for column in self.columns)
        return sql.SQL("SELECT {} FROM {}").format(values, self.source)


CATALOGUE_QUERY = """
    WITH RECURSIVE resolved AS (
        SELECT a.attnum, a.attname, format_type(a.atttypid, a.atttypmod) AS declared, a.atttypid AS type,
               a.atttypmod AS modifier
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL
        SELECT r.attnum, r.attname, r.declared, t.typbasetype, t.typtypmod
        FROM resolved r JOIN pg_type t ON t.oid = r.type WHERE t.typtype = 'd'
    )
    SELECT r.attname, r.declared, r.modifier, t.typtype,
           CASE WHEN t.typnamespace = 'pg_catalog'::regnamespace THEN t.typname ELSE '' END,
           EXISTS (
               SELECT FROM pg_cast c WHERE c.castsource = t.oid AND c.casttarget = 'text'::regtype AND c.oid >= 16384
           )
    FROM resolved r JOIN pg_type t ON t.oid = r.type WHERE t.typtype <> 'd' ORDER BY r.attnum
"""
"""An object with an oid below 16384 is built in (FirstNormalObjectId in PostgreSQL's source)."""
KEYS_QUERY = """
    SELECT i.indisprimary, array_agg(a.attname::text ORDER BY a.attnum)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
    WHERE c.oid = to_regclass(%s) AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
      AND NOT (c.relkind = 'r' AND c.relhassubclass)
    GROUP BY i.indexrelid, i.indisprimary HAVING bool_and(a.attnotnull)
"""
"""Sets of columns that the server itself keeps unique and free of NULL. A table with inheritance children (not
partitions) is left out: its index does not cover the children's rows, which a SELECT of the table returns too."""


def plan_table(
    connection: Any,
    schema: str,
    table: str,
    excluded: frozenset[str] = frozenset(),
    key: tuple[str, ...] = (),
) -> TablePlan:
    """Read a table's columns from the catalogue and decide how each is copied; locks the table against changes.

    `excluded` columns are left out. `key` names the columns whose values must be unique; without it, the primary key is
    used if all its columns are copied. Raises BadInput naming every column that cannot be copied, or an invalid key
    with the number of rows that violate it; NotFound when the table or view does not exist; AccessDenied when the role
    may not read everything that is copied.
    """
    relation = sql.SQL("{}.{}").format(sql.Identifier(schema), sql.Identifier(table))
    with postgres_errors(f"{schema}.{table}"), connection.cursor() as cursor:
        cursor.execute(sql.SQL("SELECT FROM {} LIMIT 0").format(relation))  # locks the table until the transaction ends
        cursor.execute(CATALOGUE_QUERY, (schema, table))
        found = cursor.fetchall()
        cursor.execute(KEYS_QUERY, [relation.as_string(cursor)])
        declared_keys = cursor.fetchall()
    faults = [f"excluded column {name} does not exist" for name in sorted(excluded - {row[0] for row in found})]
    carried = [row for row in found if row[0] not in excluded]
    faults += [f"column {row[0]} is of the pseudo-type {row[1]}" for row in carried if row[3] == "p"]
    spellings = Counter(row[0].lower() for row in carried)
    faults += [f"column {row[0]} differs from another only in case" for row in carried if spellings[row[0].lower()] > 1]
    if not carried:
        faults.append("no column is left to copy")
    if faults:
        raise BadInput(f"{schema}.{table} cannot be copied: {'; '.join(faults)} (see REFERENCE_EXCLUDE_COLUMNS)")
    columns = tuple(
        column_of(name, base, modifier, declared, has_own_cast=has_own_cast)
        for name, declared, modifier, _, base, has_own_cast in carried
    )
    names = {column.name for column in columns}
    if lost := sorted(set(key) - names):
        raise BadInput(f"{schema}.{table} has no columns {lost} among those that are copied (see REFERENCE_KEYS)")
    primary = next((tuple(of) for is_primary, of in declared_keys if is_primary and names.issuperset(of)), ())
    plan = TablePlan(schema, table, columns, connection.get_parameter_status("server_encoding"), key or primary)
    with postgres_errors(plan.name), connection.cursor() as cursor:
        cursor.execute(plan.probe_statement)
    if plan.key and not any(set(of) == set(plan.key) for _, of in declared_keys):
        _check_key(connection, plan)
    return plan


def _check_key(connection: Any, plan: TablePlan) -> None:
    """Have the server count the rows that violate the key: no unique index guarantees it."""
    columns = [sql.Identifier(name) for name in plan.key]
    statement = sql.SQL(
        "SELECT coalesce(sum(rows) FILTER (WHERE incomplete), 0),"
        " coalesce(sum(rows - 1) FILTER (WHERE NOT incomplete), 0)"
        " FROM (SELECT count(*) AS rows, {} AS incomplete FROM {} GROUP BY {}) AS keys"
    ).format(
        sql.SQL(" OR ").join(sql.SQL("{} IS NULL").format(column) for column in columns),
        plan.source,
        sql.SQL(", ").join(columns),
    )
    with postgres_errors(plan.name), connection.cursor() as cursor:
        cursor.execute(statement)
        without, again = cursor.fetchone()
    if without or again:
        raise BadInput(
            f"{plan.name}: ({', '.join(plan.key)}) is not a key: {without} rows have NULL in it, "
            f"{again} rows repeat the key of another (see REFERENCE_KEYS)"
        )


def _stretch(columns: tuple[SourceColumn, ...], first: int) -> np.dtype[Any]:
    fields: list[tuple[str, str]] = []
    for number, column in enumerate(columns[first:], start=first):
        length_field, value_field = field_names(number)
        fields.append((length_field, ">i4"))
        wire = column.type.wire
        if wire is None:
            break
        fields.append((value_field, wire))
        if np.dtype(fields).itemsize > LONGEST_STRETCH - LONGEST_FIELD:
            break
    return np.dtype(fields)


def field_names(number: int) -> tuple[str, str]:
    return f"length {number}", f"value {number}"
