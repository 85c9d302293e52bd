"""The replay of traces: that it counts right, that both its forms agree, and what it shows on the real trace."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from benchmarks.warmth.__main__ import ABSENT, find, main
from benchmarks.warmth.baselines import BASELINES, BoundedRing, LeastLoaded, PlainRing, Policy, Unsharded
from benchmarks.warmth.cluster import Cause, Cluster
from benchmarks.warmth.everwarm_policy import AllDeployed, Everwarm, OnRequest
from benchmarks.warmth.least import least
from benchmarks.warmth.plots import draw
from benchmarks.warmth.replay import Run, replay
from benchmarks.warmth.report import figures, json_line, ratio, table
from benchmarks.warmth.settings import Settings, layout
from benchmarks.warmth.trace import Trace, TraceAbsent, load, minutes_of

ROOT = Path(__file__).parents[1]
POLICIES: list[type[Policy]] = [Everwarm, OnRequest, *BASELINES]


def small(minutes: int = 60, workers: int = 40, seed: int = 1) -> Trace:
    """A few workers asked often, many asked rarely."""
    random = np.random.default_rng(seed)
    cells = random.poisson(30.0 / (1 + np.arange(workers)) ** 1.5, (minutes, workers))
    minute, worker = np.nonzero(cells)
    return Trace("small", worker, minute, cells[minute, worker], np.full(workers, 0.1), np.full(workers, 20.0))


def run(policy: type[Policy], trace: Trace, settings: Settings, *, exact: bool = True, eager: bool = False) -> Run:
    return replay(
        policy, trace, layout(trace, settings), settings, exact=exact, eager=eager, progress=lambda line: None
    )


SETTINGS = Settings(servers=4, slots=8)


class TestTrace:
    def test_every_request_arrives_once(self) -> None:
        trace = small()
        minutes = list(minutes_of(trace, 4, seed=0))
        assert sum(len(minute.worker) for minute in minutes) == trace.requests
        asked = np.concatenate([minute.worker for minute in minutes])
        assert np.array_equal(np.bincount(asked), np.bincount(trace.worker, weights=trace.count).astype(int))

    def test_both_forms_see_the_same(self) -> None:
        minute = next(iter(minutes_of(small(), 4, seed=0)))
        workers, servers, times_s = minute.in_order()
        assert times_s == sorted(times_s)
        worker, server, times = minute.cells(4)
        told = {(w, s): n for w, s, n in zip(worker.tolist(), server.tolist(), times.tolist(), strict=True)}
        assert told == {cell: list(zip(workers, servers, strict=True)).count(cell) for cell in told}
        assert sum(told.values()) == len(workers)

    def test_a_seed_repeats(self) -> None:
        first, again, other = (next(iter(minutes_of(small(), 4, seed))) for seed in (3, 3, 4))
        assert np.array_equal(first.server, again.server)
        assert not np.array_equal(first.server, other.server)

    def test_absent_files_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(TraceAbsent, match=r"there is no traces\.py in"):
            load("T3", tmp_path)

    def test_the_command_skips_without_traces(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.warmth", "--traces-dir", str(tmp_path)],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == ABSENT
        assert done.stdout == ""
        assert "skipped: there is no" in done.stderr


class TestCluster:
    def cluster(self, slots: int = 2) -> Cluster:
        settings = Settings(servers=2, slots=slots, prewarms_per_s=1.0)
        return Cluster(layout(small(workers=6), settings), settings, at_homes=False, eager=True)

    def test_causes(self) -> None:
        cluster = self.cluster()
        cluster.serve(0, 0, 0.0)
        cluster.serve(0, 0, 1.0)
        cluster.serve(0, 1, 2.0)
        cluster.serve(1, 0, 3.0)
        cluster.serve(1, 1, 3.0, spilled=True)
        assert cluster.cold == {Cause.FIRST_TOUCH: 2, Cause.ELSEWHERE: 1, Cause.SPILLED: 1}
        cluster.serve(2, 0, 4.0)  # somebody has to go
        assert cluster.evictions == 1
        gone = next(worker for worker in (0, 1) if not cluster.is_warm(worker, 0))
        cluster.serve(gone, 0, 5.0)
        assert cluster.cold[Cause.EVICTED] == 1
        assert cluster.isolates == 4

    def test_memory_is_a_bound(self) -> None:
        cluster = self.cluster()
        for now_s, worker in enumerate([0, 1, 2, 3, 4, 5] * 5):
            cluster.serve(worker, 0, float(now_s))
            assert cluster.used_bytes[0] <= cluster.layout.capacity_bytes

    def test_a_prewarm_has_a_budget(self) -> None:
        cluster = self.cluster()
        assert cluster.start_ahead(0, 0, 0.0, 1)
        assert not cluster.start_ahead(1, 0, 0.5, 1)
        assert cluster.start_ahead(1, 0, 1.6, 1)
        assert (cluster.prewarms, cluster.prewarms_denied) == (2, 1)

    def test_a_prewarm_is_used_or_wasted(self) -> None:
        cluster = self.cluster(slots=1)
        cluster.start_ahead(0, 0, 0.0, 1)
        cluster.serve(0, 0, 1.0)
        assert (cluster.cold_starts, cluster.unused) == (0, 0)
        cluster.start_ahead(0, 1, 2.0, 1)
        assert cluster.unused == 1
        cluster.serve(1, 1, 3.0)
        assert (cluster.prewarms_wasted, cluster.unused, cluster.evictions) == (1, 0, 1)

    def test_a_prewarm_takes_no_better_place(self) -> None:
        cluster = self.cluster(slots=1)
        for second in range(20):
            cluster.serve(0, 0, float(second))
        assert not cluster.start_ahead(1, 0, 30.0, 1)
        assert cluster.is_warm(0, 0)


class TestReplay:
    @pytest.mark.parametrize(("policy", "exact"), list(product([*POLICIES, AllDeployed], [True, False])))
    def test_the_books_balance(self, policy: type[Policy], exact: bool) -> None:
        trace = small()
        done = run(policy, trace, SETTINGS, exact=exact)
        assert done.requests == trace.requests
        assert sum(done.cpu_s) == pytest.approx(4 * trace.minutes * 60 * SETTINGS.utilization)
        assert done.isolates == done.cold_starts + done.prewarms - done.evictions
        assert done.isolates <= 4 * 8
        assert done.prewarms_wasted <= done.prewarms
        assert 0 <= done.sharded <= done.requests
        assert done.course[-1].cold == done.cold_starts

    @pytest.mark.parametrize("exact", [True, False])
    def test_with_memory_for_all_a_ring_has_first_touches_only(self, exact: bool) -> None:
        trace = small()
        done = run(PlainRing, trace, Settings(servers=4, slots=40), exact=exact)
        assert done.cold == {Cause.FIRST_TOUCH: trace.first_touches}
        assert done.evictions == 0

    @pytest.mark.parametrize("exact", [True, False])
    def test_what_was_deployed_to_memory_enough_is_warm(self, exact: bool) -> None:
        done = run(AllDeployed, small(), Settings(servers=4, slots=80), exact=exact)
        assert done.cold.get(Cause.FIRST_TOUCH, 0) == done.cold.get(Cause.EVICTED, 0) == 0

    def test_one_server_is_home_to_all_whatever_the_policy(self) -> None:
        trace, alone = small(), Settings(servers=1, slots=40)
        for policy in [OnRequest, *BASELINES]:
            done = run(policy, trace, alone)
            assert (done.cold_starts, done.sharded) == (trace.first_touches, 0)

    def test_ours_has_fewer_cold_and_less_sharded_than_either_end(self) -> None:
        trace = small(minutes=120)
        ours, theirs, ring = (run(policy, trace, SETTINGS) for policy in (OnRequest, Unsharded, PlainRing))
        assert ours.cold_starts < theirs.cold_starts
        assert ours.sharded < ring.sharded

    def test_load_is_even_where_it_is_looked_at(self) -> None:
        trace = small(minutes=120)
        assert run(LeastLoaded, trace, SETTINGS).load_max_over_mean < 1.05
        ring, bounded = run(PlainRing, trace, SETTINGS), run(BoundedRing, trace, SETTINGS)
        assert bounded.load_max_over_mean < ring.load_max_over_mean

    @pytest.mark.parametrize("policy", POLICIES)
    def test_a_seed_repeats_all(self, policy: type[Policy]) -> None:
        first, again = (run(policy, small(minutes=20), SETTINGS) for _ in range(2))
        assert first == again

    def test_hearing_late_of_uses_changes_little(self) -> None:
        trace = small(minutes=120)
        for policy in (Unsharded, PlainRing, OnRequest):
            late, eager = run(policy, trace, SETTINGS), run(policy, trace, SETTINGS, eager=True)
            assert late.cold_starts == pytest.approx(eager.cold_starts, rel=0.1)

    def test_sizes_of_the_trace(self) -> None:
        trace = small()
        by_memory = run(Unsharded, trace, Settings(servers=4, slots=1, memory_mb=160))  # 8 of 20 MB each
        assert by_memory.cold_starts == run(Unsharded, trace, SETTINGS).cold_starts


class TestLeast:
    def test_it_is_first_touches_where_all_have_a_place(self) -> None:
        trace = small()
        assert (least(trace, 40).cold, least(trace, 40).evictions) == (trace.first_touches, 0)

    def test_a_known_sequence(self) -> None:
        """Belady's own: 1 2 3 4 1 2 5 1 2 3 4 5 with three places misses seven times."""
        worker = np.array([1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5])
        trace = Trace("known", worker, np.arange(12), np.ones(12, np.int64), np.ones(6), np.ones(6))
        assert least(trace, 3).cold == 7
        assert least(trace, 3).evictions == 4

    @pytest.mark.parametrize("places", [4, 8, 16, 32])
    def test_nobody_on_request_is_below_it(self, places: int) -> None:
        trace = small()
        done = run(Unsharded, trace, Settings(servers=1, slots=places))
        assert done.cold_starts >= least(trace, places).cold
        assert done.evictions >= least(trace, places).evictions


