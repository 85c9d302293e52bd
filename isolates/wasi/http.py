"""wasi:http: fields, the incoming request, the outgoing response; outgoing requests are denied here.

A component answers by *setting* the response outparam with a head and then writing its body through streams; the
body may go on after the head, and even after ``set``. A body that is dropped without ``finish`` is broken on purpose:
the client must not take it for a whole one.
"""

import re
from typing import Any

from isolates.abi import DONE, Err, Ok, World
from isolates.conversation import BodyLost, ConversationLost, RequestHead, ResponseHead
from isolates.guest import Guest
from isolates.outcome import Outcome
from isolates.wasi.io import ALWAYS, IoError

#: Field names that only the HTTP layer below may set (RFC 9110 section 7.6.1, and Host, which is the authority).
FORBIDDEN = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization proxy-connection transfer-encoding upgrade te host"
    " http2-settings".split()
)
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,1024}\Z")
_VALUE_JUNK = re.compile(rb"[\x00\r\n]")
_METHODS = ("get", "head", "post", "put", "delete", "connect", "options", "trace", "patch")

_INVALID, _FORBIDDEN, _IMMUTABLE = (Err((c, None)) for c in ("invalid-syntax", "forbidden", "immutable"))
_FAILED: Err[None] = Err(None)


class Fields:
    """HTTP fields in order. Names are kept in lower case: the wire below does not tell them apart."""

    __slots__ = ("bytes", "items", "mutable")

    def __init__(self, items: list[tuple[str, bytes]], *, mutable: bool) -> None:
        self.items = items
        self.mutable = mutable
        self.bytes = sum(len(n) + len(v) for n, v in items)

    def problem(self, name: str, values: list[bytes]) -> Err[Any] | None:
        """Why ``values`` may not stand under ``name``, or None."""
        if not self.mutable:
            return _IMMUTABLE
        if not _NAME.match(name) or any(_VALUE_JUNK.search(v) for v in values):
            return _INVALID
        return _FORBIDDEN if name.lower() in FORBIDDEN else None

    def remove(self, name: str) -> None:
        """Take out every value of ``name``, which is in lower case."""
        self.items[:] = [item for item in self.items if item[0] != name]
        self.bytes = sum(len(n) + len(v) for n, v in self.items)

    def add(self, guest: Guest, name: str, values: list[bytes]) -> None:
        """Add ``values`` under ``name``, which is in lower case."""
        self.bytes += sum(len(name) + len(v) for v in values)
        if len(self.items) + len(values) > guest.limits.headers_max or self.bytes > guest.limits.header_bytes_max:
            # WASI 0.2 has no case for "too many"; a guest that fills the host's memory with fields is ended.
            guest.log("stderr", "too many header fields")
            guest.end(Outcome.EXCEPTION)
        self.items.extend((name, v) for v in values)

    def content_length(self) -> int | None:
        """The declared length of the body, None when there is none. ``ValueError`` when there is no telling."""
        lengths = {v for n, v in self.items if n == "content-length"}
        if not lengths:
            return None
        length = lengths.pop()
        # 18 digits are an exabyte: more are not a length, and turning them into a number is work.
        if lengths or not length.isdigit() or len(length) > 18:
            raise ValueError("content-length")
        return int(length)


class IncomingBody:
    """The request's body; its one stream can be taken once."""

    __slots__ = ("over", "taken")
    for_body = True

    def __init__(self) -> None:
        self.taken = False
        self.over = False

    def request_over(self) -> None:
        # Kept beyond its request: the next request's body is another one.
        self.over = True

    # As an input stream:

    def read(self, guest: Guest, bytes_max: int) -> bytes | None:
        if self.over or guest.conversation is None:
            raise OSError("the request is over")
        try:
            return guest.conversation.read_body(bytes_max)
        except BodyLost as lost:
            raise OSError("the request body broke off") from lost

    def pollable(self) -> "IncomingBody":
        return self

    # As the pollable of that stream:

    def ready(self, guest: Guest) -> bool:
        return self.over or guest.conversation is None or guest.conversation.body_ready()

    def wake_s(self, guest: Guest) -> float:
        return 3_600.0


class IncomingRequest:
    """The request as the guest sees it."""

    __slots__ = ("consumed", "head")

    def __init__(self, head: RequestHead) -> None:
        self.head = head
        self.consumed = False

    def request_over(self) -> None:
        self.consumed = True


