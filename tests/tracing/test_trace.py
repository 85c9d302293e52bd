import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from opentelemetry.semconv._incubating.attributes import (
    error_attributes,
    exception_attributes,
    http_attributes,
    server_attributes,
    url_attributes,
)

from tracing.trace import (
    ATTRIBUTES,
    Attr,
    EventName,
    Role,
    Span,
    SpanEvent,
    SpanLimits,
    SpanName,
    TraceContext,
    approximate_bytes,
    new_span_id,
    new_trace_id,
    parse_traceparent,
    validate,
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"

contexts = st.builds(
    TraceContext,
    st.binary(min_size=16, max_size=16).map(new_trace_id),
    st.binary(min_size=8, max_size=8).map(new_span_id),
    st.booleans(),
)


@pytest.mark.parametrize(
    ("header", "sampled"),
    [
        (f"00-{TRACE}-{PARENT}-01", True),
        (f"00-{TRACE}-{PARENT}-00", False),
        (f"00-{TRACE}-{PARENT}-03", True),
        (f"00-{TRACE}-{PARENT}-fe", False),
        (f"01-{TRACE}-{PARENT}-01", True),
        (f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like", True),
        (f"cc-{TRACE}-{PARENT}-00-", False),
    ],
)
def test_traceparent_is_read(header: str, sampled: bool) -> None:
    assert parse_traceparent(header) == TraceContext(TRACE, PARENT, sampled)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT.upper()}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-01-",
        f"cc-{TRACE}-{PARENT}-01.more",
        f"cc-{TRACE}-{PARENT}-011",
        f"CC-{TRACE}-{PARENT}-01",
        f"0-{TRACE}-{PARENT}-01",
        f"00-{TRACE[1:]}-{PARENT}-01",
        f"00-{TRACE}0-{PARENT}-01",
        f"00-{TRACE}-{PARENT[1:]}-01",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE}-{PARENT}",
        f"00_{TRACE}_{PARENT}_01",
        f" 00-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01 ",
        f"00-{TRACE}-{PARENT}-01\n",
        f"00-{'g' * 32}-{PARENT}-01",
        f"00-{'٣' * 32}-{PARENT}-01",
        f"cc-{TRACE}-{PARENT}-01-" + "x" * 300,
    ],
)
def test_junk_is_not_a_traceparent(header: str) -> None:
    assert parse_traceparent(header) is None


@given(contexts)
def test_traceparent_round_trip(context: TraceContext) -> None:
    assert parse_traceparent(context.traceparent()) == context
    assert context.child(PARENT) == TraceContext(context.trace_id, PARENT, context.sampled)


