"""All servers of a cluster on this machine: how many, their names, and their ports, which follow each other."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

from everwarm.cluster import Cluster, Place, StartFailed
from everwarm.cluster_config import SERVERS_MAX, ClusterConfig
from everwarm.home import Home


class OneMachine:
    """The servers of a cluster that was started by this process, on a Ray of its own."""

    def __init__(self, cluster: Cluster, config: ClusterConfig) -> None:
        self._cluster = cluster
        self._config = config
        self._last_number = 0
        self.on_changed: Callable[[], object] = lambda: None  # servers change here only when somebody asks for it

    async def start(self, progress: Callable[[str], None]) -> None:
        """Start all roles. ``StartFailed`` says what stopped it; what had started is left to ``Cluster.stop``."""
        progress(f"starting {self._config.servers} servers")
        await self._cluster.start_control()
        # Ports are given out before anybody starts, in the order of the names.
        coming = [self._next(i) for i in range(self._config.servers)]
        await asyncio.gather(*(self._cluster.bring(server, place) for server, place in coming))

    async def stop(self) -> None:
        """Stop all roles; their processes end with this one."""
        await self._cluster.stop()

    async def add(self, progress: Callable[[str], None]) -> str:
        """Start one more server and let it join; its name. ``StartFailed``: then nothing of it is left."""
        taken = {place.edge_port for place in self._cluster.places.values()}
        if len(self._cluster.places) >= SERVERS_MAX:
            raise StartFailed(f"{SERVERS_MAX} servers are the most on one machine.")
        first = self._config.port
        offset = next(i for i in range(SERVERS_MAX) if first + i not in taken) if first else 0
        server, place = self._next(offset)
        progress(f"starting {server}")
        await self._cluster.bring(server, place)
        return server

    async def remove(self, server: str, progress: Callable[[str], None]) -> str:
        """Have a server leave; its name. ``StartFailed`` when there is no such server, or no other."""
        await self._cluster.remove(server, progress)
        # Code, which nobody else reads; a server of another name gets its own.
        directory = Home(Path(self._config.home)).code(server).parent
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
        return server

    def _next(self, port_offset: int) -> tuple[str, Place]:
        """A name that was never used, since others keep the handles that they once had by it, and its place."""
        self._last_number += 1
        port = self._config.port + port_offset if self._config.port else 0
        return f"server-{self._last_number}", Place(self._config, port)
