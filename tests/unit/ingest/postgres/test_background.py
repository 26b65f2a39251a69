"""run_ahead: order, errors, bounds, and a consumer that leaves early."""

import threading
import time
from collections.abc import Callable

import pytest

from ingest.postgres.background import run_ahead
from tests.waiting import PATIENCE


def test_items_come_in_order_and_the_producer_runs_at_most_a_few_ahead() -> None:
    made: list[int] = []

    def produce(put: Callable[[int], None]) -> None:
        for i in range(20):
            made.append(i)
            put(i)

    got: list[int] = []
    for item in run_ahead(produce, 2, "numbers"):
        time.sleep(0.001)
        assert len(made) - len(got) <= 4  # two waiting, one being added, one in use here
        got.append(item)
    assert got == list(range(20))


def test_waiting_items_stay_within_the_budget_and_a_larger_one_waits_alone() -> None:
    weights = [1, 2, 3, 50, 1, 1, 9, 9, 2, *[1] * 30]
    made: list[int] = []

    def produce(put: Callable[[int], None]) -> None:
        for weight in weights:
            made.append(weight)
            put(weight)

    got: list[int] = []
    for item in run_ahead(produce, 20, "weights", budget=10, size=lambda weight: weight):
        time.sleep(0.002)
        held = made[len(got) : -1] if len(made) < len(weights) else []  # the newest one is being added
        assert sum(held) <= 10 or len(held) == 1
        got.append(item)
    assert got == weights


def test_the_budget_does_not_delay_a_producer_of_small_items() -> None:
    filled = threading.Event()

    def produce(put: Callable[[int], None]) -> None:
        for item in range(10):
            put(item)
        filled.set()

    items = run_ahead(produce, 10, "light", budget=10, size=lambda _: 1)
    assert next(items) == 0
    assert filled.wait(PATIENCE)
    assert list(items) == list(range(1, 10))


def test_an_error_of_the_producer_comes_after_its_items() -> None:
    def produce(put: Callable[[str], None]) -> None:
        put("before")
        raise ValueError("broken")

    items = run_ahead(produce, 1, "failing")
    assert next(items) == "before"
    with pytest.raises(ValueError, match="broken"):
        next(items)


def test_none_and_exceptions_are_ordinary_items() -> None:
    things = [None, ValueError("an item"), ()]

    def produce(put: Callable[[object], None]) -> None:
        for thing in things:
            put(thing)

    assert list(run_ahead(produce, 1, "things")) == things


def test_the_producer_ends_when_the_consumer_leaves() -> None:
    unwound = threading.Event()

    def produce(put: Callable[[int], None]) -> None:
        try:
            while True:
                put(0)
        finally:
            unwound.set()

    before = threading.active_count()
    items = run_ahead(produce, 1, "endless")
    next(items)
    items.close()
    assert unwound.is_set()
    assert threading.active_count() == before
