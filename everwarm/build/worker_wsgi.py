"""The server's half of WSGI (PEP 3333) for a worker: one request, one call of the application.

This file becomes part of a Python worker; `worker_wasi` is what it talks to there, and a test can be that as well. A
component of WASI 0.2 has one request at a time and waits by waiting, which is what WSGI is made for: no event loop.

The head goes out with the first bytes of the body, not earlier, so that an application may still change its mind. From
then on an answer that fails is broken off, never ended as if it were whole. What the application raises goes to its
own log, with its traceback, and to nobody else.
"""

import io
import json
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from _typeshed import WriteableBuffer

# As much as a host hands over at once, and takes at once.
CHUNK_BYTES_MAX = 65536

_STATUS = re.compile(r"[2-5][0-9]{2}( .*)?", re.DOTALL)
# They are the connection's, and an application has none (RFC 9110 section 7.6.1).
_HOP_BY_HOP = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization te trailer trailers transfer-encoding upgrade".split()
)
# By HTTP's rules answers with these have no body, whatever the application returns.
_BODILESS = frozenset({204, 304})
_PORTS = {"http": "80", "https": "443"}


class Exchange(Protocol):
    """One request and the way to its answer. Names of header fields are in lower case; `target` is path and query."""

    @property
    def method(self) -> str: ...
    @property
    def scheme(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def headers(self) -> list[tuple[str, bytes]]: ...

    def authority(self) -> str:
        """The host that was asked, for a request without a Host field."""

    def read(self, bytes_max: int) -> bytes:
        """Wait for some of the body; b"" is its end. OSError: it broke off."""

    def send_head(self, status: int, headers: list[tuple[str, bytes]], *, has_body: bool) -> None: ...

    def write(self, data: bytes) -> None:
        """Send some of the body; waits while the client is slow. ConnectionError: nobody takes it any more."""

    def finish(self) -> None:
        """The answer is whole."""

    def give_up(self) -> None:
        """There is no answer, or no more of it."""


def rehearsed(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """The application of rehearsed requests: what most applications do, and nothing that must differ between them."""
    path = environ["PATH_INFO"]
    if path == "/stream":
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return iter(lambda: environ["wsgi.input"].read(CHUNK_BYTES_MAX), b"")
    seen = {"path": path, "query": environ["QUERY_STRING"], "size": len(environ["wsgi.input"].read())}
    text = json.dumps({**seen, "again": json.loads(json.dumps(seen))}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(text)))])
    return [text]


def serve(application: "WSGIApplication", variables: Mapping[str, str], exchange: Exchange) -> None:
    """Answer one request. Never raises for what the application does."""
    answer = _Answer(exchange)
    result: Iterable[bytes] = ()
    try:
        result = application(_environ(exchange, variables), answer.start_response)
        answer.send(result)
    except BaseException as failure:
        # Also SystemExit and its like: a request may end itself, not the worker.
        answer.give_up(failure)
    close = getattr(result, "close", None)
    if close is not None:
        # The answer is out by now: the client does not wait for what the application tidies up.
        try:
            close()
        except BaseException as failure:
            answer.give_up(failure)


