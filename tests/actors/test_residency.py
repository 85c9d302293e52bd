"""Each rule of residency as a small story, then all of them at once as a random walk."""

from collections.abc import Iterable

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actors.exchange import ColdCause, StartType
from actors.residency import Close, Decision, Fail, Residency, ResidencyLimits, Shed, Start, Use

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


# ---------------------------------------------------------------------------------------------------- all at once


class HostOfIsolates(RuleBasedStateMachine):
    """Drives Residency as a host would, in any order, and checks every decision."""

    LIMITS = ResidencyLimits(
        isolates_max=4, siblings_max=2, queue_max=3, queued_max=5, memory_bytes_max=1_000, failure_remembered_s=3.0
    )

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
                self.running[decision.isolate] = (version, decision.ticket)
            elif isinstance(decision, Fail):
                assert isinstance(decision.ticket, int)
                version = self.decide(decision.ticket)
                assert decision.why == f"{version} is broken"
                assert self.now_s < self.failed_until_s[version]
                assert not self.residents(version), "failed beside an isolate that works"
            else:
                assert isinstance(decision.ticket, int)
                self.decide(decision.ticket)

    def in_order(self, ticket: int) -> None:
        line = next(line for line in self.waiting.values() if ticket in line)
        assert line[0] == ticket, "overtaken in line"

    @rule(version=st.sampled_from("abc"), hint=st.sampled_from(ColdCause))
    def request(self, version: str, hint: ColdCause) -> None:
        self.tickets += 1
        self.waiting.setdefault(version, []).append(self.tickets)
        decisions = self.residency.requested(self.tickets, version, hint, self.now_s)
        for decision in decisions:
            if isinstance(decision, Shed):
                assert decision.ticket == self.tickets, "shed one that had a place"
        self.carry_out(decisions)

    @rule(version=st.sampled_from("abcd"))
    def prewarm(self, version: str) -> None:
        had = bool(self.residents(version))
        decisions = self.residency.prewarm(version, StartType.PREWARM, FIRST, self.now_s)
        assert not (had and decisions)
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
            self.idle[isolate] = version
        else:
            self.running[isolate] = (version, ticket)
        self.carry_out(self.residency.started(isolate, 7.0, self.now_s))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), keep=st.booleans())
    def released(self, data: st.DataObject, keep: bool) -> None:
        self.run_ends(data.draw(st.sampled_from(sorted(self.running))), keep=keep)

    def run_ends(self, isolate: int, *, keep: bool) -> None:
        version, _ = self.running.pop(isolate)
        decisions = self.residency.released(isolate, keep=keep, now_s=self.now_s)
        kept = isolate not in closed(decisions[:1])
        assert kept <= keep
        if kept or (decisions[0] == Close(isolate, version, last=True) and keep):
            self.idle[isolate] = version
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
        self.carry_out(self.residency.pressure(memory_bytes, self.now_s))

    @rule(seconds=st.floats(0.1, 4.0))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

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
        assert self.residency.warm_versions() == {v for v, _ in self.running.values()} | set(self.idle.values())

    @invariant()
    def nobody_waits_beside_a_free_place(self) -> None:
        for version, line in self.waiting.items():
            if not line:
                continue
            assert version not in self.idle.values(), "waits beside an idle isolate"
            assert self.residents(version), "waits for nobody"
            warming = any(v == version for v, _ in self.warming.values())
            room = len(self.residents()) < self.LIMITS.isolates_max or bool(self.idle)
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


TestHostOfIsolates = HostOfIsolates.TestCase
TestHostOfIsolates.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, derandomize=True, phases=[Phase.generate]
)
