"""Workers of different trust on a real cluster: a process each, which is started when it is needed and comes back."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from https_client import fetch

from actors.bindings import Bindings, DispatchBinding
from benchmarks.local_cluster import WORKERS, LocalCluster, local_cluster

SERVERS = ("server-1", "server-2")
USERS = "host-@customers"


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster("--servers", "2") as cluster:
        yield cluster


def wait_for(what: str, within_s: float, condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until_s, what
        threading.Event().wait(0.05)


def everwarm(*arguments: str) -> str:
    """What a command of ours says."""
    command = [sys.executable, "-m", "everwarm.cli", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def hosts(cluster: LocalCluster) -> dict[str, dict[str, Any]]:
    """What hosts count, by address; none of them is away."""
    found = {a: counts for a, counts in cluster.client.statistics().items() if "/host" in a}
    assert all("error" not in counts for counts in found.values()), found
    return found


def warm(cluster: LocalCluster, role: str) -> set[str]:
    """The versions that have an isolate in the hosts of that role."""
    return {v for a, host in hosts(cluster).items() if a.endswith(f"/{role}") for v in host["warm_versions"]}


def test_users_have_a_process_of_their_own_that_comes_back_as_theirs(cluster: LocalCluster) -> None:
    client = cluster.client
    component = {zig: WORKERS / "zig" / zig / "worker.wasm" for zig in ("hello", "fetch")}
    assert hosts(cluster).keys() == {f"{server}/host" for server in SERVERS}
    alice = client.deploy("alice", component["hello"], namespace="customers", plan="paid", limits={"cpu_ms": 10_000})
    assert alice.cordon == "@customers"
    bindings = Bindings(dispatch=(DispatchBinding("customers", "customers"),))
    shop = client.deploy("shop", component["fetch"], plan="paid", limits={"cpu_ms": 10_000}, bindings=bindings)
    assert shop.cordon == "default"
    assert hosts(cluster).keys() == {f"{server}/{role}" for server in SERVERS for role in ("host", USERS)}

    def ask() -> int:
        path = "/?url=http://alice.dispatch.internal/"
        return fetch(cluster.tls(), cluster.ports["server-1"], "shop.localhost", path).status

    def apart() -> None:
        assert ask() == 200
        assert alice.version in warm(cluster, USERS)
        assert alice.version not in warm(cluster, "host")
        assert shop.version in warm(cluster, "host")
        assert shop.version not in warm(cluster, USERS)

    apart()
    before = {address: host["pid"] for address, host in hosts(cluster).items()}
    assert len(set(before.values())) == 4
    home = next(a for a, h in hosts(cluster).items() if alice.version in h["warm_versions"])
    os.kill(before[home], signal.SIGKILL)
    wait_for("a request finds the users' host again, or another server's", 20.0, lambda: ask() == 200)

    def is_back() -> bool:
        found = client.statistics().get(home, {})
        return found.get("cordon") == "@customers" and found["pid"] != before[home]

    wait_for(f"{home} is back", 20.0, is_back)
    apart()
    after = {address: host["pid"] for address, host in hosts(cluster).items()}
    assert {address for address in after if after[address] != before[address]} == {home}


@pytest.mark.skipif(not os.environ.get("EVERWARM_LONG_TESTS"), reason="half a minute: EVERWARM_LONG_TESTS=1")
def test_a_server_that_comes_later_has_hosts_of_all_cordons(cluster: LocalCluster) -> None:
    client = cluster.client
    partner = client.deploy("partner", WORKERS / "zig" / "hello" / "worker.wasm", cordon="partners")
    for port in cluster.ports.values():  # with a lease from the second request on, where it runs
        assert [fetch(cluster.tls(), port, "partner.localhost", "/").status for _ in range(3)] == [200] * 3
    assert partner.version in warm(cluster, "host-partners")
    assert partner.version not in warm(cluster, "host") | warm(cluster, USERS)
    everwarm("servers", "add")
    client.refresh()
    cordons = {a: h["cordon"] for a, h in hosts(cluster).items() if a.startswith("server-3/")}
    assert cordons == {
        "server-3/host": "default", f"server-3/{USERS}": "@customers", "server-3/host-partners": "partners",
    }  # fmt: skip
    said = everwarm("status")
    assert any(line.split()[:2] == ["@customers", "3"] for line in said.splitlines()), said
