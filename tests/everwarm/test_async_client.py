"""A driver's requests when a server leaves or is lost: who takes them instead. Actor handles are our own."""

import asyncio
from typing import Any

import pytest
import ray.exceptions

from actors.exchange import Chunk, Ended, Outcome, Request, Served
from actors.peer import OFFER
from actors.view import encode_plain
from actors.wire import CHUNK, REQUEST, SERVED
from everwarm.answers import EverwarmError
from everwarm.async_client import AsyncClient
from everwarm.home import Running
from tests.simulation.virtual_loop import play

SERVERS = ("server-1", "server-2", "server-3")


class Actor:
    """A Server behind its handle: it answers with its name, or ``leaves``, or is ``gone``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.call = self
        self.leaves = self.gone = False
        self.ran: list[str] = []

    def options(self, **_: Any) -> "Actor":
        return self

    async def remote(self, method: str, payload: bytes) -> bytes:
        await asyncio.sleep(0.001)
        if self.gone:
            raise ray.exceptions.ActorDiedError
        if method == OFFER:
            return b""
        if method != "submit":
            return b""
        if self.leaves:
            return encode_plain({"leaves": True})
        request: Request = REQUEST.decode(payload)
        self.ran.append(request.head.method)
        chunk = CHUNK.encode(Chunk(self.name.encode(), end=True, ended=Ended(Outcome.OK)))
        return encode_plain(
            {
                "served": SERVED.encode(Served(200, (), self.name, "warm", 0.0, 0.0)),
                "chunk": chunk,
                "rest": None,
                "trace_id": "7" * 32,
            }
        )


class Town:
    """Three servers and a driver."""

    def __init__(self) -> None:
        self.actors = {name: Actor(name) for name in SERVERS}
        ports = dict.fromkeys(SERVERS, 8443)
        running = Running(1, "", ports, dict.fromkeys(SERVERS, "127.0.0.1"), 0.0)

        async def introduce(address: str) -> Actor:
            return self.actors[address.partition("/")[0]]

        self.client = AsyncClient(running, introduce, lambda: None, lambda: running)

    async def through(self, method: str = "GET", server: str | None = None) -> str:
        """Which server answered."""
        return (await self.client.fetch("w", method=method, server=server)).text


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_server_that_leaves_is_passed_over(method: str) -> None:
    async def scenario() -> None:
        town = Town()
        town.actors["server-2"].leaves = True
        assert [await town.through(method) for _ in range(4)] == ["server-1", "server-1", "server-3", "server-1"]
        with pytest.raises(EverwarmError, match="server-2 leaves the cluster"):
            await town.through(method, "server-2")

    play(scenario())


def test_a_server_that_is_gone_is_passed_over_by_what_may_run_twice() -> None:
    async def scenario() -> None:
        town = Town()
        town.actors["server-1"].gone = True
        assert await town.through("GET") == "server-2"
        assert await town.through("GET") == "server-2"
        assert await town.through("GET") == "server-3"
        # It is known to be away by now, so nothing can have begun.
        assert await town.through("POST") == "server-2"

    play(scenario())


def test_what_may_have_begun_and_must_not_run_twice_is_an_error() -> None:
    async def scenario() -> None:
        town = Town()
        town.actors["server-1"].gone = True
        with pytest.raises(EverwarmError, match="server-1/server is not reachable"):
            await town.through("POST")
        assert [actor.ran for actor in town.actors.values()] == [[], [], []]

    play(scenario())


def test_with_no_server_left_the_last_reason_is_told() -> None:
    async def scenario() -> None:
        town = Town()
        for actor in town.actors.values():
            actor.gone = True
        with pytest.raises(EverwarmError, match="server-3/server is not reachable"):
            await town.through()

    play(scenario())
