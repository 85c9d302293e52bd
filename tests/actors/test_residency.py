"""Each rule of residency as a small story, then all of them at once as a random walk."""

import math
import os
from collections.abc import Iterable
from typing import ClassVar

import pytest
from hypothesis import Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actors.decision import Close, Decision, Fail, Shed, Start, Use
from actors.exchange import ColdCause, StartType
from actors.past_starts import Cost
from actors.residency import Residency, ResidencyLimits
from actors.worker import Reuse

FIRST = ColdCause.FIRST_EVER


def house(**limits: float) -> Residency:
    return Residency(ResidencyLimits(**limits))  # type: ignore[arg-type]  # a test's shorthand


def ask(residency: Residency, ticket: str, version: str = "a", now_s: float = 0.0) -> list[Decision]:
    return residency.requested(ticket, version, FIRST, now_s)


def busy(residency: Residency, ticket: str, version: str = "a", now_s: float = 0.0) -> int:
    """One more isolate of ``version``, started for ``ticket`` and running it."""
    (start,) = (d for d in ask(residency, ticket, version, now_s) if isinstance(d, Start))
    assert residency.started(start.isolate, 10.0, now_s) == []
    return start.isolate


def idle(residency: Residency, version: str = "a", now_s: float = 0.0, *, cost_ms: float = 10.0) -> int:
    """One idle isolate of ``version`` that has served once."""
    (start,) = (d for d in ask(residency, f"first of {version}", version, now_s) if isinstance(d, Start))
    residency.started(start.isolate, cost_ms, now_s)
    assert residency.released(start.isolate, keep=True, now_s=now_s) == []
    return start.isolate


def twice(residency: Residency, version: str, now_s: float = 0.0) -> int:
    """One idle isolate of ``version`` that has served two requests."""
    isolate = idle(residency, version, now_s)
    residency.requested("second", version, FIRST, now_s)
    residency.released(isolate, keep=True, now_s=now_s)
    return isolate


def closed(decisions: Iterable[Decision]) -> list[int]:
    return [d.isolate for d in decisions if isinstance(d, Close)]


# ------------------------------------------------------------------------------------------------- start types, use


def test_cold_then_warm() -> None:
    residency = house()
    (start,) = ask(residency, "t1")
    assert start == Start("t1", 1, "a", StartType.COLD, FIRST)
    assert residency.started(1, 12.0, 0.0) == []  # its own ticket goes on without being told
    assert residency.released(1, keep=True, now_s=1.0) == []
    assert ask(residency, "t2") == [Use("t2", 1, StartType.WARM)]
    assert residency.cold_starts[FIRST] == 1


@pytest.mark.parametrize("start_type", [StartType.PREWARM, StartType.PRELOAD])
def test_the_first_use_of_a_prewarmed_isolate_says_so(start_type: StartType) -> None:
    residency = house()
    (start,) = residency.prewarm("a", start_type, FIRST, 0.0)
    assert isinstance(start, Start)
    assert start.ticket is None
    assert residency.started(start.isolate, 12.0, 0.0) == []
    assert ask(residency, "t1") == [Use("t1", 1, start_type)]
    residency.released(1, keep=True, now_s=1.0)
    assert ask(residency, "t2") == [Use("t2", 1, StartType.WARM)]
    assert sum(residency.cold_starts.values()) == 0


def test_a_prewarm_starts_one_if_there_is_none() -> None:
    residency = house()
    assert len(residency.prewarm("a", StartType.PREWARM, FIRST, 0.0)) == 1
    assert residency.prewarm("a", StartType.PREWARM, FIRST, 0.0) == []
    assert ask(residency, "t1") == []  # it waits for the prewarm: single flight
    assert residency.started(1, 12.0, 0.0) == [Use("t1", 1, StartType.PREWARM)]
    assert residency.prewarm("a", StartType.PREWARM, FIRST, 0.0) == []


def test_versions_never_share() -> None:
    residency = house()
    idle(residency, "a")
    (start,) = ask(residency, "t", "b")
    assert isinstance(start, Start)
    assert start.version == "b"


# ------------------------------------------------------------------------------------------- single flight, siblings


def test_starting_is_single_flight_and_then_siblings_one_by_one() -> None:
    residency = house(siblings_max=3)
    assert [len(ask(residency, f"t{i}")) for i in range(1, 6)] == [1, 0, 0, 0, 0]
    assert residency.started(1, 1.0, 0.0) == [Start("t2", 2, "a", StartType.COLD, ColdCause.SIBLING)]
    assert residency.started(2, 1.0, 0.0) == [Start("t3", 3, "a", StartType.COLD, ColdCause.SIBLING)]
    assert residency.started(3, 1.0, 0.0) == []  # siblings_max
    assert residency.released(2, keep=True, now_s=1.0) == [Use("t4", 2, StartType.WARM)]
    assert residency.released(1, keep=True, now_s=1.0) == [Use("t5", 1, StartType.WARM)]
    assert residency.queued == 0


def test_lines_are_first_in_first_out() -> None:
    residency = house(siblings_max=1)
    busy(residency, "t0")
    for i in range(1, 5):
        assert ask(residency, f"t{i}") == []
    served = []
    for _ in range(4):
        (use,) = residency.released(1, keep=True, now_s=1.0)
        assert isinstance(use, Use)
        served.append(use.ticket)
    assert served == ["t1", "t2", "t3", "t4"]


def test_a_line_is_bounded() -> None:
    residency = house(siblings_max=1, queue_max=2)
    busy(residency, "t0")
    assert [ask(residency, f"t{i}") for i in range(1, 4)] == [[], [], [Shed("t3")]]


def test_all_lines_together_are_bounded() -> None:
    residency = house(siblings_max=1, queued_max=2)
    busy(residency, "a0", "a")
    busy(residency, "b0", "b")
    assert ask(residency, "a1", "a") == []
    assert ask(residency, "b1", "b") == []
    assert ask(residency, "b2", "b") == [Shed("b2")]


