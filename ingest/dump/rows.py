"""Rows of a dump to Arrow: `xml2arrow` reads whole blocks, and its answer is held against the bytes it was given.

The parser leaves out what it has no field for and accepts some things that are no XML, without a word. So every block
is checked: as many rows as were found by the scan, and as many attributes as half the quotation marks in its bytes. A
block that fails is halved until the rows that are at fault stand alone; those are set aside with the reason.
"""

from __future__ import annotations

import functools
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
from xml2arrow import XmlToArrowParser
from xml2arrow.exceptions import Xml2ArrowError

from ingest.dump.report import Rejected
from shared.errors import Conflict

MOMENT = pa.timestamp("us")

_ATTRIBUTE = re.compile(rb"""([^\s=<>"'/]+)\s*=\s*(?:"[^"]*"|'[^']*')""")
_ROW = b"<row "
_PARSED_AS = {pa.int16(): "Int16", pa.int32(): "Int32", pa.int64(): "Int64", pa.string(): "Utf8", MOMENT: "Utf8"}


class RowFault(Exception):
    """Rows that can't be read as they should; the message is the reason that is kept with a rejected row."""


@dataclass(frozen=True)
class XmlTable:
    """A file of the dump: its root element, its attributes with their types, and those that a row must have.

    Moments are naive and mean UTC, as in the dump.
    """

    root: str
    schema: pa.Schema
    required: tuple[str, ...]


class Rows(NamedTuple):
    """Bytes that hold `number` whole rows, from `offset` of the file."""

    offset: int
    data: bytes
    number: int


Check = Callable[[pa.RecordBatch], None]
"""Raises RowFault when rows break a rule of their target."""


class RowParser:
    """Turns rows into record batches; collects what was set aside and which attributes had no column."""

    def __init__(self, table: XmlTable) -> None:
        self._table = table
        self._parser = _parser(table)
        self._open, self._close = f"<{table.root}>".encode(), f"</{table.root}>".encode()
        self.rejected: list[Rejected] = []
        self.not_imported: Counter[str] = Counter()

    def parse(self, rows: Sequence[Rows], check: Check) -> list[pa.RecordBatch]:
        """Read rows in the schema of the table, in their order; those that fail, or fail `check`, are set aside."""
        try:
            return [self._parse_all(rows, check)]
        except RowFault as fault:
            single = [row for some in rows for row in _one_by_one(some)]
            if len(single) == 1:
                self.rejected.append(Rejected(single[0].offset, len(single[0].data), str(fault)))
                return []
            half = len(single) // 2
            return self.parse(single[:half], check) + self.parse(single[half:], check)

    def _parse_all(self, rows: Sequence[Rows], check: Check) -> pa.RecordBatch:
        document = b"".join((self._open, *(some.data for some in rows), self._close))
        try:
            parsed = self._parser.parse(document)[self._table.root]
        except Xml2ArrowError as error:
            raise RowFault(str(error)) from error
        except TypeError as error:  # what the parser makes of a UnicodeDecodeError
            raise RowFault("not UTF-8") from error
        if parsed.num_rows != sum(some.number for some in rows):
            raise RowFault("not read as one row")
        not_imported = _not_imported(document, parsed)
        columns = [_cast(parsed[field.name], field) for field in self._table.schema]
        batch = pa.RecordBatch.from_arrays(columns, schema=self._table.schema)
        for name in self._table.required:
            if batch[name].null_count:
                raise RowFault(f"{name} is missing")
        check(batch)
        self.not_imported.update(not_imported)
        return batch


def _cast(column: pa.Array, field: pa.Field) -> pa.Array:
    try:
        return column.cast(field.type)
    except pa.ArrowInvalid as error:
        raise RowFault(f"{field.name}: {error}") from error


def read_rows(file: BinaryIO, start: int, end: int, number: int) -> Rows:
    """The rows of a run, as the scan found it. Raises Conflict when they are no longer there."""
    file.seek(start)
    rows = Rows(start, file.read(end - start), number)
    if len(rows.data) < end - start or not rows.data.startswith(_ROW):
        raise Conflict(f"{file.name} was changed while it was read")
    return rows


def _one_by_one(rows: Rows) -> list[Rows]:
    pieces = [_ROW + piece for piece in rows.data.split(_ROW)[1:]]
    if len(pieces) != rows.number:
        raise Conflict(f"{rows.number} rows were found at offset {rows.offset} and {len(pieces)} are there now")
    offsets = accumulate(map(len, pieces), initial=rows.offset)
    return [Rows(offset, piece.rstrip(), 1) for offset, piece in zip(offsets, pieces, strict=False)]


def _not_imported(document: bytes, parsed: pa.RecordBatch) -> Counter[str]:
    """Attributes by name that became no value of a column.

    Counting quotation marks (0.2 ms/MB) shows whether there are any; naming them takes a look at every attribute
    (3 ms/MB). Raises RowFault when the columns don't hold exactly what the bytes say.
    """
    values = {
        name: len(column) - column.null_count for name, column in zip(parsed.schema.names, parsed.columns, strict=True)
    }
    quotation_marks = np.count_nonzero(np.frombuffer(document, np.uint8) == ord('"'))
    if quotation_marks == 2 * sum(values.values()):
        return Counter()
    names = Counter(name.decode("utf-8", "backslashreplace") for name in _ATTRIBUTE.findall(document))
    for name, count in values.items():
        empty_numbers = pa.types.is_integer(parsed.schema.field(name).type) and names[name] > count
        if names[name] != count and not empty_numbers:
            raise RowFault(f"no well-formed row: {name} stands there {names[name]} times and was read {count} times")
    for name in names:
        prefix, _, local = name.rpartition(":")
        if prefix and local in values:  # the parser would join the values of both
            raise RowFault(f"the attribute {name} has a prefix")
    return Counter({name: count for name, count in names.items() if name not in values})


@functools.cache
def _parser(table: XmlTable) -> XmlToArrowParser:
    """The parser wants its configuration in a file, in YAML, of which JSON is a part; 4 ms, so once a process."""
    fields = [
        {
            "name": field.name,
            "xml_path": f"/{table.root}/row/@{field.name}",
            "data_type": _PARSED_AS[field.type],
            "nullable": True,
        }
        for field in table.schema
    ]
    tables = [{"name": table.root, "xml_path": f"/{table.root}", "levels": [], "fields": fields}]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tables.yaml"
        file.write_text(json.dumps({"tables": tables}))
        return XmlToArrowParser(file)
