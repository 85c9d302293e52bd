"""wasi:io: errors, pollables and streams.

A pollable is anything with ``ready(guest)`` and ``wake_s(guest)`` (when a timer would make it ready); waiting for many
of them is one wait on the request's conversation with the nearest timer as its time limit. Streams are objects with
``read`` or ``write``; what is behind them (a request body, a response body, a log) is their own affair.
"""

import time
from typing import Any

from isolates.abi import DONE, Err, GuestTrap, Ok, World
from isolates.guest import Guest

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

CLOSED = Err(("closed", None))


class IoError:
    """A ``wasi:io/error``: a message for people."""

    __slots__ = ("message",)

    def __init__(self, message: str) -> None:
        self.message = message


class Always:
    """A pollable that is always ready."""

    def ready(self, guest: Guest) -> bool:
        return True

    def wake_s(self, guest: Guest) -> float:
        return 0.0

    for_body = False


class Timer:
    """A pollable that is ready from ``at_ns`` of the monotonic clock on."""

    __slots__ = ("at_ns",)
    for_body = False

    def __init__(self, at_ns: int) -> None:
        self.at_ns = at_ns

    def ready(self, guest: Guest) -> bool:
        return time.monotonic_ns() >= self.at_ns

    def wake_s(self, guest: Guest) -> float:
        return max(0.0, (self.at_ns - time.monotonic_ns()) / 1e9)


ALWAYS = Always()


class EmptyInput:
    """An input stream at its end: stdin."""

    def read(self, guest: Guest, bytes_max: int) -> bytes | None:
        return None

    def pollable(self) -> Any:
        return ALWAYS


