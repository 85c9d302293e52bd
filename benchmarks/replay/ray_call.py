"""What one call from an actor to another takes in a cluster, while it is under load.

Two more actors in the cluster's own Ray, each a process: one calls the other as a Server calls a ShardServer, through
the same ``RayPeer``, with as many bytes as an offer has, one call after the other and with a pause between them.
"""

import asyncio
import gc
import time
from dataclasses import dataclass
from typing import Any

import ray

from actors.peer import RayPeer

#: The first calls open connections.
_UNCOUNTED = 20
_CALLS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class RayCall:
    """What is measured: calls of ``bytes_`` there and back, one each ``every_s`` seconds."""

    bytes_: int
    every_s: float = 0.05


class Called:
    """An actor that answers."""

    async def call(self, method: str, payload: bytes) -> bytes:
        """As many bytes as came."""
        return payload


class Caller:
    """An actor that asks, from when it is started until it is stopped."""

    def __init__(self, called: list[Any], what: RayCall) -> None:
        """``called`` in a list, or Ray would wait for a handle as if it were a result."""
        self._peer = RayPeer("called", called[0])
        self._what = what
        self._stopping = asyncio.Event()

    async def measure(self) -> list[float]:
        """What each call took, in ms, until ``stop``."""
        payload = bytes(self._what.bytes_)
        for _ in range(_UNCOUNTED):
            await self._peer.call("echo", payload)
        gc.collect()
        gc.freeze()
        took_ms: list[float] = []
        while not self._stopping.is_set():
            began_s = time.perf_counter()
            await self._peer.call("echo", payload)
            took_ms.append((time.perf_counter() - began_s) * 1e3)
            await asyncio.sleep(self._what.every_s)
        return took_ms

    async def stop(self) -> None:
        """Measure no more."""
        self._stopping.set()


class RayCalls:
    """The two actors, for as long as this is open. The process that opens it has joined the cluster's Ray."""

    def __init__(self, what: RayCall) -> None:
        options = {"num_cpus": 0, "max_concurrency": _CALLS_MAX, "max_task_retries": 0}
        self._called = ray.remote(**options)(Called).remote()
        self._caller = ray.remote(**options)(Caller).remote([self._called], what)
        self._measured = self._caller.measure.remote()

    def close(self) -> list[float]:
        """What each call took, in ms."""
        ray.get(self._caller.stop.remote())
        took_ms: list[float] = ray.get(self._measured)
        for actor in (self._caller, self._called):
            ray.kill(actor)
        return took_ms
