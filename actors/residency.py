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
  take turns (``lines.py``);
* an isolate is let go after as many requests, or as many seconds without one, as its version's ``Reuse`` says;
* of a version whose isolates serve one request each, *spares* are kept: started ahead, as soon as a request took one,
  as many as were in use at once lately. A spare never takes the place of another isolate, and when there are too many
  of them the one that waited longest goes;
* eviction takes idle isolates only, the cheapest to lose first (``eviction.py``);
* a house whose memory is over its limit starts an isolate only in the place of another: of an idle one, which is
  evicted, or of one that went by itself since memory was measured. An empty house may always start one;
* what is started ahead of requests is a guess. In a full house it takes the place of another only if that one is worth
  less, and never a home's place for a copy. What went without having been used is counted;
* a failed start is remembered for seconds (``past_starts.py``). It fails only those whom no other isolate of the
  version can serve: a sibling may fail for the machine's sake.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field, replace

from actors.decision import Close, Decision, Fail, Shed, Start, Use
from actors.eviction import EvictionLimits
from actors.exchange import ColdCause, StartType
from actors.lines import LineLimits, Lines
from actors.past_starts import Cost, PastLimits, PastStarts
from actors.resident import Demand, Household, Resident, State
from actors.room import Room, RoomLimits
from actors.score_heap import ScoreHeap
from actors.spares import SpareLimits, Spares
from actors.worker import REUSE_DEFAULT, Reuse


@dataclass(frozen=True, slots=True)
class ResidencyLimits:
    """Bounds of one host."""

    isolates_max: int = 2_000  # three mappings each, far below the kernel's 65,530
    siblings_max: int = 16  # of one version: more than the cores only helps guests that wait for I/O
    queue_max: int = 64  # tickets in line for one version
    queued_max: int = 512  # tickets in line for all versions: as many as the host has connections
    memory_bytes_max: int = 2 << 30
    failure_remembered_s: float = 3.0
    #: Versions whose last end and whose costs are remembered.
    versions_remembered_max: int = 65_536
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
    eviction: EvictionLimits = field(default_factory=EvictionLimits)


