"""Peers: roles in other processes or on other machines, behind actor handles. One of the two files that import ray.

A role calls a peer by method name with one ``bytes`` and gets one ``bytes``: nested Python objects are what makes a
Ray call slow. A peer that is gone is ``PeerLost``, whatever Ray calls it.

**Was it delivered?** Ray cannot say whether a call that failed had been executed, so a first loss is
``delivered=None``: unknown. From then on the peer is known to be away, and calls fail at once with
``delivered=False`` until a probe, at most one a second, is answered again. That is what lets everything after the
first loss fall back without a doubt. The first probe goes out at once, and nobody has to call for the next ones: a
loss that is long over would otherwise be paid for by the next caller, and that may be one who cannot fall back, such as
a guest that reads its body.

**Directly.** What is on a request's path goes over a line of its own (``call_line.py``) once there is one, and through
Ray until then. Nobody waits for a line: it is opened on the side, at the first call, and again after it broke, at most
once a second. A line that breaks is a lost peer like any other, so a machine that is cut off is noticed where its
requests are, not where Ray looks. One that is in doubt is sent no request: those run here until it is heard again.

Handles are exchanged once, when two roles first meet, through an *introducer* (the ControlPlane's directory); they
are kept, since handles looked up by name do not keep an actor alive. A handle whose actor died is good for nothing any
more: then the probes ask the introducer whether another actor has come in its place.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

import ray
import ray.exceptions

from actors.call_line import CallFailed, CallLine, LineLost, LineOffer, decode_offer
from actors.connection import FRAME_BYTES_MAX

_log = logging.getLogger("everwarm.peer")

#: The method by which a role tells, through Ray alone, how it is called directly.
OFFER = "line"

#: How long an absent peer is left alone before it is asked again.
_PROBE_EVERY_S = 1.0
#: A probe that takes longer means that the peer is not back.
_PROBE_TIMEOUT_S = 5.0
#: An introduction is one small call. A request may wait for it, and must not wait for an introducer that hangs.
_INTRODUCTION_S_MAX = 2.0
#: How long after one attempt to open a line the next may begin.
_OPEN_EVERY_S = 1.0
#: What is larger goes through Ray, which puts it into its object store: a frame holds the call's id and method too.
_DIRECT_BYTES_MAX = FRAME_BYTES_MAX - 1_024
#: Calls whose caller has another way: a request that is not sent to its home runs where it is. To a home that may be
#: gone they are not sent, which is certain, where a loss is not.
_HAS_ANOTHER_WAY = frozenset({"serve"})
#: Probes in a row. A peer that is away for longer has left, most likely; the next call begins again.
_PROBES_MAX = 60

#: Who died and comes again as another actor does so within seconds, or in minutes when it is a whole machine. Each
#: look is a question to the ControlPlane, and with hundreds of machines all of them ask for the one that died.
_PROBES_SOON = 8
_PROBE_LATER_EVERY_S = 5.0

#: The actor handle of whoever is at an address, or None.
Introduce = Callable[[str], Awaitable[Any]]
#: What is shorter goes inline with each call, and is not worth a place in Ray's object store.
_SHARED_BYTES_MIN = 100_000


class Shared(bytes):
    """A payload for several peers: bytes for those in this process; those behind Ray are sent where it lies.

    Ray keeps it for as long as this object is there, and brings it once to each machine, also from one another.
    """

    ref: Any


#: The methods of a role that others may call.
Calls = dict[str, Callable[[bytes], Awaitable[bytes]]]


class PeerLost(Exception):
    """The peer went away. ``delivered``: False when the call certainly did not reach it, None when that is unknown."""

    def __init__(self, peer: str, *, delivered: bool | None) -> None:
        super().__init__(f"{peer} is not reachable")
        self.delivered = delivered


class PeerFailed(Exception):
    """The peer is there and its method raised: a bug there, not a business answer."""


class Peer(Protocol):
    """A role somewhere."""

    async def call(self, method: str, payload: bytes = b"") -> bytes:
        """Call one of its methods. ``PeerLost`` when it is away, ``PeerFailed`` when it failed."""


class Peers(Protocol):
    """All roles one can meet, by address (``server-2/shard``)."""

    async def get(self, address: str) -> Peer:
        """The peer at ``address``. ``PeerLost`` with ``delivered=False`` when there is none."""


class RayPeer:
    """A peer behind a Ray actor handle.

    One event loop serves all calls of a role: Ray gives each concurrency group a loop of its own, and a role's sockets
    and futures belong to one. Nothing in a role blocks its loop, so a probe is not held up by slow requests.
    """

    def __init__(
        self,
        address: str,
        handle: Any,
        open_line: Callable[[LineOffer], Awaitable[CallLine]] = CallLine.open,
        introduce: Introduce | None = None,
    ) -> None:
        """``introduce`` is asked for another handle when this one's actor is dead."""
        self.address = address
        self._introduce = introduce
        self.counts = {"direct": 0, "through_ray": 0}
        self._open_line = open_line
        self._line: CallLine | None = None
        self._opening: asyncio.Task[None] | None = None
        self._open_again_s = 0.0
        self._take(handle)
        self._away = False
        self._probing: asyncio.Task[None] | None = None

    def _take(self, handle: Any) -> None:
        self._handle = handle
        # Task events would tell Ray's head of every request.
        self._remote = handle.call.options(enable_task_events=False).remote

    async def call(self, method: str, payload: bytes = b"") -> bytes:
        if self._away:
            self._begin_probing()
            raise PeerLost(self.address, delivered=False)
        line = self._line_for(method, payload)
        if line is None:
            return await self._through_ray(method, payload)
        if line.is_in_doubt and method in _HAS_ANOTHER_WAY:
            raise PeerLost(self.address, delivered=False)
        self.counts["direct"] += 1
        try:
            return await line.call(method, payload)
        except LineLost as lost:
            self._lost()
            raise PeerLost(self.address, delivered=None if lost.sent else False) from lost
        except CallFailed as failed:
            raise PeerFailed(f"{self.address}.{method}: {failed}") from failed

    async def _through_ray(self, method: str, payload: bytes) -> bytes:
        self.counts["through_ray"] += 1
        try:
            answer: bytes = await self._remote(method, payload.ref if isinstance(payload, Shared) else payload)
            return answer
        except ray.exceptions.RayActorError as lost:
            self._lost()
            raise PeerLost(self.address, delivered=None) from lost
        except ray.exceptions.RayTaskError as failed:
            raise PeerFailed(f"{self.address}.{method}: {failed.cause}") from failed
        except ray.exceptions.RayError as broken:
            # Something of Ray's on the way: the argument's or the answer's owner, a full store, a raylet. The peer may
            # be well, and the call may have been carried out.
            raise PeerLost(self.address, delivered=None) from broken

    def _line_for(self, method: str, payload: bytes) -> CallLine | None:
        """The line, if it is open and for this; it is opened on the side if it is not."""
        line = self._line
        if line is None or not line.is_open:
            now_s = asyncio.get_running_loop().time()
            if now_s >= self._open_again_s and (self._opening is None or self._opening.done()):
                self._open_again_s = now_s + _OPEN_EVERY_S
                self._opening = asyncio.create_task(self._open())
            return None
        return line if method in line.methods and len(payload) <= _DIRECT_BYTES_MAX else None

    async def _open(self) -> None:
        try:
            offer = decode_offer(await self._remote(OFFER, b""))
            if offer is None:
                self._open_again_s = math.inf
            else:
                self._line = await self._open_line(offer)
        except (ray.exceptions.RayError, LineLost) as away:
            _log.info("%s is called through Ray: %s", self.address, away)

    def _lost(self) -> None:
        self._away = True
        if self._line is not None:
            self._line.close()
            self._line = None
        self._open_again_s = 0.0  # whoever comes back may be another process, with another line
        self._begin_probing()

    def _begin_probing(self) -> None:
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        for i in range(_PROBES_MAX):
            try:
                await asyncio.wait_for(self._remote("probe", b""), _PROBE_TIMEOUT_S)
            except ray.exceptions.ActorDiedError:
                if not await self._meets_another():
                    await asyncio.sleep(_PROBE_EVERY_S if i < _PROBES_SOON else _PROBE_LATER_EVERY_S)
            except (ray.exceptions.RayError, TimeoutError):
                await asyncio.sleep(_PROBE_EVERY_S)  # still away
            else:
                self._away = False
                return

    async def _meets_another(self) -> bool:
        """Whether another actor is at this address now: then it is the one that is called from now on."""
        handle = None
        if self._introduce is not None:
            with suppress(ray.exceptions.RayError, TimeoutError):
                async with asyncio.timeout(_INTRODUCTION_S_MAX):
                    handle = await self._introduce(self.address)
        if handle is None or handle == self._handle:
            return False
        self._take(handle)
        return True


