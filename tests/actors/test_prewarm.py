"""One queue for all prewarms of a server: who is begun, in which order, and within which budget."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from actors.exchange import StartType
from actors.prewarm import Prewarm, PrewarmLimits, PrewarmQueue, Source

#: Enough of everything, so that a test can take one thing away.
AMPLE = PrewarmLimits(per_s=1_000.0, under_way_max=1_000, cpu_share_max=1.0)


def queue(limits: PrewarmLimits = AMPLE, cores: int = 2) -> PrewarmQueue[str]:
    return PrewarmQueue(cores, limits)


def begun(queued: PrewarmQueue[str], now_s: float) -> list[str]:
    """All that may begin now."""
    found = []
    while (prewarm := queued.next(now_s)) is not None:
        found.append(prewarm.version)
    return found


def test_what_is_offered_begins_once() -> None:
    queued = queue()
    assert queued.offer("v", Source.HOT, "recipe", 0.0)
    assert queued.offer("v", Source.SERVER_NAME, "another", 0.0)
    assert queued.next(0.0) == Prewarm("v", Source.HOT, "recipe")
    assert queued.offer("v", Source.HOT, "recipe", 0.1)  # it is under way
    assert queued.next(0.1) is None
    queued.done("v", 0.2)
    assert queued.offer("v", Source.HOT, "recipe", 0.3)  # gone again since, for all the queue knows
    assert begun(queued, 0.3) == ["v"]


def test_sources_take_turns() -> None:
    """A thousand hellos do not keep a deploy waiting."""
    queued = queue()
    for i in range(1_000):
        queued.offer(f"hello-{i}", Source.SERVER_NAME, "", 0.0)
    for i in range(2):
        queued.offer(f"deploy-{i}", Source.DEPLOY, "", 0.0)
    assert begun(queued, 0.0)[:5] == ["deploy-0", "hello-0", "deploy-1", "hello-1", "hello-2"]


def test_so_many_at_once() -> None:
    queued = queue(replace(AMPLE, under_way_max=2))
    for version in "abc":
        queued.offer(version, Source.HOT, "", 0.0)
    assert begun(queued, 0.0) == ["a", "b"]
    assert queued.wait_s(1.0) == 9.0  # until the first is given up
    queued.done("a", 1.0)
    assert begun(queued, 1.0) == ["c"]


def test_a_start_that_is_never_heard_of_is_given_up() -> None:
    queued = queue(replace(AMPLE, under_way_max=1))
    queued.offer("a", Source.HOT, "", 0.0)
    assert begun(queued, 0.0) == ["a"]
    queued.offer("b", Source.HOT, "", 0.0)
    assert begun(queued, 9.9) == []
    assert begun(queued, 10.0) == ["b"]


def test_so_many_a_second() -> None:
    queued = queue(replace(AMPLE, per_s=10.0))
    for i in range(40):
        queued.offer(f"{i}", Source.HOT, "", 0.0)
    assert len(begun(queued, 0.0)) == 10
    assert queued.wait_s(0.0) == 0.1
    assert len(begun(queued, 1.0)) == 10


def test_cpu_is_paid_off_before_the_next_begins() -> None:
    """Of two cores a twentieth is a tenth of a core: ten seconds' worth at once, and a start of 2 s costs 20 s."""
    queued = queue(replace(AMPLE, cpu_share_max=0.05))
    queued.offer("engine", Source.HOT, "", 0.0)
    assert begun(queued, 0.0) == ["engine"]
    queued.done("engine", 2.0)
    queued.offer("next", Source.HOT, "", 2.0)
    assert begun(queued, 2.0) == []
    wait_s = queued.wait_s(2.0)
    assert wait_s is not None
    assert 10.0 < wait_s < 10.1
    assert begun(queued, 2.0 + wait_s) == ["next"]


