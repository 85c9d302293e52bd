"""The host's end of a link: a ``Conversation`` on a blocking socket, used by the connection's own thread.

Once the response is whole its reader may leave: what the guest does after that (``waitUntil``, an engine's own tidying)
is nobody's to cancel, and its isolate is worth keeping.

Output is held back and leaves in one system call when the guest waits, when 64 KiB are held, when it ends, or at the
next epoch tick, a millisecond later at most: a hello is one write, and a stream is never late by more than a tick.
"""

import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from actors.connection import HEADER, Frame, FrameReader, LinkBroken, frame
from actors.exchange import WINDOW_BYTES_MAX, Request, Served
from actors.wire import SERVED
from isolates.conversation import BodyLost, ConversationLost, FieldItems, RequestHead, ResponseHead

#: A reader that takes nothing for this long is gone, whatever its connection says.
_STALLED_S = 30.0
_HELD_BYTES_MAX = 64 * 1024


class LinkSocket:
    """A connected Unix socket that speaks frames, for one thread."""

    def __init__(self, connected: socket.socket) -> None:
        # Blocking, so that waiting for the next request is one call; what must not block says so each time.
        self.socket = connected
        connected.setblocking(True)
        self._reader = FrameReader()
        self._frames: list[tuple[Frame, bytes]] = []
        self._input = select.poll()
        self._input.register(connected, select.POLLIN | select.POLLRDHUP)
        self._gone = select.poll()
        self._gone.register(connected, select.POLLRDHUP)
        self._output = select.poll()
        self._output.register(connected, select.POLLOUT | select.POLLRDHUP)

    def receive(self, timeout_s: float | None) -> tuple[Frame, bytes] | None:
        """The next frame, or None when the time is over. ``LinkBroken`` when none will come."""
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._frames:
            if until_s is not None and not self._input.poll(max(0.0, (until_s - time.monotonic()) * 1e3)):
                return None
            try:
                data = self.socket.recv(WINDOW_BYTES_MAX + HEADER.size)
            except OSError as broken:
                raise LinkBroken(str(broken)) from broken
            if not data:
                raise LinkBroken("the other end went away")
            self._frames = self._reader.feed(data)
        return self._frames.pop(0)

    def send(self, data: bytes) -> None:
        """Send all of ``data``. ``LinkBroken`` when the other end is gone, or takes nothing for 30 s."""
        view = memoryview(data)
        while view:
            try:
                view = view[self.socket.send(view, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                events = self._output.poll(_STALLED_S * 1e3)
                if not events or events[0][1] & (select.POLLHUP | select.POLLRDHUP | select.POLLERR):
                    raise LinkBroken("the other end does not read") from None
            except OSError as broken:
                raise LinkBroken(str(broken)) from broken

    def wait_gone(self, timeout_s: float) -> bool:
        """Wait up to ``timeout_s`` for the other end to go away; True when it did."""
        return bool(self._gone.poll(timeout_s * 1e3))

    def wait_any(self, timeout_s: float, events: int, readable: Sequence[int], writable: Sequence[int]) -> bool:
        """Wait up to ``timeout_s`` for one of the poll ``events`` here (0: for none), or for a file descriptor of
        others to be readable or writable. True when it happened here."""
        wanted: dict[int, int] = {}
        for descriptors, event in ((readable, select.POLLIN), (writable, select.POLLOUT)):
            for descriptor in descriptors:
                wanted[descriptor] = wanted.get(descriptor, 0) | event
        if events:
            wanted[self.socket.fileno()] = events
        poll = select.poll()
        for descriptor, event in wanted.items():
            poll.register(descriptor, event)
        happened = [descriptor for descriptor, _ in poll.poll(timeout_s * 1e3)]
        return bool(events) and self.socket.fileno() in happened

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


class HostConversation:
    """One request on a link, as its isolate sees it."""

    def __init__(self, link: LinkSocket, request: Request, serve: Callable[[ResponseHead], Served]) -> None:
        self._link = link
        self._request = request
        self._serve = serve
        self._unread = bytearray(request.body_first)
        self._complete = request.body_complete
        self._lost = False
        self._pulling = False
        self._held: list[bytes] = []
        self._held_bytes = 0
        #: Of the answer; None while it has no head.
        self.status: int | None = None
        self.body_read_bytes = 0
        self.body_sent_bytes = 0
        self._whole = False

    @property
    def head(self) -> RequestHead:
        return self._request.head

    # ------------------------------------------------------------------------------------------------ request body

    def body_ready(self) -> bool:
        if not (self._unread or self._complete or self._lost):
            self._pull()
            self._receive()
        return bool(self._unread or self._complete or self._lost)

    def read_body(self, bytes_max: int) -> bytes | None:
        if not self._unread and not self.body_ready():
            return b""
        if self._unread:
            data = bytes(self._unread[:bytes_max])
            del self._unread[:bytes_max]
            self.body_read_bytes += len(data)
            return data
        if self._lost:
            raise BodyLost
        return None

    def _pull(self) -> None:
        if not self._pulling:
            self._pulling = True
            self._held.append(frame(Frame.PULL, WINDOW_BYTES_MAX.to_bytes(4)))
            self.flush()

    def trailers(self) -> FieldItems | None:
        # The edge speaks HTTP/1.1 through a server that reads the trailers of a request and does not hand them on.
        return None

    def _receive(self) -> None:
        """Take what has come of the piece that was pulled. Does not wait."""
        try:
            received = self._link.receive(0.0)
        except LinkBroken as broken:
            raise ConversationLost from broken
        if received is None:
            return
        kind, payload = received
        self._pulling = False
        if kind is Frame.BODY:
            self._unread += payload
        elif kind is Frame.BODY_END:
            self._complete = True
        else:
            self._lost = True

    def wait(
        self, timeout_s: float, *, for_body: bool, readable: Sequence[int] = (), writable: Sequence[int] = ()
    ) -> None:
        self.flush()
        if for_body and self.body_ready():
            return
        events = 0 if self._whole else select.POLLRDHUP
        if for_body:
            events = select.POLLIN | select.POLLRDHUP
        if self._link.wait_any(timeout_s, events, readable, writable):
            if not for_body:
                raise ConversationLost
            self._receive()

    # ---------------------------------------------------------------------------------------------------- response

    def inform(self, head: ResponseHead) -> None:
        # Dropped, as HTTP allows: the edge speaks HTTP/1.1 through a server that sends one head an answer.
        pass

    def send_head(self, head: ResponseHead) -> None:
        self.status = head.status
        self._hold(frame(Frame.HEAD, SERVED.encode(self._serve(head))))

    def send(self, data: bytes) -> None:
        if not data:
            return
        self.body_sent_bytes += len(data)
        self._hold(frame(Frame.DATA, data))
        if self._held_bytes >= _HELD_BYTES_MAX:
            self.flush()

    def finish(self, trailers: FieldItems = ()) -> None:
        # Trailers are dropped, as HTTP allows: the server at the edge has no way to send them.
        self._whole = True
        self._hold(frame(Frame.END))

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self._held_bytes += len(data)

    def flush(self) -> None:
        if self._held:
            held, self._held, self._held_bytes = self._held, [], 0
            try:
                self._link.send(b"".join(held))
            except LinkBroken as broken:
                if not self._whole:
                    raise ConversationLost from broken

    def pass_on(self) -> None:
        """The guest is over; what it wrote last goes to its reader now, if there still is one."""
        with suppress(ConversationLost):
            self.flush()

    def take_held(self) -> bytes:
        """What is still held back, for the host to send together with its last word."""
        held, self._held, self._held_bytes = b"".join(self._held), [], 0
        return held

    def listening(self) -> bool:
        return self._whole or not self._link.wait_gone(0)
