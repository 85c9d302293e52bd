"""Ingress: TLS and HTTP for one machine, uvicorn inside an actor.

A request's head names its worker. With a lease for that worker the request goes straight to the host's socket;
without one it goes through the Server's, and a lease may come back with the answer. ``client_exchange.py`` is one
request; this file is what all of them share: listening, routes and leases as the Server tells of them, prewarms, and
the traces that are sent on.

The client hello names the worker too, one round trip before the request: that is when a prewarm goes out, unawaited,
rate-limited and bounded. It never delays a handshake and is never counted or traced.
"""

import asyncio
import logging
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import uvicorn

from actors.connection import Connection, Frame, LinkBroken, NobodyListens
from actors.exchange import Ended, Lease, Outcome, Request, RequestHead
from actors.link import BodySource, LinkAnswer, Links
from actors.live_tail import LIVE_EVENT, WATCHED, LiveEvent, LiveSwitch, live_event, untold
from actors.side_work import SideWork
from actors.stage_over import ending_of
from actors.view import decode_plain
from actors.wire import REQUEST
from actors.worker_names import is_worker_name
from ingress.client_exchange import BrokenOff, ClientExchange, ExchangeLimits, Receive, Scope, Send, request_of
from ingress.http_limits import HeadLimits, LimitedHttp, protocol_class
from ingress.routes import Routes, is_local, local_host
from ingress.tls import Authority, CertificateStore, server_context
from tracing.sampling import RequestFacts, Sampler
from tracing.token_bucket import TokenBucket
from tracing.trace import Span
from tracing.wire import encode_spans

_log = logging.getLogger("everwarm.ingress")

#: To listen at all of a machine's addresses.
_EVERYWHERE = frozenset({"", "0.0.0.0", "::"})
#: How often an edge that goes looks whether all of its clients are gone.
_LEFT_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class IngressLimits:
    """Bounds of one ingress."""

    #: Prewarms a second, and as many at once. A handshake costs a client more than this costs us.
    prewarms_per_s: float = 200.0
    #: Certificates for local names that no worker has: a mistyped name should end in a 404 page, not in a TLS error.
    #: Each costs a millisecond; beyond this the client gets the default certificate.
    unknown_names_per_s: float = 5.0
    #: A host that was prewarmed a moment ago needs no second one: browsers open six connections.
    prewarm_quiet_s: float = 1.0
    prewarmed_max: int = 4_096
    leases_max: int = 100_000
    spans_waiting_max: int = 2_048
    spans_every_s: float = 0.05
    #: A request waits so long for a Server that is away: a restart takes a second or two. And so many wait: at 400 a
    #: second those of a whole restart.
    server_away_s_max: float = 5.0
    server_away_every_s: float = 0.05
    waiting_max: int = 2_048
    #: An edge that goes lets each connection ask once more, for so long: who asks that often hears that it was the last
    #: time. Who asks less often is closed upon, and hits the moment in which that loses a request the less often.
    last_requests_s: float = 3.0


