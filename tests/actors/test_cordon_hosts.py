"""Workers of different trust are in different processes: real hosts, real wasmtime, real pids."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from complete_servers import Compiled, CompleteServers, Pieces, collect, component, request, wait_until
from host_process import HostProcess

from actors.bindings import Bindings, DispatchBinding
from actors.handover import first_request
from actors.isolate_host import IsolateHost
from isolates.outcome import Outcome

MIB = 1 << 20


def run_with(zig: Compiled, directory: Path, scenario: Callable[[CompleteServers], object], **options: object) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60), CompleteServers(directory, 1, zig.directory, **options) as cluster:  # type: ignore[arg-type]
            await scenario(cluster)  # type: ignore[misc]

    asyncio.run(whole())


def process_of(cluster: CompleteServers, cordon: str) -> HostProcess:
    return next(process for process in cluster[1].processes if process.cordon == cordon)


def who_is_where(cluster: CompleteServers, but: HostProcess | None = None) -> dict[int, set[str]]:
    """By pid, the versions that have an isolate there."""
    told = [process.statistics() for process in cluster[1].processes if process is not but]
    return {host["pid"]: set(host["warm_versions"]) for host in told}


async def asked(cluster: CompleteServers, *workers: str) -> None:
    for worker in workers:
        got = await cluster[1].ask(request(worker))
        assert got.ended.outcome is Outcome.OK, got.ended


def test_two_cordons_are_two_processes_also_after_a_crash_and_an_eviction(zig: Compiled, tmp_path: Path) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        ours = await cluster.deploy_at(1, "hello")
        other = await cluster.deploy_at(1, "hello", cordon="partners")
        alice = await cluster.deploy_at(1, "hello", namespace="customers")
        bob = await cluster.deploy_at(1, "hello", namespace="customers")
        version = {worker: cluster.version_of(worker) for worker in (ours, other, alice, bob)}
        apart = [{version[ours]}, {version[other]}, {version[alice], version[bob]}]

        async def are_apart() -> dict[int, set[str]]:
            await asked(cluster, ours, other, alice, bob)
            where = who_is_where(cluster)
            assert sorted(map(sorted, where.values())) == sorted(map(sorted, apart))
            assert os.getpid() not in where
            return where

        before = await are_apart()
        users = process_of(cluster, "@customers")
        await asyncio.to_thread(users.kill)
        # There is no other machine, and none of the other two processes takes a user in: it waits for its own.
        waiting = asyncio.create_task(asked(cluster, alice))
        await asked(cluster, ours, other)
        assert who_is_where(cluster, but=users) == {pid: v for pid, v in before.items() if version[alice] not in v}
        assert not waiting.done()
        await asyncio.to_thread(users.start)
        await waiting
        after = await are_apart()
        assert len(after.keys() & before.keys()) == 2

        for worker in (ours, alice):
            (deployed,) = cluster[1].server._view.workers[worker].versions
            await cluster[1].server._drop(deployed.version_id)

        async def gone() -> bool:
            return not {version[ours], version[alice]} & set().union(*who_is_where(cluster).values())

        await wait_until(gone, "both are gone")
        assert (await are_apart()).keys() == after.keys()

    run_with(zig, tmp_path, scenario, processes=1)


def test_a_host_refuses_what_is_of_another_cordon(zig: Compiled, tmp_path: Path) -> None:
    """Whoever sends it there: nothing is started, and nobody is told why."""

    async def scenario(cluster: CompleteServers) -> None:
        alice = await cluster.deploy_at(1, "hello", namespace="customers")
        (version,) = cluster[1].server._view.workers[alice].versions
        stray = first_request(version)
        got = await collect(await cluster[1].links.exchange(str(cluster[1].host_socket), stray, Pieces()))
        assert (got.served, got.ended.outcome) == (None, Outcome.INTERNAL_ERROR)
        ours = cluster[1].host
        ours.desk.prewarm(stray)
        assert ours.desk.take_warm(version, at_home=True) is None
        assert ours.statistics()["isolates"] == 0
        assert cluster[1].hosts["@customers"].desk.take_warm(replace(version, cordon="default"), at_home=True) is None

    run_with(zig, tmp_path, scenario)


def test_a_dispatchers_calls_of_users_never_stay_in_its_process(zig: Compiled, tmp_path: Path) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        user = await cluster.deploy_at(1, "hello", namespace="customers")
        bindings = Bindings(dispatch=(DispatchBinding("dispatch", "customers"),))
        dispatcher = await cluster.deploy_at(1, "fetch", bindings)
        path = f"/?url=http://{user.partition('/')[2]}.dispatch.internal/"
        for _ in range(5):
            got = await cluster[1].ask(request(dispatcher, path))
            assert got.body.startswith(b"hello from Zig")
        counts = (await cluster[1].statistics())["nested"]
        assert counts["calls"] == 5
        hosts: dict[str, IsolateHost] = cluster[1].hosts
        assert [host.statistics()["inner_calls"]["calls"] for host in hosts.values()] == [0, 0]  # type: ignore[index]
        assert [host.statistics()["inner_calls"]["leases"] for host in hosts.values()] == [0, 0]  # type: ignore[index]
        assert [host.statistics()["isolates"] for host in hosts.values()] == [1, 1]

    run_with(zig, tmp_path, scenario)


def test_hosts_share_the_memory_of_their_machine(zig: Compiled, tmp_path: Path) -> None:
    total_bytes = 600 * MIB

    async def scenario(cluster: CompleteServers) -> None:
        ours = await cluster.deploy_at(1, "hello")
        alice = await cluster.deploy_at(1, "hello", namespace="customers")
        await asked(cluster, ours, alice)

        async def shared() -> bool:
            parts = [process.statistics()["memory_bytes_max"] for process in cluster[1].processes]
            return len(parts) == 2 and sum(parts) <= total_bytes * 17 // 16 and min(parts) >= total_bytes // 4

        await wait_until(shared, "each has its part")

    run_with(zig, tmp_path, scenario, processes=1, memory_bytes=total_bytes)


def test_a_deploy_into_a_cordon_without_hosts_is_refused(zig: Compiled, tmp_path: Path) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        cluster.no_hosts = "cordon: 16 cordons have workers"
        job = await cluster.deploy("customers/alice", component("hello"))
        assert job["error"]["message"] == cluster.no_hosts
        assert not cluster[1].server._view.workers

    run_with(zig, tmp_path, scenario)
