"""Distribution: compiled code on its way from the ControlPlane's disk to the servers'.

A server is sent the pieces that it lacks, and the manifest last: the engine that a toolchain's workers share is asked
for like every piece, and found to be there already.
"""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import asdict

from actors.catalog import Catalog
from actors.deployer import Deployer
from actors.fleet import Fleet
from actors.peer import PeerFailed, PeerLost
from actors.view import decode_plain, encode_plain
from actors.worker import Limits
from isolates.artifact import Compiled, Piece, encode_compiled

_log = logging.getLogger("everwarm.distribution")

#: Digests in one question.
_PAGE = 500
#: Pieces that are on their way at once: each is in memory whole, and an engine has 30 MB. Three hundred servers that
#: lack the same one would take 9 GB.
_PIECES_AT_ONCE = 8


class Distribution:
    """Puts code in place on servers."""

    def __init__(self, catalog: Catalog, deployer: Deployer, fleet: Fleet) -> None:
        self._catalog = catalog
        self._deployer = deployer
        self._fleet = fleet
        self._sending = asyncio.Semaphore(_PIECES_AT_ONCE)
        self._deployed: tuple[int, dict[str, Limits]] | None = None  # as of a change of the catalog

    async def install_all(self, server: str) -> list[str]:
        """Put the code of everything that is deployed in place on a server; the digests of those components.

        ``PeerLost`` and ``PeerFailed`` when it is not to be reached.
        """
        limits = self._limits()
        digests = sorted(limits)
        for i in range(0, len(digests), _PAGE):
            asked = encode_plain(digests[i : i + _PAGE])
            for digest in decode_plain(await self._fleet.call(server, "missing_code", asked)):
                compiled = await asyncio.to_thread(self._deployer.compiled, digest)
                compiled = compiled or await self._deployer.recompile(digest, limits[digest])
                if compiled is None:
                    _log.error("component %s can not be compiled for this engine; deploy it again", digest[:12])
                else:
                    await self._install(server, compiled)
        return digests

    def _limits(self) -> dict[str, Limits]:
        """The limits of everything that is deployed, by component digest. Reading all of it takes seconds, and servers
        that start together ask for the same."""
        seq = self._catalog.seq()
        if self._deployed is None or self._deployed[0] != seq:
            everything = self._catalog.current()
            self._deployed = seq, {v.component_digest: v.limits for d in everything for v in d.versions}
        return self._deployed[1]

    async def distribute(self, servers: Iterable[str], compiled: Compiled) -> list[str]:
        """Put one component on these servers; those that could not be reached, which get it when they join again."""

        async def one(server: str) -> str | None:
            try:
                await self._install(server, compiled)
            except (PeerLost, PeerFailed) as failed:
                _log.error("code did not reach %s: %s", server, failed)
                return server
            return None

        return [late for late in await asyncio.gather(*(one(server) for server in servers)) if late is not None]

    async def _install(self, server: str, compiled: Compiled) -> None:
        call = self._fleet.call
        if not decode_plain(await call(server, "missing_code", encode_plain([compiled.component_digest]))):
            return
        wanted = encode_plain([asdict(piece) for piece in compiled.pieces])
        for missing in decode_plain(await call(server, "missing_pieces", wanted)):
            piece = Piece(**missing)
            path = self._deployer.store_of_artifacts.piece_path(piece.source_digest)
            async with self._sending:
                artifact = await asyncio.to_thread(path.read_bytes)
                await call(server, "install_piece", encode_plain({"piece": missing, "artifact": artifact}))
        await call(server, "install_code", encode_compiled(compiled))
