"""ShardClient: sends a request to its worker's home, with this machine's own lazy isolate as the answer to a refusal.

It drives the table of ``dispatch`` with real events. What it lends the home is one capability per request: the body
to read the rest from, and at the same time the fallback. Nothing is started for it. When it comes back in a refusal,
it is recognised as our own, and the request runs here from its first byte.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from msgspec.structs import replace

from actors.capability import Exports, ExportsFull
from actors.connection import LinkBroken
from actors.dispatch import Command, Event, Journey
from actors.exchange import (
    WINDOW_BYTES_MAX,
    Answered,
    Capability,
    Chunk,
    ColdCause,
    Ended,
    Outcome,
    RefusalReason,
    Refused,
    Request,
    Served,
)
from actors.link import Answer, BodySource
from actors.peer import Peer, PeerFailed, PeerLost, Peers
from actors.warmth import Warmth
from actors.wire import CAPABILITY, CHUNK, REQUEST, decode_verdict
from isolates.conversation import BodyLost
from tracing.recorder import Recorder
from tracing.trace import Attr, AttributeValue, SpanName

_log = logging.getLogger("everwarm.shard_client")

#: Refusals that say nothing of the home's room: like a home that is not there, they do not stick.
_PASSING = frozenset({RefusalReason.DRAINING, RefusalReason.AWAY})

#: Runs a request on this machine; ``LinkBroken`` when it has no host that could.
RunHere = Callable[[Request, BodySource], Awaitable[Answer]]


class LentBody:
    """What is behind the capability: the rest of a request body, read by whoever runs the request."""

    def __init__(self, journey: Journey, body: BodySource) -> None:
        self._journey = journey
        self._body = body
        self.sent_bytes = 0
        self.recalled = False

    async def read(self, bytes_max: int) -> Chunk:
        """The next chunk for the home. After the request came back, the home gets a body that broke off."""
        if self.recalled:
            return Chunk(lost=True)
        self._journey.on(Event.BODY_READ)
        try:
            data = await self._body.read(min(bytes_max, WINDOW_BYTES_MAX))
        except BodyLost:
            return Chunk(lost=True)
        if data is None:
            return Chunk(end=True)
        self.sent_bytes += len(data)
        return Chunk(data)


@dataclass(slots=True)
class Counts:
    """What happened to offers, since the start."""

    offered: int = 0
    answered: int = 0
    refused: int = 0
    lost: int = 0
    sent_bytes: int = 0


class Refusals:
    """Which versions' homes refused this machine: sticky until its own isolate of the version is gone."""

    #: Versions remembered; the one that was refused longest ago is forgotten, at the price of one more refusal.
    REMEMBERED_MAX = 65_536

    def __init__(self) -> None:
        self._versions: OrderedDict[str, RefusalReason] = OrderedDict()

    def remember(self, version: str, reason: RefusalReason) -> None:
        """The home refused ``version``."""
        self._versions[version] = reason
        if len(self._versions) > self.REMEMBERED_MAX:
            self._versions.popitem(last=False)

    def forget(self, version: str) -> None:
        """This machine's isolate of ``version`` is gone."""
        self._versions.pop(version, None)

    def __contains__(self, version: str) -> bool:
        return version in self._versions

    def __len__(self) -> int:
        return len(self._versions)


