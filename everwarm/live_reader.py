"""Watching a worker live: one reader on each server, and what they read in one stream.

A reader that is slow is slow towards its servers alone: each holds so many events for it and drops the oldest. A server
that goes away, or comes, is noticed and said; the others are read meanwhile.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from actors.live_desk import wanted
from actors.live_tail import BATCH, LiveEvent, LiveFilter
from actors.peer import Peer, PeerFailed, PeerLost
from actors.view import decode_plain, encode_plain

#: Until a server that is away is asked again.
_AGAIN_S: Final = 1.0
#: How often it is looked who there is: servers are added and removed.
_LOOK_EVERY_S: Final = 5.0
#: Events that were read and not taken yet; beyond it the servers hold them, and drop.
_HELD_MAX: Final = 64
#: Longer than a server holds a read that has nothing to tell.
_READ_S_MAX: Final = 20.0
_END_S_MAX: Final = 2.0


class NotWatched(Exception):
    """A server does not let a worker be watched; the message says why."""


@dataclass(frozen=True, slots=True)
class Missed:
    """``count`` events of a server came faster than they were read, and are gone."""

    server: str
    count: int


@dataclass(frozen=True, slots=True)
class Away:
    """A server cannot be read from for now, and ``why``."""

    server: str
    why: str


LiveNews = LiveEvent | Missed | Away


class LiveReader:
    """One worker, watched on all servers. An async iterator of what happens, which ends when it is closed."""

    def __init__(
        self,
        worker: str,
        which: LiveFilter,
        *,
        servers: Callable[[], Sequence[str]],
        peer: Callable[[str], Awaitable[Peer]],
    ) -> None:
        """``servers``: who there is now; ``peer``: a server as one calls it."""
        self._worker = worker
        self._wanted = which
        self._servers = servers
        self._peer = peer
        self._news: asyncio.Queue[LiveNews] = asyncio.Queue(_HELD_MAX)
        self._keys: dict[str, str] = {}  # by server; one without a key is away
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin, on every server that is there. ``NotWatched`` when one of them has no place for a reader."""
        servers = list(self._servers())
        opened = await asyncio.gather(*(self._open_at(server) for server in servers), return_exceptions=True)
        for server, refused in zip(servers, opened, strict=True):
            if isinstance(refused, BaseException) and not isinstance(refused, PeerLost | PeerFailed | TimeoutError):
                await self.close()
                raise refused
            if isinstance(refused, BaseException):
                self._news.put_nowait(_away(server, refused))
        for server in servers:
            self._begin(server)
        self._looking = asyncio.create_task(self._look())

    async def close(self) -> None:
        """Leave: every server is told, as far as it can be reached."""
        tasks = [*self._reading.values(), *([self._looking] if self._looking is not None else [])]
        self._reading.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(self._end_at(server) for server in list(self._keys)))

    def __aiter__(self) -> AsyncIterator[LiveNews]:
        return self

    async def __anext__(self) -> LiveNews:
        return await self._news.get()

    # ----------------------------------------------------------------------------------------------- one server

    async def _open_at(self, server: str) -> None:
        """Watch on one server. ``NotWatched``, or that it is away."""
        answer = await self._call(server, "tail", wanted(self._worker, self._wanted))
        told: dict[str, Any] = decode_plain(answer)
        if "error" in told:
            raise NotWatched(f"{server}: {told['error']}.")
        self._keys[server] = str(told["key"])

    def _begin(self, server: str) -> None:
        self._reading[server] = asyncio.create_task(self._read(server))

    async def _read(self, server: str) -> None:
        """Read one server for as long as it is there."""
        is_said = server not in self._keys
        while True:
            try:
                if server not in self._keys:
                    await self._open_at(server)
                order = encode_plain({"key": self._keys[server]})
                batch = BATCH.decode(await self._call(server, "read_tail", order))
            except (PeerLost, PeerFailed, TimeoutError, NotWatched) as away:
                self._keys.pop(server, None)
                if not is_said:
                    is_said = True
                    await self._news.put(_away(server, away))
                await asyncio.sleep(_AGAIN_S)
                continue
            is_said = False
            if batch.dropped:
                await self._news.put(Missed(server, batch.dropped))
            for event in batch.events:
                await self._news.put(event)
            if batch.over:
                self._keys.pop(server, None)

    async def _end_at(self, server: str) -> None:
        key = self._keys.pop(server, None)
        if key is None:
            return
        with suppress(PeerLost, PeerFailed, TimeoutError):  # then its lease ends
            async with asyncio.timeout(_END_S_MAX):
                await (await self._peer(server)).call("end_tail", encode_plain({"key": key}))

    async def _call(self, server: str, method: str, payload: bytes) -> bytes:
        async with asyncio.timeout(_READ_S_MAX):
            return await (await self._peer(server)).call(method, payload)

    async def _look(self) -> None:
        """Begin with servers that were added, and leave those that were removed."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            there = set(self._servers())
            for server in there - self._reading.keys():
                self._begin(server)
            for server in self._reading.keys() - there:
                self._reading.pop(server).cancel()
                await self._end_at(server)


def _away(server: str, why: BaseException) -> Away:
    return Away(server, str(why) or "it took too long")
