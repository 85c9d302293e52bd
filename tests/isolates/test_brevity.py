"""Which versions run with the GIL held."""

import pytest

from isolates.brevity import Brevity


def after(requests: int, cpu_ms: float, host_calls: int, brevity: Brevity | None = None) -> Brevity:
    known = brevity or Brevity()
    for _ in range(requests):
        known.ended(cpu_ms, host_calls)
    return known


@pytest.mark.parametrize(
    ("cpu_ms", "host_calls", "short"),
    [(0.15, 10, True), (1.0, 46, True), (0.5, 2, False), (5.0, 400, False), (50.0, 0, False)],
)
def test_short_is_little_cpu_for_each_host_call(cpu_ms: float, host_calls: int, short: bool) -> None:
    assert after(100, cpu_ms, host_calls).is_short is short


def test_an_unknown_version_is_not_short_and_a_few_requests_are_not_enough() -> None:
    assert not Brevity().is_short
    assert not after(5, 0.1, 10).is_short
    assert after(100, 0.1, 10).is_short


def test_one_long_request_ends_it_and_many_short_ones_bring_it_back() -> None:
    known = after(100, 0.1, 10)
    known.ended(50.0, 10)
    assert not known.is_short
    assert after(100, 0.1, 10, brevity=known).is_short


def test_absurd_figures_do_not_count_for_ever() -> None:
    known = after(1, 1e9, 0)
    assert after(150, 0.1, 10, brevity=known).is_short
