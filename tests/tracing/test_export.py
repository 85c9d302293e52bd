import logging
import threading
from collections.abc import Iterator

import pytest
from tracing_receiver import OtlpReceiver

from tracing.export import ExportLimits, OtlpExporter
from tracing.otlp_url import metrics_endpoint, traces_endpoint
from tracing.trace import Attr, AttributeValue, EventName, Role, Span, SpanEvent, SpanName

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
CLIENT = "1234567890abcdef"
START_NS = 1_795_000_000_000_000_000


def numbered(number: int, **attributes: AttributeValue) -> Span:
    return Span(
        TRACE,
        f"{number:016x}",
        PARENT,
        SpanName.QUEUE,
        START_NS,
        START_NS + 5,
        "server-1",
        Role.SERVER,
        dict(attributes),
    )


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
        ("http://127.0.0.1:4318/v1/traces", "http://127.0.0.1:4318/v1/traces"),
        ("http://127.0.0.1:4318/v1/traces/", "http://127.0.0.1:4318/v1/traces"),
        ("https://host/otlp", "https://host/otlp/v1/traces"),
        ("https://host/otlp/v1/traces?k=v#x", "https://host/otlp/v1/traces?k=v"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
    ],
)
def test_base_and_full_urls(url: str, endpoint: str) -> None:
    assert traces_endpoint(url) == endpoint
    assert metrics_endpoint(url) == endpoint.replace("/v1/traces", "/v1/metrics")
    assert traces_endpoint(metrics_endpoint(url)) == endpoint


@pytest.mark.parametrize("url", ["", "127.0.0.1:4318", "ftp://host", "http://", "grpc://host:4317"])
def test_what_is_not_an_otlp_url(url: str) -> None:
    with pytest.raises(ValueError, match="an OTLP url looks like"):
        OtlpExporter(url)


def test_a_span_arrives_as_it_was(receiver: OtlpReceiver) -> None:
    exporter = OtlpExporter(receiver.url, headers={"X-Key": "k"}, service_name="cluster-a")
    attributes: dict[str, AttributeValue] = {
        Attr.HTTP_METHOD: "GET",
        Attr.HTTP_STATUS: 503,
        Attr.CPU_MS: 1.5,
        Attr.HOP: True,
        Attr.OUTCOME: "loadShed",
    }
    log = SpanEvent(EventName.LOG, START_NS + 3, {Attr.LOG_TEXT: "grüße"})
    root = Span(
        TRACE,
        PARENT,
        CLIENT,
        SpanName.REQUEST,
        START_NS,
        START_NS + 9,
        "server-1",
        Role.INGRESS,
        attributes,
        (log,),
        True,
    )
    hop = Span(TRACE, f"{2:016x}", PARENT, SpanName.HOP, START_NS + 1, START_NS + 8, "server-2", Role.SERVER)
    exporter.export([root, hop])
    assert exporter.close(10)
    first, second = receiver.wait_for_spans(2)
    assert (first.trace_id, first.span_id, first.parent_span_id) == (TRACE, PARENT, CLIENT)
    assert (first.name, first.kind, first.start_ns, first.end_ns) == ("request", "SERVER", START_NS, START_NS + 9)
    assert first.attributes == {**attributes, Attr.SERVER: "server-1", Attr.ROLE: "ingress"}
    assert first.events == (("log", START_NS + 3, {"everwarm.log_text": "grüße"}),)
    assert (first.error, first.status_message) == (True, "loadShed")
    assert first.resource == {
        "service.name": "cluster-a",
        "service.instance.id": "server-1",
        "everwarm.role": "ingress",
    }
    assert (second.kind, second.parent_span_id, second.error) == ("CLIENT", PARENT, False)
    assert second.resource["service.instance.id"] == "server-2"
    (request,) = receiver.requests
    assert request.headers["x-key"] == "k"
    assert request.headers["content-encoding"] == "gzip"
    assert request.headers["content-type"] == "application/x-protobuf"
    assert exporter.statistics().exported == 2


def test_a_root_has_no_parent_and_a_phase_is_internal(receiver: OtlpReceiver) -> None:
    exporter = OtlpExporter(receiver.url + "/v1/traces")
    exporter.export([Span(TRACE, PARENT, None, SpanName.MAP, START_NS, START_NS, "server-1", Role.ISOLATE_HOST)])
    assert exporter.flush(10)
    (span,) = receiver.spans
    assert (span.parent_span_id, span.kind) == ("", "INTERNAL")
    assert exporter.close(10)


def test_many_spans_go_in_batches_and_all_arrive(receiver: OtlpReceiver) -> None:
    exporter = OtlpExporter(receiver.url, limits=ExportLimits(batch_spans_max=100))
    for start in range(1, 1001, 50):
        exporter.export([numbered(number) for number in range(start, start + 50)])
    assert exporter.flush(30)
    assert sorted(int(span.span_id, 16) for span in receiver.spans) == list(range(1, 1001))
    assert max(len(request.spans) for request in receiver.requests) <= 100
    assert exporter.close(10)
    assert exporter.statistics().exported == 1000


