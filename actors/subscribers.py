"""Subscribers: the connections of this machine's ingresses and hosts, which hear of routes and of leases that end.

An ingress that comes (again) is told everything; from then on it is told changes. One that is away is told nothing,
and holds no lease while it is.

Leases come with answers, over other connections, and so before or after a notice that takes them back. Notices are
counted, and a lease says how many there were when it was given: one that comes too late is recognised.

A host gets its leases, for calls between its own guests, over the same connection as the notices, and so in order.
"""

from collections.abc import Iterable, Iterator

from actors.catalog import Deployed
from actors.connection import Connection, Frame, LinkBroken
from actors.view import encode_plain
from actors.worker import Version

#: Leases that a host may hold: as many as ``inner_calls.InnerLimits`` has room for.
HOST_LEASES_MAX = 4_096
#: Workers in one frame: 1 MiB holds a name of 63 characters three times for each of them, a number,
_WORKERS_PER_FRAME = 4_096
#: and so many characters of routes; those of one more worker, the last, are at most 16 KB.
_ROUTE_CHARS_PER_FRAME = 128 * 1024


def added(workers: Iterable[Deployed]) -> dict[str, object]:
    """What an ingress needs to know of workers: their names, the routes of those that have some, and how large a body
    each takes."""
    deployed = list(workers)
    sizes = {d.deployment.worker: max(v.limits.request_body_bytes_max for v in d.versions) for d in deployed}
    routes = {d.deployment.worker: list(d.deployment.routes) for d in deployed if d.deployment.routes}
    return {"add": list(sizes), "body_bytes_max": sizes, "routes": routes}


def _pages(workers: Iterable[Deployed]) -> Iterator[list[Deployed]]:
    """At least one page, each for one frame."""
    page: list[Deployed] = []
    chars = 0
    for deployed in workers:
        if len(page) == _WORKERS_PER_FRAME or chars > _ROUTE_CHARS_PER_FRAME:
            yield page
            page, chars = [], 0
        page.append(deployed)
        chars += sum(len(route) for route in deployed.deployment.routes)
    yield page


class Subscribers:
    """Who listens to one Server."""

    def __init__(self) -> None:
        self._connections: set[Connection] = set()
        self._hosts: dict[str, _Host] = {}  # by socket
        #: Notices until now.
        self.told = 0

    def add(self, connection: Connection, workers: Iterable[Deployed]) -> None:
        """An ingress wants to hear, for as long as its connection is open: first of all of ``workers``."""
        self._connections.add(connection)
        self._greet(connection, list(workers))

    def add_host(self, connection: Connection, socket: str) -> None:
        """The host that listens at ``socket`` wants to hear, for as long as its connection is open."""
        self._hosts[socket] = host = _Host(connection)
        self._tell_host(socket, host, {"revoke_all": True})

    def lease(self, socket: str, caller: Version, callee: Version, *, home: str, at_home: bool) -> None:
        """Let the host at ``socket`` carry out calls of ``caller`` to ``callee`` itself; nothing, if it may already."""
        host, pair = self._hosts.get(socket), (caller.version_id, callee.version_id)
        if host is None or pair in host.leased:
            return
        if len(host.leased) >= HOST_LEASES_MAX:
            self._tell_host(socket, host, {"revoke_all": True})
        lease = {"caller": caller.to_plain(), "callee": callee.to_plain(), "home": home, "at_home": at_home}
        host.leased.add(pair)
        self._send_to_host(socket, host, {"lease": lease})

    def _tell_host(self, socket: str, host: "_Host", notice: dict[str, object]) -> None:
        host.leased.clear()
        self._send_to_host(socket, host, notice)

    def _send_to_host(self, socket: str, host: "_Host", notice: dict[str, object]) -> None:
        try:
            host.connection.send(Frame.NOTICE, encode_plain(notice))
        except LinkBroken:
            self._hosts.pop(socket, None)

    def greet_all(self, workers: Iterable[Deployed]) -> None:
        """Everything may have changed."""
        everything = list(workers)
        self.told += 1
        for connection in list(self._connections):
            self._greet(connection, everything)
        for socket, host in list(self._hosts.items()):
            self._tell_host(socket, host, {"revoke_all": True})

    def _greet(self, connection: Connection, workers: list[Deployed]) -> None:
        pages = _pages(workers)
        self._send(connection, {"reset": True, "revoke_all": True, "told": self.told, **added(next(pages))})
        for page in pages:
            self._send(connection, added(page))

    def tell(self, notice: dict[str, object]) -> None:
        """A change: ``added`` workers, ``remove`` of some, ``revoke`` of versions, ``revoke_all``."""
        self._tell_ingresses(notice)
        for socket, host in list(self._hosts.items()):
            self._tell_host(socket, host, notice)

    def cold(self, version: str) -> None:
        """A version has no isolate here any more. Its host knows that by itself."""
        self._tell_ingresses({"revoke": [version]})

    def _tell_ingresses(self, notice: dict[str, object]) -> None:
        self.told += 1
        for connection in list(self._connections):
            self._send(connection, {**notice, "told": self.told})

    def _send(self, connection: Connection, notice: dict[str, object]) -> None:
        try:
            connection.send(Frame.NOTICE, encode_plain(notice))
        except LinkBroken:
            self._connections.discard(connection)


class _Host:
    """A host that listens, and the pairs of versions that it was given since it was last told of a change."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.leased: set[tuple[str, str]] = set()