class OutgoingResponse:
    """A response that the guest prepares."""

    __slots__ = ("body", "fields", "status")

    def __init__(self, fields: Fields) -> None:
        fields.mutable = False
        self.fields = fields
        self.status = 200
        self.body: OutgoingBody | None = None

    def expected_bytes(self, method: str) -> int | None:
        """How long the body must be. A head alone (HEAD, 304) may declare a length that it does not have."""
        return None if method == "HEAD" or self.status == 304 else self.fields.content_length()

    def request_over(self) -> None:
        if self.body is not None:
            self.body.request_over()


class OutgoingBody:
    """The response's body and, at once, its one output stream.

    What is written before the outparam is set waits in ``held``: the head must go first. ``expected`` is the declared
    content length; a body that does not keep it is an error for the guest, and never a short body for the client.
    """

    __slots__ = ("expected", "finished", "held", "open", "taken", "written")

    def __init__(self, expected: int | None) -> None:
        self.expected = expected
        self.written = 0
        self.held: list[bytes] | None = []
        self.taken = False
        self.open = True
        self.finished = False

    #: Written before the head is out, in all bodies of a request together; a guest that writes more than this without
    #: ever answering is stuck, not slow.
    HELD_BYTES_MAX = 1 << 20

    def request_over(self) -> None:
        # Kept beyond its request: its bytes must not reach the next request's client.
        self.open = False
        self.held = None

    def write(self, guest: Guest, data: bytes) -> bool:
        if not self.open:
            return False
        self.written += len(data)
        if self.expected is not None and self.written > self.expected:
            self.open = False
            guest.log("stderr", f"the response body is longer than its content-length of {self.expected}")
            return False
        if self.held is not None:
            guest.held_bytes += len(data)
            if guest.held_bytes > self.HELD_BYTES_MAX:
                guest.log("stderr", "1 MiB of body was written before the response was set")
                guest.end(Outcome.HUNG)
            self.held.append(data)
            return True
        try:
            guest.conversation.send(data)  # type: ignore[union-attr]
        except ConversationLost:
            guest.end(Outcome.CANCELED)
        return True

    def flush(self, guest: Guest) -> bool:
        # What is written leaves at the next wait, tick or end, at most a tick later: see Isolate.
        return self.open

    def release(self, guest: Guest) -> None:
        """The head is out: send what was held."""
        held, self.held = self.held or [], None
        for data in held:
            guest.conversation.send(data)  # type: ignore[union-attr]
        if self.finished:
            guest.response_is_whole()

    def finish(self, guest: Guest) -> bool:
        """End the body; False when the declared length was not kept, or when its request is over."""
        if not self.open:
            return False
        self.open = False
        if self.expected is not None and self.written != self.expected:
            return False
        self.finished = True
        if self.held is None:
            guest.response_is_whole()
        return True


