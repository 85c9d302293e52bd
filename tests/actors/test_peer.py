"""A peer that is lost and comes back, on an actor handle of our own and in virtual time."""

import asyncio
from typing import Any

import pytest
import ray.exceptions

from actors.peer import OFFER, PeerFailed, PeerLost, RayPeer, RayPeers
from tests.simulation.virtual_loop import play


class FlakyHandle:
    """What Ray calls an actor handle. While it is ``away`` its calls fail; it counts them by method."""

    def __init__(self) -> None:
        self.call = self
        self.away = False
        self.calls: list[str] = []
        self.offer = b""  # it offers no line

    def options(self, **_: Any) -> "FlakyHandle":
        return self

    async def remote(self, method: str, payload: bytes) -> bytes:
        if method != OFFER:
            self.calls.append(method)
        await asyncio.sleep(0.001)
        if self.away:
            raise ray.exceptions.RayActorError
        if method == OFFER:
            return self.offer
        if method == "broken":
            raise ray.exceptions.RayTaskError(method, "its traceback", KeyError("a bug"))
        return payload


async def delivered(peer: RayPeer) -> bool | None:
    """What the loss of a call says about it."""
    with pytest.raises(PeerLost) as lost:
        await peer.call("serve", b"")
    return lost.value.delivered


def test_only_the_first_loss_is_in_doubt() -> None:
    async def scenario() -> None:
        handle = FlakyHandle()
        peer = RayPeer("server-2/shard", handle)
        assert await peer.call("serve", b"one") == b"one"
        handle.away = True
        assert await delivered(peer) is None
        for _ in range(100):
            assert await delivered(peer) is False
        assert handle.calls.count("serve") == 2

    play(scenario())


def test_a_loss_that_is_over_costs_nobody_a_call() -> None:
    async def scenario() -> None:
        handle = FlakyHandle()
        peer = RayPeer("server-2/shard", handle)
        handle.away = True
        assert await delivered(peer) is None
        handle.away = False
        await asyncio.sleep(60.0)  # nobody calls meanwhile
        assert await peer.call("read_body", b"two") == b"two"
        assert handle.calls == ["serve", "probe", "read_body"]

    play(scenario())


def test_a_peer_that_stays_away_is_asked_once_a_second_and_not_for_ever() -> None:
    async def scenario() -> None:
        handle = FlakyHandle()
        peer = RayPeer("server-2/shard", handle)
        handle.away = True
        assert await delivered(peer) is None
        await asyncio.sleep(10.5)
        assert handle.calls.count("probe") == 11
        await asyncio.sleep(1_000.0)
        assert handle.calls.count("probe") == 60
        assert await delivered(peer) is False  # and whoever wants it has it looked for again
        handle.away = False
        await asyncio.sleep(2.0)
        assert await peer.call("serve", b"three") == b"three"

    play(scenario())


def test_a_method_that_raises_is_a_failure_and_no_loss() -> None:
    async def scenario() -> None:
        handle = FlakyHandle()
        peer = RayPeer("server-2/shard", handle)
        with pytest.raises(PeerFailed):
            await peer.call("broken")
        assert await peer.call("serve", b"four") == b"four"

    play(scenario())


def test_whatever_ray_says_a_call_ends_in_a_loss_or_a_failure() -> None:
    async def scenario() -> None:
        handle = FlakyHandle()
        peer = RayPeer("server-2/shard", handle)
        for fault in (ray.exceptions.ObjectStoreFullError(), ray.exceptions.RaySystemError("a raylet")):

            async def remote(method: str, payload: bytes, fault: Exception = fault) -> bytes:
                raise fault

            peer._remote = remote
            assert await delivered(peer) is None
        peer._remote = handle.remote
        assert await peer.call("serve", b"one") == b"one"  # the peer itself was never away

    play(scenario())


def test_an_introducer_that_hangs_is_not_waited_for() -> None:
    async def scenario() -> None:
        async def introduce(address: str) -> object:
            return await asyncio.Event().wait()

        async with asyncio.timeout(10.0):
            with pytest.raises(PeerLost) as lost:
                await RayPeers(introduce).get("server-2/shard")
        assert lost.value.delivered is False

    play(scenario())
