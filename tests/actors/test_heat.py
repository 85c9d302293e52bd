"""Rates that forget."""

from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.heat import HeatLimits, HeatTable


def steady(table: HeatTable, every_s: float, until_s: float, cpu_s: float = 0.0) -> float:
    now_s = 0.0
    while now_s < until_s:
        now_s += every_s
        table.note("w", now_s, cpu_s=cpu_s)
    return now_s


def test_nobody_asked() -> None:
    table = HeatTable()
    assert table.rate_per_s("w", 5.0) == table.cpu_rate("w", 5.0) == 0.0
    assert table.hottest(3, 5.0) == []


def test_a_steady_rate_is_found() -> None:
    table = HeatTable()
    now_s = steady(table, 0.5, 6_000.0, cpu_s=0.1)
    assert table.rate_per_s("w", now_s) == pytest.approx(2.0, rel=0.01)
    assert table.cpu_rate("w", now_s) == pytest.approx(0.2, rel=0.01)


def test_it_is_forgotten() -> None:
    table = HeatTable()
    now_s = steady(table, 0.5, 6_000.0)
    assert table.rate_per_s("w", now_s + 600.0) == pytest.approx(2.0 / exp(1), rel=0.01)


def test_a_burst_is_not_a_rate() -> None:
    table = HeatTable()
    table.note("w", 0.0, requests=10)
    assert table.rate_per_s("w", 0.0) == pytest.approx(10 / 600)


def test_cpu_time_may_come_later_and_is_no_request() -> None:
    table = HeatTable()
    table.note("w", 0.0)
    rate = table.rate_per_s("w", 3.0)
    table.note("w", 3.0, requests=0, cpu_s=6.0)
    assert table.rate_per_s("w", 3.0) == pytest.approx(rate)
    assert table.cpu_rate("w", 3.0) == pytest.approx(0.01)


def test_the_one_asked_least_lately_is_forgotten() -> None:
    table = HeatTable(HeatLimits(workers_max=2))
    for now_s, worker in enumerate(["a", "b", "a", "c"]):
        table.note(worker, float(now_s))
    assert len(table) == 2
    assert table.rate_per_s("b", 4.0) == 0.0
    assert table.hottest(5, 4.0) == ["a", "c"]
    table.forget("a")
    assert table.hottest(5, 4.0) == ["c"]


@given(st.lists(st.tuples(st.floats(-5, 500), st.integers(1, 100)), max_size=40), st.floats(0, 5_000))
def test_a_rate_is_never_more_than_what_came(notes: list[tuple[float, int]], later_s: float) -> None:
    """Also when the clock jumps back."""
    table, now_s, total = HeatTable(), 0.0, 0
    for passed_s, requests in notes:
        now_s += passed_s
        table.note("w", now_s, requests)
        total += requests
    assert 0.0 <= table.rate_per_s("w", now_s + later_s) <= total / 600 * 1.000001
