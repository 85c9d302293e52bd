"""Complete servers in one process, without Ray: real hosts on real sockets, real roles, and peers that can be lost.

``CompleteServers`` wires roles as ``everwarm/cluster.py`` does. Its peers behave like actor handles in what matters: a
call goes on when its caller stops waiting, and what it raises arrives as ``PeerFailed``. A test puts a ``LostPeer`` or
a ``DelayedPeer`` in the place of one of them to make a race happen.
"""

import asyncio
import itertools
import math
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from host_process import HostProcess

from actors.admission import AdmissionLimits
from actors.bindings import NOTHING_BOUND, Bindings
from actors.control_plane import ControlPlane
from actors.cordon_keeper import NoHosts
from actors.cordons import cordon_of
from actors.deployer import Deployer
from actors.egress import EgressServer
from actors.egress_policy import EgressPolicy, parse_rule
from actors.exchange import WINDOW_BYTES_MAX, Ended, Request, RequestHead, Served
from actors.isolate_host import HostLimits, IsolateHost
from actors.link import Answer, BodySource, Links
from actors.peer import Calls, LocalPeers, Peer, PeerFailed, PeerLost
from actors.residency import ResidencyLimits
from actors.ring import worker_key
from actors.routing import RoutingLimits
from actors.server import Server
from actors.server_line import ServerLine
from actors.shard_server import ShardServer
from actors.view import decode_plain, encode_plain
from actors.worker import CORDON_DEFAULT, Limits, Plan
from actors.worker_names import user_worker
from isolates.artifact import ArtifactStore
from isolates.artifact import Compiled as Artifact
from isolates.compiler import compile_and_start
from isolates.conversation import BodyLost
from isolates.limits import IsolateLimits

#: Nobody is asked often enough for a copy: what goes home goes on going home.
NO_COPIES = RoutingLimits(idle_chance_max=1e-300, spread_cpu=math.inf, popular_per_s=math.inf, popular_cpu=math.inf)

WORKERS = Path(__file__).resolve().parents[1] / "workers"
ZIG = WORKERS / "zig"
#: Those that are checked in as components: the others are large, and built where they are deployed.
PLATFORM = tuple(WORKERS / "platform" / name for name in ("audit", "guard", "alice", "bob", "dispatcher"))
_REQUEST_NUMBERS = itertools.count(1)


# ------------------------------------------------------------------------------------------- requests and answers


def request(worker: str, path: str = "/", method: str = "GET", **fields: Any) -> Request:
    """A request with an id of its own and an empty body unless ``fields`` say otherwise."""
    head = RequestHead(method, "https", f"{worker}.localhost", path, ())
    return Request(f"r-{next(_REQUEST_NUMBERS)}", worker, head, "", **fields)


class Pieces:
    """A request body that comes in the given pieces, and counts what was taken. It may break off at its end."""

    def __init__(self, *pieces: bytes, breaks: bool = False) -> None:
        self._pieces = list(pieces)
        self._breaks = breaks
        self.read_bytes = 0

    async def read(self, bytes_max: int) -> bytes | None:
        if not self._pieces:
            if self._breaks:
                raise BodyLost
            return None
        piece = self._pieces.pop(0)
        if len(piece) > bytes_max:
            self._pieces.insert(0, piece[bytes_max:])
            piece = piece[:bytes_max]
        self.read_bytes += len(piece)
        return piece


