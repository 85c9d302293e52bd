"""Here or home, over every situation; and what is worth a copy."""

import math
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.routing import Place, Route, RoutingLimits, Situation, decide, is_hot, is_popular

LIMITS = RoutingLimits()
AWAY = Situation("a", "b", False, False, order=("b", "c", "a", "d"))
HOT = replace(AWAY, rate_here_per_s=1.0)
POPULAR = replace(AWAY, rate_here_per_s=LIMITS.popular_per_s)


@pytest.mark.parametrize(
    ("home", "warm_here", "refused_before", "place", "reason"),
    [
        (None, False, False, Place.HERE, "no ring"),
        ("a", False, False, Place.HERE, "home"),
        ("b", True, False, Place.HERE, "warm here"),
        ("b", True, True, Place.HERE, "warm here"),
        ("b", False, True, Place.HERE, "refused before"),
        ("b", False, False, Place.HOME, "sharded"),
    ],
)
def test_table(home: str | None, warm_here: bool, refused_before: bool, place: Place, reason: str) -> None:
    route = decide(Situation("a", home, warm_here, refused_before))
    assert (route.place, route.reason, route.warm_here_too) == (place, reason, False)


@pytest.mark.parametrize(("home", "warm", "refused"), list(product([None, "a", "b"], [False, True], [False, True])))
def test_it_goes_home_only_when_nothing_speaks_for_here(home: str | None, warm: bool, refused: bool) -> None:
    away = decide(Situation("a", home, warm, refused)).place is Place.HOME
    assert away == (home == "b" and not warm and not refused)


class TestWithoutHosts:
    def test_the_home_or_the_next_in_order_is_asked(self) -> None:
        lost = replace(AWAY, hosts_here=False, next_home="c")
        assert decide(lost) == Route(Place.HOME, "no host here", "b")
        assert decide(replace(lost, home="a")) == Route(Place.HOME, "no host here", "c")

    def test_nobody_is_left(self) -> None:
        assert decide(Situation("a", "a", False, False, hosts_here=False)) == Route(Place.HERE, "no host")


class TestCopies:
    def test_a_hot_worker_goes_home_while_its_copy_is_started(self) -> None:
        assert decide(HOT) == Route(Place.HOME, "hot", "b", warm_here_too=True)

    def test_a_copy_must_stay_warm(self) -> None:
        """Free memory and a start that costs nothing: the rate alone decides, at ln(1/eps) requests in the horizon."""
        free = replace(AWAY, cold_cost_ms=0.001)
        enough = math.log(1e6) / LIMITS.horizon_s
        assert is_hot(replace(free, rate_here_per_s=enough * 1.001))
        assert not is_hot(replace(free, rate_here_per_s=enough * 0.999))

    def test_a_short_residence_takes_more(self) -> None:
        assert is_hot(replace(HOT, residence_s=600.0))
        assert not is_hot(replace(HOT, residence_s=10.0))
        assert not is_hot(replace(HOT, residence_s=0.0))

    def test_a_dear_start_takes_more_and_a_dear_hop_less(self) -> None:
        assert not is_hot(replace(HOT, cold_cost_ms=300.0, hop_cost_ms=2.0))
        assert is_hot(replace(HOT, cold_cost_ms=300.0, hop_cost_ms=20.0))

    def test_a_large_isolate_takes_more_unless_memory_is_to_spare(self) -> None:
        large = replace(HOT, isolate_bytes=64 << 20)
        assert not is_hot(large)
        assert is_hot(replace(large, isolate_bytes=LIMITS.isolate_bytes_typical))
        assert is_hot(replace(large, memory_spare=0.95))

    def test_who_was_local_is_hot_down_to_half(self) -> None:
        free = replace(AWAY, memory_spare=1.0)
        almost = replace(free, rate_here_per_s=0.6 * math.log(1e6) / LIMITS.horizon_s)
        assert not is_hot(almost)
        assert is_hot(replace(almost, was_local=True))
        assert not is_hot(replace(almost, was_local=True, rate_here_per_s=almost.rate_here_per_s / 2))

    def test_a_worker_that_works_hard_is_spread_though_seldom_asked(self) -> None:
        hard = replace(AWAY, rate_here_per_s=0.008, cpu_rate=0.175)
        assert is_hot(hard)
        assert not is_hot(replace(hard, cpu_rate=LIMITS.spread_cpu / 2))
        assert not is_hot(replace(hard, rate_here_per_s=0.001))


