"""An import that is interrupted or repeated, or that finds the state of another dump."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ingest.dump import import_dump, posts, scan
from ingest.dump.source import WORK_FOLDER
from ingest.dump.state import only_one
from shared.errors import BadInput, Conflict
from tests.dump_rows import Container, dies_after, read, rejected, row, write


def test_an_interrupted_import_continues_where_it_stopped(
    tmp_path: Path, ten_days: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, undisturbed = tmp_path / "out", import_dump(ten_days, tmp_path / "undisturbed")
    back_to_life = dies_after(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        import_dump(ten_days, out)
    assert len(list(out.glob("*.parquet"))) == 4
    assert not (out / "rejected.jsonl").exists()
    journal = out / WORK_FOLDER / "posts" / "written.jsonl"
    journal.write_text(journal.read_text()[:-5])  # the process was killed while it noted the fourth file
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


def test_a_finished_import_is_not_repeated(tmp_path: Path, ten_days: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert re.search(f"continue with {go_on},", message)
        assert "--work" not in message
        assert f"{state_folder / 'written.jsonl'} names" in message
        assert f"remove {state_folder}" in message
    for name in [json.loads(line)["name"] for line in (state_folder / "written.jsonl").read_text().splitlines()]:
        target.blobs.pop(name) if into_container else (target / name).unlink()  # as the message says
    shutil.rmtree(state_folder)
    report = import_dump(copy, target, prefix=prefix, by=by, work=work)
    assert (report.rows_out, report.resumed) == (2, 0)


def test_another_work_folder_recognises_a_dump_that_was_imported(tmp_path: Path, ten_days: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    import_dump(ten_days, out)
    for by, prefix in (("month", ""), ("day", "x")):
        with pytest.raises(BadInput, match="counted twice"):
            import_dump(ten_days, out, by=by, prefix=prefix, work=work)  # type: ignore[arg-type]
    assert import_dump(ten_days, out, work=work).rows_out == len(read(out)) == 50  # replaces the same files
    assert import_dump(ten_days, tmp_path / "new", by="month", work=work).rows_out == 50  # another target


def test_an_import_that_wrote_nothing_does_not_block_another_prefix(
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
def test_damaged_state_that_can_be_rebuilt_is_rebuilt(
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
def test_the_error_of_damaged_state_names_the_folder_to_remove(
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


def test_the_next_start_never_reads_half_written_state(
    tmp_path: Path, ten_days: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies in the middle of any write of a whole file, and the next start continues."""
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


def test_only_one_import_at_a_time_uses_a_state_folder(tmp_path: Path, ten_days: Path) -> None:
    second: list[str] = []

    class Meanwhile(Container):
        def upload_blob(self, name: str, data: Any, overwrite: bool) -> None:
            with pytest.raises(Conflict, match=r"another import is running in .*: wait until it has ended") as refused:
                import_dump(ten_days, container, work=tmp_path)
            second.append(str(refused.value))
            super().upload_blob(name, data, overwrite)

    container: Any = Meanwhile()
    assert import_dump(ten_days, container, work=tmp_path).rows_out == 50
    assert len(second) == 10


def test_a_dead_process_does_not_keep_the_lock(tmp_path: Path, ten_days: Path) -> None:
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
        with pytest.raises(Conflict, match="another import is running"):
            import_dump(ten_days, tmp_path / "out")
        holder.kill()
        holder.wait()
    assert import_dump(ten_days, tmp_path / "out").rows_out == 50


@pytest.mark.parametrize("below", [".", "below"])
def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path, ten_days: Path, below: str) -> None:
    (tmp_path / "afile").write_text("mine")
    file = tmp_path / "afile" / below
    with pytest.raises(BadInput, match=r"afile is a file: give a folder for --out and --work"):
        import_dump(ten_days, file)
    with pytest.raises(BadInput, match=r"afile is a file: give a folder for --out and --work"):
        import_dump(ten_days, tmp_path / "out", work=file)
    assert (tmp_path / "afile").read_text() == "mine"


def test_a_missing_target_folder_is_created_when_the_state_is_elsewhere(tmp_path: Path, ten_days: Path) -> None:
    assert import_dump(ten_days, tmp_path / "a" / "b", work=tmp_path / "work").rows_out == len(read(tmp_path / "a/b"))


def test_a_folder_may_be_moved_with_its_state(tmp_path: Path, ten_days: Path) -> None:
    import_dump(ten_days, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved")
    assert import_dump(ten_days, tmp_path / "moved").resumed == 10


def test_an_xml_file_is_refused_as_a_source_in_favour_of_its_folder(tmp_path: Path) -> None:
    dump = write(tmp_path / "dump", [row(1)])
    with pytest.raises(BadInput, match=r"Posts\.xml is one file of a dump: give its folder, .*dump"):
        import_dump(dump / "Posts.xml", tmp_path / "out")


def test_an_import_that_wrote_nothing_does_not_claim_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump = write(tmp_path / "dump", [row(1)])
    with monkeypatch.context() as dying:
        dying.setattr(posts._Files, "write", None)
        with pytest.raises(TypeError):
            import_dump(dump, tmp_path / "out")
    write(dump, [row(1), row(2)])  # the dead import's index of the file is no longer valid
    assert import_dump(dump, tmp_path / "out").rows_out == 2


def test_a_dump_that_changes_during_the_import_is_a_conflict(
    tmp_path: Path, ten_days: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def then_changed(xml: Path, *given: Any, **named: Any) -> scan.Index:
        found = scan.scan_file(xml, *given, **named)
        xml.write_bytes(xml.read_bytes()[:2000])
        return found

    monkeypatch.setattr(posts, "scan_file", then_changed)
    with pytest.raises(Conflict, match="changed while it was read"):
        import_dump(ten_days, tmp_path / "out")


def test_several_threads_give_the_same_result(tmp_path: Path, ten_days: Path) -> None:
    alone = import_dump(ten_days, tmp_path / "alone")
    together = import_dump(ten_days, tmp_path / "together", workers=2)
    assert read(tmp_path / "together") == read(tmp_path / "alone")
    assert rejected(tmp_path / "together") == rejected(tmp_path / "alone")
    assert (together.files, together.not_imported) == (alone.files, alone.not_imported)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_a_dump_in_a_folder_whose_name_is_not_utf_8_is_imported(tmp_path: Path) -> None:
    dump = write(tmp_path / "dump-\udcff", [row(1), row(2)])
    for resumed in (0, 2):
        report = import_dump(dump, tmp_path / "out")
        assert (report.source, report.resumed_rows) == (str(tmp_path / r"dump-\xff" / "Posts.xml"), resumed)
