"""Where the time of a sharded request goes, by the spans of its trace. Pure.

The clocks are those of one machine. What passes before the ingress has the head and after it has sent the answer is
not in a trace: it is the difference to what the client saw.
"""

import statistics
from collections.abc import Iterable, Sequence

from tracing.summary import root_of
from tracing.trace import Span, SpanName

#: The parts of a sharded request, in order. Together they are its root span.
PARTS = ("ingress to Server", "route", "offer", "out to the guest", "guest", "back to the Server", "Server to client")


def parts_ms(spans: Sequence[Span]) -> dict[str, float] | None:
    """How long each of ``PARTS`` took; None for a trace that is not of a sharded request, or not whole."""
    root = root_of(spans)
    by_name = {span.name: span for span in spans}
    found = [by_name.get(name) for name in (SpanName.ROUTE, SpanName.HOP, SpanName.HANDLER)]
    if root is None or None in found:
        return None
    route, hop, guest = (span for span in found if span is not None)
    on_the_way = (route.start_ns, route.end_ns, hop.start_ns, guest.start_ns, guest.end_ns, hop.end_ns)
    moments = (root.start_ns, *on_the_way, root.end_ns)
    return {part: (end - begin) / 1e6 for part, begin, end in zip(PARTS, moments[:-1], moments[1:], strict=True)}


def medians_ms(traces: Iterable[Sequence[Span]]) -> dict[str, float]:
    """The median of each part, and of the root span as ``request``; empty without one sharded request."""
    found = [(parts, sum(parts.values())) for spans in traces if (parts := parts_ms(spans)) is not None]
    if not found:
        return {}
    medians = {part: statistics.median(parts[part] for parts, _ in found) for part in PARTS}
    return {**medians, "request": statistics.median(whole for _, whole in found)}