class TestReport:
    def test_none_counts_as_one(self) -> None:
        assert (ratio(50, 0), ratio(50, 1), ratio(0, 0)) == (50, 50, 0)

    def test_table_line_and_plots(self, tmp_path: Path) -> None:
        found = find(small(minutes=20), SETTINGS, [Unsharded, PlainRing], exact=True, processes=1)
        shown = table(found)
        assert all(done.policy in shown for done in found.runs)
        printed = json.loads(json_line(found))
        wanted = (
            "trace servers slots seed requests sharded_share load_max_over_mean cold_over_bound warm_share cold_ratio"
        )
        wanted += " warm_share_with_deploy_prewarm eviction_ratio cold_by_cause evictions prewarms prewarms_wasted"
        assert set(wanted.split()) <= set(printed)
        assert printed["cold_ratio"] == pytest.approx(figures(found)["cold_ratio"], rel=1e-6)
        assert printed["policies"]["everwarm"]["cold"] == printed["cold"]
        drawn = draw(found, tmp_path)
        assert len(drawn) == 8
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)

    def test_a_policy_that_nobody_knows_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["warmth", "--policies", "nonsense"])
        with pytest.raises(SystemExit):
            main()


@pytest.fixture(scope="module")
def trace() -> Trace:
    try:
        return load("T3")
    except TraceAbsent as absent:
        pytest.skip(str(absent))


