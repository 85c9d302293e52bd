"""A Server's own word that it lives: one small call to the ControlPlane every second.

It is said from the event loop that serves requests, so a Server that hangs is silent too. The answer tells what the
Server should know; when it is behind by a deploy for two beats in a row, it asks for everything.

The first beat is the join. Later ones are enough to be let in again, by a ControlPlane that lost this server. One that
is new asks for the ring that this server knows, and goes on from there.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from actors.membership import MembershipLimits
from actors.peer import PeerFailed, PeerLost, Peers
from actors.view import ClusterView, decode_plain, encode_plain

_log = logging.getLogger("everwarm.heartbeat")


class Heartbeat:
    """Beats for one server. ``hosts`` are the host processes that live; ``sync`` asks for all that is deployed."""

    def __init__(
        self,
        server: str,
        weight: int,
        *,
        peers: Peers,
        view: Callable[[], ClusterView],
        hosts: Callable[[], int],
        sync: Callable[[], Awaitable[None]],
        every_s: float = MembershipLimits().beat_every_s,
    ) -> None:
        self._server = server
        self._weight = weight
        self._peers = peers
        self._view = view
        self._hosts = hosts
        self._sync = sync
        self._every_s = every_s
        self._behind = False
        self._beating: asyncio.Task[None] | None = None
        self._catching_up: asyncio.Task[None] | None = None

    async def join(self) -> dict[str, str]:
        """Beat from now on, and be a member: the ``state`` that came of it, and ``why`` if it is another.

        ``PeerLost`` when there is no ControlPlane.
        """
        if self._beating is None:
            self._beating = asyncio.create_task(self._beat_on())
        control = await self._peers.get("control")
        answer = await control.call("join", encode_plain({"server": self._server, "weight": self._weight}))
        await self._sync()
        plain = decode_plain(answer)
        return {"state": str(plain["state"]), "why": str(plain.get("why", ""))}

    async def stop(self) -> None:
        """Be silent."""
        tasks = [task for task in (self._beating, self._catching_up) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _beat_on(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            try:
                # A call that hangs must not hold back the next one for longer than what makes this server silent.
                await asyncio.wait_for(self.beat(), 2 * self._every_s)
            except (PeerLost, PeerFailed, TimeoutError) as away:
                _log.info("a heartbeat of %s was not heard: %s", self._server, away or "it took too long")
            except Exception:
                # Whatever it was, the next beat has to go out: a server that never beats again is lost.
                _log.exception("a heartbeat of %s failed", self._server)

    async def beat(self) -> None:
        """One beat."""
        view = self._view()
        plain = {"server": self._server, "weight": self._weight, "hosts": self._hosts(), "epoch": view.epoch}
        control = await self._peers.get("control")
        answer = decode_plain(await control.call("heartbeat", encode_plain(plain)))
        if answer.get("wants_ring") and view.ring is not None:
            plain["ring"] = dict(view.ring.servers)
            answer = decode_plain(await control.call("heartbeat", encode_plain(plain)))
        behind = answer["state"] == "member" and self._view().seq < answer["seq"]
        if behind and self._behind and (self._catching_up is None or self._catching_up.done()):
            # Shielded, and one at a time: with many workers it takes longer than a beat may, and would never end.
            self._catching_up = asyncio.create_task(self._catch_up())
            await asyncio.shield(self._catching_up)
            behind = False
        self._behind = behind

    async def _catch_up(self) -> None:
        try:
            await self._sync()
        except Exception as failed:  # the next beats find out that this server is still behind
            _log.error("%s did not hear what it missed: %s", self._server, failed)
