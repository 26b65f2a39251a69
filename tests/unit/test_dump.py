"""Posts.xml to Parquet files: what is kept, what is set aside and why, and what an interrupted import does again."""

import json
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.contracts import POSTS as CONTRACT
from ingest.contracts import check_posts
from ingest.dump import DumpReport, Progress, import_dump, posts, scan
from ingest.dump.report import COUNT_BYTES
from ingest.dump.rows import Room, RowParser, Rows, _Block
from shared.errors import BadInput, Conflict, NotFound

HEAD = b'\xef\xbb\xbf<?xml version="1.0" encoding="utf-8"?>\n<posts>\n'


def row(number: int, day: str = "2012-06-12", **attributes: str) -> bytes:
    """A row as the dump writes it; attribute values stand as they are given."""
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
    """All rows of all files, by name of file."""
    return [post for file in sorted(folder.glob("*.parquet")) for post in pq.read_table(file).to_pylist()]


def rejected(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]


def imported(tmp_path: Path, rows: Iterable[bytes], **form: Any) -> tuple[DumpReport, Path]:
    out = tmp_path / "out"
    report = import_dump(write(tmp_path / "dump", rows, **form), out)
    assert report.rows_in == report.rows_out + report.rejected
    assert report.rows_out == len(read(out))
    return report, out


# ---- what is kept -------------------------------------------------------------------------------------------------


def test_values_are_those_of_the_row(tmp_path: Path) -> None:
    full = row(
        5,
        ParentId="4",
        OwnerUserId="-1",
        Title="a &amp; &quot;b&quot; &#x1F600; &#xE9; é",
        Tags="|c#|.net|",
        Body="&lt;pre&gt;x &amp;lt; y&#xD;&#xA;&lt;/pre&gt;",
        ClosedDate="2013-01-02T03:04:05.007",
        OwnerDisplayName="",
    )
    _, out = imported(tmp_path, [full, row(6, Tags="&lt;a&gt;&lt;b&gt;")])
    first, second = read(out)
    assert {name: value for name, value in first.items() if value is not None} == {
        "Id": 5,
        "PostTypeId": 1,
        "ParentId": 4,
        "OwnerUserId": -1,
        "CreationDate": pa.scalar("2012-06-12T19:49:26.940").cast(pa.timestamp("us")).as_py(),
        "Score": 7,
        "Title": 'a & "b" 😀 é é',
        "Tags": "|c#|.net|",
        "Body": "<pre>x &lt; y\r\n</pre>",
        "ClosedDate": pa.scalar("2013-01-02T03:04:05.007").cast(pa.timestamp("us")).as_py(),
        "OwnerDisplayName": "",
    }
    assert second["Tags"] == "<a><b>"
    assert second["OwnerDisplayName"] is None


def test_files_keep_the_contract_for_posts(tmp_path: Path) -> None:
    _, out = imported(tmp_path, [row(1)])
    file = out / "posts-2012-06-12.parquet"
    with file.open("rb") as opened:
        assert check_posts(opened, file.name).rows == 1
    assert {column.name for column in CONTRACT} <= set(pq.read_schema(file).names)


@pytest.mark.parametrize("head", [HEAD, HEAD.removeprefix(b"\xef\xbb\xbf"), b"<posts>", HEAD.replace(b"\n", b"\r\n")])
@pytest.mark.parametrize("line", [b"\n", b"\r\n", b"", b" \n\n"])
def test_byte_order_mark_and_line_ends_do_not_matter(tmp_path: Path, head: bytes, line: bytes) -> None:
    report, out = imported(tmp_path, [row(1), row(2), row(3)], head=head, line=line)
    assert [post["Id"] for post in read(out)] == [1, 2, 3]
    assert (report.rejected, report.truncated, report.rejected_file) == (0, False, None)
    assert not (out / "rejected.jsonl").exists()


def test_mixed_line_ends_and_forms_of_xml(tmp_path: Path) -> None:
    odd = b"<row  Id = '3'\n\tPostTypeId='1' CreationDate='2012-06-12T00:00:00' Title='say \"x\"'/>"
    report, out = imported(
        tmp_path,
        [row(1) + b"\r", row(2) + b"\t", odd, row(4).replace(b" />", b"/>"), row(5).replace(b'" S', b'"\r\nS')],
    )
    assert [post["Id"] for post in read(out)] == [1, 2, 3, 4, 5]
    assert read(out)[2]["Title"] == 'say "x"'
    assert report.rejected == 0


