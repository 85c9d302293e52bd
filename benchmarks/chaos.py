"""What do clients notice when each role's process is killed in turn, under a steady load?

    python -m benchmarks.chaos [--json] [--seconds S] [--rps N] [--every S] [--servers N] [--seed N] [--patient]

Starts servers of its own. Half of the requests are GETs, the others POSTs with a body of their own: a part of these
answer with their body, a part hand it to an origin on this machine, which counts how often each arrived. The load is
open: requests are sent when it is their time, however the others do. Meanwhile one role after the other is killed with
SIGKILL, of another server each time; the ControlPlane is one of them.

A client does what clients of HTTP do, and no more. A connection that is closed while nothing is on it is not used; an
edge that takes no connection is left out for another one; a request that was sent is not sent again, whatever becomes
of it. So each failure below is one that a client saw.

* ``failed_in_flight``  were under way when a process was killed, or were sent to it within the tenth of a second in
  which nobody can know that; ``failed_otherwise``, ``answered_wrong`` and ``ran_twice`` must be 0;
* ``failed_percent``    of all requests;
* ``back_s_max``        from the kill to the new process with its role started, as the owner tells it;
* ``slowest_s``         of the requests that were answered: those that waited for a role to be back.

Single figures of one machine in one run. ``--patient`` waits before each kill until every role runs and a process is
ready to take over: for a machine on which others take the cores.
"""

import argparse
import asyncio
import itertools
import os
import random
import signal
import ssl
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from benchmarks.local_cluster import WORKERS, LocalCluster, local_cluster, print_result
from everwarm.owner import ask_roles

#: The longest that a client waits for an answer; above all waits of the cluster for a role that is being restarted.
_ANSWER_S_MAX = 20.0
#: Until a killed process is gone, its sockets are closed and everybody has heard of it.
_NOTICED_S = 0.1
_BACK_S_MAX = 60.0
_WELL, _WELL_S_MAX = {"running", "ready"}, 120.0
#: Connections that are kept to one edge.
_IDLE_MAX = 64
#: Requests under way; beyond it the cluster is down, and so many failures are enough.
_UNDER_WAY_MAX = 2_000
_ROLES = ("host", "ingress", "shard", "server")


@dataclass(frozen=True, slots=True)
class Seen:
    """One request of a client. Times are of the monotonic clock."""

    sent_s: float
    over_s: float
    method: str
    via: str
    status: int  # 0: no answer
    why: str = ""

    @property
    def ok(self) -> bool:
        return self.status == 200 and not self.why


@dataclass(frozen=True, slots=True)
class Killed:
    """A role that was killed, and how long it was away; infinite when it did not come back."""

    address: str
    at_s: float
    back_s: float


@dataclass
class Chaos:
    """What was done and seen."""

    seen: list[Seen] = field(default_factory=list)
    killed: list[Killed] = field(default_factory=list)
    #: How often each POST arrived at the origin.
    arrived: Counter[str] = field(default_factory=Counter)

    def failures(self) -> tuple[list[Seen], list[Seen]]:
        """Requests that were under way when a process was killed, and others."""
        failed = [one for one in self.seen if not one.ok]
        in_flight = [
            one
            for one in failed
            if any(one.sent_s <= k.at_s + _NOTICED_S and k.at_s <= one.over_s for k in self.killed)
        ]
        return in_flight, [one for one in failed if one not in in_flight]

    def figures(self) -> dict[str, float | int | str]:
        """The result."""
        in_flight, otherwise = self.failures()
        wrong = [one for one in self.seen if one.why == "wrong"]
        away: dict[str, list[float]] = {}
        for killed in self.killed:
            away.setdefault(killed.address.rpartition("/")[2], []).append(killed.back_s)
        figures: dict[str, float | int | str] = {
            "requests": len(self.seen),
            "kills": len(self.killed),
            "failed_in_flight": len(in_flight),
            "failed_otherwise": len(otherwise),
            "failed_percent": round(100 * (len(in_flight) + len(otherwise)) / max(1, len(self.seen)), 3),
            "answered_wrong": len(wrong),
            "ran_twice": sum(times > 1 for times in self.arrived.values()),
            "back_s_max": round(max((k.back_s for k in self.killed), default=0.0), 2),
            "slowest_s": round(max((one.over_s - one.sent_s for one in self.seen if one.ok), default=0.0), 2),
        }
        return figures | {f"back_s_max_{role}": round(max(took), 2) for role, took in sorted(away.items())}


# ------------------------------------------------------------------------------------------------------ the origin


