"""The host processes of one machine: which are there, and answers that survive the loss of one of them.

A host is gone when nobody listens at its socket. A link that breaks is not yet that: the host may have had too many
connections. The request of that link goes elsewhere at once, and the host is looked at on the side. A process that dies
closes its sockets in no order, so for a moment it may still take a connection, which then breaks too: only one that
stays says that the host is there.

Hosts are of one cordon each (``cordons``), and a request goes to one of its version's cordon or to none. Which sockets
those are is known from the cordon's name, so whoever asks agrees with everybody else without having talked; a cordon
is *known* here from its first request on, and its hosts are believed to be there until they are found gone.

Who is gone may come back: the same role in a new process, at the same socket, without any isolate. It is looked for
until it is there, and then it is chosen as before. Hosts of another cordon than the default one may be gone for good,
since nobody has workers of it any more: after a minute they are forgotten, and looked for by the next request. One that
was restarted before anybody missed it says so itself (``began``), so that nobody believes in isolates that it had.
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
from actors.wire import REQUEST
from actors.worker import CORDON_DEFAULT

_log = logging.getLogger("everwarm.hosts")

#: How long a connection must stay for its host to be there. A process that dies is through in a few milliseconds.
_STAYS_S = 0.1
#: Connections that break before one gives up to find out, and leaves it to the next request.
_LOOKS_MAX = 100
#: How often a request is given once more to a Server that did not read it, and how long after: half a second in all, in
#: which a process that was killed is gone and one that is full may have room.
_UNREAD_MAX, _UNREAD_AGAIN_S = 5, 0.1
#: How often a host that is gone is looked for: a failed connection to a Unix socket costs some 20 µs.
_BACK_EVERY_S = 0.1

#: For how long a cordon's hosts are looked for: longer than a restart waits at most (``supervision``).
_FORGOTTEN_AFTER_S = 60.0

#: The sockets of all hosts of a cordon that a machine should have.
SocketsOf = Callable[[str], Sequence[Path]]
#: Gives a request whose host was lost to somebody else; ``LinkBroken`` when there is nobody.
Again = Callable[[Request], Awaitable[Answer]]


class NoHost(LinkBroken):
    """No host of this machine is left that could run the request."""


class HostAnswer:
    """An answer from a host. Until its head is here, the loss of the host may lead to another one's answer."""

    def __init__(self, answer: LinkAnswer, request: Request, again: Again, mute: str = "") -> None:
        """``mute``: a socket at which nobody says STARTED, so that its silence says nothing, once it has read."""
        self._answer: Answer = answer
        self._request = request
        self._again = again
        self._mute = mute
        self._unread = 0  # how often it was not read there
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
            if answer.path == self._mute and answer.unread and self._unread < _UNREAD_MAX:
                # Whoever was there is dying, or takes no more connections; it saw nothing of this request.
                self._unread += 1
                await asyncio.sleep(_UNREAD_AGAIN_S)
            else:
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
        self, sockets_of: SocketsOf, links: Links, on_lost: Callable[[str], None] = lambda socket: None
    ) -> None:
        self._sockets_of = sockets_of
        self._all: dict[str, tuple[str, ...]] = {}  # by cordon
        self._alive: dict[str, tuple[str, ...]] = {}
        self._links = links
        self._on_lost = on_lost
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._awaiting: dict[str, asyncio.Task[None]] = {}
        self._came_back = asyncio.Event()
        self._asked: set[str] = set()  # who may have isolates of ours
        self.lost = 0
        self.alive_of(CORDON_DEFAULT)

    @property
    def all(self) -> tuple[str, ...]:
        """The sockets of all hosts that there should be, of the cordons that are known."""
        return tuple(socket for sockets in self._all.values() for socket in sockets)

    @property
    def alive(self) -> tuple[str, ...]:
        """The sockets of the hosts that are not known to be gone."""
        return tuple(socket for sockets in self._alive.values() for socket in sockets)

    def alive_of(self, cordon: str) -> tuple[str, ...]:
        """Those of a cordon; all of it is believed to be there when nothing was known of it."""
        alive = self._alive.get(cordon)
        if alive is None:
            alive = self._all[cordon] = self._alive[cordon] = tuple(str(path) for path in self._sockets_of(cordon))
        return alive

    def cordon_of(self, socket: str) -> str | None:
        """The cordon of the host at ``socket``; None when none is known to listen there."""
        return next((cordon for cordon, sockets in self._all.items() if socket in sockets), None)

    def count(self, cordon: str) -> int:
        """How many hosts of a cordon there should be; 0 when it is not known."""
        return len(self._all.get(cordon, ()))

    def of(self, version: str, cordon: str) -> str | None:
        """The socket of the host that runs a version of ``cordon``; None when no host is left."""
        return next(iter(by_preference(version, self.alive_of(cordon))), None)

    async def run(self, request: Request, body: BodySource, elsewhere: Again | None = None) -> HostAnswer:
        """Give a request to the host of its version, which is one of its cordon.

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
        for path in by_preference(request.version, self.alive_of(request.cordon)):
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
        if self._is_alive(path) and path not in self._looking:
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

    async def tell(self, request: Request, kind: Frame) -> None:
        """Send a request, as a frame without a reply, to the host of its version. ``LinkBroken`` when it does not
        arrive."""
        path = self.of(request.version, request.cordon)
        if path is None:
            raise NoHost("no host is left on this machine")
        await self._tell(path, kind, REQUEST.encode(request))

    async def tell_all(self, kind: Frame, payload: bytes) -> None:
        """Send a frame without a reply to all hosts; those that are away do not get it."""
        for path in self.alive:
            await self.tell_one(path, kind, payload)

    async def tell_one(self, path: str, kind: Frame, payload: bytes) -> None:
        """Send a frame without a reply to the host at ``path``, if it is there."""
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

    async def back(self, cordon: str, within_s: float) -> bool:
        """Wait until a host of a cordon is there, when all are gone; False when none came."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not self.alive_of(cordon):
                    self._came_back.clear()
                    await self._came_back.wait()
        return bool(self.alive_of(cordon))

    def began(self, path: str) -> None:
        """A new process listens at ``path``: what the one before it had is gone, if anything was asked of it."""
        if self.cordon_of(path) is None:
            return
        if self._is_alive(path) and path in self._asked:
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
        for path in self.alive:
            await self._links.open_ahead(path)

    def _is_alive(self, path: str) -> bool:
        cordon = self.cordon_of(path)
        return cordon is not None and path in self._alive[cordon]

    def _gone(self, path: str) -> None:
        cordon = self.cordon_of(path)
        if cordon is not None and path in self._alive[cordon]:
            _log.error("the host at %s is gone", path)
            self._alive[cordon] = tuple(other for other in self._alive[cordon] if other != path)
            self._lose(path)
            self._awaiting[path] = asyncio.create_task(self._await(path, cordon))

    def _lose(self, path: str) -> None:
        self.lost += 1
        self._asked.discard(path)
        self._on_lost(path)

    async def _await(self, path: str, cordon: str) -> None:
        """Until a host listens at ``path`` again, or its cordon is forgotten."""
        until_s = asyncio.get_running_loop().time() + _FORGOTTEN_AFTER_S
        back = False
        while not back:
            await asyncio.sleep(_BACK_EVERY_S)
            with suppress(LinkBroken):
                back = await self._links.stays(path, _STAYS_S)
            late = asyncio.get_running_loop().time() > until_s
            if late and not back and cordon != CORDON_DEFAULT and not self._alive[cordon]:
                self._forget(cordon)
                return
        self._is_back(path)

    def _forget(self, cordon: str) -> None:
        """The last host of a cordon is away for a long time."""
        del self._alive[cordon]
        for path in self._all.pop(cordon):
            awaiting = self._awaiting.pop(path, None)
            if awaiting is not None and awaiting is not asyncio.current_task():
                awaiting.cancel()

    def _is_back(self, path: str) -> None:
        awaiting = self._awaiting.pop(path, None)
        if awaiting is not None and awaiting is not asyncio.current_task():
            awaiting.cancel()
        cordon = self.cordon_of(path)
        if cordon is not None and path not in self._alive[cordon]:
            _log.info("the host at %s is back", path)
            alive = self._alive[cordon]
            self._alive[cordon] = tuple(o for o in self._all[cordon] if o in alive or o == path)
            self._came_back.set()
