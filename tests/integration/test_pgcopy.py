"""COPY BINARY from a real server: every type, value by value, and what is refused."""

import dataclasses
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from math import inf, nan
from typing import Any

import pyarrow as pa
import pytest

from ingest.postgres import checksum, wire
from ingest.postgres import plan as planning
from ingest.postgres.connect import begin_snapshot, limit_statements
from ingest.postgres.plan import plan_table
from ingest.postgres.wire import Irregular, TableCopy
from shared.errors import AccessDenied, BadInput, NotFound, TransientError
from tests.postgres_fixtures import Database
from tests.waiting import eventually


@pytest.fixture
def connection(database: Database) -> Iterator[Any]:
    """A connection in the product's snapshot, which does not see later changes by `database.run`."""
    connection = database.connect()
    yield connection
    connection.close()


def carried(connection: Any, database: Database, irregular: Irregular | None = None) -> tuple[TableCopy, pa.Table]:
    """The schema's table `t` as Arrow; checks that its checksum equals the server's."""
    begin_snapshot(connection, 60)
    copy = TableCopy(connection, plan_table(connection, database.schema, "t"), irregular)
    batches = list(copy.batches())
    server = checksum.server_checksum(connection, copy.plan, copy.emptied)
    assert server == (copy.rows, sum(checksum.batch_checksum(batch, copy.plan.columns) for batch in batches) % 2**64)
    return copy, pa.Table.from_batches(batches, copy.plan.arrow_schema)


US, US_UTC = pa.timestamp("us"), pa.timestamp("us", "UTC")
THE_UUID = "00112233-4455-6677-8899-aabbccddeeff"

