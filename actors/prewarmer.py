"""Prewarmer: carries out what a server's ``PrewarmQueue`` decides, and hears from the hosts what became of it.

Everybody on this machine who thinks that a request is likely comes here with a request for the version, as the host
needs it. Most of them do not wait; who does (a deploy before its switch) waits with a bound, and goes on without.
"""

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable

from actors.connection import Frame, LinkBroken
from actors.exchange import Request
from actors.next_use import NextUseTable
from actors.prewarm import Prewarm, PrewarmLimits, PrewarmQueue, Source

_log = logging.getLogger("everwarm.prewarmer")

#: How often it is looked who is due by habit: habits are known to a second at best.
_AGENDA_EVERY_S = 1.0
#: Workers on the agenda: as many as have habits.
_AGENDA_MAX = 16_384

#: Sends a request, as a frame of that kind, to the host of its version.
TellHost = Callable[[Request, Frame], Awaitable[None]]


class Prewarmer:
    """The prewarms of one server. ``due`` makes the request for a worker that is due, or says that none is needed."""

    def __init__(
        self,
        cores: int,
        tell_host: TellHost,
        due: Callable[[str], Request | None],
        limits: PrewarmLimits | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """``clock``: seconds; the event loop's, unless a test has another."""
        self._now_s = clock or _loop_s
        self.queue: PrewarmQueue[Request] = PrewarmQueue(cores, limits or PrewarmLimits())
        self.next_use = NextUseTable()
        self._tell_host = tell_host
        self._due = due
        self._changed = asyncio.Event()
        self._waiters: dict[str, list[asyncio.Future[bool]]] = {}
        self._agenda: list[tuple[float, str]] = []
        self._unstarted = 0

    def offer(self, request: Request, source: Source) -> bool:
        """An isolate for the version of ``request`` would be of use; returns at once."""
        taken = self.queue.offer(request.version, source, request, self._now_s())
        self._changed.set()
        return taken

    async def offer_and_wait(self, request: Request, source: Source, wait_s: float) -> bool:
        """The same, and wait until it is there: False when that takes longer than ``wait_s``, or it does not start."""
        if not self.offer(request, source):
            return False
        over: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(request.version, []).append(over)
        try:
            async with asyncio.timeout(wait_s):
                return await over
        except TimeoutError:
            return False
        finally:
            waiting = self._waiters.get(request.version, [])
            if over in waiting:
                waiting.remove(over)
            if not waiting:
                self._waiters.pop(request.version, None)

    def over(self, version: str, *, warm: bool, started: bool = True) -> None:
        """A host said that a version is warm, or that it could not be started; ``started``: a start has ended."""
        self._unstarted += not started and self.queue.knows(version)
        self.queue.done(version, self._now_s(), started=started)
        if warm:
            self.queue.withdraw(version)
        for waiter in self._waiters.pop(version, ()):
            if not waiter.done():
                waiter.set_result(warm)
        self._changed.set()

    def used(self, worker: str) -> None:
        """A worker whose isolate is kept here was asked: when it will be asked again goes on the agenda."""
        now_s = self._now_s()
        self.next_use.note(worker, now_s)
        use = self.next_use.next_use(worker, now_s)
        if use is not None and use.regular and len(self._agenda) < _AGENDA_MAX:
            heapq.heappush(self._agenda, (use.prewarm_s, worker))

    async def work(self) -> None:
        """Begin what may begin, until this is cancelled."""
        while True:
            self._changed.clear()
            try:
                self._look_at_agenda()
                while (prewarm := self.queue.next(self._now_s())) is not None:
                    await self._begin(prewarm)
            except Exception:
                _log.exception("a prewarm failed")  # and is forgotten; deploys and hand-overs need the next ones
            wait_s = self.queue.wait_s(self._now_s())
            try:
                async with asyncio.timeout(_AGENDA_EVERY_S if wait_s is None else min(wait_s, _AGENDA_EVERY_S)):
                    await self._changed.wait()
            except TimeoutError:
                pass  # the budget has recovered, or somebody may be due

    async def _begin(self, prewarm: Prewarm[Request]) -> None:
        kind = Frame.PREWARM if prewarm.start_type == "prewarm" else Frame.PRELOAD
        try:
            await self._tell_host(prewarm.recipe, kind)
        except LinkBroken as away:
            _log.info("a prewarm was dropped: %s", away)
            self.over(prewarm.version, warm=False, started=False)

    def _look_at_agenda(self) -> None:
        now_s = self._now_s()
        while self._agenda and self._agenda[0][0] <= now_s:
            _, worker = heapq.heappop(self._agenda)
            use = self.next_use.next_use(worker, now_s)
            if use is not None and use.covers(now_s) and (request := self._due(worker)) is not None:
                self.queue.offer(request.version, Source.NEXT_USE, request, now_s)

    def statistics(self) -> dict[str, object]:
        """Counters, for operators and tests."""
        return {
            "begun": {source.value: count for source, count in self.queue.begun.items() if count},
            "waiting": len(self.queue),
            "turned_away": self.queue.turned_away,
            "dropped": self.queue.dropped,
            "unstarted": self._unstarted,
            "habits": len(self.next_use),
        }


def _loop_s() -> float:
    return asyncio.get_running_loop().time()
