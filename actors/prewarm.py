"""Which isolates to start ahead of their requests, and when: one queue a server, with a budget. Pure.

Many know that a request is likely: a deploy, the name in a client's hello, a worker's habits, its home being nearly
full, a ring that is about to change. None of them may take the machine from the requests that are there. So all of
them *offer* here, and the queue says what is begun:

    offer ──► WAITING ──next──► UNDER WAY ──done──► gone
      └─ turned away: known already, too many, too late

* a version is in the queue once, whoever offers it: a second offer joins the first;
* sources take turns, each first in, first out. A stranger who opens connections to a thousand names takes his turns
  and not those of a deploy;
* what waits for too long is dropped: after its handshake the request itself is there;
* at most so many are under way, so many begin in a second, and together they use a small share of the cores, measured
  by what they took. An expensive start is paid off before the next one begins. Those of a deploy and a hand-over are
  not reckoned: they are started either way, now or by the next request while its client waits, and both have bounds of
  their own.

Whether there is memory for it is the host's to say (``residency``): a prewarm that finds none is over at once.
"""

from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from actors.exchange import StartType

T = TypeVar("T")


class Source(StrEnum):
    """Who thinks that a request is likely."""

    DEPLOY = "deploy"  # a version is about to be switched to, at its home
    HANDOVER = "handover"  # this machine is about to become a worker's home
    SERVER_NAME = "server-name"  # a client's hello names the worker
    HOT = "hot"  # asked so often here that a copy of its own pays
    NEXT_USE = "next-use"  # by the worker's habits it is asked for soon


#: Starts that no request has asked for yet in any way.
_PRELOADS = frozenset({Source.DEPLOY, Source.HANDOVER})
#: And they are no guess, and are not held back by what guesses may cost.
_UNRECKONED = _PRELOADS


@dataclass(frozen=True, slots=True)
class PrewarmLimits:
    """The budget of one server."""

    #: Starts that begin in a second. Small guests start in a millisecond or two: a twentieth of a core.
    per_s: float = 50.0
    #: Starts at once: a host has two threads for them, and one may be busy with an engine of 300 ms.
    under_way_max: int = 4
    #: Of all cores, over ten seconds: prewarming must not be what makes a machine slow.
    cpu_share_max: float = 0.05
    cpu_burst_s: float = 10.0
    #: What waits, over all sources: a machine that joins 8 others takes over this many workers at most at once.
    waiting_max: int = 4_096
    #: A client's request is there after its handshake, at most two round trips: a prewarm after that is none.
    server_name_wait_s: float = 1.0
    #: Everything else can wait for a budget to recover.
    wait_s: float = 60.0
    #: A start that is not heard of for so long is not counted on any more: its host may be gone.
    under_way_s_max: float = 10.0


@dataclass(frozen=True, slots=True)
class Prewarm(Generic[T]):
    """One that may begin now. ``recipe``: what the offer said of how to start it."""

    version: str
    source: Source
    recipe: T

    @property
    def start_type(self) -> StartType:
        """What the isolate's first request is told of its start."""
        return StartType.PRELOAD if self.source in _PRELOADS else StartType.PREWARM