def test_nobody_who_pays_is_shed_while_somebody_waits_who_does_not() -> None:
    """Of all that wait two may; and where a version has no isolate and no room for one, its place is theirs too."""
    residency = house(siblings_max=1, isolates_max=2, queued_max=2)
    free, paid = busy(residency, "f1", "free"), busy(residency, "p1", "paid")

    def asked(ticket: str, version: str) -> list[Decision]:
        pays = version != "free"
        return residency.requested(ticket, version, ColdCause.FIRST_EVER, 0.0, paid=pays)

    assert asked("f2", "free") == []
    assert asked("f3", "free") == []
    assert asked("p2", "paid") == [Shed("f3")]
    assert asked("q1", "homeless") == [Shed("f2")]
    assert asked("p3", "paid") == [Shed("p3")]  # all who wait pay
    assert asked("f4", "free") == [Shed("f4")]
    # The busy isolate of the free plan is the first to come free: it goes, and the homeless one has its place.
    decisions = residency.released(free, keep=True, now_s=0.0)
    assert [type(decision) for decision in decisions] == [Close, Start]
    assert decisions[1].version == "homeless"
    assert residency.released(paid, keep=True, now_s=0.0) == [Use("p2", paid, StartType.WARM)]
    assert residency.queued == 0


def test_nobody_is_put_in_a_line_that_cannot_move() -> None:
    residency = house(isolates_max=1)
    busy(residency, "t0", "a")
    assert ask(residency, "t1", "b") == [Shed("t1")]
    assert "0 queued" in repr(residency)


def test_giving_up() -> None:
    residency = house(siblings_max=1)
    busy(residency, "t0")
    ask(residency, "t1")
    ask(residency, "t2")
    assert residency.gave_up("t1", "a")
    assert not residency.gave_up("t1", "a")
    assert not residency.gave_up("t0", "a")  # it has its decision
    assert not residency.gave_up("t0", "never heard of")
    assert residency.released(1, keep=True, now_s=1.0) == [Use("t2", 1, StartType.WARM)]


# -------------------------------------------------------------------------------------------------------- endings


def test_a_killed_isolate_never_serves_again_and_its_line_goes_on() -> None:
    residency = house(siblings_max=1)
    busy(residency, "t0")
    ask(residency, "t1")
    ask(residency, "t2")
    close, start = residency.released(1, keep=False, now_s=1.0)
    assert close == Close(1, "a", last=True)
    assert isinstance(start, Start)
    assert (start.ticket, start.cause) == ("t1", ColdCause.CONDEMNED)
    assert residency.started(start.isolate, 1.0, 1.0) == []
    assert residency.released(start.isolate, keep=True, now_s=2.0) == [Use("t2", 2, StartType.WARM)]


def test_a_killed_isolate_in_a_full_house_makes_room_for_its_line() -> None:
    residency = house(isolates_max=2, siblings_max=1)
    busy(residency, "a0", "a")
    busy(residency, "b0", "b")
    ask(residency, "a1", "a")
    _, start = residency.released(1, keep=False, now_s=1.0)
    assert isinstance(start, Start)
    assert start.ticket == "a1"


def test_the_next_cause_is_remembered() -> None:
    residency = house()
    busy(residency, "t0")
    assert residency.released(1, keep=False, now_s=1.0) == [Close(1, "a", last=True)]
    (start,) = ask(residency, "t1")
    assert isinstance(start, Start)
    assert start.cause is ColdCause.CONDEMNED
    assert residency.cause_of(start.isolate) is ColdCause.CONDEMNED


def test_a_failed_start_fails_all_that_wait_for_it_and_is_remembered_for_seconds() -> None:
    residency = house(failure_remembered_s=3.0)
    ask(residency, "t1", now_s=10.0)
    ask(residency, "t2", now_s=10.0)
    assert residency.start_failed(1, "why", 10.0) == [Fail("t2", "why")]
    assert ask(residency, "t3", now_s=12.9) == [Fail("t3", "why")]
    assert residency.prewarm("a", StartType.PREWARM, FIRST, 12.9) == []
    assert isinstance(ask(residency, "t4", now_s=13.0)[0], Start)
    assert len(residency) == 1


def test_a_failed_sibling_does_not_take_a_healthy_isolate_away() -> None:
    """A sibling may fail for a busy machine's sake; what runs goes on serving, also those in line."""
    residency = house()
    busy(residency, "t0")
    ask(residency, "t1")  # starts the sibling
    ask(residency, "t2")
    assert residency.start_failed(2, "why", 1.0) == []
    assert ask(residency, "t3", now_s=1.0) == []  # no second start within the seconds, but a place in line
    assert residency.released(1, keep=True, now_s=1.1) == [Use("t2", 1, StartType.WARM)]
    assert residency.released(1, keep=True, now_s=1.2) == [Use("t3", 1, StartType.WARM)]
    assert residency.released(1, keep=True, now_s=1.3) == []
    assert ask(residency, "t4", now_s=1.4) == [Use("t4", 1, StartType.WARM)]


def test_when_the_last_healthy_isolate_goes_the_line_fails_with_the_start() -> None:
    residency = house()
    busy(residency, "t0")
    ask(residency, "t1")
    ask(residency, "t2")
    residency.start_failed(2, "why", 1.0)
    assert residency.released(1, keep=False, now_s=1.1) == [Close(1, "a", last=True), Fail("t2", "why")]


# ------------------------------------------------------------------------------------------------ room and eviction


def test_a_full_house_evicts_the_idle_one_that_is_cheapest_to_lose() -> None:
    residency = house(isolates_max=3)
    idle(residency, "dear", 0.0, cost_ms=500.0)
    idle(residency, "cheap", 0.0, cost_ms=5.0)
    busy(residency, "t", "busy", 0.0)
    close, start = ask(residency, "t1", "new", 1.0)
    assert close == Close(2, "cheap", last=True)
    assert isinstance(start, Start)
    assert residency.evictions == 1
    residency.started(start.isolate, 5.0, 1.0)
    _, start = ask(residency, "t2", "cheap", 2.0)
    assert isinstance(start, Start)
    assert start.cause is ColdCause.EVICTED