def test_one_that_was_not_started_costs_nothing() -> None:
    queued = queue(replace(AMPLE, cpu_share_max=0.05))
    queued.offer("a", Source.HOT, "", 0.0)
    begun(queued, 0.0)
    queued.done("a", 9.0, started=False)
    queued.offer("b", Source.HOT, "", 9.0)
    assert begun(queued, 9.0) == ["b"]


def test_what_comes_too_late_is_dropped() -> None:
    queued = queue(replace(AMPLE, under_way_max=0))
    queued.offer("hello", Source.SERVER_NAME, "", 0.0)
    queued.offer("moved", Source.HANDOVER, "", 0.0)
    assert begun(queued, 0.9) == []
    assert len(queued) == 2
    assert begun(queued, 1.0) == []
    assert (len(queued), queued.dropped, queued.knows("hello")) == (1, 1, False)


def test_more_than_may_wait_is_turned_away() -> None:
    queued = queue(replace(AMPLE, waiting_max=1))
    assert queued.offer("a", Source.HOT, "", 0.0)
    assert not queued.offer("b", Source.HOT, "", 0.0)
    assert queued.turned_away == 1


def test_what_is_warm_meanwhile_is_withdrawn() -> None:
    queued = queue()
    queued.offer("a", Source.HOT, "", 0.0)
    queued.withdraw("a")
    queued.withdraw("a")
    assert begun(queued, 0.0) == []
    assert queued.wait_s(0.0) is None


def test_what_a_first_request_is_told() -> None:
    types = {source: Prewarm("v", source, "").start_type for source in Source}
    assert {source for source, kind in types.items() if kind is StartType.PRELOAD} == {Source.DEPLOY, Source.HANDOVER}


#: They are started either way, now or while a client waits, and have bounds of their own.
NO_GUESSES = (Source.DEPLOY, Source.HANDOVER)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(list(Source)), st.integers(0, 30), st.floats(0.0, 0.5), st.booleans()), max_size=200
    )
)
def test_the_budget_holds_whatever_is_offered(steps: list[tuple[Source, int, float, bool]]) -> None:
    limits = PrewarmLimits(per_s=5.0, under_way_max=3, cpu_share_max=0.05, waiting_max=10)
    queued = queue(limits, cores=1)
    now_s, under_way, started, cpu_s = 0.0, dict[str, tuple[float, Source]](), 0, 0.0
    for source, name, passed_s, finish in steps:
        now_s += passed_s
        queued.offer(f"v{name}", source, "", now_s)
        while (prewarm := queued.next(now_s)) is not None:
            under_way[prewarm.version] = now_s, prewarm.source
            started += 1
            # What is over the budget was under way already when it ran out, or is no guess.
            assert prewarm.source in NO_GUESSES or cpu_s < 0.05 * (now_s + limits.cpu_burst_s) + 1e-9
        assert len(under_way) <= limits.under_way_max
        assert len(queued) <= limits.waiting_max
        if finish and under_way:
            version, (began_s, began) = under_way.popitem()
            cpu_s += 0.0 if began in NO_GUESSES else now_s - began_s
            queued.done(version, now_s)
    assert started <= limits.per_s * (now_s + 1.0)


def test_a_hand_over_of_a_thousand_workers_is_done_in_its_time() -> None:
    """A home is asked for 1,024 workers and has 30 s, 10 of which are for asking; small ones start in 10 ms each."""
    queued: PrewarmQueue[str] = PrewarmQueue(2)
    for i in range(1_024):
        queued.offer(f"{i}", Source.HANDOVER, "", 0.0)
    queued.offer("a guess", Source.HOT, "", 0.0)
    now_s, done = 0.0, 0
    while now_s < 20.0:
        while (prewarm := queued.next(now_s)) is not None:
            queued.done(prewarm.version, now_s + 0.01)
            done += 1
        now_s += 0.01
    assert done == 1_025
    queued.offer("another guess", Source.HOT, "", now_s)
    assert queued.next(now_s) is not None  # the hand-over's starts are nobody else's debt
