"""The host processes of one machine: which are there, and answers that survive the loss of one of them.

A host is gone when nobody listens at its socket. A link that breaks is not yet that: the host may have had too many
connections. The request of that link goes elsewhere at once, and the host is looked at on the side. A process that dies
closes its sockets in no order, so for a moment it may still take a connection, which then breaks too: only one that
stays says that the host is there.

Who is gone may come back: the same role in a new process, at the same socket, without any isolate. It is looked for
until it is there, and then it is chosen as before. One that was restarted before anybody missed it says so itself
(``began``), so that nobody believes in isolates that it had.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from actors.connection import Frame, LinkBroken, NobodyListens
from actors.exchange import Ended, Outcome, Request, Served
from actors.host_choice import by_preference, may_run_again
from actors.link import Answer, BodySource, LinkAnswer, Links

_log = logging.getLogger("everwarm.hosts")

#: How long a connection must stay for its host to be there. A process that dies is through in a few milliseconds.
_STAYS_S = 0.1
#: Connections that break before one gives up to find out, and leaves it to the next request.
_LOOKS_MAX = 100
#: How often a host that is gone is looked for: a failed connection to a Unix socket costs some 20 µs.
_BACK_EVERY_S = 0.1

#: Gives a request whose host was lost to somebody else; ``LinkBroken`` when there is nobody.
Again = Callable[[Request], Awaitable[Answer]]


class NoHost(LinkBroken):
    """No host of this machine is left that could run the request."""


class HostAnswer:
    """An answer from a host. Until its head is here, the loss of the host may lead to another one's answer."""

    def __init__(self, answer: LinkAnswer, request: Request, again: Again, mute: str = "") -> None:
        """``mute``: a socket at which nobody says STARTED, so that its silence says nothing."""
        self._answer: Answer = answer
        self._request = request
        self._again = again
        self._mute = mute
        self.version = request.version
        self._cancelled = False
        #: The host was lost, nothing was done, and there was nobody else to give the request to.
        self.handed_back = False

    async def served(self) -> Served | None:
        while True:
            answer = self._answer
            served = await answer.served()
            if served is not None or not isinstance(answer, LinkAnswer) or not answer.lost or self._cancelled:
                return served
            self._request = replace(self._request, lost_with=(*self._request.lost_with, answer.path))
            if not may_run_again(
                self._request.head.method,
                started=answer.started or answer.pulled or answer.path == self._mute,
                body_intact=not answer.pulled,
                hosts_lost=len(self._request.lost_with),
            ):
                return None
            try:
                self._answer = await self._again(self._request)
            except LinkBroken as nobody:
                _log.error("request %s was lost with its host: %s", self._request.request_id, nobody)
                self.handed_back = True
                return None
            if self._cancelled:
                self._answer.cancel()

    async def read(self) -> bytes | None:
        return await self._answer.read()

    @property
    def whole(self) -> bool:
        return self._answer.whole

    async def ended(self) -> Ended:
        ended = await self._answer.ended()
        if isinstance(self._answer, LinkAnswer) and self._answer.lost:
            return Ended(Outcome.HOME_LOST, "the process that ran it went away")
        return ended

    def ready(self) -> bool:
        """Whether something has arrived, so that the next read does not wait."""
        return isinstance(self._answer, LinkAnswer) and self._answer.ready()

    @property
    def is_over(self) -> bool:
        """Whether the last word has been read."""
        return isinstance(self._answer, LinkAnswer) and self._answer.is_over

    @property
    def path(self) -> str:
        """The socket that it comes from; empty when it comes from another machine."""
        return self._answer.path if isinstance(self._answer, LinkAnswer) else ""

    def cancel(self) -> None:
        self._cancelled = True
        self._answer.cancel()


