"""The edge of one machine: clients that ask, and the leases that take their requests straight to a host.

What ``ingress/client_exchange.py`` and ``ingress/ingress.py`` do between a client's head and the roles, without HTTP:
first bytes with the head, the lease or the Server, the rest of the body when it is pulled, the answer to its last byte,
and a client that leaves. It reads as a client would what came back, and says what that was.
"""

import asyncio
from random import Random
from typing import TYPE_CHECKING

from msgspec.structs import replace

from actors.connection import Connection, Frame, LinkBroken
from actors.exchange import Lease, Outcome, Request, RequestHead
from actors.hosts import HostAnswer
from actors.link import LinkAnswer, Links, WindowAnswer
from actors.view import decode_plain
from actors.wire import REQUEST
from isolates.conversation import BodyLost
from tests.simulation.guest import Reading, download_of, first_line, upload_of
from tests.simulation.host import Make
from tests.simulation.journal import WINDOW_BYTES, Journal, Story

if TYPE_CHECKING:
    from tests.simulation.wires import SocketLoop

#: Of a body may be on its way: what rides with the head, and one piece at each of the two ends that pull.
_AHEAD_BYTES_MAX = 3 * WINDOW_BYTES


class ClientBody:
    """The rest of a request body, as its client sends it: in pieces of one size, each after a while."""

    def __init__(self, story: Story, journal: Journal, rest: bytes, piece_bytes: int, pause_s: float) -> None:
        self._story = story
        self._journal = journal
        self._rest = rest
        self._piece_bytes = piece_bytes
        self._pause_s = pause_s
        self._at = 0

    async def read(self, bytes_max: int) -> bytes | None:
        self._story.pulled += 1
        if self._pause_s:
            await asyncio.sleep(self._pause_s)
        if self._story.breaks and self._at * 2 >= len(self._rest):
            raise BodyLost
        piece = self._rest[self._at : self._at + min(bytes_max, self._piece_bytes)]
        self._at += len(piece)
        self._story.taken_bytes += len(piece)
        ahead_bytes = self._story.taken_bytes - self._story.read_bytes
        if ahead_bytes > _AHEAD_BYTES_MAX:
            self._journal.broken(f"{self._story.request_id}: {ahead_bytes} bytes of its body are on their way")
        return piece or None


