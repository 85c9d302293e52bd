"""What comes back: ``outgoing-handler.handle``, ``future-incoming-response``, ``incoming-response`` and its body.

Each of these things holds the exchange until it hands it to the next one; the one that the guest drops while it holds
it ends the exchange.
"""

from typing import Any

from isolates.component_value import Err, Ok
from isolates.conversation import BodyLost, FieldItems, ResponseHead
from isolates.egress import AnswerLost, ErrorCode, OutgoingTimeouts
from isolates.guest import Guest
from isolates.wasi.http.exchange import Exchange, begin
from isolates.wasi.http.fields import Fields
from isolates.wasi.http.request import OutgoingRequest, RequestOptions
from isolates.wasi.io import StreamFailed, Wait
from isolates.wit import Interface

_FAILED: Err[None] = Err(None)


class FutureResponse:
    """A ``future-incoming-response``."""

    __slots__ = ("exchange", "taken")

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.taken = False

    def take(self) -> Ok[Any] | Err[None] | None:
        """The response, why there is none, or None when neither is known; an error when it was taken before."""
        if self.taken:
            return _FAILED
        known = self.exchange.look()
        if known is None:
            return None
        self.taken = True
        return Ok(Ok(IncomingResponse(known, self.exchange)) if isinstance(known, ResponseHead) else Err(known))

    def on_drop(self) -> None:
        if not self.taken:
            self.exchange.close()


class Answered:
    """The pollable of a future: ready when the answer, or that there is none, is known."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def ready(self, guest: Guest) -> bool:
        return self._exchange.look() is not None

    def wait_on(self, guest: Guest, wait: Wait) -> None:
        self._exchange.wait_for_answer(wait)


class IncomingResponse:
    """An answer's head, and its body as long as that was not taken."""

    __slots__ = ("_exchange", "consumed", "head")

    def __init__(self, head: ResponseHead, exchange: Exchange) -> None:
        self.head = head
        self._exchange = exchange
        self.consumed = False

    def consume(self) -> "AnswerBody | None":
        """The body, once, and while the request lasts for which it was asked."""
        if self.consumed or self._exchange.over:
            return None
        self.consumed = True
        return AnswerBody(self._exchange)

    def on_drop(self) -> None:
        if not self.consumed:
            self._exchange.close()


class AnswerBody:
    """The ``incoming-body`` of an answer."""

    __slots__ = ("_exchange", "_taken")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._taken = False

    def take_stream(self) -> "AnswerStream | None":
        if self._taken:
            return None
        self._taken = True
        return AnswerStream(self._exchange)

    def finish(self, guest: Guest) -> FieldItems | None:
        # An exchange has no trailers: HTTP/1.1 origins hardly send any, and few clients ask.
        self._exchange.close()
        return None

    def on_drop(self) -> None:
        self._exchange.close()


class AnswerStream:
    """The input stream of an answer's body, and its pollable."""

    __slots__ = ("_ended", "_exchange")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._ended = False

    def read(self, guest: Guest, bytes_max: int) -> bytes | None:
        if self._ended:
            return None
        outgoing = self._exchange.outgoing
        if outgoing is None:
            raise _broken_off(self._exchange.ended_by)
        if not bytes_max:
            return b""
        try:
            data = outgoing.read_body(bytes_max)
        except BodyLost as lost:
            code = lost.code if isinstance(lost, AnswerLost) else ("HTTP-response-incomplete", None)
            self._exchange.close(code)
            raise _broken_off(code) from lost
        if data is None:
            # Its place is free for the next one, however long the guest keeps the body.
            self._ended = True
            self._exchange.close()
        return data

    def pollable(self) -> "AnswerStream":
        return self

    def ready(self, guest: Guest) -> bool:
        outgoing = self._exchange.outgoing
        return outgoing is None or outgoing.body_ready()

    def wait_on(self, guest: Guest, wait: Wait) -> None:
        self._exchange.wait_to_read(wait)


def _broken_off(code: ErrorCode) -> StreamFailed:
    return StreamFailed(f"the response body broke off: {code[0]}", code)


def define(types: Interface) -> None:
    """``future-incoming-response``, ``incoming-response``."""

    @types.func(
        "[method]future-incoming-response.subscribe: func(self: borrow<future-incoming-response>) -> own<pollable>"
    )
    def subscribe(guest: Guest, self: FutureResponse) -> Answered:
        return Answered(self.exchange)

    @types.func(
        "[method]future-incoming-response.get: func(self: borrow<future-incoming-response>)"
        " -> option<result<result<own<incoming-response>, error-code>>>"
    )
    def get(guest: Guest, self: FutureResponse) -> Any:
        guest.io_happened()
        return self.take()

    @types.func("[method]incoming-response.status: func(self: borrow<incoming-response>) -> status-code")
    def status(guest: Guest, self: IncomingResponse) -> int:
        return self.head.status

    @types.func("[method]incoming-response.headers: func(self: borrow<incoming-response>) -> own<headers>")
    def headers(guest: Guest, self: IncomingResponse) -> Fields:
        return Fields(list(self.head.headers), mutable=False)

    @types.func(
        "[method]incoming-response.consume: func(self: borrow<incoming-response>) -> result<own<incoming-body>>"
    )
    def consume(guest: Guest, self: IncomingResponse) -> Any:
        body = self.consume()
        return _FAILED if body is None else Ok(body)


def define_handler(handler: Interface) -> None:
    """``outgoing-handler``."""

    @handler.func(
        "handle: func(request: own<outgoing-request>, options: option<own<request-options>>)"
        " -> result<own<future-incoming-response>, error-code>"
    )
    def handle(guest: Guest, request: OutgoingRequest, options: RequestOptions | None) -> Any:
        guest.io_happened()
        sent = _send(guest, request, OutgoingTimeouts() if options is None else options.timeouts())
        if isinstance(sent, Exchange):
            return Ok(FutureResponse(sent))
        if request.body is not None:
            request.body.over(sent)
        return Err(sent)


def _send(guest: Guest, request: OutgoingRequest, timeouts: OutgoingTimeouts) -> Exchange | ErrorCode:
    head = request.head()
    if isinstance(head, tuple):
        return head
    try:
        body = request.whole_body(guest)
    except ValueError:
        guest.log("stderr", "the request's content-length is not a number of bytes")
        return "HTTP-request-body-size", None
    if body.failure is not None:
        return body.failure
    return begin(guest, head, timeouts, body)
