"""Each rule of residency as a small story: who gets which isolate, who waits, and how it ends."""

import pytest
from houses import FIRST, ask, busy, house, idle

from actors.decision import Close, Decision, Fail, Shed, Start, Use
from actors.exchange import ColdCause, StartType

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
