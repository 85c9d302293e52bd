"""A replay: requests of a trace in order, a policy that places them, a cluster that keeps what is warm.

The batch form takes a minute at a time, and assumes:

* what is warm when a minute begins serves that minute. A copy that is started ahead serves from the next minute on; a
  worker that is evicted within a minute after it was asked in it is not cold twice in that minute;
* one decision of ours for all of a worker's requests of a minute that are not warm or at home where they arrive, by the
  mean rate of a server, so that a worker becomes hot on all servers in the same minute;
* loads are known to everybody as of the minute before.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from benchmarks.warmth.baselines import Policy
from benchmarks.warmth.cluster import Cause, Cluster
from benchmarks.warmth.settings import Layout, Settings
from benchmarks.warmth.trace import Floats, Ints, Trace, minutes_of

#: Points of a run's course over time, for the plots.
_POINTS = 96

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Point:
    """The counts of a run up to a moment."""

    at_s: float
    requests: int
    cold: int
    evictions: int
    sharded: int
    isolates: int


@dataclass
class Run:
    """What came of a policy."""

    policy: str
    requests: int = 0
    sharded: int = 0
    cold: dict[Cause, int] = field(default_factory=dict)
    evictions: int = 0
    prewarms: int = 0
    prewarms_wasted: int = 0
    prewarms_denied: int = 0
    isolates: int = 0
    cpu_s: list[float] = field(default_factory=list)
    course: list[Point] = field(default_factory=list)

    @property
    def cold_starts(self) -> int:
        """Requests that found no isolate."""
        return sum(self.cold.values())

    @property
    def load_max_over_mean(self) -> float:
        """By CPU seconds of the whole run."""
        mean = sum(self.cpu_s) / len(self.cpu_s)
        return max(self.cpu_s) / mean if mean else 1.0


def replay(
    policy_class: type[Policy],
    trace: Trace,
    layout: Layout,
    settings: Settings,
    *,
    exact: bool,
    progress: Progress,
    eager: bool = False,
) -> Run:
    """One policy over a whole trace. ``eager``: see `cluster`; for the exact form alone."""
    cluster = Cluster(layout, settings, at_homes=policy_class.has_homes, eager=eager)
    policy = policy_class(trace, layout, settings)
    policy.begin(cluster)
    run = Run(policy.name)
    every = max(1, trace.minutes // _POINTS)
    kept = float(np.exp(-60.0 / settings.load_window_s))
    for number, minute in enumerate(minutes_of(trace, settings.servers, settings.seed)):
        policy.every_minute(minute.at_s)
        if exact:
            _one_by_one(cluster, policy, settings, *minute.in_order())
        else:
            worked = _at_once(cluster, policy, minute.at_s, *minute.cells(settings.servers))
            cluster.load = cluster.load * kept + worked * (1.0 - kept) / 60.0
        if number % every == every - 1:
            run.course.append(_point(cluster, minute.at_s + 60.0))
            if number % (every * 24) == every * 24 - 1:
                progress(f"{policy.name}: {100 * (number + 1) // trace.minutes} %, {cluster.cold_starts:,} cold")
    run.course.append(_point(cluster, trace.minutes * 60.0))
    run.requests, run.sharded, run.cold = cluster.requests, cluster.sharded, dict(cluster.cold)
    run.evictions, run.isolates = cluster.evictions, cluster.isolates
    run.prewarms, run.prewarms_denied = cluster.prewarms, cluster.prewarms_denied
    run.prewarms_wasted = cluster.prewarms_wasted + cluster.unused
    run.cpu_s = cluster.cpu_s.tolist()
    return run


def _one_by_one(
    cluster: Cluster, policy: Policy, settings: Settings, workers: list[int], arrived: list[int], times_s: list[float]
) -> None:
    cpu_s, window_s = cluster.layout.cpu_s, settings.load_window_s
    load, worked, run = cluster.load, cluster.cpu_s, policy.run
    kept_each_s = float(np.exp(-1.0 / window_s))
    second = int(times_s[0]) if times_s else 0
    cluster.requests += len(workers)
    for worker, at, now_s in zip(workers, arrived, times_s, strict=True):
        if now_s >= second + 1:
            load *= kept_each_s ** (int(now_s) - second)
            second = int(now_s)
        server = run(worker, at, now_s)
        cpu = cpu_s[worker]
        worked[server] += cpu
        load[server] += cpu / window_s
        if server != at:
            cluster.sharded += 1


def _at_once(cluster: Cluster, policy: Policy, now_s: float, worker: Ints, arrived: Ints, times: Ints) -> Floats:
    servers = cluster.servers
    placed = policy.place(worker, arrived, times, now_s)
    cluster.requests += int(times.sum())
    cluster.sharded += int(times[placed != arrived].sum())
    cpu = np.array(cluster.layout.cpu_s)[worker] * times
    worked: Floats = np.bincount(placed, weights=cpu, minlength=servers).astype(np.float64)
    cluster.cpu_s += worked
    places, which = np.unique(worker * servers + placed, return_inverse=True)
    counts = np.bincount(which, weights=times, minlength=len(places)).astype(np.int64)
    warm = np.frombuffer(cluster.warm, np.uint8)[places] == 1
    cluster.hits(places[warm], counts[warm], now_s)
    homes = cluster.layout.homes
    for place, count in zip(places[~warm].tolist(), counts[~warm].tolist(), strict=True):
        one, server = divmod(place, servers)
        cluster.cold_start(one, server, now_s, count, spilled=policy.has_homes and server != homes[one])
    return worked


def _point(cluster: Cluster, at_s: float) -> Point:
    return Point(at_s, cluster.requests, cluster.cold_starts, cluster.evictions, cluster.sharded, cluster.isolates)
