"""The replay on a real cluster, as far as it is pure: slices, counters, figures. Never how fast anything is."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.replay.breakdown import PARTS, medians_ms, parts_ms
from benchmarks.replay.client import Sample, sample_of
from benchmarks.replay.counters import RoleAway, counted, group, grown, isolates
from benchmarks.replay.report import BOUNDS, Found, by_way, figures, json_line, quantile, table
from benchmarks.replay.site import Half, House
from benchmarks.replay.slice import Cut, arrivals, cut
from benchmarks.warmth.trace import Trace
from tracing.trace import Role, Span, SpanName

ROOT = Path(__file__).parents[1]

#: Four functions: a popular one, one that is asked now and then, one only before the slice, and one never.
TRACE = Trace(
    "made up",
    worker=np.array([0, 2, 0, 1, 0, 1]),
    minute=np.array([0, 0, 1, 1, 2, 3]),
    count=np.array([500, 1, 500, 2, 500, 1]),
    duration_s=np.array([0.1, 0.2, 0.3, 0.4]),
    memory_mb=np.array([1.0, 2.0, 3.0, 4.0]),
)


class TestSlice:
    def test_has_those_who_are_asked_in_its_minutes_numbered_anew(self) -> None:
        sliced = cut(TRACE, Cut(functions=10, first_minute=1, minutes=2, per_minute_max=10))
        assert sliced.worker.tolist() == [0, 1, 0]
        assert sliced.minute.tolist() == [0, 0, 1]
        assert sliced.count.tolist() == [10, 2, 10], "the popular are thinned"
        assert sliced.duration_s.tolist() == [0.1, 0.2]

    def test_draws_functions_by_its_seed(self) -> None:
        drawn = [cut(TRACE, Cut(functions=1, minutes=4, seed=seed)) for seed in range(20)]
        assert all(sliced.workers == 1 for sliced in drawn)
        assert len({float(sliced.duration_s[0]) for sliced in drawn}) == 3
        once, again = (cut(TRACE, Cut(functions=2, seed=5)) for _ in range(2))
        assert once.worker.tolist() == again.worker.tolist()

    def test_arrives_faster_than_it_was_and_always_the_same(self) -> None:
        sliced = cut(TRACE, Cut(minutes=4, per_minute_max=10))
        coming = arrivals(sliced, servers=3, speed=60.0, seed=1)
        assert coming == arrivals(sliced, servers=3, speed=60.0, seed=1)
        assert len(coming) == sliced.requests
        times_s = [arrival.at_s for arrival in coming]
        assert times_s == sorted(times_s)
        assert times_s[0] >= 0
        assert times_s[-1] < 4
        assert {arrival.server for arrival in coming} == {0, 1, 2}
        assert coming != arrivals(sliced, servers=3, speed=60.0, seed=2)


def test_a_sample_tells_what_the_answer_told() -> None:
    head = b"HTTP/1.1 200 OK\r\nServer-Timing: "
    timing = b'start;desc="warm", queue;dur=0.10, cpu;dur=0.05, server;desc="server-2", home;desc="server-2", hop'
    away = sample_of(head + timing + b"\r\ncontent-length: 0\r\n\r\n", 3, 1, 5.0, 0.1)
    assert away == Sample(3, 1, 5.0, 0.1, "warm", hop=True)
    here = sample_of(head + b'start;desc="cold", refused;desc="busy"\r\n\r\nhop', 3, 1, 5.0, 0.1)
    assert here == Sample(3, 1, 5.0, 0.1, "cold", hop=False, refused="busy")


STATISTICS = {
    "server-1/server": {"requests": 7, "sharded": {"offered": 3, "refused": 1}, "homes": {"a": "server-1"}},
    "server-2/server": {"requests": 2, "sharded": {"offered": 1, "refused": 0}},
    "server-1/host": {"starts": {"cold": 4}, "evictions": 2, "isolates": 5, "running": 9},
    "server-1/host-2": {"starts": {"cold": 1, "prewarm": 1}, "evictions": 0, "isolates": 1},
    "server-1/ingress": {"requests": 70},
}


class TestCounters:
    def test_are_summed_over_servers_and_hosts(self) -> None:
        sums = counted(STATISTICS)
        assert sums["server.requests"] == 9
        assert sums["server.sharded.offered"] == 4
        assert sums["host.starts.cold"] == 5
        assert sums["ingress.requests"] == 70
        assert not any("homes" in name or "running" in name for name in sums)
        assert isolates(STATISTICS) == 6

    def test_grow_by_what_came_since(self) -> None:
        before, after = Counter({"a": 1, "b": 2}), Counter({"a": 4, "b": 2, "c": 1})
        assert grown(before, after) == {"a": 3, "c": 1}

    def test_are_grouped_the_most_first(self) -> None:
        assert list(group({"x.b": 1, "x.a": 2, "y": 9}, "x").items()) == [("a", 2), ("b", 1)]

    def test_of_a_role_that_is_away_are_not_guessed(self) -> None:
        with pytest.raises(RoleAway, match="server-1/shard"):
            counted({"server-1/shard": {"error": "gone"}})


class TestBreakdown:
    @staticmethod
    def spans(*, hop: bool = True) -> list[Span]:
        def span(name: SpanName, begin_ms: int, end_ms: int, role: Role, parent: str | None = "root") -> Span:
            own = "root" if parent is None else name.value
            return Span("trace", own, parent, name, begin_ms * 10**6, end_ms * 10**6, "server-1", role)

        found = [
            span(SpanName.REQUEST, 0, 100, Role.INGRESS, None),
            span(SpanName.ROUTE, 10, 12, Role.SERVER),
            span(SpanName.HANDLER, 40, 60, Role.ISOLATE_HOST),
        ]
        return [*found, span(SpanName.HOP, 13, 90, Role.SERVER)] if hop else found

    def test_has_the_whole_request_in_parts(self) -> None:
        parts = parts_ms(self.spans())
        assert parts is not None
        assert list(parts.values()) == [10, 2, 1, 27, 20, 30, 10]
        assert sum(parts.values()) == 100

    def test_is_of_sharded_requests_alone(self) -> None:
        assert parts_ms(self.spans(hop=False)) is None
        assert parts_ms([]) is None
        assert medians_ms([self.spans(hop=False)]) == {}
        assert medians_ms([self.spans(), self.spans(hop=False)])["request"] == 100
        assert set(medians_ms([self.spans()])) == {*PARTS, "request"}


def half(*samples: Sample, sharding: bool, cold: int, **counts: int) -> Half:
    counters = Counter({"host.starts.cold": cold, "ingress.requests": len(samples), **counts})
    return Half(House(sharding=sharding), samples, counters, 5, 870, (1.0, 2.0, 3.0), {}, 1.0, 2.0)


WARM = Sample(0, 0, 2.0, 0.1, "warm")
FOUND = Found(
    {"trace": "made up", "servers": 3},
    half(
        WARM, replace(WARM, hop=True, latency_ms=2.5), replace(WARM, start_type="cold", refused="busy"), sharding=True,
        cold=1, **{"host.cold_starts.refused": 1, "shard.refusals.busy": 1, "server.sharded.answered": 1},
    ),
    half(WARM, WARM, replace(WARM, start_type="cold"), sharding=False, cold=6, **{"host.cold_starts.evicted": 6}),
)  # fmt: skip


class TestReport:
    def test_figures_are_of_the_system_and_of_the_client(self) -> None:
        values = figures(FOUND)
        assert values["cold_ratio"] == 6
        assert values["failed"] == 0
        assert values["sharded_p50_ms"] == 2.5
        assert values["ray_call_p50_ms"] == 2.0
        assert values["local_p50_ms"] == 2.0
        assert values["sharded_share"] == pytest.approx(1 / 3)
        assert all(bound.met(values) for bound in BOUNDS)

    def test_bounds_are_missed_where_they_are(self) -> None:
        slow = replace(WARM, hop=True, latency_ms=3.1)
        broken = replace(WARM, fault="ConnectionError: gone")
        values = figures(replace(FOUND, sharded=half(slow, broken, sharding=True, cold=2)))
        assert {bound.figure: bound.met(values) for bound in BOUNDS} == {
            "cold_ratio": False, "failed": False, "sharded_p50_ms": False,
        }  # fmt: skip

    def test_what_did_not_happen_has_no_figure(self) -> None:
        values = figures(replace(FOUND, sharded=half(WARM, sharding=True, cold=0)))
        assert values["sharded_p50_ms"] is None
        assert values["cold_ratio"] == 6, "no cold start counts as one"
        assert [bound.met(values) for bound in BOUNDS] == [True, True, None]

    def test_latencies_are_told_by_way_and_of_good_answers_only(self) -> None:
        ways = by_way([WARM, WARM, replace(WARM, hop=True), replace(WARM, refused="busy"), replace(WARM, fault="x")])
        assert {way: len(ms) for way, ms in ways.items()} == {"warm here": 2, "warm sharded": 1, "warm refused": 1}

    def test_quantiles(self) -> None:
        assert quantile([], 0.5) is None
        assert quantile([7.0], 0.99) == 7.0
        assert quantile([float(n) for n in range(1, 102)], 0.99) == pytest.approx(100.0)

    def test_the_json_line_has_everything(self) -> None:
        printed = json.loads(json_line(FOUND))
        assert printed["cold_ratio"] == 6
        assert printed["bounds_met"] == {"cold_ratio": True, "failed": True, "sharded_p50_ms": True}
        assert printed["sharded"]["cold_by_cause"] == {"refused": 1}
        assert printed["unsharded"]["cold_by_cause"] == {"evicted": 6}
        assert printed["sharded"]["latencies_ms"]["warm sharded"] == {"count": 1, "p50": 2.5, "p99": 2.5}

    def test_the_table_says_what_is_not_met(self) -> None:
        text = table(replace(FOUND, unsharded=half(WARM, sharding=False, cold=2)))
        (line,) = [line for line in text.splitlines() if line.startswith("cold_ratio")]
        assert line.split() == ["cold_ratio", "2.00", "at", "least", "5", "NO"]
        assert any(line.split() == ["busy", "1", "0"] for line in text.splitlines())


class TestCommandLine:
    @staticmethod
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.replay", *arguments],
            cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def test_without_traces_it_is_skipped_and_says_so(self, tmp_path: Path) -> None:
        done = self.run("--json", "--traces-dir", str(tmp_path))
        assert done.returncode == 77
        assert done.stdout == ""
        assert done.stderr.startswith("skipped: there is no traces.py")

    def test_nonsense_is_refused(self) -> None:
        done = self.run("--functions", "0")
        assert done.returncode == 2
        assert "1 or more" in done.stderr
