"""HTTP/1.1 with limits on what a client may make us hold: uvicorn's httptools protocol, and this around it.

uvicorn hands whole requests to the application; what is too long, too slow or malformed never becomes a request, so it
has to be stopped here, while bytes arrive. Each such connection gets one short answer and is closed:

    414  the URL is too long                      400  malformed; not exactly one Host; both or several lengths;
    431  the head is too long, too many headers        too many requests in line
    408  the head takes too long                  501  a coding other than chunked; CONNECT; an upgrade with a body
                                                  505  neither HTTP/1.0 nor HTTP/1.1

A connection is in one phase:

    IDLE --first byte of a method--> HEAD --empty line--> BODY --last byte--> IDLE
    any --fault or upgrade--> DEAF: input is thrown away, and the connection ends after what is owed was written

What is awkward:

*Counting.* httptools keeps a header until it is complete and says nothing meanwhile. So data is fed in slices, and a
slice in which nothing was reported counts as silent. `head + silent` never exceeds the true length, so no legal head
is refused, and what httptools holds never exceeds the limit by more than a slice. Trailers count like a head.

*Order.* Requests may be pipelined, and answers go out in order. A fault in the second head is answered when the first
request's answer is complete. A fault in a body ends its request: 400 if no byte was answered yet, else the connection
is cut, so that a half answer is never taken for a whole one.

*Closing.* Closing a socket with unread input makes the kernel reset the connection, and the client may lose the
answer it was just sent. So input is read and dropped for a while first (`linger`). The same is done when an answer is
complete before its request's body is: a few bytes are read on and the connection is kept, or else it is closed.

*Leaving.* A client that keeps a connection may send its next request at the moment when we close it, and must not send
some of them again. So an edge that goes closes nothing at first: the next answer of each connection is its last, and
says so. Only who asks for nothing for a while is closed upon, and cut when that is not answered.

Relied on in uvicorn 0.54 beyond what is overridden: `pipeline`, `flow`, `url`, `headers`, `expect_100_continue`,
`_unset_keepalive_if_required`, and `cycle` with its `disconnected`, `keep_alive`, `message_event`, `response_started`,
`response_complete` and `send`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from http import HTTPStatus
from typing import ClassVar, Final, NoReturn

import httptools
from uvicorn._types import ASGI3Application, ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ingress.routes import normal_host


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """Bounds on one connection."""

    head_bytes_max: int = 128 * 1024  # request line and headers together; semantics, section 1
    url_bytes_max: int = 16 * 1024  # the same
    headers_max: int = 256  # browsers send 30; each costs the guest's host a resource
    head_ms_max: int = 30_000  # from a connection's opening, or a head's first byte, to its empty line
    slice_bytes: int = 16 * 1024  # how finely input is fed, hence how far a limit is overshot
    pipelined_max: int = 64  # requests waiting behind the one being answered; benchmarks pipeline 16, browsers none
    drain_bytes_max: int = 256 * 1024  # of a body nobody wants; one read of the socket
    linger_ms: int = 2_000  # how long input is dropped before a close; a few round trips of a slow line


class _Phase(Enum):
    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    DEAF = auto()


@dataclass(frozen=True, slots=True)
class _Fault:
    """Why a connection ends, as the client is told."""

    status: HTTPStatus
    text: str


class _Stopped(Exception):
    """Raised inside the parser's callbacks to stop it there; the fault is in the protocol's `_fault`."""


_MALFORMED: Final = _Fault(HTTPStatus.BAD_REQUEST, "malformed HTTP request")
_HEAD_TOO_LONG: Final = _Fault(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "request head too long")
_TOO_MANY_HEADERS: Final = _Fault(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too many request headers")
_URL_TOO_LONG: Final = _Fault(HTTPStatus.REQUEST_URI_TOO_LONG, "URL too long")
_HEAD_TOO_SLOW: Final = _Fault(HTTPStatus.REQUEST_TIMEOUT, "request head took too long")
_BAD_HOST: Final = _Fault(HTTPStatus.BAD_REQUEST, "exactly one Host header is needed")
_BAD_TARGET: Final = _Fault(HTTPStatus.BAD_REQUEST, "the URL names another host than the Host header")
_BAD_LENGTH: Final = _Fault(HTTPStatus.BAD_REQUEST, "ambiguous request body length")
_BAD_CODING: Final = _Fault(HTTPStatus.NOT_IMPLEMENTED, "transfer coding not implemented")
_BAD_UPGRADE: Final = _Fault(HTTPStatus.NOT_IMPLEMENTED, "upgrade with a body not implemented")
_BAD_METHOD: Final = _Fault(HTTPStatus.NOT_IMPLEMENTED, "method not implemented")
_BAD_VERSION: Final = _Fault(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP version not supported")
_TOO_MANY_PIPELINED: Final = _Fault(HTTPStatus.BAD_REQUEST, "too many pipelined requests")


@dataclass(frozen=True, slots=True)
class _Settings:
    limits: HeadLimits
    entropy: Callable[[int], bytes]


def protocol_class(limits: HeadLimits, entropy: Callable[[int], bytes]) -> type[LimitedHttp]:
    """The class to give to `uvicorn.Config(http=…)`. `entropy(n)` gives n random bytes, for request ids."""

    class Configured(LimitedHttp):
        settings = _Settings(limits, entropy)

    return Configured


class LimitedHttp(HttpToolsProtocol):
    """See the module's docstring. Made by uvicorn, one for each connection, from what `protocol_class` returns.

    An application should leave `connection: close` out of its answers: uvicorn then closes at once, and an upload still
    on its way makes that a reset. Without it, this class drops the upload for a while and closes gently.
    """

    settings: ClassVar[_Settings]
    is_leaving: ClassVar[bool] = False  # of the edge, so on the class that `protocol_class` made

    _phase = _Phase.IDLE
    _head_bytes = 0  # url and headers of the current message that were reported
    _silent_bytes = 0  # fed since the parser last reported anything
    _headers = 0
    _body_begun = False
    _unwanted_bytes = 0  # read after nobody wanted them: a body whose answer is complete, or anything once deaf
    _fault: _Fault | None = None  # what a callback stopped the parser for
    _owed: _Fault | None = None  # to be answered once the requests before it are
    _is_last = False  # an answer's head said that the connection is closed after it
    _running: RequestResponseCycle | None = None  # the request being answered; `cycle` is the one being read
    _head_timer: asyncio.TimerHandle | None = None
    _close_timer: asyncio.TimerHandle | None = None
    _cut_timer: asyncio.TimerHandle | None = None

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._arm_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._go_deaf()
        if self._close_timer is not None:
            self._close_timer.cancel()
        if self._cut_timer is not None:
            self._cut_timer.cancel()
        self._unset_keepalive_if_required()
        # uvicorn tells the newest request only; the one being answered may be an older one.
        self.pipeline.clear()
        self._end_running()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The edge stops. As uvicorn does; but a client that says nothing to the end of its TLS connection, for whom
        asyncio waits half a minute, holds it up for a linger only."""
        if not self.transport.is_closing():  # asyncio loses hold of a TLS connection that is closed twice
            super().shutdown()
        if self._cut_timer is None:
            self._cut_if_closed(was_closing=False)

    def _cut_if_closed(self, was_closing: bool) -> None:
        try:
            is_closing = self.transport.is_closing() and not self.transport.get_write_buffer_size()
        except AttributeError:
            return  # it was closed twice; it is over when asyncio says so
        if was_closing and is_closing:
            self.transport.abort()
        else:
            linger_s = self.settings.limits.linger_ms / 1_000
            self._cut_timer = self.loop.call_later(linger_s, self._cut_if_closed, is_closing)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        slice_bytes = self.settings.limits.slice_bytes
        if len(data) <= slice_bytes:
            self._feed(data)
        else:
            whole = memoryview(data)
            for start in range(0, len(data), slice_bytes):
                self._feed(whole[start : start + slice_bytes])
        # In BODY the application's own limits are at work, and while a request is being answered its wall time is.
        if self._phase is _Phase.HEAD or (self._phase is _Phase.IDLE and not self._answering()):
            self._arm_head_timer()

    def _feed(self, data: bytes | memoryview) -> None:
        if self._phase is _Phase.DEAF:
            self._drop(len(data))
            return
        self._silent_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # What follows is in another protocol, which nobody agreed to. The answer to the request ends it all.
            self._go_deaf()
        except httptools.HttpParserError:
            self._end(self._fault or _MALFORMED)
        else:
            if self._head_bytes + self._silent_bytes > self.settings.limits.head_bytes_max:
                self._end(_HEAD_TOO_LONG)

    # What the parser reports. An exception here stops it, and arrives in _feed as an HttpParserError.
    def on_message_begin(self) -> None:
        self._phase = _Phase.HEAD
        self._head_bytes = self._silent_bytes = self._headers = self._unwanted_bytes = 0
        self._body_begun = False
        self._cancel_head_timer()  # armed anew, from the head's first byte, if these bytes do not complete it
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._silent_bytes = 0
        self._head_bytes += len(url)
        if self._head_bytes > self.settings.limits.url_bytes_max:
            self._stop(_URL_TOO_LONG)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        limits = self.settings.limits
        self._silent_bytes = 0
        self._head_bytes += len(name) + len(value) + 4  # colon, space and line end
        self._headers += 1
        if self._head_bytes > limits.head_bytes_max:
            self._stop(_HEAD_TOO_LONG)
        if self._headers > limits.headers_max:
            self._stop(_TOO_MANY_HEADERS)
        # A trailer is dropped: added to the headers now, it would change a request that was already routed.
        if self._phase is _Phase.HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._silent_bytes = 0
        self._cancel_head_timer()
        fault = self._head_fault()
        if fault is not None:
            self._stop(fault)
        super().on_headers_complete()
        self._phase = _Phase.BODY  # not before: what raises above is a fault of the head
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False
        if self.is_leaving:
            self.make_last()

    def on_chunk_header(self) -> None:
        self._silent_bytes = 0

    def on_chunk_complete(self) -> None:
        self._silent_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        self._body_begun = True
        if self.cycle.response_complete:
            self._drop(len(body))
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._silent_bytes = 0
        self._phase = _Phase.IDLE
        if self._close_timer is not None:  # the end of a body that nobody wanted: the connection can be kept
            self._close_timer.cancel()
            self._close_timer = None
            self.flow.resume_reading()
        super().on_message_complete()

    def make_last(self) -> None:
        """The edge goes. If a request is here whose answer has not begun, that answer is the connection's last, and
        says so; else the next one is. Called when `is_leaving` is set, and with each request from then on."""
        if self._answering() and not self.cycle.response_started:
            self.cycle.send = partial(self._send_last, self.cycle)  # type: ignore[method-assign]

    async def _send_last(self, cycle: RequestResponseCycle, message: ASGISendEvent) -> None:
        """What an application sends for the last answer. Its head says that the connection is closed; uvicorn would
        do that as soon as it is complete, and reset it under a body that is still on its way."""
        if cycle.response_started:
            await RequestResponseCycle.send(cycle, message)
            return
        self._is_last = True
        kept, cycle.keep_alive = cycle.keep_alive, False
        try:
            await RequestResponseCycle.send(cycle, message)
        finally:
            cycle.keep_alive = kept

    def _head_fault(self) -> _Fault | None:
        """What is wrong with the complete head. llhttp refuses some of it earlier; smuggling needs no second reader."""
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            return _BAD_VERSION
        hosts, codings, lengths = [], [], 0
        for name, value in self.headers:
            if name == b"host":
                hosts.append(value)
            elif name == b"transfer-encoding":
                codings.append(value.lower())
            elif name == b"content-length":
                lengths += 1
        if len(hosts) > 1 or (not hosts and version == "1.1"):
            return _BAD_HOST
        if lengths + len(codings) > 1 or (codings and version == "1.0"):
            return _BAD_LENGTH
        if codings and codings[0] != b"chunked":
            return _BAD_CODING
        if (lengths or codings) and self.parser.should_upgrade():
            return _BAD_UPGRADE  # the parser takes the body for the other protocol; the worker would see none
        method = self.parser.get_method()
        if method == b"CONNECT":
            return _BAD_METHOD
        if not self.url.startswith(b"/") and not (self.url == b"*" and method == b"OPTIONS"):
            target = httptools.parse_url(self.url)
            if not target.host or not hosts or target.userinfo or not _same_host(target.host, hosts[0]):
                return _BAD_TARGET
        if len(self.pipeline) >= self.settings.limits.pipelined_max:
            return _TOO_MANY_PIPELINED
        return None

    def _stop(self, fault: _Fault) -> NoReturn:
        self._fault = fault
        raise _Stopped

    # Answers, and the end

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing() or self._answering():
            return
        if self._owed is not None:
            self._answer(self._owed)
        elif self._is_last:
            if self._phase is _Phase.BODY:
                self._linger()
            else:
                self.transport.close()
        elif self._phase is _Phase.BODY:
            if self.expect_100_continue and not self._body_begun:
                # Nobody asked the client to go on: what it sends next is the body or a new request, who knows.
                self._linger()
            else:
                self._arm_close_timer()

    def send_400_response(self, msg: str) -> None:
        self._end(_Fault(HTTPStatus.BAD_REQUEST, msg))

    def _answering(self) -> bool:
        """Some request's answer is not complete. Answers are in order, so the newest request knows."""
        return self.cycle is not None and not self.cycle.response_complete

    def _end(self, fault: _Fault) -> None:
        """Ends the connection for `fault`: nothing is parsed any more, and what is owed is answered."""
        broken = self.cycle if self._phase is _Phase.BODY else None
        self._go_deaf()
        if self.transport.is_closing():
            return
        # 1. A body that nobody waits for.
        if broken is not None and broken.response_complete:
            self._linger()
            return
        # 2. The body of the request that is being answered.
        if broken is not None and broken is self._running:
            self._end_running()
            if broken.response_started:
                self.transport.abort()
            else:
                self._answer(fault)
            return
        # 3. The body of a request that waits in line, as the last: it never was.
        if broken is not None:
            self.pipeline.popleft()
            self.cycle = self.pipeline[0][0] if self.pipeline else self._running  # type: ignore[assignment]
        # 4. A head, behind others or alone.
        if self._answering():
            self._owed = fault
        else:
            self._answer(fault)

    def _answer(self, fault: _Fault) -> None:
        body = f"{fault.status.value} {fault.text}\n".encode()
        head = [f"HTTP/1.1 {fault.status.value} {fault.status.phrase}\r\n".encode()]
        head += [name + b": " + value + b"\r\n" for name, value in self.server_state.default_headers]
        head.append(
            b"content-type: text/plain; charset=utf-8\r\n"
            b"content-length: %d\r\n"
            b"connection: close\r\n"
            b"everwarm-request-id: %s\r\n\r\n" % (len(body), self.settings.entropy(16).hex().encode())
        )
        self.transport.write(b"".join([*head, body]))
        self._linger()

    def _linger(self) -> None:
        """Says that no more will come, and drops input until the client is done too, or the time is up."""
        self._go_deaf()
        self._unset_keepalive_if_required()
        self._unwanted_bytes = 0
        self.flow.resume_reading()
        if self.transport.can_write_eof():  # not under TLS
            self.transport.write_eof()
        self._arm_close_timer()

    def _drop(self, count: int) -> None:
        self._unwanted_bytes += count
        if self._unwanted_bytes > self.settings.limits.drain_bytes_max and self._close_timer is not None:
            # The client can still read its answer, and the timer closes.
            self.flow.pause_reading()

    def _go_deaf(self) -> None:
        self._phase = _Phase.DEAF
        self._cancel_head_timer()

    def _end_running(self) -> None:
        """The application hears that its client is gone, and what it still sends is dropped."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    # Timers

    def _arm_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.settings.limits.head_ms_max / 1_000, self._head_timed_out)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_timed_out(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self._phase is _Phase.HEAD:
            self._end(_HEAD_TOO_SLOW)
        elif self._phase is _Phase.IDLE and not self._answering():
            self.transport.close()  # not a byte of a request came: nobody to answer

    def _arm_close_timer(self) -> None:
        if self._close_timer is None:
            self._close_timer = self.loop.call_later(self.settings.limits.linger_ms / 1_000, self.transport.close)


def _same_host(in_target: bytes, in_header: bytes) -> bool:
    """An absolute URL's host (httptools takes an IPv6 literal's brackets off) against the Host header's."""
    target = in_target.decode("latin-1")
    host = normal_host(f"[{target}]" if ":" in target else target)
    return host is not None and host == normal_host(in_header.decode("latin-1"))
