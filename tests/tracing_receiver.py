"""A real OTLP/HTTP receiver for tests: it decodes what arrives with the official protobuf messages and keeps it."""

from __future__ import annotations

import gzip
import http.server
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

# A test that sends more has lost its way.
_BODY_BYTES_MAX = 64 * 1024 * 1024
TRACES, METRICS = "/v1/traces", "/v1/metrics"


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as a backend sees it; ids as hex digits, `parent_span_id` "" for a root, `kind` as in "SERVER"."""

    trace_id: str
    span_id: str
    parent_span_id: str
    name: str
    kind: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: tuple[tuple[str, int, dict[str, Any]], ...]
    error: bool
    status_message: str
    resource: dict[str, Any]


@dataclass(frozen=True)
class ReceivedPoint:
    """One series of a metric; `kind` as in "sum", `value` a number, or of a histogram (bounds, counts, sum)."""

    name: str
    unit: str
    kind: str
    monotonic: bool
    attributes: dict[str, Any]
    value: Any
    start_ns: int
    at_ns: int
    resource: dict[str, Any]


@dataclass
class ReceivedRequest:
    """One HTTP request: its path, its headers with lower-case names, and the size of its body on the wire."""

    path: str
    headers: dict[str, str]
    body_bytes: int
    spans: list[ReceivedSpan] = field(default_factory=list)
    points: list[ReceivedPoint] = field(default_factory=list)


class OtlpReceiver:
    """`with OtlpReceiver() as receiver:` serves on a free loopback port at `receiver.url` until the block ends.

    `status` is what it answers; with another than 200 it keeps the request but not its spans, as a backend that
    refuses. `before_answer` runs in the serving thread before each answer, to hold one back.
    """

    def __init__(self, status: int = 200, before_answer: Callable[[], None] = lambda: None) -> None:
        self.status = status
        self._before_answer = before_answer
        self._arrived = threading.Condition()
        self._requests: list[ReceivedRequest] = []
        self._spans: list[ReceivedSpan] = []
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="otlp-receiver")

    def __enter__(self) -> OtlpReceiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The base url, without the path of the signal."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def spans(self) -> list[ReceivedSpan]:
        """Every span accepted so far, in order of arrival."""
        with self._arrived:
            return list(self._spans)

    @property
    def requests(self) -> list[ReceivedRequest]:
        """Every request so far, also the refused ones."""
        with self._arrived:
            return list(self._requests)

    def wait_for_spans(self, count: int, timeout_s: float = 10.0) -> list[ReceivedSpan]:
        """All spans as soon as there are at least `count`; AssertionError when time runs out first."""
        return self.wait_for(lambda spans: len(spans) >= count, timeout_s, f"{count} spans")

    def wait_for(
        self, enough: Callable[[list[ReceivedSpan]], bool], timeout_s: float = 10.0, what: str = "the spans"
    ) -> list[ReceivedSpan]:
        """All spans as soon as `enough(spans)`; AssertionError when time runs out first."""
        deadline = time.monotonic() + timeout_s
        with self._arrived:
            while not enough(self._spans):
                remaining = deadline - time.monotonic()
                if remaining <= 0 or not self._arrived.wait(remaining):
                    names = [f"{span.trace_id[:8]} {span.name}" for span in self._spans]
                    raise AssertionError(f"waited {timeout_s} s for {what}, got {len(names)}: {names}")
            return list(self._spans)

    def wait_for_requests(self, count: int, timeout_s: float = 10.0) -> list[ReceivedRequest]:
        """All requests as soon as there are at least `count`, refused ones too; AssertionError when time runs out."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: len(self._requests) >= count, timeout_s):
                raise AssertionError(f"waited {timeout_s} s for {count} requests, got {len(self._requests)}")
            return list(self._requests)

    def _take(self, path: str, headers: dict[str, str], body: bytes) -> int:
        request = ReceivedRequest(path, headers, len(body))
        status = self.status
        encoding = headers.get("content-encoding", "identity")
        if status == 200 and path.partition("?")[0] == METRICS:
            request.points = _decode_metrics(body, encoding)
        elif status == 200:
            request.spans = _decode(body, encoding)
        with self._arrived:
            self._requests.append(request)
            self._spans.extend(request.spans)
            self._arrived.notify_all()
        self._before_answer()
        return status


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, receiver: OtlpReceiver) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.receiver = receiver


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # An exporter keeps its connection; the thread behind it must not outlive the test by much.
    timeout = 5.0

    def do_POST(self) -> None:
        assert isinstance(self.server, _Server)
        size = int(self.headers.get("content-length", "0"))
        signal = self.path.partition("?")[0]
        found = signal in (TRACES, METRICS)
        if not found or size > _BODY_BYTES_MAX:
            self.send_error(413 if found else 404)
            return
        body = self.rfile.read(size)
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            status = self.server.receiver._take(self.path, headers, body)
        except (KeyError, ValueError, OSError, EOFError, DecodeError, zlib.error) as error:
            self.send_error(400, type(error).__name__)
            return
        made = ExportMetricsServiceResponse() if signal == METRICS else ExportTraceServiceResponse()
        answer = made.SerializeToString() if status == 200 else b""
        self.send_response(status)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
    "identity": bytes,
}


def _decode(body: bytes, encoding: str) -> list[ReceivedSpan]:
    plain = _DECODERS[encoding](body)
    message = ExportTraceServiceRequest.FromString(plain)
    return [
        ReceivedSpan(
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_span_id=span.parent_span_id.hex(),
            name=span.name,
            kind=type(span).SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
            start_ns=span.start_time_unix_nano,
            end_ns=span.end_time_unix_nano,
            attributes=_values(span.attributes),
            events=tuple((event.name, event.time_unix_nano, _values(event.attributes)) for event in span.events),
            error=span.status.code == 2,
            status_message=span.status.message,
            resource=_values(of_resource.resource.attributes),
        )
        for of_resource in message.resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    ]


def _decode_metrics(body: bytes, encoding: str) -> list[ReceivedPoint]:
    message = ExportMetricsServiceRequest.FromString(_DECODERS[encoding](body))
    found = []
    for of_resource in message.resource_metrics:
        resource = _values(of_resource.resource.attributes)
        for metric in (metric for of_scope in of_resource.scope_metrics for metric in of_scope.metrics):
            kind = metric.WhichOneof("data")
            data = getattr(metric, kind)
            for point in data.data_points:
                if kind == "histogram":
                    value: Any = (tuple(point.explicit_bounds), tuple(point.bucket_counts), point.sum)
                else:
                    value = getattr(point, point.WhichOneof("value"))
                made = ReceivedPoint(
                    name=metric.name,
                    unit=metric.unit,
                    kind=kind,
                    monotonic=kind == "sum" and data.is_monotonic,
                    attributes=_values(point.attributes),
                    value=value,
                    start_ns=point.start_time_unix_nano,
                    at_ns=point.time_unix_nano,
                    resource=resource,
                )
                found.append(made)
    return found


def _values(attributes: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in attributes}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return None if kind is None else getattr(value, kind)
