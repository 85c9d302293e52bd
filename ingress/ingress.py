"""Ingress: TLS and HTTP for one machine, uvicorn inside an actor.

A request's head names its worker. With a lease for that worker the request goes straight to the host's socket;
without one it goes through the Server's, and a lease may come back with the answer. Bodies stream both ways, pulled
from the client at the guest's pace and pushed to it at its own.

The client hello names the worker too, one round trip before the request: that is when a prewarm goes out, unawaited,
rate-limited and bounded. It never delays a handshake and is never counted or traced.

One place answers the client (``_answer``); after its head is out, an answer that breaks off is reset, never ended.
"""

import asyncio
import logging
import socket
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

from actors.exchange import WINDOW_BYTES_MAX, Ended, Failure, Lease, Outcome, Request, RequestHead, Served, status_of
from actors.link import Answer, Connection, Frame, LinkAnswer, LinkBroken, Links
from actors.side_work import SideWork
from actors.stage import is_error, root_attributes, server_timing
from actors.view import decode_plain
from actors.wire import REQUEST
from ingress.authority import LocalAuthority
from ingress.http_limits import HeadLimits, protocol_class
from ingress.routes import Routes, is_local, local_host
from ingress.tls import CertificateStore, server_context
from isolates.conversation import BodyLost
from tracing.recorder import NO_PARENT, Recorder
from tracing.sampling import RequestFacts, Sampler
from tracing.token_bucket import TokenBucket
from tracing.trace import Attr, Role, Span, SpanName, TraceContext, parse_traceparent
from tracing.wire import Malformed, decode_spans, encode_spans

_log = logging.getLogger("everwarm.ingress")

#: Statuses whose answers have no body, and no length either.
_BODILESS = frozenset((204, 304))
#: The connection is left to ``http_limits``, which reads on for a while, so that the client can read this.
_TOO_LARGE = Failure(413, "bodyTooLarge", "The request body is too large.")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: Header names that are ours alone: a client that sends them is not heard.
_INTERNAL_PREFIX = b"everwarm-"
#: Hop-by-hop fields (RFC 9110 section 7.6.1): they are between client and ingress.
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"te", b"expect")
)


@dataclass(frozen=True, slots=True)
class IngressLimits:
    """Bounds of one ingress."""

    request_body_bytes_max: int = 500_000_000  # the paid plan's; a worker's own limit is lower or the same
    #: Waiting for the first bytes of a body, so that they ride with the head. A client that sends head and body
    #: together needs microseconds; one that does not is not worth delaying the head for.
    first_bytes_wait_s: float = 0.002
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


