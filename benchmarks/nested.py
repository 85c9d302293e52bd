"""What does it cost that workers call each other?

    python -m benchmarks.nested [--json] [--rounds N]

Starts three servers of its own, and deploys workers until some have their homes where they are wanted. Requests go over
connections that are open, to warm workers, in turns, so that a machine whose speed drifts is as fast for one as for
the others:

* ``hello_ms_p50``                  one hello at its home;
* ``binding_same_machine_ms_p50``   a worker that fetches that hello by a service binding, at the same home: two guests;
* ``binding_other_machine_ms_p50``  the same, the callee at home on another server;
* ``tree_three_machines_ms_p50``    a dispatcher, a user's worker and the outbound worker that what it fetches goes
  to, each at home on another server: three guests, two hops;
* ``ray_call_p50_ms``               one Ray actor call with as many bytes as an offer, all through the run;
* ``traced_over_untraced_rps``      answers a second of the binding on one machine, 16 connections, with traces at the
  default sampling that go to a backend, over those without any: the median of pairs of rounds, one right after the
  other, whose order alternates. ``traced_rps`` and ``untraced_rps`` are medians as well.

Medians; single figures of one machine in one run. Compare only what was measured in the same run.
"""

import argparse
import multiprocessing
import statistics
import sys
from itertools import count

import uvloop

from actors.bindings import Bindings, DispatchBinding, Outbound, ServiceBinding
from benchmarks.first_light import open_connection, throughput_process, timed_ms
from benchmarks.local_cluster import WORKERS, LocalCluster, local_cluster, print_result
from benchmarks.otlp_sink import otlp_sink
from benchmarks.replay.ray_call import RayCall, RayCalls

#: As many bytes as the offer of a small nested request has.
_OFFER_BYTES = 1_200
_NAMES_MAX = 200
#: Enough for both cores to be busy, and for requests to wait a little.
_CONNECTIONS = 16
_ROUND_S = 1.0


class Placed:
    """Deploys workers under names whose homes are where they are wanted."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._numbers = count(1)

    def deploy(self, home: str, zig: str, bindings: Bindings, namespace: str = "") -> str:
        """The name of a worker that is at home on ``home``; others of it are left where they fell."""
        component = (WORKERS / "zig" / zig / "worker.wasm").read_bytes()
        for _ in range(_NAMES_MAX):
            user = f"{zig}-{next(self._numbers)}"
            name = f"{namespace}/{user}" if namespace else user
            self._cluster.client.deploy(
                user, component, plan="paid", limits={"cpu_ms": 1_000}, bindings=bindings, namespace=namespace
            )
            homes = self._cluster.client.statistics()["server-1/server"]["homes"]
            if homes[name] == home:
                return name
        raise RuntimeError(f"no name of {_NAMES_MAX} has its home on {home}")


async def measure(cluster: LocalCluster, paths: dict[str, tuple[str, str, str]], rounds: int) -> dict[str, float]:
    """The median of each, in ms. ``paths``: by figure the server that is asked, the worker and the path."""
    tls = cluster.tls()
    connections = {server: await open_connection(port, tls) for server, port in cluster.ports.items()}
    took: dict[str, list[float]] = {figure: [] for figure in paths}
    for number in range(rounds + rounds // 10):
        for figure, (server, worker, path) in paths.items():
            took_ms = await timed_ms(connections[server], f"{worker}.localhost", path)
            if number >= rounds // 10:  # the first ones start isolates, open connections and lines
                took[figure].append(took_ms)
    return {figure: round(statistics.median(times), 3) for figure, times in took.items()}


def tracing_cost(cluster: LocalCluster, server: str, worker: str, path: str, pairs: int) -> dict[str, float]:
    """Answers a second with traces and without, and what the one is of the other."""
    rps: dict[bool, list[float]] = {True: [], False: []}
    order = (cluster.ports[server], f"{worker}.localhost", str(cluster.home.ca_certificate), _CONNECTIONS)
    with otlp_sink() as sink, multiprocessing.get_context("spawn").Pool(1) as pool:
        cluster.client.export_traces_to(sink.url)
        try:
            pool.apply(throughput_process, (*order, _ROUND_S, path))  # starts the isolates that so many ask for
            for pair in range(pairs):
                for traced in (True, False) if pair % 2 else (False, True):
                    cluster.client.configure_traces(on=traced)
                    rps[traced].append(pool.apply(throughput_process, (*order, _ROUND_S, path)))
        finally:
            cluster.client.configure_traces(on=True)
            cluster.client.export_traces_to("")
        if not sink.spans:
            raise RuntimeError("no span reached the backend: what was measured is something else")
    ratios = [traced / untraced for traced, untraced in zip(rps[True], rps[False], strict=True)]
    return {
        "traced_over_untraced_rps": round(statistics.median(ratios), 3),
        "traced_rps": round(statistics.median(rps[True]), 1),
        "untraced_rps": round(statistics.median(rps[False]), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What calls between workers take.")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--rounds", type=int, default=300, help="requests of each kind")
    parser.add_argument("--pairs", type=int, default=12, help="rounds of a second with traces, and without")
    options = parser.parse_args()
    with local_cluster("--servers", "3") as cluster:
        placed = Placed(cluster)
        print("deploying workers", file=sys.stderr)
        none = Bindings()
        hello = placed.deploy("server-1", "hello", none)
        far = placed.deploy("server-2", "hello", none)
        guard = placed.deploy("server-3", "hello", none)
        near = placed.deploy("server-1", "fetch", Bindings(services=(ServiceBinding("callee", hello),)))
        across = placed.deploy("server-1", "fetch", Bindings(services=(ServiceBinding("callee", far),)))
        user = placed.deploy("server-2", "fetch", none, "customers").partition("/")[2]
        dispatcher = placed.deploy(
            "server-1",
            "fetch",
            Bindings(dispatch=(DispatchBinding("customers", "customers"),), outbound=Outbound(guard)),
        )
        callee = "/?url=http://callee.binding.internal/"
        tree = f"/?url=http://{user}.dispatch.internal/?url=http://example.com/"
        paths = {
            "hello_ms_p50": ("server-1", hello, "/"),
            "binding_same_machine_ms_p50": ("server-1", near, callee),
            "binding_other_machine_ms_p50": ("server-1", across, callee),
            "tree_three_machines_ms_p50": ("server-1", dispatcher, tree),
        }
        print(f"{options.rounds} requests of each kind", file=sys.stderr)
        ray_calls = RayCalls(RayCall(_OFFER_BYTES))
        try:
            figures = uvloop.run(measure(cluster, paths, options.rounds))
        finally:
            ray_ms = ray_calls.close()
        figures["ray_call_p50_ms"] = round(statistics.median(ray_ms), 3)
        print(f"{options.pairs} rounds with traces, and without", file=sys.stderr)
        figures |= tracing_cost(cluster, "server-1", near, callee, options.pairs)
        print_result(dict(figures), as_json=options.json)


if __name__ == "__main__":
    main()
