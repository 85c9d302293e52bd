"""The host's side of ``isolates.bulk_bytes``: byte streams whose contents pass as text.

``fill`` reads and keeps what it read; ``take`` hands it over, once. In between runs only the few instructions that the
rewriting put there, so one place per guest is enough.
"""

from typing import Any

from isolates.component_value import Ok
from isolates.guest import Guest
from isolates.wasi.io import WRITE_BYTES_MAX, read_blocking, read_now, write_and_flush, write_now
from isolates.wit import World


def define(world: World) -> None:
    """The functions that a rewritten component imports beside those of wasi:io/streams."""
    streams = world.interfaces["wasi:io/streams@0.2.12"]

    def keep(guest: Guest, read: Any) -> Any:
        if not isinstance(read, Ok):
            return read
        guest.filled = read.value
        return Ok(len(read.value))

    @streams.func(
        "[method]input-stream.everwarm-fill: func(self: borrow<input-stream>, len: u64) -> result<u32, stream-error>"
    )
    def fill(guest: Guest, self: Any, length: int) -> Any:
        return keep(guest, read_now(guest, self, length))

    @streams.func(
        "[method]input-stream.everwarm-blocking-fill: func(self: borrow<input-stream>, len: u64)"
        " -> result<u32, stream-error>"
    )
    def blocking_fill(guest: Guest, self: Any, length: int) -> Any:
        return keep(guest, read_blocking(guest, self, length))

    def handed_over(guest: Guest, self: Any) -> bytes:
        filled, guest.filled = guest.filled, b""
        return filled

    streams.func("[method]input-stream.everwarm-take: func(self: borrow<input-stream>) -> latin1")(handed_over)
    streams.func("[method]input-stream.everwarm-take-bytes: func(self: borrow<input-stream>) -> list<u8>")(handed_over)

    @streams.func(
        "[method]output-stream.everwarm-write: func(self: borrow<output-stream>, contents: latin1)"
        " -> result<_, stream-error>"
    )
    def write(guest: Guest, self: Any, contents: bytes) -> Any:
        return write_now(guest, self, contents, WRITE_BYTES_MAX)

    @streams.func(
        "[method]output-stream.everwarm-blocking-write-and-flush: func(self: borrow<output-stream>,"
        " contents: latin1) -> result<_, stream-error>"
    )
    def blocking_write_and_flush(guest: Guest, self: Any, contents: bytes) -> Any:
        return write_and_flush(guest, self, contents)
