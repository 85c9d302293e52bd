"""Leases and the notices that take them back: they come over different connections, and so in any order."""

import asyncio
import secrets
from contextlib import suppress
from pathlib import Path

from actors.connection import Frame, LinkBroken
from actors.exchange import Lease
from actors.link import Links
from actors.subscribers import Subscribers
from ingress.authority import LocalAuthority
from ingress.ingress import Ingress


class Line:
    """A connection to a Server: what the Server sends is heard when the test says so."""

    def __init__(self) -> None:
        self.sent: list[tuple[Frame, bytes]] = []

    def send(self, kind: Frame, payload: bytes = b"") -> None:
        self.sent.append((kind, payload))

    async def receive(self) -> tuple[Frame, bytes]:
        if not self.sent:
            raise LinkBroken("all was heard")
        return self.sent.pop(0)


class Edge:
    """An ingress that subscribed to a Server, without sockets."""

    def __init__(self, directory: Path) -> None:
        self.ingress = Ingress(
            "server-1",
            address="127.0.0.1",
            port=0,
            server_socket=directory / "server.sock",
            links=Links(),
            authority=LocalAuthority.open(directory / "authority"),
            certificates=None,
            entropy=secrets.token_bytes,
        )
        self.subscribers = Subscribers()
        self._line = Line()
        self.subscribers.add(self._line, [])  # type: ignore[arg-type]

    def lease(self, worker: str) -> Lease:
        """A lease as the Server gives it now."""
        told = self.subscribers.told
        return Lease(worker, f"version of {worker}", "digest", "free", {}, "socket", "server-1", issued=told)

    def hear(self) -> None:
        """All that was said until now is heard."""

        async def heard() -> None:
            with suppress(LinkBroken):
                await self.ingress._hear(self._line, asyncio.Event())  # type: ignore[arg-type]

        asyncio.run(heard())


def test_a_lease_that_comes_after_its_end_is_not_kept(tmp_path: Path) -> None:
    edge = Edge(tmp_path)
    edge.hear()
    late = edge.lease("w")
    edge.subscribers.tell({"revoke": [late.version]})
    edge.hear()
    edge.ingress.keep_lease(late)
    assert edge.ingress.lease("w") is None
    edge.ingress.keep_lease(edge.lease("w"))
    assert edge.ingress.lease("w") is not None


def test_a_lease_of_before_everything_was_told_anew_is_not_kept(tmp_path: Path) -> None:
    edge = Edge(tmp_path)
    late = edge.lease("w")
    edge.subscribers.greet_all([])
    edge.hear()
    edge.ingress.keep_lease(late)
    assert edge.ingress.lease("w") is None


def test_a_lease_that_overtakes_older_news_is_kept_until_they_say_otherwise(tmp_path: Path) -> None:
    edge = Edge(tmp_path)
    edge.subscribers.tell({"revoke": ["another version"]})
    lease = edge.lease("w")
    edge.ingress.keep_lease(lease)
    edge.hear()  # the greeting among it, which takes all leases back
    edge.ingress.keep_lease(lease)
    assert edge.ingress.lease("w") == lease
    edge.subscribers.tell({"revoke": [lease.version]})
    edge.hear()
    assert edge.ingress.lease("w") is None
