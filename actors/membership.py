"""Who is in the cluster, and the ring's epochs. Pure: news and `now` in, decisions out. Times are seconds of any clock.

A server's way, and what is done on it:

    UNKNOWN ─ joins ─► JOINING ─ code in place ─► WARMING ─ warm ─► MEMBER       INSTALL, WARM, PUBLISH
    MEMBER ─ leaves ─► LEAVING ─ warm ─► DRAINING ─ nothing runs ─► GONE         WARM, PUBLISH and DRAIN, FORGET
    from everywhere ─ silent or dead ─► LOST ─ heard again ─► JOINING            PUBLISH, if it was home to anything

MEMBER and LEAVING are homes; they, and nobody else, are in the ring that is published.

**The ring changes one step at a time.** A *change* is everybody who was ready to come or go when it began: what they
take over or give up is started at its new home (WARM), and only then, or when the time for it is over, the ring is
published. Whoever gets ready meanwhile is in the next change. So what is being warmed is what will move, and three
hundred servers that start at once take two steps and not three hundred.

**A loss waits for nothing.** Nobody can warm what a dead server had, so the ring without it is published at once, and
the change under way goes on.

**Silence** is `silent_s` without a heartbeat. It is counted only while somebody listened: when `tick` itself comes
late, nobody could have been heard, and everybody is given that time. A server that can run nothing, because its hosts
are gone, is lost although it speaks. What is in doubt is taken out: a server out of the ring runs its own clients'
requests all the same, and a worker whose home moved in vain costs a cold start.

**A new ControlPlane** knows nobody. It adopts the ring that the first server to beat knows: whoever is in it is a
member as before, until it is silent. Would they join one by one, the first ring would be made of one of them alone.

**Awkward:** a server that left goes on beating until its process ends. So GONE is remembered until it has been silent
for a while; only a server that nobody remembers joins by a heartbeat alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

#: A machine of this size counts as one. It is the smallest that is rented for this, so few real ones are below it.
MEMORY_BYTES_PER_WEIGHT = 8 << 30
CORES_PER_WEIGHT = 2
#: Larger machines count as this. A crash moves a server's whole part at once, and 300 servers of it have 384,000 points
#: of the 640,000 that a ring may have.
WEIGHT_MAX = 8


def weight(memory_bytes: int, cores: int) -> int:
    """A machine's part of the ring, 1 to ``WEIGHT_MAX``: twice the weight, twice the workers.

    By what runs out first: memory decides how many isolates stay warm, cores how many of them can answer. Whole,
    because 160 points each are what spreads the load; a machine in between counts as the smaller one.
    """
    return max(1, min(memory_bytes // MEMORY_BYTES_PER_WEIGHT, cores // CORES_PER_WEIGHT, WEIGHT_MAX))


@dataclass(frozen=True, slots=True)
class MembershipLimits:
    """Bounds and times, in seconds."""

    #: A heartbeat is one small call. Every second, 300 servers cost the ControlPlane 300 of the thousand and more calls
    #: that it can take.
    beat_every_s: float = 1.0
    #: Five beats. Cores that are shared may keep a process waiting for two seconds, and being lost costs a server's
    #: workers a cold start each. A process that died is known sooner, by its broken calls.
    silent_s: float = 5.0
    #: How often the silent are looked for. With `silent_s`: who is silent is out of the ring after 5.5 s.
    tick_every_s: float = 0.5
    #: The longest that a change waits for isolates at their new homes. Those that come last are asked for least.
    warm_s_max: float = 30.0
    #: Beyond it, for what the ControlPlane does itself between WARM and PUBLISH: a last look at the code.
    settle_s_max: float = 10.0
    #: The longest that a server that leaves may finish what it runs.
    drain_s_max: float = 30.0
    #: A server that left is remembered for so long after its last beat.
    gone_kept_s: float = 15.0
    #: A lost server stays in sight of the operator for so long.
    lost_kept_s: float = 600.0
    #: As many as a ring of weight 1 each may have.
    servers_max: int = 4_000


class State(Enum):
    """Where a server is on its way."""

    UNKNOWN = "unknown"
    JOINING = "joining"  # its code is being put in place
    WARMING = "warming"  # what it will be home to is being started there
    MEMBER = "member"
    LEAVING = "leaving"  # still home; what it gives up is being started elsewhere
    DRAINING = "draining"  # home to nothing; it finishes what runs
    GONE = "gone"  # it left, and may be stopped
    LOST = "lost"  # silent, dead, or without a host


class Event(Enum):
    """What happens to one server."""

    JOIN = "join"  # it asks to be a member
    HEARD = "heard"  # it lives, and can run requests
    PLACED = "placed"  # all code is in place on it
    SETTLED = "settled"  # the change that it is in is over
    LEAVE = "leave"  # it is to go
    DRAINED = "drained"  # nothing runs there any more
    LOSE = "lose"  # silent, dead, or without a host


_HOMES = frozenset({State.MEMBER, State.LEAVING})
#: Who serves requests and hears of deploys.
_SERVING = frozenset({State.MEMBER, State.LEAVING, State.DRAINING})
_ALIVE = _SERVING | {State.JOINING, State.WARMING}


def _row(**to: State) -> dict[Event, State]:
    return {Event[name]: state for name, state in to.items()}


_UNKNOWN, _JOINING, _WARMING, _MEMBER = State.UNKNOWN, State.JOINING, State.WARMING, State.MEMBER
_LEAVING, _DRAINING, _GONE, _LOST = State.LEAVING, State.DRAINING, State.GONE, State.LOST

#: Every pair that can be. PLACED and DRAINED may come late, from work that was begun in an earlier state.
TRANSITIONS: dict[State, dict[Event, State]] = {
    _UNKNOWN: _row(JOIN=_JOINING, HEARD=_JOINING, PLACED=_UNKNOWN, LEAVE=_UNKNOWN, DRAINED=_UNKNOWN, LOSE=_UNKNOWN),
    _JOINING: _row(JOIN=_JOINING, HEARD=_JOINING, PLACED=_WARMING, LEAVE=_GONE, DRAINED=_JOINING, LOSE=_LOST),
    _WARMING: _row(
        JOIN=_WARMING, HEARD=_WARMING, PLACED=_WARMING, SETTLED=_MEMBER, LEAVE=_GONE, DRAINED=_WARMING, LOSE=_LOST
    ),
    _MEMBER: _row(JOIN=_MEMBER, HEARD=_MEMBER, PLACED=_MEMBER, LEAVE=_LEAVING, DRAINED=_MEMBER, LOSE=_LOST),
    _LEAVING: _row(
        JOIN=_LEAVING, HEARD=_LEAVING, PLACED=_LEAVING, SETTLED=_DRAINING, LEAVE=_LEAVING, DRAINED=_LEAVING, LOSE=_LOST
    ),
    _DRAINING: _row(
        JOIN=_DRAINING, HEARD=_DRAINING, PLACED=_DRAINING, LEAVE=_DRAINING, DRAINED=_GONE, LOSE=_LOST
    ),
    _GONE: _row(JOIN=_JOINING, HEARD=_GONE, PLACED=_GONE, LEAVE=_GONE, DRAINED=_GONE, LOSE=_GONE),
    _LOST: _row(JOIN=_JOINING, HEARD=_JOINING, PLACED=_LOST, LEAVE=_GONE, DRAINED=_LOST, LOSE=_LOST),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Install:
    """Put all code in place on a server; then say ``placed``."""

    server: str


@dataclass(frozen=True, slots=True)
class Warm:
    """Start at their new homes the workers whose home differs between two rings; then say ``warmed`` with ``change``.

    ``before`` and ``after`` are names with weights. ``coming`` and ``going`` are the servers that the change is about.
    """

    change: int
    before: Mapping[str, int]
    after: Mapping[str, int]
    coming: frozenset[str]
    going: frozenset[str]
    within_s: float


@dataclass(frozen=True, slots=True)
class Publish:
    """Tell everybody of the ring: names with weights."""

    epoch: int
    servers: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Drain:
    """Have a server refuse what others send it and finish what it runs; then say ``drained``."""

    server: str
    within_s: float


@dataclass(frozen=True, slots=True)
class Forget:
    """Nothing needs to be known of a server any more."""

    server: str


Decision = Install | Warm | Publish | Drain | Forget


class TooManyServers(Exception):
    """The cluster is full; the message says how full."""


@dataclass(frozen=True, slots=True)
class Member:
    """A server as it is known."""

    name: str
    weight: int
    state: State
    heard_s: float  # the last news that it lives
    since_s: float  # of the state
    why: str = ""  # for a lost one


@dataclass(frozen=True, slots=True)
class _Change:
    number: int
    names: frozenset[str]
    until_s: float


class Membership:
    """Everybody, and the epoch. Each method takes news and returns what is to be done, in that order."""

    def __init__(self, epoch: int, limits: MembershipLimits = MembershipLimits()) -> None:
        """``epoch``: the next one is the first that is published. It must be later than any of an earlier life."""
        self.epoch = epoch
        self.limits = limits
        self._members: dict[str, Member] = {}
        self._published: dict[str, int] = {}
        self._change: _Change | None = None
        self._changes = 0
        self._ticked_s: float | None = None

    # ------------------------------------------------------------------------------------------------------- looks

    def state(self, server: str) -> State:
        """Where a server is."""
        member = self._members.get(server)
        return State.UNKNOWN if member is None else member.state

    @property
    def members(self) -> list[Member]:
        """Everybody that is remembered, by name."""
        return sorted(self._members.values(), key=lambda member: member.name)

    @property
    def ring(self) -> dict[str, int]:
        """The homes of the latest epoch, with their weights."""
        return dict(self._published)

    @property
    def serving(self) -> list[str]:
        """Who serves requests, and so has to have the code and hear of every change: homes, and who drains."""
        return [member.name for member in self.members if member.state in _SERVING]

    # -------------------------------------------------------------------------------------------------------- news

    def join(self, server: str, weight: int, now_s: float) -> list[Decision]:
        """A server asks to be a member. ``TooManyServers`` when there is no room."""
        return self._then(self._on(server, Event.JOIN, now_s, weight=weight, heard=True), now_s)

    def heartbeat(self, server: str, weight: int, now_s: float, *, able: bool = True) -> list[Decision]:
        """A server says that it lives. ``able``: that it has a host that can run requests."""
        if able:
            return self._then(self._on(server, Event.HEARD, now_s, weight=weight, heard=True), now_s)
        if self.state(server) in _ALIVE:
            return self._then(self._on(server, Event.LOSE, now_s, heard=True, why="no host"), now_s)
        return []

    def known(self, epoch: int) -> list[Decision]:
        """A server knows this epoch. If it is later than ours it is of an earlier life, and the clock that tells lives
        apart was set back since: nobody would take a ring of ours, so they go on from there."""
        if epoch <= self.epoch:
            return []
        self.epoch = epoch + 1
        return [Publish(self.epoch, self.ring)]

    def adopt(self, servers: Mapping[str, int], now_s: float) -> list[Decision]:
        """The ring that servers know of an earlier life, with weights. Nothing, when anybody is known already."""
        if self._members or not servers or len(servers) > self.limits.servers_max:
            return []
        for name, weight in servers.items():
            self._members[name] = Member(name, weight, State.MEMBER, heard_s=now_s, since_s=now_s)
        self.epoch += 1
        self._published = dict(servers)
        return [Publish(self.epoch, dict(servers)), *(Install(name) for name in sorted(servers))]

    def placed(self, server: str, now_s: float) -> list[Decision]:
        """All code is in place on a server."""
        return self._then(self._on(server, Event.PLACED, now_s), now_s)

    def warmed(self, change: int, now_s: float) -> list[Decision]:
        """What a change moves is warm at its new homes, or never will be."""
        if self._change is None or self._change.number != change:
            return []
        return self._then(self._settle(now_s), now_s)

    def leave(self, server: str, now_s: float) -> list[Decision]:
        """A server is to go."""
        return self._then(self._on(server, Event.LEAVE, now_s), now_s)

    def drained(self, server: str, now_s: float) -> list[Decision]:
        """Nothing runs on a server that drains."""
        return self._then(self._on(server, Event.DRAINED, now_s), now_s)

    def died(self, server: str, now_s: float) -> list[Decision]:
        """A server's process is gone."""
        return self._then(self._on(server, Event.LOSE, now_s, why="died"), now_s)

    def unfit(self, server: str, now_s: float, why: str) -> list[Decision]:
        """A server lives and cannot be a home. Its next heartbeat is its way back."""
        if self.state(server) not in _ALIVE:
            return []
        return self._then(self._on(server, Event.LOSE, now_s, why=why), now_s)

    def tick(self, now_s: float) -> list[Decision]:
        """Time passes."""
        limits = self.limits
        if self._ticked_s is not None:
            deaf_s = now_s - self._ticked_s - 2 * limits.tick_every_s
            if deaf_s > 0:
                for name, member in self._members.items():
                    self._members[name] = replace(member, heard_s=min(now_s, member.heard_s + deaf_s))
        self._ticked_s = now_s
        decisions: list[Decision] = []
        for member in self.members:
            silent_s = now_s - member.heard_s
            if member.state in _ALIVE and silent_s >= limits.silent_s:
                decisions += self._on(member.name, Event.LOSE, now_s, why="silent")
            elif member.state is State.DRAINING and now_s - member.since_s >= limits.drain_s_max:
                decisions += self._on(member.name, Event.DRAINED, now_s)
            elif (member.state is State.GONE and silent_s >= limits.gone_kept_s) or (
                member.state is State.LOST and silent_s >= limits.lost_kept_s
            ):
                del self._members[member.name]
                decisions.append(Forget(member.name))
        if self._change is not None and now_s >= self._change.until_s:
            decisions += self._settle(now_s)
        return self._then(decisions, now_s)

    # ----------------------------------------------------------------------------------------------------- working

    def _on(
        self, server: str, event: Event, now_s: float, *, weight: int = 1, heard: bool = False, why: str = ""
    ) -> list[Decision]:
        """One event of one server, by the table."""
        old = self._members.get(server)
        before = State.UNKNOWN if old is None else old.state
        after = TRANSITIONS[before].get(event)
        if after is None:
            raise AssertionError(f"{server} is {before.value}, where {event.value} cannot be")
        if after is State.UNKNOWN:
            return []
        if old is None:
            self._make_room()
            old = Member(server, weight, before, now_s, now_s)
        if after is State.JOINING and before is not State.JOINING:
            old = replace(old, weight=weight)
        changed = after is not before
        self._members[server] = replace(
            old,
            state=after,
            heard_s=now_s if heard else old.heard_s,
            since_s=now_s if changed else old.since_s,
            why=why if changed else old.why,
        )
        if changed and self._change is not None:
            # Whatever becomes of it now, it is not what this change was about.
            self._change = replace(self._change, names=self._change.names - {server})
        # A member that asks again is a new process; its disk may be a new one too.
        if (changed and after is State.JOINING) or (before is State.MEMBER and event is Event.JOIN):
            return [Install(server)]
        return [Drain(server, self.limits.drain_s_max)] if changed and after is State.DRAINING else []

    def _settle(self, now_s: float) -> list[Decision]:
        """The change under way is over: who came is a member, who goes is none."""
        assert self._change is not None
        names, self._change = self._change.names, None
        return [decision for name in sorted(names) for decision in self._on(name, Event.SETTLED, now_s)]

    def _then(self, decisions: list[Decision], now_s: float) -> list[Decision]:
        """What follows: the ring, if its homes are others now, then ``decisions``, then the next change."""
        return [*self._publish_if_changed(), *decisions, *self._next_change(now_s)]

    def _publish_if_changed(self) -> list[Decision]:
        servers = {member.name: member.weight for member in self.members if member.state in _HOMES}
        if servers == self._published:
            return []
        self.epoch += 1
        self._published = servers
        return [Publish(self.epoch, dict(servers))]

    def _next_change(self, now_s: float) -> list[Decision]:
        """Begin the next change, if none is under way and somebody waits for one."""
        if self._change is not None and self._change.names:
            return []
        self._change = None
        coming = {member.name: member.weight for member in self.members if member.state is State.WARMING}
        going = frozenset(member.name for member in self.members if member.state is State.LEAVING)
        if not coming and not going:
            return []
        after = {name: w for name, w in self._published.items() if name not in going} | coming
        self._changes += 1
        until_s = now_s + self.limits.warm_s_max + self.limits.settle_s_max
        self._change = _Change(self._changes, frozenset(coming) | going, until_s)
        return [Warm(self._changes, self.ring, after, frozenset(coming), going, self.limits.warm_s_max)]

    def _make_room(self) -> None:
        if len(self._members) < self.limits.servers_max:
            return
        left = next((m for m in self._members.values() if m.state in (State.GONE, State.LOST)), None)
        if left is None:
            raise TooManyServers(f"{len(self._members)} servers are the most that a cluster takes")
        del self._members[left.name]
