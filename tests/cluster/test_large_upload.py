"""A large upload that its home refuses: it runs where it arrived, the home saw the window, nobody's memory grew."""

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_site import Site
from https_client import Connection

import everwarm
from benchmarks.local_cluster import LocalCluster

ECHO = Path(everwarm.__file__).parent.parent / "workers" / "zig" / "echo" / "worker.wasm"
#: A gigabyte when there is time for it (``EVERWARM_LONG_TESTS=1``): three processes read all of it.
UPLOAD_BYTES = 1 << 30 if os.environ.get("EVERWARM_LONG_TESTS") == "1" else 192 << 20
PIECE = bytes(range(256)) * 1024
HEAD_AND_WINDOW_BYTES = (8 + 64) * 1024
#: What a process may grow by meanwhile: buffers of a connection, the pages that a guest touches for the first time, and
#: what Python's allocator keeps: 2.2 MiB were seen. A body that were held anywhere would be sixteen times as much.
GROWTH_BYTES_MAX = 12 << 20


@pytest.fixture(scope="module")
def cluster(site: Site) -> LocalCluster:
    return site.cluster


def resident_bytes(pids: dict[str, int]) -> dict[str, int]:
    """What each process has in memory of its own, files that are mapped not counted."""
    found = {}
    for role, pid in pids.items():
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
        found[role] = (int(resident) - int(shared)) * 4096
    return found


class Memory:
    """The most that each process had, looked at while something else goes on."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self.before = resident_bytes(pids)
        self.most = dict(self.before)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._over.wait(0.05):
            for role, bytes_ in resident_bytes(self._pids).items():
                self.most[role] = max(self.most[role], bytes_)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def grown(self) -> dict[str, int]:
        """What each process grew by."""
        return {role: most - self.before[role] for role, most in self.most.items()}


def test_a_large_upload_that_is_refused(cluster: LocalCluster) -> None:
    client = cluster.client
    client.deploy("big", ECHO, plan="paid", limits={"cpu_ms": 120_000, "request_body_bytes_max": UPLOAD_BYTES})
    before = client.statistics()
    home = before["server-1/server"]["homes"]["big"]
    away = next(server for server in cluster.ports if server != home)
    pids = {role: counted["pid"] for role, counted in before.items() if "pid" in counted}
    assert {f"{server}/{role}" for server in cluster.ports for role in ("server", "host", "shard", "ingress")} <= set(
        pids
    )
    connection = Connection(cluster.tls(), cluster.ports[away], "big.localhost")
    connection._inner.timeout = 60
    connection._inner.sock.settimeout(60)
    expected = hashlib.sha256()

    def pieces() -> Iterator[bytes]:
        for _ in range(UPLOAD_BYTES // len(PIECE)):
            expected.update(PIECE)
            yield PIECE

    client.configure_admission(home, in_flight_max=0)
    try:
        with Memory(pids) as memory:
            answer = connection.fetch(
                "big.localhost", "/?digest", method="POST", body=pieces(), headers={"content-type": "text/plain"}
            )
    finally:
        client.configure_admission(home, in_flight_max=128)
    connection.close()

    assert answer.status == 200, answer.body
    assert answer.body == f"sha256={expected.hexdigest()} bytes={UPLOAD_BYTES}\n".encode()
    assert (answer.timing["server"], answer.timing["refused"]) == (away, "busy")
    after = client.statistics()
    sharded, sharded_before = after[f"{away}/server"]["sharded"], before[f"{away}/server"]["sharded"]
    assert sharded["refused"] == sharded_before["refused"] + 1
    assert sharded["sent_bytes"] - sharded_before["sent_bytes"] <= HEAD_AND_WINDOW_BYTES
    refusals, refusals_before = (told[f"{home}/shard"]["refusals"].get("busy", 0) for told in (after, before))
    assert refusals == refusals_before + 1
    grown = memory.grown()
    assert max(grown.values()) < GROWTH_BYTES_MAX, {role: bytes_ >> 20 for role, bytes_ in grown.items()}
    print({role: f"{bytes_ / (1 << 20):.1f} MiB" for role, bytes_ in sorted(grown.items())})


def test_a_body_beyond_its_workers_own_limit_is_turned_away(cluster: LocalCluster) -> None:
    """The edge knows each worker's limit, with a lease or without: on the free plan 100 MB, or what it asked for."""
    cluster.client.deploy("small", ECHO, limits={"request_body_bytes_max": 1_000})
    for port in cluster.ports.values():
        for body, status in ((bytes(1_000), 200), (bytes(1_001), 413), (iter([bytes(900), bytes(200)]), 413)):
            connection = Connection(cluster.tls(), port, "small.localhost")
            assert connection.fetch("small.localhost", "/?digest", method="POST", body=body).status == status
            connection.close()
