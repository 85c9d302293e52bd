"""One trace in one line: which request it was, how it ended, where it ran, and what it cost.

Pure. The spans of a trace come from several machines in any order, some may be missing; a summary is the best that
can be said from those that are there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tracing.trace import Attr, AttributeValue, Role, Span, SpanName

# The start that tells most about a request comes first: one cold stage makes the tree a cold one.
_START_TYPES = ("cold", "prewarm", "preload", "warm")


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """`start_ns`: unix. None: no span told. `duration_ms`: the root's, or from the first start to the last end.

    `server`: the machine that got the request; `ran_on`: where its guest ran; `home`: the ring's answer.
    `hop`: it ran on another machine than it came to. `refused`: why a home gave it back. `complete`: the root is there.
    `sampled`: whoever made the root wants to keep the trace; else it is kept for what is remarkable below it.
    """

    trace_id: str
    start_ns: int
    duration_ms: float
    method: str | None
    host: str | None
    path: str | None
    status: int | None
    outcome: str | None
    start_type: str | None
    cold_cause: str | None
    worker: str | None
    version: str | None
    request_id: str | None
    server: str | None
    ran_on: str | None
    home: str | None
    hop: bool
    refused: str | None
    cpu_ms: float | None
    queue_ms: float | None
    spans: int
    error: bool
    complete: bool
    sampled: bool = True


def root_of(spans: Iterable[Span]) -> Span | None:
    """The span a trace hangs from: a `request` whose parent is not among `spans`.

    A nested stage whose caller has not reported yet looks the same, so the ingress goes first, then a Server (a
    request submitted by a driver), then whoever started earliest.
    """
    listed = list(spans)
    known = {span.span_id for span in listed}
    candidates = [span for span in listed if span.name == SpanName.REQUEST and span.parent_span_id not in known]
    return min(candidates, key=_root_rank, default=None)


def _root_rank(span: Span) -> tuple[int, int, str]:
    rank = 0 if span.role == Role.INGRESS else 1 if span.role == Role.SERVER else 2
    return rank, span.start_ns, span.span_id


def is_sampled(root: Span | None) -> bool:
    """Whether whoever made the root wants to keep the trace. Nobody else says that it is not wanted."""
    return root is None or root.attributes.get(Attr.SAMPLED) is not False


def in_order(spans: Iterable[Span]) -> list[Span]:
    """By start; of those that start together the longer first, which is the parent where clocks agree."""
    return sorted(spans, key=lambda span: (span.start_ns, -span.end_ns, span.span_id))


def summarize(spans: Iterable[Span]) -> TraceSummary:
    """The summary of one trace's spans. ValueError when there are none."""
    ordered = in_order(spans)
    if not ordered:
        raise ValueError("a trace has at least one span")
    root = root_of(ordered)
    # The root speaks first; a phase only fills what it left out.
    speakers = ordered if root is None else [root, *ordered]

    def first(name: str) -> AttributeValue | None:
        return next((span.attributes[name] for span in speakers if name in span.attributes), None)

    start_types = {span.attributes[Attr.START_TYPE] for span in ordered if Attr.START_TYPE in span.attributes}
    start_type = next((kind for kind in _START_TYPES if kind in start_types), _text(first(Attr.START_TYPE)))
    handlers = [span for span in ordered if span.name == SpanName.HANDLER]
    server = root.server if root is not None else None
    ran_on = _text(first(Attr.SERVER)) or (handlers[0].server if handlers else None)
    cpu_ms = _number(root.attributes.get(Attr.CPU_MS)) if root is not None else None
    if cpu_ms is None:
        parts = [value for span in handlers if (value := _number(span.attributes.get(Attr.CPU_MS))) is not None]
        cpu_ms = sum(parts) if parts else None
    status = first(Attr.HTTP_STATUS)
    start_ns = root.start_ns if root is not None else ordered[0].start_ns
    end_ns = root.end_ns if root is not None else max(span.end_ns for span in ordered)
    return TraceSummary(
        trace_id=ordered[0].trace_id,
        start_ns=start_ns,
        duration_ms=(end_ns - start_ns) / 1e6,
        method=_text(first(Attr.HTTP_METHOD)),
        host=_text(first(Attr.SERVER_ADDRESS)),
        path=_text(first(Attr.URL_PATH)),
        status=status if isinstance(status, int) else None,
        outcome=_text(first(Attr.OUTCOME)),
        start_type=start_type,
        cold_cause=_text(first(Attr.COLD_CAUSE)),
        worker=_text(first(Attr.WORKER)),
        version=_text(first(Attr.VERSION)),
        request_id=_text(first(Attr.REQUEST_ID)),
        server=server,
        ran_on=ran_on,
        home=_text(first(Attr.HOME)),
        hop=any(span.attributes.get(Attr.HOP) is True for span in ordered),
        refused=_text(
            next((span.attributes[Attr.REFUSED] for span in ordered if Attr.REFUSED in span.attributes), None)
        ),
        cpu_ms=cpu_ms,
        queue_ms=_number(first(Attr.QUEUE_MS)),
        spans=len(ordered),
        error=any(span.error for span in ordered),
        complete=root is not None,
        sampled=is_sampled(root),
    )


def _text(value: AttributeValue | None) -> str | None:
    return None if value is None else str(value)


def _number(value: AttributeValue | None) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
