"""Hosts that crash, told on real processes: complete servers here, their hosts in processes that are killed."""

import asyncio

import pytest
from complete_servers import CompleteServers, Got, HeldBody, Machine, Play, collect, request, upload, wait_until

from actors.connection import Frame
from actors.exchange import Load, Request
from actors.link import Answer
from actors.view import decode_plain
from isolates.outcome import Outcome

#: Some tenths of a second of work, so that there is time to kill the host; and then the same again.
LONG = "/?rounds=400000"


async def until(machine: Machine, version: str, **counters: int) -> None:
    """Wait until the host that runs a version counts as told."""

    async def reached() -> bool:
        counted = await asyncio.to_thread(machine.process_of(version).statistics)
        return all(counted[name] == value for name, value in counters.items())

    await wait_until(reached, f"{machine.name} counts {counters}")


async def crash(machine: Machine, version: str) -> None:
    """Kill the host that runs a version."""
    await asyncio.to_thread(machine.process_of(version).kill)


def post(worker: str, path: str = "/") -> Request:
    return request(worker, path, "POST")


async def behind(cluster: CompleteServers, worker: str, running: Request, *waiting: Request) -> list[asyncio.Task[Got]]:
    """A request that runs at the host of server 1, and others that wait behind it: their answers, in that order."""
    machine, version = cluster[1], cluster.version_of(worker)
    tasks = [asyncio.create_task(machine.ask(running))]
    await until(machine, version, running=1)
    for number, asked in enumerate(waiting):
        tasks.append(asyncio.create_task(machine.ask(asked)))
        await until(machine, version, queued=number + 1)
    return tasks


def where(got: Got) -> tuple[Outcome, str]:
    return got.ended.outcome, got.served.server if got.served is not None else ""


# ------------------------------------------------------------------------------------------------------ several hosts