class HeldBody:
    """A request body whose client sends nothing until ``go`` is set, and then its end."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.go = asyncio.Event()

    async def read(self, bytes_max: int) -> bytes | None:
        self.asked.set()
        await self.go.wait()
        return None


def upload(data: bytes) -> tuple[dict[str, Any], Pieces]:
    """The fields of a request with the body ``data``, and what the rest is read from."""
    first, rest = data[:WINDOW_BYTES_MAX], data[WINDOW_BYTES_MAX:]
    return {"body_first": first, "body_complete": not rest}, Pieces(rest) if rest else Pieces()


@dataclass(frozen=True)
class Got:
    """An answer, read to its end."""

    served: Served | None
    body: bytes
    whole: bool
    ended: Ended


async def collect(answer: Answer) -> Got:
    """Read an answer to its end."""
    served = await answer.served()
    pieces = []
    while (data := await answer.read()) is not None:
        pieces.append(data)
    ended = await answer.ended()
    return Got(served, b"".join(pieces), answer.whole, ended)


async def wait_until(condition: Callable[[], Awaitable[bool]], what: str, within_s: float = 10.0) -> None:
    """Wait for a condition of threads, which cannot tell an event loop; fails with ``what`` when it does not come."""
    until_s = time.monotonic() + within_s
    while not await condition():
        assert time.monotonic() < until_s, f"waited in vain: {what}"
        await asyncio.sleep(0.002)


# --------------------------------------------------------------------------------------------------------- peers


class RemotePeer:
    """A role as through an actor handle. ``failures`` collects what its methods raised: bugs, unless a test says so."""

    def __init__(self, address: str, calls: Calls, failures: list[BaseException]) -> None:
        self._address = address
        self._calls = calls
        self._failures = failures
        self._running: set[asyncio.Task[bytes]] = set()

    async def call(self, method: str, payload: bytes = b"") -> bytes:
        task = asyncio.ensure_future(self._calls[method](payload))
        self._running.add(task)
        task.add_done_callback(self._over)
        await asyncio.wait([task])  # which leaves the task alone when the caller is cancelled
        fault = task.exception()
        if fault is not None:
            raise PeerFailed(f"{self._address}.{method}: {fault!r}") from fault
        return task.result()

    def _over(self, task: "asyncio.Task[bytes]") -> None:
        self._running.discard(task)
        fault = None if task.cancelled() else task.exception()
        if fault is not None:
            self._failures.append(fault)

    @property
    def calls_under_way(self) -> int:
        return len(self._running)


class LostPeer:
    """Loses calls of one method: before they arrive, or ``after`` they were carried out."""

    def __init__(self, inner: Peer, method: str, *, delivered: bool | None, after: bool = False) -> None:
        assert not (after and delivered is False), "it was delivered"
        self._inner = inner
        self._method = method
        self._delivered = delivered
        self._after = after
        self.lost = 0

    async def call(self, method: str, payload: bytes = b"") -> bytes:
        if method != self._method:
            return await self._inner.call(method, payload)
        if self._after:
            await self._inner.call(method, payload)
        self.lost += 1
        raise PeerLost("a lost peer", delivered=self._delivered)


class DelayedPeer:
    """Holds calls of one method until ``go`` is set; ``arrived`` says that one is held. ``after``: holds its answer."""

    def __init__(self, inner: Peer, method: str, *, after: bool = False) -> None:
        self._inner = inner
        self._method = method
        self._after = after
        self.arrived = asyncio.Event()
        self.go = asyncio.Event()

    async def call(self, method: str, payload: bytes = b"") -> bytes:
        if method != self._method:
            return await self._inner.call(method, payload)
        answer = await self._inner.call(method, payload) if self._after else b""
        self.arrived.set()
        await self.go.wait()
        return answer if self._after else await self._inner.call(method, payload)


# ------------------------------------------------------------------------------------------------------ the servers


class Machine:
    """One server: its roles, and a driver's links to it.

    Its host is in this process, unless ``processes`` says how many processes of their own it has: those can be killed.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        sockets: Path,
        peers: LocalPeers,
        failures: list[BaseException],
        processes: int = 0,
        routing_limits: RoutingLimits | None = None,
        residency_limits: ResidencyLimits | None = None,
        sharding: bool = True,
        memory_bytes: int | None = None,
        egress_allow: tuple[str, ...] = (),
    ):
        self.name = name
        self.code = directory / name / "code"
        self.server_socket = sockets / f"{name}-server.sock"
        self.host_socket = sockets / f"{name}-host.sock"
        self.egress_socket = sockets / f"{name}-egress.sock"
        self._sockets, self._processes = sockets, processes
        self._residency_limits = residency_limits or ResidencyLimits()
        #: By cordon. Of those in processes of their own this is one that does not run.
        self.hosts = {CORDON_DEFAULT: self._host(CORDON_DEFAULT)}
        self.host = self.hosts[CORDON_DEFAULT]
        self.processes = self._host_processes(CORDON_DEFAULT)
        self.server = Server(
            name,
            host_sockets=self.sockets_of,
            code_directory=self.code,
            links=Links(),
            peers=peers,
            entropy=secrets.token_bytes,
            routing_limits=routing_limits,
            sharding=sharding,
            memory_bytes=memory_bytes,
        )
        self.shard = ShardServer(
            name,
            host_sockets=self.sockets_of,
            code_directory=self.code,
            links=Links(),
            peers=peers,
            limits=AdmissionLimits(),
        )
        self.egress = EgressServer(EgressPolicy(added=tuple(map(parse_rule, egress_allow))), nested=self.server.nested)
        self.links = Links()
        peers.known[f"{name}/server"] = RemotePeer(f"{name}/server", self.server.calls, failures)
        peers.known[f"{name}/shard"] = RemotePeer(f"{name}/shard", self.shard.calls, failures)

    def sockets_of(self, cordon: str) -> list[Path]:
        """Where this machine's hosts of a cordon listen, or would."""
        host = "host" if cordon == CORDON_DEFAULT else f"host-{cordon}"
        if self._processes:
            return [self._sockets / f"{self.name}-{host}-{i + 1}.sock" for i in range(self._processes)]
        return [self._sockets / f"{self.name}-{host}.sock"]

    def _host(self, cordon: str) -> IsolateHost:
        return IsolateHost(
            f"{self.name}/host",
            self.sockets_of(cordon)[0] if not self._processes else self.host_socket,
            self.code,
            server=self.name,
            tell_server=ServerLine(self.server_socket).tell,
            egress_socket=self.egress_socket,
            server_socket=self.server_socket,
            residency_limits=self._residency_limits,
            limits=HostLimits(),
            cordon=cordon,
        )

    def _host_processes(self, cordon: str) -> list[HostProcess]:
        sockets = self.sockets_of(cordon) if self._processes else []
        return [HostProcess(self.name, socket, self.code, self.server_socket, cordon) for socket in sockets]

    async def have_cordons(self, cordons: tuple[str, ...]) -> None:
        """Have hosts of these cordons, and of no others."""
        for cordon in set(self.hosts) - set(cordons):
            self.hosts.pop(cordon).stop()
            for process in [p for p in self.processes if p.cordon == cordon]:
                self.processes.remove(process)
                await asyncio.to_thread(process.kill)
        for cordon in set(cordons) - set(self.hosts):
            host = self.hosts[cordon] = self._host(cordon)
            processes = self._host_processes(cordon)
            if not processes:
                host.start()
            await asyncio.gather(*(asyncio.to_thread(process.start) for process in processes))
            self.processes += processes

    async def start(self) -> None:
        await self.server.start(self.server_socket)
        await self.egress.start(self.egress_socket)
        if not self.processes:
            self.host.start()
        await asyncio.gather(*(asyncio.to_thread(process.start) for process in self.processes))

    async def stop(self) -> None:
        self.links.close()
        await self.server.stop()
        await self.egress.stop()
        for host in self.hosts.values():
            host.stop()
        for process in self.processes:
            await asyncio.to_thread(process.kill)

    def process_of(self, version: str) -> "HostProcess":
        """The process that runs a version, as long as it lives."""
        known = self.server._keeper.view.workers.values()
        cordon = next(v.cordon for deployed in known for v in deployed.versions if v.version_id == version)
        socket = self.server._hosts.of(version, cordon)
        return next(process for process in self.processes if str(process.socket) == socket)

    async def ask(self, asked: Request, body: BodySource | None = None) -> Got:
        """A request through this machine's Server, as its ingress would send it, read to its end."""
        return await collect(await self.begin(asked, body))

    async def begin(self, asked: Request, body: BodySource | None = None) -> Answer:
        """The same, not read yet."""
        return await self.links.exchange(str(self.server_socket), asked, body or Pieces())

    async def sharded(self) -> dict[str, int]:
        """What the shard client of this machine counts."""
        counts: dict[str, int] = (await self.statistics())["sharded"]
        return counts

    async def statistics(self) -> dict[str, Any]:
        plain: dict[str, Any] = decode_plain(await self.server.statistics())
        return plain

    async def shard_statistics(self) -> dict[str, Any]:
        plain: dict[str, Any] = decode_plain(await self.shard.statistics())
        return plain

    async def configure(self, **wanted: Any) -> None:
        """Change the admission of this machine's ShardServer."""
        await self.shard.configure(encode_plain(wanted))

    def isolates(self) -> int:
        """Isolates that live on this machine."""
        return self.count("isolates")

    def count(self, what: str) -> int:
        """What the hosts of this machine count together."""
        return sum(int(str(host.statistics()[what])) for host in self.hosts.values())


