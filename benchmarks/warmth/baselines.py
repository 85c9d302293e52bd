"""The routings that ours is compared with. All evict alike; where a worker has a home, eviction knows of it.

* ``unsharded``: every server runs what arrives there.
* ``random``: sent on to any server; the same but for chance, as arrival is random already.
* ``least loaded``: sent to the server with the least CPU load, as balancers do that know nothing of warmth.
* ``ring``: sent to the worker's home, whatever happens.
* ``bounded ring``: to the first server along the ring that has no more than 1.25 times the mean load (consistent
  hashing with bounded loads; Mirrokni, Thorup and Zadimoghaddam, SODA 2018).
"""

import random
from abc import ABC, abstractmethod

import numpy as np

from benchmarks.warmth.cluster import Cluster
from benchmarks.warmth.settings import Layout, Settings
from benchmarks.warmth.trace import Ints, Trace

_BOUND = 1.25


class Policy(ABC):
    """Where requests run."""

    name: str
    has_homes = False

    def __init__(self, trace: Trace, layout: Layout, settings: Settings) -> None:
        self.layout = layout
        self.settings = settings
        self.trace = trace

    def begin(self, cluster: Cluster) -> None:
        """Before the first request. ``cluster.load`` is the servers' load, as it is known."""
        self.cluster = cluster

    @abstractmethod
    def run(self, worker: int, arrived: int, now_s: float) -> int:
        """One request runs: the server where."""

    @abstractmethod
    def place(self, worker: Ints, arrived: Ints, times: Ints, now_s: float) -> Ints:
        """The servers where a minute's requests run, ``times`` of each ``worker`` that ``arrived`` at a server."""

    def every_minute(self, now_s: float) -> None:  # noqa: B027 - most have nothing to do
        """A minute begins."""


class Unsharded(Policy):
    """Where it arrives."""

    name = "unsharded"

    def run(self, worker: int, arrived: int, now_s: float) -> int:
        self.cluster.serve(worker, arrived, now_s)
        return arrived

    def place(self, worker: Ints, arrived: Ints, times: Ints, now_s: float) -> Ints:
        return arrived


class Random(Policy):
    """Anywhere."""

    name = "random"

    def begin(self, cluster: Cluster) -> None:
        super().begin(cluster)
        self._dice = random.Random(self.settings.seed)
        self._many_dice = np.random.default_rng((self.settings.seed, 1 << 30))

    def run(self, worker: int, arrived: int, now_s: float) -> int:
        server = self._dice.randrange(self.settings.servers)
        self.cluster.serve(worker, server, now_s)
        return server

    def place(self, worker: Ints, arrived: Ints, times: Ints, now_s: float) -> Ints:
        # Moving all that arrived on one server to one other spreads a worker as widely as moving each.
        return (arrived + self._many_dice.integers(0, self.settings.servers, len(arrived))) % self.settings.servers


class LeastLoaded(Policy):
    """Where the least is going on."""

    name = "least loaded"

    def run(self, worker: int, arrived: int, now_s: float) -> int:
        server = int(self.cluster.load.argmin())
        self.cluster.serve(worker, server, now_s)
        return server

    def place(self, worker: Ints, arrived: Ints, times: Ints, now_s: float) -> Ints:
        idlest = np.argsort(self.cluster.load, kind="stable")
        return idlest[np.arange(len(worker)) % self.settings.servers]


class PlainRing(Policy):
    """At home."""

    name = "ring"
    has_homes = True

    def begin(self, cluster: Cluster) -> None:
        super().begin(cluster)
        self._homes = np.array(self.layout.homes)

    def run(self, worker: int, arrived: int, now_s: float) -> int:
        server = self.layout.homes[worker]
        self.cluster.serve(worker, server, now_s)
        return server

    def place(self, worker: Ints, arrived: Ints, times: Ints, now_s: float) -> Ints:
        homes: Ints = self._homes[worker]
        return homes


class BoundedRing(Policy):
    """At home, or at the first server after it that is within bounds."""

    name = "bounded ring"
    has_homes = True

    def run(self, worker: int, arrived: int, now_s: float) -> int:
        load = self.cluster.load
        bound = _BOUND * float(load.sum()) / len(load)
        server = self._within(worker, load.tolist(), bound)
        self.cluster.serve(worker, server, now_s, spilled=server != self.layout.homes[worker])
        return server

    def _within(self, worker: int, load: list[float], bound: float) -> int:
        for server in self.layout.orders[worker]:
            if load[server] <= bound:
                return server
        return min(range(len(load)), key=load.__getitem__)

    def place(self, worker: Ints, arrived: Ints, times: Ints, now_s: float) -> Ints:
        """What arrived on one server stays together; the load of the minute is added as it is placed."""
        load = self.cluster.load.tolist()
        window_s = self.settings.load_window_s
        mean = sum(load) / len(load)
        cpu_s, homes = self.layout.cpu_s, self.layout.homes
        placed = []
        for one, count in zip(worker.tolist(), times.tolist(), strict=True):
            home = homes[one]
            server = home if load[home] <= _BOUND * mean else self._within(one, load, _BOUND * mean)
            more = cpu_s[one] * count / window_s
            load[server] += more
            mean += more / len(load)
            placed.append(server)
        return np.array(placed, np.int64)


BASELINES: tuple[type[Policy], ...] = (Unsharded, Random, LeastLoaded, PlainRing, BoundedRing)
