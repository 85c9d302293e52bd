"""ShardServer: answers requests that other machines send because this machine is their worker's home.

Admission decides first, and a refusal has no effect of any kind: no guest code, no trace, no count but its own. What
is admitted goes to this machine's host over its socket; the answer goes back in one call when it is small and whole
by then, and in pulled chunks when it is not. It never sends a request on: at most one hop.
"""

import asyncio
from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from msgspec import structs

from actors import admission
from actors.admission import Admission, AdmissionLimits
from actors.capability import Exports
from actors.connection import LinkBroken
from actors.exchange import (
    Answered,
    Capability,
    Chunk,
    Ended,
    Load,
    Outcome,
    RefusalReason,
    Refused,
    Request,
    Served,
)
from actors.host_loads import HostLoads
from actors.hosts import HostAnswer, Hosts, SocketsOf
from actors.link import Links, read_window
from actors.peer import Calls, PeerFailed, PeerLost, Peers
from actors.view import decode_plain, encode_plain
from actors.wire import CAPABILITY, CHUNK, REQUEST, encode_verdict
from isolates.artifact import ArtifactStore
from isolates.conversation import BodyLost

#: A client that does not read its answer for this long is gone, together with its machine.
_UNREAD_S = 30.0
#: Versions that ran here and may still have an isolate: what is remembered longer is wrong more often.
_RAN_MAX = 16_384


class LentFrom:
    """A request body that is read over a capability from the machine that got the request."""

    def __init__(self, peers: Peers, capability: Capability) -> None:
        self._peers = peers
        self._capability = capability

    async def read(self, bytes_max: int) -> bytes | None:
        try:
            # The owner is met when there is something to read from it: most requests bring their whole body along.
            owner = await self._peers.get(self._capability.owner)
            chunk = CHUNK.decode(await owner.call("read_body", CAPABILITY.encode(self._capability)))
        except (PeerLost, PeerFailed) as lost:
            raise BodyLost from lost
        if chunk.lost:
            raise BodyLost
        return None if chunk.end else chunk.data


class Visit:
    """One admitted request, from admission to its last chunk: the slot is given back once, here."""

    def __init__(self, server: "ShardServer", capability: Capability) -> None:
        self._server = server
        self.capability = capability
        self.answer: HostAnswer | None = None
        self.rest: Capability | None = None
        self.read_at_s = asyncio.get_running_loop().time()
        self.is_over = False

    def over(self) -> None:
        """Give everything back. Safe to call again."""
        if not self.is_over:
            self.is_over = True
            self._server._leave(self)
            if self.answer is not None:
                self.answer.cancel()