class Ingress:
    """The edge of one machine."""

    def __init__(
        self,
        name: str,
        *,
        address: str,
        port: int,
        server_socket: Path,
        links: Links,
        authority: Authority,
        certificates: Path | None,
        entropy: Callable[[int], bytes],
        limits: IngressLimits | None = None,
        traces: bool = True,
        exchange_limits: ExchangeLimits | None = None,
        head_limits: HeadLimits | None = None,
    ) -> None:
        self.name = name
        self._address = address
        self._port = port
        self.server = str(server_socket)
        self.links = links
        self.entropy = entropy
        self.traces = traces
        self._limits = limits or IngressLimits()
        self._exchange_limits = exchange_limits or ExchangeLimits()
        self._protocol = protocol_class(head_limits or HeadLimits(), entropy)
        self._routes = Routes()
        self._routed: dict[str, list[str]] = {}  # by worker that has some: its routes
        # Clients that ask for this machine by its number say no name, and get the default certificate.
        own_names = () if address in _EVERYWHERE else (address,)
        self._certificates = CertificateStore(authority, self._pattern_of, certificates, own_names=own_names)
        self._unknown_names = TokenBucket(self._limits.unknown_names_per_s, burst_s=2.0)
        self._body_bytes_max: dict[str, int] = {}  # of each worker that has a route
        self._leases: dict[str, Lease] = {}
        self._leased_versions: dict[str, str] = {}  # version -> worker
        self._told = 0  # notices of the Server, as it counts them
        self._prewarmed: OrderedDict[str, float] = OrderedDict()
        self._prewarm_tokens = TokenBucket(self._limits.prewarms_per_s, burst_s=1.0)
        self._sampler = Sampler()
        self._spans: list[Span] = []
        self._spans_dropped = 0
        self._requests = 0
        self._waiting = 0  # for a Server that is away
        self._outcomes: dict[str, int] = {}
        self._live = LiveSwitch()
        self._prewarms = 0
        self._uvicorn: uvicorn.Server | None = None
        self._side = SideWork(f"{name}/ingress")

    # -------------------------------------------------------------------------------------------------- lifecycle

    async def start(self) -> int:
        """Listen; returns the port. ``OSError`` when the port is taken."""
        heard = asyncio.Event()
        self._side.begin(self._follow_server(heard))
        await asyncio.wait_for(heard.wait(), 10.0)
        await self.links.open_ahead(self.server)
        config = uvicorn.Config(
            self._serve,
            host=self._address,
            port=self._port,
            http=self._protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            proxy_headers=False,  # nobody stands before us; a client's word for its own address is not taken
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            backlog=1024,
            timeout_keep_alive=75,
            ssl_context_factory=lambda _config, _default: server_context(self._certificates, self._on_server_name),
        )
        logging.getLogger("uvicorn.error").addFilter(_not_broken_off)
        self._uvicorn = uvicorn.Server(config)
        # uvicorn exits the process when a port is taken; a socket bound beforehand raises instead.
        listening = config.bind_socket() if self._port == 0 else _bound(self._address, self._port)
        self._port = listening.getsockname()[1]
        config.load()
        self._uvicorn.lifespan = config.lifespan_class(config)
        await self._uvicorn.startup(sockets=[listening])
        self._side.begin(self._uvicorn.main_loop())
        self._side.begin(self._send_spans())
        return self._port

    async def drain(self, within_s: float) -> None:
        """Take no new clients, let those that are here finish what they asked for, and stop.

        A connection that is kept between requests may ask once more, and hears with the answer that it was the last
        time. One that does not ask is closed.
        """
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._last_requests(self._uvicorn)
                    await self._uvicorn.shutdown()
        await self.stop()

    async def _last_requests(self, server: uvicorn.Server) -> None:
        """Stop listening, and wait until every connection has had its last answer or asks for nothing."""
        for listening in server.servers:
            listening.close()
        self._protocol.is_leaving = True  # also of those whose handshake is not over
        connections = server.server_state.connections
        for connection in list(connections):
            if isinstance(connection, LimitedHttp):
                connection.make_last()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.last_requests_s):
                while connections:  # noqa: ASYNC110 - as uvicorn itself waits for them
                    await asyncio.sleep(_LEFT_EVERY_S)

    async def stop(self) -> None:
        """Stop listening; requests in work are cut."""
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True
            self._uvicorn.force_exit = True
            await self._uvicorn.shutdown()
        await self._side.stop()

    async def statistics(self) -> dict[str, object]:
        """Counters, for operators and tests."""
        return {
            "requests": self._requests,
            "outcomes": dict(self._outcomes),
            "prewarms": self._prewarms,
            "leases": len(self._leases),
            "routes": len(self._routes),
            "spans_dropped": self._spans_dropped,
            "certificates": msgspec.to_builtins(self._certificates.statistics()),
        }

    # ------------------------------------------------------------------------------------------- what we are told

    async def _follow_server(self, heard: asyncio.Event) -> None:
        """Hear of routes and leases from the Server; while it is away, hold no lease."""
        while True:
            try:
                connection = await self.links.take(self.server)
                connection.send(Frame.SUBSCRIBE)
                await self._hear(connection, heard)
            except LinkBroken:
                self._drop_leases()
                # The Server is restarting, or has not started yet.
                await asyncio.sleep(0.1)

    def _drop_leases(self) -> None:
        self._leases.clear()
        self._leased_versions.clear()

    def body_bytes_max(self, worker: str) -> int:
        """The largest request body that a worker takes. Nothing, when it is not deployed: it has no route either."""
        return self._body_bytes_max.get(worker, 0)

    def lease(self, worker: str) -> Lease | None:
        """The lease for a worker, while it is valid."""
        return self._leases.get(worker)

    def keep_lease(self, lease: Lease) -> None:
        """A lease came with an answer. One that was given before the last notice may have been taken back by it."""
        if lease.issued < self._told:
            return
        if len(self._leases) < self._limits.leases_max:
            self._leases[lease.worker] = lease
            self._leased_versions[lease.version] = lease.worker

    def drop_lease(self, worker: str) -> None:
        """The host of a lease did not answer."""
        self._leases.pop(worker, None)

    async def ask_server(self, request: Request, body: BodySource) -> LinkAnswer:
        """Send a request to the Server; one that is being restarted is waited for. ``LinkBroken`` when it does not
        come, or too many wait for it."""
        limits, until_s = self._limits, time.monotonic() + self._limits.server_away_s_max
        while True:
            try:
                return await self.links.exchange(self.server, request, body)
            except NobodyListens:
                if self._waiting >= limits.waiting_max or time.monotonic() >= until_s:
                    raise
            self._waiting += 1
            try:
                await asyncio.sleep(limits.server_away_every_s)
            finally:
                self._waiting -= 1

    async def _hear(self, connection: Connection, heard: asyncio.Event) -> None:
        while True:
            _, payload = await connection.receive()
            notice = decode_plain(payload)
            self._told = notice.get("told", self._told)
            if "watched" in notice:
                self._live.set(WATCHED.decode(notice["watched"]), time.monotonic())
            if notice.get("reset"):
                self._routes, self._body_bytes_max, self._routed = Routes(), {}, {}
            if notice.get("revoke_all"):
                self._drop_leases()
            for version in notice.get("revoke", ()):
                self._leases.pop(self._leased_versions.pop(version, ""), None)
            self._body_bytes_max.update(notice.get("body_bytes_max", {}))
            if added := notice.get("add"):
                self._route(added, notice["routes"])
                for worker in added:
                    self._leases.pop(worker, None)
            for worker in notice.get("remove", ()):
                self._routes = self._routes.without_worker(worker)
                self._routed.pop(worker, None)
                self._body_bytes_max.pop(worker, None)
                self._leases.pop(worker, None)
            heard.set()

    def _route(self, added: list[str], routes: dict[str, list[str]]) -> None:
        """Workers were deployed, some with routes."""
        # A worker of a dispatch namespace has no name of its own here.
        named = {local_host(worker): worker for worker in added if is_worker_name(worker)}
        for worker in added:
            if self._routed.get(worker, []) != routes.get(worker, []):
                if self._routed.pop(worker, None):
                    self._routes = self._routes.without_worker(worker)  # of its routes some were given up
                named |= dict.fromkeys(routes.get(worker, ()), worker)
        self._routed |= routes
        # The catalog gives no route to two workers. Pages of it may be of different moments: then the later is right.
        self._routes = self._routes.with_routes(named, take_over=True)

    # ---------------------------------------------------------------------------------------------------- prewarm

    def _pattern_of(self, host: str) -> str | None:
        """For which name ``host`` gets its certificate, or None for the default one."""
        pattern = self._routes.pattern_of(host)
        if pattern is None and is_local(host) and self._unknown_names.take(time.monotonic()):
            return host
        return pattern

    def _on_server_name(self, host: str) -> None:
        """Inside a TLS handshake: start an isolate of the worker that this client will ask for."""
        worker = self._routes.find(host)
        if worker is None:
            return
        now_s = time.monotonic()
        if now_s - self._prewarmed.get(worker, -1e9) < self._limits.prewarm_quiet_s:
            return
        if not self._prewarm_tokens.take(now_s):
            return
        self._prewarmed[worker] = now_s
        self._prewarmed.move_to_end(worker)
        if len(self._prewarmed) > self._limits.prewarmed_max:
            self._prewarmed.popitem(last=False)
        self._side.begin(self._prewarm(worker))

    async def _prewarm(self, worker: str) -> None:
        request = Request(self.entropy(8).hex(), worker, RequestHead("", "", "", ""), "")
        try:
            # With a lease as without: the Server has the machine's one queue of prewarms, and knows who is warm.
            await self.links.tell(self.server, Frame.PREWARM, REQUEST.encode(request))
            self._prewarms += 1
        except LinkBroken:
            pass  # a prewarm is a favour; the request itself will say what is wrong

    # ------------------------------------------------------------------------------------------------ one request

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            return
        self._requests += 1
        began_ns = time.time_ns()
        request, given = request_of(scope, self.entropy)
        worker = self._routes.find(request.head.authority, request.head.path)
        exchange = ClientExchange(self, request, given, began_ns, receive, send, self._exchange_limits)
        if worker is None:
            await exchange.fail(Ended(Outcome.SCRIPT_NOT_FOUND), None)
            return
        try:
            await exchange.run(worker)
        except Exception as fault:
            if exchange.head_sent or isinstance(fault, BrokenOff):
                raise
            _log.exception("request %s failed at the edge", request.request_id)
            await exchange.fail(Ended(Outcome.INTERNAL_ERROR, type(fault).__name__), None)

    def ended(self, request: Request, ended: Ended, began_ns: int) -> None:
        """A request is over, as its client saw it."""
        self._outcomes[ended.outcome.value] = self._outcomes.get(ended.outcome.value, 0) + 1
        if self._live.is_on(request.worker) and untold(ended):
            missed = self._live.take(time.monotonic())
            if missed is not None:
                ending = ending_of(request, ended, at_ms=began_ns // 1_000_000)
                event = live_event(request, ending, self.name, missed, self._live.headers)
                self._side.begin(self._tell_live(event))

    async def _tell_live(self, event: LiveEvent) -> None:
        """Whoever watches a worker hears of a request that no host told of."""
        with suppress(LinkBroken):  # then nobody watches through this Server
            await self.links.tell(self.server, Frame.LIVE, LIVE_EVENT.encode(event))

    def wants_trace(self, facts: RequestFacts) -> bool:
        """Whether the spans of a request are worth reading and sending on."""
        return self._sampler.keep(facts, time.monotonic())

    def keep_trace(self, spans: list[Span]) -> None:
        """Send a request's spans to the Server, with the next batch."""
        if len(self._spans) + len(spans) > self._limits.spans_waiting_max:
            self._spans_dropped += len(spans)
        else:
            self._spans += spans

    async def _send_spans(self) -> None:
        while True:
            await asyncio.sleep(self._limits.spans_every_s)
            while self._spans:
                # A frame holds 1 MiB; a hundred ordinary spans are some 50 KB.
                batch, self._spans = self._spans[:100], self._spans[100:]
                try:
                    await self.links.tell(self.server, Frame.SPANS, encode_spans(batch))
                except LinkBroken:
                    self._spans_dropped += len(batch)


def _not_broken_off(record: logging.LogRecord) -> bool:
    """Whether a log record of uvicorn is about anything but a response that broke off, which is business here."""
    return not (record.exc_info and isinstance(record.exc_info[1], BrokenOff))


def _bound(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((address, port))
    except OSError:
        made.close()
        raise
    made.set_inheritable(True)
    return made
