"""A backend for traces in a process of its own: an OTLP/HTTP endpoint that reads what it gets, and counts the spans."""

import gzip
import http.server
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_STARTED_S_MAX = 20.0


class OtlpSink:
    """``url`` to send to, and how many spans have arrived."""

    def __init__(self, url: str, count: "Synchronized[int]") -> None:
        self.url = url
        self._count = count

    @property
    def spans(self) -> int:
        """Spans that have arrived until now."""
        return self._count.value


@contextmanager
def otlp_sink() -> Iterator[OtlpSink]:
    """A sink on a free port of loopback, for as long as the block runs."""
    context = multiprocessing.get_context("spawn")
    count = context.Value("q", 0)
    told, tell = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(tell, count), daemon=True)
    process.start()
    try:
        if not told.poll(_STARTED_S_MAX):
            raise RuntimeError("the OTLP sink did not start")
        yield OtlpSink(f"http://127.0.0.1:{told.recv()}", count)
    finally:
        process.terminate()
        process.join()


def _serve(tell: Connection, count: "Synchronized[int]") -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            if self.path == "/v1/traces":
                plain = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
                message = ExportTraceServiceRequest.FromString(plain)
                scopes = [scope for resource in message.resource_spans for scope in resource.scope_spans]
                with count.get_lock():
                    count.value += sum(len(scope.spans) for scope in scopes)
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: what is measured is on the same cores."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    tell.send(server.server_address[1])
    server.serve_forever()