TORTURE: list[tuple[str, Any, dict[str, Any]]] = [
    # Postgres type, Arrow type, and values: literal -> expected value
    ("bool", pa.bool_(), {"true": True, "false": False}),
    ("int2", pa.int16(), {"-32768": -32768, "32767": 32767, "0": 0}),
    ("int4", pa.int32(), {"-2147483648": -(2**31), "2147483647": 2**31 - 1, "-1": -1}),
    ("int8", pa.int64(), {"-9223372036854775808": -(2**63), "9223372036854775807": 2**63 - 1, "-1": -1, "7": 7}),
    ("oid", pa.uint32(), {"0": 0, "4294967295": 2**32 - 1, "2147483648": 2**31}),
    (
        "float4",
        pa.float32(),
        {"1.5": 1.5, "-0": -0.0, "Infinity": inf, "-Infinity": -inf, "1e-45": 1.401298464324817e-45},
    ),
    (
        "float8",
        pa.float64(),
        {"0.1": 0.1, "5e-324": 5e-324, "1.7976931348623157e308": 1.7976931348623157e308, "NaN": nan},
    ),
    ("numeric(10,2)", pa.decimal128(10, 2), {"-12345678.90": Decimal("-12345678.90"), "0.01": Decimal("0.01")}),
    ("numeric(38,38)", pa.decimal128(38, 38), {"1e-38": Decimal("1e-38"), "-0." + "9" * 38: Decimal("-0." + "9" * 38)}),
    ("numeric(38,0)", pa.decimal128(38, 0), {"9" * 38: Decimal("9" * 38), "-1": Decimal(-1)}),
    ("numeric(3,-2)", pa.decimal128(5, 0), {"99900": Decimal(99900), "149": Decimal(100)}),
    ("numeric(2,5)", pa.decimal128(5, 5), {"0.00099": Decimal("0.00099")}),
    ("numeric(39,1)", pa.string(), {"9" * 38 + ".5": "9" * 38 + ".5", "NaN": "NaN"}),
    ("numeric", pa.string(), {"1.10": "1.10", "NaN": "NaN", "Infinity": "Infinity", "1e-30": "0." + "0" * 29 + "1"}),
    (
        "text",
        pa.string(),
        {"": "", "a\tb\nc": "a\tb\nc", "\\N": "\\N", "naïve 東京 🦆": "naïve 東京 🦆", "x" * 70_000: "x" * 70_000},
    ),
    ("varchar(5)", pa.string(), {"": "", "ab": "ab"}),
    ("char(4)", pa.string(), {"": "    ", "é": "é   ", "abcd": "abcd"}),
    ("name", pa.string(), {"pg_class": "pg_class"}),
    ('"char"', pa.string(), {"A": "A"}),
    ("json", pa.string(), {'{"a": 1,  "a": 2}': '{"a": 1,  "a": 2}'}),
    ("jsonb", pa.string(), {'{"b": 1, "a": [null]}': '{"a": [null], "b": 1}'}),
    ("bytea", pa.binary(), {"\\x": b"", "\\x00ff0a": b"\x00\xff\n", "\\x" + "ab" * 3000: b"\xab" * 3000}),
    ("uuid", pa.binary(16), {THE_UUID: uuid.UUID(THE_UUID).bytes}),
    ("date", pa.date32(), {"0001-01-01": date.min, "9999-12-31": date.max, "1970-01-01": date(1970, 1, 1)}),
    (
        "timestamp",
        US,
        {
            "0001-01-01": datetime.min,  # noqa: DTZ901
            "9999-12-31 23:59:59.999999": datetime.max,  # noqa: DTZ901
            "1969-12-31 23:59:59.999999": datetime(1969, 12, 31, 23, 59, 59, 999999),
        },
    ),
    (
        "timestamptz",
        US_UTC,
        {
            "2026-03-29 02:30:00+02": datetime(2026, 3, 29, 0, 30, tzinfo=UTC),
            "0001-01-01 00:00:00+00": datetime(1, 1, 1, tzinfo=UTC),
        },
    ),
    ("time", pa.string(), {"24:00:00": "24:00:00", "12:34:56.789": "12:34:56.789"}),
    ("timetz", pa.string(), {"12:00:00+05:30": "12:00:00+05:30"}),
    ("interval", pa.string(), {"1 year -2 days 03:04:05.6": "1 year -2 days +03:04:05.6"}),
    ("money", pa.string(), {"-1234.5": "-$1,234.50"}),
    ("inet", pa.string(), {"10.1.2.3/8": "10.1.2.3/8", "::1": "::1/128"}),
    ("int4range", pa.string(), {"[1,5]": "[1,6)", "empty": "empty"}),
    ("int4[]", pa.string(), {"{{1,NULL},{3,4}}": "{{1,NULL},{3,4}}", "{}": "{}"}),
    ("float8[]", pa.string(), {"{0.1,NaN,-Infinity}": "{0.1,NaN,-Infinity}"}),
    ("timestamptz[]", pa.string(), {'{"2026-01-01 00:00+01"}': '{"2025-12-31 23:00:00+00"}'}),
    ("bit(3)", pa.string(), {"101": "101"}),
    ("regclass", pa.string(), {"pg_catalog.pg_type": "pg_type"}),
    ("xml", pa.string(), {"<a>1</a>": "<a>1</a>"}),
    ("tsvector", pa.string(), {"a:1 b:2": "'a':1 'b':2"}),
    ("raw.mood", pa.string(), {"so so": "so so", "happy": "happy"}),
    ("raw.price", pa.decimal128(7, 3), {"1234.5": Decimal("1234.500")}),
    ("raw.email", pa.string(), {"a@b": "a@b"}),
    ("raw.pair", pa.string(), {'(1,"a b")': '(1,"a b")'}),
]


def in_utc(value: Any) -> Any:
    """The name of UTC in pyarrow depends on the installed time zone library; only the instant matters here."""
    return value.astimezone(UTC) if isinstance(value, datetime) and value.tzinfo else value


