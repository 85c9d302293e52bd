from datetime import timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tracing.summary import summarize
from tracing.trace import Attr, AttributeValue, EventName, Role, Span, SpanEvent, SpanName
from tracing.waterfall import SUMMARY_HEADER, draw, summary_line

TRACE = "0af7651916cd43dd8448eb211c80319c"
# 2026-11-21 12:34:56.789 UTC
T0 = 1_795_264_496_789_000_000


def span(
    number: int,
    parent: int | None,
    name: SpanName,
    start_ms: float,
    end_ms: float,
    server: str,
    role: Role,
    attributes: dict[str, AttributeValue] | None = None,
) -> Span:
    parent_id = None if parent is None else f"{parent:016x}"
    start_ns, end_ns = T0 + round(start_ms * 1e6), T0 + round(end_ms * 1e6)
    return Span(TRACE, f"{number:016x}", parent_id, name, start_ns, end_ns, server, role, attributes or {})


ROOT = span(1, None, SpanName.REQUEST, 0, 40, "server-1", Role.INGRESS, {
    Attr.HTTP_METHOD: "GET", Attr.SERVER_ADDRESS: "shop.example.com", Attr.URL_PATH: "/cart/7", Attr.HTTP_STATUS: 200,
    Attr.WORKER: "shop", Attr.VERSION: "v3", Attr.OUTCOME: "ok", Attr.START_TYPE: "cold", Attr.COLD_CAUSE: "first-ever",
    Attr.HOME: "server-2", Attr.HOP: True, Attr.CPU_MS: 7.4, Attr.SERVER: "server-2",
})  # fmt: skip
TLS = span(2, 1, SpanName.TLS, 0, 3, "server-1", Role.INGRESS)
HOP = span(3, 1, SpanName.HOP, 4, 39, "server-1", Role.SERVER, {Attr.HOME: "server-2"})
QUEUE = span(4, 3, SpanName.QUEUE, 6, 6.5, "server-2", Role.SHARD_SERVER, {Attr.QUEUE_MS: 0.5})
MAP = span(5, 3, SpanName.MAP, 7, 9, "server-2", Role.ISOLATE_HOST)
HANDLER = replace(
    span(6, 3, SpanName.HANDLER, 20, 38, "server-2", Role.ISOLATE_HOST, {Attr.CPU_MS: 7.4}),
    events=(SpanEvent(EventName.LOG, T0 + 30_000_000, {Attr.LOG_TEXT: "cart 7 has 3 items"}),),
)
SPANS = [ROOT, TLS, HOP, QUEUE, MAP, HANDLER]


def test_a_hopped_cold_request() -> None:
    assert draw(SPANS, 20).splitlines() == [
        "trace 0af7651916cd43dd8448eb211c80319c  GET shop.example.com/cart/7  40.00 ms",
        "request        server-1/ingress       ████████████████████     40.00 ms"
        "  shop@v3 200 ok cold (first-ever) home server-2 hop cpu 7.4 ms",
        "├─ tls         server-1/ingress       █▌                        3.00 ms",
        "└─ hop         server-1/server          █████████████████▌     35.00 ms  home server-2",
        "   ├─ queue    server-2/shard-server     ▎                      0.50 ms",
        "   ├─ map      server-2/isolate-host     ▐▌                     2.00 ms",
        "   └─ handler  server-2/isolate-host            █████████      18.00 ms  cpu 7.4 ms",
        "         · at 30.00 ms log: cart 7 has 3 items",
    ]


def test_spans_without_their_parent_hang_under_the_root_and_are_marked() -> None:
    assert draw([ROOT, TLS, MAP, HANDLER], 20).splitlines()[2:] == [
        "├─ tls        server-1/ingress       █▌                        3.00 ms",
        "├─ ? map      server-2/isolate-host     ▐▌                     2.00 ms",
        "└─ ? handler  server-2/isolate-host            █████████      18.00 ms  cpu 7.4 ms",
        "      · at 30.00 ms log: cart 7 has 3 items",
    ]


def test_without_a_root_what_is_there_is_shown() -> None:
    assert draw([MAP, HOP], 8).splitlines() == [
        "trace 0af7651916cd43dd8448eb211c80319c  35.00 ms",
        "(the request's own span has not arrived)",
        "? hop   server-1/server        ████████     35.00 ms  home server-2",
        "└─ map  server-2/isolate-host  ▐▎            2.00 ms",
    ]


