"""Where a request runs: on this machine or at the worker's home, and what is started ahead for the next. Pure.

The reasons to stay are ordered by what they cost: being the home costs nothing, a warm isolate here costs nothing, a
home that refused once would refuse again. Everything else goes home, where one warm isolate serves the whole cluster.

A machine whose host processes are all gone can stay with nothing: its requests are offered to the home, and those of
its own workers to the next in the ring's order.

What goes home may be worth a copy here. A copy is started *ahead*: this request and those after it still go home until
the copy is warm, so that becoming hot costs no client a cold start. It is worth it when both hold:

* it stays warm: rate here x life >= ln(1/eps). Life is how long an isolate that nobody asks stays on this machine
  (its *residence*, learned from evictions), and no more than the horizon over which a rate can be believed;
* it saves more than it costs. It saves a hop for each request of its life. It costs its own start, and its place:
  sooner or later an isolate of a worker that is at home here needs it, and then a client waits for a start, while a hop
  is felt by nobody. So the place counts `place_weight` starts, less the share of this machine's memory that no worker
  of its own will ever need.

The tighter memory is, the shorter is the residence, and the more goes home: nobody has to be told how much to shard.
The place is charged before memory is tight, because a copy that came while there was room stays: being warm it is used.

A home with too much to do keeps its unpopular workers: to send them elsewhere buys a cold start at each place. Whoever
sends it much of a popular one starts a copy, which takes that much off the home for good; and where a copy would take
little off, or not live long enough to be used, the request goes on along the worker's order to a server with load to
spare, within the bounded load of `load_board`. Bounded loads are those of Mirrokni, Thorup and Zadimoghaddam (SODA
2018); that only the popular move is a rule of Fuerst and Sharma ("CH-RLU", HPDC 2022).
"""

import math
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class RoutingLimits:
    """The numbers of the rules, each with its reason."""

    #: How sure it must be that a copy is asked again before it is evicted. Of a copy with Poisson requests one gap in a
    #: million is longer than its life: the product of rate and life is at least 13.8.
    idle_chance_max: float = 1e-6
    #: A rate is believed this far ahead: the time constant of the rate itself (`heat`), and no more.
    horizon_s: float = 600.0
    #: Who was local lately is hot down to half the rate, or each flip around the threshold would cost a start.
    hysteresis: float = 2.0
    #: What a request costs more when it goes home, until it is measured: a Ray call and two more processes.
    hop_cost_ms: float = 2.0
    #: What a start costs until it is measured: a small JavaScript worker's, without the load of its artifact.
    cold_cost_ms: float = 10.0
    #: What a copy's place costs, in starts. Eight hours of 500 real functions on eight servers with 62 places each
    #: (`benchmarks.warmth`): with 10 homes' isolates are lost to copies, and 1.7 times as many workers are cold as need
    #: be; with 30 more than 10 % of the requests are sent away.
    place_weight: float = 18.0
    #: A place is about this large; larger copies take several.
    isolate_bytes_typical: int = 4 << 20
    #: Asked more often than this here, a worker is popular. At one a minute (which the top fifth of the workers of that
    #: replay have) dozens are moved that take nothing off their home, and each move costs a place or a cold start.
    popular_per_s: float = 0.25
    #: And so is one that uses this share of a server's cores by what arrives here alone: less is no relief.
    popular_cpu: float = 0.05
    #: Or this share by what arrives everywhere, as far as can be told from here: it is much of what its home does.
    popular_cpu_everywhere: float = 0.4
    #: What one server of a worker's order should carry of it. A worker that needs more than the order can is copied to
    #: wherever it is asked; one that needs less goes along the order, which takes fewer places.
    carried_cpu: float = 0.5
    #: From this share of a server's cores by what arrives here alone a worker is spread to wherever it is asked. Eight
    #: servers that see the same have nearly one busy with it, and no home should be that.
    spread_cpu: float = 0.1
    #: A copy for the sake of load is started when it will be used at all: two requests in its life.
    spread_requests_min: float = 2.0


_LIMITS = RoutingLimits()


