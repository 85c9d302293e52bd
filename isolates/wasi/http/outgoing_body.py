"""``outgoing-body``: what bodies that a guest writes have in common, to its client or to others."""

from typing import Any, NoReturn

from isolates.component_value import DONE, Err, Ok
from isolates.conversation import FieldItems
from isolates.egress import ErrorCode
from isolates.guest import Guest
from isolates.outcome import Outcome
from isolates.wasi.http.fields import Fields
from isolates.wasi.io import WRITE_BYTES_MAX, OutputStream
from isolates.wit import Interface

#: Written while its head can not go yet, in all bodies of a request together; a guest that writes more than this
#: without ever answering or asking is stuck, not slow.
HELD_BYTES_MAX = 1 << 20
#: What is taken from ``held`` at once.
PIECE_BYTES_MAX = WRITE_BYTES_MAX


class OutgoingBody:
    """A body in the making. What is written before its head is out waits in ``held``.

    ``expected`` is the declared content length; a body that does not keep it is an error for the guest, and never a
    short body for whoever reads it.
    """

    __slots__ = ("expected", "finished", "held", "open", "taken", "trailers", "written")
    #: Whose body it is, for people and as the error-code of a length that was not kept.
    whose = ""
    wrong_size = ""

    def __init__(self, expected: int | None) -> None:
        self.expected = expected
        self.written = 0
        self.held = bytearray()
        self.taken = False
        self.open = True
        self.finished = False
        self.trailers: FieldItems = ()

    def take_stream(self) -> OutputStream | None:
        """Its stream; None when it was taken before."""
        if self.taken:
            return None
        self.taken = True
        return self.stream()

    def stream(self) -> OutputStream:
        raise NotImplementedError

    def put(self, guest: Guest, data: bytes) -> bool:
        """Send or hold ``data``, which keeps the declared length. False when nobody takes it any more."""
        raise NotImplementedError

    def completed(self, guest: Guest) -> None:
        """The body is whole: say so as soon as everything before it went."""
        raise NotImplementedError

    def broken(self, guest: Guest) -> None:
        """The body did not keep its declared length and goes no further."""

    def write(self, guest: Guest, data: bytes) -> bool:
        if not self.open:
            return False
        self.written += len(data)
        if self.expected is not None and self.written > self.expected:
            self.open = False
            guest.log("stderr", f"the {self.whose} body is longer than its content-length of {self.expected}")
            self.broken(guest)
            return False
        return self.put(guest, data)

    def hold(self, guest: Guest, data: bytes) -> None:
        """Keep ``data`` until it may go."""
        guest.held_bytes += len(data)
        if guest.held_bytes > HELD_BYTES_MAX:
            self.stuck(guest)
        self.held += data

    def stuck(self, guest: Guest) -> NoReturn:
        """End a guest that fills this process."""
        guest.log("stderr", f"1 MiB of {self.whose} body was written before its head could go")
        guest.end(Outcome.HUNG)

    def take_piece(self, guest: Guest) -> bytes:
        """The next bytes of what was held."""
        piece = bytes(self.held[:PIECE_BYTES_MAX])
        del self.held[:PIECE_BYTES_MAX]
        guest.held_bytes -= len(piece)
        return piece

    def finish(self, guest: Guest, trailers: FieldItems = ()) -> ErrorCode | None:
        """End the body. An error when the declared length was not kept, or when its request is over."""
        if not self.open:
            return self.wrong_size, self.written
        self.open = False
        if self.expected is not None and self.written != self.expected:
            self.broken(guest)
            return self.wrong_size, self.written
        self.finished = True
        self.trailers = trailers
        self.completed(guest)
        return None


def define(types: Interface) -> None:
    """``outgoing-body``."""

    @types.func("[method]outgoing-body.write: func(self: borrow<outgoing-body>) -> result<own<output-stream>>")
    def write(guest: Guest, self: OutgoingBody) -> Any:
        taken = self.take_stream()
        return Err(None) if taken is None else Ok(taken)

    @types.func(
        "[static]outgoing-body.finish: func(this: own<outgoing-body>, trailers: option<own<trailers>>)"
        " -> result<_, error-code>"
    )
    def finish(guest: Guest, self: OutgoingBody, trailers: Fields | None) -> Any:
        problem = self.finish(guest, () if trailers is None else tuple(trailers.items))
        return DONE if problem is None else Err(problem)
