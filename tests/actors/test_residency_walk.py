"""All rules of residency at once, as a random walk."""

import os
from typing import ClassVar

from houses import FIRST, ONCE, closed
from hypothesis import Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actors.decision import Close, Decision, Fail, Shed, Start, Use
from actors.exchange import ColdCause, StartType
from actors.residency import Residency, ResidencyLimits
from actors.worker import Reuse


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
