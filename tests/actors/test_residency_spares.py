"""Isolates that serve so many requests and no more, and the spares that are started for the next one."""

from houses import FIRST, ONCE, closed, house, idle, once, spare

from actors.decision import Close, Decision, Start, Use
from actors.exchange import ColdCause, StartType
from actors.worker import Reuse


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
