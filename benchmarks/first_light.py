"""How long does a hello over HTTPS take: cold, warm, sharded; and how many a second?

    python -m benchmarks.first_light [--json] [--workers N] [--seconds S]

Starts three servers of its own. All requests go over connections that are already open, so a cold start is not hidden
by the prewarm of a new one:

* ``cold_ms_p50``     first request of a freshly deployed worker, at its home;
* ``warm_ms_p50``     its next ones, at its home: ingress, Unix socket, isolate;
* ``sharded_ms_p50``  warm ones through a server that is not its home: one hop further;
* ``rps_32_connections``  32 open connections to the home, each sending its next request when it has an answer, from a
  client process on the same machine, which takes its share of the cores.

Medians; single figures of one machine in one run. Compare only what was measured in the same run.
"""

import argparse
import asyncio
import multiprocessing
import ssl
import statistics
import time
from typing import cast

import uvloop

from benchmarks.local_cluster import WORKERS, local_cluster, print_result


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection that counts answers: a response ends with its last chunk or its length."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._answered: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._is_whole() and self._answered is not None:
            whole, self._buffer = bytes(self._buffer), bytearray()
            self._answered.set_result(whole)

    def connection_lost(self, fault: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(ConnectionError("the server closed the connection"))

    @property
    def has_begun(self) -> bool:
        """Whether some of an answer has come that is not whole."""
        return bool(self._buffer)

    def _is_whole(self) -> bool:
        if self._buffer.endswith(b"\r\n0\r\n\r\n"):
            return True
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        at = head.find(b"content-length: ") if end else -1
        return at >= 0 and len(body) >= int(head[at + 16 :].split(b"\r\n", 1)[0])

    async def request(self, host: str, path: str = "/") -> bytes:
        """One GET; the whole answer with its head."""
        assert self.transport is not None
        self._answered = asyncio.get_running_loop().create_future()
        self.transport.write(f"GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
        answer = await self._answered
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{host} answered {answer[:200]!r}")
        return answer


async def open_connection(port: int, tls: ssl.SSLContext) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(
        Connection, "127.0.0.1", port, ssl=tls, server_hostname="localhost"
    )
    return connection


async def timed_ms(connection: Connection, host: str, path: str = "/") -> float:
    """What one request takes, in ms."""
    began = time.perf_counter()
    await connection.request(host, path)
    return (time.perf_counter() - began) * 1e3


async def latencies(
    ports: dict[str, int], homes: dict[str, str], tls: ssl.SSLContext
) -> tuple[list[float], list[float], list[float]]:
    """Cold, warm and sharded times in ms, over all workers in ``homes``."""
    connections = {server: await open_connection(port, tls) for server, port in ports.items()}
    for connection in connections.values():
        # Also opens what each ingress has to open once: its way to the Server.
        await connection.request("warm-up.localhost")
    cold, warm, sharded = [], [], []
    for worker, home in homes.items():
        cold.append(await timed_ms(connections[home], f"{worker}.localhost"))
    for worker, home in homes.items():
        warm += [await timed_ms(connections[home], f"{worker}.localhost") for _ in range(20)]
        away = next(server for server in ports if server != home)
        sharded += [await timed_ms(connections[away], f"{worker}.localhost") for _ in range(10)]
    return cold, warm, sharded


async def throughput(port: int, host: str, ca: str, connections: int, seconds: float, path: str = "/") -> float:
    """Answers a second over ``connections`` open connections."""
    tls = ssl.create_default_context(cafile=ca)
    opened = [await open_connection(port, tls) for _ in range(connections)]
    for connection in opened:
        await connection.request(host, path)
    until = time.perf_counter() + seconds

    async def drive(connection: Connection) -> int:
        count = 0
        while time.perf_counter() < until:
            await connection.request(host, path)
            count += 1
        return count

    began = time.perf_counter()
    total = sum(await asyncio.gather(*(drive(connection) for connection in opened)))
    return total / (time.perf_counter() - began)


def throughput_process(port: int, host: str, ca: str, connections: int, seconds: float, path: str = "/") -> float:
    """The same, for a process of its own."""
    return uvloop.run(throughput(port, host, ca, connections, seconds, path))


def main() -> None:
    parser = argparse.ArgumentParser(description="Hello over HTTPS: cold, warm, sharded, and requests a second.")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--workers", type=int, default=21, help="freshly deployed workers, one cold start each")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to count requests")
    options = parser.parse_args()
    component = (WORKERS / "zig" / "hello" / "worker.wasm").read_bytes()
    with local_cluster("--servers", "3") as cluster:
        names = [f"bench-{i}" for i in range(options.workers)]
        for name in ["warm-up", *names]:
            cluster.client.deploy(name, component)
        placed = cluster.client.statistics()["server-1/server"]["homes"]
        homes = {name: placed[name] for name in names}
        cold, warm, sharded = uvloop.run(latencies(cluster.ports, homes, cluster.tls()))
        worker, home = next(iter(homes.items()))
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            rps = pool.apply(
                throughput_process,
                (cluster.ports[home], f"{worker}.localhost", str(cluster.home.ca_certificate), 32, options.seconds),
            )
        print_result(
            {
                "cold_ms_p50": round(statistics.median(cold), 3),
                "warm_ms_p50": round(statistics.median(warm), 3),
                "sharded_ms_p50": round(statistics.median(sharded), 3),
                "rps_32_connections": round(rps),
            },
            as_json=options.json,
        )


if __name__ == "__main__":
    main()