class TestBusyHome:
    BUSY = frozenset({"b"})

    def test_the_unpopular_never_spill(self) -> None:
        for overloaded, nearly_full in product([frozenset("bcd"), self.BUSY], [False, True]):
            rare = replace(AWAY, overloaded=overloaded, nearly_full=nearly_full, rate_here_per_s=0.001)
            assert decide(rare) == Route(Place.HOME, "sharded", "b")

    def test_the_popular_get_a_copy_which_takes_load_off_for_good(self) -> None:
        route = decide(replace(POPULAR, overloaded=self.BUSY))
        assert route == Route(Place.HOME, "home overloaded", "b", warm_here_too=True)

    def test_where_a_copy_would_not_live_they_go_to_the_next_with_load_to_spare(self) -> None:
        brief = replace(POPULAR, residence_s=5.0)
        assert decide(replace(brief, overloaded=self.BUSY)) == Route(Place.HOME, "spilled", "c")
        assert decide(replace(brief, overloaded=frozenset("bc"))) == Route(Place.HOME, "spilled", "d")
        assert decide(replace(brief, overloaded=frozenset("bcd"))).warm_here_too

    def test_among_many_servers_few_places_carry_what_arrives_everywhere(self) -> None:
        """Of 300 servers each sends a little: the next of the order takes it, and not 300 copies."""
        many = replace(AWAY, servers=300, rate_here_per_s=0.01, cpu_rate=0.5 / 300, overloaded=self.BUSY)
        assert decide(many) == Route(Place.HOME, "spilled", "c")
        assert not is_popular(replace(many, cpu_rate=0.1 / 300))

    def test_what_the_order_can_not_carry_is_copied(self) -> None:
        huge = replace(AWAY, servers=300, rate_here_per_s=0.01, cpu_rate=9.0 / 300, overloaded=self.BUSY)
        assert decide(huge) == Route(Place.HOME, "home overloaded", "b", warm_here_too=True)

    def test_a_hint_starts_the_copy_before_the_first_refusal(self) -> None:
        route = decide(replace(POPULAR, nearly_full=True))
        assert route == Route(Place.HOME, "home nearly full", "b", warm_here_too=True)

    def test_who_works_hard_is_popular(self) -> None:
        assert is_popular(replace(AWAY, cpu_rate=LIMITS.popular_cpu))
        assert not is_popular(AWAY)


SITUATIONS = st.builds(
    Situation,
    here=st.just("a"),
    home=st.sampled_from([None, "a", "b"]),
    warm_here=st.booleans(),
    refused_before=st.booleans(),
    hosts_here=st.booleans(),
    next_home=st.sampled_from([None, "c"]),
    order=st.sampled_from([(), ("b",), ("b", "c", "d", "a"), ("b", "a", "c")]),
    rate_here_per_s=st.floats(0, 1e5),
    cpu_rate=st.floats(0, 64),
    residence_s=st.one_of(st.just(math.inf), st.floats(0, 1e6)),
    memory_spare=st.floats(0, 1),
    cold_cost_ms=st.floats(0, 1e5),
    hop_cost_ms=st.floats(0, 1e3),
    isolate_bytes=st.integers(0, 4 << 30),
    overloaded=st.frozensets(st.sampled_from("abcd")),
    nearly_full=st.booleans(),
    was_local=st.booleans(),
)


class TestEverySituation:
    @given(SITUATIONS)
    def test_who_is_sent_away_is_sent_to_somebody_else(self, situation: Situation) -> None:
        route = decide(situation)
        assert (route.place is Place.HERE) == (route.server == "")
        assert route.server != situation.here

    @given(SITUATIONS)
    def test_a_copy_is_started_only_while_a_home_answers(self, situation: Situation) -> None:
        """So becoming hot never costs a visible cold start."""
        route = decide(situation)
        if route.warm_here_too:
            assert route.place is Place.HOME
            assert situation.hosts_here
            assert not situation.warm_here

    @given(SITUATIONS)
    def test_the_home_is_left_only_by_the_popular_and_only_when_it_is_overloaded(self, situation: Situation) -> None:
        route = decide(situation)
        if situation.hosts_here and route.server not in ("", situation.home):
            assert situation.home in situation.overloaded
            assert route.server not in situation.overloaded
            assert is_popular(situation)

    @given(SITUATIONS, st.floats(1, 100))
    def test_asked_more_often_it_does_not_become_less_hot(self, situation: Situation, factor: float) -> None:
        more = replace(situation, rate_here_per_s=situation.rate_here_per_s * factor)
        assert is_hot(more) >= is_hot(situation)
