import logging
import threading

import pytest
from tracing_receiver import OtlpReceiver

from tracing.export_metrics import OtlpMetrics
from tracing.metrics import Distribution, Family, Kind, Point

NOW_NS = 1_795_000_000_000_000_000
FAMILIES = [
    Family("everwarm.requests", Kind.COUNTER, "{request}", "Ended.", (Point({"outcome": "ok"}, 3, NOW_NS - 9),)),
    Family("everwarm.isolates.memory", Kind.GAUGE, "By", "Held.", (Point({"host": "host"}, 2.5),)),
    Family("everwarm.queue.time", Kind.HISTOGRAM, "s", "", (Point({}, Distribution((0.1, 1.0), (5, 2, 1), 3.5)),)),
]


def test_families_arrive_as_they_were() -> None:
    with OtlpReceiver() as receiver:
        exporter = OtlpMetrics(receiver.url + "/v1/traces", "server-1", headers={"X-Key": "k"})
        exporter.export(FAMILIES, NOW_NS)
        assert exporter.close(5.0)
        (request,) = receiver.requests
    assert (request.path, request.headers["x-key"], request.headers["content-encoding"]) == (
        "/v1/metrics", "k", "gzip",
    )  # fmt: skip
    counter, gauge, histogram = request.points
    assert (counter.name, counter.unit, counter.kind, counter.monotonic) == (
        "everwarm.requests", "{request}", "sum", True,
    )  # fmt: skip
    assert (counter.attributes, counter.value) == ({"outcome": "ok"}, 3)
    assert (counter.start_ns, counter.at_ns) == (NOW_NS - 9, NOW_NS)
    assert counter.resource == {"service.name": "everwarm", "service.instance.id": "server-1"}
    assert (gauge.kind, gauge.value, gauge.unit) == ("gauge", 2.5, "By")
    assert (histogram.kind, histogram.value) == ("histogram", ((0.1, 1.0), (5, 2, 1), 3.5))
    assert exporter.statistics().exported == 1


def test_a_backend_that_takes_no_metrics_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with OtlpReceiver(status=404) as receiver, caplog.at_level(logging.INFO):
        exporter = OtlpMetrics(receiver.url, "server-1")
        for number in (1, 2):
            exporter.export(FAMILIES, NOW_NS)
            receiver.wait_for_requests(number)
        assert exporter.close(5.0)
    assert [record.getMessage() for record in caplog.records] == ["metrics do not reach 127.0.0.1: status 404"]
    statistics = exporter.statistics()
    assert (statistics.exported, statistics.failed, statistics.last_error) == (0, 2, "status 404")
    exporter.export(FAMILIES, NOW_NS)  # after the end: nothing, and no error
    assert exporter.statistics() == statistics


def test_numbers_that_wait_are_replaced_by_newer_ones() -> None:

    answered = threading.Event()
    with OtlpReceiver(before_answer=lambda: answered.wait(5.0)) as receiver:
        exporter = OtlpMetrics(receiver.url, "server-1")
        exporter.export(FAMILIES, NOW_NS)
        receiver.wait_for_requests(1)
        for later in (1, 2, 3):
            exporter.export(FAMILIES, NOW_NS + later)
        answered.set()
        assert exporter.close(5.0)
        assert [request.points[0].at_ns for request in receiver.requests] == [NOW_NS, NOW_NS + 3]
    assert exporter.statistics().replaced == 2
