"""Server: one per machine. It decides here-or-home, keeps the machine's code and view, and gathers its traces.

Requests reach it over its Unix socket (from the ingress) or as calls (from drivers). It is on the path of the few: a
request that runs here by right of home, warmth or an earlier refusal comes with a *lease*, with which the ingress
sends the next ones straight to the host's socket. The Server takes leases back when the ring, the deployment or the
host's warmth changes; a lease that is used a moment too long is slow, never wrong.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

from actors import routing
from actors.capability import Exports
from actors.catalog import Deployed
from actors.exchange import (
    Chunk,
    Ended,
    Lease,
    Outcome,
    Request,
)
from actors.host_choice import by_preference
from actors.hosts import Hosts, NoHost
from actors.link import Answer, BodySource, Connection, Frame, LinkBroken, Links, LinkServer, PulledBody, Reply
from actors.peer import Calls, Peer, PeerFailed, PeerLost, Peers
from actors.ring import Ring
from actors.routing import Place, Route, Situation
from actors.shard_client import EndedAnswer, LentBody, ShardClient
from actors.side_work import SideWork
from actors.submission import Submissions, spans_of
from actors.view import ClusterView, decode_plain, deployed_from_plain, encode_plain
from actors.wire import CAPABILITY, CHUNK, REQUEST
from actors.worker import Limits
from isolates.artifact import ArtifactStore, Piece, decode_compiled
from tracing.collector import Collector, CompletedTrace
from tracing.export import OtlpExporter
from tracing.recorder import Recorder
from tracing.trace import Attr, Role, Span, SpanName
from tracing.wire import encode_spans

_log = logging.getLogger("everwarm.server")

#: Versions whose warmth is remembered; the oldest are forgotten, at the price of one hop.
_WARM_MAX = 65_536
#: Worker names in one frame to the ingress: 1 MiB holds 64 characters each of them.
_NAMES_PER_FRAME = 8_192
_TRACE_TICK_S = 0.1
#: Code that nobody names stays so long: deploys take minutes at most, and a rollback soon after finds its code here.
_CODE_KEPT_S = 3_600.0


class Server:
    """The runtime's front on one machine."""

    def __init__(
        self,
        name: str,
        *,
        host_sockets: Sequence[Path],
        code_directory: Path,
        links: Links,
        peers: Peers,
        entropy: Callable[[int], bytes],
        exporter: OtlpExporter | None = None,
        make_exporter: Callable[[str, dict[str, str]], OtlpExporter] = lambda url, headers: OtlpExporter(
            url, headers=headers
        ),
    ) -> None:
        self.name = name
        self._hosts = Hosts(host_sockets, links, self._host_lost)
        self._artifacts = ArtifactStore(code_directory)
        self._links = links
        self._peers = peers
        self._entropy = entropy
        self._exporter = self._configured = exporter
        self._make_exporter = make_exporter
        self._collector = Collector()
        self._view = ClusterView()
        self._warm: dict[str, None] = {}
        self._exports: Exports[LentBody] = Exports(f"{name}/server")
        self._client = ShardClient(peers, self._exports, self._run_here)
        self._link_server = LinkServer(self._on_request, self._on_notice, self._on_subscribe)
        self._subscribers: set[Connection] = set()
        self._requests = 0
        self._syncing = asyncio.Lock()
        self._side = SideWork(f"{name}/server")
        self._submissions = Submissions(
            name, answer=self._answer, report=self._report, side=self._side, entropy=entropy
        )
        self.calls: Calls = {
            "read_body": self.read_body,
            "submit": self._submissions.submit,
            "read_submitted": self._submissions.read,
            "cancel_submitted": self._submissions.cancel,
            "apply_ring": self.apply_ring,
            "apply_change": self.apply_change,
            "install_code": self.install_code,
            "missing_code": self.missing_code,
            "missing_pieces": self.missing_pieces,
            "install_piece": self.install_piece,
            "collect_code": self.collect_code,
            "statistics": self.statistics,
            "traces": self.traces,
            "export_to": self.export_to,
            "trace": self.trace,
        }

    async def start(self, socket_path: Path) -> None:
        """Serve links at ``socket_path`` and begin to gather traces."""
        await self._link_server.start(socket_path)
        self._side.begin(self._gather_traces())

    async def stop(self) -> None:
        """Stop serving; what was gathered of traces is exported."""
        await self._link_server.stop()
        await self._side.stop()
        self._export(self._collector.flush(time.monotonic()))
        for exporter in {self._exporter, self._configured}:
            if exporter is not None:
                await asyncio.to_thread(exporter.close, 5.0)

    # ------------------------------------------------------------------------------------------------- one request

    async def _on_request(self, request: Request, body: PulledBody, reply: Reply) -> None:
        """A request from this machine's ingress."""
        recorder = Recorder.under(request.traceparent, self.name, Role.SERVER, self._entropy)
        answer, resolved, home = await self._answer(request, body, recorder)
        try:
            served = await answer.served()
            if served is not None:
                # Only now is it known where it ran: its host may have been lost on the way.
                lease = self._lease(resolved, home) if resolved is not None and served.server == self.name else None
                reply.head(replace(served, home=home, lease=lease))
                while (data := await answer.read()) is not None:
                    await reply.data(data)
                if answer.whole:
                    reply.end()
            ended = await answer.ended()
            hop = ended.server not in ("", self.name)
            spans = (*ended.spans, encode_spans(recorder.spans))
            reply.ended(replace(ended, home=home, hop=hop, spans=spans))
        finally:
            answer.cancel()

    async def _answer(
        self, request: Request, body: BodySource, recorder: Recorder
    ) -> tuple[Answer, Request | None, str]:
        """Find the version, decide where, and send. Also: the request if a lease may go with it, and the home."""
        self._requests += 1
        began_ns = time.time_ns()
        resolved = self._resolve(request)
        if isinstance(resolved, Outcome):
            return EndedAnswer(Ended(resolved)), None, ""
        request = resolved
        home, route = self._route(request)
        recorder.span(
            SpanName.ROUTE,
            began_ns,
            time.time_ns(),
            {Attr.HOME: home or "", Attr.RING_EPOCH: self._view.epoch, Attr.PHASE: route.reason},
        )
        if route.place is Place.HERE:
            return await self._run_at_home(request, body, recorder), request, home or ""
        answer = await self._client.send(request, body, route.server, self._view.epoch, recorder)
        return answer, None, home or ""

    def _resolve(self, request: Request) -> Request | Outcome:
        """The request with the version that answers it; ``SCRIPT_NOT_FOUND`` when nothing is deployed."""
        version = self._view.version_for(request.worker, request.request_id.encode())
        if isinstance(version, Outcome):
            return version
        return replace(
            request,
            version=version.version_id,
            component_digest=version.component_digest,
            plan=version.plan.value,
            limits=_plain_limits(version.limits),
            reuse=version.reuse,
        )

    def _route(self, request: Request, *, hosts_here: bool = True) -> tuple[str | None, Route]:
        """The worker's home, and where a request with a version runs. ``hosts_here``: as far as the request knows."""
        home = self._view.home_of(request.worker)
        hosts_here = hosts_here and bool(self._hosts.alive)
        situation = Situation(
            here=self.name,
            home=home,
            warm_here=request.version in self._warm,
            refused_before=request.version in self._client.refusals,
            hosts_here=hosts_here,
            next_home=None if hosts_here else self._view.next_home_of(request.worker, self.name),
        )
        return home, routing.decide(situation)

    async def _run_here(self, request: Request, body: BodySource) -> Answer:
        """Run it on this machine, whatever becomes of it: it may have been offered to another one already."""
        try:
            return await self._hosts.run(request, body)
        except LinkBroken as away:
            return EndedAnswer(Ended(Outcome.INTERNAL_ERROR, f"the host is away: {away}"))

    async def _run_at_home(self, request: Request, body: BodySource, recorder: Recorder) -> Answer:
        """Run it on this machine; when the last host is lost before the guest started, offer it to another one."""

        async def elsewhere(lost: Request) -> Answer:
            _, route = self._route(lost, hosts_here=False)
            if route.place is Place.HERE:
                raise NoHost("no host is left on this machine, and there is no other")
            return await self._client.send(lost, body, route.server, self._view.epoch, recorder)

        try:
            return await self._hosts.run(request, body, elsewhere)
        except NoHost:
            try:
                return await elsewhere(request)
            except NoHost as nobody:
                return EndedAnswer(Ended(Outcome.INTERNAL_ERROR, str(nobody)))
        except LinkBroken as away:
            return EndedAnswer(Ended(Outcome.INTERNAL_ERROR, f"the host is away: {away}"))

    def _host_lost(self, socket: str) -> None:
        """A host is gone, and with it the isolates of its versions: nothing that was known of them holds."""
        before = (*self._hosts.alive, socket)
        for version in [v for v in self._warm if by_preference(v, before)[0] == socket]:
            del self._warm[version]
            self._client.refusals.forget(version)
        self._notify({"revoke_all": True})

    def _lease(self, request: Request, home: str) -> Lease | None:
        deployed = self._view.workers.get(request.worker)
        socket = self._hosts.of(request.version)
        if deployed is None or len(deployed.versions) != 1 or socket is None:
            return None
        return Lease(
            request.worker, request.version, request.component_digest, request.plan, request.limits, socket, home,
            request.reuse,
        )  # fmt: skip

    # ---------------------------------------------------------------------------------- what others call: requests

    async def read_body(self, payload: bytes) -> bytes:
        """The next chunk of a request body that was lent to a home."""
        lent = self._exports.resolve(CAPABILITY.decode(payload).key)
        if lent is None:
            return CHUNK.encode(Chunk(lost=True))
        return CHUNK.encode(await lent.read(1 << 30))

    # ---------------------------------------------------------------------------------- what others call: the view

    async def apply_ring(self, payload: bytes) -> bytes:
        """A new epoch of the ring."""
        plain = decode_plain(payload)
        if plain["epoch"] > self._view.epoch:
            self._view.ring = Ring(plain["epoch"], plain["servers"], plain["secret"])
            self._notify({"revoke_all": True})
            self._side.begin(self._meet(list(plain["servers"])))
        return b""

    async def _meet(self, servers: list[str]) -> None:
        """Meet the homes before the first request goes to one: introductions and connections take their time."""
        await self._hosts.open_ahead()
        for server in servers:
            try:
                await (await self._peers.get(f"{server}/shard")).call("meet")
            except (PeerLost, PeerFailed) as away:
                _log.info("%s was not met: %s", server, away)

    async def apply_change(self, payload: bytes) -> bytes:
        """One change of what is deployed; when some before it were missed, everything is asked for again."""
        plain = decode_plain(payload)
        deployed = None if plain["deployed"] is None else deployed_from_plain(plain["deployed"])
        old = self._view.workers.get(plain["worker"])
        if self._view.apply(plain["seq"], plain["worker"], deployed):
            self._changed(plain["worker"], old, deployed)
        else:
            await self.sync()
        return b""

    def _changed(self, worker: str, old: Deployed | None, new: Deployed | None) -> None:
        notice: dict[str, object] = {"add": [worker]} if new is not None else {"remove": [worker]}
        if old is not None:
            gone = {v.version_id for v in old.versions} - {v.version_id for v in (new.versions if new else ())}
            notice["revoke"] = sorted(gone)
            for version in gone:
                self._side.begin(self._drop(version))
        self._notify(notice)

    async def _drop(self, version: str) -> None:
        """A version is no longer deployed: its isolates need not live until they are evicted."""
        await self._hosts.tell_all(Frame.NOTICE, version.encode())

    async def sync(self) -> None:
        """Ask the ControlPlane for everything that is deployed."""
        async with self._syncing:
            control = await self._peers.get("control")
            while not await self._sync_once(control):
                pass  # changes came meanwhile, which the snapshot may not have; deploys are rare and this ends
        for subscriber in list(self._subscribers):
            self._greet(subscriber)

    async def _sync_once(self, control: Peer) -> bool:
        """Take a snapshot; False when the view changed while it was on its way."""
        seq_before = self._view.seq
        fresh = ClusterView(ring=self._view.ring)
        after = ""
        while True:
            page = decode_plain(await control.call("snapshot", encode_plain({"after": after})))
            # The number of the first page: a deploy during paging is told again, which does no harm.
            fresh.seq = fresh.seq or page["seq"]
            for plain in page["workers"]:
                deployed = deployed_from_plain(plain)
                fresh.workers[deployed.deployment.worker] = deployed
            if not page["more"]:
                break
            after = max(fresh.workers)
        fresh.ring = self._view.ring
        unchanged = self._view.seq == seq_before
        self._view = fresh
        return unchanged

    async def missing_code(self, payload: bytes) -> bytes:
        """Which of these component digests are not here, or not as they should be."""
        digests = decode_plain(payload)
        return encode_plain(await asyncio.to_thread(lambda: [d for d in digests if not self._artifacts.sound(d)]))

    async def missing_pieces(self, payload: bytes) -> bytes:
        """Which of these pieces are not here as they should be."""
        pieces = [Piece(**plain) for plain in decode_plain(payload)]
        return encode_plain([asdict(p) for p in await asyncio.to_thread(self._artifacts.missing, pieces)])

    async def collect_code(self, payload: bytes) -> bytes:
        """Remove the code of everything but these component digests: ``{"freed_bytes": ...}``."""
        keep, before_s = set(decode_plain(payload)), time.time() - _CODE_KEPT_S
        freed = await asyncio.to_thread(lambda: self._artifacts.collect(keep, before_s=before_s))
        return encode_plain({"freed_bytes": freed})

    async def install_piece(self, payload: bytes) -> bytes:
        """Put one piece of compiled code on this machine's disk."""
        plain = decode_plain(payload)
        await asyncio.to_thread(self._artifacts.install_piece, Piece(**plain["piece"]), plain["artifact"])
        return b""

    async def install_code(self, payload: bytes) -> bytes:
        """Make a component usable here whose pieces are all here."""
        await asyncio.to_thread(self._artifacts.install, decode_compiled(payload))
        return b""

    # -------------------------------------------------------------------------- what this machine's others tell us

    def _on_notice(self, kind: Frame, payload: bytes) -> None:
        if kind is Frame.PREWARM:
            self._side.begin(self._prewarm(REQUEST.decode(payload)))
        elif kind is Frame.SPANS:
            self._report(spans_of(payload))
        elif kind is Frame.NOTICE:
            word, _, version = payload.decode().partition(" ")
            self._host_says(word, version)

    def _host_says(self, word: str, version: str) -> None:
        if word == "warm":
            self._warm[version] = None
            if len(self._warm) > _WARM_MAX:
                del self._warm[next(iter(self._warm))]
        elif word == "cold":
            self._warm.pop(version, None)
            self._client.refusals.forget(version)
            self._notify({"revoke": [version]})

    async def _prewarm(self, request: Request) -> None:
        """A request for a worker is likely: start an isolate where the request would run."""
        resolved = self._resolve(request)
        if isinstance(resolved, Outcome) or resolved.version in self._warm:
            return
        request = resolved
        _, route = self._route(request)
        try:
            if route.place is Place.HERE:
                await self._hosts.tell(request.version, Frame.PREWARM, REQUEST.encode(request))
            else:
                await (await self._peers.get(f"{route.server}/shard")).call("prewarm", REQUEST.encode(request))
        except (LinkBroken, PeerLost, PeerFailed) as away:
            _log.info("a prewarm was dropped: %s", away)

    def _on_subscribe(self, connection: Connection) -> None:
        """The ingress wants to hear of routes and leases for as long as its connection is open."""
        self._subscribers.add(connection)
        self._greet(connection)

    def _greet(self, connection: Connection) -> None:
        names = list(self._view.workers)
        pages = [names[i : i + _NAMES_PER_FRAME] for i in range(0, len(names), _NAMES_PER_FRAME)] or [[]]
        try:
            connection.send(Frame.NOTICE, encode_plain({"reset": True, "revoke_all": True, "add": pages[0]}))
            for page in pages[1:]:
                connection.send(Frame.NOTICE, encode_plain({"add": page}))
        except LinkBroken:
            self._subscribers.discard(connection)

    def _notify(self, notice: dict[str, object]) -> None:
        payload = encode_plain(notice)
        for connection in list(self._subscribers):
            try:
                connection.send(Frame.NOTICE, payload)
            except LinkBroken:
                self._subscribers.discard(connection)

    # ------------------------------------------------------------------------------------------------------ traces

    def _report(self, spans: list[Span]) -> None:
        self._collector.report(spans, time.monotonic())

    async def _gather_traces(self) -> None:
        while True:
            await asyncio.sleep(_TRACE_TICK_S)
            self._export(self._collector.tick(time.monotonic()))

    def _export(self, completed: Sequence[CompletedTrace]) -> None:
        if self._exporter is not None:
            for trace in completed:
                self._exporter.export(trace.spans)

    async def export_to(self, payload: bytes) -> bytes:
        """Send traces to another backend from now on, or with an empty ``url`` to the configured one again."""
        plain = decode_plain(payload)
        old = self._exporter
        self._exporter = self._make_exporter(plain["url"], plain["headers"]) if plain["url"] else self._configured
        if old is not None and old is not self._configured:
            await asyncio.to_thread(old.close, 2.0)
        return b""

    async def traces(self, payload: bytes) -> bytes:
        """Summaries of the latest traces: ``{"limit": n}`` -> a list of plain summaries, newest first."""
        return encode_plain(self._collector.recent(int(decode_plain(payload)["limit"])))

    async def trace(self, payload: bytes) -> bytes:
        """The spans of one trace by the beginning of its id, as a report (``tracing.wire``)."""
        return encode_spans(self._collector.get(str(decode_plain(payload)["trace_id"])))

    async def statistics(self, payload: bytes = b"") -> bytes:
        """Counters, for operators and tests."""
        counts = self._client.counts
        return encode_plain(
            {
                "server": self.name,
                "requests": self._requests,
                "seq": self._view.seq,
                "workers": len(self._view.workers),
                "ring_epoch": self._view.epoch,
                "ring": {} if self._view.ring is None else dict(self._view.ring.servers),
                "warm_versions": len(self._warm),
                "sharded": {
                    "offered": counts.offered,
                    "answered": counts.answered,
                    "refused": counts.refused,
                    "lost": counts.lost,
                    "sent_bytes": counts.sent_bytes,
                },
                "hosts": len(self._hosts.alive),
                "hosts_lost": self._hosts.lost,
                "sticky_refusals": len(self._client.refusals),
                "lent_out": len(self._exports) + len(self._submissions),
                "homes": {worker: self._view.home_of(worker) for worker in list(self._view.workers)[:1000]},
            }
        )


@lru_cache(maxsize=1_024)  # limits come from two plans and few manifests; every request needs them as plain numbers
def _plain_limits(limits: Limits) -> dict[str, int | None]:
    return {name: value for name, value in limits.to_plain().items() if value is None or isinstance(value, int)}
