"""Footers of Parquet files, encoded by hand in Thrift's compact protocol, with any content that a test needs."""

from collections.abc import Callable, Sequence

I32, I64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12
DATA_BYTES = 1_000
"""The number of bytes before the footer in the files made here."""

Field = tuple[int, int, bytes]


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def integer(number: int) -> bytes:
    return varint(number << 1 if number >= 0 else (-number << 1) - 1)


def binary(value: bytes) -> bytes:
    return varint(len(value)) + value


def struct(*fields: Field) -> bytes:
    return b"".join(bytes([kind]) + integer(number) + value for number, kind, value in fields) + b"\0"


def listed(values: Sequence[bytes], kind: int = STRUCT) -> bytes:
    return bytes([0xF0 | kind]) + varint(len(values)) + b"".join(values)


def element(name: bytes, children: int | None = None, kind: int = 2) -> bytes:
    what = (1, I32, integer(kind)) if children is None else (5, I32, integer(children))
    return struct(what, (3, I32, integer(1)), (4, BINARY, binary(name)))


def group(*chunks: bytes, rows: int = 1) -> bytes:
    return struct((1, LIST, listed(chunks)), (2, I64, integer(0)), (3, I64, integer(rows)))


def chunk(path: bytes = b"Id", **changes: int) -> bytes:
    said = {"values": 1, "plain": 100, "stored": 100, "data": 4, "dictionary": 0} | changes
    numbers = {"values": 5, "plain": 6, "stored": 7, "data": 9, "dictionary": 11}
    columns = struct(
        (1, I32, integer(2)),
        (2, LIST, listed([integer(0)], I32)),
        (3, LIST, listed([binary(path)], BINARY)),
        (4, I32, integer(0)),
        *((numbers[name], I64, integer(value)) for name, value in said.items()),
    )
    return struct((2, I64, integer(0)), (3, STRUCT, columns))


def file_of(elements: Sequence[bytes], groups: Sequence[bytes] = (), rows: int = 0) -> bytes:
    return struct(
        (1, I32, integer(2)),
        (2, LIST, listed(elements)),
        (3, I64, integer(rows)),
        (4, LIST, listed(groups)),
    )


def with_ends(footer_bytes: bytes) -> bytes:
    return b"PAR1" + bytes(DATA_BYTES - 4) + footer_bytes + len(footer_bytes).to_bytes(4, "little") + b"PAR1"


def one_column(*chunks: bytes, rows: int = 1) -> bytes:
    return file_of([element(b"schema", 1), element(b"Id")], [group(each) for each in chunks], rows)


def _many_chunks(share: int) -> tuple[bytes, int]:
    columns = [element(b"schema", 16), *(element(b"c%d" % number) for number in range(16))]
    groups = 3_125 // share
    chunks = [chunk(b"c%d" % number, stored=0) for number in range(16)]
    return file_of(columns, [group(*chunks)] * groups, groups), 16 * groups


def _long_paths(share: int) -> tuple[bytes, int]:
    columns = [element(b"schema", 16), *(element(b"c%d" % number) for number in range(16))]
    paths = struct((3, LIST, listed([b"\0"] * (62_000 // share), BINARY)))
    return file_of(columns, [group(*[struct((3, STRUCT, paths))] * 16)], 1), 16


def _empty_chunks(share: int) -> tuple[bytes, int]:
    chunks = 49_999 // share
    return file_of([element(b"schema", 1), element(b"Id")], [group(*[struct()] * chunks)], 1), chunks


def _key_values(share: int) -> tuple[bytes, int]:
    entry = struct((1, BINARY, binary(b"")))
    return struct((5, LIST, listed([entry] * (999_999 // share)))), 0


LARGEST: dict[str, Callable[[int], tuple[bytes, int]]] = {
    "chunks": _many_chunks,
    "paths": _long_paths,
    "empty chunks": _empty_chunks,
    "key values": _key_values,
}
"""Functions that make the largest accepted footers, or 1/`share` of one; each returns it with its number of chunks."""
