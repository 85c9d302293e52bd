"""Subscribers: the connections of this machine's ingresses, which hear of routes and of leases that end.

An ingress that comes (again) is told everything; from then on it is told changes. One that is away is told nothing,
and holds no lease while it is.

Leases come with answers, over other connections, and so before or after a notice that takes them back. Notices are
counted, and a lease says how many there were when it was given: one that comes too late is recognised.
"""

from collections.abc import Iterable, Iterator

from actors.catalog import Deployed
from actors.connection import Connection, Frame, LinkBroken
from actors.view import encode_plain

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
        #: Notices until now.
        self.told = 0

    def add(self, connection: Connection, workers: Iterable[Deployed]) -> None:
        """An ingress wants to hear, for as long as its connection is open: first of all of ``workers``."""
        self._connections.add(connection)
        self._greet(connection, list(workers))

    def greet_all(self, workers: Iterable[Deployed]) -> None:
        """Everything may have changed."""
        everything = list(workers)
        self.told += 1
        for connection in list(self._connections):
            self._greet(connection, everything)

    def _greet(self, connection: Connection, workers: list[Deployed]) -> None:
        pages = _pages(workers)
        self._send(connection, {"reset": True, "revoke_all": True, "told": self.told, **added(next(pages))})
        for page in pages:
            self._send(connection, added(page))

    def tell(self, notice: dict[str, object]) -> None:
        """A change: ``added`` workers, ``remove`` of some, ``revoke`` of versions, ``revoke_all``."""
        self.told += 1
        for connection in list(self._connections):
            self._send(connection, {**notice, "told": self.told})

    def _send(self, connection: Connection, notice: dict[str, object]) -> None:
        try:
            connection.send(Frame.NOTICE, encode_plain(notice))
        except LinkBroken:
            self._connections.discard(connection)
