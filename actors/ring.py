"""The ring: which server is a worker's home, as one immutable view per epoch. The only file that imports uhashring.

A picture: every server owns some hundred points scattered on a circle of 2^64 places; a worker's key falls on the
circle too, and its home is the owner of the next point. When a server comes, its points take an even part of
everybody's arcs and nothing else moves; when it goes, its arcs fall to their next neighbours.

Points and keys are hashed with blake2b keyed with the cluster's secret, so a tenant can not compute a name that lands
on a victim's home. Blake2b's personalisation keeps the two kinds apart: a key spelled like a point's name does not
fall on that point. uhashring hands points to the hash as `str` ("<server>-<number>"; the number follows the last dash,
so no two servers spell the same point) and keys as whatever the caller gave; keys are given as `bytes`, which is how
the hash tells them apart.

A view is never changed, only replaced by one with a higher epoch. Two machines whose views differ disagree on a few
homes, which is slow and never wrong.

Cost: one blake2b per point when built (a view of 300 servers of weight 1 has 48,000 points, about 0.1 s on the
reference machine, once per membership change); `home_of` is one hash and one bisection; `successors` copies the
points after the key, so it belongs to membership changes and lost homes and not to every request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from types import MappingProxyType
from typing import Final

from uhashring import HashRing

from actors.worker_names import is_worker, is_worker_name


@dataclass(frozen=True, slots=True)
class RingLimits:
    """Bounds on a view."""

    points_per_weight: int = 160  # spread of the load is about 1/sqrt(points): 8 % around the mean
    points_max: int = 640_000  # 4,000 servers of weight 1; about 100 MB, and seconds to build
    server_chars_max: int = 256  # a Ray node id has 56
    secret_bytes_min: int = 16
    secret_bytes_max: int = 64  # blake2b's longest key


_LIMITS: Final = RingLimits()


def worker_key(cordon: str, worker_name: str) -> str:
    """The ring key of a worker: the cordon first, so that one name in two cordons has two independent homes.

    A cordon's name holds no slash, so no two pairs give one key. The version is left out on purpose: a deploy keeps
    its home. Raises ValueError when `cordon` is not a cordon's name or `worker_name` not a worker's.
    """
    if not is_worker_name(cordon.removeprefix("@")):
        raise ValueError("cordon: must be a name without a slash")
    if not is_worker(worker_name):
        raise ValueError("worker_name: must be a worker's name, or NAMESPACE/USER")
    return f"{cordon}/{worker_name}"


class Ring:
    """The homes of all workers, as seen at one epoch.

    `servers` maps a server's name to its weight: twice the weight, twice the workers. Weight 0 is a member that is
    home to nothing, as one that is leaving. `secret` is the cluster's, 16 to 64 bytes. The order in which servers are
    listed does not matter. Raises ValueError on values outside these.
    """

    __slots__ = ("_points", "_servers", "epoch")

    epoch: int

    def __init__(self, epoch: int, servers: Mapping[str, int], secret: bytes, limits: RingLimits = _LIMITS) -> None:
        if type(epoch) is not int or epoch < 0:
            raise ValueError("epoch: must be a whole number, zero or more")
        if not limits.secret_bytes_min <= len(secret) <= limits.secret_bytes_max:
            raise ValueError(f"secret: must have {limits.secret_bytes_min} to {limits.secret_bytes_max} bytes")
        for name, weight in servers.items():
            if not 1 <= len(name) <= limits.server_chars_max:
                raise ValueError(f"servers: a name must have 1 to {limits.server_chars_max} characters")
            if type(weight) is not int or weight < 0:
                raise ValueError(f"servers: the weight of {name} must be a whole number, zero or more")
        points = sum(servers.values()) * limits.points_per_weight
        if points > limits.points_max:
            raise ValueError(f"servers: {points} points are more than {limits.points_max}")
        self.epoch = epoch
        self._servers: Mapping[str, int] = MappingProxyType(dict(sorted(servers.items())))
        # Sorted, so that even if two points fell on one place, every machine would give it to the same server.
        # A weight of 0 is left out: uhashring would count it in `range` and then search the whole circle for it.
        weighted = {name: weight for name, weight in self._servers.items() if weight}
        self._points = HashRing(weighted, hash_fn=_Place(secret), vnodes=limits.points_per_weight)

    def home_of(self, key: str) -> str | None:
        """The server that is home to `key` (see `worker_key`), or None when nobody is."""
        home: str | None = self._points.get_node(key.encode())
        return home

    def successors(self, key: str, k: int) -> list[str]:
        """The first `k` distinct servers at and after `key`, its home first; fewer when the ring has fewer."""
        if k <= 0 or not self._points.size:
            return []
        found = islice(self._points.range(key.encode(), size=k), k)
        return [str(server["nodename"]) for server in found]

    @property
    def servers(self) -> Mapping[str, int]:
        """Every member with its weight, by name; read-only."""
        return self._servers

    def __repr__(self) -> str:
        return f"<Ring epoch {self.epoch}, {len(self._servers)} servers, {self._points.size} points>"


class _Place:
    """uhashring's hash function: a point's name or a key to its place on the circle, 0 to 2^64 - 1."""

    __slots__ = ("_key", "_point")

    def __init__(self, secret: bytes) -> None:
        # Copying a keyed state saves hashing the secret's block for each of the points.
        self._point = blake2b(digest_size=8, key=secret, person=b"ring point")
        self._key = blake2b(digest_size=8, key=secret, person=b"ring key")

    def __call__(self, text: str | bytes) -> int:
        if isinstance(text, bytes):
            state = self._key.copy()
            state.update(text)
        else:
            state = self._point.copy()
            state.update(text.encode())
        return int.from_bytes(state.digest())
