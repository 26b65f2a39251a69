"""The rows of a dump: which values are imported, and into which files."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.contracts import check_posts
from ingest.dump import Progress, import_dump, posts, scan
from ingest.dump.scan import Unit
from ingest.footer import MAX_CHUNKS
from shared.errors import BadInput
from shared.paths import file_day
from shared.posts import POST_COLUMNS as CONTRACT
from tests.dump_rows import HEAD, imported, read, rejected, row, write


def test_an_imported_row_has_the_values_of_its_attributes(tmp_path: Path) -> None:
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


def test_imported_files_meet_the_contract_for_posts(tmp_path: Path) -> None:
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


def test_mixed_line_ends_and_forms_of_xml_are_read(tmp_path: Path) -> None:
    odd = b"<row  Id = '3'\n\tPostTypeId='1' CreationDate='2012-06-12T00:00:00' Title='say \"x\"'/>"
    report, out = imported(
        tmp_path,
        [row(1) + b"\r", row(2) + b"\t", odd, row(4).replace(b" />", b"/>"), row(5).replace(b'" S', b'"\r\nS')],
    )
    assert [post["Id"] for post in read(out)] == [1, 2, 3, 4, 5]
    assert read(out)[2]["Title"] == 'say "x"'
    assert report.rejected == 0


@pytest.mark.parametrize("separator", [b"\t", b"\n", b"\r\n", b" \t "])
def test_any_white_space_may_precede_a_row(tmp_path: Path, separator: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_everything_that_xml_allows_around_the_root_is_accepted(tmp_path: Path, head: bytes, end: bytes) -> None:
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
    assert entry["reason"] == "a comment that contains rows"


def test_rows_in_a_comment_after_the_root_are_set_aside(tmp_path: Path) -> None:
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


def test_a_backdated_post_is_in_the_file_of_its_day_in_the_order_of_the_dump(tmp_path: Path) -> None:
    days = ["2012-06-12", "2012-06-13", "2012-06-12", "2012-07-01", "2012-06-13", "2012-06-12"]
    report, out = imported(tmp_path, [row(number, day) for number, day in enumerate(days)])
    assert report.files == ("posts-2012-06-12.parquet", "posts-2012-06-13.parquet", "posts-2012-07-01.parquet")
    assert [post["Id"] for post in read(out)] == [0, 2, 5, 1, 4, 3]


UNITS = get_args(Unit)


@pytest.mark.parametrize("by", UNITS)
def test_the_first_and_last_possible_days_are_imported(tmp_path: Path, by: Any) -> None:
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
def test_a_file_has_exactly_the_posts_of_the_period_in_its_name(
    tmp_path: Path, by: Any, ids: dict[str, list[int]], site: str
) -> None:
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
def test_an_import_continues_only_with_the_unit_that_it_began_with(
    tmp_path: Path, ten_days: Path, by: Any, other: Any
) -> None:
    first = import_dump(ten_days, tmp_path / "out", by=by)
    if other == by:
        assert import_dump(ten_days, tmp_path / "out", by=other).resumed == len(first.files)
        return
    with pytest.raises(BadInput, match=f"by {by}: by {other} as well, .* counted twice; continue with --by {by}, or"):
        import_dump(ten_days, tmp_path / "out", by=other)
    assert len(read(tmp_path / "out")) == 50


def test_one_file_of_all_posts_is_written_in_row_groups_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread never holds more than one row group, for any size of the file."""
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


def test_a_file_has_no_more_row_groups_than_landing_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posts, "PARSE_BYTES", 1)
    monkeypatch.setattr(posts, "GROUP_BYTES", 1)
    monkeypatch.setattr(scan, "BLOCK", 100)  # less than a row, so each row is its own run
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


def test_small_blocks_and_ranges_give_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    told: list[Progress] = []
    dump = write(tmp_path, [row(1), row(2, "2013-01-01")])
    import_dump(dump, tmp_path / "out", progress=told.append)
    assert [progress.step for progress in told] == ["scanning posts", "writing", "writing"]
    last = told[-1]
    assert 0 < last.done == last.total <= (dump / "Posts.xml").stat().st_size
    assert last.rate > 0


def test_progress_is_reported_within_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posts, "PARSE_BYTES", 1)
    monkeypatch.setattr(posts, "GROUP_BYTES", 1)
    monkeypatch.setattr(scan, "BLOCK", 100)
    told: list[Progress] = []
    import_dump(write(tmp_path, map(row, range(20))), tmp_path / "out", by="all", progress=told.append)
    done = [progress.done for progress in told if progress.step == "writing"]
    assert done == sorted(done)
    assert len(set(done)) == 20
