"""The books of stages whose host kept them, as they go to the Server of its machine.

As long as all that a tree calls is warm in one host, that host keeps its books (``inner_calls``). What it can not do
itself goes to the Server: a call to a worker that is not warm there, a request to the world, a share that has to be
asked for. With such a request goes all that the books of its stage, and of the stages above it, still have; from then
on the Server lends it, asks with it, and takes it back. So at every moment each unit is in one place.

    host     root ─ lent ─► a ─ lent ─► b        b asks for the world: what root, a and b have left goes along
    Server   root ─ came ─► a ─ came ─► b        three ledgers, linked: b may ask a for more, and a the root

What comes back to the host after that (another callee is over) goes with the next such request. Each request has a
connection of its own, so a later one may be read first: they are numbered, and who has too little waits for what is on
its way. What the host's guests use, and what they spent before, stays in the host's own books.
"""

from dataclasses import dataclass

from actors.budget import Budget, Exceeded, Resource, Spent
from actors.calling_stage import CallingStage
from actors.stage_calls import StageCalls


@dataclass(frozen=True, slots=True)
class Handed:
    """One stage: the span of its handler, what it runs and under which context (``context_wire``), and what its books
    had left since they were handed over the last time. ``number``: how often that was, with this time. ``over``: its
    guest is, and nobody will say so again."""

    handler: str
    worker: str
    version: str
    context: bytes
    left: Budget
    number: int
    over: bool = False


class HandedCall:
    """A call that a host made and carries out itself, as its Server's books know it: what its callee asks more of."""

    def __init__(self, caller: CallingStage, callee: StageCalls, share: Budget) -> None:
        self.caller = caller
        self._ask = callee.context.ask_for(callee.version.limits)
        self._key = caller.calls.ledger.came_with(share)
        caller.began()

    def brought(self, share: Budget) -> None:
        """Its callee's books handed over more."""
        self.caller.calls.ledger.came_with(share, self._key)

    def more(self, what: Resource) -> Budget | Exceeded:
        """Its callee has too little of something."""
        return self.caller.calls.ledger.more(self._key, what, self._ask)

    def over(self, spent: Spent) -> None:
        """Its callee is over."""
        self.caller.over(self._key, spent)
        self.caller.settled(answered=False)
