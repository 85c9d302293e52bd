"""CodeKeeper: the compiled code on one machine's disk, as the ControlPlane puts it there.

Pieces come first and the manifest last, so that code which is half here is never found. Hosts and the ShardServer read
the same directory and are not told: a digest that is there is whole.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from actors.peer import Calls
from actors.view import decode_plain, encode_plain
from isolates.artifact import ArtifactStore, Piece, decode_compiled
from isolates.disk import disk_trouble
from isolates.engine import engine_text

_log = logging.getLogger("everwarm.code")

#: Code that nobody names stays so long: deploys take minutes at most, and a rollback soon after finds its code here.
_CODE_KEPT_S = 3_600.0
#: Components whose code was seen, 64 digits each: what is not remembered costs a look at the disk.
_SEEN_MAX = 16_384


class CodeKeeper:
    """What a machine's Server does for its code: all of it is asked for by the ControlPlane."""

    def __init__(self, directory: Path) -> None:
        self._artifacts = ArtifactStore(directory)
        self._seen: set[str] = set()
        self.calls: Calls = {
            "engine": self.engine,
            "install_code": self.install_code,
            "missing_code": self.missing_code,
            "missing_pieces": self.missing_pieces,
            "install_piece": self.install_piece,
            "collect_code": self.collect_code,
        }

    def has(self, component_digest: str) -> bool:
        """Whether a component's code is here. It is asked for each request, and what was seen is believed until the
        ControlPlane looks again."""
        if component_digest in self._seen:
            return True
        found = self._artifacts.has(component_digest)
        if found:
            if len(self._seen) >= _SEEN_MAX:
                self._seen.clear()
            self._seen.add(component_digest)
        return found

    async def engine(self, payload: bytes) -> bytes:
        """The engine that code here is for (``isolates.engine.engine_text``)."""
        return engine_text().encode()

    async def missing_code(self, payload: bytes) -> bytes:
        """Which of these component digests are not here, or not as they should be."""
        digests = decode_plain(payload)
        self._seen.clear()
        return encode_plain(await asyncio.to_thread(lambda: [d for d in digests if not self._artifacts.sound(d)]))

    async def missing_pieces(self, payload: bytes) -> bytes:
        """Which of these pieces are not here as they should be."""
        pieces = [Piece(**plain) for plain in decode_plain(payload)]
        return encode_plain([asdict(p) for p in await asyncio.to_thread(self._artifacts.missing, pieces)])

    async def collect_code(self, payload: bytes) -> bytes:
        """Remove the code of everything but these component digests: ``{"freed_bytes": ...}``."""
        keep, before_s = set(decode_plain(payload)), time.time() - _CODE_KEPT_S
        self._seen.clear()
        freed = await asyncio.to_thread(lambda: self._artifacts.collect(keep, before_s=before_s))
        return encode_plain({"freed_bytes": freed})

    async def install_piece(self, payload: bytes) -> bytes:
        """Put one piece of compiled code on this machine's disk. Nothing, or why the disk did not take it."""
        plain = decode_plain(payload)
        return await _put(lambda: self._artifacts.install_piece(Piece(**plain["piece"]), plain["artifact"]))

    async def install_code(self, payload: bytes) -> bytes:
        """Make a component usable here whose pieces are all here. Nothing, or why the disk did not take it."""
        compiled = decode_compiled(payload)
        return await _put(lambda: self._artifacts.install(compiled))


async def _put(write: Callable[[], object]) -> bytes:
    try:
        await asyncio.to_thread(write)
    except OSError as failed:
        trouble = disk_trouble(failed)
        if not trouble:
            raise
        _log.error("code cannot be put in place: %s", failed)
        return trouble.encode()
    return b""