class ShardClient:
    """The sending half of sharding, one per Server."""

    def __init__(
        self, peers: Peers, exports: Exports[LentBody], run_here: RunHere, warmth: Warmth | None = None
    ) -> None:
        """``warmth`` learns what replies tell of other servers' load, and of what their isolates cost."""
        self._peers = peers
        self._warmth = warmth or Warmth()
        self._exports = exports
        self._run_here = run_here
        self.refusals = Refusals()
        self.counts = Counts()

    async def send(self, request: Request, body: BodySource, home: str, epoch: int, recorder: Recorder) -> Answer:
        """Offer ``request`` to ``home``; the answer is the home's or, if it refuses or is away, our own.

        The ``hop`` span goes to ``recorder`` when it is over, at the latest with the answer's end.
        """
        journey = Journey(request.head.method)
        journey.on(Event.ROUTED_HOME)
        lent = LentBody(journey, body)
        try:
            capability = self._exports.mint(lent)
        except ExportsFull as full:
            return EndedAnswer(Ended(Outcome.LOAD_SHED, str(full)))
        offer = Offer(self, journey, lent, capability, home, recorder)
        try:
            return await self._offer(offer, request, body, home, epoch)
        except BaseException:
            offer.release("cancelled")
            raise

    async def _offer(self, offer: "Offer", request: Request, body: BodySource, home: str, epoch: int) -> Answer:
        journey = offer.journey
        peer: Peer | None = None
        self.counts.offered += 1
        under_hop = offer.recorder.context.child(offer.hop_id).traceparent()
        began_s = _now_s()
        offered = replace(
            request,
            fallback=offer.capability,
            ring_epoch=epoch,
            traceparent=under_hop,
            rate_per_s=self._warmth.heat.rate_per_s(request.worker, began_s),
        )
        payload = REQUEST.encode(offered)
        self.counts.sent_bytes += len(payload)
        self._warmth.sent(home, request.worker, began_s)
        try:
            peer = await self._peers.get(f"{home}/shard")
            verdict = decode_verdict(await peer.call("serve", payload))
        except PeerLost as lost:
            self.counts.lost += 1
            command = journey.on_lost(delivered=lost.delivered)
            offer.release("lost")
            if command is Command.RUN_HERE:
                return await self._here(replace(request, at_home=False), body)
            return EndedAnswer(Ended(Outcome.HOME_LOST, f"{home} went away"))
        except PeerFailed as failed:
            _log.error("%s", failed)
            journey.on(Event.LOST)
            offer.release("failed")
            return EndedAnswer(Ended(Outcome.INTERNAL_ERROR, "the home failed"))
        except asyncio.CancelledError:
            journey.on(Event.CLIENT_GONE)
            if peer is not None:
                offer.abort_at(peer)
            raise
        if isinstance(verdict, Refused):
            if verdict.reason is not RefusalReason.AWAY:  # then nobody is there who could tell a load
                self._warmth.replied(home, verdict.load, _now_s())
            return await self._refused(offer, verdict, request, body)
        self.counts.answered += 1
        journey.on(Event.ANSWERED)
        round_trip_ms = (_now_s() - began_s) * 1e3 if verdict.first.ended is not None else None

        def heard(ended: Ended) -> None:
            now_s = _now_s()
            if ended.server:  # the home's own word, and not what became of the way to it
                self._warmth.replied(home, ended.load, now_s)
            self._warmth.ended_away(request.worker, request.version, ended, round_trip_ms, now_s)

        return HomeAnswer(offer, peer, verdict, home, heard)

    async def _refused(self, offer: "Offer", verdict: Refused, request: Request, body: BodySource) -> Answer:
        if self._exports.owned(verdict.fallback) is not offer.lent:
            raise PeerFailed("a refusal gave back a capability that was not lent for this request")
        self.counts.refused += 1
        command = offer.journey.on(Event.REFUSED)
        offer.release(verdict.reason.value)
        if command is Command.RUN_HERE_AND_REMEMBER and verdict.reason not in _PASSING:
            self.refusals.remember(request.version, verdict.reason)
        # A home that is away and a machine without a host are the platform's failure; a full home is not.
        neither = Outcome.INTERNAL_ERROR if verdict.reason in _PASSING else Outcome.LOAD_SHED
        request = replace(request, cold_cause=ColdCause.REFUSED.value, at_home=False)
        return RefusedAnswer(await self._here(request, body, neither), verdict.reason)

    async def _here(self, request: Request, body: BodySource, neither: Outcome = Outcome.INTERNAL_ERROR) -> Answer:
        """Run it on this machine. ``neither``: how it ends when this machine can not run it either."""
        try:
            return await self._run_here(request, body)
        except LinkBroken as away:
            return EndedAnswer(Ended(neither, f"the host is away: {away}"))


