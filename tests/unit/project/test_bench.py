"""The list of benchmarks of `python -m bench`, and its reaction to a broken bound."""

import subprocess
import sys

import pytest

from bench.__main__ import MINUTES, main
from bench.common import Bound, conclude, options
from tests.places import PROJECT


def test_every_benchmark_is_listed_with_its_duration_and_purpose() -> None:
    modules = {file.stem for file in (PROJECT / "bench").glob("[!_]*.py")} - {"common", "parts", "stub_job"}
    assert modules == set(MINUTES)
    command = [sys.executable, "-m", "bench", "--list"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert {line.split()[0] for line in lines} == modules
    assert all(f"about {MINUTES[line.split()[0]]:2} min  " in line and line.endswith(".") for line in lines)


def test_the_refusal_of_an_unknown_benchmark_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed"]) == 2
    assert "unknown benchmark speed" in (said := capsys.readouterr().err)
    assert "hostile" in said


@pytest.mark.parametrize(
    ("measured", "is_least", "held"), [(330, False, True), (331, False, False), (330, True, True), (329, True, False)]
)
@pytest.mark.parametrize("check", [True, False])
def test_a_broken_bound_is_reported_and_fails_the_command_with_check(
    measured: float, is_least: bool, held: bool, check: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    bounds = [Bound("one", 1, 2), Bound("peak", measured, 330, "MB", is_least)]
    given = options("dump", None).parse_args(["--check"] if check else [])
    assert conclude(bounds, given) == (1 if check and not held else 0)
    side = "at least" if is_least else "at most"
    state = "held" if held else "BROKEN"
    assert f"bound {state}: peak: {measured} MB, {side} 330 MB" in capsys.readouterr().out
    assert bounds[1].to_json()["is_held"] is held
