"""`python -m bench hostile`: the cost of hostile input: footers and texts.

Footers: the peak memory of a process that checks a file with one of the largest footers that it accepts. Texts: the CPU
seconds for the features of megabytes of one repeated piece, divided by those for plain words. References: the same for
8,000 kinds of character references, divided by 1,000 kinds: linear time would give 8.

Measured, for the bounds: 14 to 35 MiB for footers, 0.5 to 8 times plain for texts, 3 times for references.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from bench.common import Bound, conclude, options
from classify.model.text import MAX_BODY_BYTES, occurrences
from tests.footers import LARGEST, with_ends
from tests.hostile import HOSTILE, PLAIN, entities

ROOT = Path(__file__).parents[1]
MOST_MEBIBYTES, MOST_TIMES_PLAIN, MOST_TIMES_OF_EIGHT = 60, 20, 40
SIZE, POSTS = MAX_BODY_BYTES, 40
CHECK = """
import sys
from pathlib import Path
from bench.common import peak_bytes
from ingest.contracts import check_posts
from shared.errors import BadInput
try:
    check_posts(Path(sys.argv[1]).open("rb"), "a")
except BadInput:
    pass
print(peak_bytes() / 2**20)
"""


def main(arguments: Sequence[str]) -> int:
    given = options("hostile", __doc__).parse_args(arguments)
    bounds = [
        *(Bound(f"footer of many {made}: peak", memory(made), MOST_MEBIBYTES, "MiB") for made in LARGEST),
        *(Bound(f"a text of {piece!r}", times_plain(piece), MOST_TIMES_PLAIN, "times plain") for piece in HOSTILE),
        Bound("8,000 kinds of references", times_of_eight(), MOST_TIMES_OF_EIGHT, "times 1,000"),
    ]
    if given.json:
        print(json.dumps({"bounds": [bound.to_json() for bound in bounds]}, indent=1))
    return conclude(bounds, given)


def memory(made: str) -> float:
    """The peak memory, in MiB, of a process that checks such a file."""
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        file.write(with_ends(LARGEST[made](1)[0]))
        file.flush()
        command = [sys.executable, "-c", CHECK, file.name]
        return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def times_plain(piece: bytes) -> float:
    plain = seconds([PLAIN * (SIZE // len(PLAIN))] * POSTS)
    return seconds([piece * (SIZE // len(piece))] * POSTS) / plain


def times_of_eight() -> float:
    return seconds([entities(8_000)]) / seconds([entities(1_000)])


def seconds(texts: list[bytes]) -> float:
    """CPU seconds for the features of posts with these texts as titles and bodies: the least of five runs."""
    posts, spent = pa.array(texts), []
    for _ in range(5):
        start = time.process_time()
        list(occurrences(posts, posts))
        spent.append(time.process_time() - start)
    return min(spent)
