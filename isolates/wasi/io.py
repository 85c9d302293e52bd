"""wasi:io: errors, pollables and streams.

A pollable says whether it is ready and, if not, what to wait for: a time, the request's body, a file descriptor.
Waiting for many of them is one wait on the request's conversation for all they named (``wait_for``). Streams are
objects with ``read`` or ``write``; what is behind them (a request body, a response body, a log, an outgoing request)
is their own affair.
"""

import time
from typing import Any, Protocol

from isolates.component_value import DONE, Err, GuestTrap, Ok
from isolates.guest import Guest
from isolates.wit import World

#: How much one ``read`` gives at most: the link's chunk. A byte is 32 bytes while it passes the C API, so this is
#: 2 MiB of transient memory.
READ_BYTES_MAX = 64 * 1024
#: What ``check-write`` permits at once, and therefore the most that one ``write`` may carry.
WRITE_BYTES_MAX = 64 * 1024
#: The contract of ``blocking-write-and-flush`` in WASI 0.2.
BLOCKING_WRITE_BYTES_MAX = 4096
#: Pollables in one ``poll``; the resource table's cap is the real bound, this one keeps a single call short.
POLL_MAX = 1_024
_FOREVER_S = 3_600.0
#: A wait that a file descriptor ended without making anything ready has met a piece of something. More of them than a
#: head in many pieces has mean a descriptor that promises what it does not keep: then each is followed by a pause, so
#: that it costs a thousand looks a second and not a core.
_FRUITLESS_MAX = 64
_PAUSE_S = 0.001

CLOSED = Err(("closed", None))


class IoError:
    """A ``wasi:io/error``: a message for people, and what the stream's maker can tell programs (wasi:http: a code)."""

    __slots__ = ("code", "message")

    def __init__(self, message: str, code: Any = None) -> None:
        self.message = message
        self.code = code


class StreamFailed(Exception):
    """A stream broke off before its end. Raised by streams; the guest gets it as an ``IoError``."""

    def __init__(self, message: str, code: Any = None) -> None:
        super().__init__(message)
        self.error = IoError(message, code)


class Wait:
    """What one wait is for: everything that the pollables named which it waits for."""

    __slots__ = ("for_body", "readable", "timeout_s", "writable")

    def __init__(self) -> None:
        self.timeout_s = _FOREVER_S
        self.for_body = False
        self.readable: set[int] = set()
        self.writable: set[int] = set()

    def at_most(self, timeout_s: float) -> None:
        """Look again after this time."""
        self.timeout_s = max(0.0, min(self.timeout_s, timeout_s))


class Pollable(Protocol):
    """Something to wait for."""

    def ready(self, guest: Guest) -> bool:
        """Whether it has happened. Never waits."""

    def wait_on(self, guest: Guest, wait: Wait) -> None:
        """Add to ``wait`` what may make it ready. Asked only when it is not."""


class InputStream(Protocol):
    """A ``wasi:io`` input stream."""

    def read(self, guest: Guest, bytes_max: int) -> bytes | None:
        """Up to ``bytes_max`` bytes; ``b""`` when none are here yet; None at the end. Raises ``StreamFailed``."""

    def pollable(self) -> Pollable:
        """Ready when ``read`` has something to tell."""


class OutputStream(Protocol):
    """A ``wasi:io`` output stream."""

    def room(self, guest: Guest) -> int | None:
        """How many bytes ``write`` takes without waiting; None when it takes none any more. Raises ``StreamFailed``."""

    def write(self, guest: Guest, data: bytes) -> bool:
        """Take ``data``, waiting for room if need be. False when it takes none any more. Raises ``StreamFailed``."""

    def flush(self, guest: Guest) -> bool:
        """Let what was written go. False as ``write``."""

    def pollable(self) -> Pollable:
        """Ready when there is room, or will never be."""


class Always:
    """A pollable that is always ready."""

    __slots__ = ()

    def ready(self, guest: Guest) -> bool:
        return True

    def wait_on(self, guest: Guest, wait: Wait) -> None:
        wait.at_most(0.0)


class Timer:
    """A pollable that is ready from ``at_ns`` of the monotonic clock on."""

    __slots__ = ("at_ns",)

    def __init__(self, at_ns: int) -> None:
        self.at_ns = at_ns

    def ready(self, guest: Guest) -> bool:
        return time.monotonic_ns() >= self.at_ns

    def wait_on(self, guest: Guest, wait: Wait) -> None:
        wait.at_most((self.at_ns - time.monotonic_ns()) / 1e9)


ALWAYS = Always()


class EmptyInput:
    """An input stream at its end: stdin."""

    def read(self, guest: Guest, bytes_max: int) -> bytes | None:
        return None

    def pollable(self) -> Pollable:
        return ALWAYS


