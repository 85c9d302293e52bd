"""A home's races, with an answer that does what a client may do at the worst moment."""

import asyncio
from pathlib import Path

from actors.admission import AdmissionLimits
from actors.exchange import Answered, Capability, Ended, Outcome, Request, RequestHead, Served
from actors.peer import LocalPeers
from actors.shard_server import ShardServer
from actors.view import decode_plain
from actors.wire import CAPABILITY, REQUEST, decode_verdict

DIGEST = "a" * 64
LENT = Capability("server-1/server", 7)
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
            host_sockets=[tmp_path / "host.sock"],
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
