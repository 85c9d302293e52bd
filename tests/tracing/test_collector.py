from hypothesis import given
from hypothesis import strategies as st

from tracing.collector import Collector, CollectorLimits, CollectorStatistics, CompletedTrace
from tracing.sampling import Sampler, SamplingRates
from tracing.summary import in_order
from tracing.trace import Attr, AttributeValue, EventName, Role, Span, SpanEvent, SpanName

MS = 1_000_000
NOTHING = SamplingRates(steady_per_s=0, ratio=0)


def a_trace(number: int, phases: int = 3, announce: bool = False, **root: AttributeValue) -> list[Span]:
    """A root and `phases` handlers under it; span ids are unique in the trace."""
    trace_id, root_id = f"{number:032x}", f"{1:016x}"
    attributes: dict[str, AttributeValue] = {Attr.OUTCOME: "ok", Attr.START_TYPE: "warm"}
    attributes.update({getattr(Attr, name.upper()): value for name, value in root.items()})
    if announce:
        attributes[Attr.STAGES] = phases + 1
    start_ns = number * MS
    spans = [
        Span(trace_id, root_id, None, SpanName.REQUEST, start_ns, start_ns + MS, "server-1", Role.INGRESS, attributes)
    ]
    for index in range(phases):
        spans.append(
            Span(
                trace_id,
                f"{index + 2:016x}",
                root_id,
                SpanName.HANDLER,
                start_ns + index,
                start_ns + MS // 2,
                "server-2",
                Role.ISOLATE_HOST,
            )
        )
    return spans


def exported(batches: list[CompletedTrace]) -> dict[str, tuple[Span, ...]]:
    return {batch.trace_id: batch.spans for batch in batches}


def test_an_announced_trace_is_complete_at_once() -> None:
    collector = Collector()
    spans = a_trace(1, announce=True)
    collector.report(spans[1:], 0.0)
    assert collector.tick(0.0) == []
    collector.report(spans[:1], 0.1)
    (completed,) = collector.tick(0.1)
    assert completed.spans == tuple(in_order(spans))
    assert (completed.late, completed.summary.complete, completed.summary.spans) == (False, True, 4)
    assert collector.tick(99.0) == []


def test_without_an_announcement_the_grace_period_after_the_root_decides() -> None:
    collector = Collector(CollectorLimits(grace_s=2, rootless_s=60))
    spans = a_trace(1)
    collector.report(spans[1:2], 0.0)
    collector.report(spans[:1], 5.0)
    assert collector.tick(6.9) == []
    collector.report(spans[2:], 6.9)
    assert exported(collector.tick(7.0)) == {spans[0].trace_id: tuple(in_order(spans))}


def test_a_lost_report_does_not_hold_back_the_rest() -> None:
    collector = Collector(CollectorLimits(grace_s=2))
    spans = a_trace(1, announce=True)
    collector.report(spans[:2], 0.0)
    assert collector.tick(1.9) == []
    (completed,) = collector.tick(2.0)
    assert len(completed.spans) == 2


def test_a_trace_whose_root_never_comes_is_told_as_far_as_known() -> None:
    collector = Collector(CollectorLimits(rootless_s=60))
    collector.report(a_trace(1)[1:], 0.0)
    assert collector.tick(59.9) == []
    (completed,) = collector.tick(60.0)
    assert (completed.summary.complete, len(completed.spans)) == (False, 3)
    assert collector.statistics().rootless == 1


def test_late_spans_follow_as_a_further_batch() -> None:
    collector = Collector()
    spans = a_trace(1, phases=4, announce=False)
    collector.report(spans[:3], 0.0)
    assert [batch.late for batch in collector.tick(2.0)] == [False]
    collector.report(spans[3:4], 3.0)
    collector.report(spans[4:], 3.0)
    (late,) = collector.tick(3.0)
    assert (late.late, late.spans, late.summary.spans) == (True, tuple(spans[3:]), 5)
    assert collector.get(spans[0].trace_id) == in_order(spans)
    assert collector.statistics().late == 2
    assert collector.tick(99.0) == []


def test_doubled_spans_count_once_open_and_after() -> None:
    collector = Collector()
    spans = a_trace(1)
    collector.report(spans + spans, 0.0)
    (completed,) = collector.tick(2.0)
    collector.report(spans, 3.0)
    assert collector.tick(3.0) == []
    assert len(completed.spans) == 4
    assert collector.statistics().doubled == 8


