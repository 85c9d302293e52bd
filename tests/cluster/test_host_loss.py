"""A host process of a real cluster is killed: what had not started runs elsewhere, and the client hardly notices.

Nobody restarts it here: what follows then is told in ``test_supervision``.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from https_client import fetch

import everwarm
from benchmarks.local_cluster import LocalCluster, local_cluster

WORKERS = Path(everwarm.__file__).parent.parent / "workers" / "zig"


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster("--servers", "2", "--hosts", "2", "--no-restarts") as cluster:
        spin = WORKERS / "spin" / "worker.wasm"
        cluster.client.deploy("spin", spin, plan="paid", limits={"cpu_ms": 30_000}, reuse={"max_requests": 1})
        yield cluster


def hosts(cluster: LocalCluster, server: str) -> dict[str, dict]:
    """The counters of a server's hosts that can be reached."""
    counters = cluster.client.statistics()
    return {a: c for a, c in counters.items() if a.startswith(f"{server}/host") and "error" not in c}


def test_requests_outlive_the_host_that_they_were_leased_to(cluster: LocalCluster) -> None:
    home = cluster.client.statistics()["server-1/server"]["homes"]["spin"]
    port, tls = cluster.ports[home], cluster.tls()

    def ask(method: str, path: str) -> tuple[int, str]:
        answer = fetch(tls, port, "spin.localhost", path, method=method, body=b"" if method == "POST" else None)
        return answer.status, answer.timing.get("server", "")

    for _ in range(3):  # the first brings the lease
        assert ask("GET", "/?rounds=1") == (200, home)
    assert len(hosts(cluster, home)) == 2
    with ThreadPoolExecutor(12) as clients:
        posts = [clients.submit(ask, "POST", "/") for _ in range(2)]  # they spin until they are stopped
        gets = [clients.submit(ask, "GET", "/?rounds=2000000") for _ in range(2)]  # a second or two
        until = time.monotonic() + 10
        while not (busy := [c for c in hosts(cluster, home).values() if c["running"] == 4]):
            assert time.monotonic() < until, hosts(cluster, home)
            threading.Event().wait(0.02)
        os.kill(busy[0]["pid"], signal.SIGKILL)
        assert [post.result()[0] for post in posts] == [502, 502]  # they had started, and must not run twice
        assert [get.result() for get in gets] == [(200, home)] * 2
        after = [clients.submit(ask, "POST", "/?rounds=1") for _ in range(12)]
        assert [one.result() for one in after] == [(200, home)] * 12
    counted = cluster.client.statistics()[f"{home}/server"]
    assert (counted["hosts"], counted["hosts_lost"], counted["lent_out"]) == (1, 1, 0)


def test_a_server_without_hosts_answers_by_another(cluster: LocalCluster) -> None:
    home = cluster.client.statistics()["server-1/server"]["homes"]["spin"]
    other = next(server for server in sorted(cluster.ports) if server != home)
    for counted in hosts(cluster, home).values():
        os.kill(counted["pid"], signal.SIGKILL)
    for server in (home, other):
        for _ in range(3):
            answer = fetch(
                cluster.tls(), cluster.ports[server], "spin.localhost", "/?rounds=1", method="POST", body=b""
            )
            assert (answer.status, answer.timing["server"]) == (200, other)
    assert hosts(cluster, home) == {}
    assert cluster.client.statistics()[f"{home}/server"]["hosts"] == 0
