"""Clients of all machines, on a machine beside them, and the origin that counts what arrives there twice.

    python -m benchmarks.cuts.load CA PORT RATE OWN_ADDRESS EDGE=ADDRESS...

Each line on stdin names the set of workers that is asked from then on, and how many of each kind there are in it; with
stdin's end it ends. Each line on stdout is a request that is over; the last one says how many POSTs arrived at the
origin, and how many of them more than once.

The load is open: requests are sent when it is their time, to one edge after the other, however the others do. A client
does what clients of HTTP do and no more: it keeps connections, uses none that is closed, and sends nothing twice.
"""

import asyncio
import itertools
import json
import random
import ssl
import sys
import time
from dataclasses import asdict

from benchmarks.chaos import CountingOrigin, read_body
from benchmarks.cuts.figures import Seen

#: The port of the origin, at all of this machine's addresses.
ORIGIN_PORT = 8099
#: Nobody waits longer. Above all waits of the cluster, so that what hangs is seen to hang.
ANSWER_S_MAX = 30.0
#: Of each edge.
_IDLE_MAX = 64
#: Requests under way: those of half a minute in which nobody answers, at 50 a second, and some.
_UNDER_WAY_MAX = 2_000
_SEED = 6

_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Clients:
    """Connections to the edges, kept between requests."""

    def __init__(self, addresses: dict[str, str], port: int, tls: ssl.SSLContext) -> None:
        self._addresses = addresses
        self._port = port
        self._tls = tls
        self._idle: dict[str, list[_Connection]] = {edge: [] for edge in addresses}

    async def ask(self, edge: str, worker: str, path: str, body: bytes | None, wanted: bytes) -> Seen:
        """One request through ``edge``. ``wanted``: the right answer."""
        sent_s, method = time.monotonic(), "GET" if body is None else "POST"
        head = f"{method} {path} HTTP/1.1\r\nhost: {worker}.localhost\r\n"
        head += "" if body is None else f"content-length: {len(body)}\r\n"
        connection: _Connection | None = None

        def seen(status: int, why: str = "", *, hop: bool = False) -> Seen:
            refused = connection is None
            return Seen(sent_s, time.monotonic(), edge, worker, method, status, refused, why, hop)

        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                connection = reader, writer = await self._connected(edge)
                writer.write(head.encode() + b"\r\n" + (body or b""))
                answered = await reader.readuntil(b"\r\n\r\n")
                status, answer = int(answered.split(b" ", 2)[1]), await read_body(answered, reader)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as broken:
            if connection is not None:
                connection[1].transport.abort()
            return seen(0, f"{type(broken).__name__}: {broken}")
        if b"connection: close" in answered.lower() or len(self._idle[edge]) >= _IDLE_MAX:
            writer.close()
        else:
            self._idle[edge].append((reader, writer))
        if status != 200:
            return seen(status, answer.decode(errors="replace")[:100])
        return seen(status, "" if answer == wanted else "wrong", hop=b"hop" in answered)

    async def _connected(self, edge: str) -> _Connection:
        while self._idle[edge]:
            reader, writer = self._idle[edge].pop()
            if not (reader.at_eof() or writer.is_closing()):
                return reader, writer
            writer.close()
        # By the plain name: a worker's name in the handshake would start its isolate.
        return await asyncio.open_connection(
            self._addresses[edge], self._port, ssl=self._tls, server_hostname="localhost"
        )


class Load:
    """Requests at a steady rate to the workers of one set."""

    def __init__(self, clients: Clients, addresses: dict[str, str], own_address: str) -> None:
        self._clients = clients
        self._edges = itertools.cycle(addresses)
        self._origin = f"http://{own_address}:{ORIGIN_PORT}"
        self._dice = random.Random(_SEED)
        self._numbers = itertools.count(1)
        self._under_way: set[asyncio.Task[None]] = set()
        self.workers = ("", 0)

    async def run(self, rate: float, over: asyncio.Event) -> None:
        """Send until ``over``, and wait for what is under way."""
        next_s = time.monotonic()
        while not over.is_set():
            next_s += 1 / rate
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))
            if self.workers[1] and len(self._under_way) < _UNDER_WAY_MAX:
                task = asyncio.create_task(self._one(next(self._edges)))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
        if self._under_way:
            await asyncio.wait(self._under_way)

    async def _one(self, edge: str) -> None:
        number, (name, count) = next(self._numbers), self.workers
        kind = self._dice.choice(("hello", "hello", "echo", "fetch"))
        worker = f"{kind}-{name}-{self._dice.randrange(count)}"
        if kind == "hello":
            wanted = f"hello from Zig\nyou asked for /{number}\n".encode()
            seen = await self._clients.ask(edge, worker, f"/{number}", None, wanted)
        else:
            body = f"{number} ".encode() * self._dice.choice((1, 100, 4_000))
            path = "/" if kind == "echo" else f"/?url={self._origin}/{number}"
            seen = await self._clients.ask(edge, worker, path, body, body)
        print(json.dumps(asdict(seen)), flush=True)


async def measure(ca: str, port: int, rate: float, addresses: dict[str, str], own_address: str) -> None:
    """Until stdin's end."""
    reader, over = asyncio.StreamReader(), asyncio.Event()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with CountingOrigin(own_address, ORIGIN_PORT) as origin:
        clients = Clients(addresses, port, ssl.create_default_context(cafile=ca))
        load = Load(clients, addresses, own_address)
        loading = asyncio.create_task(load.run(rate, over))
        while line := (await reader.readline()).decode().split():
            load.workers = line[0], int(line[1])
        over.set()
        await loading
        twice = sum(times > 1 for times in origin.arrived.values())
        print(json.dumps({"arrived": len(origin.arrived), "twice": twice}), flush=True)


def main(arguments: list[str]) -> None:
    """As above."""
    ca, port, rate, own_address, *edges = arguments
    addresses = dict(edge.split("=", 1) for edge in edges)
    asyncio.run(measure(ca, int(port), float(rate), addresses, own_address))


if __name__ == "__main__":
    main(sys.argv[1:])
