"""Isolates that are started ahead of their requests: what they cost, and whose place they may take."""

import math

from houses import FIRST, MIB, ask, busy, house, idle, twice

from actors.decision import Close, Decision, Start
from actors.exchange import StartType
from actors.past_starts import Cost
from actors.residency import Residency


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