class Offer:
    """What is lent for one request, released exactly once; the ``hop`` span is its life."""

    def __init__(
        self,
        client: ShardClient,
        journey: Journey,
        lent: LentBody,
        capability: Capability,
        home: str,
        recorder: Recorder,
    ) -> None:
        self.journey = journey
        self.lent = lent
        self.capability = capability
        self.recorder = recorder
        self.hop_id = recorder.new_id()
        self._home = home
        self._began_ns = time.time_ns()
        self._client = client
        self._released = False
        self._aborting: asyncio.Task[None] | None = None

    def over(self, event: Event) -> None:
        """The answer is over."""
        self.journey.on(event)
        self.release("" if event is Event.ENDED else event.name.lower())

    def release(self, why_not: str = "") -> None:
        """Take the capability back, if it is still out. ``why_not``: why the home's answer was not the answer."""
        if self._released:
            return
        self._released = True
        self.lent.recalled = True
        self._client.counts.sent_bytes += self.lent.sent_bytes
        self._client._exports.release(self.capability)
        attributes: dict[str, AttributeValue] = {Attr.HOME: self._home, Attr.HOP: True}
        if why_not:
            attributes[Attr.REFUSED] = why_not
        self.recorder.span(SpanName.HOP, self._began_ns, time.time_ns(), attributes, span_id=self.hop_id)

    def abort_at(self, peer: Peer) -> None:
        """Tell the home, on the side, that nobody wants the answer."""
        self._aborting = asyncio.create_task(self._abort(peer))

    async def _abort(self, peer: Peer) -> None:
        try:
            await peer.call("abort", CAPABILITY.encode(self.capability))
        except (PeerLost, PeerFailed) as gone:
            _log.info("an abort did not arrive: %s", gone)


class HomeAnswer:
    """An answer that is read from the home."""

    def __init__(self, offer: Offer, peer: Peer, answered: Answered, home: str, heard: Callable[[Ended], None]) -> None:
        self._offer = offer
        self._heard = heard
        self._peer = peer
        self._served = answered.served
        self._rest = answered.rest
        self._home = home
        self._ended: Ended | None = None
        self.whole = False
        self._note(answered.first)
        self._first = answered.first.data

    async def served(self) -> Served | None:
        return None if self._served is None else replace(self._served, hop=True, home=self._home)

    async def read(self) -> bytes | None:
        if self._first:
            first, self._first = self._first, b""
            return first
        while not self.whole and self._ended is None:
            chunk = await self._next()
            if chunk.data:
                return chunk.data
        return None

    async def ended(self) -> Ended:
        while self._ended is None:
            await self._next()
        return self._ended

    async def _next(self) -> Chunk:
        assert self._rest is not None, "an answer without an end and without a rest"
        try:
            chunk = CHUNK.decode(await self._peer.call("read_response", CAPABILITY.encode(self._rest)))
        except (PeerLost, PeerFailed) as lost:
            chunk = Chunk(lost=True, ended=Ended(Outcome.HOME_LOST, str(lost)))
        self._note(chunk)
        return chunk

    def _note(self, chunk: Chunk) -> None:
        self.whole = self.whole or chunk.end
        if chunk.ended is not None and self._ended is None:
            self._ended = chunk.ended
            self._heard(chunk.ended)
            self._offer.over(Event.LOST if chunk.lost else Event.ENDED)

    def cancel(self) -> None:
        if self._ended is None:
            self._ended = Ended(Outcome.CANCELED)
            self._offer.over(Event.CLIENT_GONE)
            self._offer.abort_at(self._peer)


class RefusedAnswer:
    """Our own answer, after the home refused: the same, and it says so."""

    def __init__(self, local: Answer, reason: RefusalReason) -> None:
        self._local = local
        self._reason = reason
        self.read = local.read
        self.ended = local.ended
        self.cancel = local.cancel

    @property
    def whole(self) -> bool:
        return self._local.whole

    async def served(self) -> Served | None:
        served = await self._local.served()
        return None if served is None else replace(served, refused=self._reason.value)


class EndedAnswer:
    """The answer of a request that ended before any guest was reached."""

    whole = False

    def __init__(self, ended: Ended) -> None:
        self._ended = ended

    async def served(self) -> Served | None:
        return None

    async def read(self) -> bytes | None:
        return None

    async def ended(self) -> Ended:
        return self._ended

    def cancel(self) -> None:
        """Nothing runs."""


def _now_s() -> float:
    return asyncio.get_running_loop().time()
