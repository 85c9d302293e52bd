"""What must go on in the keeping of the ring, whatever fails: ticks, installs, and telling who missed it."""

import asyncio
from typing import Any

from actors.distribution import OtherEngine
from actors.fleet import Fleet
from actors.heartbeat import Heartbeat
from actors.peer import LocalPeer, LocalPeers, PeerLost
from actors.ring import Ring
from actors.ring_keeper import RingKeeper
from actors.view import ClusterView, decode_plain, encode_plain
from tests.simulation.virtual_loop import play


class Catalog:
    """What a RingKeeper asks a catalog for."""

    def seq(self) -> int:
        return 0

    def cluster_secret(self) -> bytes:
        return bytes(32)

    def version(self, version_id: str) -> None:
        return None


class Distribution:
    """Puts code in place, after it failed ``fails`` times."""

    def __init__(self, fails: int = 0) -> None:
        self.fails = fails
        self.others: set[str] = set()

    async def install_all(self, server: str) -> list[str]:
        if server in self.others:
            raise OtherEngine("another CPU")
        if self.fails:
            self.fails -= 1
            raise OSError("a disk")
        return []


class Server:
    """Both roles of a server, which may be deaf."""

    def __init__(self) -> None:
        self.deaf = False
        self.epoch = 0

    async def call(self, method: str, payload: bytes = b"") -> bytes:
        if method == "apply_ring":
            if self.deaf:
                raise PeerLost("a server", delivered=None)
            self.epoch = decode_plain(payload)["epoch"]
        return encode_plain([] if method == "hottest" else {"warm": 0, "failed": 0, "late": 0, "in_flight": 0})


def _keeper(servers: dict[str, Server], distribution: Distribution) -> RingKeeper:
    peers = LocalPeers()
    for name, server in servers.items():
        peers.known[f"{name}/server"] = peers.known[f"{name}/shard"] = server
    return RingKeeper(
        Catalog(),  # type: ignore[arg-type]
        distribution,  # type: ignore[arg-type]
        Fleet(peers),
        epoch=1,
        changing=asyncio.Lock(),
        clock=asyncio.get_running_loop().time,
    )


async def _beat(keeper: RingKeeper, name: str, server: Server) -> None:
    await keeper.heartbeat(encode_plain({"server": name, "weight": 1, "hosts": 1, "epoch": server.epoch}))


def test_a_tick_that_fails_is_not_the_last() -> None:
    async def scenario() -> None:
        server = Server()
        keeper = _keeper({"a": server}, Distribution())
        await keeper.join(encode_plain({"server": "a", "weight": 1}))
        tick, failures = keeper._membership.tick, [RuntimeError("a bug")]

        def failing(now_s: float) -> Any:
            if failures:
                raise failures.pop()
            return tick(now_s)

        keeper._membership.tick = failing  # type: ignore[method-assign]
        keeping = asyncio.create_task(keeper.keep())
        await asyncio.sleep(20.0)
        assert keeper.serving == []  # it was silent
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await keeper.stop()

    play(scenario())


def test_code_that_could_not_be_read_is_tried_again() -> None:
    async def scenario() -> None:
        keeper = _keeper({"a": Server()}, Distribution(fails=2))
        async with asyncio.timeout(60.0):
            joined = decode_plain(await keeper.join(encode_plain({"server": "a", "weight": 1})))
        assert joined["state"] == "member"
        await keeper.stop()

    play(scenario())


def test_who_missed_the_ring_twice_is_told_a_third_time() -> None:
    async def scenario() -> None:
        servers = {"a": Server(), "b": Server()}
        keeper = _keeper(servers, Distribution())
        await keeper.join(encode_plain({"server": "a", "weight": 1}))
        servers["a"].deaf = True
        await keeper.join(encode_plain({"server": "b", "weight": 1}))
        for deaf in (True, True, False):
            servers["a"].deaf = deaf
            await _beat(keeper, "a", servers["a"])
            await asyncio.sleep(1.0)
        assert servers["a"].epoch == servers["b"].epoch > 0
        await keeper.stop()

    play(scenario())


def test_a_new_control_plane_goes_on_with_the_ring_that_there_is() -> None:
    """Of three servers one is dead by then. Nobody's home moves but those of the dead one's workers, once."""

    async def scenario() -> None:
        names = ["server-1", "server-2", "server-3"]
        servers = {name: Server() for name in names}
        keeper = _keeper(servers, Distribution())
        peers = LocalPeers()
        peers.known["control"] = LocalPeer(keeper.calls)
        view = ClusterView(ring=Ring(7, dict.fromkeys(names, 1), bytes(32)))

        async def nothing() -> None:
            return None

        beats = [Heartbeat(n, 1, peers=peers, view=lambda: view, hosts=lambda: 1, sync=nothing) for n in names[:2]]
        rings = []
        keeping = asyncio.create_task(keeper.keep())
        for _ in range(20):
            for beat in beats:
                await beat.beat()
            ring = sorted(decode_plain(await keeper.members())["servers"])
            rings += [ring] if ring not in rings else []
            await asyncio.sleep(1.0)
        assert rings == [names, names[:2]]
        assert all(server.epoch > 7 for server in servers.values())  # and everybody was told
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await keeper.stop()

    play(scenario())


def test_a_member_that_a_deploy_did_not_reach_comes_back_with_its_beat() -> None:
    async def scenario() -> None:
        servers, distribution = {"a": Server(), "b": Server()}, Distribution()
        keeper = _keeper(servers, distribution)
        for name in servers:
            await keeper.join(encode_plain({"server": name, "weight": 1}))
        distribution.on_unplaced("b", "")  # type: ignore[attr-defined]
        assert keeper.serving == ["a"]
        await _beat(keeper, "b", servers["b"])
        await asyncio.sleep(5.0)
        assert keeper.serving == ["a", "b"]
        await keeper.stop()

    play(scenario())


def test_a_machine_that_cannot_run_the_code_is_told_so_at_once() -> None:
    async def scenario() -> None:
        distribution = Distribution()
        distribution.others = {"b"}
        keeper = _keeper({"a": Server(), "b": Server()}, distribution)
        await keeper.join(encode_plain({"server": "a", "weight": 1}))
        async with asyncio.timeout(1.0):
            joined = decode_plain(await keeper.join(encode_plain({"server": "b", "weight": 1})))
        assert joined == {"state": "lost", "why": "another CPU"}
        assert keeper.serving == ["a"]
        await keeper.stop()

    play(scenario())