def test_a_full_queue_drops_and_counts_and_never_waits() -> None:
    gate = threading.Event()
    with OtlpReceiver(before_answer=gate.wait) as receiver:  # type: ignore[arg-type]
        exporter = OtlpExporter(receiver.url, limits=ExportLimits(queue_spans_max=10, batch_spans_max=4, delay_s=0.0))
        exporter.export([numbered(number) for number in range(1, 5)])
        receiver.wait_for_requests(1)
        exporter.export([numbered(number) for number in range(5, 25)])
        statistics = exporter.statistics()
        assert (statistics.queued, statistics.dropped) == (14, 10)
        gate.set()
        assert exporter.close(10)
        assert [int(span.span_id, 16) for span in receiver.spans] == list(range(1, 15))
        assert exporter.statistics().exported == 14


def test_the_queue_is_bounded_in_bytes_too(receiver: OtlpReceiver) -> None:
    exporter = OtlpExporter(receiver.url, limits=ExportLimits(queue_bytes_max=10_000))
    exporter.export([numbered(1, **{Attr.URL_PATH: "x" * 20_000}), numbered(2)])
    assert exporter.close(10)
    assert [span.span_id for span in receiver.spans] == [f"{2:016x}"]
    assert exporter.statistics().dropped == 1


def test_a_backend_that_refuses_costs_the_batch_and_one_line_of_log(caplog: pytest.LogCaptureFixture) -> None:
    with OtlpReceiver(status=401) as receiver, caplog.at_level(logging.INFO):
        exporter = OtlpExporter(
            receiver.url + "?key=hunter2", headers={"x-key": "hunter3"}, limits=ExportLimits(delay_s=0.0)
        )
        for number in range(1, 4):
            exporter.export([numbered(number)])
            assert exporter.flush(10)
        statistics = exporter.statistics()
        assert (statistics.failed, statistics.exported, statistics.last_error) == (3, 0, "status 401")
        receiver.status = 200
        exporter.export([numbered(4)])
        assert exporter.close(10)
        assert exporter.statistics().last_error is None
    assert [record.getMessage() for record in caplog.records] == [
        "traces do not reach 127.0.0.1: status 401",
        "traces reach 127.0.0.1 again; 3 spans were lost",
    ]
    assert "hunter" not in caplog.text


def test_nobody_there_is_counted_and_close_is_in_time(caplog: pytest.LogCaptureFixture) -> None:
    with OtlpReceiver() as receiver:
        url = receiver.url
    exporter = OtlpExporter(url, limits=ExportLimits(request_timeout_s=0.5, delay_s=0.0))
    exporter.export([numbered(1)])
    assert exporter.flush(10)
    statistics = exporter.statistics()
    assert (statistics.failed, statistics.last_error) == (1, "no answer")
    assert exporter.close(10)


def test_close_gives_up_when_time_is_up_and_counts_what_was_left() -> None:
    gate = threading.Event()
    with OtlpReceiver(before_answer=gate.wait) as receiver:  # type: ignore[arg-type]
        exporter = OtlpExporter(receiver.url, limits=ExportLimits(batch_spans_max=1, queue_spans_max=5, delay_s=0.0))
        exporter.export([numbered(1)])
        receiver.wait_for_requests(1)
        exporter.export([numbered(2), numbered(3)])
        assert not exporter.close(0.0)
        assert exporter.statistics().dropped == 2
        exporter.export([numbered(4)])
        assert exporter.statistics().dropped == 3
        gate.set()
        assert exporter.close(10)
        assert exporter.close(10)
        assert len(receiver.spans) == 1


def test_a_span_that_fits_no_otlp_costs_only_itself(receiver: OtlpReceiver) -> None:
    exporter = OtlpExporter(receiver.url)
    odd: dict[str, AttributeValue] = {Attr.URL_PATH: "a\ud800b", Attr.HTTP_STATUS: 2**70}
    junk = Span("not hex", "x", None, SpanName.MAP, 1, 2, "server-1", Role.SERVER)
    exporter.export([junk, numbered(1, **odd)])
    assert exporter.close(10)
    (span,) = receiver.spans
    assert span.attributes[Attr.URL_PATH] == "a?b"
    assert span.attributes[Attr.HTTP_STATUS] == hex(2**70)
    assert (exporter.statistics().exported, exporter.statistics().failed) == (1, 1)


def test_two_exporters_keep_their_errors_apart() -> None:
    with OtlpReceiver(status=403) as refusing, OtlpReceiver() as accepting:
        first, second = OtlpExporter(refusing.url), OtlpExporter(accepting.url)
        for exporter in (first, second):
            exporter.export([numbered(1)])
        assert first.close(10)
        assert second.close(10)
    assert first.statistics().last_error == "status 403"
    assert second.statistics().last_error is None
    assert not logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter").filters
