"""A client on a machine that asks workers over HTTPS at a steady rate, by edges that come and go.

    python steady_client.py CA PORT RATE WORKER...          standard library only

On stdin come lines of JSON, the addresses of the edges that there are from then on; when stdin ends it stops, waits for
what is under way, and prints what it saw as JSON, and before that a line for each round that begins. It sends by the
clock, whoever is slow, to one worker after the other, so none has two requests at once unless an answer takes a whole
round; each round by other edges, and one request in four is a POST. A worker whose name begins with ``slow-`` answers
with what it gets, and is sent uploads that take seconds, one after the other.

It does what clients of HTTP do, and no more: a connection that says that it ends, or is closed while nothing is on it,
is not used; an edge that takes no connection is left out for another one. A request that was sent on a kept connection
which closes without an answer is repeated by another edge if it is a GET, and counted; a POST is not, and has failed.
"""

import asyncio
import json
import random
import ssl
import sys
import time
from dataclasses import asdict, dataclass

#: Workers with names of this kind answer with what they get, and are sent slow uploads.
SLOW = "slow-"
#: Nobody waits longer for an answer.
_ANSWER_S = 30.0
#: Connections kept to one edge.
_IDLE_MAX = 16
_POST_EVERY = 4
#: A slow upload: so many pieces, so long after each other.
_PIECES, _PIECE, _PIECE_EVERY_S = 16, b"one piece of a slow upload\n", 0.25


@dataclass
class Seen:
    """One request. ``sent_s`` is monotonic; ``status`` 0 is no answer."""

    sent_s: float
    worker: str
    edge: str
    method: str
    took_s: float = 0.0
    status: int = 0
    timing: str = ""
    why: str = ""
    repeated: int = 0  # after a kept connection closed
    refused: int = 0  # edges that took no connection


class Closed(Exception):
    """A kept connection closed, without a byte of an answer."""


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Clients:
    """Connections to all edges, kept between requests."""

    def __init__(self, tls: ssl.SSLContext, port: int) -> None:
        self._tls = tls
        self._port = port
        self.edges: list[str] = []
        self._idle: dict[str, list[Connection]] = {}

    async def ask(self, seen: Seen) -> None:
        """One request, by ``seen.edge`` or by those after it."""
        first = self.edges.index(seen.edge)
        edges = [*self.edges[first:], *self.edges[:first]]
        try:
            async with asyncio.timeout(_ANSWER_S):
                while edges:
                    seen.edge = edges.pop(0)
                    kept = self._kept(seen.edge)
                    try:
                        connection = kept or await self._connect(seen.edge)
                    except OSError as refused:  # nothing was sent
                        seen.refused += 1
                        seen.why = f"{type(refused).__name__}: {refused}"
                        continue
                    try:
                        await self._asked(seen, connection)
                        return
                    except Closed:
                        if kept is None or seen.method != "GET":
                            raise
                        seen.repeated += 1
        except (OSError, asyncio.IncompleteReadError, TimeoutError, Closed) as broken:
            seen.why = f"{type(broken).__name__}: {broken}"

    async def _asked(self, seen: Seen, connection: Connection) -> None:
        reader, writer = connection
        is_slow = seen.worker.startswith(SLOW)
        pieces = [_PIECE] * _PIECES if is_slow else [b"body"] if seen.method == "POST" else []
        length = f"content-length: {sum(map(len, pieces))}\r\n" if pieces else ""
        head = f"{seen.method} / HTTP/1.1\r\nhost: {seen.worker}.localhost\r\n{length}\r\n"
        kept = False
        try:
            try:
                writer.write(head.encode() + b"".join(pieces[:1]))
                for piece in pieces[1:]:
                    await asyncio.sleep(_PIECE_EVERY_S)
                    writer.write(piece)
                    await writer.drain()
                answered = await reader.readuntil(b"\r\n\r\n")
            except (ConnectionError, asyncio.IncompleteReadError) as gone:
                if getattr(gone, "partial", b""):
                    raise
                raise Closed(f"{type(gone).__name__}: {gone}") from gone
            status, fields = int(answered.split(b" ", 2)[1]), _fields(answered)
            body = await _body(reader, fields)
            seen.status, seen.timing, seen.why = status, fields.get(b"server-timing", b"").decode(), ""
            if is_slow and body != b"".join(pieces):
                seen.status, seen.why = 0, f"{status}, and another body: {body[:200]!r}"
            kept = fields.get(b"connection") != b"close" and len(self._idle.setdefault(seen.edge, [])) < _IDLE_MAX
        finally:
            if kept:
                self._idle[seen.edge].append(connection)
            else:
                writer.close()

    def _kept(self, edge: str) -> Connection | None:
        idle = self._idle.setdefault(edge, [])
        while idle:
            reader, writer = idle.pop()
            if not (reader.at_eof() or writer.is_closing()):
                return reader, writer
            writer.close()
        return None

    async def _connect(self, edge: str) -> Connection:
        # By the plain name: a worker's name in the handshake would start its isolate.
        return await asyncio.open_connection(edge, self._port, ssl=self._tls, server_hostname="localhost")


