"""When a worker is due."""

from hypothesis import given
from hypothesis import strategies as st

from actors.next_use import NextUseLimits, NextUseTable


def asked(gaps_s: list[float]) -> tuple[NextUseTable, float]:
    table, now_s = NextUseTable(), 0.0
    table.note("w", now_s)
    for gap_s in gaps_s:
        now_s += gap_s
        table.note("w", now_s)
    return table, now_s


def test_a_stranger_is_not_foretold() -> None:
    assert NextUseTable().next_use("w", 0.0) is None


def test_a_few_times_say_nothing() -> None:
    table, now_s = asked([600.0] * 3)
    assert table.next_use("w", now_s) is None


def test_a_timer_is_due_after_its_period() -> None:
    table, now_s = asked([900.0] * 8)
    due = table.next_use("w", now_s)
    assert due is not None
    assert due.regular
    assert due.prewarm_s < now_s + 900.0 < due.keep_s
    assert due.covers(now_s + 900.0)
    assert not due.covers(now_s + 600.0)
    assert due.prewarm_s - now_s > 700.0


def test_overdue_is_unknown() -> None:
    table, now_s = asked([900.0] * 8)
    assert table.next_use("w", now_s + 3_600.0) is None


def test_who_comes_at_random_is_not_regular() -> None:
    table, now_s = asked([70.0, 4_000.0, 300.0, 9_000.0, 1_500.0, 120.0])
    due = table.next_use("w", now_s)
    assert due is not None
    assert not due.regular


def test_a_busy_worker_is_not_foretold() -> None:
    table, now_s = asked([10.0] * 30)
    assert table.next_use("w", now_s) is None


def test_longer_than_the_histogram_is_just_rare() -> None:
    table, now_s = asked([20_000.0] * 10)
    assert table.next_use("w", now_s) is None


def test_a_new_habit_takes_over() -> None:
    table, now_s = asked([900.0] * 200 + [3_600.0] * 500)
    due = table.next_use("w", now_s)
    assert due is not None
    assert due.covers(now_s + 3_600.0)
    assert not due.covers(now_s + 900.0)


def test_there_is_a_bound() -> None:
    table = NextUseTable(NextUseLimits(workers_max=2))
    for worker in "abc":
        table.note(worker, 0.0)
    assert len(table) == 2
    table.forget("c")
    assert len(table) == 1


@given(st.lists(st.floats(0, 30_000), max_size=200))
def test_what_is_foretold_is_a_window_that_is_not_over(gaps_s: list[float]) -> None:
    table, now_s = asked(gaps_s)
    due = table.next_use("w", now_s)
    if due is not None:
        assert due.prewarm_s < due.keep_s
        assert due.keep_s >= now_s


@given(st.integers(61, 14_000), st.integers(4, 60))
def test_every_period_is_found(period_s: int, times: int) -> None:
    table, now_s = asked([float(period_s)] * times)
    due = table.next_use("w", now_s)
    assert due is not None
    assert due.covers(now_s + period_s)
