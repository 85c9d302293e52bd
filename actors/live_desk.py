"""LiveDesk: a Server's part in ``everwarm tail``. It tells hosts and edges who is watched, and holds readers' calls.

A reader asks each Server: ``tail`` gives a key, ``read_tail`` waits for events, and is asked again and again, which
renews the lease; ``end_tail`` ends it, and so does the silence of a reader that died.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable

import msgspec

from actors.live_tail import (
    BATCH,
    LIMITS,
    LIVE_EVENT,
    Batch,
    LiveEvent,
    LiveFilter,
    LiveLimits,
    LiveTails,
    Watched,
    checked,
)
from actors.peer import Calls
from actors.view import decode_plain, encode_plain
from actors.wire import Codec


class _Wanted(msgspec.Struct, frozen=True):
    worker: str
    wanted: LiveFilter


WANTED = Codec(_Wanted)


def wanted(worker: str, filter_: LiveFilter) -> bytes:
    """What ``tail`` takes."""
    return WANTED.encode(_Wanted(worker, filter_))


class LiveDesk:
    """The live tails of one Server."""

    def __init__(self, tell: Callable[[Watched], Awaitable[None]], limits: LiveLimits = LIMITS) -> None:
        """``tell`` says to all hosts and edges of the machine which workers are watched."""
        self._tell = tell
        self._limits = limits
        self._tails = LiveTails(limits)
        self._told: frozenset[str] = frozenset()
        self._told_headers: frozenset[str] = frozenset()
        self._news: dict[str, asyncio.Event] = {}
        self.calls: Calls = {"tail": self.tail, "read_tail": self.read_tail, "end_tail": self.end_tail}

    def statistics(self) -> dict[str, int]:
        """Tails that are open, and events that their readers missed."""
        return {"open": len(self._tails), "dropped": self._tails.dropped}

    def is_on(self, worker: str) -> bool:
        """Whether somebody watches a worker."""
        return worker in self._told

    @property
    def headers(self) -> frozenset[str]:
        """The names of the headers that events are to have."""
        return self._told_headers

    def told(self, payload: bytes) -> None:
        """A host or an edge tells of an event."""
        self.happened(LIVE_EVENT.decode(payload))

    def happened(self, event: LiveEvent) -> None:
        """An event of this machine."""
        for key in self._tails.offer(event):
            self._news[key].set()

    async def work(self) -> None:
        """Say again and again who is watched, for as long as anybody is, until this is cancelled."""
        while True:
            await asyncio.sleep(self._limits.told_s / 3)
            for key in self._tails.expire(_now_s()):
                self._news.pop(key).set()
            await self._spread(again=True)

    async def _spread(self, *, again: bool = False) -> None:
        """Tell hosts and edges who is watched, if that has changed; ``again``: also if anybody is."""
        workers, headers = self._tails.workers, self._tails.headers
        if (workers, headers) != (self._told, self._told_headers) or (again and workers):
            self._told, self._told_headers = workers, headers
            await self._tell(Watched(time.monotonic_ns(), tuple(sorted(workers)), tuple(sorted(headers))))

    async def tail(self, payload: bytes) -> bytes:
        """Watch a worker: ``{"key": ...}``, or ``{"error": why not}``."""
        asked = WANTED.decode(payload)
        key = secrets.token_hex(8)
        try:
            refused = self._tails.open(key, asked.worker, checked(asked.wanted), _now_s())
        except ValueError as wrong:
            refused = str(wrong)
        if refused is not None:
            return encode_plain({"error": refused})
        self._news[key] = asyncio.Event()
        await self._spread()
        return encode_plain({"key": key})

    async def read_tail(self, payload: bytes) -> bytes:
        """What happened since the last read (``BATCH``): at once if there is anything, else when there is, or empty."""
        key = str(decode_plain(payload)["key"])
        news = self._news.get(key)
        if news is None:
            return BATCH.encode(Batch(over=True))
        if not self._tails.has_news(key):
            news.clear()
            self._tails.read(key, _now_s())  # it is being read: the lease is renewed before the wait, too
            try:
                async with asyncio.timeout(self._limits.wait_s):
                    await news.wait()
            except TimeoutError:
                pass  # nothing happened, and its reader hears that this Server is there
        return BATCH.encode(self._tails.read(key, _now_s()))

    async def end_tail(self, payload: bytes) -> bytes:
        """A reader leaves."""
        key = str(decode_plain(payload)["key"])
        self._tails.close(key)
        news = self._news.pop(key, None)
        if news is not None:
            news.set()
        await self._spread()
        return b""


def _now_s() -> float:
    return asyncio.get_running_loop().time()
