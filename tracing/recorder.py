"""Makes the spans of one role for one request.

Ids need randomness and spans need a clock; both are passed in, so a recorder is as deterministic as its maker.
"""

from __future__ import annotations

from collections.abc import Callable

from tracing.trace import (
    SPAN_ID_BYTES,
    TRACE_ID_BYTES,
    AttributeValue,
    Span,
    SpanEvent,
    SpanName,
    TraceContext,
    new_span_id,
    new_trace_id,
    parse_traceparent,
)

#: The parent of a span with which a trace starts.
NO_PARENT = ""


class Recorder:
    """The spans that one role adds to one trace, below the span that ``context`` names. Of a trace that is not sampled
    there are none: its ids are passed on, and nothing is told."""

    __slots__ = ("_entropy", "context", "role", "server", "spans")

    def __init__(self, context: TraceContext, server: str, role: str, entropy: Callable[[int], bytes]) -> None:
        self.context = context
        self.server = server
        self.role = role
        self._entropy = entropy
        self.spans: list[Span] = []

    @classmethod
    def under(cls, traceparent: str, server: str, role: str, entropy: Callable[[int], bytes]) -> Recorder:
        """A recorder below ``traceparent``; below a trace of its own when that is none."""
        context = parse_traceparent(traceparent) or TraceContext(
            new_trace_id(entropy(TRACE_ID_BYTES)), new_span_id(entropy(SPAN_ID_BYTES)), True
        )
        return cls(context, server, role, entropy)

    def new_id(self) -> str:
        """An id for a span that is named to others before it is over."""
        return new_span_id(self._entropy(SPAN_ID_BYTES))

    def span(
        self,
        name: SpanName,
        start_ns: int,
        end_ns: int,
        attributes: dict[str, AttributeValue] | None = None,
        *,
        span_id: str | None = None,
        parent: str | None = None,
        events: tuple[SpanEvent, ...] = (),
        error: bool = False,
    ) -> None:
        """Add a span. ``span_id`` if it was named before; ``parent`` if it is not the context's, or ``NO_PARENT``."""
        if not self.context.sampled:
            return
        made = Span(
            self.context.trace_id,
            span_id or self.new_id(),
            (parent or None) if parent is not None else self.context.span_id,
            name,
            start_ns,
            max(start_ns, end_ns),
            self.server,
            self.role,
            attributes or {},
            events,
            error,
        )
        self.spans.append(made)