class CountingOrigin:
    """Answers each POST with its body, and counts how often each path was asked for."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        """``port`` 0: a free one."""
        self.arrived: Counter[str] = Counter()
        self.port = port
        self._address = address
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "CountingOrigin":
        self._server = await asyncio.start_server(self._serve, self._address, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.arrived[head.split(b" ", 2)[1].decode()] += 1
                body = await read_body(head, reader)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        except (OSError, asyncio.IncompleteReadError):
            pass  # whoever asked is gone
        finally:
            writer.close()


async def read_body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    """The body that follows a head: of its length, or in chunks."""
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    if b"chunked" not in fields.get(b"transfer-encoding", b""):
        return await reader.readexactly(int(fields.get(b"content-length", b"0")))
    pieces: list[bytes] = []
    while True:
        size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
        piece = await reader.readexactly(size + 2)
        if not size:
            return b"".join(pieces)
        pieces.append(piece[:-2])


# ----------------------------------------------------------------------------------------------------- the clients


class Clients:
    """Connections to all edges, kept between requests."""

    def __init__(self, ports: dict[str, int], tls: ssl.SSLContext) -> None:
        self._ports = ports
        self._tls = tls
        self._idle: dict[str, list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = {edge: [] for edge in ports}

    async def ask(self, via: str, host: str, path: str, body: bytes | None, wanted: bytes) -> Seen:
        """One request, by ``via`` or, if that takes no connection, by another edge. ``wanted``: the right answer."""
        sent_s, method = time.monotonic(), "GET" if body is None else "POST"
        edges = [via, *(edge for edge in self._ports if edge != via)]
        head = f"{method} {path} HTTP/1.1\r\nhost: {host}.localhost\r\n"
        head += "" if body is None else f"content-length: {len(body)}\r\n"
        try:
            async with asyncio.timeout(_ANSWER_S_MAX):
                via, reader, writer = await self._connected(edges)
                writer.write(head.encode() + b"\r\n" + (body or b""))
                answered = await reader.readuntil(b"\r\n\r\n")
                status, answer = int(answered.split(b" ", 2)[1]), await read_body(answered, reader)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as broken:
            return Seen(sent_s, time.monotonic(), method, via, 0, f"{type(broken).__name__}: {broken}")
        if b"connection: close" in answered.lower() or len(self._idle[via]) >= _IDLE_MAX:
            writer.close()
        else:
            self._idle[via].append((reader, writer))
        why = answer.decode(errors="replace")[:100] if status != 200 else ""
        if status == 200 and answer != wanted:
            why = "wrong"
        return Seen(sent_s, time.monotonic(), method, via, status, why)

    async def _connected(self, edges: list[str]) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the first of the edges that takes one."""
        for edge in edges:
            while self._idle[edge]:
                reader, writer = self._idle[edge].pop()
                if not (reader.at_eof() or writer.is_closing()):
                    return edge, reader, writer
                writer.close()
            try:
                # By the plain name: a worker's name in the handshake would start its isolate.
                return edge, *await asyncio.open_connection(
                    "127.0.0.1", self._ports[edge], ssl=self._tls, server_hostname="localhost"
                )
            except OSError:
                continue  # nobody listens, or not any more: nothing was sent
        raise ConnectionRefusedError("no edge takes a connection")

    def close(self) -> None:
        """Close what is kept."""
        for reader_writers in self._idle.values():
            for _, writer in reader_writers:
                writer.close()


class Load:
    """Requests at a steady rate, to workers of three kinds."""

    def __init__(self, clients: Clients, edges: list[str], workers: int, origin: int, chaos: Chaos, seed: int) -> None:
        self._clients = clients
        self._edges = itertools.cycle(edges)
        self._workers = workers
        self._origin = origin
        self._chaos = chaos
        self._dice = random.Random(seed)
        self._numbers = itertools.count(1)
        self._under_way: set[asyncio.Task[None]] = set()

    async def run(self, rps: float, until: asyncio.Event) -> None:
        """Send until ``until`` is set, and wait for what is under way."""
        next_s = time.monotonic()
        while not until.is_set():
            next_s += 1 / rps
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))
            if len(self._under_way) < _UNDER_WAY_MAX:
                task = asyncio.create_task(self._one())
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
        if self._under_way:
            await asyncio.wait(self._under_way)

    async def _one(self) -> None:
        number, worker = next(self._numbers), self._dice.randrange(self._workers)
        kind, via = self._dice.choice(("hello", "hello", "echo", "fetch")), next(self._edges)
        if kind == "hello":
            wanted = f"hello from Zig\nyou asked for /{number}\n".encode()
            seen = await self._clients.ask(via, f"hello-{worker}", f"/{number}", None, wanted)
        else:
            body = f"{number} ".encode() * self._dice.choice((1, 100, 20_000))
            path = "/" if kind == "echo" else f"/?url=http://127.0.0.1:{self._origin}/{number}"
            seen = await self._clients.ask(via, f"{kind}-{worker}", path, body, body)
        self._chaos.seen.append(seen)