class CompleteServers:
    """A cluster. ``seed``: a ControlPlane's directory with components that were compiled before (``compiled_zig``)."""

    def __init__(
        self,
        directory: Path,
        servers: int = 2,
        seed: Path | None = None,
        processes: int = 0,
        routing_limits: RoutingLimits | None = None,
        residency_limits: ResidencyLimits | None = None,
        preload: bool = False,
        sharding: bool = True,
        memory_bytes: int | None = None,
        egress_allow: tuple[str, ...] = (),
    ) -> None:
        if seed is not None:
            shutil.copytree(seed, directory / "control", copy_function=os.link)
        # A Unix socket's path is short, and a test's own directory has a long name.
        self._sockets = Path(tempfile.mkdtemp(prefix="ew-"))
        self.directory = directory
        self.failures: list[BaseException] = []
        self.cordons: tuple[str, ...] = (CORDON_DEFAULT,)
        #: Why the owner has no hosts for another cordon.
        self.no_hosts = ""
        self.peers = LocalPeers()
        self.control = ControlPlane(
            directory / "control",
            peers=self.peers,
            now_ms=lambda: time.time_ns() // 10**6,
            preload=preload,
            have_hosts=self.have_hosts,
        )
        self.peers.known["control"] = RemotePeer("control", self.control.calls, self.failures)
        self.machines = [
            Machine(
                f"server-{i + 1}",
                directory,
                self._sockets,
                self.peers,
                self.failures,
                processes,
                routing_limits,
                residency_limits,
                sharding,
                memory_bytes,
                egress_allow,
            )
            for i in range(servers)
        ]
        self._names = itertools.count(1)
        #: The time limit of the test, for whoever moves the clock.
        self.limit: asyncio.Timeout

    def __getitem__(self, number: int) -> Machine:
        """A machine by its number, from 1."""
        return self.machines[number - 1]

    async def __aenter__(self) -> "CompleteServers":
        for machine in self.machines:
            await self.add(machine)
        return self

    async def have_hosts(self, cordons: tuple[str, ...]) -> None:
        """Have every machine have hosts of these cordons, as the owner of a cluster does."""
        if self.no_hosts:
            raise NoHosts(self.no_hosts)
        self.cordons = cordons
        await asyncio.gather(*(machine.have_cordons(cordons) for machine in self.machines))

    async def add(self, machine: Machine) -> None:
        """Start a machine and let it join."""
        await machine.start()
        await machine.have_cordons(self.cordons)
        await self.control.join(encode_plain({"server": machine.name, "weight": 1}))
        await machine.server.sync()

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if fault is None:
                await self.settled()
                assert not self.failures, self.failures
        finally:
            for machine in self.machines:
                await machine.stop()
            self.control.close()
            shutil.rmtree(self._sockets)

    async def settled(self) -> None:
        """Everything lent came back, and nothing runs any more."""

        async def empty() -> bool:
            for machine in self.machines:
                server, shard = await machine.statistics(), await machine.shard_statistics()
                if server["lent_out"] or shard["lent_out"] or shard["in_flight"]:
                    return False
                if (
                    server["tails"]["flows"]
                    or server["nested"]["stages"]
                    or server["nested"]["lent_out"]
                    or machine.egress.statistics()["links"]
                ):
                    return False
                if machine.count("running") or machine.count("queued"):
                    return False
            calls = [peer.calls_under_way for peer in self.peers.known.values() if isinstance(peer, RemotePeer)]
            return not any(calls)

        await wait_until(empty, f"settled: {[(m.name, await m.statistics()) for m in self.machines]}")

    async def running(self, guests: int) -> None:
        """So many guests run."""

        async def run() -> bool:
            return sum(machine.count("running") for machine in self.machines) == guests

        await wait_until(run, f"{guests} guests run")

    async def deploy(
        self,
        name: str,
        component: bytes,
        bindings: Bindings = NOTHING_BOUND,
        routes: tuple[str, ...] = (),
        cordon: str = "",
        **limits: int,
    ) -> dict[str, Any]:
        """Deploy a component under ``name`` on the paid plan; the job as it ended."""
        asked = {
            "name": name, "plan": "paid", "limits": limits, "component": component, "author": "a test",
            "bindings": bindings.to_plain(), "routes": list(routes), "cordon": cordon,
        }  # fmt: skip
        begun = decode_plain(await self.control.deploy(encode_plain(asked)))
        job: dict[str, Any] = {}

        async def done() -> bool:
            job.update(decode_plain(await self.control.deploy_progress(encode_plain({"job": begun["job"]}))))
            return bool(job["done"])

        await wait_until(done, f"deployed {name}", within_s=60.0)
        return job

    async def deploy_at(
        self,
        home: int,
        zig: str,
        bindings: Bindings = NOTHING_BOUND,
        namespace: str = "",
        cordon: str = "",
        **limits: int,
    ) -> str:
        """Deploy an example worker under a name whose home is server ``home``; its name."""
        ring = self.machines[0].server._view.ring
        assert ring is not None
        names = (user_worker(namespace, f"{zig.replace('_', '-')}-{i}") for i in self._names)
        name = next(n for n in names if ring.home_of(worker_key(cordon_of(n, cordon), n)) == self[home].name)
        # Plenty, since a test's own threads and its garbage collection are charged to the guest that they meet.
        job = await self.deploy(name, component(zig), bindings, cordon=cordon, **{"cpu_ms": 10_000, **limits})
        assert job["error"] is None, job
        return name

    def version_of(self, worker: str) -> str:
        """The version that is deployed for a worker."""
        (version,) = self.machines[0].server._view.workers[worker].versions
        return version.version_id

    def jump(self, seconds: float) -> None:
        """Let the event loop's clock, which the roles look at, be ``seconds`` later."""
        loop = asyncio.get_running_loop()
        before, until = loop.time, self.limit.when()
        loop.time = lambda: before() + seconds  # type: ignore[method-assign]
        assert until is not None
        self.limit.reschedule(until + seconds)

    async def make_cold(self, number: int, worker: str) -> None:
        """Let the isolates of a worker go on one machine, and wait until its Server knows."""
        machine, version = self[number], self.version_of(worker)
        machine.host.desk.drop_version(version)

        async def known() -> bool:
            return not machine.server._warmth.is_warm(version) and version not in machine.server._client.refusals

        await wait_until(known, f"{machine.name} knows that {worker} is cold")

    def lose(self, role: str, method: str, *, delivered: bool | None, after: bool = False) -> LostPeer:
        """From now on, calls of ``method`` at ``role`` are lost."""
        lost = LostPeer(self.peers.known[role], method, delivered=delivered, after=after)
        self.peers.known[role] = lost
        return lost

    def delay(self, role: str, method: str, *, after: bool = False) -> DelayedPeer:
        """From now on, calls of ``method`` at ``role`` are held."""
        delayed = DelayedPeer(self.peers.known[role], method, after=after)
        self.peers.known[role] = delayed
        return delayed


