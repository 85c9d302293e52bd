"""Server: one per machine. It decides here-or-home, keeps the machine's code and view, and gathers its traces.

Requests reach it over its Unix socket (from the ingress) or as calls (from drivers). It is on the path of the few: a
request that runs here by right of home, warmth or an earlier refusal comes with a *lease*, with which the ingress
sends the next ones straight to the host's socket. The Server takes leases back when the ring, the deployment or the
host's warmth changes; a lease that is used a moment too long is slow, never wrong.

What it knows is kept by others: ``view_keeper`` (ring and deployments), ``warmth`` (who is warm, hot and loaded),
``code_keeper``, ``trace_desk``. ``route_finder`` says where a request runs, and ``prewarm_desk`` starts ahead what is
likely to be asked for.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from actors.capability import Exports
from actors.catalog import Deployed
from actors.code_keeper import CodeKeeper
from actors.connection import Connection, Frame, LinkBroken
from actors.cordons import SharedMemory
from actors.exchange import (
    Chunk,
    Ended,
    HeatReport,
    Lease,
    Outcome,
    Request,
)
from actors.heartbeat import Heartbeat
from actors.host_choice import by_preference
from actors.hosts import Hosts, NoHost, SocketsOf
from actors.leaving import Leaving
from actors.link import Answer, BodySource, Links, LinkServer, PulledBody, Reply
from actors.live_desk import LiveDesk
from actors.live_tail import WATCHED, Watched, live_event, untold
from actors.nested_calls import NestedCalls
from actors.peer import Calls, PeerFailed, PeerLost, Peers
from actors.prewarm import PrewarmLimits
from actors.prewarm_desk import PrewarmDesk
from actors.route_finder import RouteFinder
from actors.routing import Place, RoutingLimits
from actors.shard_client import EndedAnswer, LentBody, ShardClient
from actors.side_work import SideWork
from actors.stage_over import ending_of
from actors.stores import StoreDesk
from actors.submission import Submissions, spans_of
from actors.subscribers import Subscribers, added
from actors.tail_desk import TailDesk
from actors.trace_desk import MakeExporter, TraceDesk, otlp_exporter
from actors.view import ClusterView, encode_plain
from actors.view_keeper import ViewKeeper
from actors.warmth import Warmth
from actors.wire import CAPABILITY, CHUNK, HEAT, REQUEST
from actors.worker import CORDON_DEFAULT, Version
from tracing.export import OtlpExporter
from tracing.recorder import Recorder
from tracing.trace import Attr, Role, SpanName
from tracing.wire import encode_spans

_log = logging.getLogger("everwarm.server")

#: The longest that another server may take to be met.
_MEET_S_MAX = 2.0
#: A request that nobody can run waits so long for a host of this machine: a restart takes a second or two.
_BACK_S_MAX = 5.0
#: Workers whose rates ``statistics`` shows.
_HOTTEST_SHOWN = 20


class Server:
    """The runtime's front on one machine."""

    def __init__(
        self,
        name: str,
        *,
        host_sockets: SocketsOf,
        code_directory: Path,
        links: Links,
        peers: Peers,
        entropy: Callable[[int], bytes],
        exporter: OtlpExporter | None = None,
        make_exporter: MakeExporter = otlp_exporter,
        routing_limits: RoutingLimits | None = None,
        prewarm_limits: PrewarmLimits | None = None,
        sharding: bool = True,
        memory_bytes: int | None = None,
    ) -> None:
        """``sharding`` as in ``RouteFinder``. ``memory_bytes``: what the isolates of all hosts may hold; None: the own
        limit of each is all there is."""
        self.name = name
        self._hosts = Hosts(host_sockets, links, self._host_lost)
        self._memory = None if memory_bytes is None else SharedMemory(memory_bytes)
        self._code = CodeKeeper(code_directory)
        self._links = links
        self._peers = peers
        self._entropy = entropy
        self._traces = TraceDesk(exporter, make_exporter)
        self._keeper = ViewKeeper(peers, self)
        cores = os.cpu_count() or 1
        self._warmth = Warmth(name, cores)
        self._exports: Exports[LentBody] = Exports(f"{name}/server")
        self._client = ShardClient(peers, self._exports, self._run_here, self._warmth)
        self._finder = RouteFinder(
            name,
            keeper=self._keeper,
            hosts=self._hosts,
            has_code=self._code.has,
            warmth=self._warmth,
            refusals=self._client.refusals,
            limits=routing_limits,
            sharding=sharding,
        )
        self._ahead = PrewarmDesk(
            name,
            cores=cores,
            keeper=self._keeper,
            routes=self._finder,
            warmth=self._warmth,
            hosts=self._hosts,
            peers=peers,
            limits=prewarm_limits,
        )
        self._stores = StoreDesk(self._keeper.known_version, peers)
        self._link_server = LinkServer(
            self._on_request,
            self._on_notice,
            self._on_subscribe,
            {Frame.VARIABLES: self._keeper.variables, Frame.STORE: self._stores.answer},
        )
        self._subscribers = Subscribers()
        self._requests = 0
        self._routes: dict[str, int] = {}
        self._side = SideWork(f"{name}/server")
        self._submissions = Submissions(
            name, answer=self._answer, report=self._traces.report, side=self._side, entropy=entropy, over=self._untold
        )
        #: What this machine's guests ask of other workers, for its way out.
        self.nested = NestedCalls(
            name,
            answer=self._answer,
            version_of=self._keeper.version_of,
            chosen=lambda worker, affinity: self._view.version_for(worker, affinity),
            report=self._traces.report,
            peers=peers,
            entropy=entropy,
            over=self._untold,
            lease=self._lease_to_host,
        )
        self._live = LiveDesk(self._tell_watched)
        self._tails = TailDesk(name, peers=peers, ask=self._submissions.run, entropy=entropy)
        self._leaving = Leaving(self._submissions.leave, lambda: self._submissions.owes + self._tails.owes)
        self.calls: Calls = {
            **self._leaving.calls,
            **self.nested.calls,
            **self._tails.calls,
            "read_body": self.read_body,
            "submit": self._submissions.submit,
            "read_submitted": self._submissions.read,
            "cancel_submitted": self._submissions.cancel,
            "statistics": self.statistics,
            **self._keeper.calls,
            **self._ahead.calls,
            **self._code.calls,
            **self._traces.calls,
            **self._live.calls,
        }

    async def start(self, socket_path: Path) -> None:
        """Serve links at ``socket_path`` and begin to gather traces."""
        await self._link_server.start(socket_path)
        self._side.begin(self._traces.gather())
        self._side.begin(self._ahead.work())
        self._side.begin(self._tails.work())
        self._side.begin(self._live.work())

    async def stop(self) -> None:
        """Stop serving; what was gathered of traces is exported."""
        await self._link_server.stop()
        await self._hosts.stop()
        await self.nested.stop()
        await self._tails.stop()
        await self._side.stop()
        await self._traces.close()

    @property
    def _view(self) -> ClusterView:
        return self._keeper.view

    @property
    def cordons(self) -> tuple[str, ...]:
        """The cordons that have workers, the default one first."""
        return self._keeper.cordons

    async def sync(self) -> None:
        """Ask the ControlPlane for everything that is deployed."""
        await self._keeper.sync()

    def heartbeat(self, weight: int) -> Heartbeat:
        """How this Server joins with that weight, and says that it lives; not begun yet."""
        return Heartbeat(
            self.name,
            weight,
            peers=self._peers,
            view=lambda: self._view,
            hosts=lambda: len(self._hosts.alive),
            sync=self.sync,
        )

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
        resolved = self._finder.resolve(request)
        if isinstance(resolved, Outcome):
            return EndedAnswer(Ended(resolved)), None, ""
        resolved, root = self._tails.entering(resolved, self._keeper.version_of(request.worker, resolved.version))
        if root is None:
            return await self._send(resolved, body, recorder, began_ns)
        with root:
            answer, leased, home = await self._send(resolved, body, recorder, began_ns)
        return root.watched(answer), leased, home

    async def _send(
        self, resolved: Request, body: BodySource, recorder: Recorder, began_ns: int
    ) -> tuple[Answer, Request | None, str]:
        """Send a request that has a version, here or to its home; as ``_answer``."""
        home, route = self._finder.route(resolved)
        request = replace(resolved, at_home=home in (None, self.name) or route.server == home)
        recorder.span(
            SpanName.ROUTE,
            began_ns,
            time.time_ns(),
            {Attr.HOME: home or "", Attr.RING_EPOCH: self._view.epoch, Attr.PHASE: route.reason},
        )
        self._routes[route.reason] = self._routes.get(route.reason, 0) + 1
        if route.place is Place.HERE:
            return await self._run_at_home(request, body, recorder), request, home or ""
        if route.warm_here_too:
            self._ahead.hot(request)
        answer = await self._client.send(request, body, route.server, self._view.epoch, recorder)
        return answer, None, home or ""

    async def _run_here(self, request: Request, body: BodySource) -> Answer:
        """Run it on this machine, whatever becomes of it: it was offered to another one before."""
        if not self._code.has(request.component_digest):
            return EndedAnswer(Ended(Outcome.LOAD_SHED, "its code is not on this machine, and no other has a place"))
        return await self._hosts.run(request, body)

    async def _run_at_home(self, request: Request, body: BodySource, recorder: Recorder) -> Answer:
        """Run it on this machine; when the last host is lost before the guest started, offer it to another one."""

        async def elsewhere(lost: Request) -> Answer:
            _, route = self._finder.route(lost, hosts_here=False)
            if route.place is Place.HERE:
                raise NoHost("no host is left on this machine, and there is no other")
            return await self._client.send(lost, body, route.server, self._view.epoch, recorder)

        try:
            return await self._hosts.run(request, body, elsewhere)
        except NoHost:
            try:
                return await elsewhere(request)
            except NoHost as nobody:
                return await self._run_when_back(request, body, nobody)
        except LinkBroken as away:
            return EndedAnswer(Ended(Outcome.INTERNAL_ERROR, f"the host is away: {away}"))

    async def _run_when_back(self, request: Request, body: BodySource, nobody: NoHost) -> Answer:
        """Nobody can run a request now; a host of this machine that is restarted can, in a moment."""
        until_s = _now_s() + _BACK_S_MAX
        while await self._hosts.back(request.cordon, until_s - _now_s()):
            try:
                return await self._hosts.run(replace(request, lost_with=()), body)
            except NoHost:
                continue  # it was believed to be there
            except LinkBroken as away:
                return EndedAnswer(Ended(Outcome.INTERNAL_ERROR, f"the host is away: {away}"))
        return EndedAnswer(Ended(Outcome.INTERNAL_ERROR, str(nobody)))

    def _host_lost(self, socket: str) -> None:
        """A host is gone, and with it the isolates of its versions: nothing that was known of them holds."""
        cordon = self._hosts.cordon_of(socket) or CORDON_DEFAULT
        before = (*self._hosts.alive_of(cordon), socket)
        others = self._keeper.versions_not_of(cordon)
        for version in self._warmth.warm_versions():
            if version in others or by_preference(version, before)[0] != socket:
                continue
            self._warmth.cold(version, _now_s())
            self._client.refusals.forget(version)
        self._warmth.forget_host(socket)
        if self._memory is not None:
            self._memory.forget(socket)
        self._subscribers.tell({"revoke_all": True})

    def _lease(self, request: Request, home: str) -> Lease | None:
        deployed = self._view.workers.get(request.worker)
        socket = self._hosts.of(request.version, request.cordon)
        if deployed is None or len(deployed.versions) != 1 or socket is None:
            return None
        if deployed.versions[0].bindings.tail is not None:
            return None  # whoever keeps the flow of its tree sees each of its requests
        if deployed.versions[0].version_id != request.version or (self._finder.home_of(request.worker) or "") != home:
            return None  # it began before a deploy or a new ring, which took leases back that this one would outlive
        return Lease(
            request.worker, request.version, request.component_digest, request.plan, request.limits, socket, home,
            request.reuse, request.at_home, self._subscribers.told, request.has_variables, request.cordon,
        )  # fmt: skip

    def _lease_to_host(self, caller: Version, request: Request, home: str) -> None:
        """A guest of this machine called a worker that runs here: the next time its host may do it by itself."""
        # A host runs what is of its own cordon, and nobody else's.
        lease = self._lease(request, home) if caller.cordon == request.cordon else None
        if lease is not None:
            (callee,) = self._view.workers[request.worker].versions
            self._subscribers.lease(lease.socket, caller, callee, home=home, at_home=request.at_home)

    # ---------------------------------------------------------------------------------- what others call: requests

    async def read_body(self, payload: bytes) -> bytes:
        """The next chunk of a request body that was lent to a home."""
        lent = self._exports.resolve(CAPABILITY.decode(payload).key)
        if lent is None:
            return CHUNK.encode(Chunk(lost=True))
        return CHUNK.encode(await lent.read(1 << 30))

    # ------------------------------------------------------------------------------------------ what the view says

    def on_ring(self, servers: list[str]) -> None:
        """A new epoch of the ring."""
        self._finder.on_ring()
        self._subscribers.tell({"revoke_all": True})
        self._side.begin(self._meet(servers))

    async def _meet(self, servers: list[str]) -> None:
        """Meet the homes before the first request goes to one: introductions and connections take their time."""
        await self._hosts.open_ahead()
        for server in servers:
            try:
                async with asyncio.timeout(_MEET_S_MAX):
                    await (await self._peers.get(f"{server}/shard")).call("meet", self.name.encode())
            except (PeerLost, PeerFailed, TimeoutError) as away:
                _log.info("%s was not met: %s", server, away or "it took too long")

    def on_deployed(self, worker: str, old: Deployed | None, new: Deployed | None) -> None:
        """What is deployed for a worker has changed."""
        for version in new.versions if new is not None else ():
            self._hosts.alive_of(version.cordon)  # which makes its hosts known
        notice: dict[str, object] = {"remove": [worker]} if new is None else added([new])
        if old is not None:
            gone = {v.version_id for v in old.versions} - {v.version_id for v in (new.versions if new else ())}
            notice["revoke"] = sorted(gone)
            for version_id in gone:
                self._side.begin(self._drop(version_id))
        self._subscribers.tell(notice)

    async def _drop(self, version: str) -> None:
        """A version is no longer deployed: its isolates need not live until they are evicted."""
        await self._hosts.tell_all(Frame.NOTICE, version.encode())

    def on_synced(self) -> None:
        """Everything was asked for again."""
        for cordon in self._keeper.cordons:
            self._hosts.alive_of(cordon)
        self._subscribers.greet_all(self._view.workers.values())

    # -------------------------------------------------------------------------- what this machine's others tell us

    def _on_notice(self, kind: Frame, payload: bytes) -> None:
        if kind is Frame.PREWARM:
            self._side.begin(self._ahead.likely(REQUEST.decode(payload)))
        elif kind is Frame.SPANS:
            self._traces.report(spans_of(payload))
        elif kind is Frame.LATE_SPANS:
            edge, _, late = payload.partition(b"\0")
            self.nested.report_to(edge.decode(), spans_of(late))
        elif kind is Frame.HEAT:
            report = HEAT.decode(payload)
            self._warmth.homes_here = self._keeper.homes_of(self.name)
            self._warmth.reported(report, _now_s())
            self._side.begin(self._share_memory(report))
            for worker in report.workers:
                self._ahead.used(worker)
        elif kind is Frame.STAGE:
            self._tails.told(payload, self.nested.stage)
        elif kind is Frame.LIVE:
            self._live.told(payload)
        elif kind is Frame.NOTICE:
            word, _, version = payload.decode().partition(" ")
            self._host_says(word, version)

    async def _share_memory(self, report: HeatReport) -> None:
        """Tell a host what of this machine's memory is its own."""
        cordon = self._hosts.cordon_of(report.socket)
        if self._memory is None or cordon is None:
            return
        hosts, used_bytes = self._hosts.count(cordon), report.load.memory_bytes
        part = self._memory.reported(cordon, hosts, report.socket, used_bytes, report.memory_bytes_max)
        if part is not None:
            await self._hosts.tell_one(report.socket, Frame.MEMORY, str(part).encode())

    async def _tell_watched(self, watched: Watched) -> None:
        """Hosts and edges are to tell of the requests of these workers, and of no others."""
        payload = WATCHED.encode(watched)
        self._subscribers.tell({"watched": payload})
        await self._hosts.tell_all(Frame.LIVE, payload)

    def _untold(self, request: Request, ended: Ended) -> None:
        """A request that this Server sent is over. If no host had a word on it, whoever watches its worker hears so
        from here."""
        if self._live.is_on(request.worker) and untold(ended):
            ending = ending_of(request, ended, at_ms=time.time_ns() // 1_000_000)
            self._live.happened(live_event(request, ending, self.name, headers=self._live.headers))

    def _host_says(self, word: str, version: str) -> None:
        """A request that used the way out is ``over``. A host's process ``began``, perhaps in the place of another.
        Or a host has the first isolate of a version (``warm``), or lost the last (``cold``); or it was asked for one
        ahead, and there was one already or no room (``unstarted``)."""
        if word == "over":
            stage, _, cpu_us = version.partition(" ")
            self.nested.over(stage, int(cpu_us))
            return
        if word == "began":
            self._hosts.began(version)
            return
        if word == "warm":
            self._warmth.warm(version)
        elif word == "cold":
            self._warmth.cold(version, _now_s())
            self._client.refusals.forget(version)
            self._subscribers.cold(version)
        self._ahead.host_said(word, version)

    def _on_subscribe(self, connection: Connection, socket: bytes) -> None:
        """The ingress, or the host at ``socket``, wants to hear of routes and leases for as long as its connection is
        open."""
        if socket:
            self._subscribers.add_host(connection, socket.decode())
        else:
            self._subscribers.add(connection, self._view.workers.values())

    async def statistics(self, payload: bytes = b"") -> bytes:
        """Counters, for operators and tests."""
        counts, now_s = self._client.counts, _now_s()
        return encode_plain(
            {
                "server": self.name,
                "requests": self._requests,
                "seq": self._view.seq,
                "workers": len(self._view.workers),
                "ring_epoch": self._view.epoch,
                "ring": {} if self._view.ring is None else dict(self._view.ring.servers),
                "warm_versions": len(self._warmth.warm_versions()),
                "routes": dict(self._routes),
                "prewarms": self._ahead.statistics(),
                "ran_here": self._warmth.ran_here,
                "hop_ms": round(self._warmth.hop_ms, 3),
                "hottest": [
                    [worker, round(self._warmth.heat.rate_per_s(worker, now_s), 4)]
                    for worker in self._warmth.heat.hottest(_HOTTEST_SHOWN, now_s)
                ],
                "sharded": {
                    "offered": counts.offered,
                    "answered": counts.answered,
                    "refused": counts.refused,
                    "lost": counts.lost,
                    "sent_bytes": counts.sent_bytes,
                },
                "nested": self.nested.statistics(),
                "tails": self._tails.statistics(),
                "live": self._live.statistics(),
                "traces": self._traces.statistics(),
                "hosts": len(self._hosts.alive),
                "hosts_all": len(self._hosts.all),
                "hosts_lost": self._hosts.lost,
                "sticky_refusals": len(self._client.refusals),
                "lent_out": len(self._exports) + len(self._submissions),
                "homes": {worker: self._view.home_of(worker) for worker in list(self._view.workers)[:1000]},
            }
        )


def _now_s() -> float:
    return asyncio.get_running_loop().time()
