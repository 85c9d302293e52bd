import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tracing.trace import ATTRIBUTES, Attr, EventName, Role, Span, SpanEvent, SpanName, new_span_id, new_trace_id
from tracing.wire import Malformed, WireLimits, decode_spans, encode_spans

attributes = st.dictionaries(
    st.sampled_from(sorted(ATTRIBUTES)),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.booleans(),
    max_size=6,
)
trace_ids = st.binary(min_size=16, max_size=16).map(new_trace_id)
span_ids = st.binary(min_size=8, max_size=8).map(new_span_id)


@st.composite
def valid_spans(draw: st.DrawFn) -> Span:
    start_ns = draw(st.integers(0, 2**62))
    span_id = draw(span_ids)
    return Span(
        draw(trace_ids),
        span_id,
        draw(st.none() | span_ids.filter(lambda parent: parent != span_id)),
        draw(st.sampled_from(SpanName)),
        start_ns,
        start_ns + draw(st.integers(0, 2**40)),
        draw(st.sampled_from(["server-1", "server-2"])),
        draw(st.sampled_from(Role)),
        draw(attributes),
        tuple(
            draw(
                st.lists(
                    st.builds(SpanEvent, st.sampled_from(EventName), st.integers(0, 2**62), attributes), max_size=3
                )
            )
        ),
        draw(st.booleans()),
    )


def a_span(**values: str | int | float | bool) -> Span:
    return Span("1" * 32, "2" * 16, None, SpanName.REQUEST, 1, 2, "server-1", Role.INGRESS, dict(values))


@given(st.lists(valid_spans(), max_size=5))
def test_round_trip(spans: list[Span]) -> None:
    assert decode_spans(encode_spans(spans)) == spans


def test_types_survive() -> None:
    decoded = decode_spans(encode_spans([a_span(**{Attr.CPU_MS: 1.0, Attr.HTTP_STATUS: 200, Attr.HOP: True})]))
    assert isinstance(decoded, list)
    values = decoded[0].attributes
    assert [type(values[name]) for name in (Attr.CPU_MS, Attr.HTTP_STATUS, Attr.HOP)] == [float, int, bool]
    assert type(decoded[0].name) is SpanName
    assert type(decoded[0].events) is tuple


@given(st.binary(max_size=200))
def test_junk_is_refused_by_value(data: bytes) -> None:
    assert isinstance(decode_spans(data), Malformed)


@given(st.data())
def test_a_damaged_report_never_raises(data: st.DataObject) -> None:
    whole = bytearray(encode_spans([a_span(**{Attr.URL_PATH: "/x"})]))
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    decode_spans(bytes(whole[: data.draw(st.integers(0, len(whole)))]))


def test_too_large_is_refused_before_it_is_read() -> None:
    data = encode_spans([a_span()] * 3)
    assert decode_spans(data, WireLimits(message_bytes_max=len(data) - 1)) == Malformed(
        f"a report of {len(data)} bytes is over the limit of {len(data) - 1}"
    )
    assert decode_spans(data, WireLimits(spans_max=2)) == Malformed("a report of 3 spans is over the limit of 2")
    assert isinstance(decode_spans(data, WireLimits(message_bytes_max=len(data), spans_max=3)), list)


def test_another_version_is_refused_by_its_number() -> None:
    assert decode_spans(msgspec.msgpack.encode([3, {"shape": "unknown"}])) == Malformed(
        "a report of version 3, and this is version 2"
    )


def test_a_span_outside_the_closed_lists_is_refused() -> None:
    assert decode_spans(encode_spans([a_span(**{"everwarm.mood": "good"})])) == Malformed(
        "no such attribute: everwarm.mood"
    )
    unknown = Span("1" * 32, "2" * 16, None, "coffee", 1, 2, "s", "ingress")  # type: ignore[arg-type]
    assert decode_spans(encode_spans([unknown])) == Malformed("not a report: ValidationError")


@pytest.mark.parametrize(
    ("value", "carried"),
    [
        (2**64, "0x10000000000000000"),
        (-(2**64), "-0x10000000000000000"),
        ("a\ud800b", "a?b"),
    ],
)
def test_odd_values_are_carried_as_text(value: str | int, carried: str) -> None:
    neighbour = a_span(**{Attr.HTTP_STATUS: 200})
    log = SpanEvent(EventName.LOG, 1, {Attr.LOG_TEXT: "\ud800"})
    odd = replace(a_span(**{Attr.URL_PATH: value}), span_id="3" * 16, events=(log,))
    decoded = decode_spans(encode_spans([neighbour, odd]))
    assert isinstance(decoded, list)
    assert decoded[0] == neighbour
    assert decoded[1].attributes == {Attr.URL_PATH: carried}
    assert decoded[1].events[0].attributes == {Attr.LOG_TEXT: "?"}
