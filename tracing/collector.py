"""Many reporters, one flow: spans of one request come from several processes and leave as one trace.

    report()            tick()
    ────────►  open  ─────────►  kept   ─► handed out once, then remembered for a while
                 │                 ▲
                 │      rescued    │
                 └──────────►  sampled out  ─► remembered for a shorter while

A trace is OPEN from its first span. It is complete when its root is there and as many spans as the root announced
(`everwarm.stages`: spans of this trace, the root included); without an announcement, or when a report was lost, a
grace period after the root came. A trace whose root never comes (its reporter died, or the request still runs) is
complete after a longer wait: what is known of it is better than nothing.

The sampler is asked once, at completion. A late span joins a remembered trace: if the trace was kept, the span is
handed out as a further batch, since an OTLP backend joins by trace id; if it was sampled out and the span makes it
remarkable (an error in what ran after the response), the whole trace is kept after all. A span that arrives twice
counts once, by its id.

Rules: every span is handed out at most once while its trace is remembered. The order of reports changes nothing but
the moment. Nothing grows without bound, and what a bound threw away is counted. A trace pushed out of the open table
is completed early rather than lost. No clock in here: `now_s` is any clock that does not run backwards.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tracing.sampling import Sampler, TreeSampler
from tracing.summary import TraceSummary, in_order, is_sampled, root_of, summarize
from tracing.trace import Attr, Span, SpanName, approximate_bytes


@dataclass(frozen=True, slots=True)
class CollectorLimits:
    """`open_traces_max`: 2,000 requests a second for `grace_s`, should every one lack its announcement.

    `spans_per_trace_max`: 32 invocations of a tree, 12 kinds of span, and room. `grace_s`: a report leaves its process
    within a second, so two are enough. `rootless_s`: longer than the 30 s a request may run after its client left.
    `ready_*`: what waits for the next tick. `recent_*`: what `recent` and `get` can show. `unsampled_*`: those only
    wait for a late span, for which a few seconds are enough. Bytes are by `approximate_bytes`.
    """

    open_traces_max: int = 4096
    open_bytes_max: int = 32 * 1024 * 1024
    spans_per_trace_max: int = 512
    grace_s: float = 2.0
    rootless_s: float = 60.0
    ready_traces_max: int = 2048
    ready_bytes_max: int = 32 * 1024 * 1024
    recent_traces_max: int = 1000
    recent_bytes_max: int = 32 * 1024 * 1024
    unsampled_traces_max: int = 1000
    unsampled_bytes_max: int = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CompletedTrace:
    """What is to be exported now. `known`: all spans of the trace; `late`: `spans` follow an earlier batch."""

    trace_id: str
    spans: tuple[Span, ...]
    known: tuple[Span, ...]
    late: bool

    @property
    def summary(self) -> TraceSummary:
        """Of all known spans. Made when it is asked for: whoever exports does not ask."""
        return summarize(self.known)


@dataclass(frozen=True, slots=True)
class CollectorStatistics:
    """Counts since the start, except `open`, `ready`, `remembered` and `held_bytes`, which are of this moment.

    `rescued` were sampled out first and are counted as kept too. `early`: completed to make
    room. `rootless`: completed without a root. `doubled` and `late` count spans. `dropped_spans` were over a trace's
    bound; `dropped_traces` found no room to wait for the next tick.
    """

    open: int
    ready: int
    remembered: int
    held_bytes: int
    completed: int
    kept: int
    sampled_out: int
    rescued: int
    early: int
    rootless: int
    doubled: int
    late: int
    dropped_spans: int
    dropped_traces: int


class _Trace:
    __slots__ = ("bytes", "dropped", "exported", "first_s", "fresh", "fresh_bytes", "root_s", "spans", "trace_id")

    def __init__(self, trace_id: str, now_s: float) -> None:
        self.trace_id = trace_id
        self.spans: dict[str, Span] = {}
        self.bytes = 0
        self.dropped = 0
        self.first_s = now_s
        self.root_s: float | None = None
        # Not handed out yet, in order of arrival.
        self.fresh: list[Span] = []
        self.fresh_bytes = 0
        self.exported = False

    def add(self, span: Span, size_bytes: int) -> None:
        self.spans[span.span_id] = span
        self.fresh.append(span)
        self.bytes += size_bytes
        self.fresh_bytes += size_bytes

    def has_all_announced(self) -> bool:
        root = root_of(self.spans.values())
        announced = root.attributes.get(Attr.STAGES) if root is not None else None
        if not isinstance(announced, int) or isinstance(announced, bool):
            return False
        return len(self.spans) + self.dropped >= announced


class _Ring:
    """Traces in the order in which they completed, the oldest forgotten first."""

    def __init__(self, traces_max: int, bytes_max: int) -> None:
        self._traces_max = traces_max
        self._bytes_max = bytes_max
        self.traces: OrderedDict[str, _Trace] = OrderedDict()
        self.bytes = 0

    def put(self, trace: _Trace) -> None:
        self.traces[trace.trace_id] = trace
        self.bytes += trace.bytes
        self.trim()

    def take(self, trace_id: str) -> _Trace:
        trace = self.traces.pop(trace_id)
        self.bytes -= trace.bytes
        return trace

    def grew(self, size_bytes: int) -> None:
        self.bytes += size_bytes
        self.trim()

    def trim(self) -> None:
        while self.traces and (len(self.traces) > self._traces_max or self.bytes > self._bytes_max):
            _, oldest = self.traces.popitem(last=False)
            self.bytes -= oldest.bytes


class Collector:
    """Joins spans to traces. Not thread-safe: it lives on one event loop. Without a sampler every trace is kept."""

    def __init__(
        self,
        limits: CollectorLimits = CollectorLimits(),
        sampler: Sampler | TreeSampler | None = None,
    ) -> None:
        self._limits = limits
        self._sampler = sampler
        self._open: OrderedDict[str, _Trace] = OrderedDict()
        self._open_bytes = 0
        self._ready: dict[str, _Trace] = {}
        self._ready_bytes = 0
        self._recent = _Ring(limits.recent_traces_max, limits.recent_bytes_max)
        self._unsampled = _Ring(limits.unsampled_traces_max, limits.unsampled_bytes_max)
        self._kept = self._sampled_out = self._rescued = self._early = self._rootless = 0
        self._doubled = self._late = self._dropped_spans = self._dropped_traces = 0

    def __repr__(self) -> str:
        return f"<Collector open={len(self._open)} ready={len(self._ready)} recent={len(self._recent.traces)}>"

    def report(self, spans: Sequence[Span], now_s: float) -> None:
        """Take in `spans`, of one trace or of many. Never raises for what they contain."""
        for span in spans:
            trace = self._remembered(span.trace_id)
            if trace is None:
                trace = self._open[span.trace_id] = _Trace(span.trace_id, now_s)
            if span.span_id in trace.spans:
                self._doubled += 1
                continue
            over = len(trace.spans) - self._limits.spans_per_trace_max
            # The root tells what the trace is and comes last, so one `request` above the bound is let in.
            if over > 0 or (over == 0 and span.name != SpanName.REQUEST):
                trace.dropped += 1
                self._dropped_spans += 1
                continue
            size_bytes = approximate_bytes(span)
            trace.add(span, size_bytes)
            if trace.trace_id in self._open:
                self._open_bytes += size_bytes
                if span.name == SpanName.REQUEST and trace.root_s is None:
                    trace.root_s = now_s
            else:
                self._join_late(trace, size_bytes)
        self._complete_announced(dict.fromkeys(span.trace_id for span in spans), now_s)
        self._trim_open(now_s)

    def tick(self, now_s: float) -> list[CompletedTrace]:
        """What is to be exported now: traces that completed since the last tick, and late spans of earlier ones."""
        for trace in [trace for trace in self._open.values() if self._is_due(trace, now_s)]:
            self._complete(trace, now_s)
        completed = [_hand_out(trace) for trace in self._ready.values()]
        self._ready.clear()
        self._ready_bytes = 0
        return completed

    def flush(self, now_s: float) -> list[CompletedTrace]:
        """As `tick`, but every open trace counts as complete. For the end of a process."""
        for trace in list(self._open.values()):
            self._complete(trace, now_s)
        return self.tick(now_s)

    def recent(self, limit: int) -> list[TraceSummary]:
        """Up to `limit` kept traces, the last completed first. Open and sampled-out ones are not among them."""
        newest = list(reversed(self._recent.traces.values()))
        return [summarize(trace.spans.values()) for trace in newest[: max(limit, 0)]]

    def get(self, trace_id_prefix: str) -> list[Span]:
        """The spans of a remembered or open trace, by start; of several that match the newest. Empty: none matches."""
        prefix = trace_id_prefix.lower()
        if not prefix:
            return []
        for traces in (self._recent.traces, self._unsampled.traces, self._open):
            for trace_id in reversed(traces):
                if trace_id.startswith(prefix):
                    return in_order(traces[trace_id].spans.values())
        return []

    def statistics(self) -> CollectorStatistics:
        """The counts as of now."""
        return CollectorStatistics(
            open=len(self._open),
            ready=len(self._ready),
            remembered=len(self._recent.traces) + len(self._unsampled.traces),
            held_bytes=self._open_bytes + self._ready_bytes + self._recent.bytes + self._unsampled.bytes,
            completed=self._kept + self._sampled_out - self._rescued,
            kept=self._kept,
            sampled_out=self._sampled_out,
            rescued=self._rescued,
            early=self._early,
            rootless=self._rootless,
            doubled=self._doubled,
            late=self._late,
            dropped_spans=self._dropped_spans,
            dropped_traces=self._dropped_traces,
        )

    def _remembered(self, trace_id: str) -> _Trace | None:
        for traces in (self._open, self._recent.traces, self._unsampled.traces, self._ready):
            trace = traces.get(trace_id)
            if trace is not None:
                return trace
        return None

    def _join_late(self, trace: _Trace, size_bytes: int) -> None:
        self._late += 1
        if trace.trace_id in self._unsampled.traces:
            if self._sampler is not None and self._sampler.remarkable(summarize(trace.spans.values())):
                self._unsampled.bytes += size_bytes
                self._unsampled.take(trace.trace_id)
                self._rescued += 1
                self._keep(trace)
            else:
                self._unsampled.grew(size_bytes)
            return
        if trace.trace_id in self._ready:
            self._ready_bytes += size_bytes
        else:
            self._make_ready(trace)
        if trace.trace_id in self._recent.traces:
            self._recent.grew(size_bytes)

    def _complete_announced(self, trace_ids: Iterable[str], now_s: float) -> None:
        for trace_id in trace_ids:
            trace = self._open.get(trace_id)
            if trace is not None and trace.root_s is not None and trace.has_all_announced():
                self._complete(trace, now_s)

    def _trim_open(self, now_s: float) -> None:
        limits = self._limits
        while self._open and (len(self._open) > limits.open_traces_max or self._open_bytes > limits.open_bytes_max):
            self._early += 1
            self._complete(next(iter(self._open.values())), now_s)

    def _is_due(self, trace: _Trace, now_s: float) -> bool:
        if trace.root_s is not None and now_s - trace.root_s >= self._limits.grace_s:
            return True
        return now_s - trace.first_s >= self._limits.rootless_s

    def _complete(self, trace: _Trace, now_s: float) -> None:
        del self._open[trace.trace_id]
        self._open_bytes -= trace.bytes
        root = root_of(trace.spans.values())
        if root is None:
            self._rootless += 1
        # Most trees were judged by their edge, and need no summary here.
        wanted = self._sampler is None or (isinstance(self._sampler, TreeSampler) and is_sampled(root))
        if wanted or (self._sampler is not None and self._sampler.keep(summarize(trace.spans.values()), now_s)):
            self._keep(trace)
        else:
            self._sampled_out += 1
            self._unsampled.put(trace)

    def _keep(self, trace: _Trace) -> None:
        self._kept += 1
        self._make_ready(trace)
        self._recent.put(trace)

    def _make_ready(self, trace: _Trace) -> None:
        limits = self._limits
        over = self._ready_bytes + trace.fresh_bytes > limits.ready_bytes_max
        if over or len(self._ready) >= limits.ready_traces_max:
            # Nobody ticks, or not often enough. The trace can still be looked at here.
            self._dropped_traces += 1
            _hand_out(trace)
            return
        self._ready[trace.trace_id] = trace
        self._ready_bytes += trace.fresh_bytes


def _hand_out(trace: _Trace) -> CompletedTrace:
    completed = CompletedTrace(
        trace.trace_id, tuple(in_order(trace.fresh)), tuple(trace.spans.values()), late=trace.exported
    )
    trace.fresh.clear()
    trace.fresh_bytes = 0
    trace.exported = True
    return completed
