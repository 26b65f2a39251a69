"""`python -m bench dump`: Posts.xml to Parquet, this project compared with other ways and with the limit of its parts.

The dump is a real one, repeated with new Ids and dates: 10,000 posts a day, about as many as Stack Overflow had, and
one post in 1,000 has the date of any earlier day, like migrated posts. Every contender reads the same file in its own
process. Rounds are interleaved; medians count. CPU seconds (without imports) vary less than wall-clock time on a shared
machine. This import writes one file per day and checks all rows; the others write one file and check nothing.

"On free cores" is the speed-up that the CPU seconds of two threads allow on two idle cores.

The limit is writing Parquet from memory.

Measured, for the bound: two threads took 306 to 353 MB of memory, for a dump of 300 MB and of 1 GB alike. Most of it is
imports; each thread holds one row group, for a file of any size.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from xml.parsers import expat

import pyarrow as pa

from bench.common import Bound, conclude, options, peak_bytes
from ingest.dump import import_dump
from ingest.dump.posts import GROUP_BYTES, PARSE_BYTES, POSTS_TABLE, open_writer, write_group
from ingest.dump.rows import MOMENT, RowParser, read_rows
from ingest.dump.scan import Unit, row_ranges, scan_range
from tests.real_posts import FOLDER, what_is_missing

SEED_DUMP = "raspberrypi.meta/Posts.xml"
POSTS_A_DAY = 10_000
MIGRATED = 1_000
ROWS_A_GROUP = 20_000
FIRST_DAY = datetime(2012, 1, 1)  # noqa: DTZ001 - a dump's timestamps have no time zone

Work = Callable[[], Any]
"""The measured work; a contender returns it after its imports."""


@dataclass(frozen=True)
class Job:
    """The input of a contender: the XML file, and a folder for the output."""

    xml: str
    folder: str


@dataclass(frozen=True)
class Measured:
    """One run: seconds of wall-clock time and CPU (with child processes); peak memory and output in MB. Memory is that
    of the process; on a system without `/proc`, that of the largest process."""

    seconds: float
    cpu: float
    memory: float
    output: float


def grow(seed: Path, target: Path, megabytes: int) -> int:
    """Write a dump of about this size; returns the number of rows."""
    rows = [line.strip() for line in seed.read_bytes().splitlines() if line.lstrip().startswith(b"<row ")]
    numbers = [int(number) for row in rows for number in re.findall(rb' (?:Id|ParentId|AcceptedAnswerId)="(\d+)"', row)]
    templates = [_template(row) for row in rows]
    chance = random.Random(0)
    written = copy = 0
    with target.open("wb") as out:
        out.write(b'\xef\xbb\xbf<?xml version="1.0" encoding="utf-8"?>\r\n<posts>\r\n')
        while out.tell() < megabytes * 1_000_000:
            for form, ids in templates:
                place = written if chance.randrange(MIGRATED) else chance.randrange(written + 1)
                created = FIRST_DAY + place * timedelta(days=1) / POSTS_A_DAY
                moment = created.isoformat(timespec="milliseconds").encode()
                out.write(form % (*(number + copy for number in ids), moment))
                written += 1
            copy += max(numbers)
        out.write(b"</posts>")
    return written


def _template(row: bytes) -> tuple[bytes, list[int]]:
    """A row as a template, with placeholders for the Ids before its date and for the date; and these Ids."""
    head, created, tail = re.split(rb'( CreationDate=")[^"]*', row.replace(b"%", b"%%"), maxsplit=1)
    ids = [int(number) for number in re.findall(rb'(?:Id|ParentId|AcceptedAnswerId)="(\d+)"', head)][:1]
    rest = [int(number) for number in re.findall(rb'(?:ParentId|AcceptedAnswerId)="(\d+)"', head)]
    form = re.sub(rb'((?:\bId|ParentId|AcceptedAnswerId)=")\d+', rb"\1%d", head)
    return b"  " + form + created + b"%s" + tail + b"\r\n", ids + rest


# ---- contenders ---------------------------------------------------------------------------------------------------


def this_import(workers: int, by: Unit = "day") -> Callable[[Job], Work]:
    def contender(job: Job) -> Work:
        return lambda: import_dump(Path(job.xml).parent, Path(job.folder), by=by, workers=workers)

    return contender


def lxml_iterparse(job: Job) -> Work:
    from lxml import etree  # type: ignore[import-untyped]

    def rows() -> Iterator[dict[str, str]]:
        for _, element in etree.iterparse(job.xml, tag="row"):
            yield dict(element.attrib)
            element.clear()
            del element.getparent()[0]

    return lambda: write_rows(rows(), job)


def lxml_target(job: Job) -> Work:
    from lxml import etree

    def work() -> None:
        with _Writer(job) as writer:

            class Events:
                def start(self, tag: str, found: dict[str, str]) -> None:
                    if tag == "row":
                        writer.add(dict(found))

                def close(self) -> None:
                    pass

            etree.parse(job.xml, etree.XMLParser(target=Events()))

    return work


def expat_parser(job: Job) -> Work:
    def work() -> None:
        with _Writer(job) as writer, open(job.xml, "rb") as file:  # noqa: PTH123 - as in expat's documentation
            parser = expat.ParserCreate()
            parser.buffer_text = True

            def start(tag: str, found: dict[str, str]) -> None:
                if tag == "row":
                    writer.add(found)

            parser.StartElementHandler = start
            parser.ParseFile(file)

    return work


def regex_lines(job: Job) -> Work:
    from html import unescape

    attribute = re.compile(r' (\w+)="([^"]*)"')

    def rows() -> Iterator[dict[str, str]]:
        with Path(job.xml).open(encoding="utf-8-sig", newline="\n") as file:
            for line in file:
                if line.startswith("  <row "):
                    yield {name: unescape(value) if "&" in value else value for name, value in attribute.findall(line)}

    return lambda: write_rows(rows(), job)


class _Writer:
    """Writes rows, given as dictionaries, to one Parquet file, as a simple program does."""

    def __init__(self, job: Job) -> None:
        self._writer = open_writer(Path(job.folder) / "posts.parquet")
        self._rows: list[dict[str, str]] = []

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, row: dict[str, str]) -> None:
        self._rows.append(row)
        if len(self._rows) == ROWS_A_GROUP:
            self._flush()

    def _flush(self) -> None:
        columns = [pa.array([row.get(field.name) for row in self._rows], pa.string()) for field in POSTS_TABLE.schema]
        typed = [column.cast(field.type) for column, field in zip(columns, POSTS_TABLE.schema, strict=True)]
        write_group(self._writer, [pa.RecordBatch.from_arrays(typed, schema=POSTS_TABLE.schema)])
        self._rows = []


def write_rows(rows: Iterable[dict[str, str]], job: Job) -> None:
    with _Writer(job) as writer:
        for row in rows:
            writer.add(row)


def xml2arrow_blocks(job: Job) -> Work:
    """Blocks of complete rows through xml2arrow, which silently drops attributes without a field."""
    from xml2arrow import XmlToArrowParser

    parsed_as = {pa.int32(): "Int32", pa.int64(): "Int64", pa.string(): "Utf8", MOMENT: "Utf8"}
    columns = [
        {"name": it.name, "xml_path": f"/posts/row/@{it.name}", "data_type": parsed_as[it.type], "nullable": True}
        for it in POSTS_TABLE.schema
    ]
    tables = [{"name": "posts", "xml_path": "/posts", "levels": [], "fields": columns}]
    configuration = Path(job.folder) / "tables.yaml"
    configuration.write_text(json.dumps({"tables": tables}))  # JSON is YAML
    parser = XmlToArrowParser(configuration)

    def work() -> None:
        carried, group = b"", []
        with Path(job.xml).open("rb", buffering=0) as file, open_writer(Path(job.folder) / "posts.parquet") as writer:
            file.seek(file.read(4096).index(b"<row "))
            while block := file.read(PARSE_BYTES):
                data = carried + block
                cut = data.rfind(b"/>") + 2
                rows = parser.parse(b"<posts>" + data[:cut] + b"</posts>")["posts"]
                carried = data[cut:].removesuffix(b"</posts>")
                typed = [rows[field.name].cast(field.type) for field in POSTS_TABLE.schema]
                group.append(pa.RecordBatch.from_arrays(typed, schema=POSTS_TABLE.schema))
                if len(group) * PARSE_BYTES >= GROUP_BYTES:
                    write_group(writer, group)
                    group = []
            write_group(writer, group)

    return work


def parquet_alone(job: Job) -> Work:
    """Write the rows of the first GROUP_BYTES of the file again and again, up to the size of the file."""
    xml = Path(job.xml)
    lo, hi = row_ranges(xml, POSTS_TABLE.root, GROUP_BYTES)[0]
    with xml.open("rb", buffering=0) as file:
        runs = scan_range(xml, lo, hi, POSTS_TABLE.root, None, list[Any]().extend).runs.tolist()
        rows = [read_rows(file, start, end, number) for _, start, end, number in runs]
    batches = RowParser(POSTS_TABLE, lambda _: ()).parse(rows)

    def work() -> None:
        with open_writer(Path(job.folder) / "posts.parquet") as writer:
            for _ in range(round(xml.stat().st_size / (hi - lo))):
                write_group(writer, batches)

    return work


OURS, TWO, ONE_FILE, ITERPARSE = "this import", "this import, 2 threads", "this import, 1 file", "lxml iterparse"
CONTENDERS: dict[str, Callable[[Job], Work]] = {
    OURS: this_import(1),
    TWO: this_import(2),
    ONE_FILE: this_import(2, "all"),
    ITERPARSE: lxml_iterparse,
    "xml2arrow, unchecked": xml2arrow_blocks,
    "lxml parser target": lxml_target,
    "expat": expat_parser,
    "regex per line": regex_lines,
    "Parquet alone": parquet_alone,
}
MOST_MEGABYTES = 400
NEEDS = {"xml2arrow, unchecked": "xml2arrow", ITERPARSE: "lxml", "lxml parser target": "lxml"}


# ---- measuring ----------------------------------------------------------------------------------------------------


def measure(name: str, xml: Path) -> Measured:
    """Run a contender in its own process."""
    folder = tempfile.mkdtemp(prefix="stacktopics-bench-")
    try:
        command = [sys.executable, "-m", "bench.dump", "--one", name, json.dumps(asdict(Job(str(xml), folder)))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{name} failed:\n{done.stdout}\n{done.stderr}")
        output = sum(file.stat().st_size for file in Path(folder).rglob("*.parquet")) / 1e6
        return Measured(output=output, **json.loads(done.stdout.splitlines()[-1]))
    finally:
        shutil.rmtree(folder)


def run_one(name: str, job: Job) -> dict[str, float]:
    """Do a contender's work in this process."""
    work = CONTENDERS[name](job)
    wall, cpu = time.monotonic(), _cpu_seconds()
    work()
    return {"seconds": time.monotonic() - wall, "cpu": _cpu_seconds() - cpu, "memory": peak_bytes() / 1e6}


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


