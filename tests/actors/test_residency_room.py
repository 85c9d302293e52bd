"""Who makes room in a full house, for whom, and who takes the place."""

import pytest
from houses import FIRST, MIB, ask, busy, closed, house, idle, twice

from actors.decision import Close, Shed, Start, Use
from actors.exchange import ColdCause, StartType


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
