"""What a request tree may still use, how a part of it goes along with a call, and how the rest comes home. Pure.

A client's request may become a tree of workers on many machines, and its limits are the tree's: 32 invocations, 16 of
them in a chain, 50 or 1,000 subrequests, six open connections, and CPU time. No machine sees the whole tree, and a
question to one that does would cost a round trip for each call. So what is left is *handed down*:

      root 32 ─┬─ lends 3 to a ─── a is one itself, lends 1 of its 2 ──► b      each stage has a ``Ledger``:
               ├─ lends 3 to c ◄── answers: "1 spent", 2 come back                granted = left + own + out + spent
               └─ keeps 25

A *share* is a budget of its own that a call takes along; the caller's ledger has it *out* until it is settled, exactly
once, with what was spent of it. Nothing is ever in two places, so stages that run at once can not use more together
than the tree has, whatever is lost on the way, and nobody needs to ask anybody.

How much comes back:

* answered, also killed or failed: all but what the callee says that its subtree spent, and never more than was lent.
* refused, or certainly not delivered: all of it, since nothing ran. (A refusal by a home that is followed by the
  fallback is no end of the call: the same share goes with the same context to whoever runs it.)
* lost, or cancelled without a last word: nothing. Its guest may have used it all, and may still run behind a broken
  network, with open connections. A limit that is too strict for a tree that lost a machine is better than one that
  can be got round by losing answers.

How much goes along is a guess (``SHARE_PART``). Whoever runs out asks its caller for more (``Ledger.more``), and the
caller its own: a wrong guess costs a round trip, not a refusal. A tree that does one thing at a time can use up
everything to the last unit; one that fans out may be refused while siblings hold what they do not use.

Depth is not spent: it is how many stages a chain may still have, this one included, and each call has one less. A
worker that calls itself therefore ends at the sixteenth, in the caller's hands, as ``loop-detected``.

Connections are *places* and not spent either: who finds none waits for its turn, in order, and only so many wait. But
whoever called a stage may hold all places until that stage answers, so waiting there for one of them could be for ever.
Therefore a stage that has no connection may always open one, *beyond* the six if it has to; its first place that comes
is for that one. A tree has six, and one more for each stage that came too late for one, all of which it pays for as
invocations.

CPU time: each stage has its own limit, the lowest of its layers (``context``). The tree's is what all its invocations
might use if each were its root again, so that a free root can not burn a paid callee's 300 s thirty-one times. It is
counted in whole microseconds, because shares have to add up exactly.
"""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final

from actors.worker import Limits
from isolates.egress import ErrorCode

#: A call gets an eighth of what is left, and at least one: twenty calls at once each get something of 32 invocations,
#: and dispatcher, user's worker and outbound worker do not have to ask for more.
SHARE_PART: Final = 8
#: Of places for connections a call gets half: of six, an eighth would always be one.
CONNECTIONS_PART: Final = 2
#: Of anything: 32 invocations of 300 s are 9.6e9 µs. It keeps sums of hostile numbers inside 64 bits.
_AMOUNT_MAX: Final = 1 << 40
_US_PER_MS: Final = 1_000


class Resource(StrEnum):
    """What a tree can run out of."""

    CPU = "cpu"
    SUBREQUESTS = "subrequests"
    INVOCATIONS = "invocations"
    DEPTH = "depth"
    CONNECTIONS = "connections"


@dataclass(frozen=True, slots=True)
class Exceeded:
    """The tree has no more of something. The call fails in its caller, which may go on; it is no ending by itself."""

    what: Resource

    @property
    def text(self) -> str:
        """For the caller's log: no names and no numbers of other owners."""
        return _TEXTS[self.what]

    @property
    def code(self) -> ErrorCode:
        """What the caller's guest gets for its fetch."""
        return _CODES.get(self.what, ("HTTP-request-denied", None))