def component(zig: str) -> bytes:
    """An example worker's component."""
    return (ZIG / zig / "worker.wasm").read_bytes()


@dataclass(frozen=True)
class Compiled:
    """The example workers, compiled: a directory that seeds a ControlPlane, and each worker's artifact."""

    directory: Path
    store: ArtifactStore
    workers: dict[str, Artifact]

    def install(self, store: ArtifactStore) -> None:
        """Put all of them into another store."""
        for compiled in self.workers.values():
            for piece in store.missing(compiled.pieces):
                store.install_piece(piece, self.store.piece_path(piece.source_digest).read_bytes())
            store.install(compiled)


def compiled_zig(directory: Path) -> Compiled:
    """Compile the example workers into a Deployer's directory, as its compile process does, but in this process: ten
    of them would begin ten times."""
    deployer, limits = Deployer(directory), Limits.for_plan(Plan.PAID)
    startup = IsolateLimits(
        startup_cpu_ms=limits.startup_cpu_ms,
        memory_soft_bytes=limits.memory_soft_bytes,
        memory_bytes_max=limits.memory_hard_bytes,
    )
    stored = {}
    for path in [*sorted(ZIG.glob("*/worker.wasm")), *(folder / "worker.wasm" for folder in PLATFORM)]:
        one = compile_and_start(path.read_bytes(), deployer.store_of_artifacts, startup)
        assert isinstance(one, Artifact), one
        shutil.copyfile(path, directory / "components" / f"{one.component_digest}.wasm")
        stored[path.parent.name] = one
    return Compiled(directory, deployer.store_of_artifacts, stored)


def seed_with(zig: Compiled, directory: Path, guest: bytes) -> Path:
    """The same with one guest more, in a new ``directory``: a compile process for each deploy of it takes a second."""
    shutil.copytree(zig.directory, directory, copy_function=os.link)
    compiled = compile_and_start(guest, Deployer(directory).store_of_artifacts, IsolateLimits())
    assert isinstance(compiled, Artifact), compiled
    (directory / "components" / f"{compiled.component_digest}.wasm").write_bytes(guest)
    return directory


#: What a test does with a cluster, and what plays it (``tests/actors/conftest.py``).
Scenario = Callable[[CompleteServers], Awaitable[None]]
Play = Callable[..., None]
