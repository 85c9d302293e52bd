"""Metric families to an OpenTelemetry backend, by OTLP over HTTP (protobuf), in a thread of their own.

The SDK's meters are not used: our numbers are counted elsewhere, in several processes, and come here as they are. What
is used is its exporter and its values. Numbers are cumulative, so only the latest ones matter: what waits while a
backend does not answer is one batch, and the next one takes its place.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    HistogramDataPoint,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from tracing.metrics import Distribution, Family, Kind, Point
from tracing.otlp_url import metrics_endpoint
from tracing.sdk_errors import ErrorsOfThread

_log = logging.getLogger(__name__)
_sdk_logger = logging.getLogger("opentelemetry.exporter.otlp.proto.http.metric_exporter")
_SCOPE: Final = InstrumentationScope("everwarm")
#: For one batch with all its retries: less than the time until the next one.
_REQUEST_S_MAX: Final = 10.0
_CUMULATIVE: Final = AggregationTemporality.CUMULATIVE


@dataclass(frozen=True, slots=True)
class MetricsStatistics:
    """Batches since the start. ``replaced``: a newer one came before they were sent."""

    exported: int
    failed: int
    replaced: int
    last_error: str | None


class OtlpMetrics:
    """Sends families in the background. `export` never blocks or raises; `statistics` says what became of them.

    `url`: base or full, see `otlp_url`. `headers` go with every request and are never logged. `server` is told as
    `service.instance.id`.
    """

    def __init__(
        self, url: str, server: str, *, headers: Mapping[str, str] | None = None, service_name: str = "everwarm"
    ) -> None:
        endpoint = metrics_endpoint(url)
        self._where = urlsplit(endpoint).hostname or "?"
        self._resource = Resource({"service.name": service_name, "service.instance.id": server})
        self._exporter = OTLPMetricExporter(
            endpoint=endpoint, headers=dict(headers or {}), timeout=_REQUEST_S_MAX, compression=Compression.Gzip
        )
        self._changed = threading.Condition()
        self._next: MetricsData | None = None
        self._closed = False
        self._exported = self._failed = self._replaced = 0
        self._last_error: str | None = None
        self._errors = ErrorsOfThread()
        _sdk_logger.addFilter(self._errors)
        self._thread = threading.Thread(target=self._run, name="otlp-metrics", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<OtlpMetrics to {self._where}: {self.statistics()}>"

    def export(self, families: Sequence[Family], now_ns: int) -> None:
        """Send `families` as of `now_ns` (unix), instead of what still waits."""
        metrics = [_metric(family, now_ns) for family in families]
        data = MetricsData([ResourceMetrics(self._resource, [ScopeMetrics(_SCOPE, metrics, "")], "")])
        with self._changed:
            self._replaced += self._next is not None
            if not self._closed:
                self._next = data
            self._changed.notify_all()

    def close(self, timeout_s: float) -> bool:
        """Send what waits, then stop. False when time ran out first. May be repeated."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._exporter.shutdown()  # wakes a retry that waits for its turn
            return False
        return True

    def statistics(self) -> MetricsStatistics:
        """The counts as of now."""
        with self._changed:
            return MetricsStatistics(self._exported, self._failed, self._replaced, self._last_error)

    def _run(self) -> None:
        self._errors.follow_this_thread()
        while (data := self._take()) is not None:
            error = self._send(data)
            with self._changed:
                if error is not None and self._last_error is None:
                    _log.warning("metrics do not reach %s: %s", self._where, error)
                elif error is None and self._last_error is not None:
                    _log.warning("metrics reach %s again", self._where)
                self._exported += error is None
                self._failed += error is not None
                self._last_error = error
        _sdk_logger.removeFilter(self._errors)

    def _take(self) -> MetricsData | None:
        with self._changed:
            self._changed.wait_for(lambda: self._next is not None or self._closed)
            data, self._next = self._next, None
            return data

    def _send(self, data: MetricsData) -> str | None:
        self._errors.last = None
        try:
            result = self._exporter.export(data)
        except Exception as error:  # the SDK promises not to; the thread must outlive a broken promise
            return type(error).__name__
        return None if result is MetricExportResult.SUCCESS else self._errors.last or "no answer"


def _metric(family: Family, now_ns: int) -> Metric:
    points = family.bounded().points
    if family.kind is Kind.HISTOGRAM:
        distributions = [_distribution(point, now_ns) for point in points if isinstance(point.value, Distribution)]
        return Metric(family.name, family.about, family.unit, HistogramData(distributions, _CUMULATIVE))
    numbers = [
        NumberDataPoint(dict(point.labels), point.since_ns, now_ns, point.value)
        for point in points
        if not isinstance(point.value, Distribution)
    ]
    counts = family.kind is Kind.COUNTER
    data = Sum(numbers, _CUMULATIVE, is_monotonic=True) if counts else Gauge(numbers)
    return Metric(family.name, family.about, family.unit, data)


def _distribution(point: Point, now_ns: int) -> HistogramDataPoint:
    value = point.value
    assert isinstance(value, Distribution)
    # The least and the most are not counted, and need not be told.
    return HistogramDataPoint(
        dict(point.labels), point.since_ns, now_ns, sum(value.counts), value.sum, value.counts, value.bounds,
        min=None, max=None,  # type: ignore[arg-type]
    )  # fmt: skip
