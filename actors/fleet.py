"""The servers of the cluster as the ControlPlane calls them: by name, each within its time, and no call stops the rest.

A server that does not answer is told of to ``on_lost``; what that means is for membership to say.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable

from actors.peer import PeerFailed, PeerLost, Peers

_log = logging.getLogger("everwarm.fleet")

#: The longest that a server may take for one call: an engine's code of 30 MB goes to ten servers at once, and what it
#: has to hand over takes half of this. A server that hangs was silent, and is lost, long before.
_CALL_S_MAX = 60.0
#: The same for what is told to all of them, and is small.
_TELL_S_MAX = 10.0


class Fleet:
    """All servers, by name."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
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
        """Tell each of them; one that is away asks for what it missed when it is back."""

        async def one(server: str) -> None:
            try:
                await asyncio.wait_for(self.call(server, method, payload), _TELL_S_MAX)
            except (PeerLost, PeerFailed, TimeoutError) as failed:
                _log.error("%s did not hear %s: %s", server, method, failed or "it took too long")

        await asyncio.gather(*(one(server) for server in servers))

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