class Place(Enum):
    """Where a request is sent."""

    HERE = "here"
    HOME = "home"


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known when a request must be sent somewhere. A cost of 0 is one that was not measured yet."""

    here: str
    home: str | None
    warm_here: bool
    refused_before: bool
    #: Whether this machine has a host process that could run it.
    hosts_here: bool = True
    #: The server that takes over from the home.
    next_home: str | None = None
    #: Where the worker goes, its home first; at most four. Empty: only home.
    order: tuple[str, ...] = ()
    #: Requests a second that arrive on this machine, and the share of one server's cores that they use, wherever they
    #: run.
    rate_here_per_s: float = 0.0
    cpu_rate: float = 0.0
    #: Over how many servers requests arrive, this one included.
    servers: int = 1
    #: How long an isolate that nobody asks lives on this machine; infinite while nothing is evicted.
    residence_s: float = math.inf
    #: The share of this machine's memory that is left when every worker whose home it is has an isolate.
    memory_spare: float = 0.0
    cold_cost_ms: float = 0.0
    hop_cost_ms: float = 0.0
    isolate_bytes: int = 0
    #: The servers of the order whose load is out of bounds.
    overloaded: frozenset[str] = frozenset()
    #: The home's hint that it is about to refuse.
    nearly_full: bool = False
    #: Whether its last requests ran here on a copy.
    was_local: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """The decision and its reason, which the ``route`` span shows. ``server``: where, unless it is here.
    ``warm_here_too``: start a copy on this machine as a prewarm, unless one is being started already."""

    place: Place
    reason: str
    server: str = ""
    warm_here_too: bool = False


_NO_HOST = Route(Place.HERE, "no host")
_NO_RING = Route(Place.HERE, "no ring")
_HOME = Route(Place.HERE, "home")
_WARM_HERE = Route(Place.HERE, "warm here")
_REFUSED_BEFORE = Route(Place.HERE, "refused before")


def decide(situation: Situation, limits: RoutingLimits = _LIMITS) -> Route:
    """Here, home, or further along the worker's order."""
    home = situation.home
    if not situation.hosts_here:
        other = situation.next_home if home == situation.here else home
        return _NO_HOST if other is None else Route(Place.HOME, "no host here", other)
    if home is None:
        return _NO_RING
    if home == situation.here:
        return _HOME
    if situation.warm_here:
        return _WARM_HERE
    if situation.refused_before:
        return _REFUSED_BEFORE
    over = home in situation.overloaded
    if not over and not situation.nearly_full:
        if is_hot(situation, limits):
            return Route(Place.HOME, "hot", home, warm_here_too=True)
        return Route(Place.HOME, "sharded", home)
    return _from_a_busy_home(situation, home, limits, over=over)


def _from_a_busy_home(situation: Situation, home: str, limits: RoutingLimits, *, over: bool) -> Route:
    if not is_popular(situation, limits):
        return Route(Place.HOME, "sharded", home)
    if not over:
        # It will refuse soon. The copy is warm by then, and what it takes off the home may keep it from refusing.
        return Route(Place.HOME, "home nearly full", home, warm_here_too=True)
    lives = situation.rate_here_per_s * _life_s(situation, limits) >= limits.spread_requests_min
    if not (lives and _is_relief(situation, limits)):
        for server in situation.order:
            if server not in (home, situation.here) and server not in situation.overloaded:
                return Route(Place.HOME, "spilled", server)
    return Route(Place.HOME, "home overloaded", home, warm_here_too=True)


def is_popular(situation: Situation, limits: RoutingLimits = _LIMITS) -> bool:
    """Whether a worker is asked so often, or works so hard, that it may be moved for the sake of load."""
    if situation.rate_here_per_s >= limits.popular_per_s or situation.cpu_rate >= limits.popular_cpu:
        return True
    return situation.cpu_rate * situation.servers >= limits.popular_cpu_everywhere


def _is_relief(situation: Situation, limits: RoutingLimits) -> bool:
    """Whether a copy here takes enough off a busy home, or nothing less than copies everywhere would do."""
    if situation.rate_here_per_s >= limits.popular_per_s or situation.cpu_rate >= limits.popular_cpu:
        return True
    return situation.cpu_rate * situation.servers > limits.carried_cpu * len(situation.order)


def is_hot(situation: Situation, limits: RoutingLimits = _LIMITS) -> bool:
    """Whether a copy here stays warm, and is worth what it costs."""
    ease = limits.hysteresis if situation.was_local else 1.0
    requests = situation.rate_here_per_s * _life_s(situation, limits) * ease
    if situation.cpu_rate * ease >= limits.spread_cpu and requests >= limits.spread_requests_min:
        return True
    return requests >= _requests_worth_a_copy(situation, limits)


def _life_s(situation: Situation, limits: RoutingLimits) -> float:
    return min(situation.residence_s, limits.horizon_s)


def _requests_worth_a_copy(situation: Situation, limits: RoutingLimits) -> float:
    """The requests in its life from which on a copy stays warm and costs less than the hops it saves."""
    places = situation.isolate_bytes / limits.isolate_bytes_typical if situation.isolate_bytes else 1.0
    starts = 1.0 + limits.place_weight * places * (1.0 - situation.memory_spare)
    copy_ms = (situation.cold_cost_ms or limits.cold_cost_ms) * starts
    return max(-math.log(limits.idle_chance_max), copy_ms / (situation.hop_cost_ms or limits.hop_cost_ms))