def wait_for(guest: Guest, pollables: list[Pollable]) -> list[int]:
    """Block until at least one is ready; the indices of those that are.

    Bodies of outgoing requests that wait for room go on meanwhile, whatever the guest waits for.
    """
    fruitless = 0
    while True:
        for exchange in tuple(guest.exchanges):
            exchange.push()
        ready = [i for i, p in enumerate(pollables) if p.ready(guest)]
        if ready:
            return ready
        wait = Wait()
        for pollable in pollables:
            pollable.wait_on(guest, wait)
        for exchange in guest.exchanges:
            exchange.wait_to_push(wait)
        if fruitless > _FRUITLESS_MAX:
            guest.wait(min(wait.timeout_s, _PAUSE_S), for_body=wait.for_body)
        guest.wait(wait.timeout_s, for_body=wait.for_body, readable=wait.readable, writable=wait.writable)
        fruitless += bool(wait.readable or wait.writable)


def _failed(why: StreamFailed) -> Any:
    return Err(("last-operation-failed", why.error))


def read_now(guest: Guest, self: InputStream, length: int) -> Any:
    """What is there of a stream, up to ``length`` bytes, as the result of a read."""
    try:
        data = self.read(guest, min(length, READ_BYTES_MAX))
    except StreamFailed as why:
        return _failed(why)
    guest.io_happened()
    return CLOSED if data is None else Ok(data)


def read_blocking(guest: Guest, self: InputStream, length: int) -> Any:
    """The same after waiting until there is something."""
    if length:
        wait_for(guest, [self.pollable()])
    return read_now(guest, self, length)


def counted(result: Any) -> Any:
    return Ok(len(result.value)) if isinstance(result, Ok) else result


def room_now(guest: Guest, self: OutputStream) -> Any:
    """How much a stream takes now, as the result of a check."""
    try:
        room = self.room(guest)
    except StreamFailed as why:
        return _failed(why)
    return CLOSED if room is None else Ok(room)


def write_now(guest: Guest, self: OutputStream, contents: bytes, bytes_max: int) -> Any:
    """Write to a stream, as the result of a write. More than ``bytes_max`` is a trap."""
    if len(contents) > bytes_max:
        raise GuestTrap(f"a write of {len(contents)} bytes where {bytes_max} were permitted")
    try:
        return DONE if self.write(guest, contents) else CLOSED
    except StreamFailed as why:
        return _failed(why)


def flush_now(guest: Guest, self: OutputStream) -> Any:
    """Flush a stream, as the result of a flush."""
    try:
        return DONE if self.flush(guest) else CLOSED
    except StreamFailed as why:
        return _failed(why)


def flush_blocking(guest: Guest, self: OutputStream) -> Any:
    """The same after waiting until what was written is on its way."""
    pollable = self.pollable()
    if not pollable.ready(guest):
        wait_for(guest, [pollable])
    return flush_now(guest, self)


def write_and_flush(guest: Guest, self: OutputStream, contents: bytes) -> Any:
    """Write to a stream and flush it, waiting for both, as the result of both."""
    written = write_now(guest, self, contents, WRITE_BYTES_MAX)
    return flush_blocking(guest, self) if written is DONE else written


def define(world: World) -> None:
    """wasi:io/error, wasi:io/poll, wasi:io/streams."""
    _define_error(world)
    _define_poll(world)
    _define_streams(world)


def _define_error(world: World) -> None:
    error = world.interface("wasi:io/error@0.2.12")
    error.resource("error")

    @error.func("[method]error.to-debug-string: func(self: borrow<error>) -> string")
    def to_debug_string(guest: Guest, self: IoError) -> str:
        return self.message


def _define_poll(world: World) -> None:
    poll = world.interface("wasi:io/poll@0.2.12")
    poll.resource("pollable")

    @poll.func("[method]pollable.ready: func(self: borrow<pollable>) -> bool")
    def ready(guest: Guest, self: Pollable) -> bool:
        guest.io_happened()
        return self.ready(guest)

    @poll.func("[method]pollable.block: func(self: borrow<pollable>)")
    def block(guest: Guest, self: Pollable) -> None:
        wait_for(guest, [self])

    @poll.func("poll: func(in: list<borrow<pollable>>) -> list<u32>")
    def poll_many(guest: Guest, pollables: list[Pollable]) -> list[int]:
        if not pollables or len(pollables) > POLL_MAX:
            raise GuestTrap("poll needs between one and 1,024 pollables")
        found = wait_for(guest, pollables)
        guest.io_happened()
        return found


