"""The footer of a Parquet file, read with suspicion before any library is given it.

It is Thrift's compact encoding of FileMetaData (https://parquet.apache.org/docs/file-format/metadata/). A library
recurses as deep as the schema says and makes objects for whatever is declared; here nothing recurses by what the file
says, every byte is read once, and what is absurd is refused before it takes memory.
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
"""Row groups times columns: for each of them Arrow and this module hold some 2 KB."""
MAX_ELEMENTS = 4 * MAX_COLUMNS
"""Columns and the groups they stand in."""
MAX_LISTED = 20 * MAX_CHUNKS
"""Entries of the lists that are passed over here but not by Arrow: encodings, paths, their statistics."""
MAX_DEPTH = 32
MAX_NAME_BYTES = 1_000
MAX_ROWS, MAX_ROWS_PER_BYTE = 100_000_000, 1_000
"""Stack Overflow has 60 million posts, of each of which the job holds 20 bytes for a moment; columns that are null
throughout take a byte for some twenty rows."""
FREE_BYTES = 64 << 20
MAX_RATIO_OF_CHUNK, MAX_RATIO_OF_FILE = 32_768, 1_000
"""Bytes before compression (but after dictionary encoding) for each stored one, beyond the first 64 MiB. zstd writes
128 KiB of one byte as 4 bytes, so a constant column may come near the one; all columns together, with their texts, stay
far below the other: 5 is usual, 100 a lot. 200,000 copies of one post in brotli, without dictionaries, are within."""

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST = range(1, 10)
_BOOLS = (_TRUE, _FALSE)
"""The type of a field is its value."""
_STRUCT = 12
_FIELDS = -1  # no type of Thrift's: the inside of a struct
_FIXED = {_TRUE: 1, _FALSE: 1, _BYTE: 1, _DOUBLE: 8}
_REPEATED = 2

Wanted = Mapping[int, tuple[str, Any]]
"""Of a struct: by field number the name and what it is: a type, a struct's fields, or in brackets
a list of one's and how many the file may have in all."""

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
    """What a footer that can be believed says: how many rows and row groups the file has, and its columns: of each
    that stands in the root its name and its type. That is int32, uint32, int64, uint64, float, double, decimal,
    timestamp, date, string, binary, null (a column of which no row has a value, whatever its type), or words for what
    no contract asks for."""

    rows: int
    row_groups: int
    columns: list[tuple[str, str]]


def read_footer(footer: bytes, begins: int) -> Footer:
    """Read the bytes of a footer that stands at byte `begins` of its file, in linear time.

    Raises BadInput, without the file's name, when it is cut, deeper or larger than anything honest, or declares sizes,
    places or rows that the file cannot have.
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
    """The leaves of which the statistics of every row group say that all values are null."""
    chunks = [[chunk["columns"] for chunk in group["column chunks"]] for group in groups if group["rows"]]
    if not chunks:
        return set()
    return {
        leaf
        for leaf in range(len(chunks[0]))
        if all(group[leaf].get("statistics", {}).get("nulls") == group[leaf]["values"] for group in chunks)
    }


def _schema(elements: list[dict[str, Any]]) -> tuple[list[bool], list[tuple[str, str]], list[int | None]]:
    """Of each leaf whether it has one value a row, `Footer.columns`, and of each of these which leaf it is, None for a
    group; the schema is a tree, its root first."""
    open_groups: list[int] = []  # how many children are still to come, from the root down
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
    """The type of a column as `Footer` names it: what is stored, and what for, which newer writers say twice."""
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
        raise BadInput(f"its column {element['name'].decode()} is a {logical} in {physical}, which no reader takes")
    return repeated + _TYPES.get((physical, logical), physical if logical == "plain" else f"{physical} {logical}")


def _check_sizes(groups: list[dict[str, Any]], leaves: list[bool], rows: int, begins: int, size: int) -> None:
    """Hold what is declared against a file of `size` bytes whose columns end at byte `begins`."""
    if rows != sum(group["rows"] for group in groups) or any(group["rows"] < 0 for group in groups):
        raise BadInput(f"it declares {rows} rows and its row groups others")
    if rows > min(MAX_ROWS, MAX_ROWS_PER_BYTE * size):
        raise BadInput(f"it declares {rows} rows in {size} bytes")
    all_stored = all_plain = 0
    for number, group in enumerate(groups):
        if len(group["column chunks"]) != len(leaves) or group["plain"] < 0:
            raise BadInput(f"its row group {number} has not the columns of its schema")
        for chunk, is_flat in zip(group["column chunks"], leaves, strict=True):
            if "elsewhere" in chunk:
                raise BadInput("it keeps columns in another file")
            column = chunk["columns"]
            stored, plain = column["stored"], column["plain"]
            starts = min(column["data"], column.get("dictionary") or column["data"])
            if stored < 0 or plain < 0:
                raise BadInput(f"its row group {number} declares {plain} bytes compressed to {stored}")
            if group["rows"] and not 0 < starts <= begins - stored:  # without rows some writers give no place
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
        raise BadInput(f"it declares {all_stored} bytes of columns and has {begins}")
    if all_plain > FREE_BYTES + MAX_RATIO_OF_FILE * size:
        raise BadInput(f"it declares {all_plain} bytes compressed to {size}")


class _Compact:
    """A position in Thrift's compact encoding; IndexError where the bytes end too early."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self._counted: Counter[str] = Counter()

    def struct(self, wanted: Wanted) -> dict[str, Any]:
        """Those fields of the struct that begins here; recurses as deep as `wanted` does."""
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
                raise BadInput(f"its footer has {name} twice, or of another type")
            found[name] = kind == _TRUE if is_bool else self._value(name, shape)
        return found

    def end(self) -> None:
        """Raise BadInput when there are bytes left."""
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
            raise BadInput(f"its footer has {name} of another type")
        self._count(name, size, most)
        return [self.struct(element) for _ in range(size)]

    def _skip(self, kind: int) -> None:
        """Pass over a field's value, whatever is nested in it, with a list in place of the call stack."""
        if kind in _BOOLS:
            return
        nested = [[kind, 1]]  # of each list that is open its elements' type and how many are left
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
        """The type of a list's elements and how many they are: no more than bytes are left, as each takes one."""
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
