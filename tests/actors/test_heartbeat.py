"""A server's heartbeats, in virtual time: what must not stop them, and what they must not cut short."""

import asyncio

from actors.heartbeat import Heartbeat
from actors.peer import LocalPeers
from actors.view import ClusterView, encode_plain
from tests.simulation.virtual_loop import play


class Control:
    """A ControlPlane that counts beats, and is ahead of the server by some changes. It may answer nonsense."""

    def __init__(self, seq: int = 0) -> None:
        self.seq = seq
        self.beats = 0
        self.nonsense_until = 0

    async def call(self, method: str, payload: bytes = b"") -> bytes:
        self.beats += method == "heartbeat"
        if self.beats <= self.nonsense_until:
            return b"\xc1"
        return encode_plain({"state": "member", "epoch": 1, "seq": self.seq})


class Syncing:
    """A view that takes ``takes_s`` to catch up with a ControlPlane."""

    def __init__(self, control: Control, takes_s: float) -> None:
        self.view = ClusterView()
        self._control = control
        self._takes_s = takes_s
        self.begun = 0

    async def sync(self) -> None:
        self.begun += 1
        await asyncio.sleep(self._takes_s)
        self.view.seq = self._control.seq


def _heartbeat(control: Control, syncing: Syncing) -> Heartbeat:
    peers = LocalPeers()
    peers.known["control"] = control
    return Heartbeat("server-1", 1, peers=peers, view=lambda: syncing.view, hosts=lambda: 1, sync=syncing.sync)


def test_a_beat_that_fails_for_whatever_reason_is_not_the_last() -> None:
    async def scenario() -> None:
        control = Control()
        control.nonsense_until = 3
        beating = _heartbeat(control, Syncing(control, 0.0))
        task = asyncio.create_task(beating._beat_on())
        await asyncio.sleep(10.5)
        assert control.beats == 10
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    play(scenario())


def test_catching_up_takes_as_long_as_it_takes_and_beats_go_on() -> None:
    """A hundred thousand workers are some seconds; a beat has two."""

    async def scenario() -> None:
        control = Control(seq=7)
        syncing = Syncing(control, takes_s=9.0)
        beating = _heartbeat(control, syncing)
        task = asyncio.create_task(beating._beat_on())
        await asyncio.sleep(20.0)
        assert syncing.view.seq == 7
        assert syncing.begun == 1
        assert control.beats > 15
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await beating.stop()

    play(scenario())
