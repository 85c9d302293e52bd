"""Which of Ray's nodes has a server of ours. Pure: what Ray says of its nodes and `now` in, decisions out.

    (a node) ─► COMING ─ it is a member ─► HERE ─ to go ─► GOING ─ its processes ended ─► ASIDE
                  ▲  └─ failed ─► WAITING ─┐                                                │
                  └──── some time ─────────┴──────────────── called back ───────────────────┘
    from everywhere ─ its node is gone ─► forgotten (LOST)

Every node has one server, named after the node's address: a machine that comes back after a restart is the same server,
and is home to the same workers. So two nodes of one address are one machine that Ray knows twice, most often because
it came back sooner than its death was noticed; the second one waits until the first is gone.

A server goes when somebody says so, or when Ray says that its node will (``ray drain-node``, an autoscaler). Then it
stands aside: its node is not given another one until somebody calls it back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum


@dataclass(frozen=True, slots=True)
class Node:
    """A node of Ray that lives."""

    node_id: str
    address: str
    leaves: bool = False  # Ray was told to end it soon


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """Bounds and times, in seconds."""

    #: Servers that start at once: each of them gets all code from the ControlPlane.
    coming_max: int = 32
    #: A server that did not start is tried again after so long, twice as long each time, and at most ``again_s_max``:
    #: what was in its way (a port, a full disk) is for somebody to see, and costs four processes each time.
    again_s: float = 2.0
    again_s_max: float = 60.0


class Stand(Enum):
    """Where a node's server is."""

    COMING = "coming"  # its processes are being started, and it joins
    HERE = "here"
    GOING = "going"  # it drains, and its processes are being ended
    ASIDE = "aside"  # its node has none, because somebody said so
    WAITING = "waiting"  # it did not start, and is tried again


@dataclass(frozen=True, slots=True)
class Bring:
    """Start a server on a node; then say ``came`` or ``failed``."""

    server: str
    node: Node


@dataclass(frozen=True, slots=True)
class SendAway:
    """Have a server leave in peace; then say ``left``."""

    server: str


@dataclass(frozen=True, slots=True)
class Forget:
    """A server's node is gone, and all its processes with it."""

    server: str


Decision = Bring | SendAway | Forget


@dataclass(frozen=True, slots=True)
class _Server:
    node: Node
    stand: Stand
    again_at_s: float = 0.0
    failures: int = 0


def server_name(address: str) -> str:
    """The name of the server on the node with this address: ``node-10-0-0-7``. A plain name, also in a path."""
    return "node-" + address.replace(".", "-").replace(":", "-")


class Nodes:
    """All nodes of Ray, and what stands on each."""

    def __init__(self, limits: NodeLimits = NodeLimits()) -> None:
        self.limits = limits
        self._servers: dict[str, _Server] = {}

    def __repr__(self) -> str:
        return ", ".join(f"{name}: {server.stand.value}" for name, server in sorted(self._servers.items()))

    @property
    def addresses(self) -> list[str]:
        """The addresses of all nodes that are known."""
        return sorted(server.node.address for server in self._servers.values())

    def stand(self, server: str) -> Stand | None:
        """Where a server is; None when there is no node for it."""
        found = self._servers.get(server)
        return None if found is None else found.stand

    # -------------------------------------------------------------------------------------------------------- news

    def saw(self, nodes: Sequence[Node], now_s: float) -> list[Decision]:
        """Ray knows these nodes now."""
        alive = {node.node_id: node for node in nodes}
        gone = sorted(name for name, server in self._servers.items() if server.node.node_id not in alive)
        for name in gone:
            del self._servers[name]
        decisions: list[Decision] = [Forget(name) for name in gone]
        for node in nodes:
            name = server_name(node.address)
            known = self._servers.get(name)
            if known is None:
                self._servers[name] = _Server(node, Stand.WAITING)
            elif known.node.node_id == node.node_id and known.node != node:
                self._servers[name] = replace(known, node=node)
        places = self.limits.coming_max - sum(server.stand is Stand.COMING for server in self._servers.values())
        for name, server in sorted(self._servers.items()):
            if server.stand is Stand.HERE and server.node.leaves:
                decisions.append(self._send_away(name))
            waits = server.stand is Stand.WAITING and not server.node.leaves and now_s >= server.again_at_s
            if waits and places > 0:
                places -= 1
                self._servers[name] = replace(server, stand=Stand.COMING)
                decisions.append(Bring(name, server.node))
        return decisions

    def came(self, server: str) -> None:
        """A server is a member."""
        self._move(server, Stand.COMING, Stand.HERE, failures=0)

    def failed(self, server: str, now_s: float) -> None:
        """A server did not start, and nothing of it is left."""
        found = self._servers.get(server)
        if found is not None:
            again_s = min(self.limits.again_s * 2**found.failures, self.limits.again_s_max)
            failures = min(found.failures + 1, 16)  # more change nothing
            self._move(server, Stand.COMING, Stand.WAITING, again_at_s=now_s + again_s, failures=failures)

    def left(self, server: str) -> None:
        """A server that was sent away has ended."""
        self._move(server, Stand.GOING, Stand.ASIDE)

    # ---------------------------------------------------------------------------------------------------- wishes

    def dismiss(self, server: str) -> SendAway | None:
        """Somebody wants a server to go. None when it is not here."""
        return self._send_away(server) if self.stand(server) is Stand.HERE else None

    def call_back(self) -> list[str]:
        """Somebody wants back all who stand aside, at the next ``saw``: their names."""
        found = sorted(n for n, s in self._servers.items() if s.stand is Stand.ASIDE and not s.node.leaves)
        for name in found:
            self._move(name, Stand.ASIDE, Stand.WAITING, again_at_s=0.0)
        return found

    def _send_away(self, name: str) -> SendAway:
        self._move(name, Stand.HERE, Stand.GOING)
        return SendAway(name)

    def _move(
        self, name: str, before: Stand, after: Stand, *, again_at_s: float | None = None, failures: int | None = None
    ) -> None:
        """One step. A server whose node went meanwhile is forgotten, or another one by now, and takes none."""
        server = self._servers.get(name)
        if server is not None and server.stand is before:
            self._servers[name] = _Server(
                server.node,
                after,
                server.again_at_s if again_at_s is None else again_at_s,
                server.failures if failures is None else failures,
            )
