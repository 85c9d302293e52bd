"""The host's end of the way out: an ``Egress`` whose exchanges are Unix sockets to the machine's ``EgressServer``.

Used by the thread of a guest, which may wait. One connection carries one exchange, so that closing it is all there is
to giving up, and nothing of one guest's answer can be left over for another.

Of an answer only what the guest asked for is taken from the socket: a frame's five bytes of header, and then of its
payload as much as is wanted. So nothing waits in this process, and the socket is readable exactly when there is
something new to be had; a guest can wait for many exchanges in one call of the kernel.
"""

import select
import socket
import time
from pathlib import Path
from typing import Protocol

from actors.bindings import is_internal
from actors.connection import FRAME_BYTES_MAX, HEADER, Frame, frame
from actors.egress_frames import ANSWER_HEAD, ASKED, PIECE_BYTES_MAX, Asked, decode_failed
from actors.egress_policy import LOOPS_MAX
from actors.exchange import Capability, ReportTraces
from actors.handed_books import Handed
from actors.wire import Undecodable
from isolates.conversation import ResponseHead
from isolates.egress import AnswerLost, ErrorCode, Outgoing, OutgoingHead, OutgoingTimeouts

#: The way out gives up on an origin that takes nothing for 300 s, and closes; longer than that it is itself stuck.
_STALLED_S = 330.0
#: Connecting to a socket of this machine waits only when hundreds are before us.
_CONNECT_S = 5.0
_AWAY: ErrorCode = ("internal-error", "the way out of this machine is not there")
_GIVEN_UP: ErrorCode = ("connection-terminated", None)
_BROKEN: ErrorCode = ("internal-error", "the way out of this machine went away")


class ShorterWay(Protocol):
    """A way that does not leave the host, for some of what a request asks for."""

    def open(self, head: OutgoingHead) -> Outgoing | ErrorCode | None:
        """As ``Egress.open``; None when it is the Server's to carry out."""

    def hand_over(self) -> tuple[Handed, ...]:
        """What the Server has to know then: ``egress_frames.Asked.books``."""


class HostEgress:
    """The way out of one request. Making it is free; each ``open`` makes a connection."""

    def __init__(
        self,
        socket_path: Path | str,
        *,
        worker: str,
        version: str = "",
        request_id: str = "",
        traceparent: str = "",
        allow: tuple[str, ...] | None = None,
        loops_left: int = LOOPS_MAX,
        connections_max: int = 6,
        context: bytes = b"",
        call: Capability | None = None,
        edge: str = "",
        deadline_s: float | None = None,
        report_traces: ReportTraces | None = None,
        shorter: "ShorterWay | None" = None,
    ) -> None:
        """``allow`` and what follows it as in ``egress_frames.Asked``. ``deadline_s``: when the request has to be over,
        on the monotonic clock. ``shorter`` is asked first."""
        self._path = str(socket_path)
        self._worker = worker
        self._version = version
        self._request_id = request_id
        self._traceparent = traceparent
        self._allow = allow
        self._loops_left = loops_left
        self._connections_max = connections_max
        self._context = context
        self._call = call
        self._edge = edge
        self._deadline_s = deadline_s
        self._report_traces = report_traces
        self._shorter = shorter
        #: Whether anything was asked of the way out; and whether any of that may have been for another worker.
        self.used = False
        self.called = False

    def open(self, head: OutgoingHead, timeouts: OutgoingTimeouts) -> Outgoing | ErrorCode:
        """Begin an outgoing request, or say why it is refused. Does not wait for the origin."""
        books: tuple[Handed, ...] = ()
        if self._shorter is not None:
            opened = self._shorter.open(head)
            if opened is not None:
                return opened
            books = self._shorter.hand_over()
        asked = ASKED.encode(
            Asked(
                head,
                worker=self._worker,
                version=self._version,
                request_id=self._request_id,
                traceparent=self._traceparent,
                timeouts=timeouts,
                allow=self._allow,
                loops_left=self._loops_left,
                connections_max=self._connections_max,
                context=self._context,
                call=self._call,
                edge=self._edge,
                left_ms=self._left_ms(),
                report_traces=self._report_traces,
                books=books,
            )
        )
        if len(asked) > FRAME_BYTES_MAX:
            return ("HTTP-request-header-section-size", len(asked))
        self.used = True
        self.called = self.called or bool(self._context) or is_internal(head.authority)
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connected.settimeout(_CONNECT_S)
        try:
            connected.connect(self._path)
        except TimeoutError:
            connected.close()
            return ("connection-limit-reached", None)
        except OSError:
            connected.close()
            return _AWAY
        exchange = HostOutgoing(connected)
        # If it is not taken, the way out has said why, or has gone: ``head`` tells.
        exchange.transmit(frame(Frame.OUTGOING, asked))
        return exchange

    def _left_ms(self) -> int | None:
        if self._deadline_s is None:
            return None
        return max(0, int((self._deadline_s - time.monotonic()) * 1e3))


