"""The rows of a dump that are set aside, with the reason."""

import random
import re
import tracemalloc
from pathlib import Path

import pytest

from ingest.dump import import_dump, posts, scan, state
from ingest.dump import report as reports
from ingest.dump.report import COUNT_BYTES, Rejected, Spool, write_rejected
from ingest.dump.rows import Room, RowParser, Rows, _Block
from shared.errors import BadInput, Conflict, NotFound
from tests.dump_rows import cut_off, dies_after, imported, read, rejected, row, write

MALFORMED: list[tuple[bytes, str]] = [
    (row(2).replace(b'Id="2" ', b""), "Id is missing"),
    (row(2).replace(b'PostTypeId="1" ', b""), "PostTypeId is missing"),
    (row(2).replace(b"CreationDate", b"Creation"), "CreationDate is missing or invalid"),
    (row(2, CreationDate="yesterday"), "CreationDate is missing or invalid"),
    (row(2, CreationDate="2012-02-30T00:00:00"), "CreationDate is missing or invalid"),
    (row(2, CreationDate="0099-12-31T00:00:00"), "CreationDate is missing or invalid"),
    (row(2, CreationDate="2012-06-12T25:00:00"), "CreationDate: Failed to parse"),
    (row(2, CreationDate="2012-06-12T23:00:00+05:00"), "zone"),
    (row(2, ClosedDate="soon"), "soon"),
    (row(2, Score="many"), "Score"),
    (row(2, Score="99999999999"), "Score"),
    (row(2, Body="a & b"), "not a well-formed row"),
    (row(2, Body="&nbsp;"), "undefined entity"),
    (row(2, Body="&#0;"), "invalid character number"),
    (row(2, Body="&#xD800;"), "invalid character number"),
    (row(2).replace(b"&lt;p", b"\xff"), "not a well-formed row"),
    (row(2).replace(b"&lt;p", b"\xc0\xaf"), "not a well-formed row"),
    (row(2).replace(b"&lt;p", b"\xed\xa0\x80"), "not a well-formed row"),
    (row(2, Body="a < b"), "not a well-formed row"),
    (row(2, Body='a"b'), "not a well-formed row"),
    (row(2).replace(b'" S', b'"S'), "not a well-formed row"),
    (row(2).replace(b" />", b' Score="8" />'), "duplicate attribute"),
    (row(2).replace(b" />", b' Mood="8" Mood="8" />'), "duplicate attribute"),
    (row(2).replace(b" />", b' ViewCount="" ViewCount="5" />'), "duplicate attribute"),
    (row(2).replace(b" />", b' x:Id="8" />'), "unbound prefix"),
    (row(2).replace(b" />", b">"), "the row has no end"),
    (row(2)[:-30], "the row has no end"),
    (row(2).replace(b"<row", b"<post"), "not a row"),
    (b"<!-- a comment -->", "not a row"),
    (b"stray text", "not a row"),
    (b"</posts>", "not a row"),
]


@pytest.mark.parametrize(("bad", "reason"), MALFORMED)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_only_the_malformed_row_is_set_aside(tmp_path: Path, bad: bytes, reason: str, place: int) -> None:
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
    """The same bytes with a few of them replaced, inserted or removed."""
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


def test_the_compiled_reader_agrees_with_expat_and_arrow() -> None:
    """Expat and Arrow read the same values from every row that the compiled loop accepts."""
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


def test_many_malformed_rows_do_not_affect_the_good_ones(tmp_path: Path) -> None:
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


def test_memory_does_not_grow_with_the_number_of_rejected_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, size in (
        (scan, "BLOCK", 20_000),
        (posts, "PARSE_BYTES", 20_000),
        (posts, "GROUP_BYTES", 20_000),
        (reports, "SORTED_AT_ONCE", 1_000),
        (reports, "COUNT_BYTES", 20_000),
    ):
        monkeypatch.setattr(module, name, size)
    import_dump(write(tmp_path, [row(1)]), tmp_path / "first")  # compiles the loops, whose code stays in memory
    peaks = []
    for number in (2_000, 20_000):
        bad = (row(n).replace(b"Creation" if n < number / 2 else b"PostType", b"X") for n in range(number))
        dump = write(tmp_path / str(number), bad)
        tracemalloc.start()
        assert import_dump(dump, dump / "out").rejected == number
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 18_000 * 50  # a row in memory would take 200 bytes


def test_a_file_that_shrinks_before_its_rejected_rows_are_written_is_an_error(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        spool.add([Rejected(5_000, 10, "not a row")])
    (tmp_path / "Posts.xml").write_bytes(b"<posts>")
    with pytest.raises(Conflict, match="became shorter"):
        write_rejected([tmp_path / "spool"], tmp_path / "Posts.xml", tmp_path / "rejected.jsonl")


def test_a_day_of_malformed_rows_makes_no_file(tmp_path: Path) -> None:
    report, _ = imported(tmp_path, [row(1), row(2, "2012-06-13", Score="x")])
    assert report.files == ("posts-2012-06-12.parquet",)


def test_a_truncated_file_is_refused_unless_an_option_allows_it(tmp_path: Path, ten_days: Path) -> None:
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
def test_the_complete_file_replaces_a_truncated_one(
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


def test_the_complete_file_under_another_name_is_refused_after_a_truncated_one(tmp_path: Path, ten_days: Path) -> None:
    import_dump(cut_off(ten_days, -500), tmp_path / "out", truncated=True)
    with pytest.raises(BadInput, match="counted twice"):
        import_dump(ten_days, tmp_path / "out", prefix="x")


def test_a_longer_file_with_another_beginning_replaces_nothing(tmp_path: Path, ten_days: Path) -> None:
    import_dump(cut_off(ten_days, 500), tmp_path / "out", truncated=True)
    other = write(tmp_path / "other" / "dump", [row(number) for number in range(1, 40)])
    with pytest.raises(BadInput, match="give its --prefix"):
        import_dump(other, tmp_path / "out")


@pytest.mark.parametrize("lost", [1, 8, 9, 15, 40, 200])
def test_the_complete_rows_of_a_truncated_file_are_imported(tmp_path: Path, lost: int) -> None:
    dump = write(tmp_path / "dump", [row(1), row(2), row(3)])
    data = (dump / "Posts.xml").read_bytes()[:-lost]
    (dump / "Posts.xml").write_bytes(data)
    report = import_dump(dump, tmp_path / "out", truncated=True)
    assert report.truncated
    assert report.rows_out == data.count(b"/>")
    assert report.rows_in == report.rows_out + report.rejected
    assert report.rejected == (0 if lost in (8, 9) else 1)


def test_a_large_row_is_kept_and_one_above_the_limit_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        (b"<users>", "not a dump of posts"),
        (b"PK\x03\x04", "not a dump of posts"),
        (b"", "not a dump of posts"),
        (b'<?xml version="1.0" encoding="utf-16"?><posts>', "utf-16"),
    ],
)
def test_a_file_that_is_not_a_dump_is_refused(tmp_path: Path, head: bytes, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        import_dump(write(tmp_path, [], head=head, end=b""), tmp_path / "out")


def test_a_missing_source_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"holds no Posts\.xml"):
        import_dump(tmp_path, tmp_path / "out")
    with pytest.raises(NotFound, match="neither a folder nor"):
        import_dump(tmp_path / "dump.7z", tmp_path / "out")
    assert not (tmp_path / "out").exists()