@given(st.data())
def test_any_order_doubling_and_grouping_gives_the_same_traces(data: st.DataObject) -> None:
    traces = [
        a_trace(number, data.draw(st.integers(0, 4)), data.draw(st.booleans()))
        for number in range(1, data.draw(st.integers(2, 5)))
    ]
    expected = {spans[0].trace_id: tuple(in_order(spans)) for spans in traces}
    everything = [span for spans in traces for span in spans]
    doubles = data.draw(st.lists(st.sampled_from(everything), max_size=5))
    arriving = data.draw(st.permutations(everything + doubles))
    collector = Collector()
    while arriving:
        size = data.draw(st.integers(1, len(arriving)))
        collector.report(arriving[:size], 0.5)
        arriving = arriving[size:]
    assert exported(collector.tick(2.5)) == expected
    statistics = collector.statistics()
    assert (statistics.kept, statistics.open, statistics.ready) == (len(traces), 0, 0)
    assert statistics.doubled == len(doubles)


@given(st.data())
def test_ticks_in_between_split_batches_but_lose_and_double_nothing(data: st.DataObject) -> None:
    everything = [span for number in range(1, 4) for span in a_trace(number, 3, data.draw(st.booleans()))]
    arriving = data.draw(st.permutations(everything))
    collector = Collector(sampler=data.draw(st.sampled_from([None, Sampler(SamplingRates(steady_per_s=100))])))
    out: list[Span] = []
    now_s = 0.0
    for span in arriving:
        now_s += data.draw(st.sampled_from([0.0, 1.0, 3.0, 70.0]))
        collector.report([span], now_s)
        if data.draw(st.booleans()):
            out += [span for batch in collector.tick(now_s) for span in batch.spans]
    out += [span for batch in collector.flush(now_s) for span in batch.spans]
    assert in_order(out) == in_order(everything)


def test_a_nested_stage_that_reports_first_is_not_taken_for_the_root() -> None:
    root, *_ = a_trace(1)
    handler = Span(
        root.trace_id, f"{7:016x}", root.span_id, SpanName.HANDLER, MS, 2 * MS, "server-1", Role.ISOLATE_HOST
    )
    nested = Span(root.trace_id, f"{8:016x}", handler.span_id, SpanName.REQUEST, MS, 2 * MS, "server-2", Role.SERVER)
    collector = Collector()
    collector.report([nested], 0.0)
    collector.report([handler, root], 1.0)
    (completed,) = collector.tick(2.0)
    assert completed.summary.server == "server-1"
    assert len(completed.spans) == 3


def test_sampled_out_traces_are_not_exported_nor_are_their_late_spans() -> None:
    collector = Collector(sampler=Sampler(NOTHING))
    spans = a_trace(1, announce=True)
    collector.report(spans, 0.0)
    extra = Span(spans[0].trace_id, "f" * 16, spans[0].span_id, SpanName.RESPOND, MS, 2 * MS, "server-1", Role.INGRESS)
    collector.report([extra], 1.0)
    assert collector.tick(99.0) == []
    assert collector.recent(10) == []
    assert (collector.statistics().sampled_out, collector.statistics().kept) == (1, 0)


def test_a_late_failure_rescues_a_sampled_out_trace_whole() -> None:
    collector = Collector(sampler=Sampler(NOTHING))
    spans = a_trace(1, announce=True)
    collector.report(spans, 0.0)
    failed = Span(
        spans[0].trace_id,
        "f" * 16,
        spans[0].span_id,
        SpanName.HANDLER,
        MS,
        2 * MS,
        "server-1",
        Role.ISOLATE_HOST,
        error=True,
    )
    collector.report([failed], 1.0)
    (completed,) = collector.tick(1.0)
    assert (len(completed.spans), completed.late, completed.summary.error) == (5, False, True)
    assert [summary.trace_id for summary in collector.recent(10)] == [spans[0].trace_id]
    statistics = collector.statistics()
    assert (statistics.completed, statistics.kept, statistics.sampled_out, statistics.rescued) == (1, 1, 1, 1)


