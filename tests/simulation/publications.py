"""What the ControlPlane publishes: epochs of the ring and deployments, with the news that comes late or never.

The values are the real ones (``Deployed``, the payloads of ``apply_ring`` and ``apply_change``, pages of ``snapshot``).
A publication may be delayed, doubled, overtaken by the next one, or lost; a ``resync`` is what membership does in the
end for a Server that fell behind.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from hashlib import sha256
from random import Random
from typing import TYPE_CHECKING

import ray.exceptions

from actors.catalog import Deployed
from actors.handover import hand_over
from actors.peer import Calls, PeerFailed, PeerLost, RayPeers
from actors.ring import Ring, worker_key
from actors.view import decode_plain, deployed_to_plain, encode_plain
from actors.worker import (
    CORDON_DEFAULT,
    REUSE_DEFAULT,
    Deployment,
    Limits,
    Plan,
    Reuse,
    Share,
    Version,
    make_version_id,
)
from actors.worker_names import WorkerName
from tests.simulation.host import Make
from tests.simulation.journal import Journal
from tests.simulation.network import Network

if TYPE_CHECKING:
    from tests.simulation.wires import SocketLoop

SECRET = b"one process, one secret"
#: Components that are in place on every machine; versions share them, as tenants share an example.
DIGESTS = tuple(sha256(f"component {i}".encode()).hexdigest() for i in range(64))


@dataclass(slots=True)
class Delays:
    """How news travels: the chances of each publication to one Server."""

    late: float = 0.0
    late_s_max: float = 0.0
    doubled: float = 0.0
    never: float = 0.0


class Publications:
    """The truth about a cluster, and how it is told."""

    def __init__(
        self, loop: "SocketLoop", network: Network, chance: Random, journal: Journal, makes: dict[str, Make]
    ) -> None:
        self._loop = loop
        self._network = network
        self._chance = chance
        self._journal = journal
        self._makes = makes
        self.delays = Delays()
        self.listeners: list[str] = []  # the Servers that are told
        self.members: dict[str, int] = {}
        self.epoch = 1
        self.seq = 0
        self.deployed: dict[str, Deployed] = {}
        # The last page that was asked for: most often all machines ask for the same one.
        self._page_asked = (-1, "")
        self._page = b""
        self._telling: dict[asyncio.Task[None], None] = {}
        self._peers = RayPeers(network.peers_of("control"))
        self.calls: Calls = {"snapshot": self.snapshot}

    # ------------------------------------------------------------------------------------------------- the truth

    def version_of(self, worker: str, make: Make, plan: Plan, reuse: Reuse = REUSE_DEFAULT) -> Version:
        """One more upload of a worker."""
        digest = DIGESTS[len(self._makes) % len(DIGESTS)]
        version_id = make_version_id(worker, digest, self.seq)
        self._makes[version_id] = make
        return Version(worker, version_id, digest, Limits.for_plan(plan), plan, 0, "a simulation", reuse)

    def deploy(self, worker: str, *versions: Version) -> bytes:
        """One or two versions answer from now on; what is to be told."""
        self.seq += 1
        percents = (100,) if len(versions) == 1 else (50, 50)
        shares = tuple(Share(v.version_id, p) for v, p in zip(versions, percents, strict=True))
        self.deployed[worker] = Deployed(self.seq, Deployment(WorkerName(worker), shares), versions)
        return self._change(worker)

    def remove(self, worker: str) -> bytes:
        """Nobody answers for a worker any more."""
        self.seq += 1
        del self.deployed[worker]
        self._journal.gone_workers.setdefault(worker, []).append(self._loop.time())
        return self._change(worker)

    def _change(self, worker: str) -> bytes:
        deployed = self.deployed.get(worker)
        plain = None if deployed is None else deployed_to_plain(deployed)
        return encode_plain({"seq": self.seq, "worker": worker, "deployed": plain})

    def ring(self) -> bytes:
        """The ring as it is now."""
        return encode_plain({"epoch": self.epoch, "servers": self.members, "secret": SECRET})

    def new_ring(self, **members: int) -> bytes:
        """The next epoch; what is to be told."""
        self.members = members
        self.epoch += 1
        self._journal.tell(f"the ring has epoch {self.epoch}: {members}")
        return self.ring()

    async def change_ring(self, **members: int) -> None:
        """As membership does it: what moves is started at its new home, and then the ring moves."""
        versions = {v.version_id: v for deployed in self.deployed.values() for v in deployed.versions}
        done = await hand_over(
            self._call, versions.get, before=list(self.members), after=members, secret=SECRET, within_s=10.0
        )
        self._journal.tell(f"handed over: {done}")
        self.publish("apply_ring", self.new_ring(**members))

    async def _call(self, server: str, method: str, payload: bytes) -> bytes:
        return await (await self._peers.get(f"{server}/server")).call(method, payload)

    async def change_deployment(self, worker: str, new: Version, *others: Version) -> None:
        """As a deploy does it: an isolate of the new version is started at its worker's home, and then it answers."""
        homes = Ring(0, self.members, SECRET)
        home = homes.home_of(worker_key(CORDON_DEFAULT, worker))
        if home is not None:
            try:
                await self._call(home, "preload", encode_plain({"version": new.to_plain(), "secrets": {}}))
            except (PeerLost, PeerFailed) as away:
                self._journal.tell(f"{home} did not preload {new.version_id}: {away}")
        self.publish("apply_change", self.deploy(worker, *others, new))

    async def snapshot(self, payload: bytes) -> bytes:
        """A page of what is deployed: all of it."""
        asked = (self.seq, str(decode_plain(payload)["after"]))
        if self._page_asked != asked:
            page = [self.deployed[worker] for worker in sorted(self.deployed) if worker > asked[1]]
            self._page_asked = asked
            self._page = encode_plain(
                {"seq": self.seq, "workers": [deployed_to_plain(one) for one in page], "more": False}
            )
        return self._page

    # -------------------------------------------------------------------------------------------------- telling it

    def publish(self, method: str, payload: bytes) -> None:
        """Tell all Servers, each as the news travels to it."""
        delays, chance = self.delays, self._chance
        for machine in self.listeners:
            if chance.random() < delays.never:
                self._journal.tell(f"{machine} never hears {method}")
                continue
            times = 2 if chance.random() < delays.doubled else 1
            for _ in range(times):
                late_s = delays.late_s_max * chance.random() if chance.random() < delays.late else 0.0
                self.begin(self._tell(machine, method, payload, late_s))

    def resync(self, machine: str) -> None:
        """A Server that fell behind is told everything again."""
        self.begin(self._resync(machine))

    async def _resync(self, machine: str) -> None:
        await self._tell(machine, "apply_ring", self.ring(), 0.0)
        await self._tell(machine, "sync", b"", 0.0)

    async def _tell(self, machine: str, method: str, payload: bytes, late_s: float) -> None:
        await asyncio.sleep(late_s)
        try:
            await self._network.send("control", f"{machine}/server", method, payload)
        except ray.exceptions.RayError:
            self._journal.tell(f"{machine} was not told {method}")

    def begin(self, work: Coroutine[object, None, None]) -> None:
        task = self._loop.create_task(work)
        self._telling[task] = None
        task.add_done_callback(lambda done: self._telling.pop(done, None))