# ---- the command --------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table; with `--json`, one JSON object. Returns the exit code."""
    parser = options("dump", __doc__)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", help="contenders, separated by semicolons")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "JOB"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        print(json.dumps(run_one(given.one[0], Job(**json.loads(given.one[1])))))
        return 0
    if missing_posts := what_is_missing(SEED_DUMP):
        print(f"skipped: {missing_posts}")
        return 0
    wanted = given.only.split(";") if given.only else list(CONTENDERS)
    missing = [name for name in wanted if name in NEEDS and not importlib.util.find_spec(NEEDS[name])]
    runs: dict[str, list[Measured]] = {name: [] for name in wanted if name not in missing}
    with tempfile.TemporaryDirectory(prefix="stacktopics-bench-") as folder:
        xml = Path(folder) / "Posts.xml"
        rows = grow(FOLDER / SEED_DUMP, xml, given.megabytes)
        megabytes = xml.stat().st_size / 1e6
        for _ in range(given.rounds):
            for name, so_far in runs.items():
                so_far.append(measure(name, xml))
    result = {
        "megabytes": round(megabytes),
        "rows": rows,
        "rounds": given.rounds,
        "contenders": {name: _summary(found, megabytes) for name, found in runs.items()},
        "skipped": {name: NEEDS[name] for name in missing},
    }
    result |= _ratios(result["contenders"])
    bounds = [
        Bound(f"{name}: peak", result["contenders"][name]["peak_mb"], MOST_MEGABYTES, "MB")
        for name in (OURS, TWO, ONE_FILE)
        if name in runs
    ]
    result["bounds"] = [bound.to_json() for bound in bounds]
    print(json.dumps(result, indent=2) if given.json else _table(result))
    return conclude(bounds, given)


