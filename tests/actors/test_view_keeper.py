"""How one machine's view catches up when it missed something."""

import asyncio

from actors.peer import LocalPeers
from actors.view import encode_plain
from actors.view_keeper import ViewKeeper


class Control:
    """A ControlPlane with nothing deployed, whose snapshots come when ``go`` is set."""

    def __init__(self) -> None:
        self.snapshots = 0
        self.seq = 9
        self.go = asyncio.Event()

    async def call(self, method: str, payload: bytes = b"") -> bytes:
        self.snapshots += 1
        seq = self.seq
        await self.go.wait()
        return encode_plain({"seq": seq, "workers": [], "more": False})


class Nobody:
    """A listener that counts."""

    def __init__(self) -> None:
        self.synced = 0
        self.rings = 0

    def on_ring(self, servers: list[str]) -> None:
        self.rings += 1

    def on_deployed(self, worker: str, old: object, new: object) -> None:
        pass

    def on_synced(self) -> None:
        self.synced += 1


def test_many_changes_after_a_missed_one_ask_for_everything_twice() -> None:
    async def scenario() -> None:
        control, listener, peers = Control(), Nobody(), LocalPeers()
        peers.known["control"] = control
        keeper = ViewKeeper(peers, listener)
        changes = []
        for seq in range(9, 29):  # each is told when the catalog has it
            control.seq = seq
            change = encode_plain({"seq": seq, "worker": f"w-{seq}", "deployed": None})
            changes.append(asyncio.create_task(keeper.apply_change(change)))
            await asyncio.sleep(0)
        control.go.set()
        await asyncio.gather(*changes)
        assert keeper.view.seq == 28
        assert control.snapshots == 2
        assert listener.synced == 2

    asyncio.run(scenario())


def test_a_sync_that_failed_contents_nobody() -> None:
    async def scenario() -> None:
        control, peers = Control(), LocalPeers()
        keeper = ViewKeeper(peers, Nobody())
        control.go.set()
        failed, second = asyncio.create_task(keeper.sync()), asyncio.create_task(keeper.sync())
        await asyncio.gather(failed, second, return_exceptions=True)
        assert failed.exception() is not None
        assert second.exception() is not None
        peers.known["control"] = control
        await keeper.sync()
        assert keeper.view.seq == 9

    asyncio.run(scenario())


def test_a_change_after_a_missed_one_is_heard_although_nobody_can_be_asked() -> None:
    """The ControlPlane told it and died: that is no failure of this call, and the next beat finds out."""

    async def scenario() -> None:
        listener, peers = Nobody(), LocalPeers()
        keeper = ViewKeeper(peers, listener)
        assert await keeper.apply_change(encode_plain({"seq": 9, "worker": "w", "deployed": None})) == b""
        assert (keeper.view.seq, listener.synced) == (0, 0)
        peers.known["control"] = control = Control()
        control.go.set()
        await keeper.sync()
        assert (keeper.view.seq, listener.synced) == (9, 1)

    asyncio.run(scenario())