class ClientBody:
    """The request body as it comes from the client."""

    def __init__(self, receive: Receive, bytes_max: int) -> None:
        self._receive = receive
        self._bytes_max = bytes_max
        self._pending: bytes = b""
        self._done = False
        self.received_bytes = 0
        self.too_large = False

    async def first(self, wait_s: float) -> tuple[bytes, bool]:
        """What arrives within ``wait_s``, at most a window; and whether it is all."""
        try:
            async with asyncio.timeout(wait_s):
                while not self._done and len(self._pending) < WINDOW_BYTES_MAX:
                    await self._fill()
        except TimeoutError:
            pass  # the rest is pulled when the guest wants it
        first, self._pending = self._pending[:WINDOW_BYTES_MAX], self._pending[WINDOW_BYTES_MAX:]
        return first, self._done and not self._pending

    async def read(self, bytes_max: int) -> bytes | None:
        while not self._pending and not self._done:
            await self._fill()
        if not self._pending:
            return None
        data, self._pending = self._pending[:bytes_max], self._pending[bytes_max:]
        return data

    async def _fill(self) -> None:
        """Take one message from the client, waiting for it."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise BodyLost
        body = message.get("body", b"")
        self._pending += body
        self._done = not message.get("more_body", False)
        self.received_bytes += len(body)
        if self.received_bytes > self._bytes_max:
            self.too_large = True
            raise BodyLost


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
        authority: LocalAuthority,
        certificates: Path | None,
        entropy: Callable[[int], bytes],
        limits: IngressLimits | None = None,
        head_limits: HeadLimits | None = None,
    ) -> None:
        self.name = name
        self._address = address
        self._port = port
        self._server = str(server_socket)
        self._links = links
        self._entropy = entropy
        self._limits = limits or IngressLimits()
        self._head_limits = head_limits or HeadLimits()
        self._routes = Routes()
        self._certificates = CertificateStore(authority, self._pattern_of, certificates)
        self._unknown_names = TokenBucket(self._limits.unknown_names_per_s, burst_s=2.0)
        self._leases: dict[str, Lease] = {}
        self._leased_versions: dict[str, str] = {}  # version -> worker
        self._prewarmed: OrderedDict[str, float] = OrderedDict()
        self._prewarm_tokens = TokenBucket(self._limits.prewarms_per_s, burst_s=1.0)
        self._sampler = Sampler()
        self._spans: list[Span] = []
        self._spans_dropped = 0
        self._requests = 0
        self._prewarms = 0
        self._uvicorn: uvicorn.Server | None = None
        self._side = SideWork(f"{name}/ingress")

    # -------------------------------------------------------------------------------------------------- lifecycle

    async def start(self) -> int:
        """Listen; returns the port. ``OSError`` when the port is taken."""
        heard = asyncio.Event()
        self._side.begin(self._follow_server(heard))
        await asyncio.wait_for(heard.wait(), 10.0)
        config = uvicorn.Config(
            self._serve,
            host=self._address,
            port=self._port,
            http=protocol_class(self._head_limits, self._entropy),
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
                connection = await self._links.take(self._server)
                connection.send(Frame.SUBSCRIBE)
                await self._hear(connection, heard)
            except LinkBroken:
                self._drop_leases()
                # The Server is restarting, or has not started yet.
                await asyncio.sleep(0.1)

    def _drop_leases(self) -> None:
        self._leases.clear()
        self._leased_versions.clear()

    def lease(self, worker: str) -> Lease | None:
        """The lease for a worker, while it is valid."""
        return self._leases.get(worker)

    def keep_lease(self, lease: Lease) -> None:
        """A lease came with an answer."""
        if len(self._leases) < self._limits.leases_max:
            self._leases[lease.worker] = lease
            self._leased_versions[lease.version] = lease.worker

    async def _hear(self, connection: Connection, heard: asyncio.Event) -> None:
        while True:
            _, payload = await connection.receive()
            notice = decode_plain(payload)
            if notice.get("reset"):
                self._routes = Routes()
            if notice.get("revoke_all"):
                self._drop_leases()
            for version in notice.get("revoke", ()):
                self._leases.pop(self._leased_versions.pop(version, ""), None)
            if added := notice.get("add"):
                self._routes = self._routes.with_routes({local_host(worker): worker for worker in added})
                for worker in added:
                    self._leases.pop(worker, None)
            for worker in notice.get("remove", ()):
                self._routes = self._routes.without_worker(worker)
                self._leases.pop(worker, None)
            heard.set()

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
        request = Request(self._entropy(8).hex(), worker, RequestHead("", "", "", ""), "")
        lease = self.lease(worker)
        try:
            if lease is not None:
                payload = REQUEST.encode(
                    replace(
                        request,
                        version=lease.version,
                        component_digest=lease.component_digest,
                        limits=lease.limits,
                    )
                )
                await self._links.tell(lease.socket, Frame.PREWARM, payload)
            else:
                await self._links.tell(self._server, Frame.PREWARM, REQUEST.encode(request))
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
        request, given = self._request(scope)
        worker = self._routes.find(request.head.authority)
        exchange = _Exchange(self, request, given, began_ns, receive, send)
        if worker is None:
            await exchange.fail(Ended(Outcome.SCRIPT_NOT_FOUND), None)
            return
        try:
            await exchange.run(worker)
        except Exception as fault:
            if exchange.head_sent or isinstance(fault, _BrokenOff):
                raise
            _log.exception("request %s failed at the edge", request.request_id)
            await exchange.fail(Ended(Outcome.INTERNAL_ERROR, type(fault).__name__), None)

    def _request(self, scope: Scope) -> tuple[Request, TraceContext | None]:
        headers: list[tuple[str, bytes]] = []
        authority, traceparent = "", None
        for name, value in scope["headers"]:
            if name == b"host":
                authority = value.decode("latin-1")
            elif name == b"traceparent":
                traceparent = parse_traceparent(value.decode("latin-1"))
            if name not in _HOP_BY_HOP and not name.startswith(_INTERNAL_PREFIX):
                headers.append((name.decode("latin-1"), value))
        path = scope["raw_path"].decode("latin-1")
        query = scope["query_string"].decode("latin-1")
        head = RequestHead(
            scope["method"], scope["scheme"], authority, f"{path}?{query}" if query else path, tuple(headers)
        )
        return Request(self._entropy(8).hex(), "", head, ""), traceparent

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
                    await self._links.tell(self._server, Frame.SPANS, encode_spans(batch))
                except LinkBroken:
                    self._spans_dropped += len(batch)


class _Exchange:
    """One request at the edge: where it is sent, what the client gets, and what is told of it."""

    def __init__(
        self,
        ingress: Ingress,
        request: Request,
        given: TraceContext | None,
        began_ns: int,
        receive: Receive,
        send: Send,
    ) -> None:
        self._ingress = ingress
        self._given = given
        self._began_ns = began_ns
        self._receive = receive
        self._send = send
        self._recorder = Recorder.under(
            given.traceparent() if given is not None else "", ingress.name, Role.INGRESS, ingress._entropy
        )
        self._root_id = self._recorder.new_id()
        under_root = self._recorder.context.child(self._root_id)
        self._request = replace(request, traceparent=under_root.traceparent())
        self._sent_bytes = 0
        self._expected_bytes: int | None = None
        self._ended = False
        self.head_sent = False

    async def run(self, worker: str) -> None:
        """Send the request on and stream the answer to the client."""
        ingress, limits = self._ingress, self._ingress._limits
        body = ClientBody(self._receive, limits.request_body_bytes_max)
        request = replace(self._request, worker=worker)
        declared = next((v for n, v in request.head.headers if n == "content-length"), None)
        if declared is not None and int(declared) > limits.request_body_bytes_max:
            await self._page(_TOO_LARGE)
            return
        # Without a length there may still be a chunked body; ASGI says so with the first message.
        has_body = declared not in (None, b"0") or request.head.method not in ("GET", "HEAD", "OPTIONS", "DELETE")
        try:
            first, complete = await body.first(limits.first_bytes_wait_s if has_body else 0.5)
        except BodyLost:
            return
        request = replace(request, body_first=first, body_complete=complete)
        lease = ingress.lease(worker)
        path = ingress._server
        if lease is not None:
            path = lease.socket
            request = replace(
                request,
                version=lease.version,
                component_digest=lease.component_digest,
                plan=lease.plan,
                limits=lease.limits,
            )
        self._request = request
        try:
            answer = await ingress._links.exchange(path, request, body)
        except LinkBroken:
            ingress._leases.pop(worker, None)
            await self.fail(Ended(Outcome.INTERNAL_ERROR, "this machine's runtime is away"), None)
            return
        watcher = asyncio.create_task(self._watch_client(body, answer)) if complete else None
        try:
            await self._answer(answer, body, lease)
        finally:
            if watcher is not None:
                watcher.cancel()
            answer.cancel()

    async def _watch_client(self, body: ClientBody, answer: Answer) -> None:
        """The request is whole, so the next message can only be that the client left: stop the guest, unless the client
        left with its whole answer."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                if not (answer.whole or self._client_has_all):
                    answer.cancel()
                return

    async def _answer(self, answer: LinkAnswer, body: ClientBody, lease: Lease | None) -> None:
        served = await answer.served()
        if served is None:
            ended = await answer.ended()
            if body.too_large:
                await self._page(_TOO_LARGE)
            else:
                await self.fail(ended, None)
            return
        if served.lease is not None:
            self._ingress.keep_lease(served.lease)
        if lease is not None and not served.home:
            served = replace(served, home=lease.home)
        headers = [*_for_client(served.headers), (b"server-timing", server_timing(served))]
        length = next((v for n, v in served.headers if n == "content-length"), None)
        first = await _arrived(answer)
        if answer.whole and length is None and not self._is_head and served.status not in _BODILESS:
            # All of it is here: a length costs one write less than chunks, and lets the client see the end at once.
            length = str(len(first)).encode()
            headers.append((b"content-length", length))
        # A client knows that its answer is whole by its length, often before the guest has said so.
        self._expected_bytes = 0 if self._is_head else int(length) if length and length.isdigit() else None
        await self._start(served.status, headers)
        if first or answer.whole:
            await self._send_body(first, more=not answer.whole)
        while not answer.whole and (data := await answer.read()) is not None:
            await self._send_body(data, more=True)
        if answer.whole and not self._ended:
            await self._send_body(b"", more=False)
        ended = await answer.ended()
        self._tell(served, ended, served.status)
        if not answer.whole:
            raise _BrokenOff  # uvicorn resets the connection: never a clean end

    async def _send_body(self, data: bytes, *, more: bool) -> None:
        self._sent_bytes += len(data)
        self._ended = not more
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def fail(self, ended: Ended, served: Served | None) -> None:
        """Answer an ending that is not the worker's own answer."""
        failure = status_of(ended.outcome if ended.outcome is not Outcome.OK else Outcome.HUNG)
        await self._page(failure, ended)
        self._tell(served, ended, failure.status)

    async def _page(self, failure: Failure, ended: Ended | None = None) -> None:
        accept = next((v for n, v in self._request.head.headers if n == "accept"), b"")
        request_id = self._request.request_id
        if b"application/json" in accept:
            kind = b"application/json"
            page = msgspec.json.encode(
                {"error": {"code": failure.code, "message": failure.text, "request_id": request_id}}
            )
        else:
            kind = b"text/plain; charset=utf-8"
            page = f"{failure.status} {failure.code}: {failure.text}\nrequest {request_id}\n".encode()
        headers = [
            (b"content-type", kind),
            (b"content-length", str(len(page)).encode()),
            (b"server-timing", server_timing(None, ended)),
        ]
        if failure.retry_after_s is not None:
            headers.append((b"retry-after", str(failure.retry_after_s).encode()))
        await self._start(failure.status, headers)
        await self._send({"type": "http.response.body", "body": b"" if self._is_head else page})

    @property
    def _client_has_all(self) -> bool:
        """Whether every byte that the answer's head announced is on its way."""
        return self._expected_bytes is not None and self._sent_bytes >= self._expected_bytes

    @property
    def _is_head(self) -> bool:
        return self._request.head.method == "HEAD"

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.head_sent = True
        headers.append((b"everwarm-request-id", self._request.request_id.encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    def _tell(self, served: Served | None, ended: Ended, status: int) -> None:
        """Put the trace together, if it is kept: the root, and what every role on the way reported."""
        now_ns = time.time_ns()
        facts = RequestFacts(
            trace_id=self._recorder.context.trace_id,
            start_type=ended.start_type or (served.start_type if served else None),
            outcome=ended.outcome.value,
            refused=served.refused if served else None,
            hop=served.hop if served else ended.hop,
            error=is_error(ended.outcome),
            duration_ms=(now_ns - self._began_ns) / 1e6,
        )
        if not self._ingress.wants_trace(facts):
            return
        spans: list[Span] = []
        for report in ended.spans:
            decoded = decode_spans(report)
            if isinstance(decoded, Malformed):
                _log.error("a report of spans was refused: %s", decoded.reason)
            else:
                spans += decoded
        attributes = root_attributes(self._request, served, ended, status)
        attributes[Attr.HTTP_RESPONSE_BYTES] = self._sent_bytes
        attributes[Attr.STAGES] = len(spans) + 1
        root = self._recorder.span(
            SpanName.REQUEST, self._began_ns, now_ns, attributes, span_id=self._root_id,
            parent=NO_PARENT if self._given is None else None, error=facts.error,
        )  # fmt: skip
        self._ingress.keep_trace([root, *spans])


class _BrokenOff(Exception):
    """A response that ended before its body did. Raised to uvicorn, which closes the connection without an end."""


async def _arrived(answer: LinkAnswer) -> bytes:
    """What is there of a response body without waiting for more, up to a window."""
    pieces: list[bytes] = []
    size = 0
    while size < WINDOW_BYTES_MAX and answer.ready() and not answer.is_over:
        data = await answer.read()
        if data is None:
            break
        pieces.append(data)
        size += len(data)
    return b"".join(pieces)


def _not_broken_off(record: logging.LogRecord) -> bool:
    """Whether a log record of uvicorn is about anything but a response that broke off, which is business here."""
    return not (record.exc_info and isinstance(record.exc_info[1], _BrokenOff))


def _for_client(headers: tuple[tuple[str, bytes], ...]) -> list[tuple[bytes, bytes]]:
    return [
        (raw, value)
        for name, value in headers
        if (raw := name.encode()) not in _HOP_BY_HOP and not raw.startswith(_INTERNAL_PREFIX)
    ]


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
