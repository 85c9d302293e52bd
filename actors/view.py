"""One machine's view of the cluster: the ring, and what is deployed. Kept up by changes, replaced when one is missed.

A view may be stale; that is slow and never wrong. Changes carry the catalog's sequence numbers, so a machine knows
when it missed one and asks for everything again.
"""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from actors.catalog import Deployed
from actors.cordons import cordon_of
from actors.ring import Ring, worker_key
from actors.worker import CORDON_DEFAULT, Deployment, Version
from isolates.outcome import Outcome

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder()

#: The cordon of a worker that nobody knows here.
CORDON = CORDON_DEFAULT


def encode_plain(plain: object) -> bytes:
    """Plain data (dicts, lists, strings, numbers, bytes) as bytes."""
    return _ENCODER.encode(plain)


def decode_plain(data: bytes) -> Any:
    """Plain data from bytes."""
    return _DECODER.decode(data)


def deployed_to_plain(deployed: Deployed) -> dict[str, object]:
    """A deployment with its versions, for the way between machines."""
    return {
        "seq": deployed.seq,
        "deployment": deployed.deployment.to_plain(),
        "versions": [version.to_plain() for version in deployed.versions],
    }


def deployed_from_plain(plain: Any) -> Deployed:
    """Reads what ``deployed_to_plain`` wrote. ``ValueError`` names the wrong field."""
    return Deployed(
        int(plain["seq"]),
        Deployment.from_plain(plain["deployment"]),
        tuple(Version.from_plain(version) for version in plain["versions"]),
    )


@dataclass(slots=True)
class ClusterView:
    """What one machine knows."""

    seq: int = 0
    ring: Ring | None = None
    workers: dict[str, Deployed] = field(default_factory=dict)
    #: The ring before this one, and what was deployed when it ended: who has a new home since then.
    ring_before: Ring | None = None
    seq_before: int = 0

    def key_of(self, worker: str) -> str:
        """A worker's key in the ring: its cordon's name and its own."""
        deployed = self.workers.get(worker)
        return worker_key(cordon_of(worker) if deployed is None else deployed.versions[0].cordon, worker)

    def home_of(self, worker: str) -> str | None:
        """The server that is home to a worker, by this view."""
        return None if self.ring is None else self.ring.home_of(self.key_of(worker))

    def order_of(self, worker: str, most: int) -> list[str]:
        """The first servers of a worker's order, its home first: who takes over, one after the other."""
        return [] if self.ring is None else self.ring.successors(self.key_of(worker), most)

    def next_home_of(self, worker: str, here: str) -> str | None:
        """The first server of a worker's order that is not ``here``: who takes over when ``here`` cannot."""
        return next((server for server in self.order_of(worker, 2) if server != here), None)

    def turn_ring(self, ring: Ring) -> bool:
        """A new epoch. False, and nothing changes, when it is an old one."""
        if ring.epoch <= self.epoch:
            return False
        self.ring_before, self.seq_before, self.ring = self.ring, self.seq, ring
        return True

    def has_moved(self, worker: str) -> bool:
        """Whether a worker's home is another since the last epoch: if it is cold there, this is why."""
        deployed = self.workers.get(worker)
        if self.ring_before is None or deployed is None or deployed.seq > self.seq_before:
            return False
        before = self.ring_before.home_of(self.key_of(worker))
        return before is not None and before != self.home_of(worker)

    @property
    def epoch(self) -> int:
        """The ring's epoch, 0 before the first."""
        return 0 if self.ring is None else self.ring.epoch

    @property
    def servers(self) -> int:
        """How many servers are homes; at least this one."""
        return 1 if self.ring is None else max(1, len(self.ring.servers))

    def version_for(self, worker: str, affinity: bytes) -> Version | Outcome:
        """The version that answers a request of ``affinity``; ``SCRIPT_NOT_FOUND`` when nothing is deployed."""
        deployed = self.workers.get(worker)
        if deployed is None:
            return Outcome.SCRIPT_NOT_FOUND
        chosen = deployed.deployment.choose(affinity)
        return next(version for version in deployed.versions if version.version_id == chosen)

    def apply(self, seq: int, worker: str, deployed: Deployed | None) -> bool:
        """One change. False when changes before it are missing, so that everything must be asked for again."""
        if seq <= self.seq:
            return True
        if seq != self.seq + 1:
            return False
        self.seq = seq
        if deployed is None:
            self.workers.pop(worker, None)
        else:
            self.workers[worker] = deployed
        return True