class Edge:
    """The clients of one machine."""

    def __init__(
        self,
        machine: str,
        server_path: str,
        *,
        loop: "SocketLoop",
        chance: Random,
        journal: Journal,
        makes: dict[str, Make],
    ) -> None:
        self.machine = machine
        self._server = server_path
        self._loop = loop
        self._chance = chance
        self._journal = journal
        self._makes = makes
        self._links = Links()
        self._leases: dict[str, Lease] = {}
        self._leased_versions: dict[str, str] = {}
        self.dead = False

    # ------------------------------------------------------------------------------------------- what it is told

    async def follow_server(self) -> None:
        """Hear of leases that end; while the Server is away, hold none."""
        while not self.dead:
            try:
                connection = await self._links.take(self._server)
                connection.send(Frame.SUBSCRIBE)
                await self._hear(connection)
            except LinkBroken:
                self._leases.clear()
                await asyncio.sleep(0.1)

    async def _hear(self, connection: Connection) -> None:
        while True:
            _, payload = await connection.receive()
            notice = decode_plain(payload)
            if notice.get("revoke_all"):
                self._leases.clear()
                self._leased_versions.clear()
            for version in notice.get("revoke", ()):
                self._leases.pop(self._leased_versions.pop(version, ""), None)
            for worker in (*notice.get("add", ()), *notice.get("remove", ())):
                self._leases.pop(worker, None)

    async def prewarm(self, worker: str) -> None:
        """A client's hello names a worker."""
        request = Request("", worker, RequestHead("", "", "", ""), "")
        lease = self._leases.get(worker)
        try:
            if lease is not None:
                await self._links.tell(lease.socket, Frame.PREWARM, REQUEST.encode(request.under(lease)))
            else:
                await self._links.tell(self._server, Frame.PREWARM, REQUEST.encode(request))
        except LinkBroken:
            pass

    # ------------------------------------------------------------------------------------------------ one request

    async def ask(
        self, story: Story, first_bytes: int, piece_bytes: int, pause_s: float, reads_slowly_s: float
    ) -> None:
        """One client's request, to its end."""
        upload = upload_of(story.worker, story.request_id, story.upload_bytes) if story.upload_bytes else b""
        first, rest = upload[:first_bytes], upload[first_bytes:]
        story.taken_bytes = len(first)
        head = RequestHead(story.method, "https", f"{story.worker}.localhost", "/", ())
        request = Request(
            story.request_id, story.worker, head, "", body_first=first, body_complete=not rest and not story.breaks
        )
        body = ClientBody(story, self._journal, rest, piece_bytes, pause_s)
        try:
            answer = await self._sent(request, body)
        except LinkBroken:
            self._over(story, Outcome.INTERNAL_ERROR.value)
            return
        leaving = None
        if story.leaves_after_s is not None:
            leaving = self._loop.call_later(story.leaves_after_s, self._leave, story, answer)
        try:
            await self._read(story, answer, upload, reads_slowly_s)
        finally:
            if leaving is not None:
                leaving.cancel()
            answer.cancel()

    def _leave(self, story: Story, answer: WindowAnswer) -> None:
        story.left = True
        if self._journal.telling:
            self._journal.tell(f"{story.request_id}: its client leaves")
        answer.cancel()

    async def _sent(self, request: Request, body: ClientBody) -> WindowAnswer:
        async def by_the_server(asked: Request) -> LinkAnswer:
            self._leases.pop(request.worker, None)
            again = request if not asked.lost_with else _lost(request, asked)
            return await self._links.exchange(self._server, again, body)

        lease = self._leases.get(request.worker)
        if lease is None:
            return await self._links.exchange(self._server, request, body)
        leased = request.under(lease)
        try:
            answer = await self._links.exchange(lease.socket, leased, body)
        except LinkBroken:
            return await by_the_server(request)
        return HostAnswer(answer, leased, by_the_server)

    async def _read(self, story: Story, answer: WindowAnswer, upload: bytes, reads_slowly_s: float) -> None:
        served = await answer.served()
        if served is None:
            self._over(story, (await answer.ended()).outcome.value)
            return
        story.got_head = True
        story.start_type = served.start_type
        if served.lease is not None:
            self._leases[story.worker] = served.lease
            self._leased_versions[served.lease.version] = story.worker
        pieces: list[bytes] = []
        while (data := await answer.read()) is not None:
            pieces.append(data)
            if reads_slowly_s:
                await asyncio.sleep(reads_slowly_s)
        story.whole = answer.whole
        self._check(story, b"".join(pieces), upload, answer.whole)
        ended = await answer.ended()
        if answer.whole:
            self._over(story, ended.outcome.value)
        else:
            self._over(story, f"broken off: {ended.outcome.value}")

    def _check(self, story: Story, got: bytes, upload: bytes, whole: bool) -> None:
        """The client has its own answer, every byte of it, once and in order."""
        if self.dead or (not got and not whole):
            return
        behaviour = story.behaviour
        line, _, body = got.partition(b"\n")
        version = line.split(b" ")[1].decode() if line.count(b" ") == 2 else ""
        make = self._makes.get(version)
        sent = upload if behaviour.reading is Reading.ECHO else b""
        sent += download_of(story.worker, story.request_id, behaviour.pieces * behaviour.piece_bytes)
        expected_line = first_line(story.worker, version, story.request_id).rstrip(b"\n")
        right = (
            line == expected_line
            and make is not None
            and make.worker == story.worker
            and (body == sent if whole else sent.startswith(body))
        )
        if not right:
            self._journal.broken(f"{story.request_id}: its client of {story.worker} gets {got[:80]!r}, whole: {whole}")

    def _over(self, story: Story, ending: str) -> None:
        if not self.dead:
            self._journal.ended(story, ending)


def _lost(request: Request, asked: Request) -> Request:
    """The request as it was, and the hosts that were lost with it."""
    return replace(request, lost_with=asked.lost_with)
