"""The picture of the flow: `python docs/pictures/flow.py` writes flow.svg beside this file.

It has colours for light and for dark pages and a background of its own, so it can be read on either.
"""

from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 960, 512
STYLE = """
  .page { fill: #ffffff; stroke: #d8dee4 }
  .step { fill: #ddf0ff; stroke: #2f81c4 }
  .work { fill: #ffe9d6; stroke: #c4661f }
  .lake { fill: #e3f4e5; stroke: #3a8a4a }
  .folder { fill: #ffffff; stroke: #3a8a4a }
  .outside { fill: #f3f4f6; stroke: #6b7480 }
  .arrow { fill: none; stroke: #57606a; stroke-width: 1.6 }
  .head { fill: #57606a }
  text { font-family: system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; fill: #1f2328 }
  .name { font-size: 15px; font-weight: 600 }
  .said, .note, .file { font-size: 13px }
  .file { font-family: ui-monospace, "SF Mono", "Liberation Mono", monospace; font-size: 12.5px }
  .note { fill: #57606a }
  @media (prefers-color-scheme: dark) {
    .page { fill: #10151c; stroke: #30363d }
    .step { fill: #12304a; stroke: #58a6ff }
    .work { fill: #42291a; stroke: #e8955a }
    .lake { fill: #14301c; stroke: #56b26a }
    .folder { fill: #10151c; stroke: #56b26a }
    .outside { fill: #1f252d; stroke: #8b949e }
    .arrow { stroke: #9aa4ae }
    .head { fill: #9aa4ae }
    text { fill: #e6edf3 }
    .note { fill: #9aa4ae }
  }
"""
TOLD = (
    "A Posts file arrives in a container. land_posts checks it, copies it to the lake and archives it. A queue message"
    " has launch_classification start a Databricks run, which gives each post a topic; watch_classification looks at"
    " the run, tries again where it failed, and publishes the topics of each day. copy_reference copies tables from"
    " Postgres once a week, and retrain trains a new model once a week. People read the topics over HTTP, on a terminal"
    " and as files."
)


def text(x: float, y: float, words: str, kind: str, anchor: str = "middle") -> str:
    """Words at a point; `kind` is a class of STYLE."""
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str, *lines: str) -> str:
    """A box with a name and what it does below, in the middle."""
    parts = [f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8"/>']
    first = y + height / 2 + 5 - 9.5 * (len(lines) - 1)
    for number, line in enumerate(lines):
        parts.append(text(x + width / 2, first + 19 * number, line, "said" if number else "name"))
    return "\n".join(parts)


def folder(x: float, y: float, width: float, name: str) -> str:
    """A folder of the lake."""
    shape = f'<rect class="folder" x="{x:g}" y="{y:g}" width="{width:g}" height="28" rx="6"/>'
    return shape + text(x + width / 2, y + 19, name, "file")


def arrow(*points: tuple[float, float]) -> str:
    """A line through these points with a head at its end, which is level or upright."""
    (x1, y1), (x2, y2) = points[-2:]
    dx, dy = (x2 > x1) - (x2 < x1), (y2 > y1) - (y2 < y1)
    *way, _ = points
    line = " ".join(f"{x:g},{y:g}" for x, y in (*way, (x2 - 6 * dx, y2 - 6 * dy)))
    left, right = (f"{x2 - 8 * dx + 4 * side * dy:g},{y2 - 8 * dy + 4 * side * dx:g}" for side in (-1, 1))
    head = f'<polygon class="head" points="{x2:g},{y2:g} {left} {right}"/>'
    return f'<polyline class="arrow" points="{line}"/>{head}'


def flow() -> str:
    """The picture as SVG."""
    parts = [
        f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="12"/>',
        # what arrives, and the functions that work on it
        box(24, 28, 140, 80, "outside", "Posts file", "Parquet,", "one row a post"),
        box(212, 28, 188, 80, "step", "1 land_posts", "check, copy, archive,", "or put in quarantine"),
        box(472, 28, 188, 80, "step", "2 launch and watch", "start a run, look at it,", "try again"),
        box(748, 28, 188, 80, "step", "3 publish", "count the days anew,", "move their pointers"),
        arrow((164, 68), (212, 68)),
        arrow((400, 68), (472, 68)),
        text(435, 58, "queue", "note"),
        arrow((660, 68), (748, 68)),
        text(703, 58, "run is over", "note"),
        # the job
        box(472, 164, 188, 72, "work", "Databricks", "one topic for each post"),
        arrow((566, 108), (566, 164)),
        text(576, 141, "run now", "note", "start"),
        # the lake
        '<rect class="lake" x="196" y="284" width="560" height="112" rx="8"/>',
        text(212, 309, "Data lake (ADLS Gen2)", "name", "start"),
        *(
            folder(x, y, width, name)
            for x, y, width, name in (
                (212, 322, 120, "archive/"),
                (344, 322, 120, "quarantine/"),
                (476, 322, 128, "post_topics/"),
                (616, 322, 124, "topics/"),
                (212, 358, 120, "reference/"),
                (344, 358, 120, "models/"),
                (476, 358, 128, "runs/"),
                (616, 358, 124, "catalog/"),
            )
        ),
        arrow((306, 108), (306, 284)),
        text(316, 192, "the bytes", "note", "start"),
        text(316, 209, "as they came", "note", "start"),
        arrow((566, 236), (566, 284)),
        arrow((842, 108), (842, 200), (708, 200), (708, 284)),
        text(852, 160, "topics", "note", "start"),
        text(852, 177, "of the day", "note", "start"),
        # who reads
        box(796, 284, 140, 112, "outside", "You", "GET /api/topics", "manage.py topics", "Parquet, CSV"),
        arrow((756, 340), (796, 340)),
        # once a week
        box(24, 432, 140, 56, "outside", "Postgres", "users, post types"),
        box(212, 432, 252, 56, "step", "copy_reference", "every week, every value checked"),
        box(488, 432, 252, 56, "step", "retrain", "every week, the better model stays"),
        arrow((164, 460), (212, 460)),
        arrow((272, 432), (272, 396)),
        arrow((614, 432), (614, 396)),
        '<rect class="step" x="796" y="452" width="16" height="16" rx="4"/>',
        text(820, 465, "Azure Functions", "note", "start"),
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    told = f"<title>How StackTopics works</title>\n<desc>{escape(TOLD)}</desc>"
    return "\n".join([head, told, f"<style>{STYLE}</style>", *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(flow(), encoding="utf-8")
