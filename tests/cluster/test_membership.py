"""Servers come, go and are killed under load, on real Ray: who fails, who is cold, and whose home moves.

In this order: a fifth server joins four, one of the five is killed, one of the four that are left is removed. Nobody
restarts what was killed: it is as if its machine were gone.
"""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster_site import until
from steady_load import Seen, SteadyLoad, tally

import everwarm
from actors.catalog import Catalog
from actors.membership import MembershipLimits
from actors.ring import Ring, worker_key
from benchmarks.local_cluster import LocalCluster, local_cluster
from everwarm.owner import ask_owner

#: Nodes come and go under load in ``test_nodes`` each time; this has five servers, and one of them dies.
pytestmark = pytest.mark.skipif(not os.environ.get("EVERWARM_LONG_TESTS"), reason="two minutes: EVERWARM_LONG_TESTS=1")

ROOT = Path(everwarm.__file__).parent.parent / "workers"
COMPONENTS = [ROOT / "zig" / "hello", ROOT / "c" / "hello", ROOT / "zig" / "echo", ROOT / "zig" / "snapshot"]
FOUR = [f"server-{i}" for i in range(1, 5)]
NEWCOMER = "server-5"
#: Of each of the four homes: workers that stay, and workers that the newcomer takes over. 20 in all, of which 1/5 move.
#: That a newcomer gets about its share of any names is for ``tests/actors/test_ring.py`` to show.
STAY, MOVE = 4, 1
CLIENTS = 8
LIMITS = MembershipLimits()
#: Who is dead is out of the ring after this, even if only its silence tells.
OUT_S_MAX = LIMITS.silent_s + LIMITS.tick_every_s


@dataclass(frozen=True)
class Town:
    """The cluster, its load, and where everybody lives."""

    cluster: LocalCluster
    load: SteadyLoad
    secret: bytes
    workers: list[str]

    def homes_in(self, servers: list[str]) -> dict[str, str]:
        """Where workers live in a ring of these servers."""
        ring = Ring(0, dict.fromkeys(servers, 1), self.secret)
        return {worker: str(ring.home_of(worker_key("default", worker))) for worker in self.workers}

    def homes(self, server: str = "server-1") -> dict[str, str]:
        """The same as a server sees it now."""
        found: dict[str, str] = self.cluster.client.statistics()[f"{server}/server"]["homes"]
        return found

    def ring(self) -> list[str]:
        """Who is home to anything."""
        return sorted(self.cluster.client.members()["servers"])

    def cold_causes(self) -> dict[str, int]:
        """Cold starts of all hosts that can be reached, by cause."""
        causes: dict[str, int] = {}
        for address, counted in self.cluster.client.statistics().items():
            if "/host" in address:
                for cause, n in counted.get("cold_starts", {}).items():
                    causes[cause] = causes.get(cause, 0) + n
        return causes

    def refresh(self) -> None:
        """Clients hear of the servers that there are now."""
        self.cluster.client.refresh()
        there = self.ring()
        self.load.ports = {s: port for s, port in self.cluster.client.running.servers.items() if s in there}


def names_for(secret: bytes) -> list[str]:
    """Names whose homes are spread evenly, and of which the newcomer takes the same number from each server."""
    before = Ring(0, dict.fromkeys(FOUR, 1), secret)
    after = Ring(0, dict.fromkeys([*FOUR, NEWCOMER], 1), secret)
    wanted = {(server, moves): MOVE if moves else STAY for server in FOUR for moves in (False, True)}
    names, number = [], 0
    while any(wanted.values()):
        key, number = worker_key("default", f"m-{number}"), number + 1
        what = str(before.home_of(key)), after.home_of(key) == NEWCOMER
        if wanted[what]:
            wanted[what] -= 1
            names.append(f"m-{number - 1}")
    return names


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    with local_cluster("--servers", "4", "--memory-mib", "512", "--no-restarts") as cluster:
        with Catalog.open(cluster.home.control / "catalog.sqlite") as catalog:
            secret = catalog.cluster_secret()
        workers = names_for(secret)
        for i, worker in enumerate(workers):
            component = COMPONENTS[i % len(COMPONENTS)] / "worker.wasm"
            # Plenty of CPU time: more processes than cores wait for each other.
            cluster.client.deploy(worker, component, plan="paid", limits={"cpu_ms": 10_000})
        with SteadyLoad(cluster.tls(), cluster.ports, workers, CLIENTS, seed=5) as load:
            town = Town(cluster, load, secret, workers)
            load.wait_for(20 * len(workers))
            assert town.homes() == town.homes_in(FOUR)
            print("steady:", tally(load.seen))
            assert all(one.ok for one in load.seen), tally(load.seen)
            yield town