class Residency:
    """The isolates of one host."""

    def __init__(self, limits: ResidencyLimits) -> None:
        self.limits = limits
        self._residents: dict[int, Resident] = {}
        self._versions: dict[str, Household] = {}
        self._lines = Lines(LineLimits(limits.queue_max, limits.queued_max))
        self._past = PastStarts(PastLimits(limits.versions_remembered_max, limits.failure_remembered_s))
        self._room = Room(RoomLimits(limits.isolates_max, limits.memory_bytes_max, limits.eviction))
        self._spares = Spares(SpareLimits(limits.spares_per_version_max, limits.spares_max))
        self._idle_by_expiry = ScoreHeap()
        self._last_isolate = 0
        self.starts: dict[StartType, int] = {t: 0 for t in StartType if t is not StartType.WARM}
        self.cold_starts: dict[ColdCause, int] = dict.fromkeys(ColdCause, 0)
        self.evictions = 0
        self.used_up = 0
        self.expired = 0
        #: Started ahead, and gone without one request; and not started, since nobody was worth less.
        self.wasted: dict[StartType, int] = {t: 0 for t in StartType if t not in (StartType.WARM, StartType.COLD)}
        self.prewarms_declined = 0
        #: Whether the last measurement found too much, and evicting all that was idle does not make up for it.
        self.is_short_of_memory = False

    # --------------------------------------------------------------------------------------------------- events

    def have_memory(self, bytes_max: int) -> None:
        """The house has another limit of memory from now on."""
        self.limits = replace(self.limits, memory_bytes_max=bytes_max)
        self._room.limits = replace(self._room.limits, memory_bytes_max=bytes_max)

    def requested(
        self, ticket: Hashable, version: str, hint: ColdCause, now_s: float, reuse: Reuse = REUSE_DEFAULT, *,
        at_home: bool = False, paid: bool = True,
    ) -> list[Decision]:  # fmt: skip
        """A request came for ``version``. ``hint``: the cause, should this be the version's first start here.

        ``at_home``: this machine is the worker's home, so that whoever asks for it anywhere is served here. ``paid``:
        its plan. Instead of one who pays, one who does not and who is in line is shed.
        """
        failure = self._past.failure(version, now_s)
        house = self._household(version, reuse)
        house.at_home = at_home
        if house.idle:
            return [self._use(ticket, house, now_s), *self._start_spare(house, version, now_s)]
        if failure is not None and not house.residents:
            self._forget_if_empty(version)
            return [Fail(ticket, failure.why)]
        waiting = self._lines.length(version)
        if not waiting and failure is None and not house.warming and self._may_grow(house):
            return [*self._make_room(now_s), self._start(ticket, house, version, StartType.COLD, hint, now_s)]
        decisions = self._start_sibling(house, version, now_s)  # whoever is in line comes first
        hopeless = not house.residents  # nobody of this version will come free, and there is no room to start one
        if hopeless or not self._lines.has_place(version):
            gone = self._lines.give_way() if paid and self._lines.length(version) < self.limits.queue_max else None
            if gone is None:
                self._forget_if_empty(version)
                return [*decisions, Shed(ticket)]
            decisions.append(Shed(gone[1]))
            self._forget_if_empty(gone[0])
        self._lines.join(version, ticket, paid=paid)
        self._note_demand(house, version, now_s)
        return decisions

    def claim(self, ticket: Hashable, version: str, now_s: float, *, at_home: bool) -> list[Decision]:
        """A guest of this very host calls ``version``: ``Use`` of an isolate that is idle, first of all decisions, or
        nothing at all. It waits in no line and starts nothing: whoever wants that asks as everybody does."""
        house = self._versions.get(version)
        if house is None or not house.idle:
            return []
        house.at_home = at_home
        return [self._use(ticket, house, now_s), *self._start_spare(house, version, now_s)]

    def prewarm(
        self, version: str, start_type: StartType, hint: ColdCause, now_s: float, reuse: Reuse = REUSE_DEFAULT, *,
        at_home: bool = False, expected: int = 0,
    ) -> list[Decision]:  # fmt: skip
        """A request for ``version`` is likely: start one isolate if there is none that it could have.

        In a full house only if that is worth more than what would have to go. ``expected``: requests while an isolate
        lives here, as far as is known; they count as if they had come, or it would go before they can.
        """
        if self._past.failure(version, now_s) is not None:
            return []
        house = self._household(version, reuse)
        house.at_home = at_home
        awaited = house.idle or house.warming if house.single else house.residents
        if awaited or not self._may_grow(house):
            self._forget_if_empty(version)
            return []
        house.uses = max(house.uses, expected)
        decisions: list[Decision] = []
        if self._room.is_full:
            going = self._room.goes_for(house, self._past.expected(version))
            if going is None:
                self.prewarms_declined += 1
                self._forget_if_empty(version)
                return []
            decisions.append(self._evict(going, now_s))
        return [*decisions, self._start(None, house, version, start_type, hint, now_s)]

    def started(self, isolate: int, cost_ms: float, now_s: float, *, memory_bytes: int = 0) -> list[Decision]:
        """The start succeeded. Its ticket, if it has one, goes on to use it without being told."""
        resident, house = self._warmed(isolate)
        resident.start_cost_ms = cost_ms
        resident.memory_bytes = memory_bytes
        self._past.measured(resident.version, cost_ms, memory_bytes)
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
        self._room.left(isolate)
        house.residents.discard(isolate)
        self._past.failed(resident.version, why, now_s)
        return self._go_on(house, resident.version, now_s)

    def released(self, isolate: int, *, keep: bool, now_s: float, memory_bytes: int = 0) -> list[Decision]:
        """A request on ``isolate`` is over. ``keep``: it may serve again, as far as its request is concerned."""
        resident = self._residents[isolate]
        house = self._versions[resident.version]
        resident.ticket = None
        if memory_bytes:
            resident.memory_bytes = memory_bytes
            self._past.measured(resident.version, resident.start_cost_ms, memory_bytes)
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
        if not self._lines.leave(version, ticket):
            return False
        self._forget_if_empty(version)
        return True

    def pressure(self, memory_bytes: int, now_s: float) -> list[Decision]:
        """The host measured its memory: evict idle isolates until it should fit."""
        over_bytes = self._room.measured(memory_bytes)
        decisions: list[Decision] = []
        while over_bytes > 0 and len(decisions) < self.limits.evicted_at_once_max:
            first = self._room.first_to_go()
            if first is None:
                break
            over_bytes -= self._room.bytes_of(self._residents[first])
            decisions.append(self._evict(first, now_s))
        self.is_short_of_memory = over_bytes > 0 and self._room.first_to_go() is None
        self._room.settled()
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
        self._note_demand(house, resident.version, now_s)
        return Use(ticket, resident.isolate, start_type)

    def _start(
        self, ticket: Hashable | None, house: Household, version: str, start_type: StartType, hint: ColdCause,
        now_s: float,
    ) -> Start:  # fmt: skip
        self._last_isolate += 1
        self._room.entered()
        isolate = self._last_isolate
        cause = ColdCause.SIBLING if house.residents else self._past.cause(version, hint)
        self._residents[isolate] = Resident(isolate, version, State.WARMING, start_type, cause, ticket)
        house.residents.add(isolate)
        self._versions[version] = house  # its last isolate may have gone, and the version with it, a moment ago
        house.warming += 1
        self.starts[start_type] += 1
        if start_type is StartType.COLD:
            self.cold_starts[cause] += 1
        if ticket is None:
            house.ahead += 1
            self._spares.warming += house.single
        else:
            house.dropped = False  # somebody asks for it all the same
            self._note_demand(house, version, now_s)
        return Start(ticket, isolate, version, start_type, cause)

    def _warmed(self, isolate: int) -> tuple[Resident, Household]:
        """A start is over, one way or the other."""
        resident = self._residents[isolate]
        house = self._versions[resident.version]
        house.warming -= 1
        if resident.ticket is None:
            house.ahead -= 1
            self._spares.warming -= house.single
        return resident, house

    def _go_on(self, house: Household, version: str, now_s: float) -> list[Decision]:
        """Something changed for a version: what its line, its spares and the lines of others may do now."""
        decisions: list[Decision] = []
        if self._room.is_nearly_full:
            decisions += self._start_others(now_s)  # its own line among them, when it is its turn
        decisions += self._start_sibling(house, version, now_s)
        decisions += self._start_spare(house, version, now_s)
        self._forget_if_empty(version)
        return decisions

    def _start_sibling(self, house: Household, version: str, now_s: float) -> list[Decision]:
        """Others wait and nothing is on its way to them: let the first of them start one more.

        After a failed start they wait for the isolates there are; when there are none, they fail with it.
        """
        if not self._lines.length(version):
            return []
        failure = self._past.failure(version, now_s)
        if failure is not None:
            failed: list[Decision] = []
            while self._lines.length(version) and not house.residents:
                failed.append(Fail(self._lines.next(version), failure.why))
            return failed
        if house.warming or house.idle or not self._may_grow(house):
            return []
        room = self._make_room(now_s)
        ticket = self._lines.next(version)
        return [*room, self._start(ticket, house, version, StartType.COLD, ColdCause.SIBLING, now_s)]

    def _start_others(self, now_s: float) -> list[Decision]:
        """Something came free in a full house: versions whose lines waited for room start their siblings, in turn.

        Elsewhere a line waits for an isolate of its own version only, and there is nothing to look for.
        """
        decisions: list[Decision] = []
        for version in self._lines.by_turn():
            if not self._room.has_place:
                break
            house = self._versions[version]
            begun = self._start_sibling(house, version, now_s)
            if begun:
                self._lines.had_turn(version)
            self._forget_if_empty(version)
            decisions += begun
        return decisions

    def _start_spare(self, house: Household, version: str, now_s: float) -> list[Decision]:
        """One more isolate for requests to come, if the version wants spares and there is room that nobody else has."""
        if not self._spares.wanted(house, now_s) or self._lines.length(version) or self._room.is_full:
            return []
        if len(house.residents) >= self.limits.siblings_max or self._past.failure(version, now_s) is not None:
            return []
        decisions: list[Decision] = []
        if self._spares.is_full:
            oldest = self._spares.oldest
            if oldest is None:
                return []
            decisions.append(self._give_way(oldest))
        return [*decisions, self._start(None, house, version, StartType.PRELOAD, ColdCause.CONDEMNED, now_s)]

    # ------------------------------------------------------------------------------------------------ lines and room

    def _serve_line(self, house: Household, version: str, now_s: float) -> list[Decision]:
        decisions: list[Decision] = []
        while house.idle and self._lines.length(version):
            decisions.append(self._use(self._lines.next(version), house, now_s))
        return decisions

    def _note_demand(self, house: Household, version: str, now_s: float) -> None:
        house.demand.note(house.in_use + self._lines.length(version), now_s)

    def _may_grow(self, house: Household) -> bool:
        """Whether one more isolate of this version may be started, evicting another if need be."""
        return len(house.residents) < self.limits.siblings_max and self._room.has_place

    def _make_room(self, now_s: float) -> list[Decision]:
        first = self._room.first_to_go() if self._room.is_full else None
        return [] if first is None else [self._evict(first, now_s)]

    # -------------------------------------------------------------------------------------------- resting and leaving

    def _rest(self, resident: Resident, house: Household, now_s: float) -> None:
        resident.state = State.IDLE
        house.idle.append(resident.isolate)
        self._room.rests(resident, house, now_s)
        if house.reuse.idle_s is not None:
            self._idle_by_expiry.put(resident.isolate, now_s + house.reuse.idle_s)
        if house.single:
            self._spares.waits(resident.isolate)

    def _rouse(self, resident: Resident, house: Household) -> None:
        house.idle.remove(resident.isolate)
        self._room.in_use(resident.isolate)
        self._idle_by_expiry.discard(resident.isolate)
        self._spares.gone(resident.isolate)

    def _evict(self, isolate: int, now_s: float) -> Close:
        """An idle isolate goes since the house is full."""
        self._room.evicted(isolate, now_s)
        return self._give_way(isolate)

    def _give_way(self, isolate: int) -> Close:
        """An idle isolate goes for another one, which says nothing about the house."""
        resident = self._residents[isolate]
        self.evictions += 1
        close = self._close(resident, ColdCause.EVICTED)
        self._forget_if_empty(resident.version)
        return close

    def _close(self, resident: Resident, cause: ColdCause) -> Close:
        """The isolate goes. Whoever calls this forgets the version when nothing else is left of it."""
        del self._residents[resident.isolate]
        self._room.left(resident.isolate)
        house = self._versions[resident.version]
        house.residents.discard(resident.isolate)
        if resident.state is State.IDLE:
            self._rouse(resident, house)
        if resident.start_type in self.wasted and not resident.uses:
            self.wasted[resident.start_type] += 1
        last = not house.residents
        if last:
            self._past.gone(resident.version, cause)
        return Close(resident.isolate, resident.version, last)

    def _household(self, version: str, reuse: Reuse) -> Household:
        house = self._versions.get(version)
        if house is None:
            house = self._versions[version] = Household(Demand(self.limits.demand_window_s), reuse)
        return house

    def _forget_if_empty(self, version: str) -> None:
        house = self._versions.get(version)
        if house is not None and not house.residents and not self._lines.length(version):
            del self._versions[version]

    # ----------------------------------------------------------------------------------------------------- views

    def cause_of(self, isolate: int) -> ColdCause:
        """Why this isolate had to be started."""
        return self._residents[isolate].cause

    def is_warm(self, version: str) -> bool:
        """Whether ``version`` has a started isolate here."""
        house = self._versions.get(version)
        return house is not None and len(house.residents) > house.warming

    def warm_versions(self) -> set[str]:
        """The versions that have a started isolate here."""
        return {r.version for r in self._residents.values() if r.state is not State.WARMING}

    def cost_of(self, version: str) -> Cost | None:
        """What starting an isolate of ``version`` took here, and what it holds, if one ever was here."""
        return self._past.cost(version)

    def residence_s(self, now_s: float) -> float:
        """How long a copy that nobody asks lives here; ``math.inf`` while nothing ever had to go."""
        return self._room.residence_s(now_s)

    @property
    def idle_bytes(self) -> int:
        """What all idle isolates hold: as much could come free."""
        return self._room.idle_bytes

    @property
    def queued(self) -> int:
        """Tickets in line."""
        return self._lines.queued

    @property
    def spares(self) -> int:
        """Isolates that wait for the one request which they are started for."""
        return len(self._spares)

    def states(self) -> dict[str, int]:
        """How many isolates there are in each state."""
        states = [r.state for r in self._residents.values()]
        return {state.value: states.count(state) for state in State}

    def __len__(self) -> int:
        return len(self._residents)

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {state}" for state, count in self.states().items())
        return f"Residency({counts}, {self.queued} queued, {self.evictions} evicted)"
