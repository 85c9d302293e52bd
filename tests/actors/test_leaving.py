"""A Server that leaves finishes what began on it: drivers' requests, and the tails of its trees. Real guests."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from complete_servers import Compiled, CompleteServers, request
from request_trees import drive

from actors.bindings import Bindings, Tail
from actors.view import decode_plain
from actors.wire import CHUNK, REQUEST

Scenario = Callable[[CompleteServers], Awaitable[None]]


@pytest.fixture
def play(zig: Compiled, tmp_path: Path) -> Callable[[Scenario], None]:
    """Play a scenario on a fresh cluster of one server."""

    def run(scenario: Scenario) -> None:
        async def whole() -> None:
            async with asyncio.timeout(30), CompleteServers(tmp_path, 1, zig.directory) as cluster:
                await scenario(cluster)

        asyncio.run(whole())

    return run


def test_a_drivers_answer_is_read_to_its_end_and_the_next_request_goes_elsewhere(
    play: Callable[[Scenario], None],
) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        calls, worker = cluster[1].server.calls, await cluster.deploy_at(1, "stream")
        asked = REQUEST.encode(request(worker, "/?chunks=3&interval_ms=1"))
        begun = decode_plain(await calls["submit"](asked))
        leaving = asyncio.create_task(calls["finish"](b""))
        await asyncio.sleep(0)
        assert decode_plain(await calls["submit"](asked)) == {"leaves": True}
        assert not leaving.done()
        chunk = CHUNK.decode(begun["chunk"])
        while chunk.ended is None:
            chunk = CHUNK.decode(await calls["read_submitted"](begun["rest"]))
        assert chunk.end
        await leaving

    play(scenario)


def test_the_tails_of_its_trees_are_told_before_it_goes(play: Callable[[Scenario], None]) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        tail = await cluster.deploy_at(1, "tail")
        worker = await cluster.deploy_at(1, "hello", Bindings(tail=Tail((tail,))))
        for _ in range(3):
            assert (await drive(cluster, 1, worker, "/"))[0] == 200
        await cluster[1].server.calls["finish"](b"")
        tails = (await cluster[1].statistics())["tails"]
        assert (tails["trees"], tails["told"], tails["flows"]) == (3, 3, 0)

    play(scenario)
