"""The way out, both ends, under test: a real EgressServer on a loop of its own, and a real origin on loopback."""

import asyncio
import contextlib
import select
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from complete_servers import wait_until
from http_origin import Origin, tls

from actors.egress import EgressLimits, EgressServer
from actors.egress_line import HostEgress, HostOutgoing
from actors.egress_policy import EgressPolicy, parse_rule
from isolates.conversation import ResponseHead
from isolates.egress import AnswerLost, ErrorCode, OutgoingHead, OutgoingTimeouts

T = TypeVar("T")
MIB = 1 << 20
LIMIT_S = 20.0


class OwnLoop:
    """An event loop in a thread of its own, as the Server has one in its process."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LIMIT_S)

    def close(self) -> None:
        self.call(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass
class Names:
    """Answers look-ups from a script: each name has answers, of which the last is given again and again."""

    answers: dict[str, list[list[str]]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    async def __call__(self, worker: str, host: str, port: int) -> list[str]:
        self.asked.append((worker, host))
        if host == "never.test":
            await asyncio.Event().wait()
        given = self.answers.get(host)
        if given is None:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return given.pop(0) if len(given) > 1 else given[0]


@dataclass
class Way:
    """A way out and an origin behind it."""

    loop: OwnLoop
    server: EgressServer
    origin: Origin
    names: Names
    path: Path
    scheme: str
    speaks: str = "http"

    @property
    def plenty_bytes(self) -> int:
        """20 MB; HTTP/2 is an order slower here, at both ends, and as much says as much."""
        return (6 if self.speaks == "http2" else 20) * MIB

    def open(
        self,
        path: str,
        method: str = "GET",
        *,
        host: str = "origin.test",
        worker: str = "worker",
        headers: tuple[tuple[str, bytes], ...] = (),
        timeouts: OutgoingTimeouts | None = None,
        **about: Any,
    ) -> HostOutgoing:
        head = OutgoingHead(method, self.scheme, f"{host}:{self.origin.port}", path, headers)
        opened = HostEgress(self.path, worker=worker, **about).open(head, timeouts or OutgoingTimeouts())
        assert isinstance(opened, HostOutgoing), opened
        return opened

    def get(self, path: str, method: str = "GET", **about: Any) -> "Got":
        """A request without a body, read to its end."""
        outgoing = self.open(path, method, **about)
        outgoing.finish()
        return read(outgoing)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for the other side."""

        async def reached() -> bool:
            return condition()

        try:
            self.loop.call(wait_until(reached, what))
        except AssertionError as late:
            raise AssertionError(f"{late}: {self.statistics()}") from late

    def statistics(self) -> dict[str, Any]:
        async def ask() -> dict[str, Any]:
            return self.server.statistics()

        return (
            self.loop.call(ask()) if threading.current_thread() is not self.loop._thread else self.server.statistics()
        )


@dataclass(frozen=True)
class Got:
    """An answer, or why there is none, or why it broke off."""

    head: ResponseHead | None
    body: bytes = b""
    code: ErrorCode | None = None


def wait_head(outgoing: HostOutgoing) -> ResponseHead | ErrorCode:
    waiting = select.poll()
    waiting.register(outgoing.fileno(), select.POLLIN)
    while (head := outgoing.head()) is None:
        assert waiting.poll(LIMIT_S * 1e3), "no answer"
    return head


def read_piece(outgoing: HostOutgoing, bytes_max: int = 1 << 20) -> bytes | None:
    waiting = select.poll()
    waiting.register(outgoing.fileno(), select.POLLIN)
    while not outgoing.body_ready():
        assert waiting.poll(LIMIT_S * 1e3), "no more"
    data = outgoing.read_body(bytes_max)
    assert data != b"", "it was ready"
    return data


def read(outgoing: HostOutgoing) -> Got:
    try:
        head = wait_head(outgoing)
        if not isinstance(head, ResponseHead):
            return Got(None, code=head)
        pieces = []
        try:
            while (data := read_piece(outgoing)) is not None:
                pieces.append(data)
        except AnswerLost as lost:
            return Got(head, b"".join(pieces), lost.code)
        return Got(head, b"".join(pieces))
    finally:
        outgoing.close()


Make = Callable[..., Way]


def nothing_is_lent(way: Way) -> bool:
    """Whether no connection is open, and no request of a pool holds one or waits for one."""
    return all(not tenant.pool.connections and not tenant.pool._requests for tenant in way.server._tenants.values())


@contextlib.contextmanager
def ways(directory: Path) -> Iterator[Make]:
    """Makes ways out with an origin each, and ends them all. The authority is in ``directory``."""
    loop = OwnLoop()
    sockets = Path(tempfile.mkdtemp(prefix="ew-"))
    made: list[Way] = []

    def one(
        speaks: str = "http",
        *,
        limits: EgressLimits | None = None,
        added: str | None = "127.0.0.1",
        own: tuple[str, ...] = (),
        names: dict[str, list[list[str]]] | None = None,
        trusted: bool = True,
    ) -> Way:
        context, pem = None, ""
        if speaks != "http":
            context, pem = tls(directory / "ca", "origin.test", "127.0.0.1", http2=speaks == "http2")
        answers = Names({"origin.test": [["127.0.0.1"]], **(names or {})})
        policy = EgressPolicy(
            added=() if added is None else (parse_rule(added),), own=tuple(parse_rule(text) for text in own)
        )

        async def start() -> Way:
            origin = await Origin(context).__aenter__()
            server = EgressServer(policy, limits=limits, lookup=answers, authorities_pem=pem if trusted else "")
            await server.start(sockets / f"e{len(made)}.sock")
            scheme = "http" if speaks == "http" else "https"
            return Way(loop, server, origin, answers, sockets / f"e{len(made)}.sock", scheme, speaks)

        way = loop.call(start())
        made.append(way)
        return way

    yield one

    async def stop() -> None:
        for way in made:
            await way.server.stop()
            await way.origin.__aexit__()
            assert way.server.statistics()["open"] == 0

    try:
        loop.call(stop())
    finally:
        loop.close()
        shutil.rmtree(sockets)
