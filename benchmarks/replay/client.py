"""The load: requests over HTTPS at their moments, on connections that stay open, from one process of its own.

It does not wait for answers before it sends the next request (an open loop), as long as connections are free: the bound
is there so that a cluster that stands still is not asked for more and more. How late requests went out is reported.
"""

import asyncio
import multiprocessing
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass

import uvloop

from benchmarks.first_light import Connection
from benchmarks.replay.slice import Arrival

#: Open connections to each server: far more than are in use at once while the cluster keeps up.
_CONNECTIONS_PER_SERVER = 24
#: The longest that an answer is waited for; then the request has failed.
_ANSWER_S_MAX = 30.0
#: Between the start of the clock and the first request.
_LEAD_S = 0.2


@dataclass(frozen=True, slots=True)
class Edge:
    """Where the load goes: the ports of the servers by number, and the file of the authority that vouches for them."""

    ports: tuple[int, ...]
    ca: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One request as its client saw it. ``fault``: why there was no good answer; empty when there was."""

    worker: int
    server: int
    latency_ms: float  # from the moment it was sent to the last byte of its answer
    late_ms: float  # how long after its moment it was sent
    start_type: str = ""
    hop: bool = False
    refused: str = ""
    fault: str = ""

    @property
    def failed(self) -> bool:
        """Whether the client saw an error."""
        return bool(self.fault)


def worker_name(worker: int) -> str:
    """The name under which a function of the slice is deployed."""
    return f"replay-{worker}"


def sample_of(answer: bytes, worker: int, server: int, latency_ms: float, late_ms: float) -> Sample:
    """What an answer's ``server-timing`` tells of its way."""
    head = answer.partition(b"\r\n\r\n")[0].decode("latin-1").lower()
    timing = next((line for line in head.split("\r\n") if line.startswith("server-timing:")), "")
    parts = [part.strip().partition(";") for part in timing.partition(":")[2].split(",")]
    told = {name: value.partition("=")[2].strip('"') for name, _, value in parts}
    return Sample(
        worker, server, latency_ms, late_ms, told.get("start", ""), "hop" in told, told.get("refused", ""),
    )  # fmt: skip


def drive(edge: Edge, arrivals: Sequence[Arrival]) -> list[Sample]:
    """Send all requests at their moments, from a process of its own. One sample each, in the order of the answers."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_drive_process, (edge, arrivals))


def _drive_process(edge: Edge, arrivals: Sequence[Arrival]) -> list[Sample]:
    return uvloop.run(_Load(edge).drive(arrivals))


class _Load:
    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._tls = ssl.create_default_context(cafile=edge.ca)
        # Used in turn: one that is left alone for long is closed by the server, perhaps just when it is used again.
        self._free: list[asyncio.Queue[Connection]] = [asyncio.Queue() for _ in edge.ports]
        self._samples: list[Sample] = []

    async def drive(self, arrivals: Sequence[Arrival]) -> list[Sample]:
        for server in range(len(self._edge.ports)):
            for _ in range(_CONNECTIONS_PER_SERVER):
                self._free[server].put_nowait(await self._open(server))
        began_s = time.perf_counter() + _LEAD_S
        async with asyncio.TaskGroup() as sending:
            for arrival in arrivals:
                wait_s = began_s + arrival.at_s - time.perf_counter()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                sending.create_task(self._send(arrival, began_s + arrival.at_s))
        return self._samples

    async def _open(self, server: int) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection, "127.0.0.1", self._edge.ports[server], ssl=self._tls, server_hostname="localhost"
        )
        return connection

    async def _send(self, arrival: Arrival, due_s: float) -> None:
        connection = await self._free[arrival.server].get()
        if connection.transport is None or connection.transport.is_closing():
            connection = await self._open(arrival.server)
        sent_s = time.perf_counter()
        late_ms = (sent_s - due_s) * 1e3
        try:
            async with asyncio.timeout(_ANSWER_S_MAX):
                try:
                    answer = await connection.request(f"{worker_name(arrival.worker)}.localhost")
                except ConnectionError:
                    # Closed for having been idle, in the moment in which it was used: every HTTP client sends a GET
                    # again then, on a new connection (RFC 9112, section 9.3.1), unless an answer had begun.
                    if connection.has_begun:
                        raise
                    connection = await self._open(arrival.server)
                    answer = await connection.request(f"{worker_name(arrival.worker)}.localhost")
        except (OSError, RuntimeError, TimeoutError) as fault:
            took_ms = (time.perf_counter() - sent_s) * 1e3
            why = f"{type(fault).__name__}: {fault}"
            self._samples.append(Sample(arrival.worker, arrival.server, took_ms, late_ms, fault=why))
            if connection.transport is not None:
                connection.transport.abort()
            connection = await self._open(arrival.server)
        else:
            took_ms = (time.perf_counter() - sent_s) * 1e3
            self._samples.append(sample_of(answer, arrival.worker, arrival.server, took_ms, late_ms))
        self._free[arrival.server].put_nowait(connection)
