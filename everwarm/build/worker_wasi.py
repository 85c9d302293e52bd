"""A request of wasi:http as an exchange for `worker_wsgi`, with as few calls to the host as it can be done with.

This file becomes part of a Python worker, beside the bindings that componentize-py makes; they exist only there.
Every handle has one owner here and is dropped on every path: children before their parents, as WASI demands.
"""

import codecs
import gc
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from typing import Any

import worker_heap  # type: ignore[import-not-found]
from componentize_py_types import Err, Ok  # type: ignore[import-not-found]
from wit_world import exports  # type: ignore[import-not-found]
from wit_world.imports.environment import get_environment  # type: ignore[import-not-found]
from wit_world.imports.streams import InputStream, OutputStream, StreamError_Closed  # type: ignore[import-not-found]
from wit_world.imports.types import (  # type: ignore[import-not-found]
    ErrorCode_InternalError,
    Fields,
    IncomingRequest,
    Method_Other,
    OutgoingBody,
    OutgoingResponse,
    ResponseOutparam,
    Scheme_Other,
)

# A running worker has no files to import from. What the standard library imports at its first use is imported here,
# for the snapshot: codecs, and what is behind `strptime`.
for _codec in ("ascii", "latin-1", "utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252", "idna", "punycode", "hex"):
    codecs.lookup(_codec)
import_module("_strptime")

# `blocking-write-and-flush` is one call instead of three, and takes no more than this in WASI 0.2.
_FLUSH_BYTES_MAX = 4096
# Nobody's request can have it: `.invalid` is no domain (RFC 6761).
_REHEARSAL = "rehearsal.invalid"


def handler_for(serve: Callable[["Exchange"], None]) -> type:
    """A handler of wasi:http that answers with `serve`."""
    for stream in (sys.stdout, sys.stderr):
        # A line is one event of the log and three calls to the host; unbuffered, each part of a line is.
        stream.reconfigure(line_buffering=True, write_through=False)  # type: ignore[union-attr]

    class Handler(exports.IncomingHandler):  # type: ignore[misc]
        def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
            with Exchange(request, response_out) as exchange:
                serve(exchange)
            sys.stdout.flush()
            sys.stderr.flush()

    return Handler


def export_of(handler: Any, rehearsed: Any, variables: dict[str, str]) -> type:
    """The class that componentize-py looks for: `handler`, awake.

    Until its first request an instance may be rehearsed: the platform lets `rehearsed` answer a few requests, and keeps
    the memory that this leaves for all instances. The worker's own code has no part in it, and neither have its
    variables: ``variables`` is filled when it awakes.
    """
    rehearser = rehearsed()

    class IncomingHandler(handler):  # type: ignore[misc]
        _is_awake = False

        def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> Any:
            if not IncomingHandler._is_awake:
                if request.authority() == _REHEARSAL:
                    get_environment()  # it has nothing yet, but the way there is known then
                    if request.path_with_query() == worker_heap.PATH:
                        _show_heap(request, response_out)
                    else:
                        rehearser.handle(request, response_out)
                    # What is here now is in every instance's memory; a collection would only copy its pages.
                    gc.freeze()
                    return None
                IncomingHandler._is_awake = True
                _wake_up(variables)
            return super().handle(request, response_out)

    return IncomingHandler


def _show_heap(request: IncomingRequest, response_out: ResponseOutparam) -> None:
    """Answer with the list of all objects."""
    with Exchange(request, response_out) as exchange:
        exchange.send_head(200, [("content-type", b"application/octet-stream")], has_body=True)
        for piece in worker_heap.listed():
            exchange.write(piece)
        exchange.finish()


def _wake_up(variables: dict[str, str]) -> None:
    """What every instance does once, because all begin as the same snapshot."""
    # The environment of the snapshot was replaced by the host's as it was in a rehearsal, which is empty.
    variables.update(get_environment())
    os.environ.update(variables)
    # Else all of them would go on with the same random numbers. Its own way to a seed takes 20 calls to the host.
    random = sys.modules.get("random")
    if random is not None:
        # A number: of bytes it would make a hash first.
        random.seed(int.from_bytes(os.urandom(16)))