# -------------------------------------------------------------------------------------------------------- the kills


def victims(servers: list[str]) -> list[str]:
    """Whom to kill, in turn: each role of each server and the ControlPlane, and never the same server twice running."""
    found = []
    for round_ in range(len(servers)):
        found += [f"{servers[(round_ + i) % len(servers)]}/{role}" for i, role in enumerate(_ROLES)]
        found.append("control")
    return found


async def kill(cluster: LocalCluster, address: str) -> Killed:
    """Kill a role's process, and wait until it has another one."""

    def process() -> tuple[int, str]:
        role = ask_roles(cluster.home)[address]
        return role["pid"], role["state"]

    pid, _ = await asyncio.to_thread(process)
    at_s = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    while True:
        now, state = await asyncio.to_thread(process)
        away_s = time.monotonic() - at_s
        if now != pid and state == "running":
            return Killed(address, at_s, away_s)
        if away_s > _BACK_S_MAX:
            return Killed(address, at_s, float("inf"))
        await asyncio.sleep(0.02)


def deploy(cluster: LocalCluster, workers: int) -> None:
    """So many workers of each kind."""
    for kind, i in itertools.product(("hello", "echo", "fetch"), range(workers)):
        # Plenty of CPU time: more processes than cores wait for each other.
        component = WORKERS / "zig" / kind / "worker.wasm"
        cluster.client.deploy(f"{kind}-{i}", component, plan="paid", limits={"cpu_ms": 10_000})


async def all_is_well(cluster: LocalCluster) -> None:
    """Until every role runs and somebody is ready to take over."""
    until_s = time.monotonic() + _WELL_S_MAX
    while {role["state"] for role in (await asyncio.to_thread(ask_roles, cluster.home)).values()} != _WELL:
        if time.monotonic() > until_s:
            raise TimeoutError("not every role runs")
        await asyncio.sleep(0.1)


async def storm(
    cluster: LocalCluster, origin: CountingOrigin, *, workers: int, rps: float, every_s: float, addresses: list[str],
    seed: int, patient: bool,
) -> Chaos:  # fmt: skip
    """Kill ``addresses``, one each ``every_s``, under load. ``patient``: not before all is well."""
    chaos, over = Chaos(arrived=origin.arrived), asyncio.Event()
    clients = Clients(cluster.ports, cluster.tls())
    load = Load(clients, sorted(cluster.ports), workers, origin.port, chaos, seed)
    loading = asyncio.create_task(load.run(rps, over))
    try:
        await asyncio.sleep(every_s)  # everybody is warm
        for address in addresses:
            next_s = time.monotonic() + every_s
            if patient:
                await all_is_well(cluster)
            chaos.killed.append(await kill(cluster, address))
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))
    finally:
        over.set()
        await loading
        clients.close()
    return chaos


async def measure(servers: int, seconds: float, rps: float, every_s: float, seed: int, *, patient: bool) -> Chaos:
    """A cluster of its own, and a storm on it."""
    workers = 4
    async with CountingOrigin() as origin:
        allow = ("--egress-allow", f"127.0.0.1:{origin.port}")
        running = local_cluster("--servers", str(servers), *allow)
        cluster = await asyncio.to_thread(running.__enter__)
        try:
            await asyncio.to_thread(deploy, cluster, workers)
            in_turn = itertools.cycle(victims(sorted(cluster.ports)))
            addresses = list(itertools.islice(in_turn, round(seconds / every_s)))
            return await storm(
                cluster,
                origin,
                workers=workers,
                rps=rps,
                every_s=every_s,
                addresses=addresses,
                seed=seed,
                patient=patient,
            )
        finally:
            await asyncio.to_thread(running.__exit__, None, None, None)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="What clients notice when roles are killed in turn.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--rps", type=float, default=100.0)
    parser.add_argument("--every", type=float, default=10.0)
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--patient", action="store_true")
    parser.add_argument("--failures", action="store_true", help="print each failure on stderr")
    wanted = parser.parse_args()
    chaos = asyncio.run(
        measure(wanted.servers, wanted.seconds, wanted.rps, wanted.every, wanted.seed, patient=wanted.patient)
    )
    if wanted.failures:
        for kind, failed in zip(("in flight", "otherwise"), chaos.failures(), strict=True):
            for one in failed:
                last = max((k for k in chaos.killed if k.at_s <= one.over_s), key=lambda k: k.at_s, default=None)
                print(kind, one, last and (last.address, round(one.sent_s - last.at_s, 3)), file=sys.stderr)
    print_result(chaos.figures(), as_json=wanted.json)


if __name__ == "__main__":
    main()
