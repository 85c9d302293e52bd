"""Host names to addresses, by the machine's own resolver, on threads of our own.

The resolver cannot be interrupted, and a tenant whose name servers never answer would keep its threads for half a
minute each. So a worker has few look-ups under way, and one counts until its thread is free again, however early
whoever asked has given up.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

#: For a worker: from a host name and a port to addresses, best first; OSError (``socket.gaierror``) without any.
Lookup = Callable[[str, str, int], Awaitable[list[str]]]


@dataclass(frozen=True, slots=True)
class NameLimits:
    """Bounds of one resolver."""

    #: Threads that wait for name servers; each costs its touched stack.
    threads: int = 16
    #: Of them for one worker, so that four workers with dead name servers are needed to stop the others.
    per_worker: int = 4
    #: Addresses of one name that are looked at. Large services answer with eight.
    addresses_max: int = 16


class SystemNames:
    """The machine's resolver, shared by all workers. ``threads`` end with ``close``."""

    def __init__(self, limits: NameLimits | None = None) -> None:
        self._limits = limits or NameLimits()
        self._threads = ThreadPoolExecutor(self._limits.threads, thread_name_prefix="names")
        self._gates: dict[str, asyncio.Semaphore] = {}
        self._under_way: dict[str, int] = {}

    async def lookup(self, worker: str, host: str, port: int) -> list[str]:
        """The addresses of a name, best first. OSError when there are none."""
        loop = asyncio.get_running_loop()
        gate = self._gates.setdefault(worker, asyncio.Semaphore(self._limits.per_worker))
        self._under_way[worker] = self._under_way.get(worker, 0) + 1
        try:
            await gate.acquire()
        except BaseException:
            self._leave(worker)
            raise

        def free() -> None:
            gate.release()
            self._leave(worker)

        looking = self._threads.submit(_addresses, host, port, self._limits.addresses_max)
        looking.add_done_callback(lambda _: None if loop.is_closed() else loop.call_soon_threadsafe(free))
        return await asyncio.wrap_future(looking)

    def _leave(self, worker: str) -> None:
        self._under_way[worker] -= 1
        if not self._under_way[worker]:
            del self._under_way[worker], self._gates[worker]

    def close(self) -> None:
        """Take no more; look-ups that hang are left to the resolver's own time limit."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _addresses(host: str, port: int, addresses_max: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for _, _, _, _, sockaddr in found))[:addresses_max]
