"""What one request can do with the world outside its isolate.

An isolate runs on one thread and may wait; whoever owns the other end (a Unix socket in production, a list of bytes in
a test) hands it a ``Conversation``. The sandbox never sees a socket, so the same guest code path is exercised whether
the request came through TLS, through Ray or from a test.

Rules both sides hold:

* the request body is *pulled*: nothing arrives that the guest did not ask for, beyond the first bytes that rode with
  the head. So an unread body costs its sender at most that window;
* the response is *pushed*; ``flush`` is where backpressure is felt;
* a body that breaks off is ``BodyLost``, never a short body.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

#: Header or trailer fields in order. Names are lower case.
FieldItems = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class RequestHead:
    """An HTTP request without its body. ``path`` is the raw path with query; header names are lower case."""

    method: str
    scheme: str
    authority: str
    path: str
    headers: FieldItems = ()

    @property
    def url(self) -> str:
        """The whole of it, secrets in the query included."""
        return f"{self.scheme}://{self.authority}{self.path}"


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """An HTTP response without its body, as the guest set it. Header names are lower case."""

    status: int
    headers: FieldItems = ()


class BodyLost(Exception):
    """The request body broke off before its end: the sender went away."""


class ConversationLost(Exception):
    """Nobody listens any more: the client went away, or whoever relays for it."""


class Conversation(Protocol):
    """One request's other end, used by one thread at a time."""

    @property
    def head(self) -> RequestHead: ...

    def body_ready(self) -> bool:
        """Whether ``read_body`` would return at once with bytes, with the end, or with ``BodyLost``."""

    def read_body(self, bytes_max: int) -> bytes | None:
        """The next 1..``bytes_max`` bytes; ``b""`` when none are here yet; ``None`` at the end.

        Raises ``BodyLost`` when the body broke off.
        """

    def trailers(self) -> FieldItems | None:
        """The fields that came after the request body, once that was read to its end. None: there are none."""

    def wait(
        self, timeout_s: float, *, for_body: bool, readable: Sequence[int] = (), writable: Sequence[int] = ()
    ) -> None:
        """Block until the time is over, a file descriptor can be read or written or, with ``for_body``, the body is
        ready. May return earlier: whoever waits looks again.

        Raises ``ConversationLost`` as soon as it is known that nobody listens any more.
        """

    def inform(self, head: ResponseHead) -> None:
        """Say an informational status (1xx but not 101) with its headers, before ``send_head``. May be dropped."""

    def send_head(self, head: ResponseHead) -> None:
        """Say the status and the headers, once, before any ``send``. May be held back until ``flush``."""

    def send(self, data: bytes) -> None:
        """Add to the response body. May be held back until ``flush``; blocks when too much is held back."""

    def finish(self, trailers: FieldItems = ()) -> None:
        """Say that the response body is complete. The trailers may be dropped."""

    def flush(self) -> None:
        """Put everything held back on its way. Blocks under backpressure. Raises ``ConversationLost``."""

    def listening(self) -> bool:
        """Whether somebody still waits for the answer. Cheap enough for every few milliseconds."""