class PrewarmQueue(Generic[T]):
    """What waits and what is under way on one server with so many ``cores``. ``T``: what it takes to start one."""

    def __init__(self, cores: int = 1, limits: PrewarmLimits = PrewarmLimits()) -> None:
        self.limits = limits
        self._waiting: dict[Source, OrderedDict[str, tuple[float, T]]] = {source: OrderedDict() for source in Source}
        self._turns = list(Source)
        self._source_of: dict[str, Source] = {}
        self._under_way: OrderedDict[str, float] = OrderedDict()
        self._unreckoned: set[str] = set()  # of those under way
        self._cpu_per_s = limits.cpu_share_max * cores
        self._cpu_s = self._cpu_per_s * limits.cpu_burst_s
        self._starts = max(1.0, limits.per_s)
        self._filled_s: float | None = None
        self.begun: dict[Source, int] = dict.fromkeys(Source, 0)
        self.turned_away = 0
        self.dropped = 0

    def offer(self, version: str, source: Source, recipe: T, now_s: float) -> bool:
        """An isolate of ``version`` would be of use. False when there are too many already."""
        if version in self._source_of or version in self._under_way:
            return True
        if len(self._source_of) >= self.limits.waiting_max:
            self.turned_away += 1
            return False
        self._waiting[source][version] = (now_s, recipe)
        self._source_of[version] = source
        return True

    def next(self, now_s: float) -> Prewarm[T] | None:
        """One that may begin now, and is under way from now on; None when there is none, or no budget for it."""
        self._fill(now_s)
        self._drop_late(now_s)
        if len(self._under_way) >= self.limits.under_way_max or self._starts < 1.0:
            return None
        for source in self._turns:
            if self._waiting[source] and (self._cpu_s > 0.0 or source in _UNRECKONED):
                version, (_, recipe) = self._waiting[source].popitem(last=False)
                del self._source_of[version]
                self._turns.remove(source)
                self._turns.append(source)
                self._under_way[version] = now_s
                if source in _UNRECKONED:
                    self._unreckoned.add(version)
                self._starts -= 1.0
                self.begun[source] += 1
                return Prewarm(version, source, recipe)
        return None

    def done(self, version: str, now_s: float, *, started: bool = True) -> None:
        """The host said what became of a start. Other starts than ours are no news here.

        What it took is reckoned by the clock, which its CPU time is never above: a start is one thread.
        """
        began_s = self._under_way.pop(version, None)
        reckoned = version not in self._unreckoned
        self._unreckoned.discard(version)
        if began_s is not None and started and reckoned:
            self._fill(now_s)
            self._cpu_s -= max(0.0, now_s - began_s)

    def withdraw(self, version: str) -> None:
        """It is of no use any more: it is warm, or not deployed."""
        source = self._source_of.pop(version, None)
        if source is not None:
            del self._waiting[source][version]

    def knows(self, version: str) -> bool:
        """Whether ``version`` waits or is under way."""
        return version in self._source_of or version in self._under_way

    def wait_s(self, now_s: float) -> float | None:
        """After how long ``next`` is worth another call, unless something is offered or done before; None: never."""
        if not self._source_of:
            return None
        if len(self._under_way) >= self.limits.under_way_max:
            return max(0.0, next(iter(self._under_way.values())) + self.limits.under_way_s_max - now_s)
        self._fill(now_s)
        starts_s = max(0.0, 1.0 - self._starts) / self.limits.per_s
        free = self._cpu_s > 0.0 or any(self._waiting[source] for source in _UNRECKONED)
        cpu_s = 0.0 if free else (-self._cpu_s + 1e-3) / self._cpu_per_s
        return max(starts_s, cpu_s)

    def _fill(self, now_s: float) -> None:
        passed_s = 0.0 if self._filled_s is None else max(0.0, now_s - self._filled_s)
        self._filled_s = now_s if self._filled_s is None else max(self._filled_s, now_s)
        self._starts = min(max(1.0, self.limits.per_s), self._starts + passed_s * self.limits.per_s)
        self._cpu_s = min(self._cpu_per_s * self.limits.cpu_burst_s, self._cpu_s + passed_s * self._cpu_per_s)

    def _drop_late(self, now_s: float) -> None:
        """Forget what waited for too long, and what was never heard of again."""
        for source, waiting in self._waiting.items():
            late_s = now_s - (self.limits.server_name_wait_s if source is Source.SERVER_NAME else self.limits.wait_s)
            while waiting and next(iter(waiting.values()))[0] <= late_s:
                version, _ = waiting.popitem(last=False)
                del self._source_of[version]
                self.dropped += 1
        late_s = now_s - self.limits.under_way_s_max
        while self._under_way and next(iter(self._under_way.values())) <= late_s:
            version, _ = self._under_way.popitem(last=False)
            self._unreckoned.discard(version)

    def __len__(self) -> int:
        return len(self._source_of)

    def __repr__(self) -> str:
        return f"<PrewarmQueue {len(self)} waiting, {len(self._under_way)} under way, {self._cpu_s:.3f} s of CPU left>"
