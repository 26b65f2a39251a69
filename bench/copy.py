"""`python -m bench copy`: Postgres to Parquet, this project compared with its peers and with the limits of the machine.

Every contender copies the same table in its own process. Rounds are interleaved; the round with the median CPU seconds
counts. CPU seconds are those of the client (without imports) and of the server's backends: they vary less than
wall-clock time on a shared machine. Peak memory is that of the whole process. Peers that are not installed are skipped.

There are three limits: the server's COPY BINARY with its output discarded, decoding rows from memory, and encoding
record batches from memory. The sum of their CPU seconds is the floor with which the copy is compared.

Then tables of few wide rows are copied to measure memory: the copy holds a fixed number of bytes at once, or one larger
row. Measured, for the bounds: 218 MB for narrow rows, 250 to 375 MB for wide rows (3.5 GB before the limit was in
bytes), and 93 % of the floor.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pyarrow as pa

from bench.common import Bound, conclude, options, peak_bytes
from ingest.postgres.connect import begin_snapshot
from ingest.postgres.plan import plan_table
from ingest.postgres.wire import RowSink, TableCopy, WireRows, decode
from ingest.reference.copy import copy_reference
from ingest.reference.snapshot import write_parquet
from localcloud import postgres
from localcloud.processes import free_ports
from shared.lake import FolderLake
from shared.services import Services
from shared.settings import Settings

SCHEMA, TABLE = "raw_st", "users"
WIDE_TABLE, WIDE_ROWS = "wide", {1_000: 600_000, 1_000_000: 600, 20_000_000: 40}
"""The bytes of a row, and the number of rows."""
MOST_MEGABYTES, MOST_FOR_WIDE_ROWS, LEAST_OF_FLOOR = 300, 400, 0.75
MADE_IN_MEMORY = 64 * 1024
"""The rows that the two in-memory limits hold; they repeat them up to the number of rows of the table."""

MAKE_TABLE = """
    CREATE SCHEMA raw_st;
    CREATE UNLOGGED TABLE raw_st.users WITH (autovacuum_enabled = off) AS SELECT
        i AS "Id",
        (random() * 10000)::int AS "Reputation",
        timestamp '2008-07-31' + i * interval '137 seconds' AS "CreationDate",
        'user' || i AS "DisplayName",
        timestamp '2020-01-01' + random() * 1e8 * interval '1 second' AS "LastAccessDate",
        CASE WHEN i % 5 = 0 THEN 'https://example.org/~' || md5((i * 3)::text) END AS "WebsiteUrl",
        CASE WHEN i % 3 > 0 THEN (array['London', 'Berlin, Germany', 'New York, NY, USA', 'Paris', 'São Paulo', '東京'])
            [1 + i % 6] END AS "Location",
        CASE WHEN i % 2 = 0 THEN (SELECT string_agg(md5((i + j)::text), ' ') FROM generate_series(1, 1 + i % 31) j)
            END AS "AboutMe",
        (random() * 1000)::int AS "Views",
        (random() * 500)::int AS "UpVotes",
        (random() * 50)::int AS "DownVotes",
        CASE WHEN i % 7 > 0 THEN i + 1000000 END AS "AccountId"
    FROM generate_series(1, {rows}) i
"""


MAKE_WIDE_TABLE = """
    DROP TABLE IF EXISTS raw_st.wide;
    CREATE UNLOGGED TABLE raw_st.wide AS SELECT i AS "Id", repeat(md5(i::text), {bytes} / 32) AS "Text"
    FROM generate_series(1, {rows}) i
"""


@dataclass(frozen=True)
class Job:
    """The input of a contender: the server, the number of rows of the table, a folder for the output, the table."""

    dsn: str
    rows: int
    folder: str
    table: str = TABLE

    def file(self) -> Any:
        return (Path(self.folder) / "users.parquet").open("wb")

    @contextmanager
    def copy(self) -> Iterator[tuple[Any, TableCopy]]:
        with closing(psycopg2.connect(self.dsn)) as connection:
            begin_snapshot(connection, 3600)
            yield connection, TableCopy(connection, plan_table(connection, SCHEMA, self.table))


@dataclass(frozen=True)
class Measured:
    """One run: seconds of wall-clock time and CPU (client, server); peak memory of the process and output, in MB."""

    seconds: float
    client: float
    server: float
    memory: float
    output: float

    @property
    def cpu(self) -> float:
        return self.client + self.server


Work = Callable[[], Any]
"""The measured work; a contender returns it after its imports and preparations."""


# ---- contenders ---------------------------------------------------------------------------------------------------


def copy_with(proof: str) -> Callable[[Job], Work]:
    """This project's weekly copy, to a lake in a folder."""

    def contender(job: Job) -> Work:
        storage = "UseDevelopmentStorage=true"
        settings = Settings.model_validate(
            {
                **dict.fromkeys(("posts_storage", "queues_storage", "lake_storage"), storage),
                **dict.fromkeys(("postgres_host", "postgres_database", "postgres_user", "databricks_host"), "unused"),
                "databricks_job_id": 0,
                "reference_tables": job.table,
                "reference_proof": proof,
            }
        )
        services = Services().replace(settings=settings, lake=FolderLake(Path(job.folder)))
        services.postgres = lambda: psycopg2.connect(job.dsn)  # type: ignore[method-assign]
        return lambda: copy_reference(services)

    return contender