class HostOutgoing:
    """One outgoing request and its answer, on its own connection."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        connected.setblocking(False)
        self._output = select.poll()
        self._output.register(connected, select.POLLOUT)
        self._input = select.poll()
        self._input.register(connected, select.POLLIN)
        self._header = bytearray()
        self._payload = bytearray()  # of a HEAD or FAILED that is not whole yet
        self._kind: Frame | None = None  # of the frame whose payload is being read
        self._left_bytes = 0  # of that payload
        self._head: ResponseHead | ErrorCode | None = None
        self._whole = False
        self._lost: ErrorCode | None = None  # why no more of the answer comes
        self._taken = True  # somebody takes what is sent
        self._closed = False

    def fileno(self) -> int:
        return self._socket.fileno()

    # ------------------------------------------------------------------------------------------------ request body

    def wait_for_room(self, readable: set[int], writable: set[int]) -> None:
        writable.add(self._socket.fileno())

    def writable(self) -> bool:
        # The kernel says so when three quarters of the socket's buffer are free, and more than 64 KiB are in them.
        return not self._taken or self._over() or bool(self._output.poll(0))

    def send(self, data: bytes) -> bool:
        for start in range(0, len(data), PIECE_BYTES_MAX):
            if not self.transmit(frame(Frame.BODY, data[start : start + PIECE_BYTES_MAX])):
                return False
        return self._taken

    def finish(self) -> None:
        self.transmit(frame(Frame.BODY_END))

    def transmit(self, data: bytes) -> bool:
        """Send bytes as they are. False when nobody takes them any more."""
        view = memoryview(data)
        while view and self._taken:
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                self._taken = bool(self._output.poll(_STALLED_S * 1e3))
            except OSError:
                self._taken = False
        return self._taken

    # ------------------------------------------------------------------------------------------------------ answer

    def head(self) -> ResponseHead | ErrorCode | None:
        while self._head is None and self._advance():
            pass
        return self._head

    def body_ready(self) -> bool:
        if self.head() is None:
            return False
        while not self._over():
            if self._kind is Frame.DATA and self._left_bytes:
                return bool(self._input.poll(0))
            if not self._advance():
                return self._over()
        return True

    def read_body(self, bytes_max: int) -> bytes | None:
        if not self.body_ready():
            return b""
        if self._kind is Frame.DATA and not self._over():
            data = self._take(min(bytes_max, self._left_bytes))
            if data:
                self._left_bytes -= len(data)
                if not self._left_bytes:
                    self._kind = None
                return data
            if self._lost is None:
                return b""
        if self._lost is not None:
            raise AnswerLost(self._lost)
        return None

    def _over(self) -> bool:
        return self._whole or self._lost is not None

    def _advance(self) -> bool:
        """Take in what is not body: a header, or the payload of a HEAD or a FAILED. False when more has to come."""
        if self._over():
            return False
        if self._kind is None:
            self._header += self._take(HEADER.size - len(self._header))
            if len(self._header) < HEADER.size:
                return False
            length, kind = HEADER.unpack(self._header)
            self._header.clear()
            expected = (Frame.DATA, Frame.END) if isinstance(self._head, ResponseHead) else (Frame.HEAD,)
            if length > FRAME_BYTES_MAX or kind not in (*expected, Frame.FAILED):
                self._fail(_BROKEN)
                return False
            self._kind, self._left_bytes = Frame(kind), length
            if self._kind is Frame.END:
                self._whole, self._taken = True, False
            return True
        if self._kind is Frame.DATA:
            self._kind = self._kind if self._left_bytes else None
            return self._kind is None
        self._payload += self._take(self._left_bytes - len(self._payload))
        if len(self._payload) < self._left_bytes:
            return False
        kind, payload = self._kind, bytes(self._payload)
        self._kind = None
        self._payload.clear()
        try:
            if kind is Frame.FAILED:
                self._fail(decode_failed(payload))
            else:
                self._head = ANSWER_HEAD.decode(payload)
        except Undecodable:
            self._fail(_BROKEN)
        return True

    def _take(self, bytes_max: int) -> bytes:
        """Up to ``bytes_max`` bytes that have come, or nothing: then there are none yet, or the answer is lost."""
        try:
            data = self._socket.recv(bytes_max) if bytes_max else b""
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data and bytes_max:
            self._fail(_BROKEN)
        return data

    def _fail(self, code: ErrorCode) -> None:
        self._lost, self._taken = self._lost or code, False
        if self._head is None:
            self._head = code

    # --------------------------------------------------------------------------------------------------------- end

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if not self._over():
                self._fail(_GIVEN_UP)
            self._socket.close()
