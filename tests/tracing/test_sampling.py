import dataclasses

import pytest

from tracing.sampling import Sampler, SamplingRates, TreeSampler
from tracing.summary import TraceSummary, summarize
from tracing.trace import Role, Span, SpanName, new_trace_id

WARM = dataclasses.replace(
    summarize([Span("a" * 32, "b" * 16, None, SpanName.REQUEST, 0, 1_000_000, "server-1", Role.INGRESS)]),
    start_type="warm",
    outcome="ok",
)
NOTHING = SamplingRates(steady_per_s=0, ratio=0)


def numbered(number: int, **changes: object) -> TraceSummary:
    return dataclasses.replace(WARM, trace_id=new_trace_id(number.to_bytes(16, "big")), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, False),
        ({"start_type": "cold"}, True),
        ({"start_type": "prewarm"}, True),
        ({"start_type": "preload"}, False),
        ({"outcome": "exceededCpu"}, True),
        ({"outcome": None}, False),
        ({"error": True}, True),
        ({"refused": "memory"}, True),
        ({"hop": True}, True),
        ({"duration_ms": 250.1}, True),
        ({"duration_ms": 250.0}, False),
        ({"status": 500}, False),
    ],
)
def test_what_is_remarkable_is_always_kept(changes: dict[str, object], kept: bool) -> None:
    summary = dataclasses.replace(WARM, **changes)  # type: ignore[arg-type]
    assert Sampler(NOTHING).keep(summary, 0.0) is kept
    assert Sampler(NOTHING).remarkable(summary) is kept


def test_an_idle_cluster_shows_everything_and_a_busy_one_its_share() -> None:
    sampler = Sampler(SamplingRates(steady_per_s=10, ratio=0, burst_s=1))
    assert [sampler.keep(numbered(i), 5.0) for i in range(12)] == [True] * 10 + [False] * 2
    assert [sampler.keep(numbered(i), 5.2) for i in range(3)] == [True, True, False]
    assert sum(sampler.keep(numbered(i), 100.0) for i in range(50)) == 10


def test_remarkable_ones_do_not_use_up_the_share_of_the_others() -> None:
    sampler = Sampler(SamplingRates(steady_per_s=1, ratio=0, burst_s=1))
    assert all(sampler.keep(numbered(i, start_type="cold"), 0.0) for i in range(20))
    assert sampler.keep(numbered(99), 0.0)


def test_the_ratio_goes_by_trace_id() -> None:
    rates = SamplingRates(steady_per_s=0, ratio=0.1, ceiling_per_s=1e9)
    first, second = Sampler(rates), Sampler(rates)
    kept = [number for number in range(5000) if first.keep(numbered(number), 0.0)]
    assert kept == [number for number in range(5000) if second.keep(numbered(number), 7.0)]
    assert 400 < len(kept) < 600
    assert all(Sampler(dataclasses.replace(rates, ratio=1.0)).keep(numbered(i), 0.0) for i in range(100))


def test_a_flood_of_failures_meets_the_ceiling() -> None:
    sampler = Sampler(SamplingRates(ceiling_per_s=100, burst_s=2))
    assert sum(sampler.keep(numbered(i, outcome="scriptNotFound"), 0.0) for i in range(1000)) == 200
    assert sum(sampler.keep(numbered(i, outcome="scriptNotFound"), 1.0) for i in range(1000)) == 100


def test_time_that_runs_backwards_fills_nothing() -> None:
    sampler = Sampler(SamplingRates(steady_per_s=1, ratio=0, burst_s=1))
    assert sampler.keep(numbered(1), 10.0)
    assert not sampler.keep(numbered(2), 3.0)
    assert not sampler.keep(numbered(3), 10.5)
    assert sampler.keep(numbered(4), 11.0)


def test_a_rate_below_one_still_lets_one_through() -> None:
    sampler = Sampler(SamplingRates(steady_per_s=0.125, ratio=0, burst_s=2))
    assert [sampler.keep(numbered(i), float(i)) for i in range(17)].count(True) == 3


def test_a_tree_whose_root_nobody_wanted_is_kept_for_what_is_below_it() -> None:
    sampler = TreeSampler(SamplingRates(ceiling_per_s=2.0, burst_s=1.0))
    assert all(sampler.keep(numbered(n), 0.0) for n in range(100))  # wanted by its edge, which has a ceiling of its own
    assert not sampler.keep(numbered(1, sampled=False), 0.0)
    assert not sampler.remarkable(numbered(1, sampled=False))
    assert [sampler.keep(numbered(n, sampled=False, start_type="cold"), 0.0) for n in range(3)] == [True, True, False]
