"""A client that leaves, wherever its request is: the guest stops, and everything that was lent is back."""

import asyncio

import pytest
from complete_servers import CompleteServers, HeldBody, Play, request, wait_until

from isolates.outcome import Outcome


@pytest.mark.parametrize("home", [1, 2])
def test_a_client_that_leaves_stops_the_guest(play: Play, home: int) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(home, "spin", cpu_ms=60_000)
        answer = await cluster[1].begin(request(worker))

        async def running() -> bool:
            return cluster[home].host.statistics()["running"] == 1

        await wait_until(running, "the guest spins")
        answer.cancel()
        await cluster.settled()
        outcomes = cluster[home].host.statistics()["outcomes"]
        assert isinstance(outcomes, dict)
        assert set(outcomes) <= {"canceled"}

    play(scenario)


def test_a_client_that_leaves_in_the_middle_of_an_answer(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "stream")
        answer = await cluster[1].begin(request(worker, "/?chunks=10000&interval_ms=5"))
        assert await answer.served() is not None
        assert await answer.read() is not None
        answer.cancel()
        await cluster.settled()
        assert (await cluster[2].shard_statistics())["aborted"] == 1

    play(scenario)


def test_a_client_that_leaves_while_its_home_connects(play: Play) -> None:
    """The abort overtakes the start of the run: the guest must not run on for nobody, and nothing stays lent."""

    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "stream")
        shard = cluster[2].shard
        connecting, go = asyncio.Event(), asyncio.Event()
        links = shard._hosts._links
        exchange = links.exchange

        async def slow_exchange(*arguments: object) -> object:
            connecting.set()
            await go.wait()
            return await exchange(*arguments)  # type: ignore[arg-type]

        links.exchange = slow_exchange  # type: ignore[method-assign,assignment]
        answer = await cluster[1].begin(request(worker, "/?chunks=10000&interval_ms=10"))
        await connecting.wait()
        answer.cancel()

        async def aborted() -> bool:
            return bool((await cluster[2].shard_statistics())["aborted"] == 1)

        await wait_until(aborted, "the home has heard of it")
        go.set()
        await cluster.settled()

    play(scenario)


def test_a_client_that_leaves_before_the_verdict(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        worker = await cluster.deploy_at(2, "hello")
        held = cluster.delay("server-2/shard", "serve", after=True)
        answer = await cluster[1].begin(request(worker))
        await held.arrived.wait()
        answer.cancel()
        await cluster.settled()
        held.go.set()

    play(scenario)


def test_an_answer_that_comes_before_the_upload_leaves_nobody_waiting(play: Play) -> None:
    """The guest runs out of its time while it waits for a body; the read that it asked for ends with it."""

    async def scenario(cluster: CompleteServers) -> None:
        for home in (1, 2):
            worker = await cluster.deploy_at(home, "echo", wall_ms=200)
            body = HeldBody()
            asked = request(worker, "/?digest", "POST", body_first=b"x", body_complete=False)
            got = await cluster[1].ask(asked, body)
            assert got.ended.outcome is Outcome.EXCEEDED_WALL_TIME
            assert body.asked.is_set()
            await cluster.settled()
            assert (await cluster[1].ask(request(worker, "/?digest", "POST"))).ended.outcome is Outcome.OK

    play(scenario)
