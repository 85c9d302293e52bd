"""The part of a request tree's budget that one stage has: what it keeps, lends with calls, and answers for. Pure.

The rules of lending are at the head of ``budget``; this is who keeps the books. A ledger lives with its stage, on the
machine where that runs, from the call that brought its share until its answer says what was spent. It does not wait
and does not send: whoever drives it asks the caller for more, and tells those whose turn to connect has come.
"""

from collections import OrderedDict
from enum import Enum
from typing import Final

from actors.budget import NOTHING, Ask, Budget, Exceeded, Resource, Spent

#: Guests that wait for a place in one stage. Each holds an exchange of its machine, of which a worker has 256.
WAITING_MAX: Final = 256
_ONE_SUBREQUEST: Final = Spent(subrequests=1)


class Turn(Enum):
    """What becomes of somebody who wants a connection."""

    GO = "go"
    WAIT = "wait"  # for one that ends here, or a place that comes back or is given on top: ask the caller for one


class Ledger:
    """The part of a tree's budget that one stage has. Lives with the stage, on its machine; used by one thread.

    At every moment, of everything: ``granted == left + own + out + spent``, where own is the CPU time kept for the
    stage's guest and the places of its open connections (``places``).
    """

    def __init__(self, granted: Budget, own_cpu_us: int) -> None:
        """Use ``begin``: there may not be enough for a stage at all."""
        self.granted = granted
        self.left = granted.less(cpu_us=own_cpu_us, invocations=1)
        self.own_cpu_us = own_cpu_us
        self.out: dict[int, Budget] = {}
        self.spent = Spent(invocations=1)
        self._open: set[object] = set()
        self._beyond = False  # one of these has no place of the tree's
        self._waiting: OrderedDict[object, None] = OrderedDict()
        self._last_call = 0
        self._closed = False

    @classmethod
    def begin(cls, granted: Budget, cpu_us_max: int) -> "Ledger | Exceeded":
        """A stage begins with what it was granted. ``cpu_us_max``: its own limit; the guest may use ``own_cpu_us``."""
        if not granted.depth:
            return Exceeded(Resource.DEPTH)
        if not granted.invocations:
            return Exceeded(Resource.INVOCATIONS)
        own_cpu_us = granted.own_cpu_us(cpu_us_max)
        if not own_cpu_us and cpu_us_max:
            return Exceeded(Resource.CPU)
        return cls(granted, own_cpu_us)

    # ---------------------------------------------------------------------------------------------------------- calls

    def subrequest(self) -> Exceeded | None:
        """The guest asks the world for something. Counted before it is sent, whatever becomes of it."""
        if not self.left.subrequests:
            return Exceeded(Resource.SUBREQUESTS)
        self.left = self.left.less(subrequests=1)
        self.spent = self.spent.plus(_ONE_SUBREQUEST)
        return None

    def lend(self, ask: Ask) -> "tuple[int, Budget] | Exceeded":
        """The guest calls another worker, which is a subrequest too: the call's key, and the share for its context.

        Settle the key exactly once. On ``Exceeded`` nothing has changed.
        """
        if not self.left.subrequests:
            return Exceeded(Resource.SUBREQUESTS)
        without_call = self.left.less(subrequests=1)
        share = without_call.share(ask)
        if isinstance(share, Exceeded):
            return share
        left = without_call.take(share)
        if isinstance(left, Exceeded):
            return left
        self.left = left
        self.spent = self.spent.plus(_ONE_SUBREQUEST)
        self._last_call += 1
        self.out[self._last_call] = share
        return self._last_call, share

    def more(self, call: int, what: Resource, ask: Ask) -> "Budget | Exceeded":
        """A callee has run out of ``what``: as much again goes to it, of everything, as when it was called. Of places
        it is places alone: who waits for one has enough of the rest.

        ``Exceeded``: there is none here; ask further up, or give up. ``KeyError`` when the call is not out.
        """
        lent = self.out[call]
        # What its caller allows it, it may have once, in however many parts.
        rest = Ask(ask.cpu_us, max(0, ask.subrequests_max - lent.subrequests))
        extra = self.left.places() if what is Resource.CONNECTIONS else self.left.part(rest)
        if what is Resource.DEPTH or not extra.amount(what):
            return Exceeded(what)
        left = self.left.take(extra)
        if isinstance(left, Exceeded):
            return left
        self.left = left
        self.out[call] = lent.plus(extra)
        return extra

    def granted_more(self, extra: Budget) -> list[object]:
        """The caller gave more. Returns whose turn to connect has come."""
        self.granted = self.granted.plus(extra)
        self.left = self.left.plus(extra)
        return self._next()

    def settle(self, call: int, spent: Spent | None) -> list[object]:
        """A call is over; see ``Budget.give_back``. Returns whose turn to connect has come. ``KeyError`` when it is not
        out: a second settlement is a broken invariant."""
        share = self.out.pop(call)
        self.left = self.left.give_back(share, spent)
        self.spent = self.spent.plus(share.whole() if spent is None else spent.at_most(share))
        return self._next()

    def refuse(self, call: int) -> list[object]:
        """A call was not made after all: all comes back, the subrequest for it as well."""
        self.left = self.left.less(subrequests=-1)
        spent = self.spent
        self.spent = Spent(spent.cpu_us, spent.subrequests - 1, spent.invocations, spent.connections)
        return self.settle(call, NOTHING)

    def close(self, cpu_us: int) -> Spent:
        """The stage is over, everything of it, and its guest used ``cpu_us``: what its answer says. Calls that are
        still out are lost. May be called once."""
        assert not self._closed, "a stage ends once"
        self._closed = True
        self._waiting.clear()
        for call in list(self.out):
            self.settle(call, None)
        # A guest is stopped within a few ms of its limit; what it ran over is taken from what is left, or forgotten.
        used_us = min(cpu_us, self.own_cpu_us + self.left.cpu_us)
        self.left = self.left.less(cpu_us=used_us - self.own_cpu_us, connections=-self.places)
        self.own_cpu_us = 0
        self._open.clear()
        self._beyond = False
        self.spent = self.spent.plus(Spent(cpu_us=used_us))
        return self.spent

    # ------------------------------------------------------------------------------------ books that go elsewhere

    @classmethod
    def taken_over(cls, left: Budget) -> "Ledger":
        """The books of a stage that runs already, from here on: for what its first ones still had. What its guest uses,
        and what was lent and spent before, stays in those."""
        made = cls(left.less(invocations=-1), 0)
        made.granted, made.spent = left, NOTHING
        return made

    def hand_over(self) -> Budget:
        """Everything that is left goes to books elsewhere. From here on there is only what comes back."""
        left, self.left = self.left, self.left.without(self.left.whole())
        self.granted = self.granted.without(left.whole())
        return left

    def handed_over(self, call: int, share: Budget) -> None:
        """A callee's books, of which ``share`` went elsewhere: it comes back there, and not here."""
        self.out[call] = self.out[call].without(share.whole())
        self.granted = self.granted.without(share.whole())

    def came_with(self, share: Budget, call: int | None = None) -> int:
        """The other side of ``handed_over``: a callee that runs already brought ``share``. Returns the call's key, the
        one that is given if there is one."""
        self.granted = self.granted.plus(share)
        if call is None:
            self._last_call = call = self._last_call + 1
            self.out[call] = share
        else:
            self.out[call] = self.out[call].plus(share)
        return call

    # ---------------------------------------------------------------------------------------------------- connections

    def connect(self, who: object) -> Turn | Exceeded:
        """``who`` wants a connection. ``WAIT``: some call here returns it to a list; ``Exceeded``: too many wait."""
        assert who not in self._open, "one connection each"
        assert who not in self._waiting, "one turn each"
        if self._may_go:  # then nobody waits: whatever gives places back wakes those who do
            self._go(who)
            return Turn.GO
        if len(self._waiting) >= WAITING_MAX:
            return Exceeded(Resource.CONNECTIONS)
        self._waiting[who] = None
        return Turn.WAIT

    def disconnect(self, who: object) -> list[object]:
        """``who`` is done with its connection, or does not want to wait any more. Returns whose turn has come. Safe to
        call again."""
        self._waiting.pop(who, None)
        if who in self._open:
            self._open.remove(who)
            if self._beyond:
                self._beyond = False  # whichever it was: the others have places
            else:
                self.left = self.left.less(connections=-1)
        return self._next()

    @property
    def connected(self) -> int:
        """Open connections of this stage itself."""
        return len(self._open)

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return len(self._waiting)

    @property
    def places(self) -> int:
        """Of the tree's places, those that they have."""
        return len(self._open) - self._beyond

    @property
    def _may_go(self) -> bool:
        return bool(self.left.connections) or not self._open

    def _go(self, who: object) -> None:
        self._open.add(who)
        if self.left.connections:
            self.left = self.left.less(connections=1)
        else:
            self._beyond = True

    def _next(self) -> list[object]:
        if self._beyond and self.left.connections:
            self._beyond = False
            self.left = self.left.less(connections=1)
        going: list[object] = []
        while self._waiting and self._may_go:
            who, _ = self._waiting.popitem(last=False)
            self._go(who)
            going.append(who)
        return going

    def __repr__(self) -> str:
        return f"<Ledger left={self.left} out={len(self.out)} connected={self.connected} waiting={self.waiting}>"
