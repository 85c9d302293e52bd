"""Request trees on real Ray: a dispatcher, a user's worker and a guard, each at home on another server.

The last test kills a server: ``test_host_loss``, which comes next, does with the others.
"""

import itertools
import json
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cluster_site import Site, until
from https_client import Answer, fetch

import everwarm
from actors.bindings import Bindings, DispatchBinding, Outbound, Tail
from actors.catalog import Catalog
from actors.cordons import cordon_of
from actors.ring import Ring, worker_key
from benchmarks.local_cluster import LocalCluster
from tracing.trace import Attr, Span, SpanName

WORKERS = Path(everwarm.__file__).parent.parent / "workers" / "zig"
SERVERS = ("server-1", "server-2", "server-3")
Event = dict[str, Any]


@dataclass(frozen=True)
class Platform:
    """Dispatcher and tail at server 1, users' workers at server 2, guards at server 3."""

    cluster: LocalCluster
    ring: Ring

    def deploy(self, zig: str, home: str, bindings: Bindings = Bindings(), namespace: str = "", **limits: int) -> str:  # noqa: B008
        """An example worker under a name that is at home there; its name, without its namespace."""
        taken = {str(worker["deployment"]["worker"]) for worker in self.cluster.client.workers()}
        names = (f"{zig}-{i}" for i in range(1_000))
        full = {name: f"{namespace}/{name}" if namespace else name for name in names}
        name = next(
            name for name, worker in full.items()
            if worker not in taken and self.ring.home_of(worker_key(cordon_of(worker), worker)) == home
        )  # fmt: skip
        self.cluster.client.deploy(
            name, WORKERS / zig / "worker.wasm", plan="paid", limits={"cpu_ms": 10_000, **limits}, bindings=bindings,
            namespace=namespace,
        )  # fmt: skip
        return name

    def tree(self, user: str = "fetch", guard: str = "hello", **limits: int) -> "Tree":
        """A new dispatcher with its tail, a user's worker and a guard."""
        tail = self.deploy("tail", SERVERS[0])
        guarding = self.deploy(guard, SERVERS[2])
        users = self.deploy(user, SERVERS[1], namespace="customers", **limits)
        bindings = Bindings(
            dispatch=(DispatchBinding("customers", "customers"),), outbound=Outbound(guarding), tail=Tail((tail,))
        )
        return Tree(self, self.deploy("fetch", SERVERS[0], bindings), users, guarding, tail)


@dataclass(frozen=True)
class Tree:
    """Workers that call each other."""

    platform: Platform
    dispatcher: str
    user: str
    guard: str
    tail: str

    @property
    def path(self) -> str:
        """What makes the dispatcher call the user's worker, and that fetch something from the world."""
        return f"/?url=http://{self.user}.dispatch.internal/?url=http://origin.invalid/secret"

    def ask(self, method: str = "GET") -> Answer:
        """Over HTTPS, through server 1."""
        cluster = self.platform.cluster
        body = b"" if method == "POST" else None
        host = f"{self.dispatcher}.localhost"
        return fetch(cluster.tls(), cluster.ports[SERVERS[0]], host, self.path, method=method, body=body)

    def spans(self) -> list[Span]:
        """The trace of its one request; empty while nobody has told."""
        client = self.platform.cluster.client
        return [
            span
            for summary in client.traces(50) if summary["worker"] == self.dispatcher
            for span in client.trace(summary["trace_id"])
        ]  # fmt: skip

    def stages(self) -> dict[str, Span]:
        """Its handlers, by worker."""
        return {str(s.attributes[Attr.WORKER]): s for s in self.spans() if s.name == SpanName.HANDLER}

    def heard(self) -> list[list[Event]]:
        """What the tail worker was told, as often as it was."""
        client, told = self.platform.cluster.client, []
        for summary in client.traces(100):
            if summary["worker"] == self.tail:
                for span in client.trace(summary["trace_id"]):
                    if span.name == SpanName.HANDLER:
                        told.append(json.loads("".join(str(event.attributes[Attr.LOG_TEXT]) for event in span.events)))
        return told

    def running(self) -> int:
        """Guests that run now."""
        counters = self.platform.cluster.client.statistics()
        return sum(c["running"] for address, c in counters.items() if "/host" in address and "running" in c)


def outcomes(events: list[Event]) -> list[tuple[str, str]]:
    return [(event["scriptName"], event["outcome"]) for event in events]


@pytest.fixture(scope="module")
def platform(site: Site) -> Platform:
    with Catalog.open(site.cluster.home.control / "catalog.sqlite") as catalog:
        secret = catalog.cluster_secret()
    return Platform(site.cluster, Ring(0, dict.fromkeys(SERVERS, 1), secret))


