"""One half of a replay: a fresh cluster, the workers deployed, the load, and what was counted meanwhile."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.local_cluster import WORKERS, LocalCluster, local_cluster
from benchmarks.replay.breakdown import medians_ms
from benchmarks.replay.client import Edge, Sample, drive, worker_name
from benchmarks.replay.counters import counted, grown, isolates
from benchmarks.replay.ray_call import RayCall, RayCalls
from benchmarks.replay.slice import Arrival

#: What is deployed, in turn, under the names of the functions: workers that answer a GET at once.
COMPONENTS = ("zig/hello", "c/hello", "zig/echo", "zig/snapshot")
#: Deploys at once: those of a component that was compiled wait for the cluster's servers and not for the compiler.
_DEPLOYS_AT_ONCE = 4
#: Requests of a worker of its own through each server before the clock runs: they open what is opened once.
_WARMING_REQUESTS = 20
#: A small request's offer, where none is made that could be measured.
_OFFER_BYTES = 870
#: Traces that are looked at for the breakdown.
_TRACES_READ_MAX = 150

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class House:
    """The cluster of a replay. Both halves have the same but for ``sharding``."""

    servers: int = 3
    slots: int = 40  # isolates that each host has room for
    memory_mib: int = 2048  # and memory, of each host
    sharding: bool = True

    def options(self) -> list[str]:
        """For ``everwarm up``."""
        switch = [] if self.sharding else ["--no-sharding"]
        return [
            "--servers", str(self.servers), "--isolates", str(self.slots), "--memory-mib", str(self.memory_mib), *switch
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Half:
    """What came of one cluster. ``counts``: how its counters grew with the load."""

    house: House
    samples: Sequence[Sample]
    counts: Counter[str]
    isolates: int  # that live at the end
    offer_bytes: int  # of one request that is sent to its home
    ray_call_ms: Sequence[float]
    breakdown_ms: dict[str, float]
    deploy_s: float
    load_s: float


def run(house: House, workers: int, arrivals: Sequence[Arrival], progress: Progress) -> Half:
    """Bring up a cluster of its own, deploy, load it, and take it down again."""
    mode = "with sharding" if house.sharding else "without sharding"
    progress(f"{mode}: starting {house.servers} servers")
    with local_cluster(*house.options()) as cluster:
        began_s = time.perf_counter()
        _deploy(cluster, workers)
        deployed_s = time.perf_counter()
        progress(f"{mode}: {workers} workers deployed in {deployed_s - began_s:.1f} s; {len(arrivals):,} requests")
        servers = sorted(cluster.ports)
        edge = Edge(tuple(cluster.ports[server] for server in servers), str(cluster.home.ca_certificate))
        offer_bytes = _warm_up(cluster, edge)
        before = counted(cluster.client.statistics())
        ray_calls = RayCalls(RayCall(offer_bytes))
        try:
            loaded_s = time.perf_counter()
            samples = drive(edge, arrivals)
            load_s = time.perf_counter() - loaded_s
        finally:
            ray_call_ms = ray_calls.close()
        statistics = cluster.client.statistics()
        return Half(
            house, samples, grown(before, counted(statistics)), isolates(statistics), offer_bytes, ray_call_ms,
            _breakdown(cluster), deployed_s - began_s, load_s,
        )  # fmt: skip


def _deploy(cluster: LocalCluster, workers: int) -> None:
    components = [(WORKERS / name / "worker.wasm").read_bytes() for name in COMPONENTS]
    with ThreadPoolExecutor(_DEPLOYS_AT_ONCE) as pool:
        deploying = [
            # A machine that shares its cores has them taken away for 10 ms at a time, which its kernel counts as the
            # guest's own: all of what the free plan allows. This is about warmth, not about limits.
            pool.submit(cluster.client.deploy, worker_name(worker), components[worker % len(components)], plan="paid")
            for worker in range(workers)
        ]
        for deploy in deploying:
            deploy.result()


def _warm_up(cluster: LocalCluster, edge: Edge) -> int:
    """Open what is opened once, on all servers, by requests that count for nothing. How large an offer is, in bytes;
    of one that makes none, a usual size."""
    warming = -1
    cluster.client.deploy(worker_name(warming), (WORKERS / COMPONENTS[0] / "worker.wasm").read_bytes())
    requests = [
        Arrival(0.02 * i, warming, server) for i in range(_WARMING_REQUESTS) for server in range(len(edge.ports))
    ]
    drive(edge, requests)
    cluster.client.remove(worker_name(warming))
    counts = counted(cluster.client.statistics())
    offered = counts["server.sharded.offered"]
    return counts["server.sharded.sent_bytes"] // offered if offered else _OFFER_BYTES


def _breakdown(cluster: LocalCluster) -> dict[str, float]:
    summaries = cluster.client.traces(_TRACES_READ_MAX)
    sharded = [s["trace_id"] for s in summaries if s["hop"] and s["start_type"] == "warm" and not s["refused"]]
    return medians_ms(cluster.client.trace(trace_id) for trace_id in sharded)
