"""The footer of a Parquet file, checked before any library reads it.

It is FileMetaData in Thrift's compact encoding (https://parquet.apache.org/docs/file-format/metadata/). A library
recurses as deep as the schema declares and creates an object for everything that is declared. This module never
recurses on what the file declares, reads every byte once, and refuses absurd values before it allocates memory for
them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.errors import BadInput

MAX_COLUMNS = 1_000
MAX_ROW_GROUPS = 10_000
MAX_CHUNKS = 50_000
"""Row groups times columns: Arrow and this module hold about 2 KB for each."""
MAX_ELEMENTS = 4 * MAX_COLUMNS
"""Schema elements: columns, and the groups that contain them."""
MAX_LISTED = 20 * MAX_CHUNKS
"""Entries of lists that this module skips but Arrow reads: encodings, paths, their statistics."""
MAX_DEPTH = 32
MAX_NAME_BYTES = 1_000
MAX_ROWS, MAX_ROWS_PER_BYTE = 100_000_000, 1_000
"""Stack Overflow has 60 million posts; the job briefly holds 20 bytes for each. A column of nulls only takes about one
byte for twenty rows."""
FREE_BYTES = 64 << 20
MAX_RATIO_OF_CHUNK, MAX_RATIO_OF_FILE = 32_768, 1_000
"""Largest ratio of uncompressed (but dictionary-encoded) to stored bytes, beyond the first 64 MiB. zstd writes 128 KiB
of one repeated byte as 4 bytes, so a constant column may come near the limit of a chunk. A whole file, with its texts,
stays far below its limit: a ratio of 5 is usual, 100 is high. 200,000 copies of one post in brotli, without
dictionaries, are within it."""

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST = range(1, 10)
_BOOLS = (_TRUE, _FALSE)
"""The type of a boolean field is also its value."""
_STRUCT = 12
_FIELDS = -1  # not a type of Thrift: the fields of an open struct
_FIXED = {_TRUE: 1, _FALSE: 1, _BYTE: 1, _DOUBLE: 8}
_REPEATED = 2

Wanted = Mapping[int, tuple[str, Any]]
"""The fields of a struct by number, each with its name and shape: a type, the fields of a nested struct, or a list of
two: the fields of its elements, and the most elements that the whole file may have."""

_LOGICAL: Wanted = {
    1: ("string", {}),
    2: ("map", {}),
    3: ("list", {}),
    4: ("string", {}),  # an enumeration, whose values are text
    5: ("decimal", {}),
    6: ("date", {}),
    7: ("time", {}),
    8: ("timestamp", {}),
    10: ("integer", {2: ("signed", _TRUE)}),
    11: ("null", {}),
    12: ("string", {}),  # JSON
    13: ("bson", {}),
    14: ("uuid", {}),
    15: ("half-precision number", {}),
}
_ELEMENT: Wanted = {
    1: ("type", _I32),
    3: ("repetition", _I32),
    4: ("name", _BINARY),
    5: ("children", _I32),
    6: ("converted", _I32),
    10: ("logical", _LOGICAL),
}
_CHUNK: Wanted = {
    1: ("elsewhere", _BINARY),
    3: (
        "columns",
        {
            5: ("values", _I64),
            6: ("plain", _I64),
            7: ("stored", _I64),
            9: ("data", _I64),
            11: ("dictionary", _I64),
            12: ("statistics", {3: ("nulls", _I64)}),
        },
    ),
}
_GROUP: Wanted = {1: ("column chunks", [_CHUNK, MAX_CHUNKS]), 2: ("plain", _I64), 3: ("rows", _I64)}
_FILE: Wanted = {
    2: ("schema elements", [_ELEMENT, MAX_ELEMENTS]),
    3: ("rows", _I64),
    4: ("row groups", [_GROUP, MAX_ROW_GROUPS]),
    8: ("encryption", {}),
}


_PHYSICAL = ("boolean", "int32", "int64", "int96", "float", "double", "binary", "fixed binary")
_CONVERTED = dict.fromkeys((0, 4, 19), "string") | {1: "map", 3: "list", 5: "decimal", 6: "date", 7: "time", 8: "time"}
_CONVERTED |= {9: "timestamp", 10: "timestamp", 20: "bson", 21: "interval"}
_CONVERTED |= dict.fromkeys((11, 12, 13, 14), "unsigned") | dict.fromkeys((15, 16, 17, 18), "integer")
_TYPES = {
    ("int32", "plain"): "int32",
    ("int32", "integer"): "int32",
    ("int32", "unsigned"): "uint32",
    ("int64", "plain"): "int64",
    ("int64", "integer"): "int64",
    ("int64", "unsigned"): "uint64",
    ("int96", "plain"): "timestamp",
    ("int64", "timestamp"): "timestamp",
    ("int32", "date"): "date",
    ("binary", "string"): "string",
    ("int32", "decimal"): "decimal",
    ("int64", "decimal"): "decimal",
    ("binary", "decimal"): "decimal",
    ("fixed binary", "decimal"): "decimal",
}


@dataclass(frozen=True)
class Footer:
    """A checked footer: the numbers of rows and row groups, and name and type of each column in the root of the schema.

    A type is int32, uint32, int64, uint64, float, double, decimal, timestamp, date, string, binary, null (a column
    without a value in any row, whatever its declared type), or a description of any other type."""

    rows: int
    row_groups: int
    columns: list[tuple[str, str]]


def read_footer(footer: bytes, begins: int) -> Footer:
    """Read the bytes of a footer that begins at byte `begins` of its file, in linear time.

    Raises BadInput, without the file's name, when the footer is truncated, exceeds a limit of depth or size, or
    declares sizes, offsets or rows that the file cannot have.
    """
    try:
        reading = _Compact(footer)
        found = reading.struct(_FILE)
        if "encryption" in found:
            raise BadInput("it is encrypted")
        reading.end()
        leaves, columns, places = _schema(found["schema elements"])
        groups, rows = found["row groups"], found["rows"]
    except IndexError:
        raise BadInput("its footer ends too early") from None
    except KeyError as missing:
        raise BadInput(f"its footer has no {missing}") from None
    try:
        _check_sizes(groups, leaves, rows, begins, begins + len(footer))
    except KeyError as missing:
        raise BadInput(f"its footer has a row group without {missing}") from None
    empty = _without_values(groups)
    return Footer(
        rows,
        len(groups),
        [(name, "null" if leaf in empty else kind) for (name, kind), leaf in zip(columns, places, strict=True)],
    )


def _without_values(groups: list[dict[str, Any]]) -> set[int | None]:
    """The leaves whose values are all null, by the statistics of every row group."""
    chunks = [[chunk["columns"] for chunk in group["column chunks"]] for group in groups if group["rows"]]
    if not chunks:
        return set()
    return {
        leaf
        for leaf in range(len(chunks[0]))
        if all(group[leaf].get("statistics", {}).get("nulls") == group[leaf]["values"] for group in chunks)
    }


def _schema(elements: list[dict[str, Any]]) -> tuple[list[bool], list[tuple[str, str]], list[int | None]]:
    """For each leaf whether it has one value a row; `Footer.columns`; and for each of these columns the number of its
    leaf, None for a group. `elements` is the schema tree in pre-order, root first."""
    open_groups: list[int] = []  # the number of children still missing, from the root down
    leaves: list[bool] = []
    columns: list[tuple[str, str]] = []
    places: list[int | None] = []
    for number, element in enumerate(elements):
        name, children = element["name"], element.get("children", 0)
        if len(name) > MAX_NAME_BYTES:
            raise BadInput(f"it has a column name of {len(name)} bytes; at most {MAX_NAME_BYTES} are read")
        try:
            name.decode()
        except UnicodeDecodeError:
            raise BadInput(f"its column name {name!r} is not UTF-8") from None
        while open_groups and open_groups[-1] == 0:
            open_groups.pop()
        if bool(open_groups) != bool(number) or children < 0 or (children and "type" in element):
            raise BadInput("its schema is no tree")
        if open_groups:
            open_groups[-1] -= 1
            if len(open_groups) == 1:
                columns.append((name.decode(), _type(element)))
                places.append(len(leaves) if "type" in element else None)
        if "type" in element:
            leaves.append(len(open_groups) == 1 and element.get("repetition") != _REPEATED)
        else:
            open_groups.append(children)
        if len(open_groups) > MAX_DEPTH:
            raise BadInput(f"its schema is more than {MAX_DEPTH} groups deep")
    if any(open_groups):
        raise BadInput("its schema is no tree")
    if len(leaves) > MAX_COLUMNS:
        raise BadInput(f"it declares {len(leaves)} columns; at most {MAX_COLUMNS} are read")
    return leaves, columns, places


def _type(element: dict[str, Any]) -> str:
    """The type of a column as `Footer` names it, from the physical and the logical type (`logical` replaces the older
    `converted`; newer writers write both)."""
    repeated = "list of " if element.get("repetition") == _REPEATED else ""
    if "type" not in element:
        return f"{repeated}group"
    if element["type"] not in range(len(_PHYSICAL)):
        raise BadInput(
            f"its column {element['name'].decode()} is of type {element['type']}, which Parquet does not have"
        )
    physical = _PHYSICAL[element["type"]]
    if "logical" in element:
        logical = next(iter(element["logical"]), "of another kind")
        if logical == "integer" and not element["logical"]["integer"].get("signed", True):
            logical = "unsigned"
    elif "converted" in element:
        logical = _CONVERTED.get(element["converted"], "of another kind")
    else:
        logical = "plain"
    if logical == "null":
        return "null"
    if (physical, logical) not in _TYPES and logical in {known for _, known in _TYPES} - {"plain"}:
        raise BadInput(f"its column {element['name'].decode()} is a {logical} in {physical}, which no reader supports")
    return repeated + _TYPES.get((physical, logical), physical if logical == "plain" else f"{physical} {logical}")


def _check_sizes(groups: list[dict[str, Any]], leaves: list[bool], rows: int, begins: int, size: int) -> None:
    """Check the declared values against a file of `size` bytes whose columns end at byte `begins`."""
    if rows != sum(group["rows"] for group in groups) or any(group["rows"] < 0 for group in groups):
        raise BadInput(f"it declares {rows} rows, and its row groups another number")
    if rows > min(MAX_ROWS, MAX_ROWS_PER_BYTE * size):
        raise BadInput(f"it declares {rows} rows in {size} bytes")
    all_stored = all_plain = 0
    for number, group in enumerate(groups):
        if len(group["column chunks"]) != len(leaves) or group["plain"] < 0:
            raise BadInput(f"its row group {number} does not have the columns of its schema")
        for chunk, is_flat in zip(group["column chunks"], leaves, strict=True):
            if "elsewhere" in chunk:
                raise BadInput("it keeps columns in another file")
            column = chunk["columns"]
            stored, plain = column["stored"], column["plain"]
            starts = min(column["data"], column.get("dictionary") or column["data"])
            if stored < 0 or plain < 0:
                raise BadInput(f"its row group {number} declares {plain} bytes compressed to {stored}")
            if group["rows"] and not 0 < starts <= begins - stored:  # without rows some writers give no offset
                raise BadInput(
                    f"its row group {number} declares {stored} bytes at byte {starts}; columns end at {begins}"
                )
            if plain > FREE_BYTES + MAX_RATIO_OF_CHUNK * stored:
                raise BadInput(f"its row group {number} declares {plain} bytes compressed to {stored}")
            if column["values"] < group["rows"] or (is_flat and column["values"] > group["rows"]):
                raise BadInput(f"its row group {number} declares {column['values']} values in {group['rows']} rows")
            all_stored += stored
            all_plain += plain
    if all_stored > begins:
        raise BadInput(f"it declares {all_stored} bytes of columns, but has {begins}")
    if all_plain > FREE_BYTES + MAX_RATIO_OF_FILE * size:
        raise BadInput(f"it declares {all_plain} bytes compressed to {size}")


class _Compact:
    """A reader of Thrift's compact encoding; raises IndexError when the bytes end too early."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self._counted: Counter[str] = Counter()

    def struct(self, wanted: Wanted) -> dict[str, Any]:
        """The wanted fields of the struct that begins here; recurses only as deep as `wanted`."""
        found: dict[str, Any] = {}
        number = 0
        while head := self._byte():
            kind = head & 15
            number = number + (head >> 4) if head >> 4 else self._integer()
            if not 0 < number < 1 << 15:
                raise BadInput(f"its footer has a field {number}")
            if number not in wanted:
                self._skip(kind)
                continue
            name, shape = wanted[number]
            expected = _LIST if isinstance(shape, list) else shape if isinstance(shape, int) else _STRUCT
            is_bool = kind in _BOOLS and expected in _BOOLS
            if (kind != expected and not is_bool) or name in found:
                raise BadInput(f"its footer has {name} twice, or with another type")
            found[name] = kind == _TRUE if is_bool else self._value(name, shape)
        return found

    def end(self) -> None:
        """Raise BadInput when bytes are left."""
        if self._at < len(self._data):
            raise BadInput(f"its footer ends {len(self._data) - self._at} bytes too early")

    def _value(self, name: str, shape: Any) -> Any:
        if shape == _BINARY:
            return self._bytes(self._varint())
        if isinstance(shape, int):
            return self._integer()
        if not isinstance(shape, list):
            return self.struct(shape)
        element, most = shape
        kind, size = self._list()
        if kind != _STRUCT and size:
            raise BadInput(f"its footer has {name} with another type")
        self._count(name, size, most)
        return [self.struct(element) for _ in range(size)]

    def _skip(self, kind: int) -> None:
        """Skip a field's value with everything nested in it; a list replaces the call stack."""
        if kind in _BOOLS:
            return
        nested = [[kind, 1]]  # for each open value the type of its elements and how many are left
        while nested:
            kind, left = nested[-1]
            if kind == _FIELDS:
                head = self._byte()
                if head == 0:
                    nested.pop()
                    continue
                kind = head & 15
                if not head >> 4:
                    self._varint()
                if kind in _BOOLS:
                    continue
            elif left == 0:
                nested.pop()
                continue
            else:
                nested[-1][1] -= 1
            if kind == _STRUCT:
                nested.append([_FIELDS, 0])
            elif kind == _LIST:
                nested.append([*self._list()])
                self._count("entries of lists", nested[-1][1], MAX_LISTED)
            elif kind == _BINARY:
                self._bytes(self._varint())
            elif kind in _FIXED:
                self._at += _FIXED[kind]
            elif _I16 <= kind <= _I64:
                self._varint()
            else:
                raise BadInput(f"its footer has a value of type {kind}, which Parquet does not use")
            if len(nested) > MAX_DEPTH:
                raise BadInput(f"its footer is more than {MAX_DEPTH} values deep")

    def _count(self, name: str, more: int, most: int) -> None:
        self._counted[name] += more
        if self._counted[name] > most:
            raise BadInput(f"its footer has {self._counted[name]} {name}; at most {most} are read")

    def _list(self) -> tuple[int, int]:
        """The type and number of a list's elements: at most as many as bytes are left, as each takes one."""
        head = self._byte()
        size = head >> 4 if head >> 4 < 15 else self._varint()
        if size > len(self._data) - self._at:
            raise IndexError
        return head & 15, size

    def _bytes(self, size: int) -> bytes:
        start, self._at = self._at, self._at + size
        if self._at > len(self._data):
            raise IndexError
        return self._data[start : self._at]

    def _integer(self) -> int:
        unsigned = self._varint()
        return unsigned >> 1 ^ -(unsigned & 1)

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 64, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                break
        if byte >= 128 or value >> 64:
            raise BadInput("its footer has a number of more than 64 bits")
        return value

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]