def server_alone(job: Job) -> Work:
    class Nowhere:
        write = staticmethod(len)

    def work() -> None:
        with job.copy() as (connection, copy), connection.cursor() as cursor:
            cursor.copy_expert(copy.plan.copy_statement.as_string(cursor), Nowhere)

    return work


def decode_alone(job: Job) -> Work:
    received: list[WireRows] = []
    with job.copy() as (connection, copy), connection.cursor() as cursor:
        sink = RowSink(received.append, TABLE)
        some = f' WHERE "Id" <= {min(MADE_IN_MEMORY, job.rows)}) TO'
        cursor.copy_expert(copy.plan.copy_statement.as_string(cursor).replace(") TO", some), sink)
        sink.finish()

    def work() -> None:
        for rows in _repeated(received, job.rows, lambda rows: len(rows.sizes)):
            decode(rows, copy.plan, Counter())

    return work


def encode_alone(job: Job) -> Work:
    with job.copy() as (_, copy):
        batches = copy.batches()
        some = list(itertools.islice(batches, -(-min(MADE_IN_MEMORY, job.rows) // 8192)))
        batches.close()
    repeated = _repeated(some, job.rows, lambda batch: batch.num_rows)
    return lambda: write_parquet(repeated, copy.plan.arrow_schema, job.file())


def _repeated(items: Sequence[Any], rows: int, count: Callable[[Any], int]) -> Iterator[Any]:
    given = 0
    for item in itertools.cycle(items):
        if given >= rows:
            return
        given += count(item)
        yield item


QUERY = f"SELECT * FROM {SCHEMA}.{TABLE}"


def adbc(job: Job) -> Work:
    from adbc_driver_postgresql import dbapi

    def work() -> None:
        with dbapi.connect(job.dsn) as connection, connection.cursor() as cursor:
            cursor.execute(QUERY)
            reader = cursor.fetch_record_batch()
            write_parquet(reader, reader.schema, job.file())

    return work


def connectorx(job: Job) -> Work:
    import connectorx

    def work() -> None:
        reader = connectorx.read_sql(job.dsn, QUERY, return_type="arrow_stream", batch_size=8192)
        write_parquet(reader, reader.schema, job.file())

    return work


def duckdb(job: Job) -> Work:
    import duckdb
    import duckdb_extension_postgres_scanner as scanner

    extension = next(Path(scanner.__file__).parent.rglob("*.duckdb_extension"))
    options = "FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, ROW_GROUP_SIZE 65536"

    def work() -> None:
        with duckdb.connect() as connection:
            connection.execute(f"LOAD '{extension}'")
            connection.execute(f"ATTACH '{job.dsn}' AS server (TYPE postgres, READ_ONLY)")
            connection.execute(f"COPY server.{SCHEMA}.{TABLE} TO '{job.folder}/users.parquet' ({options})")

    return work


def pandas(job: Job) -> Work:
    import pandas as pd
    import sqlalchemy

    def batches(connection: Any) -> Iterator[pa.RecordBatch]:
        schema = None
        for frame in pd.read_sql(sqlalchemy.text(QUERY), connection, chunksize=65536):
            batch = pa.RecordBatch.from_pandas(frame, preserve_index=False)
            schema = schema or batch.schema
            yield batch.cast(schema)

    def work() -> None:
        engine = sqlalchemy.create_engine(job.dsn.replace("postgresql:", "postgresql+psycopg2:"))
        with engine.connect().execution_options(stream_results=True) as connection:
            found = batches(connection)
            first = next(found)
            write_parquet(itertools.chain([first], found), first.schema, job.file())

    return work


def dlt(job: Job) -> Work:
    os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
    import dlt
    from dlt.destinations import filesystem
    from dlt.sources.sql_database import sql_table

    def work() -> None:
        dsn = job.dsn.replace("postgresql:", "postgresql+psycopg2:")
        table = sql_table(dsn, table=TABLE, schema=SCHEMA, backend="connectorx", chunk_size=65536)
        target = filesystem(f"file://{job.folder}/dlt")
        pipeline = dlt.pipeline("bench", destination=target, dataset_name="out", pipelines_dir=f"{job.folder}/state")
        pipeline.run(table, loader_file_format="parquet", write_disposition="replace")

    return work


OURS, PROVED = "this copy", "this copy + proof"
LIMITS = {"server alone": server_alone, "decode alone": decode_alone, "encode alone": encode_alone}
PEERS = {"adbc": adbc, "duckdb": duckdb, "connectorx": connectorx, "dlt": dlt, "pandas": pandas}
NEEDS = {
    "adbc": ["adbc_driver_postgresql"],
    "duckdb": ["duckdb", "duckdb_extension_postgres_scanner"],
    "connectorx": ["connectorx"],
    "dlt": ["dlt", "connectorx", "sqlalchemy"],
    "pandas": ["pandas", "sqlalchemy"],
}
CONTENDERS: dict[str, Callable[[Job], Work]] = {
    OURS: copy_with("rows"),
    PROVED: copy_with("checksum"),
    **LIMITS,
    **PEERS,
}


# ---- measuring ----------------------------------------------------------------------------------------------------


def measure(name: str, server: postgres.Postgres, rows: int, table: str = TABLE) -> Measured:
    """Run a contender in its own process."""
    folder = tempfile.mkdtemp(prefix="stacktopics-bench-")
    job = Job(_dsn(server), rows, folder, table)
    try:
        command = [sys.executable, "-m", "bench.copy", "--one", name, json.dumps(asdict(job))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{name} failed:\n{done.stdout}\n{done.stderr}")
        told = json.loads(done.stdout.splitlines()[-1])
        output = sum(file.stat().st_size for file in Path(folder).rglob("*.parquet")) / 1e6
        return Measured(output=output, **told)
    finally:
        shutil.rmtree(folder)


def run_one(name: str, job: Job) -> Measured:
    """Do a contender's work in this process."""
    work = CONTENDERS[name](job)
    _wait_for_backends(job.dsn)
    server, client, wall = _server_cpu(job.dsn), time.process_time(), time.monotonic()
    work()
    wall, client = time.monotonic() - wall, time.process_time() - client
    _wait_for_backends(job.dsn)
    return Measured(wall, client, _server_cpu(job.dsn) - server, peak_bytes() / 1e6, 0)


def _wait_for_backends(dsn: str) -> None:
    """Wait until all other backends have ended: only then the server process includes their CPU seconds."""
    others = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    deadline = time.monotonic() + 30
    while _ask(dsn, others) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)


def _server_cpu(dsn: str) -> float:
    """CPU seconds of the backends that have ended: fields 16 and 17 of the postmaster's /proc/<pid>/stat."""
    data = Path(_ask(dsn, "SHOW data_directory"))
    pid = (data / "postmaster.pid").read_text().split()[0]
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def _dsn(server: postgres.Postgres) -> str:
    return f"postgresql://{server.user}:{server.password}@{server.host}:{server.port}/{server.database}"


def _ask(dsn: str, query: str) -> Any:
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0] if cursor.description else connection.commit()


@contextmanager
def server_with_table(rows: int) -> Iterator[postgres.Postgres]:
    """A Postgres server for this benchmark, with its table made and read once."""
    folder = Path(tempfile.mkdtemp(prefix="stacktopics-bench-"))
    folder.chmod(0o755)
    server = postgres.start(folder, free_ports(1)[0], folder / "postgres.log", lambda _: None)
    try:
        _ask(_dsn(server), MAKE_TABLE.format(rows=rows))
        with closing(psycopg2.connect(_dsn(server))) as connection:
            connection.autocommit = True
            connection.cursor().execute(f"VACUUM ANALYZE {SCHEMA}.{TABLE}")
        yield server
    finally:
        server.process.stop()
        postgres.remove(folder)
        shutil.rmtree(folder, ignore_errors=True)


# ---- the command --------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table; with `--json`, one JSON object. Returns the exit code."""
    parser = options("copy", __doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="contenders, separated by commas")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "JOB"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        measured = asdict(run_one(given.one[0], Job(**json.loads(given.one[1]))))
        del measured["output"]
        print(json.dumps(measured))
        return 0
    wanted = given.only.split(",") if given.only else list(CONTENDERS)
    skipped = [name for name in wanted if not all(map(importlib.util.find_spec, NEEDS.get(name, [])))]
    runs: dict[str, list[Measured]] = {name: [] for name in wanted if name not in skipped}
    with server_with_table(given.rows) as server:
        bytes_a_row = _ask(_dsn(server), f"SELECT pg_relation_size('{SCHEMA}.{TABLE}')") / given.rows
        for _ in range(given.rounds):
            for name, measured_so_far in runs.items():
                measured_so_far.append(measure(name, server, given.rows))
        wide = {} if given.only else measure_wide_rows(server)
    result = {
        "rows": given.rows,
        "bytes_a_row": round(bytes_a_row),
        "rounds": given.rounds,
        "contenders": {name: _summary(found, given.rows) for name, found in runs.items()},
        "skipped": {name: NEEDS[name] for name in skipped},
    }
    if runs.keys() >= {OURS, *LIMITS}:
        result |= _held_against_limits({name: asdict(_median(found)) for name, found in runs.items()})
    bounds = _bounds(result, wide)
    result["bounds"] = [bound.to_json() for bound in bounds]
    print(json.dumps(result, indent=2) if given.json else _table(result))
    return conclude(bounds, given)


def measure_wide_rows(server: postgres.Postgres) -> dict[str, float]:
    """The peak memory in MB of copying and proving each table of wide rows, by a description of the table."""
    peaks = {}
    for size, rows in WIDE_ROWS.items():
        _ask(_dsn(server), MAKE_WIDE_TABLE.format(bytes=size, rows=rows))
        peaks[f"{rows:,} rows of {size:,} bytes"] = measure(PROVED, server, rows, WIDE_TABLE).memory
    return peaks


def _bounds(result: dict[str, Any], wide: dict[str, float]) -> list[Bound]:
    contenders = result["contenders"]
    bounds = [
        Bound(f"{name}: peak", contenders[name]["peak_mb"], MOST_MEGABYTES, "MB")
        for name in (OURS, PROVED)
        if name in contenders
    ]
    bounds += [Bound(f"{PROVED}: peak for {what}", peak, MOST_FOR_WIDE_ROWS, "MB") for what, peak in wide.items()]
    if "share_of_cpu_floor" in result:
        share = result["share_of_cpu_floor"]
        bounds.append(Bound(f"{OURS}: share of the CPU floor", share, LEAST_OF_FLOOR, is_least=True))
    return bounds


def _median(runs: list[Measured]) -> Measured:
    """The run with the median CPU seconds."""
    return sorted(runs, key=lambda run: run.cpu)[(len(runs) - 1) // 2]


def _summary(runs: list[Measured], rows: int) -> dict[str, float]:
    median = _median(runs)
    return {
        "rows_a_second": round(rows / median.seconds),
        "seconds": round(median.seconds, 2),
        "cpu_seconds": round(median.cpu, 2),
        "client_cpu_seconds": round(median.client, 2),
        "server_cpu_seconds": round(median.server, 2),
        "peak_mb": round(max(run.memory for run in runs)),
        "output_mb": round(median.output, 1),
    }


def _held_against_limits(runs: dict[str, dict[str, float]]) -> dict[str, float]:
    """The floor as a share of this copy's CPU seconds; and the least wall-clock time that two cores allow, as a share
    of this copy's wall-clock time."""
    cpu = {name: run["client"] + run["server"] for name, run in runs.items()}
    floor = sum(cpu[name] for name in LIMITS)
    best_wall = max(
        floor / 2, *(cpu[name] for name in ("decode alone", "encode alone")), runs["server alone"]["server"]
    )
    return {
        "floor_cpu_seconds": round(floor, 2),
        "share_of_cpu_floor": round(floor / cpu[OURS], 3),
        "share_of_wall_limit": round(best_wall / runs[OURS]["seconds"], 3),
    }


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['rows']:,} rows of {result['bytes_a_row']} bytes; the median of {result['rounds']} rounds by CPU",
        f"{'':20}{'rows/s':>12}{'seconds':>10}{'CPU s':>8}{'client':>9}{'server':>9}{'peak MB':>9}{'out MB':>9}",
    ]
    lines += [
        f"{name:20}{row['rows_a_second']:>12,}{row['seconds']:>10.2f}{row['cpu_seconds']:>8.2f}"
        f"{row['client_cpu_seconds']:>9.2f}{row['server_cpu_seconds']:>9.2f}{row['peak_mb']:>9}{row['output_mb']:>9}"
        for name, row in result["contenders"].items()
    ]
    lines += [f"{name:20}skipped: not installed ({', '.join(needs)})" for name, needs in result["skipped"].items()]
    if "floor_cpu_seconds" in result:
        lines.append(
            f"the floor is {result['floor_cpu_seconds']} CPU s: this copy reaches {result['share_of_cpu_floor']:.0%} "
            f"of it, and {result['share_of_wall_limit']:.0%} of what two cores allow in wall time"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
