import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_text import read

from tracing.metrics import Distribution, Family, Histogram, Kind, Point, distribution_of, prometheus_text


@pytest.mark.parametrize(
    ("name", "kind", "unit", "expected"),
    [
        ("everwarm.requests", Kind.COUNTER, "{request}", "everwarm_requests_total"),
        ("everwarm.queue.time", Kind.HISTOGRAM, "s", "everwarm_queue_time_seconds"),
        ("everwarm.guest.cpu.time", Kind.COUNTER, "s", "everwarm_guest_cpu_time_seconds_total"),
        ("everwarm.isolates.memory", Kind.GAUGE, "By", "everwarm_isolates_memory_bytes"),
        ("everwarm.isolates", Kind.GAUGE, "{isolate}", "everwarm_isolates"),
    ],
)
def test_a_name_in_prometheuss_manner(name: str, kind: Kind, unit: str, expected: str) -> None:
    assert Family(name, kind, unit, "", ()).prometheus_name == expected


def test_a_text_reads_as_it_was_meant() -> None:
    text = prometheus_text(
        [
            Family(
                "x.ended", Kind.COUNTER, "{request}", "Ended,\nby \\ ending.",
                (Point({"outcome": "ok"}, 3), Point({"outcome": 'a "b"\\\nc'}, 0.5)),
            ),
            Family("x.load", Kind.GAUGE, "1", "Load.", (Point({}, float("nan")),)),
        ]
    )  # fmt: skip
    assert text.startswith("# HELP x_ended_total Ended,\\nby \\\\ ending.\n# TYPE x_ended_total counter\n")
    families = read(text)
    assert families["x_ended_total"].value(outcome="ok") == 3
    assert families["x_ended_total"].value(outcome='a "b"\\\nc') == 0.5
    assert families["x_load_ratio"].value() != families["x_load_ratio"].value()


def test_buckets_are_cumulative_and_the_last_one_holds_all() -> None:
    histogram = Histogram((0.0625, 0.1, 1.0))
    for value in (0.0, 0.0625, 0.5, 1.0, 7.0, 9.0):
        histogram.observe(value)
    value = distribution_of(histogram.plain())
    assert value == Distribution((0.0625, 0.1, 1.0), (2, 0, 2, 2), 17.5625)
    assert value is not None
    waited = read(prometheus_text([Family("waited", Kind.HISTOGRAM, "s", "", (Point({"host": "host"}, value),))]))
    family = waited["waited_seconds"]
    assert [family.value("_bucket", host="host", le=le) for le in ("0.0625", "0.1", "1", "+Inf")] == [2, 2, 4, 6]
    assert (family.value("_count", host="host"), family.value("_sum", host="host")) == (6, 17.5625)


def test_a_family_with_too_many_series_adds_up_the_last_of_them() -> None:
    points = tuple(Point({"host": "host", "outcome": f"o{i}"}, 1) for i in range(100_000))
    bounded = Family("x", Kind.COUNTER, "", "", points).bounded(4)
    assert [(dict(point.labels)["outcome"], point.value) for point in bounded.points] == [
        ("o0", 1), ("o1", 1), ("o2", 1), ("other", 99_997),
    ]  # fmt: skip
    assert prometheus_text([Family("x", Kind.COUNTER, "", "", points)]).count("\n") == 2 + 256
    waits = tuple(Point({"host": str(i)}, Distribution((1.0,), (1, 2), 3.0)) for i in range(300))
    assert Family("x", Kind.HISTOGRAM, "s", "", waits).bounded().points[-1].value == Distribution((1.0,), (45, 90), 135)


@pytest.mark.parametrize(
    "plain",
    [
        None, 7, {}, {"bounds": [1], "counts": [1], "sum": 1}, {"bounds": [1], "counts": [1, "2"], "sum": 1},
        {"bounds": [1], "counts": [1, 2], "sum": None}, {"bounds": [True], "counts": [1, 2], "sum": 1},
        {"bounds": list(range(999)), "counts": list(range(1000)), "sum": 1},
    ],
)  # fmt: skip
def test_what_is_no_distribution_is_none(plain: object) -> None:
    assert distribution_of(plain) is None


@given(
    st.lists(st.dictionaries(st.sampled_from(["host", "outcome"]), st.text(max_size=8), max_size=2), max_size=5),
    st.text(max_size=20),
    st.floats(allow_nan=False),
)
def test_whatever_the_labels_are_the_text_can_be_read(labels: list[dict[str, str]], about: str, value: float) -> None:
    different = {frozenset(one.items()): one for one in labels}.values()
    points = tuple(Point(one, value) for one in different)
    # A line is what ends with a newline: other separators of lines stay inside of a value.
    text = prometheus_text([Family("x.y", Kind.GAUGE, "{z}", about, points)])
    lines = text.split("\n")
    assert len(lines) == 3 + len(points)
    assert all(float(line.rpartition(" ")[2].replace("Inf", "inf")) == value for line in lines[2:-1])