@pytest.mark.parametrize("form", [b"<posts />", b"<posts></posts>", HEAD + b"</posts>\n"])
def test_an_empty_dump_has_no_files(tmp_path: Path, form: bytes) -> None:
    report, out = imported(tmp_path, [], head=form, end=b"")
    assert (report.rows_in, report.files, report.truncated) == (0, (), False)
    assert read(out) == []


def test_a_post_dated_back_lies_with_its_day_in_the_order_of_the_dump(tmp_path: Path) -> None:
    days = ["2012-06-12", "2012-06-13", "2012-06-12", "2012-07-01", "2012-06-13", "2012-06-12"]
    report, out = imported(tmp_path, [row(number, day) for number, day in enumerate(days)])
    assert report.files == ("posts-2012-06-12.parquet", "posts-2012-06-13.parquet", "posts-2012-07-01.parquet")
    assert [post["Id"] for post in read(out)] == [0, 2, 5, 1, 4, 3]


@pytest.mark.parametrize("by", ["day", "month"])
def test_the_last_day_of_time(tmp_path: Path, by: Any) -> None:
    dump = write(tmp_path / "dump", [row(1, "9999-12-31"), row(2, "1000-01-01")])
    assert import_dump(dump, tmp_path, by=by).rows_out == 2


def test_by_month(tmp_path: Path) -> None:
    dump = write(
        tmp_path / "dump", [row(1, "2012-06-01"), row(2, "2012-12-31"), row(3, "2012-06-30"), row(4, "2013-02-28")]
    )
    report = import_dump(dump, tmp_path, by="month")
    assert report.files == ("posts-2012-06.parquet", "posts-2012-12.parquet", "posts-2013-02.parquet")
    assert pq.read_table(tmp_path / "posts-2012-06.parquet")["Id"].to_pylist() == [1, 3]


def test_unknown_attributes_are_counted_by_name(tmp_path: Path) -> None:
    report, out = imported(
        tmp_path, [row(1, Mood="good"), row(2), row(3, Mood="", Weather="a=&quot;b&quot;"), row(4, Score="")]
    )
    assert report.not_imported == {"Mood": 2, "Weather": 1}
    assert [post["Score"] for post in read(out)] == [7, 7, 7, None]


def test_small_blocks_and_ranges_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(number, f"2012-06-{1 + number % 3:02}", Body="x" * (number % 97)) for number in range(200)]
    rows[50], rows[120] = b"<rwo Id='50' />", row(120)[:-20]
    _, whole = imported(tmp_path / "whole", rows)
    for module, name, size in ((scan, "BLOCK", 150), (posts, "SCAN_BYTES", 1000), (posts, "PARSE_BYTES", 300)):
        monkeypatch.setattr(module, name, size)
    monkeypatch.setattr(posts, "GROUP_BYTES", 2000)
    monkeypatch.setattr(posts, "TASK_BYTES", 100)
    report, pieces = imported(tmp_path / "pieces", rows)
    assert read(pieces) == read(whole)
    assert report.rows_out == 198
    assert rejected(pieces) == rejected(whole)
    assert pq.ParquetFile(pieces / "posts-2012-06-01.parquet").num_row_groups > 1


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    told: list[Progress] = []
    dump = write(tmp_path, [row(1), row(2, "2013-01-01")])
    import_dump(dump, tmp_path / "out", progress=told.append)
    assert {progress.step for progress in told} == {"scanning", "writing"}
    last = told[-1]
    assert 0 < last.done == last.total <= (dump / "Posts.xml").stat().st_size
    assert last.rate > 0


# ---- what is set aside --------------------------------------------------------------------------------------------

