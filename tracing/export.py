"""Finished spans to an OpenTelemetry backend, by OTLP over HTTP (protobuf).

The SDK's own tracer and batch processor are not used: our spans are made elsewhere, with their own ids and times, and
come here finished. What is used is its exporter, behind a bounded queue and one thread of ours, because the caller
is an event loop that must not wait, and because what was lost has to be counted.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from tracing.otlp_url import traces_endpoint
from tracing.sdk_errors import ErrorsOfThread
from tracing.trace import Attr, AttributeValue, Span, SpanName, approximate_bytes

_log = logging.getLogger(__name__)
_sdk_logger = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")

_SCOPE: Final = InstrumentationScope("everwarm")
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_KINDS: Final = {
    SpanName.REQUEST: SpanKind.SERVER,
    SpanName.HOP: SpanKind.CLIENT,
    SpanName.SUBREQUEST: SpanKind.CLIENT,
}
_UNSET: Final = Status(StatusCode.UNSET)
# The servers of a cluster times the roles; more than that means that names are wrong, and then the cache starts anew.
_RESOURCES_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class ExportLimits:
    """`queue_*`: what waits while the backend does not answer; over it, new spans are dropped and counted.

    `batch_spans_max`: about 200 KiB a request. `delay_s`: how long a span waits for company. `request_timeout_s`: for
    one batch with all its retries, so a dead backend costs a queue, not memory.
    """

    queue_spans_max: int = 16384
    queue_bytes_max: int = 32 * 1024 * 1024
    batch_spans_max: int = 512
    delay_s: float = 0.25
    request_timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class ExportStatistics:
    """Spans since the start; `queued` is of this moment. `dropped`: no room, or closed. `failed`: the backend did not
    take them (or they could not be put in OTLP). `last_error`: of the last batch, None when it arrived."""

    queued: int
    exported: int
    dropped: int
    failed: int
    last_error: str | None


class OtlpExporter:
    """Sends spans in the background. `export` never blocks or raises; `statistics` says what became of them.

    `url`: base or full, see `otlp_url`. `headers` go with every request (keys of a hosted backend) and are never
    logged. The standard `OTEL_EXPORTER_OTLP_*` variables for headers and certificates are honoured, as the SDK does.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        service_name: str = "everwarm",
        limits: ExportLimits = ExportLimits(),
    ) -> None:
        endpoint = traces_endpoint(url)
        self._where = urlsplit(endpoint).hostname or "?"
        self._service_name = service_name
        self._limits = limits
        self._exporter = OTLPSpanExporter(
            endpoint=endpoint,
            headers=dict(headers or {}),
            timeout=limits.request_timeout_s,
            compression=Compression.Gzip,
        )
        self._resources: dict[tuple[str, str], Resource] = {}
        self._changed = threading.Condition()
        self._queue: deque[Span] = deque()
        self._queue_bytes = 0
        self._sending = 0
        self._closed = False
        self._hurry = False
        self._aborted = False
        self._exported = self._dropped = self._failed = 0
        self._last_error: str | None = None
        self._errors = ErrorsOfThread()
        _sdk_logger.addFilter(self._errors)
        self._thread = threading.Thread(target=self._run, name="otlp-export", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<OtlpExporter to {self._where}: {self.statistics()}>"

    def export(self, spans: Sequence[Span]) -> None:
        """Queue `spans`. Those that do not fit, or that come after `close`, are dropped and counted."""
        limits = self._limits
        with self._changed:
            for span in spans:
                size_bytes = approximate_bytes(span)
                full = len(self._queue) >= limits.queue_spans_max
                if self._closed or full or self._queue_bytes + size_bytes > limits.queue_bytes_max:
                    self._dropped += 1
                    continue
                self._queue.append(span)
                self._queue_bytes += size_bytes
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Send what is queued without waiting for company. True when nothing is left; blocks up to `timeout_s`."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._queue and not self._sending, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Flush, then stop. False when time ran out first; what was left is counted as dropped. May be repeated."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        in_time = not self._thread.is_alive()
        with self._changed:
            self._dropped += len(self._queue)
            self._queue.clear()
            self._queue_bytes = 0
        if not in_time and not self._aborted:
            # Wakes a retry that waits for its turn, so that the thread ends soon all the same.
            self._aborted = True
            self._exporter.shutdown()  # type: ignore[no-untyped-call]
        return in_time

    def statistics(self) -> ExportStatistics:
        """The counts as of now."""
        with self._changed:
            queued = len(self._queue) + self._sending
            return ExportStatistics(queued, self._exported, self._dropped, self._failed, self._last_error)

    def _run(self) -> None:
        self._errors.follow_this_thread()
        while batch := self._next_batch():
            exported, error = self._send(batch)
            with self._changed:
                if error is not None and self._last_error is None:
                    _log.warning("traces do not reach %s: %s", self._where, error)
                elif error is None and self._last_error is not None:
                    _log.warning("traces reach %s again; %d spans were lost", self._where, self._failed)
                self._exported += exported
                self._failed += len(batch) - exported
                self._last_error = error
                self._sending = 0
                self._changed.notify_all()
        self._exporter.shutdown()  # type: ignore[no-untyped-call]
        _sdk_logger.removeFilter(self._errors)

    def _next_batch(self) -> list[Span]:
        """Up to a batch of spans; empty when closed and nothing is left."""
        limits = self._limits
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if len(self._queue) < limits.batch_spans_max and not self._closed and not self._hurry:
                self._changed.wait_for(
                    lambda: len(self._queue) >= limits.batch_spans_max or self._closed or self._hurry, limits.delay_s
                )
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), limits.batch_spans_max))]
            self._queue_bytes -= sum(approximate_bytes(span) for span in batch)
            self._sending = len(batch)
            if not self._queue:
                self._hurry = False
            return batch

    def _send(self, batch: list[Span]) -> tuple[int, str | None]:
        readable = [converted for span in batch if (converted := self._readable(span)) is not None]
        if not readable:
            return 0, "no span could be put in OTLP"
        self._errors.last = None
        try:
            result = self._exporter.export(readable)
        except Exception as error:  # The SDK promises not to; the thread must outlive a broken promise.
            return 0, type(error).__name__
        if result is not SpanExportResult.SUCCESS:
            return 0, self._errors.last or "no answer"
        return len(readable), None

    def _readable(self, span: Span) -> ReadableSpan | None:
        try:
            trace_id = int(span.trace_id, 16)
            parent = None if span.parent_span_id is None else int(span.parent_span_id, 16)
            outcome = span.attributes.get(Attr.OUTCOME)
            description = str(outcome) if span.error and outcome is not None else None
            return ReadableSpan(
                name=str(span.name),
                context=SpanContext(trace_id, int(span.span_id, 16), is_remote=False, trace_flags=_SAMPLED),
                parent=None if parent is None else SpanContext(trace_id, parent, is_remote=False, trace_flags=_SAMPLED),
                resource=self._resource(span.server, str(span.role)),
                attributes=_span_attributes(span),
                events=[Event(event.name, _otlp_attributes(event.attributes), event.at_ns) for event in span.events],
                kind=_KINDS.get(span.name, SpanKind.INTERNAL),
                status=Status(StatusCode.ERROR, description) if span.error else _UNSET,
                start_time=span.start_ns,
                end_time=span.end_ns,
                instrumentation_scope=_SCOPE,
            )
        except (ValueError, TypeError, AttributeError):
            # A span nobody validated; it is counted as failed, and its neighbours go out.
            return None

    def _resource(self, server: str, role: str) -> Resource:
        resource = self._resources.get((server, role))
        if resource is None:
            if len(self._resources) >= _RESOURCES_MAX:
                self._resources.clear()
            resource = self._resources[server, role] = Resource(
                {
                    "service.name": self._service_name,
                    "service.instance.id": server,
                    Attr.ROLE: role,
                }
            )
        return resource


def _span_attributes(span: Span) -> dict[str, AttributeValue]:
    # On the span too, since viewers show a span's attributes beside its bar, and its resource seldom.
    attributes = _otlp_attributes(span.attributes)
    attributes.setdefault(Attr.SERVER, span.server)
    attributes.setdefault(Attr.ROLE, str(span.role))
    return attributes


def _otlp_attributes(attributes: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
    return {name: _otlp_value(value) for name, value in attributes.items()}


def _otlp_value(value: AttributeValue) -> AttributeValue:
    if isinstance(value, str):
        # Protobuf strings are UTF-8; a lone surrogate would cost the whole batch.
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return hex(value)[:64]
    return value
