"""One request at the edge: from the client's head to its last byte, and what is told of it afterwards.

One place answers the client. Until the head is out, whatever goes wrong ends in a page; after it, an answer that
breaks off is reset, never ended as if it were whole.

The body is pulled from the client at the guest's pace; the answer is pushed at the client's own. The client may leave
at any time, which stops the guest, unless it left with everything that the answer's head had announced.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from actors.connection import LinkBroken
from actors.exchange import WINDOW_BYTES_MAX, Ended, Failure, Lease, Outcome, Request, RequestHead, Served, status_of
from actors.hosts import HostAnswer
from actors.link import Answer, BodySource, LinkAnswer, Links, WindowAnswer, read_window
from actors.stage import is_error, root_attributes, server_timing
from isolates.conversation import BodyLost
from tracing.recorder import NO_PARENT, Recorder
from tracing.sampling import RequestFacts
from tracing.trace import Attr, Role, Span, SpanName, TraceContext, parse_traceparent
from tracing.wire import Malformed, decode_spans

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
class ExchangeLimits:
    """Bounds of one request at the edge."""

    #: The most that a manifest may ask for; a worker's own limit is lower or the same, and holds.
    body_bytes_max: int = 5_000_000_000
    #: Waiting for the first bytes of a body, so that they ride with the head. A client that sends head and body
    #: together needs microseconds; one that does not is not worth delaying the head for.
    first_bytes_wait_s: float = 0.002


class Edge(Protocol):
    """What an exchange needs of its ingress."""

    name: str
    links: Links
    server: str  # the Server's socket
    entropy: Callable[[int], bytes]
    traces: bool  # whether requests leave any

    def body_bytes_max(self, worker: str) -> int: ...
    def lease(self, worker: str) -> Lease | None: ...
    def keep_lease(self, lease: Lease) -> None: ...
    def drop_lease(self, worker: str) -> None: ...
    async def ask_server(self, request: Request, body: BodySource) -> LinkAnswer: ...
    def ended(self, request: Request, ended: Ended, began_ns: int) -> None: ...
    def wants_trace(self, facts: RequestFacts) -> bool: ...
    def keep_trace(self, spans: list[Span]) -> None: ...


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


class ClientExchange:
    """One request at the edge: where it is sent, what the client gets, and what is told of it."""

    def __init__(
        self,
        edge: Edge,
        request: Request,
        given: TraceContext | None,
        began_ns: int,
        receive: Receive,
        send: Send,
        limits: ExchangeLimits,
    ) -> None:
        self._edge = edge
        self._limits = limits
        self._given = given
        self._began_ns = began_ns
        self._receive = receive
        self._send = send
        self._recorder = Recorder.under(
            given.traceparent() if given is not None else "", edge.name, Role.INGRESS, edge.entropy
        )
        # Whether its own part is kept is its client's business; ours is ours.
        self._recorder.context = replace(self._recorder.context, sampled=edge.traces)
        self._root_id = self._recorder.new_id()
        under_root = self._recorder.context.child(self._root_id)
        self._request = replace(request, traceparent=under_root.traceparent(), edge=edge.name)
        self._sent_bytes = 0
        self._expected_bytes: int | None = None
        self._ended = False
        self.head_sent = False

    async def run(self, worker: str) -> None:
        """Send the request on and stream the answer to the client."""
        edge, limits = self._edge, self._limits
        body_bytes_max = min(limits.body_bytes_max, edge.body_bytes_max(worker))
        body = ClientBody(self._receive, body_bytes_max)
        request = replace(self._request, worker=worker)
        declared = next((v for n, v in request.head.headers if n == "content-length"), None)
        if declared is not None and int(declared) > body_bytes_max:
            await self._page(_TOO_LARGE)
            return
        # Without a length there may still be a chunked body; ASGI says so with the first message.
        has_body = declared not in (None, b"0") or request.head.method not in ("GET", "HEAD", "OPTIONS", "DELETE")
        try:
            first, complete = await body.first(limits.first_bytes_wait_s if has_body else 0.5)
        except BodyLost:
            return
        request = replace(request, body_first=first, body_complete=complete)
        lease = edge.lease(worker)
        try:
            answer = await self._sent(request, body, lease)
        except LinkBroken:
            await self.fail(Ended(Outcome.INTERNAL_ERROR, "this machine's runtime is away"), None)
            return
        watcher = asyncio.create_task(self._watch_client(body, answer)) if complete else None
        try:
            await self._answer(answer, body, lease)
        finally:
            if watcher is not None:
                watcher.cancel()
            answer.cancel()

    async def _sent(self, request: Request, body: ClientBody, lease: Lease | None) -> WindowAnswer:
        """Send the request to the host of the lease. When that host is gone, or is lost before the guest started, the
        Server is asked, as without a lease: it knows what is left. When the Server is lost, the one that comes after it
        is asked, if the request may run twice. ``LinkBroken`` when there is no Server."""
        edge = self._edge

        async def by_the_server(asked: Request) -> LinkAnswer:
            edge.drop_lease(request.worker)
            self._request = replace(request, lost_with=asked.lost_with)
            return await edge.ask_server(self._request, body)

        answer = None
        if lease is not None:
            self._request = request.under(lease)
            with suppress(LinkBroken):
                answer = await edge.links.exchange(lease.socket, self._request, body)
        if answer is None:
            answer = await by_the_server(request)
        return HostAnswer(answer, self._request, by_the_server, mute=edge.server)

    async def _watch_client(self, body: ClientBody, answer: Answer) -> None:
        """The request is whole, so the next message can only be that the client left: stop the guest, unless the client
        left with its whole answer."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                if not (answer.whole or self._client_has_all):
                    answer.cancel()
                return

    async def _answer(self, answer: WindowAnswer, body: ClientBody, lease: Lease | None) -> None:
        served = await answer.served()
        if served is None:
            ended = await answer.ended()
            if body.too_large:
                await self._page(_TOO_LARGE)
            else:
                await self.fail(ended, None)
            return
        if served.lease is not None:
            self._edge.keep_lease(served.lease)
        if lease is not None and not served.home:
            served = replace(served, home=lease.home)
        headers = [*_for_client(served.headers), (b"server-timing", server_timing(served))]
        length = next((v for n, v in served.headers if n == "content-length"), None)
        first = await read_window(answer, wait=False)
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
            raise BrokenOff  # uvicorn resets the connection: never a clean end

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
        """Count it, and put the trace together, if it is kept: the root, and what every role on the way reported."""
        self._edge.ended(self._request, ended, self._began_ns)
        if not self._edge.traces:
            return
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
        wanted = self._edge.wants_trace(facts)
        if not (wanted or ended.called):
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
        if not wanted:
            # What it called tells of itself, and may be worth keeping; without a root it would be kept in any case.
            attributes[Attr.SAMPLED] = False
        self._recorder.span(
            SpanName.REQUEST, self._began_ns, now_ns, attributes, span_id=self._root_id,
            parent=NO_PARENT if self._given is None else None, error=facts.error,
        )  # fmt: skip
        self._edge.keep_trace([*self._recorder.spans, *spans])


class BrokenOff(Exception):
    """A response that ended before its body did. Raised to uvicorn, which closes the connection without an end."""


def request_of(scope: Scope, entropy: Callable[[int], bytes]) -> tuple[Request, TraceContext | None]:
    """The request of an ASGI scope, not yet for any worker, and the trace that its client is in."""
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
    return Request(entropy(8).hex(), "", head, ""), traceparent


def _for_client(headers: tuple[tuple[str, bytes], ...]) -> list[tuple[bytes, bytes]]:
    return [
        (raw, value)
        for name, value in headers
        if (raw := name.encode()) not in _HOP_BY_HOP and not raw.startswith(_INTERNAL_PREFIX)
    ]