def _summary(runs: Sequence[Measured], megabytes: float) -> dict[str, float]:
    seconds = statistics.median(run.seconds for run in runs)
    cpu = statistics.median(run.cpu for run in runs)
    return {
        "megabytes_a_second": round(megabytes / seconds, 1),
        "megabytes_a_cpu_second": round(megabytes / cpu, 1),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "peak_mb": round(max(run.memory for run in runs)),
        "output_mb": round(runs[0].output, 1),
    }


def _ratios(contenders: dict[str, dict[str, float]]) -> dict[str, float]:
    ratios = {}
    if contenders.keys() >= {OURS, ITERPARSE}:
        ratios["times_iterparse_in_cpu"] = contenders[ITERPARSE]["cpu_seconds"] / contenders[OURS]["cpu_seconds"]
        ratios["times_iterparse_in_wall"] = contenders[ITERPARSE]["seconds"] / contenders[OURS]["seconds"]
    if contenders.keys() >= {OURS, TWO}:
        ratios["two_threads_in_wall"] = contenders[OURS]["seconds"] / contenders[TWO]["seconds"]
        ratios["two_threads_on_free_cores"] = 2 * contenders[OURS]["cpu_seconds"] / contenders[TWO]["cpu_seconds"]
    return {name: round(ratio, 2) for name, ratio in ratios.items()}


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['rows']:,} rows in {result['megabytes']:,} MB of XML, {result['rounds']} interleaved rounds, medians",
        f"{'':26}{'MB/s':>8}{'MB/CPU s':>10}{'seconds':>9}{'CPU s':>8}{'peak MB':>9}{'out MB':>9}",
    ]
    lines += [
        f"{name:26}{row['megabytes_a_second']:>8}{row['megabytes_a_cpu_second']:>10}{row['seconds']:>9.2f}"
        f"{row['cpu_seconds']:>8.2f}{row['peak_mb']:>9}{row['output_mb']:>9}"
        for name, row in result["contenders"].items()
    ]
    lines += [f"{name:26}skipped: {needs} is not installed" for name, needs in result["skipped"].items()]
    lines += [f"{name.replace('_', ' ')}: {ratio}" for name, ratio in result.items() if isinstance(ratio, float)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