@given(st.text(max_size=80) | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{30,34}-[0-9a-f]{14,18}-[0-9a-f]{1,3}.{0,9}"))
def test_any_text_is_a_context_or_nothing(header: str) -> None:
    context = parse_traceparent(header)
    if context is not None:
        assert parse_traceparent(context.traceparent()) == context
        assert header[3:52] == f"{context.trace_id}-{context.span_id}"


def test_ids_come_from_the_bytes_given() -> None:
    assert new_trace_id(bytes(range(16))) == "000102030405060708090a0b0c0d0e0f"
    assert new_span_id(b"\xff" * 8) == "f" * 16
    assert new_trace_id(bytes(16)) == "0" * 31 + "1"
    assert new_span_id(bytes(8)) == "0" * 15 + "1"
    with pytest.raises(ValueError, match="16 random bytes"):
        new_trace_id(b"short")
    with pytest.raises(ValueError, match="8 random bytes"):
        new_span_id(bytes(16))


def test_the_closed_lists_have_no_doubles_and_one_form() -> None:
    assert len(ATTRIBUTES) == len([name for name in vars(Attr) if not name.startswith("_")])
    assert all(re.fullmatch(r"[a-z][a-z_]*(\.[a-z_]+)+", name) for name in ATTRIBUTES)
    assert all(re.fullmatch(r"[a-z_]+", name) for name in SpanName)


def test_names_that_are_not_ours_are_those_of_opentelemetry() -> None:
    modules = [
        error_attributes,
        exception_attributes,
        http_attributes,
        server_attributes,
        url_attributes,
    ]
    known = {value for module in modules for value in vars(module).values() if isinstance(value, str)}
    assert {name for name in ATTRIBUTES if not name.startswith("everwarm.")} <= known


def test_every_attribute_is_written_by_somebody() -> None:
    roots = [Path(__file__).parents[2] / name for name in ("actors", "ingress", "tracing")]
    sources = "".join(path.read_text() for root in roots for path in root.glob("*.py") if path.name != "trace.py")
    names = [name for name in vars(Attr) if not name.startswith("_")]
    assert [name for name in names if not re.search(rf"\bAttr\.{name}\b", sources)] == []


def a_span(**changes: object) -> Span:
    span = Span(TRACE, PARENT, None, SpanName.REQUEST, 10, 20, "server-1", Role.INGRESS, {Attr.OUTCOME: "ok"})
    return replace(span, **changes)  # type: ignore[arg-type]


def test_a_span_is_small_and_fixed() -> None:
    span = a_span()
    assert validate(span) is None
    assert not hasattr(span, "__dict__")
    with pytest.raises(AttributeError):
        span.name = SpanName.HOP  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"trace_id": "x"}, "trace_id is not 32 hex digits"),
        ({"trace_id": "0" * 32}, "trace_id is not 32 hex digits"),
        ({"span_id": PARENT.upper()}, "span_id is not 16 hex digits"),
        ({"parent_span_id": ""}, "parent_span_id is not 16 hex digits"),
        ({"parent_span_id": PARENT}, "a span is its own parent"),
        ({"name": "coffee"}, "no such span: coffee"),
        ({"role": "admin"}, "no such role: admin"),
        ({"server": ""}, "server is empty or too long"),
        ({"start_ns": 21}, "a span ends before it starts"),
        ({"start_ns": -1}, "a span ends before it starts"),
        ({"end_ns": 2**63}, "a span ends before it starts"),
        ({"attributes": {"everwarm.mood": "good"}}, "no such attribute: everwarm.mood"),
        ({"attributes": {Attr.HTTP_REQUEST_BYTES: 2**63}}, "http.request.body.size does not fit 64 bits"),
        ({"attributes": {Attr.URL_PATH: "x" * 20_000}}, "url.path is longer than 16384 characters"),
        ({"attributes": {Attr.URL_PATH: None}}, "url.path is of type NoneType"),
        ({"attributes": {Attr.URL_PATH: ["a"]}}, "url.path is of type list"),
        ({"events": (SpanEvent("party", 15),)}, "no such event: party"),
        ({"events": (SpanEvent(EventName.LOG, -1),)}, "an event without a time"),
        ({"events": (SpanEvent(EventName.LOG, 15, {"text": "x"}),)}, "no such attribute: text"),
        ({"events": (SpanEvent(EventName.LOG, 15),) * 1025}, "more than 1024 events"),
    ],
)
def test_validate_names_what_is_wrong(changes: dict[str, object], reason: str) -> None:
    assert validate(a_span(**changes)) == reason


def test_validate_keeps_to_the_limits_it_is_given() -> None:
    assert validate(a_span(), SpanLimits(attributes_max=0)) == "more than 0 attributes"
    assert validate(a_span(server="s" * 9), SpanLimits(name_chars_max=8)) == "server is empty or too long"


def test_every_name_of_the_lists_passes() -> None:
    for name in SpanName:
        assert validate(a_span(name=name)) is None
    for role in Role:
        assert validate(a_span(role=role)) is None
    assert validate(a_span(events=tuple(SpanEvent(name, 15, {Attr.LOG_TEXT: "x"}) for name in EventName))) is None
    assert validate(a_span(attributes=dict.fromkeys(ATTRIBUTES, 1)), SpanLimits(attributes_max=len(ATTRIBUTES))) is None


def test_bytes_grow_with_what_a_span_carries() -> None:
    plain = approximate_bytes(a_span())
    assert approximate_bytes(a_span(attributes={Attr.URL_PATH: "x" * 1000})) > plain + 900
    assert approximate_bytes(a_span(events=(SpanEvent(EventName.LOG, 15, {Attr.LOG_TEXT: "x" * 1000}),))) > plain + 1000


def test_the_documentation_lists_exactly_what_exists() -> None:
    text = (Path(__file__).parents[2] / "docs" / "tracing.md").read_text("utf-8")
    rows = set(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE))
    assert rows == ATTRIBUTES | set(SpanName) | set(Role) | set(EventName)