@pytest.mark.parametrize(
    ("memory_bytes", "evicted"), [(0, 0), (1_000, 0), (1_001, 1), (1_333, 1), (1_900, 2), (10_000, 3), (10**9, 3)]
)
def test_pressure_evicts_idle_ones_until_it_should_fit(memory_bytes: int, evicted: int) -> None:
    residency = house(memory_bytes_max=1_000)
    for version in "abc":
        idle(residency, version)
    busy(residency, "t", "d")
    assert len(closed(residency.pressure(memory_bytes, 1.0))) == evicted
    assert residency.released(4, keep=True, now_s=1.0) == []  # the busy one was left alone


def test_a_house_without_memory_starts_only_in_the_place_of_an_idle_isolate() -> None:
    residency = house()
    start = residency.requested("a", "v1", ColdCause.FIRST_EVER, 0.0)[0]
    assert isinstance(start, Start)
    residency.started(start.isolate, 1.0, 0.0)
    residency.pressure(1 << 40, 0.0)
    # The one isolate is busy, so nothing can go, and the newcomer has nobody of its own to wait for.
    assert residency.requested("b", "v2", ColdCause.FIRST_EVER, 0.1) == [Shed("b")]
    residency.released(start.isolate, keep=True, now_s=0.2)
    decisions = residency.requested("c", "v2", ColdCause.FIRST_EVER, 0.3)
    assert closed(decisions) == [start.isolate]
    assert isinstance(decisions[-1], Start)
    residency.pressure(0, 0.4)
    assert isinstance(residency.requested("d", "v3", ColdCause.FIRST_EVER, 0.5)[0], Start)


MIB = 1 << 20