class RayPeers:
    """Peers met through an introducer, which answers with an actor handle or None."""

    #: Two roles of 4,000 machines; a directory larger than the cluster means that addresses are not stable.
    MET_MAX = 8_192

    def __init__(self, introduce: Introduce) -> None:
        self._introduce = introduce
        self._met: dict[str, RayPeer] = {}

    async def get(self, address: str) -> Peer:
        peer = self._met.get(address)
        if peer is None:
            try:
                async with asyncio.timeout(_INTRODUCTION_S_MAX):
                    handle = await self._introduce(address)
            except (ray.exceptions.RayError, TimeoutError) as lost:
                raise PeerLost(address, delivered=False) from lost
            if handle is None:
                raise PeerLost(address, delivered=False)
            if len(self._met) >= self.MET_MAX:
                self._met.clear()
            peer = self._met[address] = RayPeer(address, handle, introduce=self._introduce)
        return peer

    async def share(self, payload: bytes) -> bytes:
        """``payload`` to call several peers with, kept once. As it was if it is short, or Ray has no place for it."""
        if len(payload) < _SHARED_BYTES_MIN:
            return payload
        shared = Shared(payload)
        try:
            shared.ref = await asyncio.to_thread(ray.put, payload)
        except ray.exceptions.RayError as full:
            _log.warning("%d bytes go to each peer by themselves: %s", len(payload), full)
            return payload
        return shared

    def forget(self, address: str) -> None:
        """Somebody else is at ``address`` now, or nobody: who asks for it next is introduced anew."""
        self._met.pop(address, None)

    def statistics(self) -> dict[str, int]:
        """How many calls went which way."""
        return {way: sum(peer.counts[way] for peer in self._met.values()) for way in ("direct", "through_ray")}


class LocalPeer:
    """A peer in this process: for tests and for the one-process cluster."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def call(self, method: str, payload: bytes = b"") -> bytes:
        return await self._calls[method](payload)


class LocalPeers:
    """The peers of a one-process cluster."""

    def __init__(self) -> None:
        self.known: dict[str, Peer] = {}

    async def get(self, address: str) -> Peer:
        peer = self.known.get(address)
        if peer is None:
            raise PeerLost(address, delivered=False)
        return peer