def test_refused_and_failed_say_so() -> None:
    refused = span(2, 1, SpanName.HOP, 1, 2, "server-1", Role.SERVER, {Attr.REFUSED: "memory"})
    failed = replace(
        span(3, 1, SpanName.HANDLER, 2, 9, "server-1", Role.ISOLATE_HOST, {Attr.OUTCOME: "exceededCpu"}), error=True
    )
    lines = draw([span(1, None, SpanName.REQUEST, 0, 10, "server-1", Role.INGRESS), refused, failed], 8).splitlines()
    assert lines[0].endswith("10.00 ms  failed")
    assert lines[2].endswith("1.00 ms  refused memory")
    assert lines[3].endswith("7.00 ms  exceededCpu failed")


def test_what_a_tenant_wrote_does_not_reach_the_terminal_as_commands() -> None:
    evil = "\x1b[2J\r\nroot# \u202e"
    root = replace(ROOT, attributes={Attr.URL_PATH: evil, Attr.WORKER: evil, Attr.OUTCOME: evil})
    loud = replace(HANDLER, events=(SpanEvent(EventName.LOG, T0, {Attr.LOG_TEXT: evil}),))
    for line in [*draw([root, loud]).split("\n"), summary_line(summarize([root, loud]))]:
        assert line.isprintable(), repr(line)


def test_many_lines_of_log_are_cut() -> None:
    event = SpanEvent(EventName.STDOUT, T0, {Attr.LOG_TEXT: "x" * 500, Attr.TRUNCATED: True})
    lines = draw([ROOT, replace(HANDLER, events=(event,) * 20)]).splitlines()
    assert lines[-1].strip() == "· 12 more"
    assert lines[-2].endswith("x… (truncated)")
    assert len(lines) == 1 + 2 + 8 + 1


def test_the_end_of_a_line_of_log_is_not_shown() -> None:
    event = SpanEvent(EventName.STDOUT, T0, {Attr.LOG_TEXT: "one\ntwo\n"})
    assert draw([ROOT, replace(HANDLER, events=(event,))]).endswith(" stdout: one·two")


def test_no_spans_are_no_waterfall() -> None:
    with pytest.raises(ValueError, match="at least one span"):
        draw([])


@given(st.data())
def test_every_span_has_one_line_whatever_the_parents(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    ids = st.integers(1, count + 2)
    spans = [
        span(
            number,
            data.draw(st.none() | ids),
            data.draw(st.sampled_from(SpanName)),
            data.draw(st.integers(0, 50)),
            data.draw(st.integers(50, 90)),
            "server-1",
            Role.SERVER,
        )
        for number in range(1, count + 1)
    ]
    width = data.draw(st.integers(8, 60))
    lines = draw(spans, width).splitlines()
    assert sum(" ms" in line and "server-1/server" in line for line in lines) == count
    for line in lines:
        if "server-1/server" in line:
            bar = line[line.index("server-1/server") + len("server-1/server") + 2 :][:width]
            assert set(bar) <= set(" ▏▎▍▌▋▊▉█▐")
            assert bar.strip()


def test_a_row_of_the_list() -> None:
    row = summary_line(summarize(SPANS))
    assert SUMMARY_HEADER.splitlines() == [
        "time          trace     method   host/path                            status  outcome            start    "
        "ran on        hop         total ms    cpu ms"
    ]
    assert row == (
        "12:34:56.789  0af76519  GET      shop.example.com/cart/7              200     ok                 cold     "
        "server-2      hop            40.00      7.40"
    )
    assert len(row) == len(SUMMARY_HEADER)
    assert summary_line(summarize(SPANS), timezone(timedelta(hours=2))).startswith("14:34:56.789")


def test_a_row_of_which_little_is_known() -> None:
    row = summary_line(summarize([QUEUE]))
    assert row == (
        "12:34:56.795  0af76519  -        -                                    -       -                  -        "
        "-             -               0.50         -"
    )


def test_a_row_of_a_refused_request_with_a_long_path() -> None:
    root = replace(ROOT, attributes={Attr.URL_PATH: "/" + "x" * 99, Attr.REFUSED: "memory"})
    row = summary_line(summarize([root]))
    assert "x…  " in row
    assert "refused" in row
    assert len(row) == len(SUMMARY_HEADER)
