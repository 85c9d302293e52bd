"""The client's request as the guest reads it, and what all bodies that a guest reads have in common."""

from typing import Any, Protocol

from isolates.component_value import Err, Ok
from isolates.conversation import BodyLost, FieldItems, RequestHead
from isolates.guest import Guest
from isolates.wasi.http.fields import Fields
from isolates.wasi.io import ALWAYS, InputStream, Pollable, StreamFailed, Wait
from isolates.wit import Interface

METHODS = ("get", "head", "post", "put", "delete", "connect", "options", "trace", "patch")
_FAILED: Err[None] = Err(None)


class ReadableBody(Protocol):
    """An ``incoming-body``: the client's, or that of an answer to the guest."""

    def take_stream(self) -> InputStream | None:
        """Its stream; None when it was taken before."""

    def finish(self, guest: Guest) -> FieldItems | None:
        """The guest reads no more of it. The trailers, or None."""


class IncomingBody:
    """The body of the client's request; its one stream, which can be taken once; and the pollable of that stream."""

    __slots__ = ("ended", "over", "taken")

    def __init__(self) -> None:
        self.taken = False
        self.ended = False
        self.over = False

    def request_over(self) -> None:
        # Kept beyond its request: the next request's body is another one.
        self.over = True

    def take_stream(self) -> "IncomingBody | None":
        if self.taken:
            return None
        self.taken = True
        return self

    def finish(self, guest: Guest) -> FieldItems | None:
        return None if self.over or guest.conversation is None else guest.conversation.trailers()

    def read(self, guest: Guest, bytes_max: int) -> bytes | None:
        if self.over or guest.conversation is None:
            raise StreamFailed("the request is over")
        if not bytes_max:
            return None if self.ended else b""  # a conversation is asked for bytes, and would pull some
        try:
            data = guest.conversation.read_body(bytes_max)
            self.ended |= data is None
            return data
        except BodyLost as lost:
            raise StreamFailed("the request body broke off") from lost

    def pollable(self) -> "IncomingBody":
        return self

    def ready(self, guest: Guest) -> bool:
        return self.over or guest.conversation is None or guest.conversation.body_ready()

    def wait_on(self, guest: Guest, wait: Wait) -> None:
        wait.for_body = True


class IncomingRequest:
    """The request as the guest sees it."""

    __slots__ = ("consumed", "head")

    def __init__(self, head: RequestHead) -> None:
        self.head = head
        self.consumed = False

    def request_over(self) -> None:
        self.consumed = True


class FutureTrailers:
    """The trailers of a body that the guest is done with: known at once, given once."""

    __slots__ = ("_given", "_items")

    def __init__(self, items: FieldItems | None) -> None:
        self._items = items
        self._given = False

    def take(self) -> Ok[Ok[Fields | None]] | Err[None]:
        """The trailers, or that they were taken before."""
        if self._given:
            return _FAILED
        self._given = True
        return Ok(Ok(None if self._items is None else Fields(list(self._items), mutable=False)))


def define(types: Interface) -> None:
    """``incoming-request``, ``incoming-body``, ``future-trailers``."""

    @types.func("[method]incoming-request.method: func(self: borrow<incoming-request>) -> method")
    def method(guest: Guest, self: IncomingRequest) -> tuple[str, str | None]:
        name = self.head.method.lower()
        return (name, None) if name in METHODS else ("other", self.head.method)

    @types.func("[method]incoming-request.path-with-query: func(self: borrow<incoming-request>) -> option<string>")
    def path_with_query(guest: Guest, self: IncomingRequest) -> str:
        return self.head.path

    @types.func("[method]incoming-request.scheme: func(self: borrow<incoming-request>) -> option<scheme>")
    def scheme(guest: Guest, self: IncomingRequest) -> tuple[str, str | None]:
        known = {"http": "HTTP", "https": "HTTPS"}.get(self.head.scheme)
        return (known, None) if known else ("other", self.head.scheme)

    @types.func("[method]incoming-request.authority: func(self: borrow<incoming-request>) -> option<string>")
    def authority(guest: Guest, self: IncomingRequest) -> str | None:
        return self.head.authority or None

    @types.func("[method]incoming-request.headers: func(self: borrow<incoming-request>) -> own<headers>")
    def headers(guest: Guest, self: IncomingRequest) -> Fields:
        return Fields(list(self.head.headers), mutable=False)

    @types.func("[method]incoming-request.consume: func(self: borrow<incoming-request>) -> result<own<incoming-body>>")
    def consume(guest: Guest, self: IncomingRequest) -> Any:
        if self.consumed:
            return _FAILED
        self.consumed = True
        return Ok(IncomingBody())

    @types.func("[method]incoming-body.stream: func(self: borrow<incoming-body>) -> result<own<input-stream>>")
    def stream(guest: Guest, self: ReadableBody) -> Any:
        taken = self.take_stream()
        return _FAILED if taken is None else Ok(taken)

    @types.func("[static]incoming-body.finish: func(this: own<incoming-body>) -> own<future-trailers>")
    def finish(guest: Guest, self: ReadableBody) -> FutureTrailers:
        return FutureTrailers(self.finish(guest))

    @types.func("[method]future-trailers.subscribe: func(self: borrow<future-trailers>) -> own<pollable>")
    def subscribe(guest: Guest, self: FutureTrailers) -> Pollable:
        return ALWAYS

    @types.func(
        "[method]future-trailers.get: func(self: borrow<future-trailers>)"
        " -> option<result<result<option<own<trailers>>, error-code>>>"
    )
    def trailers(guest: Guest, self: FutureTrailers) -> Any:
        return self.take()
