import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tracing.summary import TraceSummary, in_order, root_of, summarize
from tracing.trace import Attr, AttributeValue, Role, Span, SpanName

TRACE = "a" * 32
MS = 1_000_000


def span(
    number: int,
    parent: int | None,
    name: SpanName,
    start_ms: float,
    end_ms: float,
    server: str = "server-1",
    role: Role = Role.ISOLATE_HOST,
    error: bool = False,
    **attributes: AttributeValue,
) -> Span:
    names = {key: getattr(Attr, key.upper()) for key in attributes}
    return Span(
        TRACE,
        f"{number:016x}",
        None if parent is None else f"{parent:016x}",
        name,
        round(start_ms * MS),
        round(end_ms * MS),
        server,
        role,
        {names[key]: value for key, value in attributes.items()},
        error=error,
    )


def hopped() -> list[Span]:
    return [
        span(1, None, SpanName.REQUEST, 100, 112, role=Role.INGRESS, http_method="GET", server_address="a.example",
             url_path="/x", http_status=200, outcome="ok", worker="hello", version="v3", home="server-2"),
        span(2, 1, SpanName.HOP, 101, 111, role=Role.SERVER, hop=True),
        span(3, 2, SpanName.QUEUE, 102, 103, server="server-2", queue_ms=1.0),
        span(4, 2, SpanName.INSTANTIATE, 103, 104, server="server-2", start_type="cold", cold_cause="evicted"),
        span(5, 2, SpanName.HANDLER, 104, 110, server="server-2", cpu_ms=2.5),
    ]  # fmt: skip


def test_a_hopped_request() -> None:
    assert summarize(hopped()) == TraceSummary(
        trace_id=TRACE,
        start_ns=100 * MS,
        duration_ms=12.0,
        method="GET",
        host="a.example",
        path="/x",
        status=200,
        outcome="ok",
        start_type="cold",
        cold_cause="evicted",
        worker="hello",
        version="v3",
        request_id=None,
        server="server-1",
        ran_on="server-2",
        home="server-2",
        hop=True,
        refused=None,
        cpu_ms=2.5,
        queue_ms=1.0,
        spans=5,
        error=False,
        complete=True,
    )


@given(st.permutations(hopped()))
def test_order_does_not_matter(spans: list[Span]) -> None:
    assert summarize(spans) == summarize(hopped())
    assert in_order(spans) == hopped()


def test_without_a_root_it_says_what_it_can() -> None:
    summary = summarize(hopped()[1:])
    assert (summary.complete, summary.server, summary.ran_on, summary.method) == (False, None, "server-2", None)
    assert (summary.start_ns, summary.duration_ms) == (101 * MS, 10.0)


def test_no_spans_are_no_trace() -> None:
    with pytest.raises(ValueError, match="at least one span"):
        summarize([])


def test_the_root_speaks_first_about_cpu_and_status() -> None:
    spans = [
        span(1, None, SpanName.REQUEST, 0, 10, role=Role.INGRESS, cpu_ms=7, http_status=502),
        span(2, 1, SpanName.HANDLER, 1, 9, cpu_ms=3, http_status=200),
    ]
    assert (summarize(spans).cpu_ms, summarize(spans).status) == (7.0, 502)


def test_refused_and_failed() -> None:
    spans = [
        span(1, None, SpanName.REQUEST, 0, 10, role=Role.INGRESS, outcome="exceededCpu", error=True),
        span(2, 1, SpanName.HOP, 1, 2, refused="memory"),
        span(3, 1, SpanName.HANDLER, 2, 9, start_type="warm"),
    ]
    summary = summarize(spans)
    assert (summary.refused, summary.error, summary.hop, summary.start_type) == ("memory", True, False, "warm")


def test_one_cold_stage_makes_the_tree_cold() -> None:
    spans = [
        span(1, None, SpanName.REQUEST, 0, 10, role=Role.INGRESS, start_type="warm"),
        span(2, 1, SpanName.REQUEST, 1, 9, role=Role.SERVER, start_type="cold"),
    ]
    assert summarize(spans).start_type == "cold"


def test_the_root_is_the_ingress_even_when_a_nested_stage_lost_its_caller() -> None:
    ingress = span(1, 99, SpanName.REQUEST, 5, 10, role=Role.INGRESS)
    nested = span(3, 77, SpanName.REQUEST, 1, 9, role=Role.SERVER)
    other = span(4, 78, SpanName.REQUEST, 0, 9, role=Role.ISOLATE_HOST)
    assert root_of([other, nested, ingress]) == ingress
    assert root_of([other, nested]) == nested
    assert root_of([replace(nested, parent_span_id=ingress.span_id), ingress]) == ingress
    assert root_of([span(5, 1, SpanName.QUEUE, 0, 1)]) is None