def test_of_two_that_cost_the_same_the_larger_goes_first() -> None:
    residency = house(isolates_max=2)
    for isolate, version, memory_bytes in ((1, "large", 64 * MIB), (2, "small", 2 * MIB)):
        ask(residency, "t", version)
        residency.started(isolate, 10.0, 0.0, memory_bytes=memory_bytes // 2)
        residency.released(isolate, keep=True, now_s=0.0, memory_bytes=memory_bytes)
    assert closed(ask(residency, "t", "new")) == [1]


def test_pressure_counts_what_was_measured() -> None:
    """Two of a hundred MiB and three of one: the large ones go, as many as it takes, and no small one with them."""
    residency = house(memory_bytes_max=150 * MIB)
    for isolate, mib in enumerate((1, 100, 1, 100, 1), start=1):
        ask(residency, "t", f"v{isolate}")
        residency.started(isolate, 10.0, 0.0, memory_bytes=mib * MIB)
        residency.released(isolate, keep=True, now_s=0.0)
    assert closed(residency.pressure(203 * MIB, 1.0)) == [2]
    assert closed(residency.pressure(230 * MIB, 2.0)) == [4]
    assert len(closed(residency.pressure(155 * MIB, 3.0))) == 3  # it is not the isolates, but who knows


def test_what_is_asked_for_more_often_stays() -> None:
    residency = house(isolates_max=2)
    idle(residency, "often")
    for _ in range(5):
        assert ask(residency, "t", "often") == [Use("t", 1, StartType.WARM)]
        residency.released(1, keep=True, now_s=0.0)
    idle(residency, "once")
    assert closed(ask(residency, "t", "new")) == [2]


def test_what_was_busy_once_does_not_stay_for_ever() -> None:
    """The worth of the evicted is added to that of all who come after: the old worth is outgrown."""
    residency = house(isolates_max=3)
    idle(residency, "busy once")
    for _ in range(10_000):
        ask(residency, "t", "busy once")
        residency.released(1, keep=True, now_s=0.0)
    turnovers = 0
    while 1 in residency._residents:
        turnovers += 1
        twice(residency, f"passing {turnovers}")
        assert turnovers < 200
    assert turnovers > 20


def test_those_who_are_asked_once_do_not_push_out_who_is_asked_again() -> None:
    residency = house(isolates_max=10)
    asked_again = [twice(residency, f"v{number}") for number in range(8)]
    for number in range(1_000):
        idle(residency, f"scanned {number}", float(number))
    assert set(asked_again) <= set(residency._residents)


def test_the_home_of_a_worker_keeps_it_longer_than_others_do() -> None:
    residency = house(isolates_max=2)
    for isolate, version, at_home in ((1, "at home", True), (2, "a copy", False)):
        residency.requested("t", version, FIRST, 0.0, at_home=at_home)
        residency.started(isolate, 10.0, 0.0)
        residency.released(isolate, keep=True, now_s=0.0)
    for ticket in range(3):  # the copy is asked for more often
        residency.requested(ticket, "a copy", FIRST, 1.0)
        residency.released(2, keep=True, now_s=1.0)
    residency.requested("t", "at home", FIRST, 1.0, at_home=True)
    residency.released(1, keep=True, now_s=1.0)
    assert closed(ask(residency, "t", "new")) == [2]


def test_a_sibling_too_many_is_missed_less() -> None:
    residency = house(isolates_max=4)
    for ticket in ("t1", "t2", "t3"):
        busy(residency, ticket, "many")
    twice(residency, "alone")
    for isolate in (1, 2, 3):
        residency.released(isolate, keep=True, now_s=0.0)
    assert closed(ask(residency, "t", "new"))[0] in (1, 2, 3)


def test_eviction_looks_at_few_of_many() -> None:
    """Five thousand isolates of a hundred thousand versions: what is evicted is found, not searched for."""
    residency = house(isolates_max=5_000)
    for number in range(20_000):
        (*evicted, start) = ask(residency, "t", f"v{number % 100_000}", float(number))
        assert len(evicted) == (number >= 5_000)
        assert isinstance(start, Start)
        residency.started(start.isolate, 1.0 + number % 7, float(number), memory_bytes=MIB + number % 11)
        residency.released(start.isolate, keep=True, now_s=float(number))
    assert (len(residency), residency.evictions) == (5_000, 15_000)
    assert residency._room._order.entries <= 2 * (2 * 5_000 + 64)


def test_pressure_evicts_a_bounded_number_at_once() -> None:
    residency = house(memory_bytes_max=1, evicted_at_once_max=3)
    for number in range(5):
        idle(residency, f"v{number}")
    assert [len(residency.pressure(1 << 40, 1.0)) for _ in range(3)] == [3, 2, 0]


def test_in_a_house_without_memory_the_place_of_one_that_went_is_taken() -> None:
    residency = house()
    busy(residency, "a0", "a")
    busy(residency, "b0", "b")
    residency.pressure(1 << 40, 0.0)
    assert ask(residency, "a1", "a") == []
    close, start = residency.released(1, keep=False, now_s=1.0)
    assert close == Close(1, "a", last=True)
    assert isinstance(start, Start)
    assert start.ticket == "a1"
    assert ask(residency, "b1", "b") == []  # that was the one place


def test_lines_that_wait_for_room_take_turns() -> None:
    residency = house(isolates_max=3)
    for version in "abc":
        busy(residency, f"{version}0", version)
    for ticket in ("a1", "a2", "a3", "b1"):
        assert ask(residency, ticket, ticket[0]) == []
    order = []
    for isolate in (3, 4, 5):  # each runs and goes: whose turn is it?
        start = residency.released(isolate, keep=False, now_s=1.0)[-1]
        assert isinstance(start, Start)
        order.append(start.ticket)
        residency.started(start.isolate, 1.0, 1.0)
    assert order == ["a1", "b1", "a2"]


def test_pressure_on_an_empty_house() -> None:
    assert house().pressure(1 << 40, 0.0) == []


def test_dropping_a_version_closes_what_is_idle_and_condemns_the_rest() -> None:
    residency = house()
    busy(residency, "t1")
    (sibling,) = ask(residency, "t2")
    assert isinstance(sibling, Start)
    residency.started(sibling.isolate, 1.0, 0.0)
    residency.released(sibling.isolate, keep=True, now_s=0.0)
    assert residency.drop("a", 1.0) == [Close(2, "a", last=False)]
    assert residency.released(1, keep=True, now_s=2.0) == [Close(1, "a", last=True)]
    assert residency.drop("a", 3.0) == []
    assert len(residency) == 0


def test_a_version_dropped_while_it_is_prewarmed_leaves_nothing() -> None:
    residency = house()
    residency.prewarm("a", StartType.PREWARM, FIRST, 0.0)
    assert residency.drop("a", 0.5) == []
    assert residency.started(1, 1.0, 1.0) == [Close(1, "a", last=True)]
    assert len(residency) == 0


def test_a_line_starts_a_sibling_as_soon_as_another_version_leaves_room() -> None:
    residency = house(isolates_max=2)
    busy(residency, "a0", "a")
    busy(residency, "b0", "b")
    assert ask(residency, "a1", "a") == []
    close, start = residency.released(2, keep=True, now_s=1.0)  # b has nothing to do: a's line may have its place
    assert close == Close(2, "b", last=True)
    assert isinstance(start, Start)
    assert start.ticket == "a1"


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_a_line_starts_a_sibling_as_soon_as_another_isolate_is_gone(how: str) -> None:
    residency = house(isolates_max=2)
    busy(residency, "a0", "a")
    ask(residency, "b0", "b")
    assert ask(residency, "a1", "a") == []
    if how == "failed":
        decisions = residency.start_failed(2, "why", 1.0)
    else:
        residency.started(2, 1.0, 0.5)
        decisions = residency.released(2, keep=False, now_s=1.0)[1:]
    assert decisions == [Start("a1", 3, "a", StartType.COLD, ColdCause.SIBLING)]


def test_a_newcomer_does_not_overtake_the_line_when_a_failure_is_forgotten() -> None:
    residency = house(failure_remembered_s=3.0)
    busy(residency, "t0")
    ask(residency, "t1")
    ask(residency, "t2")
    residency.start_failed(2, "why", 1.0)
    (start,) = ask(residency, "t3", now_s=9.0)
    assert isinstance(start, Start)
    assert start.ticket == "t2"


# ------------------------------------------------------------------------------------------------ reuse and spares

ONCE = Reuse(max_requests=1)


def once(residency: Residency, ticket: str, version: str = "a", now_s: float = 0.0) -> list[Decision]:
    """A request for a version whose isolates serve one each."""
    return residency.requested(ticket, version, FIRST, now_s, ONCE)


def spare(residency: Residency, version: str = "a", now_s: float = 0.0) -> int:
    """A first request of a single-shot version, over; the spare that was started ahead of the next one."""
    (start,) = (d for d in once(residency, f"first of {version}", version, now_s) if isinstance(d, Start))
    ahead = [d for d in residency.started(start.isolate, 10.0, now_s) if isinstance(d, Start)]
    (ahead_of_next,) = ahead
    assert residency.started(ahead_of_next.isolate, 10.0, now_s) == []
    residency.released(start.isolate, keep=True, now_s=now_s)
    return ahead_of_next.isolate


def test_an_isolate_serves_as_many_requests_as_it_may() -> None:
    residency = house()
    twice = Reuse(max_requests=2)
    (start,) = residency.requested("t1", "a", FIRST, 0.0, twice)
    assert isinstance(start, Start)
    residency.started(1, 5.0, 0.0)
    assert residency.released(1, keep=True, now_s=0.0) == []
    assert residency.requested("t2", "a", FIRST, 0.0, twice) == [Use("t2", 1, StartType.WARM)]
    assert residency.released(1, keep=True, now_s=0.0) == [Close(1, "a", last=True)]
    (start,) = residency.requested("t3", "a", FIRST, 0.0, twice)
    assert isinstance(start, Start)
    assert (start.isolate, start.cause, residency.used_up) == (2, ColdCause.CONDEMNED, 1)


def test_an_isolate_that_is_used_up_leaves_its_line_a_fresh_one() -> None:
    residency = house(siblings_max=1)
    once(residency, "t0")
    residency.started(1, 5.0, 0.0)
    assert once(residency, "t1") == []
    close, start = residency.released(1, keep=True, now_s=1.0)
    assert close == Close(1, "a", last=True)
    assert isinstance(start, Start)
    assert (start.ticket, start.start_type) == ("t1", StartType.COLD)


def test_a_single_shot_version_has_a_spare_after_its_first_request() -> None:
    residency = house()
    (start,) = once(residency, "t1")
    assert start == Start("t1", 1, "a", StartType.COLD, FIRST)
    assert residency.started(1, 12.0, 0.0) == [Start(None, 2, "a", StartType.PRELOAD, ColdCause.SIBLING)]
    assert residency.released(1, keep=True, now_s=0.0) == [Close(1, "a", last=False)]
    assert residency.started(2, 12.0, 0.0) == []
    assert residency.spares == 1
    use, ahead = once(residency, "t2")
    assert use == Use("t2", 2, StartType.PRELOAD)
    assert ahead == Start(None, 3, "a", StartType.PRELOAD, ColdCause.SIBLING)
    assert residency.cold_starts[FIRST] == sum(residency.cold_starts.values()) == 1
    assert residency.starts == {StartType.COLD: 1, StartType.PREWARM: 0, StartType.PRELOAD: 2}


def test_what_the_deploy_found_out_counts_more_than_the_manifest() -> None:
    residency = house()
    reuse = Reuse(max_requests=100, single_shot=True)
    assert (reuse.requests_max, reuse.reason) == (1, "single-shot")
    residency.requested("t1", "a", FIRST, 0.0, reuse)
    assert isinstance(residency.started(1, 12.0, 0.0)[0], Start)
    assert residency.released(1, keep=True, now_s=0.0) == [Close(1, "a", last=False)]


def test_spares_follow_the_requests_at_once_up_to_their_bound_and_back() -> None:
    residency = house(spares_per_version_max=3, demand_window_s=10.0)
    first = spare(residency)
    in_use = [first]

    def settle(decisions: list[Decision], now_s: float) -> None:
        """Let all that warms be started; what was started for a ticket runs from then on."""
        for decision in decisions:
            if isinstance(decision, Start):
                if decision.ticket is not None:
                    in_use.append(decision.isolate)
                settle(residency.started(decision.isolate, 5.0, now_s), now_s)
            elif isinstance(decision, Use) and decision.isolate != first:
                in_use.append(decision.isolate)

    for i in range(5):
        settle(once(residency, f"at once {i}"), 1.0)
    assert len(in_use) == 5
    assert residency.spares == 3
    for isolate in in_use:
        settle(residency.released(isolate, keep=True, now_s=2.0), 2.0)
    assert (len(residency), residency.spares) == (3, 3)
    for i in range(3):  # one by one, long after: the peak is forgotten, and a spare that is taken is not replaced
        settle(once(residency, f"alone {i}", now_s=50.0 + i), 50.0 + i)
        settle(residency.released(in_use[-1], keep=True, now_s=50.0 + i), 50.0 + i)
    assert residency.spares == 1


def test_a_spare_never_takes_the_place_of_another_isolate() -> None:
    residency = house(isolates_max=2)
    idle(residency, "b")
    (start,) = once(residency, "t1")
    assert isinstance(start, Start)
    assert residency.started(start.isolate, 5.0, 0.0) == []  # the house is full
    close, ahead = residency.released(start.isolate, keep=True, now_s=0.0)  # and now it is not
    assert close == Close(start.isolate, "a", last=True)
    assert isinstance(ahead, Start)
    assert (ahead.ticket, ahead.start_type) == (None, StartType.PRELOAD)
    assert residency.evictions == 0


def test_of_too_many_spares_the_one_that_waited_longest_goes() -> None:
    residency = house(spares_max=2)
    oldest = spare(residency, "a", 0.0)
    spare(residency, "b", 1.0)
    (start,) = once(residency, "t", "c", 2.0)
    assert isinstance(start, Start)
    close, ahead = residency.started(start.isolate, 5.0, 2.0)
    assert close == Close(oldest, "a", last=True)
    assert isinstance(ahead, Start)
    assert ahead.version == "c"
    (again,) = once(residency, "t2", "a", 3.0)
    assert isinstance(again, Start)
    assert again.cause is ColdCause.EVICTED


def test_a_request_that_comes_while_its_spare_warms_waits_for_it() -> None:
    residency = house()
    once(residency, "t1")
    (ahead,) = residency.started(1, 5.0, 0.0)
    assert isinstance(ahead, Start)
    assert once(residency, "t2") == []
    assert once(residency, "t3") == []
    use, sibling = residency.started(ahead.isolate, 5.0, 0.0)
    assert use == Use("t2", ahead.isolate, StartType.PRELOAD)
    assert isinstance(sibling, Start)
    assert sibling.ticket == "t3"


def test_a_prewarm_of_a_single_shot_version_looks_for_one_that_is_free() -> None:
    residency = house()
    once(residency, "t1")
    (ahead,) = residency.started(1, 5.0, 0.0)
    assert residency.prewarm("a", StartType.PREWARM, FIRST, 0.0, ONCE) == []  # its spare is on the way
    assert isinstance(ahead, Start)
    residency.start_failed(ahead.isolate, "why", 0.0)
    (start,) = residency.prewarm("a", StartType.PREWARM, FIRST, 9.0, ONCE)
    assert isinstance(start, Start)


def test_a_spare_that_does_not_start_is_not_tried_again_for_seconds() -> None:
    residency = house(failure_remembered_s=3.0)
    once(residency, "t1")
    (ahead,) = residency.started(1, 5.0, 0.0)
    assert isinstance(ahead, Start)
    assert residency.start_failed(ahead.isolate, "why", 1.0) == []
    assert residency.released(1, keep=True, now_s=1.0) == [Close(1, "a", last=True)]
    assert len(residency) == 0


def test_a_dropped_version_gets_no_spares() -> None:
    residency = house()
    kept = spare(residency)
    once(residency, "t")  # takes the spare, and another one warms
    assert residency.drop("a", 1.0) == []
    assert residency.started(kept + 1, 5.0, 1.0) == [Close(kept + 1, "a", last=False)]
    assert residency.released(kept, keep=True, now_s=1.0) == [Close(kept, "a", last=True)]
    assert len(residency) == 0


def test_an_isolate_that_nobody_used_for_long_is_let_go() -> None:
    residency = house()
    reuse = Reuse(idle_s=60)
    residency.requested("t1", "a", FIRST, 0.0, reuse)
    residency.started(1, 5.0, 0.0)
    assert residency.tick(1_000.0) == []  # it runs
    residency.released(1, keep=True, now_s=1_000.0)
    assert residency.tick(1_059.0) == []
    assert residency.requested("t2", "a", FIRST, 1_059.0, reuse) == [Use("t2", 1, StartType.WARM)]
    residency.released(1, keep=True, now_s=1_059.5)
    assert residency.tick(1_119.0) == []
    assert residency.tick(1_119.5) == [Close(1, "a", last=True)]
    assert (len(residency), residency.expired, residency.evictions) == (0, 1, 0)
    (start,) = residency.requested("t3", "a", FIRST, 1_200.0, reuse)
    assert isinstance(start, Start)
    assert start.cause is ColdCause.EVICTED


def test_who_says_nothing_is_kept_for_ever() -> None:
    residency = house()
    idle(residency)
    assert residency.tick(1e9) == []


def test_a_tick_does_a_bounded_amount_of_work() -> None:
    residency = house(closed_per_tick_max=3, siblings_max=16)
    for number in range(8):
        residency.requested("t", f"v{number}", FIRST, 0.0, Reuse(idle_s=1))
        residency.started(number + 1, 5.0, 0.0)
        residency.released(number + 1, keep=True, now_s=float(number) / 10)
    assert [closed(residency.tick(9.0)) for _ in range(4)] == [[1, 2, 3], [4, 5, 6], [7, 8], []]


def test_a_spare_that_nobody_takes_goes_like_others() -> None:
    residency = house()
    reuse = Reuse(max_requests=1, idle_s=30)
    residency.requested("t1", "a", FIRST, 0.0, reuse)
    residency.started(1, 5.0, 0.0)
    residency.started(2, 5.0, 0.0)
    residency.released(1, keep=True, now_s=0.0)
    assert residency.tick(31.0) == [Close(2, "a", last=True)]
    assert (len(residency), residency.spares) == (0, 0)


# --------------------------------------------------------------------------------------------- started ahead


def ahead(residency: Residency, version: str, now_s: float = 1.0, *, at_home: bool = False) -> list[Decision]:
    return residency.prewarm(version, StartType.PREWARM, FIRST, now_s, at_home=at_home)


def test_a_prewarm_in_a_full_house_takes_the_place_of_who_is_worth_less() -> None:
    residency = house(isolates_max=2)
    dear = idle(residency, "dear", cost_ms=500.0)
    idle(residency, "cheap", cost_ms=0.1)
    residency.drop("dear", 0.0)
    assert isinstance(ask(residency, "t", "dear")[-1], Start)  # its cost is remembered
    residency.started(3, 500.0, 0.0)
    close, start = ahead(residency, "unknown")  # and one like the others costs more than the cheap one
    assert close == Close(dear + 1, "cheap", last=True)
    assert isinstance(start, Start)


def test_a_prewarm_never_takes_the_place_of_who_is_worth_more() -> None:
    residency = house(isolates_max=2)
    twice(residency, "a")
    twice(residency, "b")
    assert ahead(residency, "new") == []
    assert (residency.prewarms_declined, residency.evictions, len(residency)) == (1, 0, 2)
    assert isinstance(ask(residency, "t", "new")[-1], Start)  # a request does


def test_a_prewarm_of_a_copy_never_takes_a_homes_place() -> None:
    residency = house(isolates_max=1)
    residency.requested("t", "a", FIRST, 0.0, at_home=True)
    residency.started(1, 0.1, 0.0, memory_bytes=100 * MIB)  # large and cheap
    residency.released(1, keep=True, now_s=0.0)
    assert ahead(residency, "copy") == []
    close, start = ahead(residency, "another's home", at_home=True)
    assert close == Close(1, "a", last=True)
    assert isinstance(start, Start)


def test_what_is_expected_of_a_prewarm_counts() -> None:
    residency = house(isolates_max=2)
    for version in "ab":
        twice(residency, version)
    assert ahead(residency, "new") == []
    close, start = residency.prewarm("new", StartType.PREWARM, FIRST, 1.0, expected=30)
    assert isinstance(close, Close)
    assert isinstance(start, Start)
    residency.started(start.isolate, 10.0, 1.0)
    idle(residency, "c")
    assert start.isolate in residency._residents


def test_what_was_started_ahead_and_never_used_is_counted_when_it_goes() -> None:
    residency = house(isolates_max=2)
    for isolate, version in ((1, "used"), (2, "unused")):
        ahead(residency, version)
        residency.started(isolate, 1.0, 0.0)
    ask(residency, "t", "used")
    residency.released(1, keep=True, now_s=1.0)
    assert residency.wasted[StartType.PREWARM] == 0
    residency.drop("used", 2.0)
    residency.drop("unused", 2.0)
    assert residency.wasted == {StartType.PREWARM: 1, StartType.PRELOAD: 0}


def test_what_an_isolate_cost_is_known_after_it_is_gone() -> None:
    residency = house()
    assert residency.cost_of("a") is None
    ask(residency, "t")
    residency.started(1, 12.0, 0.0, memory_bytes=MIB)
    residency.released(1, keep=False, now_s=0.0, memory_bytes=3 * MIB)
    assert residency.cost_of("a") == Cost(12.0, 3 * MIB)


def test_residence_is_learned_from_evictions_alone() -> None:
    residency = house(isolates_max=1)
    idle(residency, "a", 0.0)
    residency.drop("a", 5.0)
    assert math.isinf(residency.residence_s(5.0))
    idle(residency, "b", 10.0)
    ask(residency, "t", "c", 50.0)
    assert residency.residence_s(50.0) == 40.0
    assert residency.residence_s(60.0) == 50.0


def test_what_could_come_free_is_what_idles() -> None:
    residency = house()
    busy(residency, "t", "a")
    ask(residency, "t", "b")
    residency.started(2, 1.0, 0.0, memory_bytes=MIB)
    assert residency.idle_bytes == 0
    residency.released(2, keep=True, now_s=0.0, memory_bytes=2 * MIB)
    assert residency.idle_bytes == 2 * MIB


# ---------------------------------------------------------------------------------------------------- all at once


class HostOfIsolates(RuleBasedStateMachine):
    """Drives Residency as a host would, in any order, and checks every decision."""

    LIMITS = ResidencyLimits(
        isolates_max=5, siblings_max=3, queue_max=3, queued_max=5, memory_bytes_max=1_000, failure_remembered_s=3.0,
        spares_per_version_max=2, spares_max=2, demand_window_s=5.0,
    )  # fmt: skip
    REUSE: ClassVar = {"a": Reuse(), "b": ONCE, "c": Reuse(max_requests=2, idle_s=2), "d": Reuse(1, 3)}

    HOMES: ClassVar = {"a", "d"}

    def __init__(self) -> None:
        super().__init__()
        self.residency = Residency(self.LIMITS)
        self.now_s = 0.0
        self.tickets = 0
        self.waiting: dict[str, list[int]] = {}  # version -> tickets without a decision, oldest first
        self.warming: dict[int, tuple[str, int | None]] = {}
        self.running: dict[int, tuple[str, int]] = {}
        self.idle: dict[int, str] = {}
        self.failed_until_s: dict[str, float] = {}
        self.decided: set[int] = set()
        self.uses: dict[int, int] = {}
        self.idle_since_s: dict[int, float] = {}
        self.over_memory = False

    def residents(self, version: str | None = None) -> list[int]:
        everyone = {i: v for i, (v, _) in {**self.warming, **self.running}.items()} | self.idle
        return [i for i, v in everyone.items() if version in (None, v)]

    def decide(self, ticket: int) -> str:
        """A decision for ``ticket``, which must be its first; returns its version."""
        assert ticket not in self.decided, f"a second decision for {ticket}"
        self.decided.add(ticket)
        version = next(v for v, line in self.waiting.items() if ticket in line)
        self.waiting[version].remove(ticket)
        return version

    def carry_out(self, decisions: list[Decision], gone: int | None = None) -> None:
        """``gone``: an isolate that may be closed although it is not idle, since its run is over."""
        for decision in decisions:
            if isinstance(decision, Close):
                if decision.isolate != gone:
                    assert decision.isolate in self.idle, "closed an isolate that is not idle"
                    del self.idle[decision.isolate]
                assert decision.last == (not self.residents(decision.version))
            elif isinstance(decision, Start):
                assert decision.isolate not in self.residents()
                assert (decision.ticket is None) == (decision.start_type is not StartType.COLD)
                if decision.ticket is not None:
                    assert isinstance(decision.ticket, int)
                    self.in_order(decision.ticket)
                    assert self.decide(decision.ticket) == decision.version
                    self.warming[decision.isolate] = (decision.version, decision.ticket)
                else:
                    self.warming[decision.isolate] = (decision.version, None)
            elif isinstance(decision, Use):
                assert isinstance(decision.ticket, int)
                assert decision.isolate in self.idle, "gave away an isolate that is not idle"
                self.in_order(decision.ticket)
                version = self.decide(decision.ticket)
                assert self.idle.pop(decision.isolate) == version
                self.runs(decision.isolate, version, decision.ticket)
                assert (decision.start_type is StartType.WARM) == (self.uses[decision.isolate] > 1)
            elif isinstance(decision, Fail):
                assert isinstance(decision.ticket, int)
                version = self.decide(decision.ticket)
                assert decision.why == f"{version} is broken"
                assert self.now_s < self.failed_until_s[version]
                assert not self.residents(version), "failed beside an isolate that works"
            else:
                assert isinstance(decision.ticket, int)
                self.decide(decision.ticket)

    def runs(self, isolate: int, version: str, ticket: int) -> None:
        self.running[isolate] = (version, ticket)
        self.uses[isolate] = self.uses.get(isolate, 0) + 1
        assert self.uses[isolate] <= (self.REUSE[version].requests_max or 10**9), "used more often than it may be"

    def rests(self, isolate: int, version: str) -> None:
        self.idle[isolate] = version
        self.idle_since_s[isolate] = self.now_s

    def in_order(self, ticket: int) -> None:
        line = next(line for line in self.waiting.values() if ticket in line)
        assert line[0] == ticket, "overtaken in line"

    @rule(version=st.sampled_from("abcd"), hint=st.sampled_from(ColdCause))
    def request(self, version: str, hint: ColdCause) -> None:
        self.tickets += 1
        self.waiting.setdefault(version, []).append(self.tickets)
        decisions = self.residency.requested(
            self.tickets, version, hint, self.now_s, self.REUSE[version], at_home=version in self.HOMES
        )
        for decision in decisions:
            if isinstance(decision, Shed):
                assert decision.ticket == self.tickets, "shed one that had a place"
        self.carry_out(decisions)

    @rule(version=st.sampled_from("abcd"))
    def prewarm(self, version: str) -> None:
        running = {i for i, (v, _) in self.running.items() if v == version}
        had = bool(set(self.residents(version)) - (running if self.REUSE[version].requests_max == 1 else set()))
        at_home = version in self.HOMES
        decisions = self.residency.prewarm(
            version, StartType.PREWARM, FIRST, self.now_s, self.REUSE[version], at_home=at_home
        )
        assert not (had and decisions)
        if not at_home:
            gone = [d.version for d in decisions if isinstance(d, Close)]
            assert not self.HOMES.intersection(gone), "a home went for a copy that nobody asked for"
        self.carry_out(decisions)

    @precondition(lambda self: self.warming)
    @rule(data=st.data())
    def started(self, data: st.DataObject) -> None:
        self.start_ends(data.draw(st.sampled_from(sorted(self.warming))), works=True)

    @precondition(lambda self: self.warming)
    @rule(data=st.data())
    def start_fails(self, data: st.DataObject) -> None:
        self.start_ends(data.draw(st.sampled_from(sorted(self.warming))), works=False)

    def start_ends(self, isolate: int, *, works: bool) -> None:
        version, ticket = self.warming.pop(isolate)
        if not works:
            self.failed_until_s[version] = self.now_s + self.LIMITS.failure_remembered_s
            self.carry_out(self.residency.start_failed(isolate, f"{version} is broken", self.now_s))
            return
        if ticket is None:
            self.rests(isolate, version)
        else:
            self.runs(isolate, version, ticket)
        self.carry_out(self.residency.started(isolate, 7.0, self.now_s, memory_bytes=isolate % 3 * 200))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), keep=st.booleans())
    def released(self, data: st.DataObject, keep: bool) -> None:
        self.run_ends(data.draw(st.sampled_from(sorted(self.running))), keep=keep)

    def run_ends(self, isolate: int, *, keep: bool) -> None:
        version, _ = self.running.pop(isolate)
        decisions = self.residency.released(isolate, keep=keep, now_s=self.now_s)
        kept = isolate not in closed(decisions[:1])
        used_up = self.uses[isolate] == self.REUSE[version].requests_max
        assert kept <= (keep and not used_up)
        if kept or (decisions[0] == Close(isolate, version, last=True) and keep and not used_up):
            self.rests(isolate, version)
            self.carry_out(decisions)
        else:
            self.carry_out(decisions, gone=isolate)

    @precondition(lambda self: any(self.waiting.values()))
    @rule(data=st.data())
    def gives_up(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(t for line in self.waiting.values() for t in line)))
        version = next(v for v, line in self.waiting.items() if ticket in line)
        assert self.residency.gave_up(ticket, version)
        self.decide(ticket)

    @rule(memory_bytes=st.integers(0, 3_000))
    def pressure(self, memory_bytes: int) -> None:
        self.over_memory = memory_bytes > self.LIMITS.memory_bytes_max
        self.carry_out(self.residency.pressure(memory_bytes, self.now_s))

    @rule(seconds=st.floats(0.1, 4.0))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.carry_out(self.residency.tick(self.now_s))
        for isolate, version in self.idle.items():
            idle_s = self.REUSE[version].idle_s
            assert idle_s is None or self.now_s < self.idle_since_s[isolate] + idle_s, "kept too long"

    @rule(version=st.sampled_from("abcd"))
    def drop(self, version: str) -> None:
        """A version goes while nothing of it warms or runs; the condemned have a story of their own."""
        if all(v != version for v, _ in [*self.warming.values(), *self.running.values()]):
            self.carry_out(self.residency.drop(version, self.now_s))
            assert not self.residents(version)

    @invariant()
    def bounds_hold(self) -> None:
        state, limits = repr(self.residency), self.LIMITS
        assert len(self.residency) == len(self.residents()) <= limits.isolates_max, state
        assert self.residency.queued == sum(map(len, self.waiting.values())) <= limits.queued_max, state
        for version, line in self.waiting.items():
            assert len(line) <= limits.queue_max
            assert len(self.residents(version)) <= limits.siblings_max
            starting = [v for v, _ in self.warming.values() if v == version]
            assert len(starting) <= 1, "starting is single flight"
        assert set(self.residency._versions) == {v for v in "abcd" if self.residents(v) or self.waiting.get(v)}, state
        spares = [i for i, v in self.idle.items() if self.REUSE[v].requests_max == 1]
        assert self.residency.spares == len(spares), state
        assert not any(self.uses.get(i) for i in spares), "a spare that has served"
        assert self.residency.starts[StartType.COLD] == sum(self.residency.cold_starts.values())
        waiting = {StartType.PREWARM: 0, StartType.PRELOAD: 0}
        for resident in self.residency._residents.values():
            if resident.start_type is not StartType.COLD and not resident.uses:
                waiting[resident.start_type] += 1
        for start_type, wasted in self.residency.wasted.items():
            assert wasted + waiting[start_type] <= self.residency.starts[start_type], state
        assert self.residency._room.isolates == len(self.residency), state
        assert len(self.residency._room._order) == len(self.idle), state
        assert self.residency.warm_versions() == {v for v, _ in self.running.values()} | set(self.idle.values())

    @invariant()
    def nobody_waits_beside_a_free_place(self) -> None:
        for version, line in self.waiting.items():
            if not line:
                continue
            assert version not in self.idle.values(), "waits beside an idle isolate"
            assert self.residents(version), "waits for nobody"
            warming = any(v == version for v, _ in self.warming.values())
            room = (len(self.residents()) < self.LIMITS.isolates_max and not self.over_memory) or bool(self.idle)
            siblings = len(self.residents(version)) < self.LIMITS.siblings_max
            # After a failure nothing starts for seconds, and what comes next looks again.
            assert warming or not room or not siblings or version in self.failed_until_s, "waits for nothing"

    def teardown(self) -> None:
        """When all that runs ends, nobody is left waiting."""
        for _ in range(10_000):
            if self.warming:
                self.start_ends(min(self.warming), works=True)
            elif self.running:
                self.run_ends(min(self.running), keep=self.now_s < 50)
            else:
                break
        assert not any(self.waiting.values()), "nobody works and somebody waits"
        assert self.decided == set(range(1, self.tickets + 1))


#: The same walks every time, unless a seed asks for others: EVERWARM_TEST_SEED=1 pytest ...
SEED = int(os.environ.get("EVERWARM_TEST_SEED") or 0)
print(f"EVERWARM_TEST_SEED={SEED}")
TestHostOfIsolates = seed(SEED)(HostOfIsolates.TestCase) if SEED else HostOfIsolates.TestCase
TestHostOfIsolates.settings = settings(
    max_examples=80, stateful_step_count=50, deadline=None, derandomize=not SEED, phases=[Phase.generate],
    print_blob=True,
)  # fmt: skip