def test_every_type_arrives_value_by_value(database: Database, connection: Any) -> None:
    database.run(
        "CREATE TYPE raw.mood AS ENUM ('happy', 'so so'); CREATE DOMAIN raw.price AS numeric(7,3);"
        "CREATE DOMAIN raw.address AS text; CREATE DOMAIN raw.email AS raw.address CHECK (value LIKE '%@%');"
        "CREATE TYPE raw.pair AS (a int, b text)"
    )
    columns = ", ".join(f"c{i} {kind}" for i, (kind, _, _) in enumerate(TORTURE))
    database.run(f"CREATE TABLE raw.t ({columns})")
    expected = []
    for row in range(6):  # the last row is all NULL, and shorter lists are filled with NULL
        literals = [list(values)[row : row + 1] for _, _, values in TORTURE]
        texts = ", ".join("'{}'".format(given[0].replace("'", "''")) if given else "NULL" for given in literals)
        database.run(f"INSERT INTO raw.t VALUES ({texts})".replace("%", "%%"))
        expected.append(
            [values[given[0]] if given else None for given, (_, _, values) in zip(literals, TORTURE, strict=True)]
        )

    _, table = carried(connection, database)

    assert {field.name: field.type for field in table.schema} == {
        f"c{i}": kind for i, (_, kind, _) in enumerate(TORTURE)
    }
    for i, (kind, _, _) in enumerate(TORTURE):
        arrived = [in_utc(value) for value in table.column(i).to_pylist()]
        assert list(map(repr, arrived)) == [repr(row[i]) for row in expected], kind  # repr also compares NaN and -0.0


OWN_CASTS = """
    CREATE TYPE raw.pair AS (a int, b text);
    CREATE FUNCTION raw.lossy(raw.pair) RETURNS text LANGUAGE sql IMMUTABLE AS $$SELECT 'lossy'$$;
    CREATE CAST (raw.pair AS text) WITH FUNCTION raw.lossy(raw.pair) AS IMPLICIT;
    CREATE TYPE raw.mood AS ENUM ('happy', 'so so');
    CREATE FUNCTION raw.lossy(raw.mood) RETURNS text LANGUAGE sql IMMUTABLE AS $$SELECT 'lossy'$$;
    CREATE CAST (raw.mood AS text) WITH FUNCTION raw.lossy(raw.mood);
    CREATE CAST (raw.mood[] AS text) WITH FUNCTION array_dims(anyarray);
    CREATE DOMAIN raw.other AS raw.pair;
    CREATE TABLE raw.t (id int, pair raw.pair, mood raw.mood, moods raw.mood[], pairs raw.pair[], other raw.other);
    INSERT INTO raw.t VALUES
        (1, (7, 'seven'), 'so so', '{happy,NULL}', ARRAY[(1, 'x')::raw.pair], (8, repeat('8', 2000))),
        (2, (NULL, NULL), NULL, '{}', NULL, (NULL, NULL)), (3, NULL, 'happy', NULL, '{}', NULL)
"""


def test_a_user_defined_cast_does_not_change_a_value(database: Database, connection: Any) -> None:
    database.run(OWN_CASTS)
    _, table = carried(connection, database)
    assert table.to_pydict() == {
        "id": [1, 2, 3],
        "pair": ["(7,seven)", "(,)", None],
        "mood": ["so so", None, "happy"],
        "moods": ["{happy,NULL}", "{}", None],
        "pairs": ['{"(1,x)"}', None, "{}"],
        "other": [f"(8,{'8' * 2000})", "(,)", None],
    }


def test_a_user_defined_cast_of_a_built_in_type_changes_nothing(database: Database, connection: Any) -> None:
    """Only a superuser can define it, for the whole database, so the test creates its own database."""
    name = f"casts_{database.schema}"
    run_alone(database, f"CREATE DATABASE {name} TEMPLATE template0")
    other = dataclasses.replace(database, server=dataclasses.replace(database.server, database=name))
    other.run(f"CREATE SCHEMA {other.schema}; CREATE TABLE raw.t (price numeric(6,2), j json, b jsonb)")
    other.run("INSERT INTO raw.t VALUES (1.5, '{\"a\":  1}', '{\"a\": 1}'), (NULL, NULL, NULL)")
    for source in ("numeric", "json", "jsonb"):
        other.run(f"""
            CREATE FUNCTION raw.lossy({source}) RETURNS text LANGUAGE sql IMMUTABLE AS $$SELECT '7'$$;
            CREATE CAST ({source} AS text) WITH FUNCTION raw.lossy({source})
        """)
    connection = other.connect()
    try:
        _, table = carried(connection, other)
    finally:
        connection.close()
    assert table.to_pydict() == {
        "price": [Decimal("1.50"), None],
        "j": ['{"a":  1}', None],
        "b": ['{"a": 1}', None],
    }


