"""Posts.xml to Parquet files: what is kept, what is set aside and why, and what an interrupted import does again."""

import json
import random
import re
import shutil
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.contracts import check_posts
from ingest.dump import DumpReport, Progress, import_dump, posts, scan, site_prefix, state
from ingest.dump import report as reports
from ingest.dump.report import COUNT_BYTES, Rejected, Spool, write_rejected
from ingest.dump.rows import Room, RowParser, Rows, _Block
from ingest.dump.scan import Unit
from ingest.dump.source import WORK_FOLDER
from ingest.dump.state import only_one
from ingest.footer import MAX_CHUNKS
from shared.errors import BadInput, Conflict, NotFound
from shared.paths import file_day
from shared.posts import POST_COLUMNS as CONTRACT

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


@pytest.mark.parametrize("separator", [b"\t", b"\n", b"\r\n", b" \t "])
def test_a_row_may_begin_by_any_white_space(tmp_path: Path, separator: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(number).replace(b"<row ", b"<row" + separator) if number % 3 else row(number) for number in range(9)]
    report, out = imported(tmp_path, rows)
    assert [post["Id"] for post in read(out)] == list(range(9))
    assert (report.rows_in, report.rejected) == (9, 0)
    monkeypatch.setattr(scan, "BLOCK", 50)
    assert import_dump(tmp_path / "dump", tmp_path / "small").rows_out == 9


def test_rows_without_attributes_are_counted_one_by_one(tmp_path: Path) -> None:
    report, out = imported(tmp_path, [row(1), b"<row/>", b"<row/>", b"<rows/>", b"<row>", row(2)])
    assert (report.rows_in, report.rows_out) == (6, 2)
    assert [entry["text"] for entry in rejected(out)] == ["<row/>", "<row/>", "<rows/>", "<row>"]


COMMENT, PLAIN = b"<!-- made by hand: </posts> -->", b"<?xml version='1.0'?>\n"
HIDDEN = b"<!-- " + row(66) + b"\n" + row(67) + b" -->"


@pytest.mark.parametrize(
    ("head", "end"),
    [
        (PLAIN + COMMENT + b"\n<posts>\n", b"</posts>"),
        (PLAIN + b"<?style x?><posts xmlns:a='b' note=\"c > d\">\n", b"</posts>"),
        (HEAD, b"</posts>\n" + COMMENT + b"\n<?end?>" + COMMENT),
        (HEAD, b"</posts >\n"),
    ],
)
def test_what_xml_allows_around_the_root(tmp_path: Path, head: bytes, end: bytes) -> None:
    report, out = imported(tmp_path, [row(1), row(2)], head=head, end=end)
    assert [post["Id"] for post in read(out)] == [1, 2]
    assert (report.rejected, report.truncated) == (0, False)


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("block", [100, scan.BLOCK])
def test_rows_in_a_comment_are_set_aside(
    tmp_path: Path, place: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "BLOCK", block)
    monkeypatch.setattr(scan, "SCAN_BYTES", 300)
    rows = [row(number) for number in range(4)]
    rows.insert(place, HIDDEN)
    report, out = imported(tmp_path, rows)
    assert [post["Id"] for post in read(out)] == [0, 1, 2, 3]
    (entry,) = rejected(out)
    assert (entry["text"], entry["line"], report.truncated) == (HIDDEN.decode(), 3 + place, False)
    assert entry["reason"] == "no row but a comment with rows"


def test_rows_in_a_comment_behind_the_root(tmp_path: Path) -> None:
    report, out = imported(tmp_path, [row(1)], end=b"</posts>\n" + HIDDEN + b"\n")
    assert [post["Id"] for post in read(out)] == [1]
    assert (report.rejected, report.truncated) == (1, False)


