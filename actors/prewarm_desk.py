"""PrewarmDesk: what starts isolates of a Server's machine ahead of their requests, whoever thinks that one is likely.

    who                                          how                 where it is started
    a client's hello names the worker            ``likely``          where its request would run: here, or by a call
    another machine was told of such a hello     the call            here
    a deploy, before it switches                 the call, waited    here, at the home
    the ring, before it moves a worker           ``Handover``        here, at the new home
    a worker that is hot here, at home elsewhere ``hot``             here
    a worker's habits                            ``used``            here, at the home

What may begin and when is decided by the ``Prewarmer``'s queue. ``host_said`` tells all of them how it ended.
"""

import asyncio
import logging

from msgspec.structs import replace

from actors.exchange import ColdCause, Outcome, Request, RequestHead
from actors.handover import Handover, first_request
from actors.hosts import Hosts
from actors.peer import Calls, PeerFailed, PeerLost, Peers
from actors.prewarm import PrewarmLimits, Source
from actors.prewarmer import Prewarmer
from actors.route_finder import RouteFinder
from actors.routing import Place
from actors.view import decode_plain, encode_plain
from actors.view_keeper import ViewKeeper
from actors.warmth import Warmth
from actors.wire import REQUEST
from actors.worker import Version

_log = logging.getLogger("everwarm.server")

#: The longest that a deploy waits for the new version's first isolate: the startup limit, and a turn in the queue.
_PRELOAD_S_MAX = 3.0
#: The longest that another server may take for a prewarm. One that hangs would gather what is told to it on the side,
#: at 200 prewarms a second, until this side work has no place for anything else.
_FAVOUR_S_MAX = 2.0


class PrewarmDesk:
    """The starts ahead of one Server's machine. ``cores``: the machine's."""

    def __init__(
        self,
        name: str,
        *,
        cores: int,
        keeper: ViewKeeper,
        routes: RouteFinder,
        warmth: Warmth,
        hosts: Hosts,
        peers: Peers,
        limits: PrewarmLimits | None = None,
    ) -> None:
        self._name = name
        self._keeper = keeper
        self._routes = routes
        self._warmth = warmth
        self._hosts = hosts
        self._peers = peers
        self._prewarmer = Prewarmer(cores, hosts.tell, self._due, limits)
        self._handover = Handover(
            name,
            view=lambda: keeper.view,
            is_warm=warmth.is_warm,
            heat=lambda worker: warmth.heat.rate_per_s(worker, _now_s()),
            prewarm=self._hand_over,
        )
        self.calls: Calls = {"prewarm": self.prewarm, "preload": self.preload, **self._handover.calls}

    async def work(self) -> None:
        """Begin what may begin, until this is cancelled."""
        await self._prewarmer.work()

    def statistics(self) -> dict[str, object]:
        """Counters, for operators and tests."""
        return self._prewarmer.statistics()

    # ------------------------------------------------------------------------------------- what this machine thinks

    def hot(self, request: Request) -> None:
        """A worker is asked so often here that a copy of its own pays, beside that at its home."""
        rate_per_s = self._warmth.heat.rate_per_s(request.worker, _now_s())
        self._prewarmer.offer(replace(_bare(request), at_home=False, rate_per_s=rate_per_s), Source.HOT)

    def used(self, worker: str) -> None:
        """A worker was asked on this machine. If its home is here, its isolate is kept by its habits."""
        if self._routes.home_of(worker) == self._name:
            self._prewarmer.used(worker)

    async def likely(self, request: Request) -> None:
        """A request for a worker is likely: start an isolate where the request would run."""
        resolved = self._routes.resolve(request)
        if isinstance(resolved, Outcome) or self._warmth.is_warm(resolved.version):
            return
        home, route = self._routes.route(resolved)
        resolved = replace(resolved, at_home=home == (route.server or self._name))
        if route.place is Place.HERE:
            self._prewarmer.offer(resolved, Source.SERVER_NAME)
            return
        try:
            async with asyncio.timeout(_FAVOUR_S_MAX):
                await (await self._peers.get(f"{route.server}/server")).call("prewarm", REQUEST.encode(resolved))
        except (PeerLost, PeerFailed, TimeoutError) as away:
            _log.info("a prewarm was dropped: %s", away or "it took too long")

    def _due(self, worker: str) -> Request | None:
        """What starts the isolate of a worker that is due by habit, if it is cold and this is its home."""
        version = self._keeper.view.version_for(worker, b"")
        if isinstance(version, Outcome) or self._warmth.is_warm(version.version_id):
            return None
        return first_request(version) if self._routes.home_of(worker) == self._name else None

    def host_said(self, word: str, version: str) -> None:
        """A host said that a version is ``warm`` or ``cold``, as ``warmth`` knows by now, or ``unstarted``."""
        warm = self._warmth.is_warm(version)
        self._prewarmer.over(version, warm=warm, started=word != "unstarted")
        self._handover.heard("warm" if warm else word, version)

    # -------------------------------------------------------------------------------------------- what others know

    async def prewarm(self, payload: bytes) -> bytes:
        """Another machine knows that a request for one of this home's workers is likely."""
        request = REQUEST.decode(payload)
        if not self._warmth.is_warm(request.version):
            self._prewarmer.offer(request, Source.SERVER_NAME)
        return b""

    async def preload(self, payload: bytes) -> bytes:
        """A version is about to be switched to, and this is its worker's home: have an isolate of it here.

        Over when it is there, or after 3 s: ``{"warm": bool}``.
        """
        plain = decode_plain(payload)
        version = Version.from_plain(plain["version"])
        self._keeper.expect(version, plain["secrets"])
        warm = self._warmth.is_warm(version.version_id)
        if not warm and self._hosts.alive_of(version.cordon):
            request = replace(first_request(version), cold_cause=ColdCause.DEPLOY.value)
            warm = await self._prewarmer.offer_and_wait(request, Source.DEPLOY, _PRELOAD_S_MAX)
        return encode_plain({"warm": warm})

    async def _hand_over(self, request: Request) -> None:
        """This machine is about to become the home of a request's worker."""
        self._prewarmer.offer(request, Source.HANDOVER)


def _bare(request: Request) -> Request:
    """A request without what its client sent: what starts an isolate waits in a queue, and is read on its way."""
    head = RequestHead("", "", "", "")
    return replace(
        request, request_id="", head=head, traceparent="", body_first=b"", body_complete=True, lost_with=(),
        context=b"", report_traces=None,
    )  # fmt: skip


def _now_s() -> float:
    return asyncio.get_running_loop().time()