IRREGULAR = """
    CREATE TABLE raw.t (id int, born date, seen timestamp, paid timestamptz, price numeric(6,2));
    INSERT INTO raw.t VALUES
        (1, 'infinity', '-infinity', '0044-03-15 BC', 'NaN'),
        (2, '-infinity', '200000-01-01', '2026-01-01', 1.5),
        (3, '10000-01-01', '2026-01-01', 'infinity', NULL),
        (4, '9999-12-31', '294276-12-31 23:59:59.999999', NULL, 'NaN')
"""


def test_irregular_values_are_refused_with_table_column_and_count(database: Database, connection: Any) -> None:
    database.run(IRREGULAR)
    with pytest.raises(BadInput) as refused:
        carried(connection, database)
    for what in (
        f"{database.schema}.t",
        "2 in column born: infinite dates",
        "1 in column born: dates outside the years 1 to 9999",
        "1 in column seen: infinite dates",
        "2 in column seen: dates outside",
        "1 in column paid: infinite",
        "1 in column paid: dates outside",
        "2 in column price: NaN",
        "REFERENCE_INFINITY, REFERENCE_NAN, REFERENCE_OUT_OF_RANGE",
    ):
        assert what in str(refused.value)


def test_irregular_values_become_null_if_the_settings_say_so(database: Database, connection: Any) -> None:
    database.run(IRREGULAR)
    copy, table = carried(connection, database, Irregular(infinity="null", out_of_range="null", nan="null"))
    assert table.to_pylist() == [
        {"id": 1, "born": None, "seen": None, "paid": None, "price": None},
        {
            "id": 2,
            "born": None,
            "seen": None,
            "paid": datetime(2026, 1, 1, tzinfo=UTC),
            "price": Decimal("1.50"),
        },
        {"id": 3, "born": None, "seen": datetime(2026, 1, 1), "paid": None, "price": None},
        {"id": 4, "born": date.max, "seen": None, "paid": None, "price": None},
    ]
    assert copy.nulled["born: infinity"] == 2
    assert copy.nulled["price: nan"] == 2


def test_each_kind_of_irregular_value_has_its_own_policy(database: Database, connection: Any) -> None:
    database.run(IRREGULAR)
    with pytest.raises(BadInput) as refused:
        carried(connection, database, Irregular(infinity="null"))
    assert "infinite" not in str(refused.value)
    assert "2 in column price: NaN" in str(refused.value)


@pytest.mark.parametrize("rows", [0, 1, 255, 256, 257, 8191, 8192, 8193, 20_000])
def test_no_row_is_lost_at_the_ends_of_messages_and_batches(database: Database, connection: Any, rows: int) -> None:
    database.run(f"CREATE TABLE raw.t AS SELECT i, repeat('x', i % 7) AS s FROM generate_series(1, {rows}) i")
    copy, table = carried(connection, database)
    assert copy.rows == rows
    assert table["i"].to_pylist() == list(range(1, rows + 1))
    assert table["s"].to_pylist() == ["x" * (i % 7) for i in range(1, rows + 1)]


def test_batches_are_bounded_in_bytes(database: Database, connection: Any) -> None:
    database.run("CREATE TABLE raw.t AS SELECT i, repeat(md5(i::text), 4000) AS s FROM generate_series(1, 600) i")
    begin_snapshot(connection, 60)
    copy = TableCopy(connection, plan_table(connection, database.schema, "t"))
    sizes = [batch.nbytes for batch in copy.batches()]
    assert len(sizes) >= 3
    assert max(sizes) < 1.2 * wire.BYTES_PER_BATCH


