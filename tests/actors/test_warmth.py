"""What a Server knows, from what passes by."""

import math

from actors.exchange import Ended, HeatReport, Load, Outcome
from actors.routing import Situation
from actors.warmth import Cost, Warmth, WarmthLimits

HOST = "/run/host.sock"


def situation(warmth: Warmth, now_s: float = 0.0, home: str = "server-2", order: tuple[str, ...] = ()) -> Situation:
    return warmth.situation(
        "w", "v", home=home, order=lambda: order, socket=HOST, refused_before=False, hosts_here=True, next_home=None,
        now_s=now_s,
    )  # fmt: skip


def test_of_a_worker_that_nobody_asked_nothing_is_known() -> None:
    assert situation(Warmth("server-1")) == Situation("server-1", "server-2", False, False)


def test_warm_until_the_host_says_cold() -> None:
    warmth = Warmth("server-1")
    warmth.warm("v")
    assert situation(warmth).warm_here
    warmth.cold("v", 10.0)
    warmth.cold("never warm", 10.0)
    assert not situation(warmth, 11.0).warm_here
    assert situation(warmth, 11.0).was_local
    assert not situation(warmth, 700.0).was_local


def test_warm_versions_are_bounded() -> None:
    warmth = Warmth("server-1", limits=WarmthLimits(warm_max=2))
    for version in "abc":
        warmth.warm(version)
    assert warmth.warm_versions() == ["b", "c"]


def test_rates_come_from_the_hosts_and_from_what_is_sent_away() -> None:
    warmth = Warmth("server-1", cores=2)
    warmth.reported(HeatReport(HOST, Load(residence_s=42.0), {"w": (6, 3.0)}), 0.0)
    for _ in range(6):
        warmth.sent("server-2", "w", 0.0)
    known = situation(warmth)
    assert math.isclose(known.rate_here_per_s * 600, 12)
    assert math.isclose(known.cpu_rate * 600, 1.5)  # of two cores
    assert (known.residence_s, warmth.ran_here) == (42.0, 6)


def test_while_nothing_is_evicted_isolates_live_for_ever() -> None:
    warmth = Warmth("server-1")
    warmth.reported(HeatReport(HOST, Load()), 0.0)
    assert situation(warmth).residence_s == math.inf


def test_costs_and_the_hop_are_measured_where_requests_end() -> None:
    warmth = Warmth("server-1")
    ended = Ended(Outcome.OK, wall_ms=5.0, queue_ms=1.0, start_type="warm", start_cost_ms=30.0, isolate_bytes=7 << 20)
    warmth.ended_away("w", "v", ended, 8.0, 0.0)
    known = situation(warmth)
    assert (known.cold_cost_ms, known.isolate_bytes, known.hop_cost_ms) == (30.0, 7 << 20, 2.0)
    assert warmth.cost_of("another") == Cost()
    warmth.ended_away("w", "v", ended, 1_000.0, 0.0)  # it waited for something else
    assert 2.0 < situation(warmth).hop_cost_ms < 5.0


def test_the_order_is_asked_for_only_when_the_home_has_too_much() -> None:
    warmth, asked = Warmth("server-1"), []

    def order() -> tuple[str, ...]:
        asked.append("order")
        return ("server-2", "server-3")

    def known() -> Situation:
        return warmth.situation(
            "w", "v", home="server-2", order=order, socket=HOST, refused_before=False, hosts_here=True, next_home=None,
            now_s=0.0,
        )  # fmt: skip

    warmth.replied("server-3", Load(cpu_load=0.1), 0.0)
    warmth.replied("server-2", Load(cpu_load=0.2, nearly_full=True), 0.0)
    assert (known().nearly_full, known().overloaded, asked) == (True, frozenset(), [])
    warmth.replied("server-2", Load(cpu_load=0.9), 0.0)
    assert (known().overloaded, known().order, bool(asked)) == ({"server-2"}, ("server-2", "server-3"), True)


def test_what_memory_is_left_when_all_who_are_at_home_here_are() -> None:
    warmth = Warmth("server-1")
    assert situation(warmth).memory_spare == 0.0
    warmth.homes_here = 64
    warmth.reported(HeatReport(HOST, Load(), {}, 1 << 30), 0.0)
    assert situation(warmth).memory_spare == 0.75  # of isolates nothing is known: 4 MiB each
    warmth.reported(HeatReport(HOST, Load(isolates=2, memory_bytes=24 << 20), {}, 1 << 30), 0.0)
    assert situation(warmth).memory_spare == 0.25
    warmth.homes_here = 1_000
    assert situation(warmth).memory_spare == 0.0
