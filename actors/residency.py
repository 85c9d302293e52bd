"""Which isolates live in one host: whom to use, to start, to let go. Pure.

    COLD ──start──► WARMING ──started──► IDLE ⇄ BUSY ──condemned / killed──► GONE
                       └──failed──► GONE      └──evicted──► GONE

Requests come as *tickets*. ``Residency`` never acts: every method returns decisions, and the host carries them out
outside its lock. A ticket gets, exactly once, one of ``Use`` (run on that isolate), ``Start`` (start that isolate, on
the ticket's own thread, then run), ``Fail`` or ``Shed``; until then it waits in line.

Rules:

* an isolate runs one request at a time, and belongs to one version;
* starting is single flight per version: while one starts, the others wait for it. When it is there and others still
  wait, the first of them starts a sibling at once, up to ``siblings_max``;
* lines are first in, first out, and bounded;
* eviction takes idle isolates only, the cheapest to lose first: (cost to start x uses) / age since last use, the
  greedy-dual idea with recency in place of an inflation value;
* a house whose memory is over its limit starts an isolate only in the place of an idle one;
* a failed start is remembered for seconds, so that a broken worker costs one start in a while and not one a request.
  It fails only those whom no other isolate of the version can serve: a sibling may fail for the machine's sake.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum

from actors.exchange import ColdCause, StartType


@dataclass(frozen=True, slots=True)
class ResidencyLimits:
    """Bounds of one host."""

    isolates_max: int = 2_000  # three mappings each, far below the kernel's 65,530
    siblings_max: int = 16  # of one version: more than the cores only helps guests that wait for I/O
    queue_max: int = 64  # tickets in line for one version
    queued_max: int = 512  # tickets in line for all versions: as many as the host has connections
    memory_bytes_max: int = 2 << 30
    failure_remembered_s: float = 3.0
    #: Versions whose last end is remembered, to name the cause of their next cold start.
    causes_max: int = 65_536


class State(Enum):
    """Where an isolate is in its life. COLD and GONE ones are not kept."""

    WARMING = "warming"
    IDLE = "idle"
    BUSY = "busy"


@dataclass(slots=True)
class Resident:
    """One isolate as the host knows it."""

    isolate: int
    version: str
    state: State
    start_type: StartType
    cause: ColdCause
    ticket: Hashable | None
    start_cost_ms: float = 1.0
    uses: int = 0
    last_used_s: float = 0.0
    condemned: bool = False

    def worth(self, now_s: float) -> float:
        """What losing it would cost; the smallest is evicted first."""
        return self.start_cost_ms * (1 + self.uses) / (now_s - self.last_used_s + 1.0)


@dataclass(frozen=True, slots=True)
class Use:
    """Run the ticket's request on this isolate."""

    ticket: Hashable
    isolate: int
    start_type: StartType


@dataclass(frozen=True, slots=True)
class Start:
    """Start this isolate. With a ticket: on its thread, for its request; without: ahead of any."""

    ticket: Hashable | None
    isolate: int
    version: str
    start_type: StartType
    cause: ColdCause


@dataclass(frozen=True, slots=True)
class Fail:
    """The version does not start: answer the ticket with ``why``, which the host gave to ``start_failed``."""

    ticket: Hashable
    why: object


@dataclass(frozen=True, slots=True)
class Shed:
    """The line is full: answer the ticket with ``loadShed``."""

    ticket: Hashable


@dataclass(frozen=True, slots=True)
class Close:
    """Delete this isolate. ``last``: the version has no other here."""

    isolate: int
    version: str
    last: bool


Decision = Use | Start | Fail | Shed | Close


@dataclass(slots=True)
class _Version:
    residents: set[int] = field(default_factory=set)
    idle: list[int] = field(default_factory=list)
    line: deque[Hashable] = field(default_factory=deque)
    warming: int = 0