def test_names_are_quoted_and_excluded_columns_are_left_out(database: Database, connection: Any) -> None:
    database.run("""CREATE TABLE raw."Odd ""%s"" {t}; --" ("a ""b"" %s {c}" int, "select" text, secret text);
                    INSERT INTO raw."Odd ""%s"" {t}; --" VALUES (1, 'x', 'hidden')""")
    begin_snapshot(connection, 60)
    plan = plan_table(connection, database.schema, 'Odd "%s" {t}; --', frozenset({"secret"}))
    batches = list(TableCopy(connection, plan).batches())
    assert [batch.to_pylist() for batch in batches] == [[{'a "b" %s {c}': 1, "select": "x"}]]
    assert checksum.server_checksum(connection, plan) == (1, checksum.batch_checksum(batches[0], plan.columns))


def test_a_misspelled_exclusion_is_refused(database: Database, connection: Any) -> None:
    database.run('CREATE TABLE raw.t (id int, "EmailHash" text)')
    begin_snapshot(connection, 60)
    with pytest.raises(BadInput, match="excluded column emailhash does not exist"):
        plan_table(connection, database.schema, "t", frozenset({"emailhash"}))


def test_the_refusal_of_unsupported_columns_names_them(database: Database, connection: Any) -> None:
    database.run('CREATE TABLE raw.t (id int, "Id" int); CREATE TABLE raw.none ()')
    begin_snapshot(connection, 60)
    with pytest.raises(BadInput, match=r"column id differs from another only in case; column Id differs"):
        plan_table(connection, database.schema, "t")
    with pytest.raises(BadInput, match=r"column stavalues1 is of the pseudo-type anyarray"):
        plan_table(connection, "pg_catalog", "pg_statistic")
    with pytest.raises(BadInput, match=r"no column is left"):
        plan_table(connection, database.schema, "none")


def test_a_missing_table_and_a_missing_grant_have_different_errors(database: Database) -> None:
    role = f"reader_{database.schema}"
    database.run(f"""
        CREATE ROLE {role} LOGIN PASSWORD '{database.server.password}';
        GRANT USAGE ON SCHEMA {database.schema} TO {role};
        CREATE TABLE raw.closed (id int); CREATE TABLE raw.partly (id int, secret text);
        CREATE TABLE raw.rows_hidden (id int); ALTER TABLE raw.rows_hidden ENABLE ROW LEVEL SECURITY;
        GRANT SELECT (id) ON raw.partly TO {role}; GRANT SELECT ON raw.rows_hidden TO {role};
    """)
    database.user = role

    def plan(table: str, excluded: frozenset[str] = frozenset()) -> list[pa.RecordBatch]:
        connection = database.connect()
        try:
            begin_snapshot(connection, 60)
            return list(TableCopy(connection, plan_table(connection, database.schema, table, excluded)).batches())
        finally:
            connection.close()

    with pytest.raises(NotFound, match=r"\.absent does not exist"):
        plan("absent")
    with pytest.raises(AccessDenied, match=r"permission denied for table closed.*needs SELECT"):
        plan("closed")
    with pytest.raises(AccessDenied, match="permission denied"):
        plan("partly")
    with pytest.raises(AccessDenied, match=r"row-level security.*BYPASSRLS"):
        plan("rows_hidden")
    assert plan("partly", frozenset({"secret"})) == []


@pytest.mark.parametrize(
    ("calls", "missing"),
    [
        ("LANGUAGE sql STABLE AS 'SELECT count(*) FROM elsewhere'", "elsewhere"),
        ("LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM elsewhere); END'", "elsewhere"),
        ("LANGUAGE plpgsql AS 'BEGIN RETURN helper(); END'", r"helper\(\)"),
        ("LANGUAGE plpgsql AS 'BEGIN RETURN ''elsewhere''::regclass::oid; END'", "elsewhere"),
    ],
)
def test_the_error_names_the_missing_object_of_a_view_and_not_the_view(
    database: Database, connection: Any, calls: str, missing: str
) -> None:
    database.run(f"""
        CREATE TABLE raw.elsewhere (id int);
        SET search_path = {database.schema}; SET check_function_bodies = off;
        CREATE FUNCTION raw.counted() RETURNS bigint {calls}; CREATE VIEW raw.v AS SELECT raw.counted() AS n
    """)
    begin_snapshot(connection, 60)
    with pytest.raises(NotFound, match=rf'\.v: (relation|function) "?{missing}"? does not exist.*SET search_path'):
        list(TableCopy(connection, plan_table(connection, database.schema, "v")).batches())