def test_versions_live_on_the_host_that_is_theirs(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        workers = [await cluster.deploy_at(1, "hello") for _ in range(6)]
        for worker in workers * 2:
            got = await cluster[1].ask(request(worker))
            assert got.ended.outcome is Outcome.OK
            assert got.served is not None
            assert got.served.lease is not None
            assert got.served.lease.socket == str(cluster[1].process_of(cluster.version_of(worker)).socket)
        warm = [process.statistics()["warm_versions"] for process in cluster[1].processes]
        assert sorted(warm[0] + warm[1]) == sorted(cluster.version_of(worker) for worker in workers)

    play(scenario, servers=1, processes=2)


def test_what_waited_in_a_host_that_crashed_runs_on_another(play: Play) -> None:
    """The one that ran must not run twice; those that had not started must not be lost."""

    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(1, "spin")
        version = cluster.version_of(worker)
        waiting = [post(worker, "/?rounds=1") for _ in range(5)]
        running, *queued = await behind(cluster, worker, post(worker), *waiting)
        await crash(cluster[1], version)
        assert where(await running) == (Outcome.HOME_LOST, "")
        assert [where(await task) for task in queued] == [(Outcome.OK, "server-1")] * 5
        counted = await cluster[1].statistics()
        assert (counted["hosts"], counted["hosts_lost"]) == (1, 1)
        await until(cluster[1], version, outcomes={"ok": 5})  # each of them once  # type: ignore[arg-type]

    play(scenario, servers=1, processes=2)


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_what_may_run_twice_runs_on_another_host(play: Play, method: str) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(1, "spin")
        (running,) = await behind(cluster, worker, request(worker, LONG, method, body_first=b"all of it"))
        await crash(cluster[1], cluster.version_of(worker))
        assert where(await running) == (Outcome.OK, "server-1")

    play(scenario, servers=1, processes=2)


def test_an_upload_that_was_read_in_part_is_not_repeated(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(1, "echo")
        fields, _ = upload(bytes(200_000))
        body = HeldBody()
        answer = await cluster[1].begin(request(worker, "/?digest", "PUT", **fields), body)
        running = asyncio.create_task(collect(answer))
        await body.asked.wait()
        await crash(cluster[1], cluster.version_of(worker))
        assert where(await running) == (Outcome.HOME_LOST, "")
        body.go.set()

    play(scenario, servers=1, processes=2)


def test_an_answer_that_had_begun_breaks_off(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(1, "stream")
        answer = await cluster[1].begin(request(worker, "/?chunks=1000&interval_ms=10"))
        assert await answer.served() is not None
        assert await answer.read() is not None
        await crash(cluster[1], cluster.version_of(worker))
        while await answer.read() is not None:
            pass
        assert not answer.whole  # a client must never see a clean end here
        assert (await answer.ended()).outcome is Outcome.HOME_LOST

    play(scenario, servers=1, processes=2)


def test_a_request_that_crashes_its_hosts_does_not_go_through_them_all(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(1, "spin")
        version = cluster.version_of(worker)
        (running,) = await behind(cluster, worker, request(worker))
        await crash(cluster[1], version)

        async def moved() -> bool:
            return bool((await cluster[1].statistics())["hosts"] == 2)

        await wait_until(moved, "the Server knows of the loss")
        await until(cluster[1], version, running=1)
        await crash(cluster[1], version)
        assert where(await running) == (Outcome.HOME_LOST, "")
        assert (await cluster[1].ask(request(worker, "/?rounds=1"))).ended.outcome is Outcome.OK

    play(scenario, servers=1, processes=3)


def test_leases_and_warmth_of_a_lost_host_are_taken_back(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        machine = cluster[1]
        worker = await cluster.deploy_at(1, "hello")
        version = cluster.version_of(worker)
        subscribed = await machine.links.take(str(machine.server_socket))
        subscribed.send(Frame.SUBSCRIBE)
        await subscribed.receive()  # what there is at the beginning
        got = await machine.ask(request(worker))
        assert got.served is not None
        assert got.served.lease is not None

        async def warm() -> bool:
            return machine.server._warmth.is_warm(version)

        await wait_until(warm, "the Server knows that it is warm")
        await crash(machine, version)
        again = await machine.ask(post(worker))
        assert again.served is not None
        assert (again.served.start_type, again.ended.outcome) == ("cold", Outcome.OK)
        assert again.served.lease is not None
        assert again.served.lease.socket != got.served.lease.socket
        _, payload = await subscribed.receive()
        notice = decode_plain(payload)
        assert notice == {"revoke_all": True, "told": again.served.lease.issued}
        subscribed.close()

    play(scenario, servers=1, processes=2)


def test_a_host_that_is_restarted_runs_its_versions_again(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        machine = cluster[1]
        worker = await cluster.deploy_at(1, "hello")
        version = cluster.version_of(worker)
        first = await machine.ask(request(worker))
        process = machine.process_of(version)
        await crash(machine, version)
        elsewhere = await machine.ask(request(worker))
        assert (await machine.statistics())["hosts"] == 1
        await asyncio.to_thread(process.start)

        async def back() -> bool:
            return bool((await machine.statistics())["hosts"] == 2)

        await wait_until(back, "the host is found again")
        again = await machine.ask(request(worker))
        leases = [got.served and got.served.lease and got.served.lease.socket for got in (first, elsewhere, again)]
        assert leases[0] == leases[2] == str(process.socket) != leases[1]
        assert again.served is not None
        assert again.served.start_type == "cold"  # it has forgotten everything

    play(scenario, servers=1, processes=2)


def test_isolates_of_a_host_that_nobody_missed_are_forgotten_when_its_next_process_begins(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        machine = cluster[1]
        worker = await cluster.deploy_at(1, "hello")
        version = cluster.version_of(worker)
        assert where(await machine.ask(request(worker))) == (Outcome.OK, "server-1")

        async def warm() -> bool:
            return machine.server._warmth.is_warm(version)

        await wait_until(warm, "the Server knows that it is warm")
        process = machine.process_of(version)
        await asyncio.to_thread(process.kill)
        await asyncio.to_thread(process.start)

        async def forgotten() -> bool:
            return not machine.server._warmth.is_warm(version)

        await wait_until(forgotten, "the Server knows that it is not warm any more")
        counted = await machine.statistics()
        assert (counted["hosts"], counted["hosts_lost"]) == (2, 1)

    play(scenario, servers=1, processes=2)


# --------------------------------------------------------------------------------------------------------- one host


def test_without_another_machine_a_request_waits_for_its_host_to_be_restarted(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        machine = cluster[1]
        worker = await cluster.deploy_at(1, "hello")
        process = machine.process_of(cluster.version_of(worker))
        await crash(machine, cluster.version_of(worker))
        waiting = [asyncio.create_task(machine.ask(post(worker))) for _ in range(5)]

        async def noticed() -> bool:
            return bool((await machine.statistics())["hosts"] == 0)

        await wait_until(noticed, "the Server knows of the loss")
        await asyncio.to_thread(process.start)
        assert [where(await one) for one in waiting] == [(Outcome.OK, "server-1")] * 5

    play(scenario, servers=1, processes=1)


def test_what_waited_in_the_only_host_is_offered_to_another_machine(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(1, "spin")
        running, *queued = await behind(cluster, worker, post(worker), *[post(worker, "/?rounds=1") for _ in range(3)])
        await crash(cluster[1], cluster.version_of(worker))
        assert where(await running) == (Outcome.HOME_LOST, "")
        assert [where(await task) for task in queued] == [(Outcome.OK, "server-2")] * 3
        # From now on they are offered at once, and nobody tries the host again.
        offered = (await cluster[1].sharded())["offered"]
        got = await cluster[1].ask(post(worker, "/?rounds=1"))
        assert where(got) == (Outcome.OK, "server-2")
        assert got.served is not None
        assert got.served.lease is None
        assert (await cluster[1].sharded())["offered"] == offered + 1
        assert (await cluster[1].statistics())["hosts_lost"] == 1

    play(scenario, servers=2, processes=1)


def test_a_home_whose_host_crashes_hands_back_what_had_not_started(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(1, "spin")
        version = cluster.version_of(worker)
        (running,) = await behind(cluster, worker, post(worker))
        queued = asyncio.create_task(cluster[2].ask(post(worker, "/?rounds=1")))
        await until(cluster[1], version, queued=1)
        warmth, now_s = cluster[2].server._warmth, asyncio.get_running_loop().time()
        warmth.replied("server-1", Load(nearly_full=True), now_s)
        await crash(cluster[1], version)
        got = await queued
        assert warmth.board.nearly_full("server-1", now_s), "a home without a host is not one that is idle"
        assert where(got) == (Outcome.OK, "server-2")
        assert got.served is not None
        assert got.served.refused == "away"
        assert (await running).ended.outcome is Outcome.HOME_LOST
        assert (await cluster[2].statistics())["sticky_refusals"] == 0

    play(scenario, servers=2, processes=1)


def test_when_no_host_is_left_anywhere_the_platform_has_failed(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.server._BACK_S_MAX", 0.2)

    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(1, "hello")
        for machine in cluster.machines:
            await crash(machine, cluster.version_of(worker))
        for machine in cluster.machines:
            for _ in range(2):
                got = await machine.ask(request(worker))
                assert (got.served, got.ended.outcome) == (None, Outcome.INTERNAL_ERROR)
                assert "/" not in got.ended.reason

    play(scenario, servers=2, processes=1)


def test_a_full_home_and_a_machine_without_a_host_are_too_many_requests(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(1, "hello")
        await crash(cluster[2], cluster.version_of(worker))
        assert where(await cluster[2].ask(request(worker))) == (Outcome.OK, "server-1")
        await cluster[1].configure(in_flight_max=0)
        got = await cluster[2].ask(request(worker))
        assert (got.served, got.ended.outcome) == (None, Outcome.LOAD_SHED)

    play(scenario, servers=2, processes=1)


def test_a_client_that_leaves_while_its_request_moves(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(1, "spin")
        version = cluster.version_of(worker)
        answer: Answer = await cluster[1].begin(request(worker))
        await until(cluster[1], version, running=1)
        await crash(cluster[1], version)
        answer.cancel()
        assert (await cluster[1].ask(request(worker, "/?rounds=1"))).ended.outcome is Outcome.OK
        await until(cluster[1], version, running=0, queued=0)

    play(scenario, servers=1, processes=2)