def wait_for(guest: Guest, pollables: list[Any]) -> list[int]:
    """Block until at least one is ready; the indices of those that are."""
    while True:
        ready = [i for i, p in enumerate(pollables) if p.ready(guest)]
        if ready:
            return ready
        timeout_s = min((p.wake_s(guest) for p in pollables), default=_FOREVER_S)
        guest.wait(timeout_s, for_body=any(p.for_body for p in pollables))


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
    def ready(guest: Guest, self: Any) -> bool:
        guest.io_happened()
        return bool(self.ready(guest))

    @poll.func("[method]pollable.block: func(self: borrow<pollable>)")
    def block(guest: Guest, self: Any) -> None:
        wait_for(guest, [self])

    @poll.func("poll: func(in: list<borrow<pollable>>) -> list<u32>")
    def poll_many(guest: Guest, pollables: list[Any]) -> list[int]:
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

    def read_now(guest: Guest, self: Any, length: int) -> Any:
        try:
            data = self.read(guest, min(length, READ_BYTES_MAX))
        except OSError as lost:
            return Err(("last-operation-failed", IoError(str(lost))))
        guest.io_happened()
        return CLOSED if data is None else Ok(data)

    def read_blocking(guest: Guest, self: Any, length: int) -> Any:
        if length:
            wait_for(guest, [self.pollable()])
        return read_now(guest, self, length)

    def counted(result: Any) -> Any:
        return Ok(len(result.value)) if isinstance(result, Ok) else result

    @streams.func(
        "[method]input-stream.read: func(self: borrow<input-stream>, len: u64) -> result<list<u8>, stream-error>"
    )
    def read(guest: Guest, self: Any, length: int) -> Any:
        return read_now(guest, self, length)

    @streams.func(
        "[method]input-stream.blocking-read: func(self: borrow<input-stream>, len: u64)"
        " -> result<list<u8>, stream-error>"
    )
    def blocking_read(guest: Guest, self: Any, length: int) -> Any:
        return read_blocking(guest, self, length)

    @streams.func("[method]input-stream.skip: func(self: borrow<input-stream>, len: u64) -> result<u64, stream-error>")
    def skip(guest: Guest, self: Any, length: int) -> Any:
        return counted(read_now(guest, self, length))

    @streams.func(
        "[method]input-stream.blocking-skip: func(self: borrow<input-stream>, len: u64) -> result<u64, stream-error>"
    )
    def blocking_skip(guest: Guest, self: Any, length: int) -> Any:
        return counted(read_blocking(guest, self, length))

    @streams.func("[method]input-stream.subscribe: func(self: borrow<input-stream>) -> own<pollable>")
    def subscribe_input(guest: Guest, self: Any) -> Any:
        return self.pollable()

    # Output. Writing may wait (backpressure) inside the stream; a stream that can take no more answers CLOSED.

    def write_now(guest: Guest, self: Any, contents: bytes, bytes_max: int) -> Any:
        if len(contents) > bytes_max:
            raise GuestTrap(f"a write of {len(contents)} bytes where {bytes_max} were permitted")
        return DONE if self.write(guest, contents) else CLOSED

    def flush_now(guest: Guest, self: Any) -> Any:
        return DONE if self.flush(guest) else CLOSED

    @streams.func("[method]output-stream.check-write: func(self: borrow<output-stream>) -> result<u64, stream-error>")
    def check_write(guest: Guest, self: Any) -> Any:
        return Ok(WRITE_BYTES_MAX) if self.open else CLOSED

    @streams.func(
        "[method]output-stream.write: func(self: borrow<output-stream>, contents: list<u8>) -> result<_, stream-error>"
    )
    def write(guest: Guest, self: Any, contents: bytes) -> Any:
        return write_now(guest, self, contents, WRITE_BYTES_MAX)

    @streams.func(
        "[method]output-stream.blocking-write-and-flush: func(self: borrow<output-stream>, contents: list<u8>)"
        " -> result<_, stream-error>"
    )
    def blocking_write_and_flush(guest: Guest, self: Any, contents: bytes) -> Any:
        # Engines exceed the 4,096 of the contract (the Go adapter does); a stock host takes what fits a permit.
        written = write_now(guest, self, contents, WRITE_BYTES_MAX)
        return flush_now(guest, self) if written is DONE else written

    @streams.func("[method]output-stream.flush: func(self: borrow<output-stream>) -> result<_, stream-error>")
    def flush(guest: Guest, self: Any) -> Any:
        return flush_now(guest, self)

    @streams.func("[method]output-stream.blocking-flush: func(self: borrow<output-stream>) -> result<_, stream-error>")
    def blocking_flush(guest: Guest, self: Any) -> Any:
        return flush_now(guest, self)

    @streams.func("[method]output-stream.subscribe: func(self: borrow<output-stream>) -> own<pollable>")
    def subscribe_output(guest: Guest, self: Any) -> Any:
        return ALWAYS

    @streams.func(
        "[method]output-stream.write-zeroes: func(self: borrow<output-stream>, len: u64) -> result<_, stream-error>"
    )
    def write_zeroes(guest: Guest, self: Any, length: int) -> Any:
        if length > WRITE_BYTES_MAX:
            raise GuestTrap("more zeroes than were permitted")
        return write_now(guest, self, bytes(length), WRITE_BYTES_MAX)

    @streams.func(
        "[method]output-stream.blocking-write-zeroes-and-flush: func(self: borrow<output-stream>, len: u64)"
        " -> result<_, stream-error>"
    )
    def blocking_write_zeroes_and_flush(guest: Guest, self: Any, length: int) -> Any:
        if length > BLOCKING_WRITE_BYTES_MAX:
            raise GuestTrap("more than 4,096 zeroes at once")
        written = write_now(guest, self, bytes(length), WRITE_BYTES_MAX)
        return flush_now(guest, self) if written is DONE else written

    def splice_from(guest: Guest, self: Any, chunk: Any) -> Any:
        if not isinstance(chunk, Ok):
            return chunk
        written = write_now(guest, self, chunk.value, WRITE_BYTES_MAX)
        return Ok(len(chunk.value)) if written is DONE else written

    @streams.func(
        "[method]output-stream.splice: func(self: borrow<output-stream>, src: borrow<input-stream>, len: u64)"
        " -> result<u64, stream-error>"
    )
    def splice(guest: Guest, self: Any, source: Any, length: int) -> Any:
        return splice_from(guest, self, read_now(guest, source, length))

    @streams.func(
        "[method]output-stream.blocking-splice: func(self: borrow<output-stream>, src: borrow<input-stream>, len: u64)"
        " -> result<u64, stream-error>"
    )
    def blocking_splice(guest: Guest, self: Any, source: Any, length: int) -> Any:
        return splice_from(guest, self, read_blocking(guest, source, length))
