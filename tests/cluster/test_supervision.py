"""Processes of a real cluster are killed, stopped and crashed: who notices, who is back, and what clients get."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import ray
from cluster_site import until
from https_client import fetch

from actors.supervision import SupervisionLimits
from benchmarks.chaos import CountingOrigin, deploy, storm, victims
from benchmarks.local_cluster import WORKERS, LocalCluster, local_cluster
from everwarm.answers import EverwarmError
from everwarm.owner import ask_roles

LIMITS = SupervisionLimits()
WORKERS_OF_A_KIND = 2
#: What a role may be away for, from its death on.
BACK_S_MAX = 3.0


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with asyncio.Runner() as runner:
        yield runner.get_loop()


@pytest.fixture(scope="module")
def origin(loop: asyncio.AbstractEventLoop) -> Iterator[CountingOrigin]:
    origin = CountingOrigin()
    loop.run_until_complete(origin.__aenter__())
    yield origin
    loop.run_until_complete(origin.__aexit__())


@pytest.fixture(scope="module")
def cluster(origin: CountingOrigin) -> Iterator[LocalCluster]:
    with local_cluster("--servers", "3", "--egress-allow", f"127.0.0.1:{origin.port}") as cluster:
        deploy(cluster, WORKERS_OF_A_KIND)
        spin = WORKERS / "zig" / "spin" / "worker.wasm"
        cluster.client.deploy("spin", spin, plan="paid", limits={"cpu_ms": 30_000})
        yield cluster


def well(cluster: LocalCluster) -> bool:
    """Whether every role runs and somebody is ready to take over."""
    return all(role["state"] in ("running", "ready") for role in ask_roles(cluster.home).values())


def all_are_members(cluster: LocalCluster) -> bool:
    try:
        return sorted(cluster.client.members()["servers"]) == sorted(cluster.ports)
    except EverwarmError:
        return False  # a driver asks once a second whether a ControlPlane that it lost is back


def test_each_role_is_killed_under_load(
    cluster: LocalCluster, origin: CountingOrigin, loop: asyncio.AbstractEventLoop
) -> None:
    addresses = victims(sorted(cluster.ports))[:5]
    assert {address.rpartition("/")[2] for address in addresses} == {"host", "ingress", "shard", "server", "control"}
    until("everybody runs", lambda: well(cluster), within_s=60.0)
    chaos = loop.run_until_complete(
        storm(
            cluster, origin, workers=WORKERS_OF_A_KIND, rps=50.0, every_s=5.0, addresses=addresses, seed=1, patient=True
        )
    )
    figures = chaos.figures()
    print(figures)
    in_flight, otherwise = chaos.failures()
    assert otherwise == []
    assert (figures["answered_wrong"], figures["ran_twice"]) == (0, 0)
    # At 50 a second, and some tens of milliseconds each, two are under way; at the edge those of its clients are.
    assert len(in_flight) <= 2 * len(addresses), in_flight
    assert {killed.address: killed.back_s for killed in chaos.killed if killed.back_s > BACK_S_MAX} == {}
    until("all are members again", lambda: all_are_members(cluster), within_s=20.0)


def test_a_probe_is_answered_beside_ten_thousand_calls(cluster: LocalCluster) -> None:
    until("everybody runs", lambda: well(cluster), within_s=60.0)
    busy = ray.get_actor("server-2/host", namespace="everwarm")
    calls = [busy.call.remote("stay", b"") for _ in range(10_000)]
    # What this driver sends is sent in turn: the first probe follows ten thousand calls out of this process.
    sent_s = time.monotonic()
    ray.get(busy.probe.options(concurrency_group="probe").remote(), timeout=60.0)
    first_s = time.monotonic() - sent_s
    assert ray.wait(calls, timeout=0.5)[0] == []
    slowest_s = 0.0
    for _ in range(20):
        asked_s = time.monotonic()
        turned_s = ray.get(busy.probe.options(concurrency_group="probe").remote(), timeout=LIMITS.probe_s_max)
        slowest_s = max(slowest_s, time.monotonic() - asked_s)
        assert turned_s < LIMITS.loop_s_max
    print(f"first probe {first_s:.1f} s, slowest of the others {slowest_s * 1000:.1f} ms")
    role = ask_roles(cluster.home)["server-2/host"]
    assert (role["state"], role["restarts"]) == ("running", 0)
    os.kill(role["pid"], signal.SIGKILL)  # which ends the calls


def test_a_process_that_is_stopped_is_ended_and_replaced(cluster: LocalCluster) -> None:
    until("everybody runs", lambda: well(cluster), within_s=60.0)
    pid = ask_roles(cluster.home)["server-3/shard"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    within_s = LIMITS.probes_failed_max * (LIMITS.probe_every_s + LIMITS.probe_s_max) + BACK_S_MAX
    until("it is replaced", lambda: ask_roles(cluster.home)["server-3/shard"]["pid"] != pid, within_s=within_s)
    until("it runs", lambda: ask_roles(cluster.home)["server-3/shard"]["state"] == "running", within_s=BACK_S_MAX)
    assert not os.path.exists(f"/proc/{pid}/exe")
    until("all are members again", lambda: all_are_members(cluster), within_s=20.0)


def test_who_crashes_its_host_again_and_again_is_kept_out_for_a_while(cluster: LocalCluster) -> None:
    until("everybody runs", lambda: well(cluster), within_s=60.0)
    home = cluster.client.statistics()["server-1/server"]["homes"]["spin"]
    host = f"{home}/host"

    def ask(path: str, worker: str = "spin") -> tuple[int, str]:
        answer = fetch(
            cluster.tls(), cluster.ports[home], f"{worker}.localhost", path, method="POST", body=b"",
            headers={"accept": "application/json"},
        )  # fmt: skip
        return answer.status, json.loads(answer.body)["error"]["code"] if answer.status != 200 else ""

    def another(pid: int) -> bool:
        return ask_roles(cluster.home)[host]["pid"] != pid and well(cluster)

    for crashes in range(1, 4):
        until("its server is home again", lambda: well(cluster) and all_are_members(cluster), within_s=60.0)
        with ThreadPoolExecutor(1) as client:
            running = client.submit(ask, "/")  # it spins until it is stopped
            until("it runs", lambda: cluster.client.statistics()[host].get("running") == 1, within_s=20.0)
            pid = ask_roles(cluster.home)[host]["pid"]
            os.kill(pid, signal.SIGSEGV)
            assert running.result() == (502, "homeLost")
        until("the host is back", partial(another, pid), within_s=60.0)
        told = json.loads(
            subprocess.run(
                [sys.executable, "-m", "everwarm.cli", "crashes", "--json"], check=True, capture_output=True
            ).stdout
        )
        mine = [report for report in told["crashes"] if report["pid"] == pid]
        assert [report["signal"] for report in mine] == ["SIGSEGV"]
        assert [one["worker"] for one in mine[0]["running"]] == ["spin"]
        assert bool(told["quarantined"]) == (crashes == 3)
    until("its server is home again", lambda: all_are_members(cluster), within_s=60.0)
    assert ask("/?rounds=1") == (503, "killSwitch")
    assert ask("/", "echo-0") == (200, "")
    kept_out = list(told["quarantined"])
    until("it says so", lambda: cluster.client.statistics()[host].get("quarantined") == kept_out, within_s=10.0)
