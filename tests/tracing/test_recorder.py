from tracing.recorder import NO_PARENT, Recorder
from tracing.trace import Role, SpanName, parse_traceparent

TRACE = "0af7651916cd43dd8448eb211c80319c"


def recorder(traceparent: str) -> Recorder:
    return Recorder.under(traceparent, "server-1", Role.SERVER, lambda count: bytes([7]) * count)


def test_spans_hang_below_the_one_that_is_named() -> None:
    made = recorder(f"00-{TRACE}-b7ad6b7169203331-01")
    made.span(SpanName.QUEUE, 5, 3)
    made.span(SpanName.REQUEST, 1, 9, span_id="1" * 16, parent=NO_PARENT)
    made.span(SpanName.HOP, 2, 8, parent="1" * 16)
    queue, root, hop = made.spans
    assert (queue.trace_id, queue.parent_span_id, queue.span_id) == (TRACE, "b7ad6b7169203331", "07" * 8)
    assert (queue.start_ns, queue.end_ns) == (5, 5)  # no span ends before it began
    assert (root.span_id, root.parent_span_id, hop.parent_span_id) == ("1" * 16, None, "1" * 16)


def test_without_a_trace_one_begins() -> None:
    made = recorder("")
    made.span(SpanName.QUEUE, 1, 2)
    assert made.context.sampled
    assert made.spans[0].trace_id == "07" * 16


def test_of_a_trace_that_is_not_sampled_there_are_no_spans_and_its_ids_go_on() -> None:
    made = recorder(f"00-{TRACE}-b7ad6b7169203331-00")
    made.span(SpanName.QUEUE, 1, 2)
    assert made.spans == []
    below = parse_traceparent(made.context.child(made.new_id()).traceparent())
    assert below is not None
    assert (below.trace_id, below.sampled) == (TRACE, False)
