"""What one request can do with the world beyond its machine: outgoing HTTP, one exchange at a time.

The sandbox never opens a connection. Whoever runs an isolate hands it an ``Egress``: on a server that is a line to the
machine's Server process, which alone has a way out; in a test it is a local origin. Where none is handed in, every
outgoing request is refused (``Denied``).

An ``Outgoing`` is one request and its answer, used by the thread of its guest. Its file descriptor becomes readable
when something of the answer has come, so that a guest can wait for many of them, and for its own request's body, in
one call of the kernel. Bodies stream both ways with backpressure: ``writable`` says whether ``send`` would be taken
without waiting, and nothing of the answer is read that the guest did not ask for.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from isolates.conversation import BodyLost, FieldItems, ResponseHead

#: A case of ``wasi:http/types.error-code`` with its payload: ``("connection-timeout", None)``.
ErrorCode = tuple[str, Any]


@dataclass(frozen=True, slots=True)
class OutgoingHead:
    """An outgoing HTTP request without its body. ``path`` is the raw path with query; header names are lower case."""

    method: str
    scheme: str
    authority: str
    path: str
    headers: FieldItems = ()


@dataclass(frozen=True, slots=True)
class OutgoingTimeouts:
    """What the guest asked for, in seconds; None leaves it to the egress, whose own limits hold in any case."""

    connect_s: float | None = None
    first_byte_s: float | None = None
    between_bytes_s: float | None = None


class AnswerLost(BodyLost):
    """The answer's body broke off, and it is known why. A plain ``BodyLost`` is ``HTTP-response-incomplete``."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(code[0])
        self.code = code


class Outgoing(Protocol):
    """One outgoing request and its answer. Used by one thread; whoever opened it closes it, on every path."""

    def fileno(self) -> int:
        """Readable when ``head`` or ``read_body`` may have something new. Open until ``close``."""

    def wait_for_room(self, readable: set[int], writable: set[int]) -> None:
        """Add to one of the two the file descriptor that is readable, or writable, when ``writable`` may have become
        true. Open until ``close``."""

    def writable(self) -> bool:
        """Whether ``send`` takes 64 KiB without waiting. True when the exchange has failed: ``send`` then tells."""

    def send(self, data: bytes) -> bool:
        """Add to the request body; waits under backpressure. False when nobody takes it any more."""

    def finish(self) -> None:
        """The request body is complete. An exchange that is closed without it was abandoned by its guest."""

    def head(self) -> ResponseHead | ErrorCode | None:
        """The answer's head, why there is none, or None as long as neither is known. Never waits."""

    def body_ready(self) -> bool:
        """Whether ``read_body`` would return at once with bytes, with the end, or with ``BodyLost``. Never waits."""

    def read_body(self, bytes_max: int) -> bytes | None:
        """The next 1..``bytes_max`` bytes; ``b""`` when none are here yet; ``None`` at the end.

        Raises ``conversation.BodyLost`` when the body broke off, ``AnswerLost`` when there is a reason to tell.
        """

    def close(self) -> None:
        """Give everything back; what still runs is cancelled. Safe to call twice."""


class Egress(Protocol):
    """The way out that one request has."""

    def open(self, head: OutgoingHead, timeouts: OutgoingTimeouts) -> Outgoing | ErrorCode:
        """Begin an outgoing request, or say why it is refused. Does not wait for the origin."""


class Denied:
    """No way out."""

    def open(self, head: OutgoingHead, timeouts: OutgoingTimeouts) -> Outgoing | ErrorCode:
        """Refuse."""
        return ("HTTP-request-denied", None)
