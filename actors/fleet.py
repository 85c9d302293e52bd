"""The servers of the cluster as the ControlPlane calls them: by name, each within its time, and no call stops the rest.

A server that does not answer is told of to ``on_lost``; what that means is for membership to say.

**Nobody waits for the slowest.** What goes to all of them is waited for until half have answered, and then as long
again: so a machine that hangs, or whose disk is slow, delays a deploy by less than a second and not until it counts as
lost. What was begun with it goes on.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Any

from actors.peer import PeerFailed, PeerLost, Peers

_log = logging.getLogger("everwarm.fleet")

#: The longest that a server may take for one call: an engine's code of 30 MB goes to ten servers at once, and what it
#: has to hand over takes half of this. A server that hangs was silent, and is lost, long before.
_CALL_S_MAX = 60.0
#: The same for what is told to all of them, and is small.
_TELL_S_MAX = 10.0
#: Whoever is behind the first half gets at least so long, for a turn on cores that are shared, and at most so long.
_PATIENCE_S_MIN = 0.3
_PATIENCE_S_MAX = 10.0


async def most_of(tasks: Collection["asyncio.Task[Any]"]) -> None:
    """Wait until all of ``tasks`` are over, or those that are not have had twice as long as the first half took."""
    if not tasks:
        return
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    pending = set(tasks)
    while len(pending) > len(tasks) // 2:
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    if pending:
        took_s = loop.time() - began_s
        await asyncio.wait(pending, timeout=min(max(took_s, _PATIENCE_S_MIN), _PATIENCE_S_MAX))


class Fleet:
    """All servers, by name."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._telling: set[asyncio.Task[None]] = set()
        #: Hears of each server that could not be reached.
        self.on_lost: Callable[[str], None] = lambda server: None

    async def call(self, server: str, method: str, payload: bytes = b"", *, role: str = "server") -> bytes:
        """Call a role of a server. ``PeerLost`` also when it takes too long; ``PeerFailed``."""
        try:
            async with asyncio.timeout(_CALL_S_MAX):
                return await (await self._peers.get(f"{server}/{role}")).call(method, payload)
        except TimeoutError as late:
            raise PeerLost(f"{server}/{role}", delivered=None) from late
        except PeerLost:
            self.on_lost(server)
            raise

    async def tell(self, servers: Iterable[str], method: str, payload: bytes) -> None:
        """Tell each of them, and wait for most; one that is away asks for what it missed when it is back."""

        async def one(server: str) -> None:
            try:
                await asyncio.wait_for(self.call(server, method, payload), _TELL_S_MAX)
            except (PeerLost, PeerFailed, TimeoutError) as failed:
                _log.error("%s did not hear %s: %s", server, method, failed or "it took too long")

        tasks = [asyncio.create_task(one(server)) for server in servers]
        for task in tasks:
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)
        await most_of(tasks)

    async def stop(self) -> None:
        """End what is still being told."""
        telling = list(self._telling)
        for task in telling:
            task.cancel()
        await asyncio.gather(*telling, return_exceptions=True)

    async def is_there(self, server: str, within_s: float) -> bool:
        """Whether a server answers."""
        try:
            peer = await self._peers.get(f"{server}/server")
            await asyncio.wait_for(peer.call("statistics"), within_s)
        except (PeerLost, TimeoutError):
            return False
        except PeerFailed:
            pass  # it answered, badly
        return True
