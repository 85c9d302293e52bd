"""Who said what to whom, while a scenario is played on complete servers: lines that read without the code.

A ``Transcript`` listens between the roles: to the calls between machines, to what a Server runs on its own host, and to
what its prewarmer begins. What came to the client is told by ``ask`` and by the scenario itself. In how many pieces an
answer came depends on how fast a thread was, and is not told.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from complete_servers import CompleteServers, Got, LostPeer, Machine, Pieces, collect

from actors.exchange import Answered, Outcome, Refused, Request, status_of
from actors.link import BodySource
from actors.peer import Peer, PeerLost
from actors.wire import CAPABILITY, CHUNK, REQUEST, decode_verdict

KIB = 1024
MIB = 1024 * KIB


def size(bytes_: int) -> str:
    """A number of bytes as people say it."""
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if bytes_ >= unit and bytes_ % unit == 0:
            return f"{bytes_ // unit} {name}"
    return f"{bytes_} bytes" if bytes_ else "nothing"


class Transcript:
    """What was said in one scenario."""

    def __init__(self, cluster: CompleteServers) -> None:
        self._cluster = cluster
        self._lines: list[tuple[str, int]] = []
        self._homes: dict[int, str] = {}  # the home that each capability was lent to
        self._heard: dict[str, _Heard] = {}
        for machine in cluster.machines:
            for role in ("shard", "server"):
                address = f"{machine.name}/{role}"
                self._heard[address] = _Heard(self, machine.name, cluster.peers.known[address])
                cluster.peers.known[address] = self._heard[address]
            machine.server._hosts.run = self._running(machine, machine.server._hosts.run)  # type: ignore[method-assign]
            begin = machine.server._ahead._prewarmer._begin
            machine.server._ahead._prewarmer._begin = self._beginning(machine, begin)  # type: ignore[method-assign]

    def say(self, line: str) -> None:
        """One line; said again at once, it is counted."""
        if self._lines and self._lines[-1][0] == line:
            self._lines[-1] = (line, self._lines[-1][1] + 1)
        else:
            self._lines.append((line, 1))

    def text(self, title: str) -> str:
        """The transcript under its title."""
        lines = [line if times == 1 else f"{line}   ({times} times)" for line, times in self._lines]
        return "\n".join([title, "", *lines, ""])

    def lose(self, role: str, method: str, *, delivered: bool | None, after: bool = False) -> Callable[[], None]:
        """From now on, calls of ``method`` at ``role`` are lost; what ends that."""
        heard = self._heard[role]
        inner, heard._inner = heard._inner, LostPeer(heard._inner, method, delivered=delivered, after=after)

        def found() -> None:
            heard._inner = inner

        return found

    # ------------------------------------------------------------------------------------------------ the client

    def asks(self, asked: Request, bytes_: int | None = None, through: int = 1) -> None:
        """The client sends a request."""
        body = len(asked.body_first) if bytes_ is None else bytes_
        sent = f" with {size(body)}" if body else ""
        self.say(f"client -> server-{through}: {asked.head.method} {asked.head.path}{sent}")

    async def ask(
        self, asked: Request, rest: BodySource | None = None, bytes_: int | None = None, through: int = 1
    ) -> Got:
        """A request through a server, read to its end; ``bytes_``: of its whole body."""
        self.asks(asked, bytes_, through)
        got = await collect(await self._cluster[through].begin(asked, rest or Pieces()))
        self.gets(got, through)
        return got

    def gets(self, got: Got, through: int = 1) -> None:
        """What the client got."""
        if got.served is None:
            failure = status_of(got.ended.outcome if got.ended.outcome is not Outcome.OK else Outcome.HUNG)
            after = "" if failure.retry_after_s is None else f", retry after {failure.retry_after_s} s"
            self.say(f"server-{through} -> client: {failure.status} {failure.code}{after}")
            return
        served = got.served
        end = "" if got.whole else ", and then the connection is reset"
        self.say(f"server-{through} -> client: {served.status}, {served.start_type} start on {served.server}{end}")

    # ------------------------------------------------------------------------------------------------- the servers

    def _running(self, machine: Machine, run: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def told(request: Request, body: BodySource, elsewhere: Any = None) -> Any:
            self.say(f"{machine.name}: runs it here")
            return await run(request, body, elsewhere)

        return told

    def _beginning(self, machine: Machine, begin: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def told(prewarm: Any) -> None:
            self.say(f"{machine.name}: starts an isolate ahead ({prewarm.source.value})")
            await begin(prewarm)

        return told


class _Heard:
    """A peer whose calls are written down."""

    def __init__(self, transcript: Transcript, server: str, inner: Peer) -> None:
        self._told = transcript
        self._server = server
        self._inner = inner

    async def call(self, method: str, payload: bytes = b"") -> bytes:
        if method == "serve":
            return await self._serve(payload)
        if method == "read_body":
            return await self._read_body(payload)
        if method == "read_response":
            return await self._read_response(payload)
        if method == "abort":
            asked = CAPABILITY.decode(payload)
            self._told.say(f"{_machine(asked.owner)} -> {self._server}: nobody wants the answer any more")
        return await self._inner.call(method, payload)

    async def _serve(self, payload: bytes) -> bytes:
        request = REQUEST.decode(payload)
        assert request.fallback is not None
        sender = _machine(request.fallback.owner)
        self._told._homes[request.fallback.key] = self._server
        first = size(len(request.body_first))
        what = "offers it; lends" if request.body_complete else f"offers it with the first {first}; lends the rest, and"
        self._told.say(f"{sender} -> {self._server}: {what} a fallback")
        try:
            answer = await self._inner.call("serve", payload)
        except PeerLost as lost:
            what = "cannot be reached" if lost.delivered is False else "is lost, and may have started it"
            self._told.say(f"{self._server}: {what}")
            raise
        verdict = decode_verdict(answer)
        if isinstance(verdict, Refused):
            assert verdict.fallback == request.fallback
            hint = "; nearly full" if verdict.load.nearly_full else ""
            why = verdict.reason.value
            self._told.say(f"{self._server} -> {sender}: refused ({why}), here is the fallback back{hint}")
        else:
            self._told.say(f"{self._server} -> {sender}: {_answered(verdict)}")
        return answer

    async def _read_body(self, payload: bytes) -> bytes:
        asked = CAPABILITY.decode(payload)
        reader = self._told._homes[asked.key]
        answer = await self._inner.call("read_body", payload)
        chunk = CHUNK.decode(answer)
        if chunk.lost:
            self._told.say(f"{reader} -> {self._server}: reads on; it is told that the body broke off")
        elif chunk.end:
            self._told.say(f"{reader} -> {self._server}: reads on; that was all")
        else:
            self._told.say(f"{reader} -> {self._server}: reads the next {size(len(chunk.data))}")
        return answer

    async def _read_response(self, payload: bytes) -> bytes:
        try:
            return await self._inner.call("read_response", payload)
        except PeerLost:
            self._told.say(f"{self._server}: is lost")
            raise


def _machine(owner: str) -> str:
    return owner.partition("/")[0]


def _answered(verdict: Answered) -> str:
    if verdict.served is None:
        assert verdict.first.ended is not None
        return f"it ended: {verdict.first.ended.outcome.value}"
    return f"{verdict.served.status}; the answer is read from here"