class DeniedBody(OutgoingBody):
    """The body of an outgoing request, none of which can be sent: its bytes go nowhere."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(None)

    def write(self, guest: Guest, data: bytes) -> bool:
        return self.open

    def finish(self, guest: Guest) -> bool:
        self.open = False
        return True


class Outparam:
    """Where the guest puts its response, once."""

    __slots__ = ()


def set_response(guest: Guest, answer: Ok[OutgoingResponse] | Err[tuple[str, Any]]) -> None:
    """The guest answers: keep it for the isolate, and let the head go out with what was written so far."""
    if guest.response is not None:
        guest.end(Outcome.EXCEPTION)
    guest.response = answer
    if isinstance(answer, Err) or guest.conversation is None:
        return
    response, body = answer.value, answer.value.body
    if body is None:
        # Never asked for, so it is empty, and that may not be what was declared.
        try:
            body = response.body = OutgoingBody(response.expected_bytes(guest.conversation.head.method))
        except ValueError:
            guest.log("stderr", "the response's content-length is not a number of bytes")
            guest.end(Outcome.EXCEPTION)
        body.finish(guest)
    try:
        guest.conversation.send_head(ResponseHead(response.status, tuple(response.fields.items)))
        body.release(guest)
    except ConversationLost:
        guest.end(Outcome.CANCELED)


def define(world: World) -> None:
    """wasi:http/types, wasi:http/outgoing-handler."""
    types = world.interface("wasi:http/types@0.2.12")
    for name, original in (
        ("io-error", "error"), ("input-stream", "input-stream"), ("output-stream", "output-stream"),
        ("pollable", "pollable"),
    ):  # fmt: skip
        types.use_resource(name, original)
    for resource in (
        "fields", "incoming-request", "incoming-body", "outgoing-response", "outgoing-body", "response-outparam",
        "future-trailers", "outgoing-request", "request-options", "incoming-response", "future-incoming-response",
    ):  # fmt: skip
        types.resource(resource)
    types.use_resource("headers", "fields")
    types.use_resource("trailers", "fields")
    _define_values(world)
    _define_fields(world)
    _define_incoming(world)
    _define_outgoing(world)
    _define_client(world)


def _define_values(world: World) -> None:
    types = world.interfaces["wasi:http/types@0.2.12"]
    types.alias("status-code", "u16")
    types.variant("method", {**dict.fromkeys(_METHODS), "other": "string"})
    types.variant("scheme", {"HTTP": None, "HTTPS": None, "other": "string"})
    types.variant("header-error", dict.fromkeys(("invalid-syntax", "forbidden", "immutable")))
    types.record("DNS-error-payload", {"rcode": "option<string>", "info-code": "option<u16>"})
    types.record("TLS-alert-received-payload", {"alert-id": "option<u8>", "alert-message": "option<string>"})
    types.record("field-size-payload", {"field-name": "option<string>", "field-size": "option<u32>"})
    plain = (
        "DNS-timeout destination-not-found destination-unavailable destination-IP-prohibited destination-IP-unroutable"
        " connection-refused connection-terminated connection-timeout connection-read-timeout connection-write-timeout"
        " connection-limit-reached TLS-protocol-error TLS-certificate-error HTTP-request-denied"
        " HTTP-request-length-required HTTP-request-method-invalid HTTP-request-URI-invalid HTTP-request-URI-too-long"
        " HTTP-response-incomplete HTTP-response-timeout HTTP-upgrade-failed HTTP-protocol-error loop-detected"
        " configuration-error"
    )
    types.variant(
        "error-code",
        {
            **dict.fromkeys(plain.split()),
            "DNS-error": "DNS-error-payload",
            "TLS-alert-received": "TLS-alert-received-payload",
            "HTTP-request-body-size": "option<u64>",
            "HTTP-request-header-section-size": "option<u32>",
            "HTTP-request-header-size": "option<field-size-payload>",
            "HTTP-request-trailer-section-size": "option<u32>",
            "HTTP-request-trailer-size": "field-size-payload",
            "HTTP-response-header-section-size": "option<u32>",
            "HTTP-response-header-size": "field-size-payload",
            "HTTP-response-body-size": "option<u64>",
            "HTTP-response-trailer-section-size": "option<u32>",
            "HTTP-response-trailer-size": "field-size-payload",
            "HTTP-response-transfer-coding": "option<string>",
            "HTTP-response-content-coding": "option<string>",
            "internal-error": "option<string>",
        },
    )


def _define_fields(world: World) -> None:
    types = world.interfaces["wasi:http/types@0.2.12"]

    @types.func("[constructor]fields: func() -> own<fields>")
    def constructor(guest: Guest) -> Fields:
        return Fields([], mutable=True)

    @types.func(
        "[static]fields.from-list: func(entries: list<tuple<string, list<u8>>>) -> result<own<fields>, header-error>"
    )
    def from_list(guest: Guest, entries: list[tuple[str, bytes]]) -> Any:
        fields = Fields([], mutable=True)
        for name, value in entries:
            problem = fields.problem(name, [value])
            if problem is not None:
                return problem
            fields.add(guest, name.lower(), [value])
        return Ok(fields)

    @types.func("[method]fields.get: func(self: borrow<fields>, name: string) -> list<list<u8>>")
    def get(guest: Guest, self: Fields, name: str) -> list[bytes]:
        name = name.lower()
        return [v for n, v in self.items if n == name]

    @types.func("[method]fields.has: func(self: borrow<fields>, name: string) -> bool")
    def has(guest: Guest, self: Fields, name: str) -> bool:
        return any(n == name.lower() for n, _ in self.items)

    @types.func(
        "[method]fields.set: func(self: borrow<fields>, name: string, value: list<list<u8>>) -> result<_, header-error>"
    )
    def set_values(guest: Guest, self: Fields, name: str, values: list[bytes]) -> Any:
        problem = self.problem(name, values)
        if problem is None:
            self.remove(name.lower())
            self.add(guest, name.lower(), values)
        return problem or DONE

    @types.func("[method]fields.delete: func(self: borrow<fields>, name: string) -> result<_, header-error>")
    def delete(guest: Guest, self: Fields, name: str) -> Any:
        problem = self.problem(name, [])
        if problem is None:
            self.remove(name.lower())
        return problem or DONE

    @types.func(
        "[method]fields.append: func(self: borrow<fields>, name: string, value: list<u8>) -> result<_, header-error>"
    )
    def append(guest: Guest, self: Fields, name: str, value: bytes) -> Any:
        problem = self.problem(name, [value])
        if problem is None:
            self.add(guest, name.lower(), [value])
        return problem or DONE

    @types.func("[method]fields.entries: func(self: borrow<fields>) -> list<tuple<string, list<u8>>>")
    def entries(guest: Guest, self: Fields) -> list[tuple[str, bytes]]:
        return self.items

    @types.func("[method]fields.clone: func(self: borrow<fields>) -> own<fields>")
    def clone(guest: Guest, self: Fields) -> Fields:
        return Fields(list(self.items), mutable=True)


def _define_incoming(world: World) -> None:
    types = world.interfaces["wasi:http/types@0.2.12"]

    @types.func("[method]incoming-request.method: func(self: borrow<incoming-request>) -> method")
    def method(guest: Guest, self: IncomingRequest) -> tuple[str, str | None]:
        name = self.head.method.lower()
        return (name, None) if name in _METHODS else ("other", self.head.method)

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
    def stream(guest: Guest, self: IncomingBody) -> Any:
        if self.taken:
            return _FAILED
        self.taken = True
        return Ok(self)

    @types.func("[static]incoming-body.finish: func(this: own<incoming-body>) -> own<future-trailers>")
    def finish(guest: Guest, self: IncomingBody) -> object:
        return ALWAYS

    @types.func("[method]future-trailers.subscribe: func(self: borrow<future-trailers>) -> own<pollable>")
    def subscribe(guest: Guest, self: object) -> object:
        return ALWAYS

    # HTTP/1.1 trailers of a request are rare and the ingress does not keep them: always "no trailers".
    @types.func(
        "[method]future-trailers.get: func(self: borrow<future-trailers>)"
        " -> option<result<result<option<own<trailers>>, error-code>>>"
    )
    def trailers(guest: Guest, self: object) -> Any:
        return Ok(Ok(None))


def _define_outgoing(world: World) -> None:
    types = world.interfaces["wasi:http/types@0.2.12"]

    @types.func("[constructor]outgoing-response: func(headers: own<headers>) -> own<outgoing-response>")
    def constructor(guest: Guest, fields: Fields) -> OutgoingResponse:
        return OutgoingResponse(fields)

    @types.func("[method]outgoing-response.status-code: func(self: borrow<outgoing-response>) -> status-code")
    def status_code(guest: Guest, self: OutgoingResponse) -> int:
        return self.status

    @types.func(
        "[method]outgoing-response.set-status-code: func(self: borrow<outgoing-response>, status-code: status-code)"
        " -> result"
    )
    def set_status_code(guest: Guest, self: OutgoingResponse, status: int) -> Any:
        # 1xx are not answers: send-informational is the way for those.
        if not 200 <= status <= 599:
            return _FAILED
        self.status = status
        return DONE

    @types.func("[method]outgoing-response.headers: func(self: borrow<outgoing-response>) -> own<headers>")
    def headers(guest: Guest, self: OutgoingResponse) -> Fields:
        return Fields(list(self.fields.items), mutable=False)

    @types.func("[method]outgoing-response.body: func(self: borrow<outgoing-response>) -> result<own<outgoing-body>>")
    def body(guest: Guest, self: OutgoingResponse) -> Any:
        if self.body is not None:
            return _FAILED
        try:
            method = "" if guest.conversation is None else guest.conversation.head.method
            self.body = OutgoingBody(self.expected_bytes(method))
        except ValueError:
            guest.log("stderr", "the response's content-length is not a number of bytes")
            return _FAILED
        return Ok(self.body)

    @types.func("[method]outgoing-body.write: func(self: borrow<outgoing-body>) -> result<own<output-stream>>")
    def write(guest: Guest, self: OutgoingBody) -> Any:
        if self.taken:
            return _FAILED
        self.taken = True
        return Ok(self)

    @types.func(
        "[static]outgoing-body.finish: func(this: own<outgoing-body>, trailers: option<own<trailers>>)"
        " -> result<_, error-code>"
    )
    def finish(guest: Guest, self: OutgoingBody, trailers: Fields | None) -> Any:
        return DONE if self.finish(guest) else Err(("HTTP-response-body-size", self.written))

    @types.func(
        "[static]response-outparam.set: func(param: own<response-outparam>,"
        " response: result<own<outgoing-response>, error-code>)"
    )
    def set_outparam(guest: Guest, self: Outparam, response: Any) -> None:
        set_response(guest, response)

    @types.func(
        "[method]response-outparam.send-informational: func(self: borrow<response-outparam>, status: u16,"
        " headers: own<headers>) -> result<_, error-code>"
    )
    def send_informational(guest: Guest, self: Outparam, status: int, headers: Fields) -> Any:
        return Err(("HTTP-request-denied", None))


def _define_client(world: World) -> None:
    """Outgoing requests can be built, and are refused when they are sent: no way out of the machine is bound."""
    types = world.interfaces["wasi:http/types@0.2.12"]

    @types.func("http-error-code: func(err: borrow<io-error>) -> option<error-code>")
    def http_error_code(guest: Guest, error: IoError) -> None:
        return None

    @types.func("[constructor]outgoing-request: func(headers: own<headers>) -> own<outgoing-request>")
    def outgoing_request(guest: Guest, headers: Fields) -> OutgoingRequest:
        headers.mutable = False
        return OutgoingRequest(headers)

    @types.func("[method]outgoing-request.body: func(self: borrow<outgoing-request>) -> result<own<outgoing-body>>")
    def request_body(guest: Guest, self: OutgoingRequest) -> Any:
        if self.body_taken:
            return _FAILED
        self.body_taken = True
        return Ok(DeniedBody())

    @types.func("[method]outgoing-request.headers: func(self: borrow<outgoing-request>) -> own<headers>")
    def request_headers(guest: Guest, self: OutgoingRequest) -> Fields:
        return Fields(list(self.headers.items), mutable=False)

    for name, kind in (
        ("method", "method"), ("path-with-query", "option<string>"), ("scheme", "option<scheme>"),
        ("authority", "option<string>"),
    ):  # fmt: skip
        _define_property(types, "outgoing-request", name, kind)

    @types.func("[constructor]request-options: func() -> own<request-options>")
    def request_options(guest: Guest) -> Properties:
        return Properties()

    for name in ("connect-timeout", "first-byte-timeout", "between-bytes-timeout"):
        _define_property(types, "request-options", name, "option<u64>")

    handler = world.interface("wasi:http/outgoing-handler@0.2.12")
    for resource in ("outgoing-request", "request-options", "future-incoming-response"):
        handler.use_resource(resource, resource)

    @handler.func(
        "handle: func(request: own<outgoing-request>, options: option<own<request-options>>)"
        " -> result<own<future-incoming-response>, error-code>"
    )
    def handle(guest: Guest, request: OutgoingRequest, options: Any) -> Any:
        return Err(("HTTP-request-denied", None))

    # A future or a response can not come into being while every request is denied.
    for declaration in (
        "[method]future-incoming-response.subscribe: func(self: borrow<future-incoming-response>) -> own<pollable>",
        "[method]future-incoming-response.get: func(self: borrow<future-incoming-response>)"
        " -> option<result<result<own<incoming-response>, error-code>>>",
        "[method]incoming-response.status: func(self: borrow<incoming-response>) -> status-code",
        "[method]incoming-response.headers: func(self: borrow<incoming-response>) -> own<headers>",
        "[method]incoming-response.consume: func(self: borrow<incoming-response>) -> result<own<incoming-body>>",
    ):
        types.func(declaration)(_no_such_response)


def _no_such_response(guest: Guest, self: object) -> Any:
    guest.end(Outcome.INTERNAL_ERROR)


class Properties:
    """A bag of a resource's settable properties."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}


class OutgoingRequest(Properties):
    """A request that the guest prepares."""

    def __init__(self, headers: Fields) -> None:
        super().__init__()
        self.headers = headers
        self.body_taken = False
        self.values["method"] = ("get", None)


def _define_property(types: Any, resource: str, name: str, kind: str) -> None:
    @types.func(f"[method]{resource}.{name}: func(self: borrow<{resource}>) -> {kind}")  # type: ignore[untyped-decorator]
    def get(guest: Guest, self: Properties) -> Any:
        return self.values.get(name)

    @types.func(f"[method]{resource}.set-{name}: func(self: borrow<{resource}>, value: {kind}) -> result")  # type: ignore[untyped-decorator]
    def put(guest: Guest, self: Properties, value: Any) -> Any:
        self.values[name] = value
        return DONE
