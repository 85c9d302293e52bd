"""What does it cost that workers call each other?

    python -m benchmarks.nested [--json] [--rounds N]

Starts three servers of its own, and deploys workers whose homes are where they are wanted. Requests go over connections
that are open, to warm workers, in turns, so that a machine whose speed drifts is as fast for one as for the others:

* ``hello_ms_p50``                  one hello at its home;
* ``binding_same_machine_ms_p50``   a worker that fetches that hello by a service binding, at the same home: two guests;
* ``binding_other_machine_ms_p50``  the same, the callee at home on another server;
* ``tree_three_machines_ms_p50``    a dispatcher, a user's worker and the outbound worker that what it fetches goes
  to, each at home on another server: three guests, two hops;
* ``ray_call_p50_ms``               one Ray actor call with as many bytes as an offer, all through the run;
* ``traced_over_untraced_rps``      answers a second of the binding on one machine, 16 connections, with traces at the
  default sampling that go to a backend, over those without any: the median of pairs of rounds, one right after the
  other, whose order alternates. ``traced_rps`` and ``untraced_rps`` are medians as well.

A worker that a server asks for often gets an isolate there, and then nothing goes to another machine any more. So there
are many of those that are to be far, each asked a few times; ``far_share`` is how many of the calls that were to go to
other machines were answered there.

Medians; single figures of one machine in one run. Compare only what was measured in the same run.
"""

import argparse
import multiprocessing
import statistics
import sys
from dataclasses import dataclass
from itertools import count

import uvloop

from actors.bindings import Bindings, DispatchBinding, Outbound, ServiceBinding
from actors.catalog import Catalog
from actors.ring import Ring, worker_key
from benchmarks.first_light import open_connection, throughput_process, timed_ms
from benchmarks.local_cluster import WORKERS, LocalCluster, local_cluster, print_result
from benchmarks.otlp_sink import otlp_sink
from benchmarks.replay.ray_call import RayCall, RayCalls

#: As many bytes as the offer of a small nested request has.
_OFFER_BYTES = 1_200
#: Of a worker that is asked from elsewhere; with fourteen in ten minutes a copy pays (``heat``).
_FAR_REQUESTS_MAX = 10
#: Enough for both cores to be busy, and for requests to wait a little.
_CONNECTIONS = 16
_ROUND_S = 1.0
_SERVERS = tuple(f"server-{i}" for i in (1, 2, 3))
_CALLEE = "http://callee.binding.internal/"


@dataclass(frozen=True)
class Ask:
    """One request: which server is asked, which worker, and its path."""

    server: str
    worker: str
    path: str


class Placed:
    """Deploys workers under names whose homes are where they are wanted."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._numbers = count(1)
        with Catalog.open(cluster.home.control / "catalog.sqlite") as catalog:
            self._ring = Ring(0, dict.fromkeys(_SERVERS, 1), catalog.cluster_secret())

    def deploy(self, home: str, zig: str, bindings: Bindings, namespace: str = "") -> str:
        """The name of a worker that is at home on ``home``."""
        while True:
            user = f"{zig}-{next(self._numbers)}"
            name = f"{namespace}/{user}" if namespace else user
            if self._ring.home_of(worker_key("default", name)) == home:
                break
        self._cluster.client.deploy(
            user, (WORKERS / "zig" / zig / "worker.wasm").read_bytes(), plan="paid", limits={"cpu_ms": 1_000},
            bindings=bindings, namespace=namespace,
        )  # fmt: skip
        return name

    def far_binding(self) -> Ask:
        """A worker on the first server whose callee is at home on the second."""
        callee = self.deploy("server-2", "hello", Bindings())
        caller = self.deploy("server-1", "fetch", Bindings(services=(ServiceBinding("callee", callee),)))
        return Ask("server-1", caller, f"/?url={_CALLEE}")

    def far_tree(self) -> Ask:
        """A dispatcher on the first server, its user's worker on the second, their outbound worker on the third."""
        guard = self.deploy("server-3", "hello", Bindings())
        user = self.deploy("server-2", "fetch", Bindings(), "customers").partition("/")[2]
        dispatcher = self.deploy(
            "server-1",
            "fetch",
            Bindings(dispatch=(DispatchBinding("customers", "customers"),), outbound=Outbound(guard)),
        )
        return Ask("server-1", dispatcher, f"/?url=http://{user}.dispatch.internal/?url=http://example.com/")


def answered(cluster: LocalCluster, server: str) -> int:
    """Requests that the hosts of a server have run to a good end."""
    return sum(
        counted["outcomes"].get("ok", 0)
        for address, counted in cluster.client.statistics().items()
        if address.startswith(f"{server}/host")
    )


async def measure(cluster: LocalCluster, asks: dict[str, list[Ask]], rounds: int) -> dict[str, float]:
    """The median of each, in ms. ``asks``: by figure those that are asked in turn."""
    tls = cluster.tls()
    connections = {server: await open_connection(port, tls) for server, port in cluster.ports.items()}
    took: dict[str, list[float]] = {figure: [] for figure in asks}
    for number in range(rounds + rounds // 10):
        for figure, those in asks.items():
            ask = those[number % len(those)]
            took_ms = await timed_ms(connections[ask.server], f"{ask.worker}.localhost", ask.path)
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
    with local_cluster("--servers", str(len(_SERVERS))) as cluster:
        placed = Placed(cluster)
        asked = options.rounds + options.rounds // 10
        many = -(-asked // _FAR_REQUESTS_MAX)
        print(f"deploying {5 * many + 2} workers", file=sys.stderr)
        hello = placed.deploy("server-1", "hello", Bindings())
        near = placed.deploy("server-1", "fetch", Bindings(services=(ServiceBinding("callee", hello),)))
        asks = {
            "hello_ms_p50": [Ask("server-1", hello, "/")],
            "binding_same_machine_ms_p50": [Ask("server-1", near, f"/?url={_CALLEE}")],
            "binding_other_machine_ms_p50": [placed.far_binding() for _ in range(many)],
            "tree_three_machines_ms_p50": [placed.far_tree() for _ in range(many)],
        }
        print(f"{options.rounds} requests of each kind", file=sys.stderr)
        before = answered(cluster, "server-2") + answered(cluster, "server-3")
        ray_calls = RayCalls(RayCall(_OFFER_BYTES))
        try:
            figures = uvloop.run(measure(cluster, asks, options.rounds))
        finally:
            ray_ms = ray_calls.close()
        figures["ray_call_p50_ms"] = round(statistics.median(ray_ms), 3)
        far = answered(cluster, "server-2") + answered(cluster, "server-3") - before
        figures["far_share"] = round(far / (3 * asked), 3)
        print(f"{options.pairs} rounds with traces, and without", file=sys.stderr)
        figures |= tracing_cost(cluster, "server-1", near, f"/?url={_CALLEE}", options.pairs)
        print_result(dict(figures), as_json=options.json)


if __name__ == "__main__":
    main()