_TEXTS: Final = {
    Resource.CPU: "no CPU time is left for the requests behind this one",
    Resource.SUBREQUESTS: "too many subrequests behind one request",
    Resource.INVOCATIONS: "too many invocations of workers behind one request",
    Resource.DEPTH: "workers call each other too deep: does one call itself?",
    Resource.CONNECTIONS: "too many connections behind one request, and too many wait for one",
}
_CODES: Final[dict[Resource, ErrorCode]] = {
    Resource.DEPTH: ("loop-detected", None),
    Resource.CONNECTIONS: ("connection-limit-reached", None),
}


def _part(left: int, part: int = SHARE_PART) -> int:
    return min(left, max(1, left // part))


def _wrong_amount(amounts: "Spent | Budget") -> ValueError:
    values = {field.name: getattr(amounts, field.name) for field in fields(amounts)}
    name = next(name for name, value in values.items() if type(value) is not int or not 0 <= value <= _AMOUNT_MAX)
    return ValueError(f"{name}: must be a whole number from 0 to 2**40")


@dataclass(frozen=True, slots=True)
class Spent:
    """What a subtree used up for good. ``connections`` are places that went with a lost machine."""

    cpu_us: int = 0
    subrequests: int = 0
    invocations: int = 0
    connections: int = 0

    def __post_init__(self) -> None:
        # Spelled out: a call between workers makes a dozen of these, and looking fields up takes longer than the sums.
        if not (
            type(self.cpu_us) is type(self.subrequests) is type(self.invocations) is type(self.connections) is int
            and 0 <= self.cpu_us <= _AMOUNT_MAX
            and 0 <= self.subrequests <= _AMOUNT_MAX
            and 0 <= self.invocations <= _AMOUNT_MAX
            and 0 <= self.connections <= _AMOUNT_MAX
        ):
            raise _wrong_amount(self)

    def plus(self, other: "Spent") -> "Spent":
        """Both together."""
        return Spent(
            self.cpu_us + other.cpu_us,
            self.subrequests + other.subrequests,
            self.invocations + other.invocations,
            self.connections + other.connections,
        )

    def at_most(self, share: "Budget") -> "Spent":
        """As it counts for who lent ``share``: nobody can have spent more than it had."""
        return Spent(
            min(self.cpu_us, share.cpu_us),
            min(self.subrequests, share.subrequests),
            min(self.invocations, share.invocations),
            min(self.connections, share.connections),
        )


#: What a call spent that was refused, or was certainly not delivered.
NOTHING: Final = Spent()


@dataclass(frozen=True, slots=True)
class Budget:
    """An amount of everything, zero or more: what a tree has, what is left of it, or a share. An immutable value.

    ``cpu_us`` is thread CPU time in microseconds. ``depth`` counts the stages of a chain from here on, this one
    included. ValueError for anything that is no amount.
    """

    cpu_us: int
    subrequests: int
    invocations: int
    depth: int
    connections: int

    def __post_init__(self) -> None:
        if not (
            type(self.cpu_us) is type(self.subrequests) is type(self.invocations) is int
            and type(self.depth) is type(self.connections) is int
            and 0 <= self.cpu_us <= _AMOUNT_MAX
            and 0 <= self.subrequests <= _AMOUNT_MAX
            and 0 <= self.invocations <= _AMOUNT_MAX
            and 0 <= self.depth <= _AMOUNT_MAX
            and 0 <= self.connections <= _AMOUNT_MAX
        ):
            raise _wrong_amount(self)

    @classmethod
    def of(cls, limits: Limits) -> "Budget":
        """What a tree has whose root is a worker with ``limits``."""
        return cls(
            cpu_us=limits.cpu_ms * limits.invocations_max * _US_PER_MS,
            subrequests=limits.subrequests_max,
            invocations=limits.invocations_max,
            depth=limits.depth_max,
            connections=limits.connections_max,
        )

    def own_cpu_us(self, cpu_us_max: int) -> int:
        """What a stage keeps of it for its own guest: the limit of that, and half at most where it may call others. A
        callee whose limit is larger than all that its tree has could call nobody else."""
        most = self.cpu_us if self.invocations <= 1 else (self.cpu_us + 1) // 2
        return min(cpu_us_max, most)

    def share(self, ask: "Ask") -> "Budget | Exceeded":
        """What goes along with one call, out of what is left here; or of what there is too little for any call."""
        if self.depth <= 1:
            return Exceeded(Resource.DEPTH)
        if not self.invocations:
            return Exceeded(Resource.INVOCATIONS)
        if not self.cpu_us:
            return Exceeded(Resource.CPU)
        return self.part(ask)

    def part(self, ask: "Ask") -> "Budget":
        """Some of everything that there is, for a callee: see ``SHARE_PART``."""
        return Budget(
            cpu_us=min(self.cpu_us, max(_part(self.cpu_us), ask.cpu_us)),
            subrequests=min(_part(self.subrequests), ask.subrequests_max),
            invocations=_part(self.invocations),
            depth=max(0, self.depth - 1),
            connections=_part(self.connections, CONNECTIONS_PART),
        )

    def places(self) -> "Budget":
        """Some of the places that there are, and nothing else."""
        return Budget(0, 0, 0, 0, _part(self.connections, CONNECTIONS_PART))

    def take(self, share: "Budget") -> "Budget | Exceeded":
        """What is left without ``share``, or what there is too little of. Depth stays: it is not used up."""
        if share.depth >= self.depth:
            return Exceeded(Resource.DEPTH)
        for resource, there, wanted in (
            (Resource.INVOCATIONS, self.invocations, share.invocations),
            (Resource.SUBREQUESTS, self.subrequests, share.subrequests),
            (Resource.CPU, self.cpu_us, share.cpu_us),
            (Resource.CONNECTIONS, self.connections, share.connections),
        ):
            if wanted > there:
                return Exceeded(resource)
        return self._with(share, sign=-1)

    def give_back(self, share: "Budget", spent: Spent | None) -> "Budget":
        """What is left when a call is over that took ``share`` along. ``spent``: None when nobody knows, ``NOTHING``
        when it was refused."""
        return self if spent is None else self._with(share.without(spent), sign=1)

    def without(self, spent: Spent) -> "Budget":
        """The rest of a share of which ``spent`` is gone, all of it at most."""
        counted = spent.at_most(self)
        return Budget(
            self.cpu_us - counted.cpu_us,
            self.subrequests - counted.subrequests,
            self.invocations - counted.invocations,
            self.depth,
            self.connections - counted.connections,
        )

    def amount(self, what: Resource) -> int:
        """How much of ``what`` there is."""
        return self.cpu_us if what is Resource.CPU else int(getattr(self, what.value))

    def less(self, cpu_us: int = 0, subrequests: int = 0, invocations: int = 0, connections: int = 0) -> "Budget":
        """What is left when so much of it is gone, or with negative amounts has come back. ``ValueError`` when there is
        not so much."""
        return Budget(
            self.cpu_us - cpu_us,
            self.subrequests - subrequests,
            self.invocations - invocations,
            self.depth,
            self.connections - connections,
        )

    def plus(self, more: "Budget") -> "Budget":
        """Both together, no deeper than this."""
        return self._with(more, sign=1)

    def whole(self) -> Spent:
        """All of it as spent."""
        return Spent(self.cpu_us, self.subrequests, self.invocations, self.connections)

    def _with(self, other: "Budget", sign: int) -> "Budget":
        return Budget(
            self.cpu_us + sign * other.cpu_us,
            self.subrequests + sign * other.subrequests,
            self.invocations + sign * other.invocations,
            self.depth,
            self.connections + sign * other.connections,
        )


@dataclass(frozen=True, slots=True)
class Ask:
    """What a callee could use. ``cpu_us``: its own limit, which its share has if there is that much; a guest can not
    be stopped to ask for more. ``subrequests_max``: what its caller allows it."""

    cpu_us: int = 0
    subrequests_max: int = _AMOUNT_MAX