MALFORMED: list[tuple[bytes, str]] = [
    (row(2).replace(b'Id="2" ', b""), "Id is missing"),
    (row(2).replace(b'PostTypeId="1" ', b""), "PostTypeId is missing"),
    (row(2).replace(b"CreationDate", b"Creation"), "CreationDate is missing or no date"),
    (row(2, CreationDate="yesterday"), "CreationDate is missing or no date"),
    (row(2, CreationDate="2012-02-30T00:00:00"), "CreationDate is missing or no date"),
    (row(2, CreationDate="0099-12-31T00:00:00"), "CreationDate is missing or no date"),
    (row(2, CreationDate="2012-06-12T25:00:00"), "CreationDate: Failed to parse"),
    (row(2, CreationDate="2012-06-12T23:00:00+05:00"), "zone"),
    (row(2, ClosedDate="soon"), "soon"),
    (row(2, Score="many"), "Score"),
    (row(2, Score="99999999999"), "Score"),
    (row(2, Body="a & b"), "no well-formed row"),
    (row(2, Body="&nbsp;"), "undefined entity"),
    (row(2, Body="&#0;"), "invalid character number"),
    (row(2, Body="&#xD800;"), "invalid character number"),
    (row(2).replace(b"&lt;p", b"\xff"), "no well-formed row"),
    (row(2).replace(b"&lt;p", b"\xc0\xaf"), "no well-formed row"),
    (row(2).replace(b"&lt;p", b"\xed\xa0\x80"), "no well-formed row"),
    (row(2, Body="a < b"), "no well-formed row"),
    (row(2, Body='a"b'), "no well-formed row"),
    (row(2).replace(b'" S', b'"S'), "no well-formed row"),
    (row(2).replace(b" />", b' Score="8" />'), "duplicate attribute"),
    (row(2).replace(b" />", b' Mood="8" Mood="8" />'), "duplicate attribute"),
    (row(2).replace(b" />", b' ViewCount="" ViewCount="5" />'), "duplicate attribute"),
    (row(2).replace(b" />", b' x:Id="8" />'), "unbound prefix"),
    (row(2).replace(b" />", b">"), "the row has no end"),
    (row(2)[:-30], "the row has no end"),
    (row(2).replace(b"<row", b"<post"), "no row"),
    (b"<!-- a comment -->", "no row"),
    (b"stray text", "no row"),
    (b"</posts>", "no row"),
]


@pytest.mark.parametrize(("bad", "reason"), MALFORMED)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_malformed_row_is_set_aside_alone(tmp_path: Path, bad: bytes, reason: str, place: int) -> None:
    rows = [row(1), row(3)]
    rows.insert(place, bad)
    report, out = imported(tmp_path, rows)
    assert [post["Id"] for post in read(out)] == [1, 3]
    (entry,) = rejected(out)
    assert re.search(reason, entry["reason"])
    assert entry["line"] == 3 + place
    assert entry["text"] == bad.decode("utf-8", "backslashreplace")
    data = (tmp_path / "dump" / "Posts.xml").read_bytes()
    assert data[entry["offset"] :][: entry["bytes"]] == bad
    assert report.rejected_file == str(out / "rejected.jsonl")
    assert not report.truncated


def mutated(chance: random.Random, text: bytes) -> bytes:
    """The same with a few bytes replaced, put in or left out."""
    pieces = [
        b"&",
        b"&#",
        b"&#x1F600;",
        b"&#xD800;",
        b"&apos;",
        b"&lt",
        b"\xc3\xa9",
        b"\xe2\x82",
        b"\xf0\x9f\x98\x80",
        b"\x00",
    ]
    pieces += [b"\t", b"'", b'"', b" ", b"=", b":", b"9", b"-", b"", b' Mood="good"', b' Score="1"', b"/", b">"]
    for _ in range(chance.randrange(1, 3)):
        at = chance.randrange(6, len(text) - 3)
        text = text[:at] + chance.choice(pieces) + text[at + chance.randrange(3) :]
    return text.replace(b"<", b" ").replace(b" row", b"<row", 1)


