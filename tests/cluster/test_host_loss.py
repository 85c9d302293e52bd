"""A host process of a real cluster is killed: what had not started runs elsewhere, and the client hardly notices.

Nobody restarts it here: what follows then is told in ``test_supervision``.
"""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cluster_site import Site, until
from https_client import fetch

import everwarm
from benchmarks.local_cluster import LocalCluster

WORKERS = Path(everwarm.__file__).parent.parent / "workers" / "zig"


@pytest.fixture(scope="module")
def cluster(site: Site) -> LocalCluster:
    """With ``spin-long``, which may take its time and serves one request each."""
    spin = WORKERS / "spin" / "worker.wasm"
    site.cluster.client.deploy("spin-long", spin, plan="paid", limits={"cpu_ms": 30_000}, reuse={"max_requests": 1})
    return site.cluster


def test_requests_outlive_the_host_that_they_were_leased_to(site: Site, cluster: LocalCluster) -> None:
    home = site.homes["spin-long"]
    port, tls = cluster.ports[home], cluster.tls()

    def ask(method: str, path: str) -> tuple[int, str]:
        answer = fetch(tls, port, "spin-long.localhost", path, method=method, body=b"" if method == "POST" else None)
        return answer.status, answer.timing.get("server", "")

    for _ in range(3):  # the first brings the lease
        assert ask("GET", "/?rounds=1") == (200, home)
    assert len(site.hosts(home)) == 2
    before = cluster.client.statistics()[f"{home}/server"]["hosts"]  # also of cordons that earlier tests have used
    with ThreadPoolExecutor(12) as clients:
        posts = [clients.submit(ask, "POST", "/") for _ in range(2)]  # they spin until they are stopped
        gets = [clients.submit(ask, "GET", "/?rounds=2000000") for _ in range(2)]  # a second or two

        def busy() -> list[int]:
            return [counted["pid"] for counted in site.hosts(home).values() if counted["running"] == 4]

        until("four run in one host", lambda: bool(busy()))
        os.kill(busy()[0], signal.SIGKILL)
        assert [post.result()[0] for post in posts] == [502, 502]  # they had started, and must not run twice
        assert [get.result() for get in gets] == [(200, home)] * 2
        after = [clients.submit(ask, "POST", "/?rounds=1") for _ in range(12)]
        assert [one.result() for one in after] == [(200, home)] * 12
    counted = cluster.client.statistics()[f"{home}/server"]
    assert (counted["hosts"], counted["hosts_lost"], counted["lent_out"]) == (before - 1, 1, 0)


def test_a_server_without_hosts_answers_by_another(site: Site, cluster: LocalCluster) -> None:
    home = site.homes["spin-long"]
    others = [server for server in sorted(cluster.client.members()["servers"]) if server != home]
    for counted in site.hosts(home).values():
        os.kill(counted["pid"], signal.SIGKILL)
    for server in (home, *others):
        for _ in range(3):
            answer = fetch(
                cluster.tls(), cluster.ports[server], "spin-long.localhost", "/?rounds=1", method="POST", body=b""
            )
            assert answer.status == 200
            assert answer.timing["server"] in others
    assert site.hosts(home) == {}
    counters = cluster.client.statistics()
    elsewhere = [a for a, counted in counters.items() if a.startswith(f"{home}/host") and "error" not in counted]
    assert counters[f"{home}/server"]["hosts"] == len(elsewhere), "those of other cordons alone"
