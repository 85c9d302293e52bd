"""Telling many, of whom one is slow, in virtual time."""

import asyncio

import pytest

from actors.fleet import Fleet, most_of
from actors.peer import LocalPeers
from tests.simulation.virtual_loop import play


@pytest.mark.parametrize(
    ("takes_s", "waited_s"),
    [
        ([], 0.0),
        ([5.0], 5.0),  # there is nobody else
        ([0.1, 0.2, 0.3], 0.3),
        ([0.1, 0.1, 99.0], 0.4),  # a turn on shared cores
        ([1.0, 2.0, 99.0], 4.0),
        ([1.0, 2.0, 2.5, 3.9], 3.9),
        ([8.0, 20.0, 99.0, 99.0], 30.0),
    ],
)
def test_the_slowest_get_as_long_again_as_the_first_half(takes_s: list[float], waited_s: float) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        tasks = [asyncio.create_task(asyncio.sleep(s)) for s in takes_s]
        await most_of(tasks)
        assert loop.time() - began_s == pytest.approx(waited_s)
        for task in tasks:
            task.cancel()

    play(scenario())


class SlowPeer:
    """Hears after a while."""

    def __init__(self, takes_s: float) -> None:
        self.takes_s = takes_s
        self.heard: list[bytes] = []

    async def call(self, method: str, payload: bytes = b"") -> bytes:
        await asyncio.sleep(self.takes_s)
        self.heard.append(payload)
        return b""


def test_who_is_slow_hears_later_and_delays_nobody() -> None:
    async def scenario() -> None:
        peers, slow = LocalPeers(), SlowPeer(5.0)
        peers.known.update({"a/server": SlowPeer(0.1), "b/server": SlowPeer(0.1), "c/server": slow})
        fleet, loop = Fleet(peers), asyncio.get_running_loop()
        began_s = loop.time()
        await fleet.tell(["a", "b", "c"], "apply_change", b"one")
        assert loop.time() - began_s < 0.5
        assert slow.heard == []
        await asyncio.sleep(5.0)
        assert slow.heard == [b"one"]
        await fleet.tell(["a", "b", "c"], "apply_change", b"two")
        await fleet.stop()
        await asyncio.sleep(5.0)
        assert slow.heard == [b"one"]

    play(scenario())
