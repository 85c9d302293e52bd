"""The composition root: the table of actors, and how a cluster of them comes up and goes down.

Here, and nowhere else, plain role classes become Ray actors. Every process runs one ``RoleProcess``; what it does is
looked up in ``ROLES``. A role gets its world as arguments: sockets, peers, clocks, entropy. Actors meet through the
ControlPlane's process, which keeps the directory of handles; a handle is exchanged once and then kept.

``max_task_retries`` is 0 everywhere: Ray never repeats a call by itself, because a guest may have run.
"""

import asyncio
import gc
import logging
import os
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from actors.admission import AdmissionLimits
from actors.control_plane import ControlPlane
from actors.egress import EgressServer
from actors.egress_policy import EgressPolicy, parse_rule
from actors.isolate_host import IsolateHost
from actors.link import Links
from actors.peer import Calls, Peers, RayPeers
from actors.residency import ResidencyLimits
from actors.server import Server
from actors.server_line import ServerLine
from actors.shard_server import ShardServer
from actors.view import decode_plain, encode_plain
from everwarm.home import Home
from ingress.authority import LocalAuthority
from ingress.ingress import Ingress
from tracing.export import OtlpExporter

NAMESPACE = "everwarm"
CONTROL = "control"
#: Calls under way in one role's process. Our own admission refuses long before; beyond this Ray would queue unseen.
_CALLS_MAX = 10_000
_START_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """A cluster on one machine. Nothing listens beyond ``address``, which is loopback unless configured."""

    home: str
    servers: int = 3
    address: str = "127.0.0.1"
    port: int = 8443  # of the first server; the others follow
    otlp_url: str = ""
    otlp_headers: dict[str, str] = field(default_factory=dict)
    certificates: str = ""
    memory_bytes_max: int = 2 << 30  # of one host's isolates
    in_flight_max: int = AdmissionLimits().in_flight_max
    hosts: int = 1  # processes of isolates of each server; a crash of one leaves the others
    #: What guests may reach beyond public addresses on ports 80 and 443, as ``egress_policy.parse_rule`` reads it.
    egress_allow: tuple[str, ...] = ()

    def server_names(self) -> list[str]:
        """``server-1``, ``server-2``, ..."""
        return [f"server-{i + 1}" for i in range(self.servers)]

    def host_names(self) -> list[str]:
        """The roles of a server's hosts: ``host``, ``host-2``, ..."""
        return ["host", *(f"host-{i + 1}" for i in range(1, self.hosts))]


@dataclass(slots=True)
class Started:
    """A role that runs: what others may call, and how it stops."""

    calls: Calls
    stop: Callable[[], Awaitable[None]]
    info: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class World:
    """What a role is given."""

    config: ClusterConfig
    role: str
    server: str
    peers: Peers
    sockets: Path

    def host_sockets(self) -> list[Path]:
        """The sockets of this machine's hosts."""
        return [self.socket(name) for name in self.config.host_names()]

    def socket(self, role: str) -> Path:
        """The socket of a role on this machine."""
        return self.sockets / f"{self.server}-{role}.sock"

    @property
    def code(self) -> Path:
        """This machine's compiled code."""
        return Home(Path(self.config.home)).code(self.server)


# ------------------------------------------------------------------------------------------------ how roles start


def _ids() -> Callable[[int], bytes]:
    """A source of ids: different everywhere, and not secret, so without a system call for each."""
    return random.Random(secrets.randbits(128)).randbytes


async def _start_control(world: World) -> Started:
    control = ControlPlane(
        Home(Path(world.config.home)).control, peers=world.peers, now_ms=lambda: int(time.time() * 1000)
    )

    async def stop() -> None:
        control.close()

    return Started(control.calls, stop)


async def _start_host(world: World) -> Started:
    host = IsolateHost(
        f"{world.server}/{world.role}",
        world.socket(world.role),
        world.code,
        server=world.server,
        tell_server=ServerLine(world.socket("server")).tell,
        egress_socket=world.socket("egress"),
        residency_limits=ResidencyLimits(memory_bytes_max=world.config.memory_bytes_max),
    )
    host.start()

    async def statistics(payload: bytes) -> bytes:
        return encode_plain(host.statistics())

    async def stop() -> None:
        host.stop()

    return Started({"statistics": statistics}, stop)


def _egress_policy(config: ClusterConfig) -> EgressPolicy:
    """What guests may reach. Never the cluster's own edge: a request would come back as a client's."""
    address = f"[{config.address}]" if ":" in config.address else config.address
    own = [f"{address}:{config.port + i}" for i in range(config.servers)] if config.port else []
    return EgressPolicy(
        added=tuple(parse_rule(text) for text in config.egress_allow), own=tuple(parse_rule(text) for text in own)
    )