def test_both_ways_of_reading_a_row_agree() -> None:
    """What the compiled loop takes, expat and Arrow read as the same values; what it leaves to them may be anything."""
    chance = random.Random(20121112)
    full = row(
        5,
        Body="plain words &amp;amp; more of them " * 20,
        ParentId="4",
        OwnerUserId="-1",
        Title="a &amp; &#233; é",
        Tags="|c#|",
        ClosedDate="2012-02-29T03:04:05.007",
    )
    compiled = refused = 0
    for _ in range(3000):
        text = mutated(chance, full)
        fast = RowParser(posts.POSTS, lambda _: ())
        block = _Block([Rows(0, text, 1)], posts.POSTS, Room(posts.POSTS))
        slow = RowParser(posts.POSTS, lambda _: ())
        expected = slow._parse_alone(Rows(0, text, 1))
        assert fast.parse([Rows(0, text, 1)]) == expected, text
        assert fast.not_imported == slow.not_imported, text
        assert bool(fast.rejected) == bool(slow.rejected), text
        compiled += not block.odd
        refused += not expected
    assert compiled > 300
    assert refused > 300


def test_many_malformed_rows_among_good_ones(tmp_path: Path) -> None:
    rows = [row(number, Score="x" if number % 7 == 0 else "1") for number in range(700)]
    report, out = imported(tmp_path, rows)
    assert (report.rows_out, report.rejected) == (600, 100)
    assert [entry["line"] for entry in rejected(out)] == list(range(3, 703, 7))


def test_a_day_of_malformed_rows_makes_no_file(tmp_path: Path) -> None:
    report, _ = imported(tmp_path, [row(1), row(2, "2012-06-13", Score="x")])
    assert report.files == ("posts-2012-06-12.parquet",)


@pytest.mark.parametrize("lost", [1, 8, 9, 15, 40, 200])
def test_a_truncated_file_gives_what_is_whole(tmp_path: Path, lost: int) -> None:
    dump = write(tmp_path / "dump", [row(1), row(2), row(3)])
    data = (dump / "Posts.xml").read_bytes()[:-lost]
    (dump / "Posts.xml").write_bytes(data)
    report = import_dump(dump, tmp_path / "out")
    assert report.truncated
    assert report.rows_out == data.count(b"/>")
    assert report.rows_in == report.rows_out + report.rejected
    assert report.rejected == (0 if lost in (8, 9) else 1)