class TestRealTrace:
    def test_it_shows_what_it_must(self, trace: Trace) -> None:
        """In the batch form, which takes seconds; the command takes the requests one by one."""
        found = find(trace, Settings(), [Unsharded], exact=False, processes=1)
        shown = figures(found)
        assert shown["cold_ratio"] is not None
        assert shown["cold_ratio"] >= 100
        assert shown["eviction_ratio"] is not None
        assert shown["eviction_ratio"] >= 100
        assert shown["sharded_share"] is not None
        assert shown["sharded_share"] <= 0.10
        assert shown["load_max_over_mean"] is not None
        assert shown["load_max_over_mean"] <= 1.5
        assert shown["cold_over_bound"] is not None
        assert shown["cold_over_bound"] <= 1.2
        assert shown["warm_share_with_deploy_prewarm"] is not None
        assert shown["warm_share_with_deploy_prewarm"] >= 0.99999

    @pytest.mark.parametrize("policy", [OnRequest, Unsharded, PlainRing])
    def test_both_forms_agree(self, trace: Trace, policy: type[Policy]) -> None:
        hour = trace.until(60)
        exact, batch = (run(policy, hour, Settings(), exact=form) for form in (True, False))
        assert batch.cold_starts == pytest.approx(exact.cold_starts, rel=0.1)
        assert batch.evictions == pytest.approx(exact.evictions, rel=0.1, abs=20)
        assert batch.sharded / batch.requests == pytest.approx(exact.sharded / exact.requests, abs=0.02)
        assert batch.load_max_over_mean == pytest.approx(exact.load_max_over_mean, rel=0.15)
