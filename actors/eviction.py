"""In what order idle isolates go when room is needed, and how long one that nobody asks stays. Pure.

Every idle isolate has a *worth*, what it would cost to lose it for each byte it holds:

    worth = cost of a start × (1 + requests) ÷ isolates of the version ÷ MiB          (× home_weight at home)

The order is GreedyDual-Size-Frequency (L. Cherkasova, "Improving WWW Proxies Performance with GreedyDual-Size-
Frequency Caching Policy", HPL-98-69R1, 1998; for warm functions A. Fuerst and P. Sharma, "FaasCache", ASPLOS 2021).
An isolate that comes to rest gets the score ``inflation + worth``; the lowest score goes first, and inflation rises to
the score of whatever went last. So nothing has to be aged: who is not asked keeps his score while that of the others
rises past it, and an isolate of twice the worth is outlived after twice as many evictions. Cost and size make a
JavaScript worker and a small one comparable; the last of many siblings is hardly missed.

*Homes.* A worker that is not warm on this machine but on its home costs the next request a hop; one that is not warm
at its home costs somebody a cold start, whoever asks. So the isolates of those whose home is here count
``home_weight`` times. Other machines' workers have copies here for speed alone.

*Probation.* Most workers are asked once in a long time, and a scanner asks thousands of them once each. Frequency alone
lets such a crowd in: each newcomer enters above the inflation and pushes out somebody who is asked now and then. So, as
in S3-FIFO (J. Yang and others, "FIFO queues are all you need for cache eviction", SOSP 2023), those who were asked once
at most live apart, and while they hold more than a small share of the bytes one of theirs goes first. The second
request makes a member of the working set. A worker whose second request comes just after its eviction is recognised by
its *ghost*, its key in a bounded list, and does not go through probation again. Both parts have an inflation of their
own, so that a crowd on probation does not age the working set.

    put ──asked once, no ghost──► probation ──second request──► working set
                                      └─evicted─► ghost ──next put──────┘

*Residence.* The worth of a copy on this machine depends on how long it would live until it is asked again. That is
learned from those that go: the age of the evicted, since they came to rest. Each eviction draws the estimate a quarter
of the way to the age it saw, and between evictions it grows by a second each second, since what would have gone is
still here. A home's age counts ``home_weight`` times less, as a copy of the same kind would have gone that much
earlier. The working set's evictions are what counts; those on probation only until there is one, for whoever is asked
often enough to care leaves probation at once.

Costs: ``put`` and ``discard`` are a few look-ups, with a push onto a heap for newcomers; see ``score_heap``.
"""

import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from actors.score_heap import ScoreHeap

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class EvictionLimits:
    """Constants of the order."""

    #: Requests of a version that count for its chance of being asked again. Beyond it the chance is as good as
    #: certain; and a version that was busy once is outlived after so many turnovers of the house, not never.
    uses_counted_max: int = 64
    #: A home's isolate against a copy. A cold start costs tens to hundreds of times what a hop costs; ten leaves a copy
    #: that is asked all the time its place beside a home that nobody asks.
    home_weight: float = 10.0
    #: Requests of a version that is still on probation: one-hit wonders.
    probation_uses_max: int = 1
    #: Share of the idle bytes that those on probation keep. S3-FIFO's tenth is for caches of many thousands of objects;
    #: with 50 to 400 isolates and the eight hours of real functions that the benchmarks replay, a tenth costs up to a
    #: third more cold starts than a fiftieth, and below that nothing changes.
    probation_share: float = 0.02
    #: Ghosts for each idle isolate: one, as in S3-FIFO; more would let slow scanners in, fewer lose who returns.
    ghosts_per_isolate: float = 1.0
    #: Ghosts at least and at most: a small house still recognises a handful, a key is some hundred bytes.
    ghosts_min: int = 16
    ghosts_max: int = 65_536
    #: How far one eviction moves the estimate of residence.
    residence_step: float = 0.25
    #: No start is cheaper, and no isolate smaller, than this: what a measurement is good for.
    cost_ms_min: float = 0.1
    bytes_min: int = 16 << 10


class _Part:
    """Probation, or the working set: its isolates by score, its inflation, and what it knows of residence."""

    __slots__ = ("by_score", "bytes", "evicted_s", "inflation", "residence_s")

    def __init__(self) -> None:
        self.by_score = ScoreHeap()
        self.bytes = 0
        self.inflation = 0.0
        self.residence_s = math.inf  # as of the last eviction
        self.evicted_s = 0.0

    def residence_at(self, now_s: float) -> float:
        return self.residence_s + max(0.0, now_s - self.evicted_s)

    def learn(self, age_s: float, now_s: float, step: float) -> None:
        before_s = self.residence_at(now_s)
        self.residence_s = age_s if math.isinf(before_s) else before_s + step * (age_s - before_s)
        self.evicted_s = now_s


@dataclass(slots=True)  # not frozen, which would triple the cost of making one
class _Entry:
    """One idle isolate; never changed."""

    part: _Part
    bytes: int
    since_s: float
    at_home: bool
    key: Hashable