def test_a_huge_row_is_kept_and_a_monstrous_one_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = "x" * (3 * COUNT_BYTES)
    report, out = imported(tmp_path / "huge", [row(1), row(2, Body=huge), row(3)])
    assert [len(post["Body"]) for post in read(out)] == [len("<p>b</p>\n"), len(huge), len("<p>b</p>\n")]
    monkeypatch.setattr(scan, "MAX_ROW", COUNT_BYTES)
    report, out = imported(tmp_path / "monstrous", [row(1), row(2, Body=huge), row(3)])
    assert report.rows_out == 2
    (entry,) = rejected(out)
    assert entry["bytes"] > len(huge) > len(entry["text"])
    assert entry["line"] == 4


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"<users>", "no dump of posts"),
        (b"PK\x03\x04", "no dump of posts"),
        (b"", "no dump of posts"),
        (b'<?xml version="1.0" encoding="utf-16"?><posts>', "utf-16"),
    ],
)
def test_what_is_no_dump_is_refused(tmp_path: Path, head: bytes, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        import_dump(write(tmp_path, [], head=head, end=b""), tmp_path / "out")


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"holds no Posts\.xml"):
        import_dump(tmp_path, tmp_path / "out")
    with pytest.raises(NotFound, match="neither a folder nor"):
        import_dump(tmp_path / "dump.7z", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- interrupted, repeated, changed -------------------------------------------------------------------------------


def dies_after(monkeypatch: pytest.MonkeyPatch, files: int) -> Callable[[], None]:
    """The import dies once so many files are in their place; returns what brings it back to life."""
    take = posts._Folder.take
    taken: list[str] = []

    def taking(place: posts._Folder, file: Path, name: str) -> None:
        if len(taken) == files:
            raise KeyboardInterrupt
        take(place, file, name)
        taken.append(name)

    monkeypatch.setattr(posts._Folder, "take", taking)
    return lambda: monkeypatch.setattr(posts._Folder, "take", take)


@pytest.fixture
def ten_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(posts, "TASK_BYTES", 1)
    rows = [row(number, f"2012-06-{1 + number % 10:02}") for number in range(50)]
    return write(tmp_path / "dump", [*rows, b"<rwo />", row(99, Score="x", Mood="bad")])


def test_an_interrupted_import_goes_on_where_it_was(
    tmp_path: Path, ten_days: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, undisturbed = tmp_path / "out", import_dump(ten_days, tmp_path / "undisturbed")
    back_to_life = dies_after(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        import_dump(ten_days, out)
    assert len(list(out.glob("*.parquet"))) == 4
    assert not (out / "rejected.jsonl").exists()
    journal = out / posts.WORK_FOLDER / "written.jsonl"
    journal.write_text(journal.read_text()[:-5])  # the kill came while the fourth was noted down
    stamps = {file.name: file.stat().st_mtime_ns for file in out.glob("*.parquet")}

    back_to_life()
    monkeypatch.setattr(posts, "scan_range", None)  # the scan is not repeated
    report = import_dump(ten_days, out)
    assert report.resumed == 3
    assert sum(file.stat().st_mtime_ns == stamps.get(file.name) for file in out.glob("*.parquet")) == 3
    assert read(out) == read(tmp_path / "undisturbed")
    assert rejected(out) == rejected(tmp_path / "undisturbed")
    assert (report.rows_in, report.rows_out, report.rejected, report.not_imported, report.files) == (
        undisturbed.rows_in,
        undisturbed.rows_out,
        undisturbed.rejected,
        undisturbed.not_imported,
        undisturbed.files,
    )


def test_a_finished_import_is_not_done_again(tmp_path: Path, ten_days: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = import_dump(ten_days, tmp_path / "out")
    with monkeypatch.context() as without:
        without.setattr(posts._Passes, "index", None)
        again = import_dump(ten_days, tmp_path / "out")
    assert (again.rows_out, again.files, again.resumed) == (first.rows_out, first.files, len(first.files))
    before = read(tmp_path / "out")
    (tmp_path / "out" / first.files[3]).unlink()
    assert import_dump(ten_days, tmp_path / "out").resumed == len(first.files)  # with the day that makes no file
    assert read(tmp_path / "out") == before


def test_the_work_folder_of_another_import_is_refused(tmp_path: Path, ten_days: Path) -> None:
    import_dump(ten_days, tmp_path / "out")
    with pytest.raises(BadInput, match="by day; choose another folder"):
        import_dump(ten_days, tmp_path / "out", by="month")
    write(ten_days, [row(1)])
    with pytest.raises(BadInput, match=r"belongs to an import of Posts\.xml"):
        import_dump(ten_days, tmp_path / "out")


def test_a_dump_that_changes_while_it_is_read(tmp_path: Path, ten_days: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = posts._Passes.index

    def then_changed(passes: posts._Passes) -> posts.Index:
        found = index(passes)
        passes.xml.write_bytes(passes.xml.read_bytes()[:2000])
        return found

    monkeypatch.setattr(posts._Passes, "index", then_changed)
    with pytest.raises(Conflict, match="changed while it was read"):
        import_dump(ten_days, tmp_path / "out")


def test_several_threads_give_the_same(tmp_path: Path, ten_days: Path) -> None:
    alone = import_dump(ten_days, tmp_path / "alone")
    together = import_dump(ten_days, tmp_path / "together", workers=2)
    assert read(tmp_path / "together") == read(tmp_path / "alone")
    assert rejected(tmp_path / "together") == rejected(tmp_path / "alone")
    assert (together.files, together.not_imported) == (alone.files, alone.not_imported)


class Container:
    """As much of a ContainerClient as the import uses."""

    container_name = "posts"

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def upload_blob(self, name: str, data: Any, overwrite: bool) -> None:
        assert overwrite
        self.blobs[name] = data.read()


def test_files_go_to_a_container_once(tmp_path: Path, ten_days: Path) -> None:
    container: Any = Container()
    report = import_dump(ten_days, container, work=tmp_path / "work")
    assert tuple(sorted(container.blobs)) == report.files
    assert sum(pq.read_metadata(pa.BufferReader(data)).num_rows for data in container.blobs.values()) == 50
    assert report.rejected_file == str(tmp_path / "work" / "rejected.jsonl")
    container.blobs.clear()  # the pipeline has landed them
    assert import_dump(ten_days, container, work=tmp_path / "work").resumed == 10
    assert not container.blobs
    assert not list((tmp_path / "work").glob("*.parquet"))