class Hosts:
    """The hosts of one machine as one role sees them. ``on_lost`` hears of each that is gone, once, by its socket."""

    def __init__(
        self, sockets: Sequence[Path], links: Links, on_lost: Callable[[str], None] = lambda socket: None
    ) -> None:
        self._all = tuple(str(socket) for socket in sockets)
        self._alive = self._all
        self._links = links
        self._on_lost = on_lost
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._awaiting: dict[str, asyncio.Task[None]] = {}
        self._came_back = asyncio.Event()
        self._asked: set[str] = set()  # who may have isolates of ours
        self.lost = 0

    @property
    def all(self) -> tuple[str, ...]:
        """The sockets of all hosts that there should be."""
        return self._all

    @property
    def alive(self) -> tuple[str, ...]:
        """The sockets of the hosts that are not known to be gone."""
        return self._alive

    def of(self, version: str) -> str | None:
        """The socket of the host that runs a version; None when no host is left."""
        return next(iter(by_preference(version, self._alive)), None)

    async def run(self, request: Request, body: BodySource, elsewhere: Again | None = None) -> HostAnswer:
        """Give a request to the host of its version.

        ``NoHost`` when none is left, another ``LinkBroken`` when the host takes no more connections. ``elsewhere`` is
        called when all hosts were lost after this and before the guest started.
        """

        async def again(lost: Request) -> Answer:
            self._look_at(lost.lost_with[-1])
            try:
                return await self._exchange(lost, body)
            except NoHost:
                if elsewhere is None:
                    raise
                return await elsewhere(lost)

        for path in request.lost_with:
            self._look_at(path)
        return HostAnswer(await self._exchange(request, body), request, again)

    async def _exchange(self, request: Request, body: BodySource) -> LinkAnswer:
        for path in by_preference(request.version, self._alive):
            if path in request.lost_with:
                continue
            try:
                answer = await self._links.exchange(path, request, body)
            except NobodyListens:
                self._gone(path)
            else:
                self._asked.add(path)
                return answer
        raise NoHost("no host is left on this machine")

    def _look_at(self, path: str) -> None:
        """Find out, on the side, whether a host is still there."""
        if path in self._alive and path not in self._looking:
            task = self._looking[path] = asyncio.create_task(self._look(path))
            task.add_done_callback(lambda _: self._looking.pop(path, None))

    async def _look(self, path: str) -> None:
        for _ in range(_LOOKS_MAX):
            try:
                if await self._links.stays(path, _STAYS_S):
                    _log.info("%s broke a link and is there", path)
                    return
            except NobodyListens:
                self._gone(path)
                return
            except LinkBroken as busy:
                _log.info("%s broke a link and is busy: %s", path, busy)
                return

    async def tell(self, version: str, kind: Frame, payload: bytes) -> None:
        """Send a frame without a reply to the host of a version. ``LinkBroken`` when it does not arrive."""
        path = self.of(version)
        if path is None:
            raise NoHost("no host is left on this machine")
        await self._tell(path, kind, payload)

    async def tell_all(self, kind: Frame, payload: bytes) -> None:
        """Send a frame without a reply to all hosts; those that are away do not get it."""
        for path in self._alive:
            try:
                await self._tell(path, kind, payload)
            except LinkBroken as away:
                _log.info("%s was not told: %s", path, away)

    async def _tell(self, path: str, kind: Frame, payload: bytes) -> None:
        try:
            await self._links.tell(path, kind, payload)
        except NobodyListens:
            self._gone(path)
            raise

    async def back(self, within_s: float) -> bool:
        """Wait until a host is there, when all are gone; False when none came."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not self._alive:
                    self._came_back.clear()
                    await self._came_back.wait()
        return bool(self._alive)

    def began(self, path: str) -> None:
        """A new process listens at ``path``: what the one before it had is gone, if anything was asked of it."""
        if path not in self._all:
            return
        if path in self._alive and path in self._asked:
            self._lose(path)
        self._is_back(path)

    async def stop(self) -> None:
        """Look for nobody any more."""
        tasks = [*self._looking.values(), *self._awaiting.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def open_ahead(self) -> None:
        """Have a connection to each host before the first request. One that does not listen yet is not gone."""
        for path in self._alive:
            await self._links.open_ahead(path)

    def _gone(self, path: str) -> None:
        if path in self._alive:
            _log.error("the host at %s is gone", path)
            self._alive = tuple(other for other in self._alive if other != path)
            self._lose(path)
            self._awaiting[path] = asyncio.create_task(self._await(path))

    def _lose(self, path: str) -> None:
        self.lost += 1
        self._asked.discard(path)
        self._on_lost(path)

    async def _await(self, path: str) -> None:
        """Until a host listens at ``path`` again."""
        back = False
        while not back:
            await asyncio.sleep(_BACK_EVERY_S)
            with suppress(LinkBroken):
                back = await self._links.stays(path, _STAYS_S)
        self._is_back(path)

    def _is_back(self, path: str) -> None:
        awaiting = self._awaiting.pop(path, None)
        if awaiting is not None and awaiting is not asyncio.current_task():
            awaiting.cancel()
        if path not in self._alive:
            _log.info("the host at %s is back", path)
            self._alive = tuple(other for other in self._all if other in self._alive or other == path)
            self._came_back.set()