def _fields(head: bytes) -> dict[bytes, bytes]:
    lines = (line.partition(b": ") for line in head.split(b"\r\n")[1:])
    return {name.lower(): value for name, _, value in lines}


async def _body(reader: asyncio.StreamReader, fields: dict[bytes, bytes]) -> bytes:
    """An answer's body: of its length, or in chunks."""
    if b"content-length" in fields:
        return await reader.readexactly(int(fields[b"content-length"]))
    pieces = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        pieces.append((await reader.readexactly(size + 2))[:-2])
    await reader.readexactly(2)
    return b"".join(pieces)


async def follow(clients: Clients, begun: asyncio.Event, over: asyncio.Event) -> None:
    """Hear of edges, until stdin ends."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        clients.edges = json.loads(line)
        begun.set()
    over.set()


class Load:
    """What is asked, and what came of it."""

    def __init__(self, clients: Clients, workers: list[str]) -> None:
        self._clients = clients
        self._slow = [worker for worker in workers if worker.startswith(SLOW)]
        self._workers = [worker for worker in workers if not worker.startswith(SLOW)]
        self._dice = random.Random(6)
        self._over = asyncio.Event()
        self._seen: list[Seen] = []

    async def run(self, rate: float) -> list[Seen]:
        """Ask until there are no more edges to come."""
        begun, under_way = asyncio.Event(), set()
        following = asyncio.create_task(follow(self._clients, begun, self._over))
        await begun.wait()
        slow = [asyncio.create_task(self._upload(worker, place)) for place, worker in enumerate(self._slow)]
        due, number = time.monotonic(), 0
        while not self._over.is_set():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            turn, place = divmod(number, len(self._workers))
            if place == 0:
                print(json.dumps({"rounds": turn}), flush=True)
            method = "POST" if self._dice.randrange(_POST_EVERY) == 0 else "GET"
            task = asyncio.create_task(self._one(due, self._workers[place], place + turn, method))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            due, number = due + 1 / rate, number + 1
        await asyncio.gather(following, *under_way, *slow)
        return self._seen

    async def _upload(self, worker: str, place: int) -> None:
        turn = place
        while not self._over.is_set():
            turn += 1
            await self._one(time.monotonic(), worker, turn, "POST")

    async def _one(self, due_s: float, worker: str, place: int, method: str) -> None:
        one = Seen(due_s, worker, self._clients.edges[place % len(self._clients.edges)], method)
        self._seen.append(one)
        await self._clients.ask(one)
        one.took_s = time.monotonic() - one.sent_s


def main(arguments: list[str]) -> None:
    """The command line."""
    ca, port, rate, *workers = arguments
    clients = Clients(ssl.create_default_context(cafile=ca), int(port))
    seen = asyncio.run(Load(clients, workers).run(float(rate)))
    print(json.dumps({"seen": [asdict(one) for one in seen]}))


if __name__ == "__main__":
    main(sys.argv[1:])