class ShardServer:
    """The receiving half of sharding, one per machine."""

    def __init__(
        self,
        name: str,
        *,
        host_sockets: SocketsOf,
        code_directory: Path,
        links: Links,
        peers: Peers,
        limits: AdmissionLimits,
    ) -> None:
        self.name = name
        self._hosts = Hosts(host_sockets, links)
        self._artifacts = ArtifactStore(code_directory)
        self._peers = peers
        self._limits = limits
        self._draining = False
        self._loads = HostLoads()
        self._ran: OrderedDict[str, float] = OrderedDict()  # versions, each with the moment of its last request
        self._visits: dict[tuple[str, int], Visit] = {}
        self._rests: Exports[Visit] = Exports(f"{name}/shard")
        self._counts = {"admitted": 0, "refused": 0, "aborted": 0}
        self._refused: dict[RefusalReason, int] = {}
        self._sweeping: asyncio.Task[None] | None = None
        self.calls: Calls = {
            "serve": self.serve,
            "read_response": self.read_response,
            "abort": self.abort,
            "meet": self.meet,
            "configure": self.configure,
            "statistics": self.statistics,
        }

    async def serve(self, payload: bytes) -> bytes:
        """A request from another machine; the reply is a verdict (``wire.decode_verdict``)."""
        request = REQUEST.decode(payload)
        if request.fallback is None:
            raise ValueError("an offer without its capability")
        load = self._loads.of(self._hosts.of(request.version, request.cordon), _now_s())
        offer = admission.offer_of(
            request, load, self._limits,
            resident=self._is_resident(request.version, load), code_here=self._artifacts.has(request.component_digest),
        )  # fmt: skip
        verdict = admission.decide(load, len(self._visits), self._limits, offer, draining=self._draining)
        if verdict.admission is Admission.REFUSE:
            reason = verdict.reason or RefusalReason.BUSY
            self._counts["refused"] += 1
            self._refused[reason] = self._refused.get(reason, 0) + 1
            return encode_verdict(Refused(reason, request.fallback, self._hinted(load)))
        self._counts["admitted"] += 1
        visit = Visit(self, request.fallback)
        self._visits[request.fallback.owner, request.fallback.key] = visit
        try:
            return encode_verdict(await self._run(visit, request, request.fallback))
        except BaseException:
            visit.over()
            raise

    async def _run(self, visit: Visit, request: Request, lent: Capability) -> Answered | Refused:
        try:
            body = LentFrom(self._peers, lent)
            visit.answer = await self._hosts.run(structs.replace(request, fallback=None), body)
        except LinkBroken:
            # Nothing was delivered to a guest: to the sender this is a refusal like any other.
            visit.over()
            return Refused(RefusalReason.AWAY, lent)
        if visit.is_over:
            visit.answer.cancel()  # the client left while this machine was still connecting to its host
        served: Served | None = await visit.answer.served()
        if visit.answer.handed_back:
            visit.over()
            return Refused(RefusalReason.AWAY, lent)
        first = await self._next_chunk(visit.answer, wait=False)
        if visit.is_over and first.ended is None:
            # The client left in the moment in which the head arrived: nobody will read the rest.
            first = structs.replace(first, ended=Ended(Outcome.CANCELED))
        if first.ended is not None:
            visit.over()
            return Answered(served, first, None)
        visit.rest = self._rests.mint(visit)
        visit.read_at_s = _now_s()  # until now there was nothing to read, however long the guest took
        self._sweep()
        return Answered(served, first, visit.rest)

    async def _next_chunk(self, answer: HostAnswer, *, wait: bool) -> Chunk:
        """What has arrived of an answer, up to a window; with ``wait`` at least something."""
        data = await read_window(answer, wait=wait)
        ended = None
        if answer.is_over or (answer.whole and answer.ready()):
            ended = await answer.ended()
            if ended.server:  # the host's own word: of an answer that was cancelled or lost it said nothing
                self._note_load(answer.path, ended.load)
            ended = structs.replace(ended, load=self._hinted(ended.load))
            if ended.start_type:
                self._note_ran(answer.version)
        return Chunk(data, end=answer.whole, ended=ended)

    def _note_load(self, socket: str, load: Load) -> None:
        self._loads.note(socket, load, _now_s())

    def _hinted(self, load: Load) -> Load:
        """A host's load as a reply tells it: with the hint, which counts what is in work here as well."""
        return structs.replace(load, nearly_full=admission.nearly_full(load, len(self._visits), self._limits))

    def _note_ran(self, version: str) -> None:
        self._ran[version] = _now_s()
        self._ran.move_to_end(version)
        if len(self._ran) > _RAN_MAX:
            self._ran.popitem(last=False)

    def _is_resident(self, version: str, load: Load) -> bool:
        """Whether its isolate should still be here: it ran less long ago than isolates live unasked."""
        ran_s = self._ran.get(version)
        return ran_s is not None and (not load.residence_s or _now_s() - ran_s < load.residence_s)

    async def read_response(self, payload: bytes) -> bytes:
        """The next chunk of an answer that did not fit its verdict."""
        visit = self._rests.resolve(CAPABILITY.decode(payload).key)
        if visit is None:
            return CHUNK.encode(Chunk(lost=True, ended=Ended(Outcome.CANCELED)))
        loop = asyncio.get_running_loop()
        visit.read_at_s = loop.time() + 3_600  # it is being read; the sweep looks at readers that stay away
        try:
            assert visit.answer is not None
            chunk = await self._next_chunk(visit.answer, wait=True)
        except asyncio.CancelledError:
            visit.over()  # whoever read it has gone, and will not come back
            raise
        finally:
            visit.read_at_s = loop.time()
        if chunk.ended is not None:
            visit.over()
        return CHUNK.encode(chunk)

    async def abort(self, payload: bytes) -> bytes:
        """The client of the request that lent this capability is gone."""
        capability = CAPABILITY.decode(payload)
        visit = self._visits.get((capability.owner, capability.key))
        if visit is not None:
            self._counts["aborted"] += 1
            visit.over()
        return b""

    async def meet(self, payload: bytes) -> bytes:
        """A Server got to know this home: have the way to the host open before its first request.

        The payload is its name. It is met in turn, since its uploads are read from it, and whoever introduces strangers
        may be away by then.
        """
        await self._hosts.open_ahead()
        if payload:
            with suppress(PeerLost):
                await self._peers.get(f"{payload.decode()}/server")
        return b""

    async def configure(self, payload: bytes) -> bytes:
        """Change admission while running: fields of ``AdmissionLimits``, and ``draining``."""
        wanted = decode_plain(payload)
        self._draining = bool(wanted.pop("draining", self._draining))
        self._limits = replace(self._limits, **wanted)
        return b""

    async def statistics(self, payload: bytes = b"") -> bytes:
        """Counters, for operators and tests."""
        return encode_plain(
            {
                **self._counts,
                "in_flight": len(self._visits),
                "lent_out": len(self._rests),
                "draining": self._draining,
                "refusals": {reason.value: count for reason, count in self._refused.items()},
                "queue_ms": (worst := self._loads.worst(_now_s())).queue_ms,
                "nearly_full": self._hinted(worst).nearly_full,
                "hosts": len(self._hosts.alive),
                "hosts_lost": self._hosts.lost,
            }
        )

    def _leave(self, visit: Visit) -> None:
        self._visits.pop((visit.capability.owner, visit.capability.key), None)
        if visit.rest is not None:
            self._rests.release(visit.rest)

    def _sweep(self) -> None:
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.create_task(self._sweep_unread())

    async def _sweep_unread(self) -> None:
        """While answers are out: end those whose readers stay away."""
        while len(self._rests):
            await asyncio.sleep(_UNREAD_S / 4)
            late_s = asyncio.get_running_loop().time() - _UNREAD_S
            for visit in list(self._visits.values()):
                if visit.rest is not None and visit.read_at_s < late_s:
                    visit.over()


def _now_s() -> float:
    return asyncio.get_running_loop().time()
