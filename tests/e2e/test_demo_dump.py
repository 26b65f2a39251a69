"""`python -m localcloud demo --dump`: the whole pipeline on a small data dump, as it is called."""

import re
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def test_from_a_dump_to_topics(shared_data: Path, state_dir: Path, tmp_path: Path) -> None:
    genuine = shared_data / "raspberrypi.meta"
    rows = (genuine / "Posts.xml").read_bytes().split(b"\r\n")
    two_months = [row for row in rows if re.search(rb' CreationDate="2014-0[12]-', row)]
    dump = tmp_path / "raspberrypi.meta"
    dump.mkdir()
    (dump / "Posts.xml").write_bytes(b"\r\n".join([*rows[:2], *two_months, rows[-1]]))
    (dump / "Users.xml").write_bytes((genuine / "Users.xml").read_bytes())
    command = [sys.executable, "-m", "localcloud", "demo", "--dump", str(dump), "--state", str(state_dir)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    assert "3,588 rows in, 3,588 out, 0 set aside" in said
    assert f"{len(two_months)} rows in, {len(two_months)} out, 0 set aside, 2 files" in said
    assert re.search(r"copied users from Postgres", said)
    counted = sum(b'PostTypeId="1"' in row or b'PostTypeId="2"' in row for row in two_months)
    assert re.search(rf"\b{counted} posts on \d+ days", said), said