@pytest.mark.parametrize("refusing", [(), (0,), (1,), (2,)])
def test_a_tree_over_three_servers_is_one_trace_and_is_heard_once(
    platform: Platform, refusing: tuple[int, ...]
) -> None:
    tree = platform.tree()
    for number in refusing:
        platform.cluster.client.configure_admission(SERVERS[number], draining=True)
    try:
        answer = tree.ask()
    finally:
        for number in refusing:
            platform.cluster.client.configure_admission(SERVERS[number], draining=False)
    assert (answer.status, answer.body) == (200, b"hello from Zig\nyou asked for /secret\n")
    chain = [tree.dispatcher, f"customers/{tree.user}", tree.guard]
    until("three stages have told", lambda: sum(s.name == SpanName.REQUEST for s in tree.spans()) == 3)
    spans = {span.span_id: span for span in tree.spans()}
    assert [s.name for s in spans.values() if s.parent_span_id not in spans] == [SpanName.REQUEST]
    handlers = tree.stages()
    homes = [SERVERS[i] if i not in refusing else SERVERS[max(0, i - 1)] for i in range(3)]
    assert [handlers[worker].server for worker in chain] == homes
    requests = {str(s.attributes[Attr.WORKER]): s for s in spans.values() if s.name == SpanName.REQUEST}
    for above, below in itertools.pairwise(chain):
        assert requests[below].parent_span_id == handlers[above].span_id
    for worker in chain:
        assert float(str(handlers[worker].attributes[Attr.CPU_MS])) > 0
        assert handlers[worker].attributes[Attr.START_TYPE]

    until("the tail has heard", lambda: bool(tree.heard()))
    (events,) = tree.heard()
    assert outcomes(events) == [(tree.dispatcher, "ok"), (tree.user, "ok"), (tree.guard, "ok")]
    ids = [event["everwarm"]["stage"] for event in events]
    assert [event["everwarm"]["parent"] for event in events] == [None, *ids[:2]]


def test_a_users_worker_is_killed_by_its_limit(platform: Platform) -> None:
    tree = platform.tree(user="spin", cpu_ms=5)
    assert tree.ask().status == 429
    until("the tail has heard", lambda: bool(tree.heard()))
    (events,) = tree.heard()
    assert outcomes(events) == [(tree.dispatcher, "ok"), (tree.user, "exceededCpu")]


def test_a_client_that_leaves_stops_three_stages_within_100_ms(platform: Platform) -> None:
    tree = platform.tree(guard="spin")
    cluster = platform.cluster
    host = f"{tree.dispatcher}.localhost"
    plain = socket.create_connection(("127.0.0.1", cluster.ports[SERVERS[0]]), 30)
    connection = cluster.tls().wrap_socket(plain, server_hostname=host)
    connection.sendall(f"GET {tree.path} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
    until("three guests run", lambda: tree.running() == 3)
    left_ns = time.time_ns()
    connection.close()
    until("the tail has heard", lambda: bool(tree.heard()))
    (events,) = tree.heard()
    assert [event["outcome"] for event in events] == ["canceled"] * 3
    until("all have told", lambda: len(tree.stages()) == 3)
    took_ms = {worker: (span.end_ns - left_ns) / 1e6 for worker, span in tree.stages().items()}
    print("stopped after, ms:", took_ms)
    assert max(took_ms.values()) < 100, took_ms
    counters = cluster.client.statistics()
    for server in SERVERS:
        counted = counters[f"{server}/server"]
        assert (counted["lent_out"], counted["nested"]["lent_out"], counted["tails"]["flows"]) == (0, 0, 0), server
        assert counters[f"{server}/shard"]["lent_out"] == 0, server


def test_the_machine_of_the_users_worker_is_killed_in_the_middle(platform: Platform) -> None:
    tree = platform.tree(guard="spin")
    client = platform.cluster.client
    lost = [int(c["pid"]) for address, c in client.statistics().items() if address.startswith("server-2/")]
    answered: list[tuple[int, float]] = []
    asking = threading.Thread(target=lambda: answered.append((tree.ask("POST").status, time.monotonic())))
    asking.start()
    until("three guests run", lambda: tree.running() == 3)
    killed_s = time.monotonic()
    # Stopped first: a guest whose Server goes before its own process would begin an answer, and a machine that is
    # lost goes as a whole.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in lost:
            os.kill(pid, number)
    asking.join(30)
    ((status, answered_s),) = answered
    print("answered after, s:", answered_s - killed_s)
    assert status == 502
    assert answered_s - killed_s < 2.0
    until("the tail has heard", lambda: bool(tree.heard()), within_s=20.0)
    (events,) = tree.heard()
    assert outcomes(events) == [(tree.dispatcher, "ok"), (tree.user, "homeLost"), (tree.guard, "canceled")]
    assert tree.running() == 0