async def _start_server(world: World) -> Started:
    config = world.config
    exporter = OtlpExporter(config.otlp_url, headers=config.otlp_headers) if config.otlp_url else None
    server = Server(
        world.server,
        host_sockets=world.host_sockets(),
        code_directory=world.code,
        links=Links(),
        peers=world.peers,
        entropy=_ids(),
        exporter=exporter,
    )
    world.socket("server").unlink(missing_ok=True)
    await server.start(world.socket("server"))
    egress = EgressServer(_egress_policy(config))
    world.socket("egress").unlink(missing_ok=True)
    await egress.start(world.socket("egress"))

    async def sync(payload: bytes) -> bytes:
        await server.sync()
        return b""

    async def statistics(payload: bytes) -> bytes:
        return encode_plain({**decode_plain(await server.statistics()), "egress": egress.statistics()})

    async def stop() -> None:
        await server.stop()
        await egress.stop()

    return Started({**server.calls, "sync": sync, "statistics": statistics}, stop)


async def _start_shard(world: World) -> Started:
    shard = ShardServer(
        world.server,
        host_sockets=world.host_sockets(),
        code_directory=world.code,
        links=Links(),
        peers=world.peers,
        limits=AdmissionLimits(in_flight_max=world.config.in_flight_max),
    )

    async def stop() -> None:
        """Its requests end with their links."""

    return Started(shard.calls, stop)


async def _start_ingress(world: World) -> Started:
    config = world.config
    index = config.server_names().index(world.server)
    authority = LocalAuthority.open(Home(Path(config.home)).authority)
    ingress = Ingress(
        world.server,
        address=config.address,
        port=config.port + index if config.port else 0,
        server_socket=world.socket("server"),
        links=Links(),
        authority=authority,
        certificates=Path(config.certificates) if config.certificates else None,
        entropy=_ids(),
    )
    port = await ingress.start()

    async def statistics(payload: bytes) -> bytes:
        return encode_plain(await ingress.statistics())

    return Started({"statistics": statistics}, ingress.stop, {"port": port})


@dataclass(frozen=True, slots=True)
class Role:
    """One line of the table of actors."""

    name: str
    start: Callable[[World], Awaitable[Started]]
    max_restarts: int = 0

    def named(self, name: str) -> "Role":
        """One more process of this role, under a name of its own that begins with the role's."""
        return replace(self, name=name)


#: What every machine runs, in the order in which it starts. Restarts come with supervision; until then a lost role is
#: seen, not hidden.
MACHINE_ROLES = (
    Role("server", _start_server),
    Role("host", _start_host),
    Role("shard", _start_shard),
    Role("ingress", _start_ingress),
)
CONTROL_ROLE = Role(CONTROL, _start_control)
_ROLES = {role.name: role for role in (*MACHINE_ROLES, CONTROL_ROLE)}


def _machine_roles(config: ClusterConfig) -> list[Role]:
    """What every machine runs with this configuration: as in the table, with as many hosts as are wanted."""
    more = [_ROLES["host"].named(name) for name in config.host_names()[1:]]
    return [*MACHINE_ROLES, *more]


class RoleProcess:
    """A process of the cluster: one role, called by method name with bytes."""

    def __init__(self, role: str, server: str, config: ClusterConfig, control: Any) -> None:
        self._role = _ROLES[role.partition("-")[0]].named(role)  # host-2 is one more host
        self._server = server
        self._config = config
        self._control = control
        self._directory: dict[str, Any] = {}
        self._started: Started | None = None

    async def start(self) -> dict[str, object]:
        """Start the role. What it says of itself (an ingress: its port)."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
        logging.getLogger("httpx").setLevel(logging.WARNING)
        home = Home(Path(self._config.home))
        world = World(self._config, self._role.name, self._server, RayPeers(self._introduce), home.sockets())
        self._started = await self._role.start(world)
        # What was imported until now, Ray's modules most of all, is never garbage. Without this a full collection
        # walks it for 40 ms, and charges that to whichever guest runs on the thread that it falls on.
        gc.collect()
        gc.freeze()
        return {"pid": os.getpid(), **self._started.info}

    async def call(self, method: str, payload: bytes) -> bytes:
        """Call one of the role's methods."""
        if method == "probe":
            return b""
        assert self._started is not None, "called before it was started"
        return await self._started.calls[method](payload)

    async def stop(self) -> None:
        """Stop the role; its process is ended by whoever asked."""
        if self._started is not None:
            await self._started.stop()

    # The directory of handles, in the ControlPlane's process.

    async def register(self, address: str, handle: list[Any]) -> None:
        """A role can be met at ``address``. In a list, or Ray would wait for a handle as if it were a result."""
        self._directory[address] = handle[0]

    async def introduce(self, address: str) -> list[Any]:
        """The handle of the role at ``address``: a list of one, or of none."""
        found = self._directory.get(address)
        return [] if found is None else [found]

    async def _introduce(self, address: str) -> Any:
        if self._role == CONTROL_ROLE:
            return self._directory.get(address)
        if address == CONTROL:
            return self._control
        found = await self._control.introduce.remote(address)
        return found[0] if found else None