class Exchange:
    """See `worker_wsgi.Exchange`."""

    def __init__(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        self._request = request
        self._response_out = response_out
        self._handles = ExitStack()
        self._handles.enter_context(request)
        self._over = False
        self._input: InputStream | None = None
        self._body: OutgoingBody | None = None
        self._output: OutputStream | None = None
        self._unflushed = False
        method, scheme = request.method(), request.scheme()
        self.method: str = method.value if isinstance(method, Method_Other) else _case(method).upper()
        self.scheme: str = scheme.value if isinstance(scheme, Scheme_Other) else _case(scheme).lower()
        self.target: str = request.path_with_query() or "/"
        with request.headers() as fields:
            self.headers: list[tuple[str, bytes]] = fields.entries()

    def __enter__(self) -> "Exchange":
        return self

    def __exit__(self, *raised: object) -> None:
        self._over = True
        self._handles.close()

    def authority(self) -> str:
        return self._request.authority() or "localhost"

    def read(self, bytes_max: int) -> bytes:
        if self._over:
            raise OSError("the request is over")
        if self._input is None:
            body = self._handles.enter_context(self._request.consume())
            self._input = self._handles.enter_context(body.stream())
        while True:
            try:
                data: bytes = self._input.blocking_read(bytes_max)
            except Err as failure:
                if _is_closed(failure):
                    return b""
                raise OSError("the request's body broke off") from None
            if data:
                return data

    def send_head(self, status: int, headers: list[tuple[str, bytes]], *, has_body: bool) -> None:
        response = OutgoingResponse(Fields.from_list(headers))
        if status != 200:
            response.set_status_code(status)
        # A response whose body was never asked for has none.
        if has_body:
            self._body = response.body()
            self._output = self._body.write()
        response_out, self._response_out = self._response_out, None
        ResponseOutparam.set(response_out, Ok(response))

    def write(self, data: bytes) -> None:
        assert self._output is not None, "a body that the head ruled out"
        try:
            if len(data) <= _FLUSH_BYTES_MAX:
                self._output.blocking_write_and_flush(data)
                self._unflushed = False
                return
            start = 0
            while start < len(data):
                permitted = self._output.check_write()
                if permitted == 0:
                    with self._output.subscribe() as pollable:
                        pollable.block()
                    continue
                self._output.write(data[start : start + permitted])
                start += permitted
            self._unflushed = True
        except Err as failure:
            _is_closed(failure)
            raise ConnectionError("nobody takes the rest of the response") from None

    def finish(self) -> None:
        if self._output is None:
            return
        if self._unflushed:
            try:
                self._output.flush()
            except Err as failure:
                _is_closed(failure)
        body = self._drop_output()
        try:
            OutgoingBody.finish(body, None)
        except Err:
            # It is not as long as its head said. The host knows, and cuts it off.
            print("the response's body is not as long as its content-length", file=sys.stderr)

    def give_up(self) -> None:
        if self._response_out is not None:
            response_out, self._response_out = self._response_out, None
            ResponseOutparam.set(response_out, Err(ErrorCode_InternalError(None)))
        elif self._body is not None:
            # Dropped and not finished: the host cuts the answer off, so that it never looks whole.
            with self._drop_output():
                pass

    def _drop_output(self) -> OutgoingBody:
        with self._output:  # type: ignore[union-attr]
            pass
        body, self._body, self._output = self._body, None, None
        return body


def _case(value: object) -> str:
    """The case of a variant, out of its class's name; "" for none."""
    return "" if value is None else type(value).__name__.partition("_")[2]


def _is_closed(failure: Err) -> bool:
    """Whether a stream failed because it is at its end; else the error in it is dropped."""
    if isinstance(failure.value, StreamError_Closed):
        return True
    with failure.value.value:
        return False
