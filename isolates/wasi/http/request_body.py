"""The body of a request that the guest makes.

It may be written before ``handle`` and after it. Until the exchange has a connection that takes bytes, they are held,
up to a bound before ``handle`` and not at all after it: from then on there is room only while the origin takes them
(``Outgoing.writable``), and whoever waits for room waits for the connection's file descriptor.
"""

from typing import TYPE_CHECKING

from isolates.conversation import FieldItems
from isolates.egress import ErrorCode, Outgoing
from isolates.guest import Guest
from isolates.wasi.http.outgoing_body import OutgoingBody
from isolates.wasi.io import WRITE_BYTES_MAX, StreamFailed, Wait, wait_for

if TYPE_CHECKING:
    from isolates.wasi.http.exchange import Exchange

#: What a reader of a body that was dropped without its end would see.
_ABANDONED: ErrorCode = ("HTTP-protocol-error", None)
#: What a guest finds that kept it beyond its request.
_REQUEST_OVER: ErrorCode = ("connection-terminated", None)


class RequestBody(OutgoingBody):
    """The ``outgoing-body`` of an ``outgoing-request``."""

    __slots__ = ("_end_sent", "_guest", "exchange", "failure")
    whose = "request"
    wrong_size = "HTTP-request-body-size"

    def __init__(self, guest: Guest, expected: int | None) -> None:
        super().__init__(expected)
        self._guest = guest
        self._end_sent = False
        #: None before ``handle``.
        self.exchange: Exchange | None = None
        #: Why it can not be sent, for ``handle`` and for the stream. None also when it is closed for no reason.
        self.failure: ErrorCode | None = None

    def stream(self) -> "RequestStream":
        return RequestStream(self)

    # ----------------------------------------------------------------------------------------- what the guest does

    def room(self, guest: Guest) -> int | None:
        """As ``OutputStream.room``."""
        self.push()
        if not self.open:
            self.fail_if_failed()
            return None
        return WRITE_BYTES_MAX if self.exchange is None or self.takes() else 0

    def put(self, guest: Guest, data: bytes) -> bool:
        if self.exchange is None:
            self.hold(guest, data)
            return True
        if not self.takes():
            wait_for(guest, [RoomToWrite(self)])
        outgoing = self.exchange.outgoing
        if not self.open or outgoing is None or not outgoing.send(data):
            self.nobody_takes()
            self.fail_if_failed()
            return False
        return True

    def finish(self, guest: Guest, trailers: FieldItems = ()) -> ErrorCode | None:
        """As ``OutgoingBody.finish``. Trailers are dropped, as HTTP allows: an exchange has no way to send them.

        That nobody takes the body any more, because the origin has answered without it, is no fault of the guest.
        """
        if not self.open and (self.failure is not None or self.expected in (None, self.written)):
            return self.failure
        return super().finish(guest, trailers)

    def completed(self, guest: Guest) -> None:
        self.push()

    def broken(self, guest: Guest) -> None:
        self._fail((self.wrong_size, self.written))

    def on_drop(self) -> None:
        if self.finished or not self.open:
            return
        # The origin may have answered without waiting for all of it. Then that answer is still good.
        if self.exchange is None or self.exchange.look() is None:
            self._fail(_ABANDONED)
        self.over(None)

    def _fail(self, code: ErrorCode) -> None:
        if self.exchange is None:
            self.over(code)
        else:
            self.exchange.close(code)

    # ------------------------------------------------------------------------------------- what the exchange does

    def takes(self) -> bool:
        """Whether the connection takes 64 KiB now, with nothing waiting before them."""
        outgoing = None if self.exchange is None else self.exchange.outgoing
        return outgoing is not None and not self.held and outgoing.writable()

    def push(self) -> None:
        """Send what is held as far as the connection takes it, and the end after it. Never waits."""
        outgoing: Outgoing | None = None if self.exchange is None else self.exchange.outgoing
        if outgoing is None:
            return
        while self.held and outgoing.writable():
            if not outgoing.send(self.take_piece(self._guest)):
                self.nobody_takes()
                return
        if self.finished and not self.held and not self._end_sent:
            self._end_sent = True
            outgoing.finish()

    def nobody_takes(self) -> None:
        """The connection takes no more: the origin has answered without it, or the exchange has failed."""
        self.open = False
        self._end_sent = True
        self._drop_held()
        if self.exchange is not None:
            self.exchange.look()

    def over(self, code: ErrorCode | None) -> None:
        """The exchange is over, or will never be: None when that is no fault."""
        self.open = False
        self._drop_held()
        self.failure = self.failure or code

    def request_over(self) -> None:
        self.open = False
        self.held.clear()
        self.failure = self.failure or _REQUEST_OVER

    def _drop_held(self) -> None:
        self._guest.held_bytes -= len(self.held)
        self.held.clear()

    def fail_if_failed(self) -> None:
        """Raises ``StreamFailed`` with the reason when there is one."""
        if self.failure is not None:
            raise StreamFailed(f"the request failed: {self.failure[0]}", self.failure)


class RequestStream:
    """The output stream of a request's body. A thing of its own: dropping it is not dropping the body."""

    __slots__ = ("_body",)

    def __init__(self, body: RequestBody) -> None:
        self._body = body

    def room(self, guest: Guest) -> int | None:
        return self._body.room(guest)

    def write(self, guest: Guest, data: bytes) -> bool:
        if not self._body.open:
            self._body.fail_if_failed()
        return self._body.write(guest, data)

    def flush(self, guest: Guest) -> bool:
        if not self._body.open:
            self._body.fail_if_failed()
        return self._body.open

    def pollable(self) -> "RoomToWrite":
        return RoomToWrite(self._body)


class RoomToWrite:
    """The pollable of a request's stream: ready when there is room, or will never be."""

    __slots__ = ("_body",)

    def __init__(self, body: RequestBody) -> None:
        self._body = body

    def ready(self, guest: Guest) -> bool:
        body = self._body
        if body.exchange is None or not body.open:
            return True
        body.push()
        body.exchange.look()
        return not body.open or body.takes()

    def wait_on(self, guest: Guest, wait: Wait) -> None:
        exchange = self._body.exchange
        if exchange is not None:
            exchange.wait_to_write(wait)
