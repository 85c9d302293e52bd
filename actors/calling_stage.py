"""One stage of this machine that calls others: what it may call, which of its callees are still to be settled, and
whose turn it is to connect to the world.

A callee is *answered* when its answer is over, and *settled* when it has had its last word: what it did not spend of
its share has come back. Between the two lies what its guest does after the answer, and a word from its Server.

Books that its host kept may come in several parts and out of order (``handed_books``): then some are on their way.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from actors.budget import Budget, Exceeded, Spent
from actors.exchange import Capability
from actors.ledger import Turn
from actors.stage_calls import StageCalls
from actors.stage_report import Call

if TYPE_CHECKING:
    from actors.handed_books import HandedCall

#: The longest that anybody waits for callees' last words, or for books on their way. What comes later is not given
#: back.
LAST_WORD_S_MAX = 2.0


class CallingStage:
    """``caller``: its own call, as its caller's Server knows it, or as its host made it; None for the root of a
    tree."""

    def __init__(self, calls: StageCalls, caller: "Capability | HandedCall | None") -> None:
        self.calls = calls
        self.caller = caller
        #: What it called, by the callee's id, for the tree's tails; as many as a tree has invocations.
        self.made: dict[str, Call] = {}
        self._answered = 0  # callees that are answered and not settled
        self._settled = asyncio.Event()  # there are none of these
        self._settled.set()
        self._idle = asyncio.Event()  # nor any that are not answered
        self._idle.set()
        self._parts_came = 0  # of books that its host kept
        self._parts_sent = 0
        self._all_came = asyncio.Event()
        self._all_came.set()

    # ------------------------------------------------------------------------------------------------------- budget

    def part_came(self, number: int) -> None:
        """A part of the books that its host kept, which sent so many until then."""
        self._parts_came += 1
        self._parts_sent = max(self._parts_sent, number)
        if self._parts_came < self._parts_sent:
            self._all_came.clear()
        else:
            self._all_came.set()

    def granted_more(self, extra: Budget) -> None:
        """Its caller gave more."""
        _go(self.calls.ledger.granted_more(extra))

    def over(self, call: int, spent: Spent | None) -> None:
        """A call is over, by its key in the books. ``spent``: None when nobody knows."""
        _go(self.calls.ledger.settle(call, spent))

    @asynccontextmanager
    async def connected(self, within_s: float, more: Callable[[], Awaitable[bool]]) -> AsyncIterator[Exceeded | None]:
        """A place for one connection to the world, in its turn; ``Exceeded`` when too many wait. ``more`` asks its
        caller for places, where there are none. ``TimeoutError`` after ``within_s``."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        told = self.calls.ledger.connect(turn)
        try:
            if told is Turn.WAIT:
                async with asyncio.timeout(within_s):
                    await more()
                    await turn
            yield told if isinstance(told, Exceeded) else None
        finally:
            _go(self.calls.ledger.disconnect(turn))

    # ------------------------------------------------------------------------------------------------------ callees

    def began(self) -> None:
        """A call is made."""
        self._idle.clear()

    def answered(self) -> None:
        """A callee's answer is over."""
        self._answered += 1
        self._settled.clear()

    def settled(self, *, answered: bool) -> None:
        """A callee is settled that was answered before, or was not."""
        self._answered -= answered
        if not self._answered:
            self._settled.set()
        if not self.calls.ledger.out:
            self._idle.set()

    async def wait_settled(self) -> None:
        """Until those are settled that are answered, and its books are all here."""
        await _wait(self._settled, self._all_came)

    async def wait_idle(self) -> None:
        """Until all are settled."""
        await _wait(self._idle)


def _go(turns: Iterable[object]) -> None:
    """The turn of these has come."""
    for turn in turns:
        assert isinstance(turn, asyncio.Future)
        if not turn.done():  # else it has just given up, and says so next
            turn.set_result(None)


async def _wait(*events: asyncio.Event) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(LAST_WORD_S_MAX):
            for event in events:
                await event.wait()