class Residency:
    """The isolates of one host."""

    def __init__(self, limits: ResidencyLimits) -> None:
        self.limits = limits
        self._residents: dict[int, Resident] = {}
        self._versions: dict[str, _Version] = {}
        self._failures: dict[str, tuple[float, object]] = {}
        self._next_cause: OrderedDict[str, ColdCause] = OrderedDict()
        self._last_isolate = 0
        self._full = False
        self.queued = 0
        self.cold_starts: dict[ColdCause, int] = dict.fromkeys(ColdCause, 0)
        self.evictions = 0

    # --------------------------------------------------------------------------------------------------- events

    def requested(self, ticket: Hashable, version: str, hint: ColdCause, now_s: float) -> list[Decision]:
        """A request came for ``version``. ``hint``: the cause, should this be the version's first start here."""
        failure = self._failure(version, now_s)
        entry = self._versions.setdefault(version, _Version())
        if entry.idle:
            return [self._use(ticket, entry.idle.pop(), now_s)]
        if failure is not None and not entry.residents:
            self._forget_if_empty(version)
            return [Fail(ticket, failure[1])]
        if not entry.line and failure is None and not entry.warming and self._room(entry):
            return [*self._make_room(now_s), self._start(ticket, entry, version, StartType.COLD, hint)]
        decisions = self._start_sibling(entry, version, now_s)  # whoever is in line comes first
        hopeless = not entry.residents  # nobody of this version will come free, and there is no room to start one
        if hopeless or len(entry.line) >= self.limits.queue_max or self.queued >= self.limits.queued_max:
            self._forget_if_empty(version)
            return [*decisions, Shed(ticket)]
        entry.line.append(ticket)
        self.queued += 1
        return decisions

    def prewarm(self, version: str, start_type: StartType, hint: ColdCause, now_s: float) -> list[Decision]:
        """A request for ``version`` is likely: start one isolate if there is none."""
        if self._failure(version, now_s) is not None:
            return []
        entry = self._versions.setdefault(version, _Version())
        if entry.residents or not self._room(entry):
            self._forget_if_empty(version)
            return []
        return [*self._make_room(now_s), self._start(None, entry, version, start_type, hint)]

    def started(self, isolate: int, cost_ms: float, now_s: float) -> list[Decision]:
        """The start succeeded. Its ticket, if it has one, goes on to use it without being told."""
        resident = self._residents[isolate]
        entry = self._versions[resident.version]
        entry.warming -= 1
        resident.start_cost_ms = max(cost_ms, 0.1)
        resident.last_used_s = now_s
        decisions: list[Decision] = []
        if resident.ticket is not None:
            resident.state = State.BUSY
            resident.uses = 1
        elif resident.condemned:
            decisions.append(self._close(resident, ColdCause.DEPLOY))
        else:
            resident.state = State.IDLE
            entry.idle.append(isolate)
            decisions += self._serve_line(entry, now_s)
        return decisions + self._start_sibling(entry, resident.version, now_s) + self._start_others(now_s)

    def start_failed(self, isolate: int, why: object, now_s: float) -> list[Decision]:
        """The start failed: so do all that wait for nothing else, and those who come in the next seconds."""
        resident = self._residents.pop(isolate)
        entry = self._versions[resident.version]
        entry.warming -= 1
        entry.residents.discard(isolate)
        if len(self._failures) >= self.limits.causes_max:
            self._failures.clear()
        self._failures[resident.version] = (now_s + self.limits.failure_remembered_s, why)
        decisions = self._start_sibling(entry, resident.version, now_s)
        self._forget_if_empty(resident.version)
        return decisions + self._start_others(now_s)

    def released(self, isolate: int, *, keep: bool, now_s: float) -> list[Decision]:
        """A request on ``isolate`` is over. ``keep``: it may serve again."""
        resident = self._residents[isolate]
        entry = self._versions[resident.version]
        resident.ticket = None
        resident.last_used_s = now_s
        if not keep or resident.condemned:
            decisions: list[Decision] = [self._close(resident, ColdCause.CONDEMNED)]
            decisions += self._start_sibling(entry, resident.version, now_s)
            self._forget_if_empty(resident.version)
            return decisions + self._start_others(now_s)
        resident.state = State.IDLE
        entry.idle.append(isolate)
        return self._serve_line(entry, now_s) + self._start_others(now_s)

    def gave_up(self, ticket: Hashable, version: str) -> bool:
        """A ticket no longer waits. False when it is not in line: its decision is on the way."""
        entry = self._versions.get(version)
        if entry is None or ticket not in entry.line:
            return False
        entry.line.remove(ticket)
        self.queued -= 1
        self._forget_if_empty(version)
        return True

    def pressure(self, memory_bytes: int, now_s: float) -> list[Decision]:
        """The host measured its memory: evict idle isolates until it should fit, by their average size."""
        over_bytes = memory_bytes - self.limits.memory_bytes_max
        self._full = over_bytes > 0
        if over_bytes <= 0 or not self._residents:
            return []
        average_bytes = max(1, memory_bytes // len(self._residents))
        return self._evict(-(-over_bytes // average_bytes), now_s)

    def drop(self, version: str, now_s: float) -> list[Decision]:
        """The version is no longer deployed: close its idle isolates, condemn the rest."""
        entry = self._versions.get(version)
        if entry is None:
            return []
        for isolate in entry.residents:
            self._residents[isolate].condemned = True
        idle = list(entry.idle)
        return [self._close(self._residents[isolate], ColdCause.DEPLOY) for isolate in idle]

    # ------------------------------------------------------------------------------------------------- the inside

    def _use(self, ticket: Hashable, isolate: int, now_s: float) -> Use:
        resident = self._residents[isolate]
        start_type = StartType.WARM if resident.uses else resident.start_type
        resident.state = State.BUSY
        resident.ticket = ticket
        resident.uses += 1
        resident.last_used_s = now_s
        return Use(ticket, isolate, start_type)

    def _start(
        self, ticket: Hashable | None, entry: _Version, version: str, start_type: StartType, hint: ColdCause
    ) -> Start:
        self._last_isolate += 1
        isolate = self._last_isolate
        cause = ColdCause.SIBLING if entry.residents else self._next_cause.pop(version, hint)
        self._residents[isolate] = Resident(isolate, version, State.WARMING, start_type, cause, ticket)
        entry.residents.add(isolate)
        entry.warming += 1
        if start_type is StartType.COLD:
            self.cold_starts[cause] += 1
        return Start(ticket, isolate, version, start_type, cause)

    def _start_sibling(self, entry: _Version, version: str, now_s: float) -> list[Decision]:
        """Others wait and nothing is on its way to them: let the first of them start one more.

        After a failed start they wait for the isolates there are; when there are none, they fail with it.
        """
        failure = self._failure(version, now_s)
        if failure is not None:
            failed: list[Decision] = []
            while entry.line and not entry.residents:
                self.queued -= 1
                failed.append(Fail(entry.line.popleft(), failure[1]))
            return failed
        if not entry.line or entry.warming or entry.idle or not self._room(entry):
            return []
        ticket = entry.line.popleft()
        self.queued -= 1
        return [*self._make_room(now_s), self._start(ticket, entry, version, StartType.COLD, ColdCause.SIBLING)]

    def _start_others(self, now_s: float) -> list[Decision]:
        """Something came free in a full house: versions whose lines waited for room start their siblings.

        Elsewhere a line waits for an isolate of its own version only, and there is nothing to look for.
        """
        decisions: list[Decision] = []
        if self.queued and len(self._residents) >= self.limits.isolates_max - 1:
            for version, entry in list(self._versions.items()):
                decisions += self._start_sibling(entry, version, now_s)
        return decisions

    def _failure(self, version: str, now_s: float) -> tuple[float, object] | None:
        """The failed start of ``version`` that is still remembered."""
        failure = self._failures.get(version)
        if failure is not None and failure[0] <= now_s:
            del self._failures[version]
            return None
        return failure

    def _serve_line(self, entry: _Version, now_s: float) -> list[Decision]:
        decisions: list[Decision] = []
        while entry.line and entry.idle:
            self.queued -= 1
            decisions.append(self._use(entry.line.popleft(), entry.idle.pop(), now_s))
        return decisions

    def _room(self, entry: _Version) -> bool:
        """Whether one more isolate of this version may be started, evicting another if need be."""
        if len(entry.residents) >= self.limits.siblings_max:
            return False
        return not self._is_full or any(v.idle for v in self._versions.values())

    @property
    def _is_full(self) -> bool:
        """Whether one more isolate needs another to go first: by count, or by memory as last measured."""
        return self._full or len(self._residents) >= self.limits.isolates_max

    def _make_room(self, now_s: float) -> list[Decision]:
        return self._evict(1, now_s) if self._is_full else []

    def _evict(self, count: int, now_s: float) -> list[Decision]:
        idle = [r for r in self._residents.values() if r.state is State.IDLE]
        idle.sort(key=lambda r: (r.worth(now_s), r.isolate))
        self.evictions += len(idle[:count])
        return [self._close(resident, ColdCause.EVICTED) for resident in idle[:count]]

    def _close(self, resident: Resident, cause: ColdCause) -> Close:
        del self._residents[resident.isolate]
        entry = self._versions[resident.version]
        entry.residents.discard(resident.isolate)
        if resident.state is State.IDLE:
            entry.idle.remove(resident.isolate)
        last = not entry.residents
        if last:
            self._next_cause[resident.version] = cause
            if len(self._next_cause) > self.limits.causes_max:
                self._next_cause.popitem(last=False)
        self._forget_if_empty(resident.version)
        return Close(resident.isolate, resident.version, last)

    def _forget_if_empty(self, version: str) -> None:
        entry = self._versions.get(version)
        if entry is not None and not entry.residents and not entry.line:
            del self._versions[version]

    # ----------------------------------------------------------------------------------------------------- views

    def cause_of(self, isolate: int) -> ColdCause:
        """Why this isolate had to be started."""
        return self._residents[isolate].cause

    def warm_versions(self) -> set[str]:
        """The versions that have a started isolate here."""
        return {r.version for r in self._residents.values() if r.state is not State.WARMING}

    def __len__(self) -> int:
        return len(self._residents)

    def __repr__(self) -> str:
        states = [r.state for r in self._residents.values()]
        counts = ", ".join(f"{states.count(s)} {s.value}" for s in State)
        return f"Residency({counts}, {self.queued} queued, {self.evictions} evicted)"