def test_a_missing_schema_is_not_found(database: Database, connection: Any) -> None:
    begin_snapshot(connection, 60)
    with pytest.raises(NotFound, match=r"nowhere\.v does not exist \(see REFERENCE_SCHEMA"):
        plan_table(connection, "nowhere", "v")


@pytest.mark.parametrize("relation", ["m", "of_m"])
def test_an_unfilled_materialized_view_is_not_retried(database: Database, connection: Any, relation: str) -> None:
    database.run("CREATE MATERIALIZED VIEW raw.m AS SELECT 1 AS id WITH NO DATA; CREATE VIEW raw.of_m AS TABLE raw.m")
    begin_snapshot(connection, 60)
    with pytest.raises(BadInput, match=rf"\.{relation}: .*m.* has not been populated.* by REFRESH MATERIALIZED VIEW"):
        plan_table(connection, database.schema, relation)


KEYED = """
    CREATE TABLE raw.primary_key (a int, b text, c text, PRIMARY KEY (b, a));
    CREATE TABLE raw.unique_index (a int NOT NULL, b int NOT NULL, c int);
    CREATE UNIQUE INDEX ON raw.unique_index (b, a) INCLUDE (c);
    CREATE TABLE raw.partitioned (a int PRIMARY KEY) PARTITION BY RANGE (a);
    CREATE TABLE raw.part PARTITION OF raw.partitioned FOR VALUES FROM (0) TO (9);
    CREATE TABLE raw.nullable (a int UNIQUE, b int);
    CREATE TABLE raw.some_rows (a int NOT NULL, b int);
    CREATE UNIQUE INDEX ON raw.some_rows (a) WHERE b = 1;
    CREATE TABLE raw.expression (a text NOT NULL);
    CREATE UNIQUE INDEX ON raw.expression (lower(a));
    CREATE TABLE raw.parent (a int PRIMARY KEY);
    CREATE TABLE raw.heir () INHERITS (raw.parent);
    CREATE VIEW raw.view AS SELECT a FROM raw.parent
"""


@pytest.mark.parametrize(
    ("table", "named", "key", "counted"),
    [
        ("primary_key", (), ("a", "b"), False),
        ("primary_key", ("b", "a"), ("b", "a"), False),
        ("primary_key", ("a",), ("a",), True),
        ("unique_index", (), (), False),
        ("unique_index", ("a", "b"), ("a", "b"), False),
        ("partitioned", (), ("a",), False),
        ("nullable", ("a",), ("a",), True),
        ("some_rows", ("a",), ("a",), True),
        ("expression", ("a",), ("a",), True),
        ("parent", (), (), False),
        ("parent", ("a",), ("a",), True),
        ("view", ("a",), ("a",), True),
    ],
)
def test_a_key_is_checked_by_counting_unless_the_server_enforces_it(
    database: Database,
    connection: Any,
    monkeypatch: pytest.MonkeyPatch,
    table: str,
    named: tuple[str, ...],
    key: tuple[str, ...],
    counted: bool,
) -> None:
    database.run(KEYED)
    counts: list[int] = []
    check = planning._check_key

    def counted_check(*of: Any) -> None:
        counts.append(1)
        check(*of)

    monkeypatch.setattr(planning, "_check_key", counted_check)
    begin_snapshot(connection, 60)
    assert plan_table(connection, database.schema, table, key=named).key == key
    assert bool(counts) is counted


def test_duplicate_keys_in_inheriting_tables_are_found(database: Database, connection: Any) -> None:
    database.run(KEYED + "; INSERT INTO raw.parent VALUES (1), (2); INSERT INTO raw.heir VALUES (1)")
    begin_snapshot(connection, 60)
    with pytest.raises(BadInput, match=r"parent: \(a\) is not a key: 0 rows have NULL in it, 1 rows repeat"):
        plan_table(connection, database.schema, "parent", key=("a",))


