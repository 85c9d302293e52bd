"""TraceDesk: one machine's traces. Reports come from its ingress and its drivers, whole traces go to an exporter.

Nothing here is on a request's path: a report that is lost or malformed costs its trace and nothing else.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

from actors.peer import Calls
from actors.view import decode_plain, encode_plain
from tracing.collector import Collector, CompletedTrace
from tracing.export import OtlpExporter
from tracing.sampling import TreeSampler
from tracing.trace import Span
from tracing.wire import encode_spans

_log = logging.getLogger("everwarm.traces")

_TICK_S = 0.1

#: Makes an exporter for a URL and headers.
MakeExporter = Callable[[str, dict[str, str]], OtlpExporter]


def otlp_exporter(url: str, headers: dict[str, str]) -> OtlpExporter:
    """The exporter that ``MakeExporter`` is unless a test says otherwise."""
    return OtlpExporter(url, headers=headers)


class TraceDesk:
    """Where a machine's traces are gathered, looked at, and sent on from."""

    def __init__(self, exporter: OtlpExporter | None, make_exporter: MakeExporter) -> None:
        self._exporter = self._configured = exporter
        self._make_exporter = make_exporter
        self._collector = Collector(sampler=TreeSampler())
        self.calls: Calls = {"traces": self.traces, "export_to": self.export_to, "trace": self.trace}

    def report(self, spans: list[Span]) -> None:
        """Take spans of one or more requests."""
        self._collector.report(spans, time.monotonic())

    def statistics(self) -> dict[str, object]:
        """What became of traces, and of spans on their way to a backend; the latter is empty without one."""
        exporter = self._exporter
        exported = {} if exporter is None else asdict(exporter.statistics())
        return {**asdict(self._collector.statistics()), "export": exported}

    async def gather(self) -> None:
        """Export traces as they become complete, until this is cancelled."""
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                self._export(self._collector.tick(time.monotonic()))
            except Exception:
                _log.exception("traces were not exported")  # and the next ones are tried

    async def close(self) -> None:
        """Export what was gathered."""
        self._export(self._collector.flush(time.monotonic()))
        for exporter in {self._exporter, self._configured}:
            if exporter is not None:
                await asyncio.to_thread(exporter.close, 5.0)

    def _export(self, completed: Sequence[CompletedTrace]) -> None:
        if self._exporter is not None:
            for trace in completed:
                self._exporter.export(trace.spans)

    async def export_to(self, payload: bytes) -> bytes:
        """Send traces to another backend from now on, or with an empty ``url`` to the configured one again."""
        plain = decode_plain(payload)
        old = self._exporter
        self._exporter = self._make_exporter(plain["url"], plain["headers"]) if plain["url"] else self._configured
        if old is not None and old is not self._configured:
            await asyncio.to_thread(old.close, 2.0)
        return b""

    async def traces(self, payload: bytes) -> bytes:
        """Summaries of the latest traces: ``{"limit": n}`` -> a list of plain summaries, newest first."""
        return encode_plain(self._collector.recent(int(decode_plain(payload)["limit"])))

    async def trace(self, payload: bytes) -> bytes:
        """The spans of one trace by the beginning of its id, as a report (``tracing.wire``)."""
        return encode_spans(self._collector.get(str(decode_plain(payload)["trace_id"])))
