"""Small dumps that tests write row by row, and the results of their import."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ingest.dump import DumpReport, import_dump, posts

HEAD = b'\xef\xbb\xbf<?xml version="1.0" encoding="utf-8"?>\n<posts>\n'


def row(number: int, day: str = "2012-06-12", **attributes: str) -> bytes:
    """A row in the format of the dump; attribute values are written unchanged."""
    known = {
        "PostTypeId": "1",
        "CreationDate": f"{day}T19:49:26.940",
        "Score": "7",
        "Body": "&lt;p&gt;b&lt;/p&gt;&#xA;",
    }
    values = {"Id": str(number), **known, **attributes}
    return b"<row " + " ".join(f'{name}="{value}"' for name, value in values.items()).encode() + b" />"


def write(
    folder: Path, rows: Iterable[bytes], *, head: bytes = HEAD, end: bytes = b"</posts>", line: bytes = b"\n"
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Posts.xml").write_bytes(head + b"".join(b"  " + one + line for one in rows) + end)
    return folder


def read(folder: Path) -> list[dict[str, Any]]:
    """All rows of all files, in the order of the files' names."""
    return [post for file in sorted(folder.glob("*.parquet")) for post in pq.read_table(file).to_pylist()]


def rejected(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]


def imported(tmp_path: Path, rows: Iterable[bytes], **form: Any) -> tuple[DumpReport, Path]:
    out = tmp_path / "out"
    report = import_dump(write(tmp_path / "dump", rows, **form), out)
    assert report.rows_in == report.rows_out + report.rejected
    assert report.rows_out == len(read(out))
    return report, out


def cut_off(dump: Path, size: int) -> Path:
    """The first bytes of a dump, in another folder of the same name."""
    folder = dump.parent / "cut" / dump.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Posts.xml").write_bytes((dump / "Posts.xml").read_bytes()[:size])
    return folder


def dies_after(monkeypatch: pytest.MonkeyPatch, files: int) -> Callable[[], None]:
    """Let the import die once `files` files are in their place; returns a function that undoes this."""
    take = posts._Folder.take
    taken: list[str] = []

    def taking(place: posts._Folder, file: Path, name: str) -> None:
        if len(taken) == files:
            raise KeyboardInterrupt
        take(place, file, name)
        taken.append(name)

    monkeypatch.setattr(posts._Folder, "take", taking)
    return lambda: monkeypatch.setattr(posts._Folder, "take", take)


class Container:
    """The part of a ContainerClient that the import uses."""

    container_name = "posts"
    url = "https://account.blob.core.windows.net/posts?sig=secret"

    def __init__(self, etag: str = "1") -> None:
        self.etag = etag
        self.blobs: dict[str, bytes] = {}

    def get_container_properties(self) -> dict[str, str]:
        return {"etag": self.etag}

    def upload_blob(self, name: str, data: Any, overwrite: bool) -> None:
        assert overwrite
        self.blobs[name] = data.read()