class EvictionOrder:
    """The idle isolates of one host, by who is lost first."""

    def __init__(self, limits: EvictionLimits = EvictionLimits()) -> None:
        self.limits = limits
        self._entries: dict[int, _Entry] = {}
        self._probation = _Part()
        self._working_set = _Part()
        self._ghosts: OrderedDict[Hashable, None] = OrderedDict()  # of those evicted on probation, oldest first

    # --------------------------------------------------------------------------------------------------- events

    def put(
        self, item: int, *, uses: int, cost_ms: float, bytes_: int, at_home: bool, copies: int, now_s: float,
        key: Hashable = None,
    ) -> None:  # fmt: skip
        """``item`` is idle, since ``now_s``; one that was in gets a new place.

        ``uses``: requests of its version since it lives here. ``cost_ms``: what its start took. ``copies``: isolates of
        the version on this host, it included. ``key``: the version, by which it is recognised when it comes back;
        without one it never is.
        """
        before = self._entries.get(item)
        if before is not None:
            before.part.bytes -= before.bytes
        part = self._part_of(uses, key)
        if before is not None and before.part is not part:
            before.part.by_score.discard(item)
        self._entries[item] = _Entry(part, bytes_, now_s, at_home, key)
        part.bytes += bytes_
        part.by_score.put(item, part.inflation + self._worth(uses, cost_ms, bytes_, at_home, copies))

    def discard(self, item: int) -> None:
        """``item`` is in use again, or gone for a reason of its own; nothing happens when it is not in."""
        entry = self._entries.pop(item, None)
        if entry is not None:
            entry.part.bytes -= entry.bytes
            entry.part.by_score.discard(item)

    def evicted(self, item: int, now_s: float) -> None:
        """``item`` goes, to make room: whoever stays is worth less from now on, and residence is learned.

        ``KeyError`` when it is not in.
        """
        entry = self._entries[item]
        part = entry.part
        part.inflation = max(part.inflation, part.by_score.score(item))
        age_s = max(0.0, now_s - entry.since_s)
        part.learn(age_s / (self.limits.home_weight if entry.at_home else 1.0), now_s, self.limits.residence_step)
        self.discard(item)
        if part is self._probation and entry.key is not None:
            self._ghosts[entry.key] = None
            self._ghosts.move_to_end(entry.key)
            while len(self._ghosts) > self._ghosts_max:
                self._ghosts.popitem(last=False)

    # ---------------------------------------------------------------------------------------------------- answers

    def first(self) -> int | None:
        """The one to lose first; None when nobody is idle."""
        part = self._losing
        first = part.by_score.first()
        return None if first is None else first[1]

    def first_for(self, *, uses: int, cost_ms: float, bytes_: int, at_home: bool, copies: int = 1) -> int | None:
        """The one to lose for a newcomer that is started ahead; None when whoever would go is not worth less.

        Ages count: both are compared as they would stand if the newcomer came to rest beside the other now. A home
        never goes for a copy, however old it is.
        """
        part = self._losing
        first = part.by_score.first()
        if first is None:
            return None
        score, item = first
        if self._entries[item].at_home and not at_home:
            return None
        worth = self._worth(uses, cost_ms, bytes_, at_home, copies)
        return item if score < part.inflation + worth else None

    def residence_s(self, now_s: float) -> float:
        """How long, in seconds, a copy that nobody asks lives here; ``math.inf`` when nothing was ever evicted."""
        part = self._probation if math.isinf(self._working_set.residence_s) else self._working_set
        return part.residence_at(now_s)

    @property
    def entries(self) -> int:
        """Entries of the heaps with the stale ones: what it costs in memory."""
        return self._probation.by_score.entries + self._working_set.by_score.entries

    @property
    def bytes(self) -> int:
        """What all that are idle hold."""
        return self._probation.bytes + self._working_set.bytes

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, item: int) -> bool:
        return item in self._entries

    def __repr__(self) -> str:
        return (
            f"EvictionOrder({len(self._working_set.by_score)} in the working set, "
            f"{len(self._probation.by_score)} on probation, {len(self._ghosts)} ghosts)"
        )

    # ------------------------------------------------------------------------------------------------------ inside

    @property
    def _losing(self) -> _Part:
        """The part whose first goes: probation while it has more than its share, or is all there is."""
        probation, working_set = self._probation, self._working_set
        over = probation.by_score and probation.bytes > self.limits.probation_share * self.bytes
        return probation if over or not working_set.by_score else working_set

    @property
    def _ghosts_max(self) -> int:
        limits = self.limits
        return min(max(limits.ghosts_min, int(limits.ghosts_per_isolate * len(self._entries))), limits.ghosts_max)

    def _part_of(self, uses: int, key: Hashable) -> _Part:
        if uses > self.limits.probation_uses_max or (key is not None and key in self._ghosts):
            return self._working_set
        return self._probation

    def _worth(self, uses: int, cost_ms: float, bytes_: int, at_home: bool, copies: int) -> float:
        """What losing it costs, in milliseconds for each MiB."""
        limits = self.limits
        asked = 1 + min(uses, limits.uses_counted_max)
        cost = max(cost_ms, limits.cost_ms_min) * asked / max(copies, 1)
        worth = cost * _MIB / max(bytes_, limits.bytes_min)
        return worth * limits.home_weight if at_home else worth