def test_recent_and_get() -> None:
    collector = Collector()
    for number in (0x1A, 0x2B, 0x3C):
        collector.report(a_trace(number << 120, announce=True), 0.0)
    newest = [summary.trace_id[:2] for summary in collector.recent(2)]
    assert newest == ["3c", "2b"]
    assert [span.trace_id[:2] for span in collector.get("2B")] == ["2b"] * 4
    assert collector.get("4") == []
    assert collector.get("") == []
    assert collector.recent(0) == []
    assert collector.recent(-1) == []
    collector.report(a_trace(0x4D << 120), 0.0)
    assert len(collector.get("4d")) == 4
    assert len(collector.recent(10)) == 3


def test_the_open_table_is_bounded_and_the_oldest_completes_early() -> None:
    collector = Collector(CollectorLimits(open_traces_max=3))
    for number in range(1, 6):
        collector.report(a_trace(number), 0.0)
    statistics = collector.statistics()
    assert (statistics.open, statistics.early, statistics.ready) == (3, 2, 2)
    assert set(exported(collector.tick(0.0))) == {f"{1:032x}", f"{2:032x}"}


def test_bytes_are_bounded_everywhere() -> None:
    log = tuple(SpanEvent(EventName.LOG, 1, {Attr.LOG_TEXT: "x" * 1000}) for _ in range(10))
    limits = CollectorLimits(
        open_bytes_max=40_000, ready_bytes_max=40_000, recent_bytes_max=40_000, unsampled_bytes_max=40_000
    )
    for sampler in (None, Sampler(NOTHING)):
        collector = Collector(limits, sampler)
        for number in range(1, 50):
            root, *_ = a_trace(number)
            collector.report([root], 0.0)
            loud = Span(root.trace_id, "e" * 16, root.span_id, SpanName.HANDLER, 1, 2, "s", Role.ISOLATE_HOST, {}, log)
            collector.report([loud], 0.0)
            assert collector.statistics().held_bytes <= 4 * 40_000
    assert collector.statistics().open <= 3


def test_a_trace_holds_so_many_spans_and_its_root() -> None:
    collector = Collector(CollectorLimits(spans_per_trace_max=10))
    spans = a_trace(1, phases=30, announce=True)
    collector.report(spans[1:], 0.0)
    collector.report(spans[:1], 0.0)
    (completed,) = collector.tick(0.0)
    assert len(completed.spans) == 11
    assert completed.summary.complete
    assert collector.statistics().dropped_spans == 20
    collector.report(a_trace(1, phases=40)[31:], 1.0)
    assert collector.statistics().dropped_spans == 30


def test_a_flow_nobody_takes_from_is_dropped_and_counted() -> None:
    collector = Collector(CollectorLimits(ready_traces_max=2, recent_traces_max=3))
    for number in range(1, 8):
        collector.report(a_trace(number, announce=True), 0.0)
    assert set(exported(collector.tick(0.0))) == {f"{1:032x}", f"{2:032x}"}
    assert collector.statistics() == CollectorStatistics(
        open=0,
        ready=0,
        remembered=3,
        held_bytes=collector.statistics().held_bytes,
        completed=7,
        kept=7,
        sampled_out=0,
        rescued=0,
        early=0,
        rootless=0,
        doubled=0,
        late=0,
        dropped_spans=0,
        dropped_traces=5,
    )
    assert len(collector.recent(10)) == 3


def test_a_span_for_a_ready_trace_goes_with_it() -> None:
    collector = Collector()
    spans = a_trace(1, announce=True)
    extra = Span(spans[0].trace_id, "f" * 16, spans[0].span_id, SpanName.RESPOND, MS, 2 * MS, "server-1", Role.INGRESS)
    collector.report(spans, 0.0)
    collector.report([extra], 0.0)
    (completed,) = collector.tick(0.0)
    assert len(completed.spans) == 5
    assert not completed.late
    assert collector.statistics().ready == 0


def test_a_lying_announcement_is_ignored() -> None:
    for stages in (True, "4", 4.0, 10**9):
        collector = Collector()
        collector.report(a_trace(1, stages=stages), 0.0)
        assert collector.tick(1.9) == []
        assert len(collector.tick(2.0)) == 1


def test_flush_hands_out_what_is_open() -> None:
    collector = Collector()
    collector.report(a_trace(1)[1:], 0.0)
    collector.report(a_trace(2), 0.0)
    assert len(collector.flush(0.0)) == 2
    assert collector.statistics().open == 0