class _Answer:
    """What `start_response` was told, and how much of the answer is on its way."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._status: int | None = None
        self._headers: list[tuple[str, bytes]] = []
        self._head_sent = False
        self._has_body = True
        self._over = False
        self._gone: ConnectionError | None = None

    def start_response(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None] | None = None,
        /,
    ) -> "_Write":
        try:
            if exc_info is None and self._status is not None:
                raise AssertionError("start_response was called again without exc_info")
            if exc_info is not None and exc_info[1] is not None and self._head_sent:
                raise exc_info[1].with_traceback(exc_info[2])
        finally:
            # A traceback that is kept keeps all its frames.
            exc_info = None
        if not _STATUS.fullmatch(status):
            raise ValueError(f"a status is a number from 200 to 599 and a reason; this is {status!r}")
        encoded = []
        for name, value in headers:
            lower = name.lower()
            if lower in _HOP_BY_HOP:
                raise ValueError(f"{name} belongs to the connection; an application cannot set it")
            encoded.append((lower, value.encode("latin-1")))
        self._status, self._headers = int(status[:3]), encoded
        return self.write

    def write(self, data: bytes) -> None:
        """What `start_response` returns, for applications that push."""
        if data:
            self._send(data, None)

    def send(self, result: Iterable[bytes]) -> None:
        """All that the application returned, and the end."""
        length = None
        if type(result) in (list, tuple):
            # All of it is here: it can be measured, and leave in one piece.
            length = sum(map(len, result))
            if length <= CHUNK_BYTES_MAX:
                result = (b"".join(result),)
        for data in result:
            if data:
                self._send(data, length)
                if not self._has_body:
                    break
        if not self._head_sent:
            # An empty answer to HEAD says nothing about how long the one to GET is.
            self._send_head(None if self._exchange.method == "HEAD" else 0, has_body=False)
        self._over = True
        self._exchange.finish()

    def _send(self, data: bytes, length: int | None) -> None:
        if not self._head_sent:
            self._send_head(length, has_body=self._exchange.method != "HEAD" and self._status not in _BODILESS)
        if not self._has_body:
            return
        try:
            self._exchange.write(data)
        except ConnectionError as gone:
            self._gone = gone
            raise

    def _send_head(self, length: int | None, *, has_body: bool) -> None:
        if self._status is None:
            raise AssertionError("the application did not call start_response before its body")
        if (
            length is not None
            and self._status not in _BODILESS
            and all(name != "content-length" for name, _ in self._headers)
        ):
            self._headers.append(("content-length", b"%d" % length))
        self._head_sent, self._has_body = True, has_body
        self._exchange.send_head(self._status, self._headers, has_body=has_body)

    def give_up(self, failure: BaseException) -> None:
        # That nobody takes the rest is no fault of the application, which has only passed it on.
        if failure is not self._gone:
            # In one piece: each is an event of the log.
            sys.stderr.write("".join(traceback.format_exception(failure)))
        if not self._over:
            self._over = True
            self._exchange.give_up()


class _Write(Protocol):
    def __call__(self, data: bytes, /) -> object: ...


class _Body(io.RawIOBase):
    """The request's body: asked for when it is read."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer)
        data = self._exchange.read(len(view))
        view[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        # The default asks for a few KB at a time.
        return b"".join(iter(lambda: self._exchange.read(CHUNK_BYTES_MAX), b""))


def _environ(exchange: Exchange, variables: Mapping[str, str]) -> dict[str, Any]:
    path, _, query = exchange.target.partition("?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": exchange.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "REQUEST_URI": exchange.target,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": exchange.scheme,
        "wsgi.input": io.BufferedReader(_Body(exchange), CHUNK_BYTES_MAX),
        # Whatever the length of the body, it ends where it ends.
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        # Other isolates of this worker run beside this one.
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "everwarm.vars": variables,
    }
    for name, value in exchange.headers:
        # With an underscore it would pass for another header's name; "Proxy" for the variable HTTP_PROXY of CGI.
        if "_" in name or name == "proxy":
            continue
        key = name.upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = f"HTTP_{key}"
        text = value.decode("latin-1")
        if key in environ:
            text = f"{environ[key]}{'; ' if key == 'HTTP_COOKIE' else ', '}{text}"
        environ[key] = text
    host = environ.get("HTTP_HOST") or exchange.authority()
    name, colon, port = host.rpartition(":")
    # An IPv6 address has colons of its own, inside brackets.
    has_port = bool(colon) and port.isdigit()
    environ["SERVER_NAME"] = name if has_port else host
    environ["SERVER_PORT"] = port if has_port else _PORTS.get(exchange.scheme, "80")
    return environ
