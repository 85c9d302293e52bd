"""Frames, and one end of a connection that carries them: what ``link`` and ``call_line`` speak.

A frame is four bytes length, one byte kind, payload. Reading is strict: a frame that is too large or of no known kind
ends the connection.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import cast

HEADER = struct.Struct("!IB")
#: The largest frame: an ENDED with the spans of one stage, whose logs are capped at 256 KiB.
FRAME_BYTES_MAX = 1 << 20
#: Received and not yet read, per connection: beyond it the socket is left alone, and so backpressure reaches the host.
RECEIVED_BYTES_MAX = 256 * 1024


class Frame(IntEnum):
    """The kinds of frame."""

    REQUEST = 1
    BODY = 2
    BODY_END = 3
    BODY_LOST = 4
    PREWARM = 5
    NOTICE = 6
    SPANS = 7
    SUBSCRIBE = 8
    HEAT = 9
    PULL = 10
    HEAD = 11
    DATA = 12
    END = 13
    ENDED = 14
    STARTED = 15
    PRELOAD = 16
    STAGE = 17
    LATE_SPANS = 18
    VARIABLES = 19
    STORE = 22
    OUTGOING = 20
    FAILED = 21
    CHALLENGE = 30
    PROOF = 31
    CALL = 32
    RETURNED = 33
    RAISED = 34
    ASK = 35
    HERE = 36
    LIVE = 40
    MEMORY = 41


#: Looked up, for each frame: making an enumeration's member from its value takes a microsecond.
_KINDS = {kind.value: kind for kind in Frame}


class LinkBroken(Exception):
    """The other end of a link went away, or spoke nonsense."""


class NobodyListens(LinkBroken):
    """Nobody is at the other end of a socket: its process has ended, or never was."""


def frame(kind: Frame, payload: bytes = b"") -> bytes:
    """One frame as bytes."""
    return HEADER.pack(len(payload), kind) + payload


class FrameReader:
    """Bytes in, frames out. ``LinkBroken`` for a frame that is too large or of no known kind."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[Frame, bytes]]:
        """The frames that are complete with ``data``."""
        self._buffer += data
        frames: list[tuple[Frame, bytes]] = []
        start, end = 0, len(self._buffer)
        while end - start >= HEADER.size:
            length, kind = HEADER.unpack_from(self._buffer, start)
            if length > FRAME_BYTES_MAX:
                raise LinkBroken(f"a frame of {length} bytes")
            if end - start - HEADER.size < length:
                break
            start += HEADER.size
            try:
                frames.append((_KINDS[kind], bytes(self._buffer[start : start + length])))
            except KeyError as unknown:
                raise LinkBroken(f"a frame of kind {kind}") from unknown
            start += length
        if start:
            del self._buffer[:start]
        return frames


class Connection(asyncio.Protocol):
    """One end of a link on an event loop: frames in a bounded queue, frames out with backpressure."""

    def __init__(self, on_made: "Callable[[Connection], None] | None" = None) -> None:
        self._on_made = on_made
        self._reader = FrameReader()
        self._frames: deque[tuple[Frame, bytes]] = deque()
        self._queued_bytes = 0
        self._waiting: asyncio.Future[None] | None = None
        self._can_write = asyncio.Event()
        self._can_write.set()
        self._paused = False
        self.closed = False
        #: The other end closed with bytes before it that it had not read. The kernel says so of a Unix socket, also of
        #: a process that was killed: whatever was sent last, it did not see the end of it.
        self.unread = False
        self.on_closed: Callable[[], None] | None = None
        self.transport: asyncio.Transport | None = None

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the interface and not the base class.
        self.transport = cast(asyncio.Transport, transport)
        if self._on_made is not None:
            self._on_made(self)

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._reader.feed(data)
        except LinkBroken:
            self.close()
            return
        for item in frames:
            self._frames.append(item)
            self._queued_bytes += len(item[1])
        if self._queued_bytes > RECEIVED_BYTES_MAX and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()
        self._wake()

    def connection_lost(self, fault: Exception | None) -> None:
        self.closed = True
        self.unread = isinstance(fault, ConnectionResetError)
        self._can_write.set()
        self._wake()
        if self.on_closed is not None:
            self.on_closed()

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    # our side

    async def receive(self) -> tuple[Frame, bytes]:
        """The next frame. ``LinkBroken`` when none will come."""
        while not self._frames:
            if self.closed:
                raise LinkBroken("the other end went away")
            if self._waiting is not None and not self._waiting.done():
                # It reads the body of a request that ended without it: what comes from now on is not for it.
                self._waiting.set_exception(LinkBroken("the request is over"))
            waiting = self._waiting = asyncio.get_running_loop().create_future()
            try:
                await waiting
            finally:
                if self._waiting is waiting:
                    self._waiting = None
        item = self._frames.popleft()
        self._queued_bytes -= len(item[1])
        if self._paused and self._queued_bytes <= RECEIVED_BYTES_MAX // 2 and self.transport is not None:
            self._paused = False
            self.transport.resume_reading()
        return item

    @property
    def has_answer(self) -> bool:
        """Whether ``receive`` would return at once, and with a piece of the answer."""
        return bool(self._frames) and self._frames[0][0] not in (Frame.PULL, Frame.STARTED)

    def send(self, kind: Frame, payload: bytes = b"") -> None:
        """Queue a frame. ``LinkBroken`` when nobody is there to get it."""
        if self.closed or self.transport is None:
            raise LinkBroken("the other end went away")
        self.transport.write(frame(kind, payload))

    async def drain(self) -> None:
        """Wait while the other end is slow."""
        await self._can_write.wait()
        if self.closed:
            raise LinkBroken("the other end went away")

    def close(self) -> None:
        """Cancel whatever runs on this connection."""
        self.closed = True
        if self.transport is not None:
            self.transport.abort()
        self._wake()