def test_a_session_that_ended_before_its_snapshot_is_a_transient_error(database: Database, connection: Any) -> None:
    database.run(f"SELECT pg_terminate_backend({connection.info.backend_pid})")
    with pytest.raises(TransientError, match=r"the snapshot: .*the connection or the server failed"):
        begin_snapshot(connection, 60)
    connection.close()
    with pytest.raises(TransientError, match="the snapshot: connection already closed"):
        begin_snapshot(connection, 60)


def test_a_connection_lost_during_the_copy_is_a_transient_error(database: Database, connection: Any) -> None:
    database.run("CREATE TABLE raw.t AS SELECT i, repeat('x', 300) AS s FROM generate_series(1, 200000) i")
    begin_snapshot(connection, 60)
    batches = TableCopy(connection, plan_table(connection, database.schema, "t")).batches()
    next(batches)
    database.run(f"SELECT pg_terminate_backend({connection.info.backend_pid})")
    with pytest.raises(TransientError, match="the connection or the server failed"):
        list(batches)


def test_a_statement_that_takes_too_long_is_a_transient_error(database: Database, connection: Any) -> None:
    database.run("CREATE VIEW raw.t AS SELECT i, pg_sleep(1000)::text FROM generate_series(1, 100) i")
    begin_snapshot(connection, 60)
    plan = plan_table(connection, database.schema, "t")
    limit_statements(connection, 0.3)
    with pytest.raises(TransientError, match="REFERENCE_DEADLINE_SECONDS"):
        list(TableCopy(connection, plan).batches())


def test_a_reader_that_stops_early_leaves_no_thread_and_no_running_query(database: Database, connection: Any) -> None:
    many = "generate_series(1, 10000) i, generate_series(1, 10000) j"
    database.run(f"CREATE VIEW raw.t AS SELECT i, repeat('x', 100) AS s FROM {many}")
    begin_snapshot(connection, 60)
    threads = threading.active_count()
    batches = TableCopy(connection, plan_table(connection, database.schema, "t")).batches()
    next(batches)
    batches.close()
    assert threading.active_count() == threads
    connection.close()
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY (SELECT%' AND state = 'active'"
    eventually(lambda: database.run(running) == [(0,)], "the end of the query")


@pytest.mark.parametrize(("encoding", "carried_as"), [("LATIN1", "né"), ("SQL_ASCII", "né")])
def test_text_of_databases_in_another_encoding_is_read(database: Database, encoding: str, carried_as: str) -> None:
    name = f"{encoding.lower()}_{database.schema}"
    run_alone(database, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}'")
    other = dataclasses.replace(database, server=dataclasses.replace(database.server, database=name))
    other.run(f"CREATE SCHEMA {other.schema}; CREATE TABLE raw.t (s text, c char(3), j jsonb, long text)")
    other.run("INSERT INTO raw.t VALUES ('né', 'é', '{}', repeat('é', 2000))")
    connection = other.connect()
    try:
        _, table = carried(connection, other)
        assert table["s"].to_pylist() == [carried_as]
        assert table["long"].to_pylist() == ["é" * 2000]
    finally:
        connection.close()


def test_invalid_text_is_refused(database: Database) -> None:
    name = f"ascii_{database.schema}"
    run_alone(database, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII'")
    other = dataclasses.replace(database, server=dataclasses.replace(database.server, database=name))
    other.run(f"CREATE SCHEMA {other.schema}; CREATE TABLE raw.t AS SELECT convert_from('\\xe9', 'SQL_ASCII') AS s")
    connection = other.connect()
    try:
        with pytest.raises(BadInput, match="invalid byte sequence"):
            carried(connection, other)
    finally:
        connection.close()


def run_alone(database: Database, statement: str) -> None:
    """Run a statement that is not allowed in a transaction."""
    connection = database.connect()
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
    finally:
        connection.close()
