"""A home's races, with an answer that does what a client may do at the worst moment."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import ClassVar

import pytest
from msgspec.structs import replace

from actors.admission import AdmissionLimits
from actors.exchange import Answered, Capability, Ended, Load, Outcome, Request, RequestHead, Served
from actors.peer import LocalPeers, Peer
from actors.shard_server import ShardServer
from actors.view import decode_plain
from actors.wire import CAPABILITY, REQUEST, decode_verdict

DIGEST = "a" * 64
LENT = Capability("server-1/server", 7)
#: Turns of the loop in which a timer that is due fires, its task looks, and what that began is done.
TURNS = 5
OFFER = Request(
    "id", "w", RequestHead("GET", "https", "w.localhost", "/"), "", version="v", component_digest=DIGEST, fallback=LENT
)


class AbortedAsItAnswers:
    """An answer whose client leaves in the moment in which its head arrives, before anybody has read it."""

    whole = False
    is_over = False

    def __init__(self) -> None:
        self.shard: ShardServer | None = None
        self.cancelled = False

    async def served(self) -> Served:
        assert self.shard is not None
        await self.shard.abort(CAPABILITY.encode(LENT))
        return Served(200, (), "server-2", "warm", 0.0, 0.0)

    def ready(self) -> bool:
        return False

    async def read(self) -> bytes | None:
        return None

    async def ended(self) -> Ended:
        return Ended(Outcome.CANCELED)

    def cancel(self) -> None:
        self.cancelled = True


class LinksTo:
    """Links that lead to one answer."""

    def __init__(self, answer: AbortedAsItAnswers) -> None:
        self._answer = answer

    async def exchange(self, path: str, request: Request, body: object) -> AbortedAsItAnswers:
        return self._answer


def test_an_abort_in_the_moment_of_the_head_leaves_nothing_lent(tmp_path: Path) -> None:
    async def scenario() -> None:
        answer = AbortedAsItAnswers()
        shard = ShardServer(
            "server-2",
            host_sockets=lambda cordon: [tmp_path / "host.sock"],
            code_directory=tmp_path,
            links=LinksTo(answer),  # type: ignore[arg-type]
            peers=LocalPeers(),
            limits=AdmissionLimits(),
        )
        shard._artifacts.path(DIGEST).touch()
        answer.shard = shard
        verdict = decode_verdict(await shard.serve(REQUEST.encode(OFFER)))
        assert isinstance(verdict, Answered)
        assert verdict.rest is None
        assert verdict.first.ended is not None
        assert verdict.first.ended.outcome is Outcome.CANCELED
        counted = decode_plain(await shard.statistics())
        assert (counted["lent_out"], counted["in_flight"], counted["aborted"]) == (0, 0, 1)
        assert answer.cancelled

    asyncio.run(scenario())


BUSY = Load(queued=9, queue_ms=900.0, memory_bytes=1, residence_s=7.0)


class Ending:
    """An answer that ends at once with the given words, unless it is ``held`` after its head."""

    whole = False
    path = "the host's socket"
    version = "v"
    handed_back = False

    def __init__(self, ended: Ended, *, held: bool = False, takes_s: float = 0.0) -> None:
        self._ended = ended
        self._takes_s = takes_s
        self.is_over = not held
        self.cancelled = False

    async def served(self) -> Served:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Clocked)
        loop.ahead_s += self._takes_s
        return Served(200, (), "server-2", "warm", 0.0, 0.0)

    def ready(self) -> bool:
        return False

    async def read(self) -> bytes | None:
        if not self.is_over:
            await asyncio.Event().wait()
        return None

    async def ended(self) -> Ended:
        return self._ended

    def cancel(self) -> None:
        self.cancelled = True


class Clocked(asyncio.SelectorEventLoop):
    """A loop whose clock a test sets forward."""

    ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_s


def _shard(directory: Path, answers: list[Ending]) -> ShardServer:
    """A home whose host gives these answers, one after the other."""

    class Host:
        alive = ("the host's socket",)
        lost = 0

        def of(self, version: str, cordon: str) -> str:
            return "the host's socket"

        async def run(self, request: Request, body: object) -> Ending:
            return answers.pop(0)

    shard = ShardServer(
        "server-2",
        host_sockets=lambda cordon: [],
        code_directory=directory,
        links=LinksTo(AbortedAsItAnswers()),  # type: ignore[arg-type]
        peers=LocalPeers(),
        limits=AdmissionLimits(),
    )
    shard._hosts = Host()  # type: ignore[assignment]
    shard._artifacts.path(DIGEST).touch()
    return shard


def _clocked(scenario: Coroutine[object, None, None]) -> None:
    with asyncio.Runner(loop_factory=Clocked) as runner:
        runner.run(scenario)


def test_an_answer_that_was_cancelled_says_nothing_of_the_hosts_load(tmp_path: Path) -> None:
    """Or clients that leave would make a queue look empty, and a full house look free."""

    async def scenario() -> None:
        busy = Ended(Outcome.OK, server="server-2", start_type="warm", load=BUSY)
        shard = _shard(tmp_path, [Ending(busy), Ending(Ended(Outcome.CANCELED)), Ending(busy)])
        assert isinstance(decode_verdict(await shard.serve(REQUEST.encode(OFFER))), Answered)
        shard._loads.note("the host's socket", replace(BUSY, queue_ms=20.0), asyncio.get_running_loop().time())
        before = decode_plain(await shard.statistics())["queue_ms"]
        assert before > 0
        second = replace(OFFER, fallback=Capability("server-1/server", 8), plan="paid")
        assert isinstance(decode_verdict(await shard.serve(REQUEST.encode(second))), Answered)
        assert decode_plain(await shard.statistics())["queue_ms"] == before

    _clocked(scenario())


def test_an_answer_that_took_long_to_begin_is_not_unread(tmp_path: Path) -> None:
    """A guest may take a minute to its head; that its client has read nothing until then is no sign that it left."""

    async def scenario() -> None:
        answer = Ending(Ended(Outcome.OK, server="server-2", start_type="warm"), held=True, takes_s=60.0)
        shard = _shard(tmp_path, [answer])
        verdict = decode_verdict(await shard.serve(REQUEST.encode(OFFER)))
        assert isinstance(verdict, Answered)
        assert verdict.rest is not None
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Clocked)
        assert shard._sweeping is not None
        await asyncio.sleep(0)  # the sweep begins
        loop.ahead_s += 8.0  # and looks for the first time
        for _ in range(TURNS):
            await asyncio.sleep(0)
        assert not answer.cancelled
        loop.ahead_s += 40.0  # nobody reads it
        for _ in range(TURNS):
            await asyncio.sleep(0)
        assert answer.cancelled
        assert decode_plain(await shard.statistics())["in_flight"] == 0

    _clocked(scenario())


def test_a_reader_that_is_lost_ends_the_answer_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        answer = Ending(Ended(Outcome.OK, server="server-2", start_type="warm"), held=True)
        shard = _shard(tmp_path, [answer])
        verdict = decode_verdict(await shard.serve(REQUEST.encode(OFFER)))
        assert isinstance(verdict, Answered)
        assert verdict.rest is not None
        reading = asyncio.create_task(shard.read_response(CAPABILITY.encode(verdict.rest)))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert answer.cancelled
        counted = decode_plain(await shard.statistics())
        assert (counted["lent_out"], counted["in_flight"]) == (0, 0)

    _clocked(scenario())


def test_who_meets_a_home_is_met_in_turn(tmp_path: Path) -> None:
    """The rest of an upload is read from its Server, also while nobody is there who introduces strangers."""

    class Noted(LocalPeers):
        asked: ClassVar[list[str]] = []

        async def get(self, address: str) -> Peer:
            self.asked.append(address)
            return await super().get(address)

    async def scenario() -> None:
        shard = ShardServer(
            "server-2",
            host_sockets=lambda cordon: [],
            code_directory=tmp_path,
            links=LinksTo(AbortedAsItAnswers()),  # type: ignore[arg-type]
            peers=Noted(),
            limits=AdmissionLimits(),
        )
        await shard.meet(b"server-1")  # of which nobody has heard: no failure either
        assert Noted.asked == ["server-1/server"]

    asyncio.run(scenario())