def failed(seen: list[Seen]) -> list[Seen]:
    return [one for one in seen if not one.ok]


def test_a_fifth_server_joins_four(town: Town) -> None:
    """Nobody fails, a fifth of the workers moves, and no client waits for a start."""
    before, causes = town.homes(), town.cold_causes()
    mark = len(town.load.seen)
    assert ask_owner(town.cluster.home, {"do": "add"}, print) == NEWCOMER
    town.refresh()
    town.load.wait_for(30 * len(town.workers))
    seen, after = town.load.since(mark), town.homes()
    print("join:", tally(seen), town.cluster.client.members()["handed_over"])

    assert failed(seen) == []
    moved = {worker for worker in town.workers if before[worker] != after[worker]}
    assert {after[worker] for worker in moved} == {NEWCOMER}
    assert len(moved) == len(town.workers) // 5
    assert after == town.homes_in([*FOUR, NEWCOMER])
    assert [one for one in seen if one.start == "cold" and one.worker in moved] == []
    assert [one for one in seen if one.server == NEWCOMER and one.worker in moved] != []
    new_causes = {cause: n - causes.get(cause, 0) for cause, n in town.cold_causes().items() if n != causes.get(cause)}
    assert new_causes.get("membership", 0) == 0, new_causes
    assert set(new_causes) <= {"refused"}, new_causes  # of a busy machine, whoever joins
    handed = town.cluster.client.members()["handed_over"]
    assert (handed["moved"], handed["warm"]) == (len(moved), len(moved))


def test_one_of_five_is_killed(town: Town) -> None:
    """Only what was in flight on it fails, of what must not be repeated; the others take its workers."""
    victim = "server-3"
    before = town.homes()
    assert town.ring() == sorted([*FOUR, NEWCOMER])
    counters = town.cluster.client.statistics()
    pids = [counted["pid"] for address, counted in counters.items() if address.startswith(f"{victim}/")]
    assert len(pids) == 4
    mark = len(town.load.seen)
    town.load.going.add(victim)  # its clients' connections break
    killed_s = time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    within_s = OUT_S_MAX + 1.0  # a second for the question itself
    until("it is out of the ring", lambda: victim not in town.ring(), within_s)
    out_s = time.monotonic()
    town.refresh()
    town.load.wait_for(30 * len(town.workers))
    seen = town.load.since(mark)
    print(f"killed: out of the ring after {out_s - killed_s:.2f} s;", tally(seen))

    lost = failed(seen)
    assert [one for one in lost if one.method != "POST"] == []
    # On it: either it was the home, or its edge had the client's connection. And not one that was sent once it was out.
    assert [one for one in lost if one.via != victim and before[one.worker] != victim] == []
    assert [one for one in lost if one.sent_s > out_s] == []
    # Whoever has one request at a time loses the one that was in flight, and may lose one more before this is known.
    assert len(lost) <= 2 * CLIENTS
    after = town.homes()
    left = sorted({*FOUR, NEWCOMER} - {victim})
    assert after == town.homes_in(left)
    assert {w for w in town.workers if before[w] != after[w]} == {w for w in town.workers if before[w] == victim}
    (member,) = [m for m in town.cluster.client.members()["members"] if m["server"] == victim]
    assert (member["state"], member["why"]) == ("lost", "died")


def test_one_is_drained(town: Town) -> None:
    """Nobody fails, its workers are warm elsewhere before it goes, and its processes end. Clients are told nothing, and
    send it what must not be repeated until it takes no connection."""
    leaver = "server-2"
    before, causes = town.homes(), town.cold_causes()
    counters = town.cluster.client.statistics()
    pids = [counted["pid"] for address, counted in counters.items() if address.startswith(f"{leaver}/")]
    mark = len(town.load.seen)
    town.load.going.add(leaver)
    assert ask_owner(town.cluster.home, {"do": "remove", "server": leaver}, print) == leaver
    town.refresh()
    town.load.wait_for(30 * len(town.workers))
    seen, after = town.load.since(mark), town.homes()
    print("drained:", tally(seen), town.cluster.client.members()["handed_over"])

    assert failed(seen) == []
    assert {w for w in town.workers if before[w] != after[w]} == {w for w in town.workers if before[w] == leaver}
    moved = [worker for worker in town.workers if before[worker] == leaver]
    assert moved
    assert [one for one in seen if one.start == "cold" and one.worker in moved] == []
    assert town.cold_causes().get("membership", 0) <= causes.get("membership", 0)
    assert leaver not in town.cluster.client.servers
    assert not any(Path(f"/proc/{pid}/exe").exists() for pid in pids)
