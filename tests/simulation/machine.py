"""One complete server of the simulated cluster: the real Server and ShardServer, simulated hosts, and an edge.

They are wired as ``everwarm/cluster.py`` does it. Nothing of the roles is replaced: their links are the real ``Links``
over sockets in memory, their peers the real ``RayPeers`` over actor handles in memory.
"""

import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from actors.admission import AdmissionLimits
from actors.connection import Connection, Frame
from actors.link import Links
from actors.peer import RayPeers
from actors.server import Server
from actors.shard_server import ShardServer
from actors.worker import CORDON_DEFAULT
from isolates.artifact import ArtifactStore
from tests.simulation.edge import Edge
from tests.simulation.host import HostNumbers, Make, SimulatedHost
from tests.simulation.journal import Journal
from tests.simulation.network import Network
from tests.simulation.publications import DIGESTS

if TYPE_CHECKING:
    from tests.simulation.wires import SocketLoop


class Disks:
    """Directories of machines with all code in place; made once a process and shared by its runs, which only read."""

    def __init__(self) -> None:
        self._root = TemporaryDirectory(prefix="one-process-")
        self._made: dict[str, Path] = {}

    def of(self, machine: str) -> Path:
        """The directory of one machine."""
        made = self._made.get(machine)
        if made is None:
            made = self._made[machine] = Path(self._root.name) / machine
            made.mkdir()
            (made / "server.sock").touch()  # whose mode the Server sets
            store = ArtifactStore(made / "code")
            for digest in DIGESTS:
                store.path(digest).touch()
        return made


def machine_of(path: str) -> str:
    """On which machine a socket is."""
    return os.path.basename(os.path.dirname(path))


class Machine:
    """One server."""

    def __init__(
        self,
        name: str,
        disk: Path,
        hosts: int,
        *,
        loop: "SocketLoop",
        network: Network,
        seeds: Callable[[str], Random],
        journal: Journal,
        makes: dict[str, Make],
        numbers: HostNumbers,
        admission: AdmissionLimits,
    ) -> None:
        self.name = name
        self._loop = loop
        self._network = network
        self._server_path = str(disk / "server.sock")
        self._line: Connection | None = None
        self.dead = False
        # A host's path decides which versions it runs, so it may not hold the name of a temporary directory.
        self.hosts = [
            SimulatedHost(
                f"{name}/host-{i}", name, f"/sockets/{name}/host-{i}.sock", loop=loop, chance=seeds(f"{name}/host-{i}"),
                journal=journal, makes=makes, numbers=numbers, tell_server=self._tell_server,
            )
            for i in range(hosts)
        ]  # fmt: skip
        sockets = [Path(host.path) for host in self.hosts]
        self.server = Server(
            name,
            host_sockets=lambda cordon: sockets if cordon == CORDON_DEFAULT else [],
            code_directory=disk / "code",
            links=Links(),
            peers=RayPeers(network.peers_of(f"{name}/server")),
            entropy=seeds(f"{name}/server").randbytes,
        )
        self.shard = ShardServer(
            name,
            host_sockets=lambda cordon: sockets if cordon == CORDON_DEFAULT else [],
            code_directory=disk / "code",
            links=Links(),
            peers=RayPeers(network.peers_of(f"{name}/shard")),
            limits=admission,
        )
        self.edge = Edge(name, self._server_path, loop=loop, chance=seeds(f"{name}/edge"), journal=journal, makes=makes)
        network.add(f"{name}/server", {**self.server.calls, "sync": self._sync})
        network.add(f"{name}/shard", self.shard.calls)

    async def start(self) -> None:
        """Listen, as a machine that is not yet in the ring."""
        for host in self.hosts:
            host.start()
        await self.server.start(Path(self._server_path))

    async def _sync(self, payload: bytes) -> bytes:
        await self.server.sync()
        return b""

    def _tell_server(self, kind: Frame, payload: bytes) -> None:
        """A host's line to its Server: a frame without a reply, dropped when the Server is away."""
        line = self._line
        if line is None or line.closed:
            try:
                _, made = self._loop.wires.connect(Connection, self._server_path)
            except ConnectionRefusedError:
                return
            assert isinstance(made, Connection)
            line = self._line = made
        line.send(kind, payload)

    def kill_host(self, number: int, journal: Journal) -> None:
        """One host process dies."""
        host = self.hosts[number % len(self.hosts)]
        if not host.dead:
            host.kill()
        if all(host.dead for host in self.hosts):
            journal.hostless.add(self.name)

    def kill_shard(self, journal: Journal) -> None:
        """The ShardServer's process dies."""
        self._network.kill(f"{self.name}/shard")
        journal.killed(self.name, "shard")

    def kill(self, journal: Journal) -> None:
        """The whole machine dies, with its clients' connections."""
        self.dead = self.edge.dead = True
        journal.killed(self.name, "machine")
        for role in ("server", "shard"):
            self._network.kill(f"{self.name}/{role}")
        for host in self.hosts:
            if not host.dead:
                host.kill()
        self._loop.wires.cut(self._server_path)

    def sleep(self, seconds: float, journal: Journal) -> None:
        """It does not read what it is sent, for a while."""
        until_s = self._loop.time() + seconds
        journal.slept(self.name, seconds)
        self._loop.wires.sleep(self.name, until_s)
        self._network.sleep(self.name, until_s)

    @property
    def shard_is_dead(self) -> bool:
        return self._network.is_dead(f"{self.name}/shard")