# ------------------------------------------------------------------------------------------------- Ray, and no more


def _read_environment() -> None:
    """Ray reads its environment (authentication among it) once, when it is imported, and its token at the first use; a
    driver may have done both for another cluster. Ray itself refreshes them by these calls."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _stay_on_loopback() -> None:
    """Ray replaces 127.0.0.1 by the machine's own address, and then listens for its whole network, except where this
    switch of its own says that the machine is a desktop."""
    ray_constants.ENABLE_RAY_CLUSTER = False


def start_ray() -> None:
    """Start a Ray of our own on this machine, on loopback, which ends with this process."""
    _read_environment()
    _stay_on_loopback()
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        configure_logging=False,
        namespace=NAMESPACE,
    )


def stop_ray() -> None:
    """End the Ray that ``start_ray`` started."""
    ray.shutdown()


def ray_address() -> str:
    """Where drivers reach this Ray."""
    return str(ray.get_runtime_context().gcs_address)


def attach(address: str) -> tuple[Any, Callable[[], None]]:
    """Join the Ray at ``address`` as a driver: the ControlPlane's handle, and how to leave again.

    A program that has initialised Ray itself stays connected when it leaves.
    """
    ours = not ray.is_initialized()
    if ours:
        _read_environment()
        if address.startswith("127."):
            _stay_on_loopback()
        ray.init(
            address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR", configure_logging=False
        )
    # Named once, here: everything else is met through it.
    return ray.get_actor(CONTROL, namespace=NAMESPACE), ray.shutdown if ours else lambda: None


class StartFailed(Exception):
    """The cluster did not come up; the message says why, in one line."""


class Cluster:
    """The actors of a cluster that was started by this process."""

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self._process = ray.remote(num_cpus=0, max_concurrency=_CALLS_MAX, max_task_retries=0)(RoleProcess)
        self._actors: dict[str, Any] = {}
        self.ports: dict[str, int] = {}
        self.pids: dict[str, int] = {}

    def _make(self, role: Role, server: str, control: Any) -> Any:
        address = CONTROL if role is CONTROL_ROLE else f"{server}/{role.name}"
        options = {"name": address, "namespace": NAMESPACE, "max_restarts": role.max_restarts}
        actor = self._process.options(**options).remote(role.name, server, self.config, control)
        self._actors[address] = actor
        return actor

    async def start(self, progress: Callable[[str], None]) -> None:
        """Start all roles. ``StartFailed`` says what stopped it; what had started is left to ``stop``."""
        progress(f"starting {self.config.servers} servers")
        control = self._make(CONTROL_ROLE, "", None)
        for server in self.config.server_names():
            for role in _machine_roles(self.config):
                self._make(role, server, control)
        await self._start(CONTROL)
        await asyncio.gather(*(control.register.remote(address, [actor]) for address, actor in self._actors.items()))
        await asyncio.gather(*(self._start_machine(server) for server in self.config.server_names()))

    async def _start_machine(self, server: str) -> None:
        await self._start(f"{server}/server")
        hosts = [self._start(f"{server}/{name}") for name in self.config.host_names()]
        await asyncio.gather(*hosts, self._start(f"{server}/shard"))
        await self._actors[CONTROL].call.remote("join", encode_plain({"server": server, "weight": 1}))
        await self._actors[f"{server}/server"].call.remote("sync", b"")
        info = await self._start(f"{server}/ingress")
        self.ports[server] = int(str(info["port"]))

    async def _start(self, address: str) -> dict[str, object]:
        try:
            info: dict[str, object] = await asyncio.wait_for(self._actors[address].start.remote(), _START_TIMEOUT_S)
        except ray.exceptions.RayTaskError as failed:
            raise StartFailed(_reason(address, failed.cause, self.config)) from failed
        except (ray.exceptions.RayError, TimeoutError) as failed:
            raise StartFailed(f"{address} did not start: {failed}") from failed
        self.pids[address] = int(str(info["pid"]))
        return info

    async def stop(self) -> None:
        """Stop all roles, the edge first."""
        for role in ("ingress", "shard", "server", *self.config.host_names(), CONTROL):
            stopping = [a.stop.remote() for address, a in self._actors.items() if address.endswith(role)]
            await asyncio.wait_for(asyncio.gather(*stopping, return_exceptions=True), 10.0)


def _reason(address: str, cause: BaseException, config: ClusterConfig) -> str:
    if isinstance(cause, OSError) and cause.errno is not None and address.endswith("/ingress"):
        index = config.server_names().index(address.removesuffix("/ingress"))
        return (
            f"Port {config.port + index} on {config.address} cannot be used: {cause.strerror or cause}."
            " Choose another with --port."
        )
    return f"{address} did not start: {type(cause).__name__}: {cause}"
