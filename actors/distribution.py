"""Distribution: compiled code on its way from the ControlPlane's disk to the servers'.

A server is sent the pieces that it lacks, and the manifest last: the engine that a toolchain's workers share is asked
for like every piece, and found to be there already. It checks each piece and puts it into place whole; its answer is
the acknowledgement.

A piece is read once and *shared* with all that are sent it at the same time: through Ray that is one copy in its object
store, which machines fetch from each other. Who is late is not waited for (``fleet.most_of``). What was begun with it
goes on; if it comes to nothing, the server is told of to ``on_unplaced``: it must not stay in the ring, and joining
anew is how it gets what it lacks.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass

from actors.catalog import Catalog
from actors.deployer import Deployer
from actors.fleet import Fleet, most_of
from actors.peer import PeerFailed, PeerLost
from actors.view import decode_plain, encode_plain
from actors.worker import Limits
from isolates.artifact import Compiled, Piece, encode_compiled
from isolates.engine import engine_text

_log = logging.getLogger("everwarm.distribution")

#: Digests in one question.
_PAGE = 500
#: Different pieces that are on their way at once: each is in memory whole, and an engine has 30 MB.
_PIECES_AT_ONCE = 8


class NoRoom(Exception):
    """A server is there, and its disk does not take the code: the message says why, and names no path."""


class OtherEngine(Exception):
    """A server's CPU or its wasmtime is not the ControlPlane's: what is compiled here is of no use there."""


#: Makes of a payload one that several peers can be called with, and that is kept once.
Share = Callable[[bytes], Awaitable[bytes]]


async def _as_it_is(payload: bytes) -> bytes:
    return payload


@dataclass(slots=True)
class _Shared:
    """A payload that some servers are being sent."""

    payload: "asyncio.Task[bytes]"
    users: int = 0


class Distribution:
    """Puts code in place on servers."""

    def __init__(self, catalog: Catalog, deployer: Deployer, fleet: Fleet, share: Share = _as_it_is) -> None:
        self._catalog = catalog
        self._deployer = deployer
        self._fleet = fleet
        self._share = share
        self._places = asyncio.Semaphore(_PIECES_AT_ONCE)
        self._shared: dict[str, _Shared] = {}
        self._deployed: tuple[int, dict[str, Limits]] | None = None  # as of a change of the catalog
        self._late: set[asyncio.Task[str]] = set()
        #: Hears of each server that serves and did not get what is being deployed; of one that answers, also why.
        self.on_unplaced: Callable[[str, str], None] = lambda server, why: None

    async def install_all(self, server: str) -> list[str]:
        """Put the code of everything that is deployed in place on a server; the digests of those components.

        ``PeerLost`` and ``PeerFailed`` when it is not to be reached, ``OtherEngine`` when it cannot run it, ``NoRoom``.
        """
        engine = (await self._fleet.call(server, "engine")).decode(errors="replace")
        if engine != engine_text():
            raise OtherEngine(f"it has {engine[:200]}; code here is compiled by {engine_text()}")
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

    async def distribute(self, servers: Iterable[str], compiled: Compiled) -> dict[str, str]:
        """Put one component on these servers: those that do not have it yet, each with the reason.

        They get it when they answer, or when they join again.
        """
        placing = {server: asyncio.create_task(self._placed(server, compiled)) for server in servers}
        await most_of(placing.values())
        late: dict[str, str] = {}
        for server, task in placing.items():
            if not task.done():
                late[server] = "it has not answered yet"
                self._late.add(task)
                task.add_done_callback(self._late.discard)
            elif task.result():
                late[server] = task.result()
        return late

    async def _placed(self, server: str, compiled: Compiled) -> str:
        """Put one component on a server: why that failed, or nothing."""
        try:
            await self._install(server, compiled)
        except NoRoom as full:
            _log.error("code was not put in place on %s: %s", server, full)
            self.on_unplaced(server, str(full))
            return str(full)
        except (PeerLost, PeerFailed) as failed:
            _log.error("code did not reach %s: %s", server, failed)
            self.on_unplaced(server, "")
            return str(failed)
        return ""

    async def stop(self) -> None:
        """End what is still on its way."""
        late = list(self._late)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _install(self, server: str, compiled: Compiled) -> None:
        call = self._fleet.call
        if not decode_plain(await call(server, "missing_code", encode_plain([compiled.component_digest]))):
            return
        wanted = encode_plain([asdict(piece) for piece in compiled.pieces])
        for missing in decode_plain(await call(server, "missing_pieces", wanted)):
            async with self._payload(Piece(**missing)) as payload:
                _check(await call(server, "install_piece", payload))
        _check(await call(server, "install_code", encode_compiled(compiled)))

    @asynccontextmanager
    async def _payload(self, piece: Piece) -> AsyncIterator[bytes]:
        """What a server is sent of a piece: the same for all that are sent it at once."""
        shared = self._shared.get(piece.artifact_digest)
        if shared is None:
            shared = self._shared[piece.artifact_digest] = _Shared(asyncio.create_task(self._read(piece)))
        shared.users += 1
        try:
            yield await asyncio.shield(shared.payload)
        finally:
            shared.users -= 1
            if shared.users == 0:
                del self._shared[piece.artifact_digest]
                reading = shared.payload
                if reading.done() and not reading.cancelled() and reading.exception() is None:
                    self._places.release()
                else:
                    reading.cancel()  # it gives its place back itself

    async def _read(self, piece: Piece) -> bytes:
        await self._places.acquire()
        try:
            path = self._deployer.store_of_artifacts.piece_path(piece.source_digest)
            artifact = await asyncio.to_thread(path.read_bytes)
            return await self._share(encode_plain({"piece": asdict(piece), "artifact": artifact}))
        except BaseException:
            self._places.release()
            raise


def _check(answer: bytes) -> None:
    if answer:
        raise NoRoom(answer.decode(errors="replace")[:200])
