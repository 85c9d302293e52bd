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


def dead(handle: FlakyHandle) -> FlakyHandle:
    """Its actor has died: it never comes back."""

    async def remote(method: str, payload: bytes) -> bytes:
        handle.calls.append(method)
        raise ray.exceptions.ActorDiedError

    handle.remote = remote  # type: ignore[method-assign]
    return handle


def test_another_actor_in_the_place_of_a_dead_one_is_met() -> None:
    async def scenario() -> None:
        old, new, asked = dead(FlakyHandle()), FlakyHandle(), []

        async def introduce(address: str) -> Any:
            asked.append(address)
            return old if len(asked) < 4 else new

        peer = RayPeer("server-2/shard", old, introduce=introduce)
        assert await delivered(peer) is None
        await asyncio.sleep(5.0)
        assert asked == ["server-2/shard"] * 4
        assert await peer.call("serve", b"two") == b"two"
        assert new.calls == ["probe", "serve"]

    play(scenario())


def test_who_died_for_good_is_asked_for_less_and_less() -> None:
    async def scenario() -> None:
        asked: list[str] = []

        async def introduce(address: str) -> Any:
            asked.append(address)

        peer = RayPeer("server-2/shard", dead(FlakyHandle()), introduce=introduce)
        assert await delivered(peer) is None
        await asyncio.sleep(60.0)
        assert len(asked) == 19  # eight in as many seconds, and then one each five
        await asyncio.sleep(600.0)
        assert len(asked) == 60

    play(scenario())


def test_peers_forget_who_was_replaced() -> None:
    async def scenario() -> None:
        handles = iter([dead(FlakyHandle()), FlakyHandle()])

        async def introduce(address: str) -> Any:
            return next(handles)

        peers = RayPeers(introduce)
        await peers.get("server-2/shard")
        peers.forget("server-2/shard")
        assert await (await peers.get("server-2/shard")).call("serve", b"two") == b"two"

    play(scenario())


def test_what_is_shared_is_put_once_and_sent_by_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[bytes] = []

    def put_one(payload: bytes) -> str:
        put.append(payload)
        return f"object {len(put)}"

    monkeypatch.setattr("actors.peer.ray.put", put_one)

    async def introduce(address: str) -> Any:
        return FlakyHandle()

    async def scenario() -> None:
        peers, payload = RayPeers(introduce), bytes(200_000)
        shared = await peers.share(payload)
        assert shared == payload  # for a peer in this process
        answers = [await (await peers.get(f"server-{i}/server")).call("install_piece", shared) for i in range(3)]
        assert answers == ["object 1"] * 3  # Ray gives the callee what lies there
        assert put == [payload]
        assert await peers.share(b"short") == b"short"
        assert len(put) == 1

    asyncio.run(scenario())


def test_a_full_store_costs_copies_and_no_deploy(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(payload: bytes) -> None:
        raise ray.exceptions.ObjectStoreFullError

    monkeypatch.setattr("actors.peer.ray.put", full)

    async def introduce(address: str) -> Any:
        return FlakyHandle()

    async def scenario() -> None:
        peers, payload = RayPeers(introduce), bytes(200_000)
        shared = await peers.share(payload)
        assert await (await peers.get("server-1/server")).call("install_piece", shared) == payload

    asyncio.run(scenario())
