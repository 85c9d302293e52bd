"""InnerCalls: calls between guests of one host process, which do not leave it.

A guest's fetch goes to the Server (``nested_calls``), which finds out whose it is and sends it to the callee's host.
When that is the very process that it came from, four trips between processes were for nothing. So a host that knows its
callers' bindings and has a *lease* for the callee carries the call out itself, if the callee has an isolate that is
idle right now, on a thread of its own:

    caller's thread                         a thread of ``Crew``
    InnerStage.open ─── aim, books ──► InnerCall ──► IsolateHost.run_inner ──► the callee's isolate
         ▲ HostOutgoing or InnerOutgoing       └───── bytes in memory ─────┘

**What the Server remains in charge of** is everything else, and going there is always right: a callee that is not warm
here, or is asked for by all its isolates, or lives elsewhere, or has two versions; requests to the world; trees that a
tail worker hears of; a stage that was called by way of the Server, which has its books.

**Leases** come over the connection on which the Server also takes them back (``subscribers``), so they are never out of
order. One says: this worker is this version, and its place is this host. Bindings are a version's own and never change.

**Books.** The root of a tree has its books here as long as all that the tree asks for is asked of workers here, and so
have its inner callees. What goes the ordinary way takes along all that they still have (``handed_books``), and from
then on that stage asks the Server only. One lock for each tree; the sums are short.

**Spans** of inner callees go with the ending of the tree's root. What comes later goes to the Server by itself.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from actors.bells import Bells
from actors.crew import Crew
from actors.exchange import Ended, Request
from actors.inner_call import InnerConversation
from actors.inner_leases import InnerLeases
from actors.inner_stage import InnerStage
from actors.isolate_desk import IsolateDesk, Taken
from tracing.recorder import Recorder
from tracing.trace import Span


@dataclass(frozen=True, slots=True)
class InnerLimits:
    """Bounds of one host."""

    #: Callees that run at once: as many threads, a quarter of what a host has for its links.
    calls_max: int = 128
    #: Of them for one calling worker, so that none takes all; beyond it calls go the ordinary way, which has its own.
    worker_calls_max: int = 32
    #: Leases, and versions that are known. The Server gives no more (``subscribers``).
    leases_max: int = 4_096


class House(Protocol):
    """What it needs of its host, beside the desk."""

    server: str

    def run_inner(
        self, conversation: InnerConversation, request: Request, taken: Taken, recorder: Recorder, stage: "InnerStage"
    ) -> Ended:
        """Run a request on an isolate, on the calling thread, and give that back."""

    def tell_spans(self, edge: str, spans: list[Span]) -> None:
        """Send the Server spans of a tree whose request came in at the server ``edge``."""


class InnerCalls:
    """The calls within one host."""

    def __init__(
        self, house: House, desk: IsolateDesk, ids: Callable[[int], bytes], limits: InnerLimits | None = None
    ) -> None:
        self.house = house
        self.desk = desk
        self.ids = ids
        self._limits = limits or InnerLimits()
        self.leases = InnerLeases(self._limits.leases_max)
        self._by_worker: dict[str, int] = {}
        self._lock = threading.Lock()
        self._crew = Crew(self._limits.calls_max)
        self.bells = Bells()
        self.counts = {"calls": 0, "handed_over": 0}

    def statistics(self) -> dict[str, int]:
        """Counters, and what runs and is held now."""
        with self._lock:
            return {**self.counts, "leases": len(self.leases), "running": sum(self._by_worker.values())}

    def root(self, request: Request, handler: str, traceparent: str) -> "InnerStage":
        """A stage that a link brought. Costs next to nothing until it calls somebody."""
        return InnerStage(self, request, handler, traceparent)

    def begins(self, caller: str) -> bool:
        """Whether one more call of this worker may run; if so, ``ended`` has to be called."""
        with self._lock:
            running = self._by_worker.get(caller, 0)
            if running >= self._limits.worker_calls_max:
                return False
            self._by_worker[caller] = running + 1
            return True

    def ended(self, caller: str) -> None:
        """A call of this worker is over."""
        with self._lock:
            running = self._by_worker.pop(caller) - 1
            if running:
                self._by_worker[caller] = running

    def run(self, job: Callable[[], None]) -> bool:
        """Run something on a thread of its own; False when all are busy."""
        return self._crew.run(job)

    def stop(self) -> None:
        """No calls any more."""
        self.leases.forget()
        self._crew.stop()
