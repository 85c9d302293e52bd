"""``outgoing-request`` and ``request-options``: a request that the guest prepares.

Setters refuse what could not stand in a request line or in a URL, so that whoever sends it need not look again.
"""

import re
from typing import Any

from isolates.component_value import DONE, Err, Ok
from isolates.egress import ErrorCode, OutgoingHead, OutgoingTimeouts
from isolates.guest import Guest
from isolates.wasi.http.fields import TOKEN, Fields
from isolates.wasi.http.request_body import RequestBody
from isolates.wit import Interface

_FAILED: Err[None] = Err(None)
#: As long as the longest registered method three times over.
_METHOD_BYTES_MAX = 64
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]{0,63}\Z")
#: A name (253 characters at most, RFC 1035) or an address, and a port. No user: credentials have a header.
_AUTHORITY = re.compile(r"([A-Za-z0-9._\-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?\Z")
#: Visible ASCII without the fragment, which is nobody's but the client's. As long as the edge takes a URL.
_PATH = re.compile(r"(?:[/?][!\"$-~]*|\*)?\Z")
_PATH_BYTES_MAX = 16 * 1024


class OutgoingRequest:
    """A request that the guest prepares."""

    __slots__ = ("authority", "body", "fields", "method", "path_with_query", "scheme")

    def __init__(self, fields: Fields) -> None:
        fields.mutable = False
        self.fields = fields
        self.method: tuple[str, str | None] = ("get", None)
        self.scheme: tuple[str, str | None] | None = None
        self.authority: str | None = None
        self.path_with_query: str | None = None
        self.body: RequestBody | None = None

    def on_drop(self) -> None:
        # Never sent: what was written of its body goes nowhere.
        if self.body is not None:
            self.body.over(None)

    def request_over(self) -> None:
        if self.body is not None:
            self.body.request_over()

    def head(self) -> OutgoingHead | ErrorCode:
        """The head to send, or what is missing or can not be sent."""
        case, other = self.method
        method = other or case.upper()
        if method.upper() == "CONNECT":
            # Its answer is a tunnel, which no part of wasi:http can hold.
            return "HTTP-request-method-invalid", None
        scheme = {"HTTP": "http", "HTTPS": "https"}.get((self.scheme or ("HTTPS", None))[0])
        if scheme is None or self.authority is None:
            return "HTTP-request-URI-invalid", None
        path = self.path_with_query or "/"
        path = f"/{path}" if path.startswith("?") else path
        return OutgoingHead(method, scheme, self.authority, path, tuple(self.fields.items))

    def whole_body(self, guest: Guest) -> RequestBody:
        """The body to send: when the guest never asked for it, it is empty. ``ValueError``: no such content-length."""
        if self.body is None:
            self.body = RequestBody(guest, self.fields.content_length())
            self.body.finish(guest)
        return self.body


class RequestOptions:
    """The guest's time limits for one request, in nanoseconds; None is no wish."""

    __slots__ = ("between_bytes", "connect", "first_byte")

    def __init__(self) -> None:
        self.connect: int | None = None
        self.first_byte: int | None = None
        self.between_bytes: int | None = None

    def timeouts(self) -> OutgoingTimeouts:
        """The same in seconds."""
        wishes = (self.connect, self.first_byte, self.between_bytes)
        return OutgoingTimeouts(*(None if ns is None else ns / 1e9 for ns in wishes))


def _good_method(value: tuple[str, str | None]) -> bool:
    case, other = value
    return case != "other" or (other is not None and len(other) <= _METHOD_BYTES_MAX and bool(TOKEN.match(other)))


def _good_scheme(value: tuple[str, str | None] | None) -> bool:
    return value is None or value[0] != "other" or bool(_SCHEME.match(value[1] or ""))


def _good_authority(value: str | None) -> bool:
    if value is None:
        return True
    parts = _AUTHORITY.match(value)
    return parts is not None and 1 <= int(parts[2] or 1) <= 65_535


def _good_path(value: str | None) -> bool:
    return value is None or (len(value) <= _PATH_BYTES_MAX and bool(_PATH.match(value)))


def define(types: Interface) -> None:
    """``outgoing-request``, ``request-options``."""

    @types.func("[constructor]outgoing-request: func(headers: own<headers>) -> own<outgoing-request>")
    def constructor(guest: Guest, headers: Fields) -> OutgoingRequest:
        return OutgoingRequest(headers)

    @types.func("[method]outgoing-request.body: func(self: borrow<outgoing-request>) -> result<own<outgoing-body>>")
    def body(guest: Guest, self: OutgoingRequest) -> Any:
        if self.body is not None:
            return _FAILED
        try:
            self.body = RequestBody(guest, self.fields.content_length())
        except ValueError:
            guest.log("stderr", "the request's content-length is not a number of bytes")
            return _FAILED
        return Ok(self.body)

    @types.func("[method]outgoing-request.headers: func(self: borrow<outgoing-request>) -> own<headers>")
    def headers(guest: Guest, self: OutgoingRequest) -> Fields:
        return Fields(list(self.fields.items), mutable=False)

    for name, kind, good in (
        ("method", "method", _good_method),
        ("scheme", "option<scheme>", _good_scheme),
        ("authority", "option<string>", _good_authority),
        ("path-with-query", "option<string>", _good_path),
    ):
        _define_property(types, "outgoing-request", name, kind, good)

    @types.func("[constructor]request-options: func() -> own<request-options>")
    def options(guest: Guest) -> RequestOptions:
        return RequestOptions()

    for name in ("connect", "first-byte", "between-bytes"):
        _define_property(types, "request-options", name, "option<u64>", lambda value: True, suffix="-timeout")


def _define_property(types: Interface, resource: str, name: str, kind: str, good: Any, suffix: str = "") -> None:
    attribute = name.replace("-", "_")

    @types.func(f"[method]{resource}.{name}{suffix}: func(self: borrow<{resource}>) -> {kind}")
    def get(guest: Guest, self: OutgoingRequest | RequestOptions) -> Any:
        return getattr(self, attribute)

    @types.func(f"[method]{resource}.set-{name}{suffix}: func(self: borrow<{resource}>, value: {kind}) -> result")
    def put(guest: Guest, self: OutgoingRequest | RequestOptions, value: Any) -> Any:
        if not good(value):
            return _FAILED
        setattr(self, attribute, value)
        return DONE