def test_a_comment_without_an_end_hides_no_row(tmp_path: Path) -> None:
    report, out = imported(tmp_path, [row(1), b"<!-- ", row(2), b"<!-- ", row(3)])
    assert [post["Id"] for post in read(out)] == [1, 2, 3]
    assert [entry["text"] for entry in rejected(out)] == ["<!--", "<!--"]
    assert report.rows_in == 5


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


UNITS = get_args(Unit)


@pytest.mark.parametrize("by", UNITS)
def test_the_last_day_of_time(tmp_path: Path, by: Any) -> None:
    dump = write(tmp_path / "dump", [row(1, "9999-12-31"), row(2, "1000-01-01")])
    assert import_dump(dump, tmp_path, by=by).rows_out == 2


@pytest.mark.parametrize(
    ("by", "ids"),
    [
        ("day", {"2012-06-01": [1], "2012-06-30": [3], "2012-12-31": [2], "2013-02-28": [4]}),
        ("month", {"2012-06": [1, 3], "2012-12": [2], "2013-02": [4]}),
        ("year", {"2012": [1, 2, 3], "2013": [4]}),
        ("all", {"all": [1, 2, 3, 4]}),
    ],
)
@pytest.mark.parametrize("site", ["", "raspberrypi.meta"])
def test_a_file_holds_what_its_name_says(tmp_path: Path, by: Any, ids: dict[str, list[int]], site: str) -> None:
    days = ["2012-06-01", "2012-12-31", "2012-06-30", "2013-02-28"]
    dump = write(tmp_path / (site or "dump"), [row(number, day) for number, day in enumerate(days, 1)])
    report = import_dump(dump, tmp_path, by=by)
    names = [f"{'-'.join(filter(None, ('posts', site, period)))}.parquet" for period in ids]
    assert report.files == tuple(names)
    assert [pq.read_table(tmp_path / name)["Id"].to_pylist() for name in names] == list(ids.values())
    now = datetime(2026, 11, 22, tzinfo=UTC)
    assert {file_day(name, now) for name in names} <= {now.date(), *(date.fromisoformat(day) for day in days)}
    assert by == "day" or {file_day(name, now) for name in names} == {now.date()}


@pytest.mark.parametrize("by", UNITS)
@pytest.mark.parametrize("other", UNITS)
def test_an_import_goes_on_by_the_unit_it_began_with_alone(tmp_path: Path, ten_days: Path, by: Any, other: Any) -> None:
    first = import_dump(ten_days, tmp_path / "out", by=by)
    if other == by:
        assert import_dump(ten_days, tmp_path / "out", by=other).resumed == len(first.files)
        return
    with pytest.raises(BadInput, match=f"by {by}: by {other} too, .* counted twice; go on with --by {by}, or"):
        import_dump(ten_days, tmp_path / "out", by=other)
    assert len(read(tmp_path / "out")) == 50


