"""Which isolates live in one host: whom to use, to start, to let go. Pure.

    COLD ──start──► WARMING ──started──► IDLE ⇄ BUSY ──condemned / killed / used up──► GONE
                       └──failed──► GONE   └──evicted / unused too long──► GONE

Requests come as *tickets*. ``Residency`` never acts: every method returns decisions, and the host carries them out
outside its lock. A ticket gets, exactly once, one of ``Use`` (run on that isolate), ``Start`` (start that isolate, on
the ticket's own thread, then run), ``Fail`` or ``Shed``; until then it waits in line.

Rules:

* an isolate runs one request at a time, and belongs to one version;
* starting is single flight per version: while one starts, the others wait for it. When it is there and others still
  wait, the first of them starts a sibling at once, up to ``siblings_max``;
* lines are first in, first out, and bounded. When room comes free in a full house, versions whose lines wait for it
  take turns, so that a long line does not keep a short one waiting;
* an isolate is let go after as many requests, or as many seconds without one, as its version's ``Reuse`` says;
* of a version whose isolates serve one request each, *spares* are kept: started ahead, as soon as a request took one,
  as many as were in use at once lately. A spare never takes the place of another isolate, and when there are too many
  of them the one that waited longest goes;
* eviction takes idle isolates only, the cheapest to lose first (see ``_worth``);
* a house whose memory is over its limit starts an isolate only in the place of another: of an idle one, which is
  evicted, or of one that went by itself since memory was measured. An empty house may always start one;
* a failed start is remembered for seconds, so that a broken worker costs one start in a while and not one a request.
  It fails only those whom no other isolate of the version can serve: a sibling may fail for the machine's sake.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from actors.decision import Close, Decision, Fail, Shed, Start, Use
from actors.exchange import ColdCause, StartType
from actors.resident import Demand, Household, Resident, State
from actors.score_heap import ScoreHeap
from actors.worker import REUSE_DEFAULT, Reuse

_MIB = 1 << 20
#: What an isolate counts with while neither it nor the host has been measured: a small guest's memory.
_BYTES_UNMEASURED = _MIB


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
    #: Spares of one version: a burst beyond it starts its own, which costs what it would cost without spares.
    spares_per_version_max: int = 4
    #: Spares of all versions: an eighth of the house, so that versions that keep their isolates have the rest.
    spares_max: int = 256
    #: How long a peak of requests at once counts, at least; at most twice as long.
    demand_window_s: float = 10.0
    #: Closed at one tick for being unused too long; a tick holds the host's lock, and the next one goes on.
    closed_per_tick_max: int = 64
    #: Evicted at one measurement of memory, for the same reason. The next one, half a second later, goes on.
    evicted_at_once_max: int = 256
    #: Requests of a version that count for its chance of being asked again. Beyond it the chance is as good as
    #: certain; and a version that was busy once is outlived after so many turnovers of the house, not never.
    uses_counted_max: int = 64


class Residency:
    """The isolates of one host."""

    def __init__(self, limits: ResidencyLimits) -> None:
        self.limits = limits
        self._residents: dict[int, Resident] = {}
        self._versions: dict[str, Household] = {}
        self._lines: OrderedDict[str, None] = OrderedDict()  # versions with somebody in line, by whose turn it is
        self._idle_by_worth = ScoreHeap()
        self._idle_by_expiry = ScoreHeap()
        self._spares: OrderedDict[int, None] = OrderedDict()  # idle ones, the one that waited longest first
        self._spares_warming = 0
        self._failures: dict[str, tuple[float, object]] = {}
        self._next_cause: OrderedDict[str, ColdCause] = OrderedDict()
        self._last_isolate = 0
        self._over_memory = False
        self._gone = 0  # isolates that went since memory was measured, and whose places nobody took
        self._inflation = 0.0
        self._average_bytes = _BYTES_UNMEASURED
        self.queued = 0
        self.starts: dict[StartType, int] = {t: 0 for t in StartType if t is not StartType.WARM}
        self.cold_starts: dict[ColdCause, int] = dict.fromkeys(ColdCause, 0)
        self.evictions = 0
        self.used_up = 0
        self.expired = 0

    # --------------------------------------------------------------------------------------------------- events

    def requested(
        self, ticket: Hashable, version: str, hint: ColdCause, now_s: float, reuse: Reuse = REUSE_DEFAULT
    ) -> list[Decision]:
        """A request came for ``version``. ``hint``: the cause, should this be the version's first start here."""
        failure = self._failure(version, now_s)
        house = self._household(version, reuse)
        if house.idle:
            return [self._use(ticket, house, now_s), *self._start_spare(house, version, now_s)]
        if failure is not None and not house.residents:
            self._forget_if_empty(version)
            return [Fail(ticket, failure[1])]
        if not house.line and failure is None and not house.warming and self._room(house):
            return [*self._make_room(), self._start(ticket, house, version, StartType.COLD, hint, now_s)]
        decisions = self._start_sibling(house, version, now_s)  # whoever is in line comes first
        hopeless = not house.residents  # nobody of this version will come free, and there is no room to start one
        if hopeless or len(house.line) >= self.limits.queue_max or self.queued >= self.limits.queued_max:
            self._forget_if_empty(version)
            return [*decisions, Shed(ticket)]
        house.line.append(ticket)
        self._lines[version] = None
        self.queued += 1
        house.demand.note(house.in_use, now_s)
        return decisions

    def prewarm(
        self, version: str, start_type: StartType, hint: ColdCause, now_s: float, reuse: Reuse = REUSE_DEFAULT
    ) -> list[Decision]:
        """A request for ``version`` is likely: start one isolate if there is none that it could have."""
        if self._failure(version, now_s) is not None:
            return []
        house = self._household(version, reuse)
        awaited = house.idle or house.warming if house.single else house.residents
        if awaited or not self._room(house):
            self._forget_if_empty(version)
            return []
        return [*self._make_room(), self._start(None, house, version, start_type, hint, now_s)]

    def started(self, isolate: int, cost_ms: float, now_s: float, *, memory_bytes: int = 0) -> list[Decision]:
        """The start succeeded. Its ticket, if it has one, goes on to use it without being told."""
        resident, house = self._warmed(isolate)
        resident.start_cost_ms = max(cost_ms, 0.1)
        resident.memory_bytes = memory_bytes
        decisions: list[Decision] = []
        if resident.ticket is not None:
            resident.state = State.BUSY
            resident.uses = 1
            house.uses += 1
        elif resident.condemned:
            decisions.append(self._close(resident, ColdCause.DEPLOY))
        else:
            self._rest(resident, house, now_s)
            decisions += self._serve_line(house, resident.version, now_s)
        return decisions + self._go_on(house, resident.version, now_s)

    def start_failed(self, isolate: int, why: object, now_s: float) -> list[Decision]:
        """The start failed: so do all that wait for nothing else, and those who come in the next seconds."""
        resident, house = self._warmed(isolate)
        del self._residents[isolate]
        self._gone += 1
        house.residents.discard(isolate)
        if len(self._failures) >= self.limits.causes_max:
            self._failures.clear()
        self._failures[resident.version] = (now_s + self.limits.failure_remembered_s, why)
        return self._go_on(house, resident.version, now_s)

    def released(self, isolate: int, *, keep: bool, now_s: float, memory_bytes: int = 0) -> list[Decision]:
        """A request on ``isolate`` is over. ``keep``: it may serve again, as far as its request is concerned."""
        resident = self._residents[isolate]
        house = self._versions[resident.version]
        resident.ticket = None
        resident.memory_bytes = memory_bytes or resident.memory_bytes
        used_up = house.reuse.requests_max is not None and resident.uses >= house.reuse.requests_max
        if not keep or resident.condemned or used_up:
            self.used_up += used_up and keep
            decisions: list[Decision] = [self._close(resident, ColdCause.CONDEMNED)]
        else:
            self._rest(resident, house, now_s)
            decisions = self._serve_line(house, resident.version, now_s)
        return decisions + self._go_on(house, resident.version, now_s)

    def gave_up(self, ticket: Hashable, version: str) -> bool:
        """A ticket no longer waits. False when it is not in line: its decision is on the way."""
        house = self._versions.get(version)
        if house is None or ticket not in house.line:
            return False
        house.line.remove(ticket)
        self._left_line(house, version)
        self._forget_if_empty(version)
        return True

    def pressure(self, memory_bytes: int, now_s: float) -> list[Decision]:
        """The host measured its memory: evict idle isolates until it should fit.

        An isolate that has not been measured counts with the average of the house.
        """
        over_bytes = memory_bytes - self.limits.memory_bytes_max
        self._over_memory = over_bytes > 0
        if self._residents:
            self._average_bytes = max(1, memory_bytes // len(self._residents))
        decisions: list[Decision] = []
        while over_bytes > 0 and len(decisions) < self.limits.evicted_at_once_max:
            first = self._idle_by_worth.first()
            if first is None:
                break
            over_bytes -= self._residents[first[1]].memory_bytes or self._average_bytes
            decisions.append(self._evict(first[1]))
        self._gone = 0
        return decisions + self._start_others(now_s)

    def tick(self, now_s: float) -> list[Decision]:
        """Time passed: close isolates that were unused for longer than their version allows, a few at a time."""
        decisions: list[Decision] = []
        while len(decisions) < self.limits.closed_per_tick_max:
            first = self._idle_by_expiry.first()
            if first is None or first[0] > now_s:
                break
            resident = self._residents[first[1]]
            self.expired += 1
            decisions.append(self._close(resident, ColdCause.EVICTED))
            self._forget_if_empty(resident.version)
        return decisions + self._start_others(now_s) if decisions else []

    def drop(self, version: str, now_s: float) -> list[Decision]:
        """The version is no longer deployed: close its idle isolates, condemn the rest."""
        house = self._versions.get(version)
        if house is None:
            return []
        house.dropped = True
        for isolate in house.residents:
            self._residents[isolate].condemned = True
        idle = list(house.idle)
        decisions: list[Decision] = [self._close(self._residents[isolate], ColdCause.DEPLOY) for isolate in idle]
        self._forget_if_empty(version)
        return decisions + self._start_others(now_s)

    # ------------------------------------------------------------------------------------------- starting and using

    def _use(self, ticket: Hashable, house: Household, now_s: float) -> Use:
        resident = self._residents[house.idle[-1]]  # the one that was used last: the others may grow old
        self._rouse(resident, house)
        start_type = StartType.WARM if resident.uses else resident.start_type
        resident.state = State.BUSY
        resident.ticket = ticket
        resident.uses += 1
        house.uses += 1
        house.demand.note(house.in_use, now_s)
        return Use(ticket, resident.isolate, start_type)

    def _start(
        self, ticket: Hashable | None, house: Household, version: str, start_type: StartType, hint: ColdCause,
        now_s: float,
    ) -> Start:  # fmt: skip
        self._last_isolate += 1
        self._gone = max(0, self._gone - 1)
        isolate = self._last_isolate
        cause = ColdCause.SIBLING if house.residents else self._next_cause.pop(version, hint)
        self._residents[isolate] = Resident(isolate, version, State.WARMING, start_type, cause, ticket)
        house.residents.add(isolate)
        self._versions[version] = house  # its last isolate may have gone, and the version with it, a moment ago
        house.warming += 1
        self.starts[start_type] += 1
        if start_type is StartType.COLD:
            self.cold_starts[cause] += 1
        if ticket is None:
            house.ahead += 1
            self._spares_warming += house.single
        else:
            house.dropped = False  # somebody asks for it all the same
            house.demand.note(house.in_use, now_s)
        return Start(ticket, isolate, version, start_type, cause)

    def _warmed(self, isolate: int) -> tuple[Resident, Household]:
        """A start is over, one way or the other."""
        resident = self._residents[isolate]
        house = self._versions[resident.version]
        house.warming -= 1
        if resident.ticket is None:
            house.ahead -= 1
            self._spares_warming -= house.single
        return resident, house

    def _go_on(self, house: Household, version: str, now_s: float) -> list[Decision]:
        """Something changed for a version: what its line, its spares and the lines of others may do now."""
        decisions: list[Decision] = []
        if self._over_memory or len(self._residents) >= self.limits.isolates_max - 1:
            decisions += self._start_others(now_s)  # its own line among them, when it is its turn
        decisions += self._start_sibling(house, version, now_s)
        decisions += self._start_spare(house, version, now_s)
        self._forget_if_empty(version)
        return decisions

    def _start_sibling(self, house: Household, version: str, now_s: float) -> list[Decision]:
        """Others wait and nothing is on its way to them: let the first of them start one more.

        After a failed start they wait for the isolates there are; when there are none, they fail with it.
        """
        failure = self._failure(version, now_s)
        if failure is not None:
            failed: list[Decision] = []
            while house.line and not house.residents:
                failed.append(Fail(self._next_in_line(house, version), failure[1]))
            return failed
        if not house.line or house.warming or house.idle or not self._room(house):
            return []
        room = self._make_room()
        ticket = self._next_in_line(house, version)
        return [*room, self._start(ticket, house, version, StartType.COLD, ColdCause.SIBLING, now_s)]

    def _start_others(self, now_s: float) -> list[Decision]:
        """Something came free in a full house: versions whose lines waited for room start their siblings, in turn.

        Elsewhere a line waits for an isolate of its own version only, and there is nothing to look for.
        """
        decisions: list[Decision] = []
        for version in list(self._lines):
            if self._is_full and not self._idle_by_worth:
                break
            house = self._versions[version]
            begun = self._start_sibling(house, version, now_s)
            if begun and version in self._lines:
                self._lines.move_to_end(version)
            self._forget_if_empty(version)
            decisions += begun
        return decisions

    def _start_spare(self, house: Household, version: str, now_s: float) -> list[Decision]:
        """One more isolate for requests to come, if the version wants spares and there is room that nobody else has."""
        if not house.single or house.dropped or house.line or house.warming or self._is_full:
            return []
        wanted = max(1, min(house.demand.peak(now_s), self.limits.spares_per_version_max))
        if len(house.idle) >= wanted or len(house.residents) >= self.limits.siblings_max:
            return []
        if self._failure(version, now_s) is not None:
            return []
        decisions: list[Decision] = []
        if len(self._spares) + self._spares_warming >= self.limits.spares_max:
            if not self._spares:
                return []
            decisions.append(self._evict(next(iter(self._spares))))
        return [*decisions, self._start(None, house, version, StartType.PRELOAD, ColdCause.CONDEMNED, now_s)]

    def _failure(self, version: str, now_s: float) -> tuple[float, object] | None:
        """The failed start of ``version`` that is still remembered."""
        failure = self._failures.get(version)
        if failure is not None and failure[0] <= now_s:
            del self._failures[version]
            return None
        return failure

    # ------------------------------------------------------------------------------------------------ lines and room

    def _serve_line(self, house: Household, version: str, now_s: float) -> list[Decision]:
        decisions: list[Decision] = []
        while house.line and house.idle:
            decisions.append(self._use(self._next_in_line(house, version), house, now_s))
        return decisions

    def _next_in_line(self, house: Household, version: str) -> Hashable:
        ticket = house.line.popleft()
        self._left_line(house, version)
        return ticket

    def _left_line(self, house: Household, version: str) -> None:
        self.queued -= 1
        if not house.line:
            del self._lines[version]

    def _room(self, house: Household) -> bool:
        """Whether one more isolate of this version may be started, evicting another if need be."""
        if len(house.residents) >= self.limits.siblings_max:
            return False
        return not self._is_full or len(self._idle_by_worth) > 0

    @property
    def _is_full(self) -> bool:
        """Whether one more isolate needs another to go first: by count, or by memory as last measured."""
        if len(self._residents) >= self.limits.isolates_max:
            return True
        return self._over_memory and not self._gone and len(self._residents) > 0

    def _make_room(self) -> list[Decision]:
        first = self._idle_by_worth.first() if self._is_full else None
        return [] if first is None else [self._evict(first[1])]

    # -------------------------------------------------------------------------------------------- resting and leaving

    def _rest(self, resident: Resident, house: Household, now_s: float) -> None:
        resident.state = State.IDLE
        house.idle.append(resident.isolate)
        self._idle_by_worth.put(resident.isolate, self._worth(resident, house))
        if house.reuse.idle_s is not None:
            self._idle_by_expiry.put(resident.isolate, now_s + house.reuse.idle_s)
        if house.single:
            self._spares[resident.isolate] = None

    def _rouse(self, resident: Resident, house: Household) -> None:
        house.idle.remove(resident.isolate)
        self._idle_by_worth.discard(resident.isolate)
        self._idle_by_expiry.discard(resident.isolate)
        self._spares.pop(resident.isolate, None)

    def _worth(self, resident: Resident, house: Household) -> float:
        """What losing it would cost; the smallest is evicted first.

        GreedyDual-Size-Frequency (L. Cherkasova, HP Labs HPL-98-69R1, 1998), applied to keeping functions warm by
        A. Fuerst and P. Sharma ("FaasCache", ASPLOS 2021): cost x frequency / size, plus an inflation that rises to the
        worth of whatever was evicted last, and so makes old worth count less. Cost is the time of the start, frequency
        the requests of the version since it lives here, shared by its isolates: the last sibling of many is hardly
        missed. An isolate that waits for its first request counts as asked for once.
        """
        uses = 1 + min(house.uses, self.limits.uses_counted_max)
        size_mib = (resident.memory_bytes or self._average_bytes) / _MIB
        return self._inflation + resident.start_cost_ms * uses / len(house.residents) / size_mib

    def _evict(self, isolate: int) -> Close:
        first = self._idle_by_worth.first()
        if first is not None and first[1] == isolate:
            self._inflation = first[0]
        resident = self._residents[isolate]
        self.evictions += 1
        close = self._close(resident, ColdCause.EVICTED)
        self._forget_if_empty(resident.version)
        return close

    def _close(self, resident: Resident, cause: ColdCause) -> Close:
        """The isolate goes. Whoever calls this forgets the version when nothing else is left of it."""
        del self._residents[resident.isolate]
        self._gone += 1
        house = self._versions[resident.version]
        house.residents.discard(resident.isolate)
        if resident.state is State.IDLE:
            self._rouse(resident, house)
        last = not house.residents
        if last:
            self._next_cause[resident.version] = cause
            if len(self._next_cause) > self.limits.causes_max:
                self._next_cause.popitem(last=False)
        return Close(resident.isolate, resident.version, last)

    def _household(self, version: str, reuse: Reuse) -> Household:
        house = self._versions.get(version)
        if house is None:
            house = self._versions[version] = Household(Demand(self.limits.demand_window_s), reuse)
        return house

    def _forget_if_empty(self, version: str) -> None:
        house = self._versions.get(version)
        if house is not None and not house.residents and not house.line:
            del self._versions[version]

    # ----------------------------------------------------------------------------------------------------- views

    def cause_of(self, isolate: int) -> ColdCause:
        """Why this isolate had to be started."""
        return self._residents[isolate].cause

    def warm_versions(self) -> set[str]:
        """The versions that have a started isolate here."""
        return {r.version for r in self._residents.values() if r.state is not State.WARMING}

    @property
    def spares(self) -> int:
        """Isolates that wait for the one request which they are started for."""
        return len(self._spares)

    def __len__(self) -> int:
        return len(self._residents)

    def __repr__(self) -> str:
        states = [r.state for r in self._residents.values()]
        counts = ", ".join(f"{states.count(s)} {s.value}" for s in State)
        return f"Residency({counts}, {self.queued} queued, {self.evictions} evicted)"
