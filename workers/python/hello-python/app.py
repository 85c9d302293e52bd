"""A worker in Python, on the bindings that componentize-py makes: answers JSON, and echoes a body at /echo."""

import json
import platform
from collections.abc import Iterator

from componentize_py_types import Err, Ok
from wit_world import exports
from wit_world.imports.streams import StreamError_Closed
from wit_world.imports.types import Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam

# As much as a host hands over at once, and as much as it takes at once.
READ_BYTES_MAX = 65536
WRITE_BYTES_MAX = 4096


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        with request:
            path = (request.path_with_query() or "/").partition("?")[0]
            if path == "/echo":
                answer(response_out, header(request, "content-type") or b"application/octet-stream", body_of(request))
                return
            method = method_of(request)
            shown = {"hello": "hello from Python", "method": method, "path": path, "python": platform.python_version()}
            # The answer to a HEAD request is a head alone.
            answer(response_out, b"application/json", iter([] if method == "HEAD" else [json.dumps(shown).encode()]))


def method_of(request: IncomingRequest) -> str:
    method = request.method()
    return getattr(method, "value", type(method).__name__.removeprefix("Method_").upper())


def header(request: IncomingRequest, name: str) -> bytes | None:
    with request.headers() as headers:
        return next(iter(headers.get(name)), None)


def body_of(request: IncomingRequest) -> Iterator[bytes]:
    with request.consume() as body, body.stream() as stream:
        while True:
            try:
                chunk = stream.blocking_read(READ_BYTES_MAX)
            except Err as failure:
                if isinstance(failure.value, StreamError_Closed):
                    return
                raise
            yield chunk


def answer(response_out: ResponseOutparam, content_type: bytes, chunks: Iterator[bytes]) -> None:
    response = OutgoingResponse(Fields.from_list([("content-type", content_type)]))
    body = response.body()
    ResponseOutparam.set(response_out, Ok(response))
    with body.write() as stream:
        for chunk in chunks:
            for start in range(0, len(chunk), WRITE_BYTES_MAX):
                stream.blocking_write_and_flush(chunk[start : start + WRITE_BYTES_MAX])
    OutgoingBody.finish(body, None)