def _define_streams(world: World) -> None:
    streams = world.interface("wasi:io/streams@0.2.12")
    streams.use_resource("error", "error")
    streams.use_resource("pollable", "pollable")
    streams.variant("stream-error", {"last-operation-failed": "own<error>", "closed": None})
    streams.resource("input-stream")
    streams.resource("output-stream")

    @streams.func(
        "[method]input-stream.read: func(self: borrow<input-stream>, len: u64) -> result<list<u8>, stream-error>"
    )
    def read(guest: Guest, self: InputStream, length: int) -> Any:
        return read_now(guest, self, length)

    @streams.func(
        "[method]input-stream.blocking-read: func(self: borrow<input-stream>, len: u64)"
        " -> result<list<u8>, stream-error>"
    )
    def blocking_read(guest: Guest, self: InputStream, length: int) -> Any:
        return read_blocking(guest, self, length)

    @streams.func("[method]input-stream.skip: func(self: borrow<input-stream>, len: u64) -> result<u64, stream-error>")
    def skip(guest: Guest, self: InputStream, length: int) -> Any:
        return counted(read_now(guest, self, length))

    @streams.func(
        "[method]input-stream.blocking-skip: func(self: borrow<input-stream>, len: u64) -> result<u64, stream-error>"
    )
    def blocking_skip(guest: Guest, self: InputStream, length: int) -> Any:
        return counted(read_blocking(guest, self, length))

    @streams.func("[method]input-stream.subscribe: func(self: borrow<input-stream>) -> own<pollable>")
    def subscribe_input(guest: Guest, self: InputStream) -> Pollable:
        return self.pollable()

    # Output. Writing may wait (backpressure) inside the stream; a stream that can take no more answers CLOSED.

    @streams.func("[method]output-stream.check-write: func(self: borrow<output-stream>) -> result<u64, stream-error>")
    def check_write(guest: Guest, self: OutputStream) -> Any:
        return room_now(guest, self)

    @streams.func(
        "[method]output-stream.write: func(self: borrow<output-stream>, contents: list<u8>) -> result<_, stream-error>"
    )
    def write(guest: Guest, self: OutputStream, contents: bytes) -> Any:
        return write_now(guest, self, contents, WRITE_BYTES_MAX)

    @streams.func(
        "[method]output-stream.blocking-write-and-flush: func(self: borrow<output-stream>, contents: list<u8>)"
        " -> result<_, stream-error>"
    )
    def blocking_write_and_flush(guest: Guest, self: OutputStream, contents: bytes) -> Any:
        # Engines exceed the 4,096 of the contract (the Go adapter does); a stock host takes what fits a permit.
        return write_and_flush(guest, self, contents)

    @streams.func("[method]output-stream.flush: func(self: borrow<output-stream>) -> result<_, stream-error>")
    def flush(guest: Guest, self: OutputStream) -> Any:
        return flush_now(guest, self)

    @streams.func("[method]output-stream.blocking-flush: func(self: borrow<output-stream>) -> result<_, stream-error>")
    def blocking_flush(guest: Guest, self: OutputStream) -> Any:
        return flush_blocking(guest, self)

    @streams.func("[method]output-stream.subscribe: func(self: borrow<output-stream>) -> own<pollable>")
    def subscribe_output(guest: Guest, self: OutputStream) -> Pollable:
        return self.pollable()

    @streams.func(
        "[method]output-stream.write-zeroes: func(self: borrow<output-stream>, len: u64) -> result<_, stream-error>"
    )
    def write_zeroes(guest: Guest, self: OutputStream, length: int) -> Any:
        if length > WRITE_BYTES_MAX:
            raise GuestTrap("more zeroes than were permitted")
        return write_now(guest, self, bytes(length), WRITE_BYTES_MAX)

    @streams.func(
        "[method]output-stream.blocking-write-zeroes-and-flush: func(self: borrow<output-stream>, len: u64)"
        " -> result<_, stream-error>"
    )
    def blocking_write_zeroes_and_flush(guest: Guest, self: OutputStream, length: int) -> Any:
        if length > BLOCKING_WRITE_BYTES_MAX:
            raise GuestTrap("more than 4,096 zeroes at once")
        return write_and_flush(guest, self, bytes(length))

    def splice_from(guest: Guest, self: OutputStream, chunk: Any) -> Any:
        if not isinstance(chunk, Ok):
            return chunk
        written = write_now(guest, self, chunk.value, WRITE_BYTES_MAX)
        return Ok(len(chunk.value)) if written is DONE else written

    @streams.func(
        "[method]output-stream.splice: func(self: borrow<output-stream>, src: borrow<input-stream>, len: u64)"
        " -> result<u64, stream-error>"
    )
    def splice(guest: Guest, self: OutputStream, source: InputStream, length: int) -> Any:
        room = room_now(guest, self)
        if not isinstance(room, Ok) or room.value == 0:
            return room
        return splice_from(guest, self, read_now(guest, source, min(length, room.value)))

    @streams.func(
        "[method]output-stream.blocking-splice: func(self: borrow<output-stream>, src: borrow<input-stream>, len: u64)"
        " -> result<u64, stream-error>"
    )
    def blocking_splice(guest: Guest, self: OutputStream, source: InputStream, length: int) -> Any:
        return splice_from(guest, self, read_blocking(guest, source, length))