def test_one_file_of_all_posts_is_written_in_row_groups_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However large the file: a thread never holds more than one row group."""
    written: list[int] = []
    write_group = posts.write_group

    def counted(writer: pq.ParquetWriter, batches: Any) -> int:
        written.append(sum(batch.num_rows for batch in batches))
        return write_group(writer, batches)

    monkeypatch.setattr(posts, "write_group", counted)
    for name, size in (("TASK_BYTES", 1_000), ("PARSE_BYTES", 1), ("GROUP_BYTES", 2_000)):
        monkeypatch.setattr(posts, name, size)
    monkeypatch.setattr(scan, "BLOCK", 400)
    dump = write(tmp_path / "dump", [row(number, f"20{10 + number % 9}-06-12") for number in range(500)])
    report = import_dump(dump, tmp_path / "out", by="all", workers=2)
    assert report.files == ("posts-all.parquet",)
    assert [post["Id"] for post in read(tmp_path / "out")] == list(range(500))
    assert max(written) * len(row(1)) < 2_000 + 400
    assert sum(written) == 500


def test_a_file_has_no_more_row_groups_than_landing_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posts, "PARSE_BYTES", 1)
    monkeypatch.setattr(posts, "GROUP_BYTES", 1)
    monkeypatch.setattr(scan, "BLOCK", 100)  # less than a row: each is a run of its own
    rows = 2 * MAX_CHUNKS // len(posts.POSTS_TABLE.schema)
    dump = write(tmp_path / "dump", (row(number, Body="") for number in range(rows)))
    (name,) = import_dump(dump, tmp_path / "out", by="all").files
    with (tmp_path / "out" / name).open("rb") as file:
        footer = check_posts(file, name)
    assert footer.rows == rows
    assert 1_000 < footer.row_groups <= posts.MAX_GROUPS + 1


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
    for module, name, size in ((scan, "BLOCK", 150), (scan, "SCAN_BYTES", 1000), (posts, "PARSE_BYTES", 300)):
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
    assert [progress.step for progress in told] == ["scanning posts", "writing", "writing"]
    last = told[-1]
    assert 0 < last.done == last.total <= (dump / "Posts.xml").stat().st_size
    assert last.rate > 0


def test_progress_is_told_within_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posts, "PARSE_BYTES", 1)
    monkeypatch.setattr(posts, "GROUP_BYTES", 1)
    monkeypatch.setattr(scan, "BLOCK", 100)
    told: list[Progress] = []
    import_dump(write(tmp_path, map(row, range(20))), tmp_path / "out", by="all", progress=told.append)
    done = [progress.done for progress in told if progress.step == "writing"]
    assert done == sorted(done)
    assert len(set(done)) == 20


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
        fast = RowParser(posts.POSTS_TABLE, lambda _: ())
        block = _Block([Rows(0, text, 1)], posts.POSTS_TABLE, Room(posts.POSTS_TABLE))
        slow = RowParser(posts.POSTS_TABLE, lambda _: ())
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


def test_rejected_rows_are_merged_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "SORTED_AT_ONCE", 7)
    days = [f"2012-06-{1 + number % 5:02}" for number in range(200)]
    rows = [row(number, day, Score="x" if number % 2 else "1") for number, day in enumerate(days)]
    rows[10:10] = [b"<rwo />", row(7)[:-20]]
    _, out = imported(tmp_path, rows)
    lines = [entry["line"] for entry in rejected(out)]
    assert lines == sorted(lines)
    assert len(lines) == 102


def test_memory_does_not_grow_with_what_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, size in (
        (scan, "BLOCK", 20_000),
        (posts, "PARSE_BYTES", 20_000),
        (posts, "GROUP_BYTES", 20_000),
        (reports, "SORTED_AT_ONCE", 1_000),
        (reports, "COUNT_BYTES", 20_000),
    ):
        monkeypatch.setattr(module, name, size)
    import_dump(write(tmp_path, [row(1)]), tmp_path / "first")  # what is compiled stays
    peaks = []
    for number in (2_000, 20_000):
        bad = (row(n).replace(b"Creation" if n < number / 2 else b"PostType", b"X") for n in range(number))
        dump = write(tmp_path / str(number), bad)
        tracemalloc.start()
        assert import_dump(dump, dump / "out").rejected == number
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 18_000 * 50  # a row that was kept would take 200 bytes


def test_a_file_that_shrinks_before_its_rejected_rows_are_written(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        spool.add([Rejected(5_000, 10, "no row")])
    (tmp_path / "Posts.xml").write_bytes(b"<posts>")
    with pytest.raises(Conflict, match="became shorter"):
        write_rejected([tmp_path / "spool"], tmp_path / "Posts.xml", tmp_path / "rejected.jsonl")


def test_a_day_of_malformed_rows_makes_no_file(tmp_path: Path) -> None:
    report, _ = imported(tmp_path, [row(1), row(2, "2012-06-13", Score="x")])
    assert report.files == ("posts-2012-06-12.parquet",)


def cut_off(dump: Path, size: int) -> Path:
    """The first bytes of a dump, in a folder of the same name elsewhere."""
    folder = dump.parent / "cut" / dump.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Posts.xml").write_bytes((dump / "Posts.xml").read_bytes()[:size])
    return folder


def test_a_truncated_file_is_refused_unless_that_is_said(tmp_path: Path, ten_days: Path) -> None:
    cut = cut_off(ten_days, -5)
    for _ in range(2):
        with pytest.raises(BadInput, match=r"Posts\.xml ends without </posts>, after 53 rows.* --truncated"):
            import_dump(cut, tmp_path / "out")
    assert not read(tmp_path / "out")
    assert import_dump(cut, tmp_path / "out", truncated=True).rows_out == 50
    with pytest.raises(BadInput, match="--truncated"):
        import_dump(cut, tmp_path / "out")
    assert import_dump(cut, tmp_path / "out", truncated=True).resumed_rows == 50


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_whole_file_replaces_a_truncated_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, interrupted: bool
) -> None:
    monkeypatch.setattr(posts, "TASK_BYTES", 1)
    monkeypatch.setattr(state, "END_BYTES", 500)
    rows = [row(number, f"2012-06-{1 + number // 5:02}") for number in range(50)]
    dump, out = write(tmp_path / "dump", [*rows[:9], row(9, "2012-06-01", Score="x"), *rows[9:]]), tmp_path / "out"
    whole = import_dump(dump, tmp_path / "undisturbed")
    cut = cut_off(dump, (dump / "Posts.xml").read_bytes().index(b'Id="32"') + 20)
    first = import_dump(cut, out, truncated=True)
    assert (first.rows_out, first.files[-1]) == (32, "posts-2012-06-07.parquet")
    stamps = {name: (out / name).stat().st_mtime_ns for name in first.files}
    if interrupted:
        back_to_life = dies_after(monkeypatch, 1)
        with pytest.raises(KeyboardInterrupt):
            import_dump(dump, out)
        back_to_life()
    report = import_dump(dump, out)
    assert (report.rows_out, report.files, report.truncated) == (50, whole.files, False)
    assert read(out) == read(tmp_path / "undisturbed")
    assert rejected(out) == rejected(tmp_path / "undisturbed")
    untouched = {name for name, stamp in stamps.items() if (out / name).stat().st_mtime_ns == stamp}
    assert untouched == set(first.files[:-1])
    with pytest.raises(BadInput, match="belongs to an import"):
        import_dump(cut, out, truncated=True)


def test_the_whole_of_a_truncated_file_under_another_name_is_refused(tmp_path: Path, ten_days: Path) -> None:
    import_dump(cut_off(ten_days, -500), tmp_path / "out", truncated=True)
    with pytest.raises(BadInput, match="counted twice"):
        import_dump(ten_days, tmp_path / "out", prefix="x")


def test_a_file_that_only_is_longer_replaces_nothing(tmp_path: Path, ten_days: Path) -> None:
    import_dump(cut_off(ten_days, 500), tmp_path / "out", truncated=True)
    other = write(tmp_path / "other" / "dump", [row(number) for number in range(1, 40)])
    with pytest.raises(BadInput, match="give its --prefix"):
        import_dump(other, tmp_path / "out")


@pytest.mark.parametrize("lost", [1, 8, 9, 15, 40, 200])
def test_a_truncated_file_gives_what_is_whole(tmp_path: Path, lost: int) -> None:
    dump = write(tmp_path / "dump", [row(1), row(2), row(3)])
    data = (dump / "Posts.xml").read_bytes()[:-lost]
    (dump / "Posts.xml").write_bytes(data)
    report = import_dump(dump, tmp_path / "out", truncated=True)
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
    journal = out / WORK_FOLDER / "posts" / "written.jsonl"
    journal.write_text(journal.read_text()[:-5])  # the kill came while the fourth was noted down
    stamps = {file.name: file.stat().st_mtime_ns for file in out.glob("*.parquet")}

    back_to_life()
    monkeypatch.setattr(posts, "scan_file", None)  # the scan is not repeated
    report = import_dump(ten_days, out)
    assert (report.resumed, report.resumed_rows) == (3, 15)
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
        without.setattr(posts, "scan_file", None)
        again = import_dump(ten_days, tmp_path / "out")
    assert (again.rows_out, again.files, again.resumed) == (first.rows_out, first.files, len(first.files))
    before = read(tmp_path / "out")
    (tmp_path / "out" / first.files[3]).unlink()
    assert import_dump(ten_days, tmp_path / "out").resumed == len(first.files) - 1
    assert read(tmp_path / "out") == before


def test_the_work_folder_of_another_import_is_refused(tmp_path: Path, ten_days: Path) -> None:
    import_dump(ten_days, tmp_path / "out")
    write(ten_days, [row(1)])
    with pytest.raises(BadInput, match=r"belongs to an import of Posts\.xml"):
        import_dump(ten_days, tmp_path / "out")
    assert import_dump(ten_days, tmp_path / "out", work=tmp_path / "work").rows_out == 1


@pytest.mark.parametrize("into_container", [False, True])
@pytest.mark.parametrize(
    ("prefix", "by", "go_on"),
    [
        ("other", "day", r"--prefix raspberrypi\.meta --by day"),
        ("", "day", r"--prefix raspberrypi\.meta --by day"),
        ("other", "month", r"--prefix raspberrypi\.meta --by day"),
        ("raspberrypi.meta", "month", r"--by day"),
    ],
)
def test_the_same_dump_under_another_name_or_unit_is_refused(
    tmp_path: Path, *, prefix: str, by: Any, go_on: str, into_container: bool
) -> None:
    target: Any = Container() if into_container else tmp_path / "out"
    work = tmp_path / "work" if into_container else None
    dump = write(tmp_path / "raspberrypi.meta", [row(1), row(2)])
    import_dump(dump, target, work=work)
    (state_folder,) = tmp_path.glob("*/.import-dump/posts-raspberrypi.meta*")
    copy = write(tmp_path / "download", [row(1), row(2)])
    for _ in range(2):
        with pytest.raises(BadInput, match="counted twice") as refused:
            import_dump(copy, target, prefix=prefix, by=by, work=work)
        message = str(refused.value)
        assert re.search(f"go on with {go_on},", message)
        assert "--work" not in message
        assert f"{state_folder / 'written.jsonl'} names" in message
        assert f"remove {state_folder}" in message
    for name in [json.loads(line)["name"] for line in (state_folder / "written.jsonl").read_text().splitlines()]:
        target.blobs.pop(name) if into_container else (target / name).unlink()  # as the message says
    shutil.rmtree(state_folder)
    report = import_dump(copy, target, prefix=prefix, by=by, work=work)
    assert (report.rows_out, report.resumed) == (2, 0)


def test_the_same_dump_is_found_by_another_work_folder(tmp_path: Path, ten_days: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    import_dump(ten_days, out)
    for by, prefix in (("month", ""), ("day", "x")):
        with pytest.raises(BadInput, match="counted twice"):
            import_dump(ten_days, out, by=by, prefix=prefix, work=work)  # type: ignore[arg-type]
    assert import_dump(ten_days, out, work=work).rows_out == len(read(out)) == 50  # replaces the same files
    assert import_dump(ten_days, tmp_path / "new", by="month", work=work).rows_out == 50  # another target


def test_an_import_that_has_written_nothing_is_no_second_copy(
    tmp_path: Path, ten_days: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_to_life = dies_after(monkeypatch, 0)
    with pytest.raises(KeyboardInterrupt):
        import_dump(ten_days, tmp_path / "out", prefix="x")
    back_to_life()
    with only_one(tmp_path / "out" / ".import-dump" / "posts-x"), pytest.raises(Conflict, match="of the same posts"):
        import_dump(ten_days, tmp_path / "out")
    assert import_dump(ten_days, tmp_path / "out").rows_out == 50
    with pytest.raises(BadInput, match="counted twice"):
        import_dump(ten_days, tmp_path / "out", prefix="x")


def test_prefixes_never_share_a_state_folder(tmp_path: Path, ten_days: Path) -> None:
    container: Any = Container()
    import_dump(ten_days, container, work=tmp_path)
    for prefix in ("dump", "users", "posts"):
        other = write(tmp_path / prefix, [row(1), row(2, Title=prefix)])
        assert import_dump(other, container, prefix=prefix, work=tmp_path).rows_out == 2


@pytest.mark.parametrize("torn", [0, 1, 40])
@pytest.mark.parametrize("name", ["report.json", "index.npz"])
def test_torn_state_that_can_be_made_anew_is(
    tmp_path: Path, ten_days: Path, name: str, torn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if name == "index.npz":
        back_to_life = dies_after(monkeypatch, 4)
        with pytest.raises(KeyboardInterrupt):
            import_dump(ten_days, out)
        back_to_life()
    else:
        import_dump(ten_days, out)
    (file,) = out.rglob(name)
    file.write_bytes(file.read_bytes()[:torn])
    report = import_dump(ten_days, out)
    assert (report.rows_out, report.resumed) == (50, 4 if name == "index.npz" else 10)
    assert len(read(out)) == 50
    assert import_dump(ten_days, out).resumed == 10


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("identity.json", b""),
        ("identity.json", b'{"origin": '),
        ("identity.json", b"[]"),
        ("identity.json", None),
        ("written.jsonl", b'{"name": \n'),
        ("written.jsonl", b"\xff\x00\n"),
        ("written.jsonl", b"[]\n"),
    ],
)
def test_torn_state_that_is_needed_names_the_way_out(
    tmp_path: Path, ten_days: Path, name: str, content: bytes | None
) -> None:
    out = tmp_path / "out"
    import_dump(ten_days, out)
    (file,) = out.rglob(name)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(BadInput, match=f"{name} can't be read .*: remove {re.escape(str(file.parent))}, then import"):
        import_dump(ten_days, out)
    shutil.rmtree(file.parent)
    assert import_dump(ten_days, out).rows_out == len(read(out)) == 50


def test_state_is_never_seen_half_written(tmp_path: Path, ten_days: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies in the middle of any write of a whole file: the next start goes on."""
    write_text, written = Path.write_text, 0

    def dying(file: Path, text: str, *given: Any, **named: Any) -> int:
        nonlocal written
        written += 1
        if written == deadly:
            write_text(file, text[: len(text) // 2], *given, **named)
            raise KeyboardInterrupt
        return write_text(file, text, *given, **named)

    monkeypatch.setattr(Path, "write_text", dying)
    for deadly in (1, 2):
        written, out = 0, tmp_path / str(deadly)
        with pytest.raises(KeyboardInterrupt):
            import_dump(ten_days, out)
        deadly = 0
        assert import_dump(ten_days, out).rows_out == len(read(out)) == 50
        assert import_dump(ten_days, out).resumed == 10


def test_one_import_at_a_time_works_in_a_state_folder(tmp_path: Path, ten_days: Path) -> None:
    second: list[str] = []

    class Meanwhile(Container):
        def upload_blob(self, name: str, data: Any, overwrite: bool) -> None:
            with pytest.raises(Conflict, match=r"another import is at work in .*: wait until it has ended") as refused:
                import_dump(ten_days, container, work=tmp_path)
            second.append(str(refused.value))
            super().upload_blob(name, data, overwrite)

    container: Any = Meanwhile()
    assert import_dump(ten_days, container, work=tmp_path).rows_out == 50
    assert len(second) == 10


def test_a_process_that_dies_holds_no_state(tmp_path: Path, ten_days: Path) -> None:
    folder = tmp_path / "out" / ".import-dump" / "posts"
    folder.mkdir(parents=True)
    program = (
        "import sys, time; from pathlib import Path; from ingest.dump.state import only_one\n"
        "with only_one(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    with holder.stdout:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Conflict, match="another import is at work"):
            import_dump(ten_days, tmp_path / "out")
        holder.kill()
        holder.wait()
    assert import_dump(ten_days, tmp_path / "out").rows_out == 50


@pytest.mark.parametrize("below", [".", "below"])
def test_a_file_where_a_folder_should_be(tmp_path: Path, ten_days: Path, below: str) -> None:
    (tmp_path / "afile").write_text("mine")
    file = tmp_path / "afile" / below
    with pytest.raises(BadInput, match=r"afile is a file: name a folder for --out and --work"):
        import_dump(ten_days, file)
    with pytest.raises(BadInput, match=r"afile is a file: name a folder for --out and --work"):
        import_dump(ten_days, tmp_path / "out", work=file)
    assert (tmp_path / "afile").read_text() == "mine"


def test_a_target_folder_is_made_where_the_state_lies_elsewhere(tmp_path: Path, ten_days: Path) -> None:
    assert import_dump(ten_days, tmp_path / "a" / "b", work=tmp_path / "work").rows_out == len(read(tmp_path / "a/b"))


def test_a_folder_may_be_moved_with_its_state(tmp_path: Path, ten_days: Path) -> None:
    import_dump(ten_days, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved")
    assert import_dump(ten_days, tmp_path / "moved").resumed == 10


def test_an_xml_file_is_no_source_but_its_folder(tmp_path: Path) -> None:
    dump = write(tmp_path / "dump", [row(1)])
    with pytest.raises(BadInput, match=r"Posts\.xml is one file of a dump: give its folder, .*dump"):
        import_dump(dump / "Posts.xml", tmp_path / "out")


def test_an_import_that_wrote_nothing_holds_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump = write(tmp_path / "dump", [row(1)])
    with monkeypatch.context() as dying:
        dying.setattr(posts._Files, "write", None)
        with pytest.raises(TypeError):
            import_dump(dump, tmp_path / "out")
    write(dump, [row(1), row(2)])  # what the dead import found of the file counts no more
    assert import_dump(dump, tmp_path / "out").rows_out == 2


def test_a_dump_that_changes_while_it_is_read(tmp_path: Path, ten_days: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def then_changed(xml: Path, *given: Any, **named: Any) -> scan.Index:
        found = scan.scan_file(xml, *given, **named)
        xml.write_bytes(xml.read_bytes()[:2000])
        return found

    monkeypatch.setattr(posts, "scan_file", then_changed)
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
    url = "https://account.blob.core.windows.net/posts?sig=secret"

    def __init__(self, etag: str = "1") -> None:
        self.etag = etag
        self.blobs: dict[str, bytes] = {}

    def get_container_properties(self) -> dict[str, str]:
        return {"etag": self.etag}

    def upload_blob(self, name: str, data: Any, overwrite: bool) -> None:
        assert overwrite
        self.blobs[name] = data.read()


def test_files_go_to_a_container_once(tmp_path: Path, ten_days: Path) -> None:
    container: Any = Container()
    report = import_dump(ten_days, container, work=tmp_path / "work")
    assert tuple(sorted(container.blobs)) == report.files
    assert sum(pq.read_metadata(pa.BufferReader(data)).num_rows for data in container.blobs.values()) == 50
    (kept,) = (tmp_path / "work").rglob("rejected.jsonl")
    assert report.rejected_file == str(kept)
    container.blobs.clear()  # the pipeline has landed them
    again = import_dump(ten_days, container, work=tmp_path / "work")
    assert (again.resumed, again.resumed_rows) == (10, 50)
    assert not container.blobs
    assert not list((tmp_path / "work").rglob("*.parquet"))
    assert not [file for file in (tmp_path / "work").rglob("*.json*") if "secret" in file.read_text()]


@pytest.mark.parametrize("change", [{"url": "https://other.blob.core.windows.net/posts"}, {"etag": "2"}])
def test_another_container_gets_all_files(tmp_path: Path, ten_days: Path, change: dict[str, str]) -> None:
    first, second = Container(), Container()
    for name, value in change.items():  # another account, or one that was made anew
        setattr(second, name, value)
    import_dump(ten_days, first, work=tmp_path)  # type: ignore[arg-type]
    report = import_dump(ten_days, second, work=tmp_path)  # type: ignore[arg-type]
    assert (report.resumed, report.rows_out) == (0, 50)
    assert second.blobs == first.blobs


def test_what_waits_for_its_upload_is_bounded(tmp_path: Path, ten_days: Path) -> None:
    """A thread uploads what it has written before it writes the next file."""
    waiting: list[int] = []

    class Slow(Container):
        def upload_blob(self, name: str, data: Any, overwrite: bool) -> None:
            time.sleep(0.02)
            waiting.append(len(list(tmp_path.rglob("*.parquet"))))
            super().upload_blob(name, data, overwrite)

    container: Any = Slow()
    import_dump(ten_days, container, work=tmp_path, workers=2)
    assert len(container.blobs) == 10
    assert max(waiting) <= 2


# ---- sites --------------------------------------------------------------------------------------------------------


def test_two_sites_share_a_container(tmp_path: Path) -> None:
    container: Any = Container()
    for site, number in (("cooking.stackexchange.com", 1), ("askubuntu.com", 2)):
        import_dump(write(tmp_path / site, [row(number)]), container, by="month", work=tmp_path)
    import_dump(write(tmp_path / "dump", [row(3)]), container, prefix="x.y", work=tmp_path)
    ids = {name: pq.read_table(pa.BufferReader(data))["Id"].to_pylist() for name, data in container.blobs.items()}
    assert ids == {
        "posts-cooking-2012-06.parquet": [1],
        "posts-askubuntu-2012-06.parquet": [2],
        "posts-x.y-2012-06-12.parquet": [3],
    }
    assert file_day("posts-x.y-2012-06-12.parquet", datetime.now(UTC)) == date(2012, 6, 12)


def test_two_sites_without_a_name_do_not_replace_each_other(tmp_path: Path) -> None:
    container: Any = Container()
    import_dump(write(tmp_path / "one", [row(1)]), container, work=tmp_path)
    with pytest.raises(BadInput, match="give its --prefix"):
        import_dump(write(tmp_path / "two", [row(2), row(3)]), container, work=tmp_path)


@pytest.mark.parametrize(
    ("place", "prefix"),
    [
        ("raspberrypi.meta.stackexchange.com.7z", "raspberrypi.meta"),
        ("stackoverflow.com-Posts.7z", "stackoverflow"),
        ("ru.stackoverflow.com.7z", "ru.stackoverflow"),
        ("mathoverflow.net/Posts.xml", "mathoverflow"),
        ("raspberrypi.meta/Posts.xml", "raspberrypi.meta"),
        ("my-dump.7z", ""),
        ("2012.06/Posts.xml", ""),
        ("dump/Posts.xml", ""),
    ],
)
def test_the_site_is_what_the_dump_is_named_by(place: str, prefix: str) -> None:
    assert site_prefix(Path("/dumps") / place, None) == prefix
    assert site_prefix(Path("/dumps") / place, "given") == "given"


@pytest.mark.parametrize("prefix", ["a/b", "..", "a b", "2012-06-12", "dump_20240630", "x" * 101])
def test_a_prefix_that_cannot_be_part_of_a_name(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(BadInput, match="--prefix"):
        import_dump(write(tmp_path, [row(1)]), tmp_path / "out", prefix=prefix)
    assert not (tmp_path / "out").exists()
