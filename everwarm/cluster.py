"""The composition root: how a cluster of actors comes up and goes down, and how its servers come and go.

Here, and nowhere else, plain role classes become Ray actors. Every process runs one ``RoleProcess``; what it does is
looked up in the table of ``roles``. Actors meet through the ControlPlane's process, which keeps the directory of
handles; a handle is exchanged once and then kept.

``max_task_retries`` is 0 everywhere: Ray never repeats a call by itself, because a guest may have run.
"""

import asyncio
import gc
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from actors.call_line import CallLineServer, LineOffer, encode_offer
from actors.membership import State
from actors.peer import OFFER, RayPeers
from actors.view import decode_plain, encode_plain
from everwarm.home import Home
from everwarm.roles import (
    CONTROL,
    CONTROL_ROLE,
    FINISH_S_MAX,
    ROLES,
    SERVERS_MAX,
    STAY,
    ClusterConfig,
    Role,
    Started,
    World,
    machine_roles,
)

NAMESPACE = "everwarm"
#: Calls under way in one role's process. Our own admission refuses long before; beyond this Ray would queue unseen.
_CALLS_MAX = 10_000
_START_TIMEOUT_S = 60.0
#: Until a server has left: its workers are warmed elsewhere, what runs there finishes, and some.
_LEAVE_S_MAX = 90.0
#: Until a server has joined: all code is on its disk, a change of the ring that was under way is over, and its own is.
_JOIN_S_MAX = 150.0


class RoleProcess:
    """A process of the cluster: one role, called by method name with bytes."""

    def __init__(self, role: str, server: str, config: ClusterConfig, control: Any, edge_port: int) -> None:
        self._role = ROLES[role.partition("-")[0]].named(role)  # host-2 is one more host
        self._server = server
        self._config = config
        self._control = control
        self._edge_port = edge_port
        self._directory: dict[str, Any] = {}
        self._started: Started | None = None
        self._lines: CallLineServer | None = None
        self._line_offer: LineOffer | None = None
        self._stopping = asyncio.Event()

    async def start(self) -> dict[str, object]:
        """Start the role. What it says of itself (an ingress: its port)."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
        logging.getLogger("httpx").setLevel(logging.WARNING)
        home = Home(Path(self._config.home))
        peers = RayPeers(self._introduce)
        world = World(
            self._config, self._role.name, self._server, peers, home.sockets(), self._edge_port, peers.statistics
        )
        self._started = await self._role.start(world)
        if self._started.direct and not _ray_uses_tls():  # what Ray is to encrypt must not go in the clear beside it
            direct = {name: self._started.calls[name] for name in self._started.direct}
            self._lines = CallLineServer(direct, heard_only=self._started.heard_only)
            self._line_offer = await self._lines.start(self._config.line_address)
        # What was imported until now, Ray's modules most of all, is never garbage. Without this a full collection
        # walks it for 40 ms, and charges that to whichever guest runs on the thread that it falls on.
        gc.collect()
        gc.freeze()
        return {"pid": os.getpid(), **self._started.info}

    async def call(self, method: str, payload: bytes) -> bytes:
        """Call one of the role's methods."""
        if method == "probe":
            return b""
        if method == OFFER:
            return encode_offer(self._line_offer)
        if method == STAY:
            await self._stopping.wait()
            return b""
        assert self._started is not None, "called before it was started"
        return await self._started.calls[method](payload)

    async def stop(self) -> None:
        """Stop the role; its process is ended by whoever asked."""
        self._stopping.set()
        if self._started is not None:
            await self._started.stop()
        if self._lines is not None:
            await self._lines.stop()

    # The directory of handles, in the ControlPlane's process.

    async def register(self, address: str, handle: list[Any]) -> None:
        """A role can be met at ``address``. In a list, or Ray would wait for a handle as if it were a result."""
        self._directory[address] = handle[0]

    async def forget(self, address: str) -> None:
        """The role at ``address`` is gone for good."""
        self._directory.pop(address, None)

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


def _ray_uses_tls() -> bool:
    """As Ray itself reads it."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


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
        self._last_number = config.servers
        self._edge_ports = {
            server: config.port + i if config.port else 0 for i, server in enumerate(config.server_names())
        }
        self.ports: dict[str, int] = {}
        self.pids: dict[str, int] = {}

    def _make(self, role: Role, server: str, control: Any) -> Any:
        address = CONTROL if role is CONTROL_ROLE else f"{server}/{role.name}"
        options = {"name": address, "namespace": NAMESPACE, "max_restarts": role.max_restarts}
        edge_port = self._edge_ports.get(server, 0)
        actor = self._process.options(**options).remote(role.name, server, self.config, control, edge_port)
        self._actors[address] = actor
        return actor

    def _of(self, server: str) -> list[str]:
        """The addresses of a server's roles."""
        return [address for address in self._actors if address.startswith(f"{server}/")]

    async def start(self, progress: Callable[[str], None]) -> None:
        """Start all roles. ``StartFailed`` says what stopped it; what had started is left to ``stop``."""
        progress(f"starting {self.config.servers} servers")
        control = self._make(CONTROL_ROLE, "", None)
        for server in self.config.server_names():
            for role in machine_roles(self.config):
                self._make(role, server, control)
        await self._start(CONTROL)
        await asyncio.gather(*(control.register.remote(address, [actor]) for address, actor in self._actors.items()))
        await asyncio.gather(*(self._start_machine(server) for server in self.config.server_names()))

    async def add(self, progress: Callable[[str], None]) -> str:
        """Start one more server and let it join; its name. ``StartFailed``: then nothing of it is left."""
        if len(self._edge_ports) >= SERVERS_MAX:
            raise StartFailed(f"{SERVERS_MAX} servers are the most on one machine.")
        # A name is never used again: others keep the handles that they once had by it.
        server = f"server-{self._last_number + 1}"
        self._last_number += 1
        config, taken = self.config, set(self._edge_ports.values())
        self._edge_ports[server] = (
            next(p for p in range(config.port, config.port + SERVERS_MAX) if p not in taken) if config.port else 0
        )
        progress(f"starting {server}")
        control = self._actors[CONTROL]
        for role in machine_roles(config):
            self._make(role, server, control)
        try:
            await asyncio.gather(*(control.register.remote(a, [self._actors[a]]) for a in self._of(server)))
            await self._start_machine(server)
        except BaseException:
            await self._end(server)
            raise
        return server

    async def remove(self, server: str, progress: Callable[[str], None]) -> None:
        """Have a server leave: its workers are warm elsewhere and what runs has finished, then its processes end.

        ``StartFailed`` when there is no such server, or no other.
        """
        if server not in self._edge_ports:
            raise StartFailed(f"There is no server {server}; there are {', '.join(sorted(self._edge_ports))}.")
        if len(self._edge_ports) == 1:
            raise StartFailed(f"{server} is the last one. End the cluster with: everwarm down")
        progress(f"{server} leaves")
        try:
            leaving = self._actors[CONTROL].call.remote("leave", encode_plain({"server": server}))
            await asyncio.wait_for(leaving, _LEAVE_S_MAX)
            progress(f"{server} finishes what its clients asked for")
            drain = self._actors[f"{server}/ingress"].call.remote("drain", b"")
            await asyncio.wait_for(drain, FINISH_S_MAX + 5.0)
        except (ray.exceptions.RayError, TimeoutError) as failed:
            # It is removed all the same: one that hangs or died is all the more to go.
            progress(f"{server} did not leave in peace: {type(failed).__name__}")
        await self._end(server)
        # Code, which nobody else reads; a server of another name gets its own.
        await asyncio.to_thread(shutil.rmtree, Home(Path(self.config.home)).code(server).parent, ignore_errors=True)

    async def _end(self, server: str) -> None:
        """Stop the roles of a server, the edge first, and end their processes."""
        for role in ("ingress", "shard", "server", *self.config.host_names()):
            actor = self._actors.pop(f"{server}/{role}", None)
            if actor is None:
                continue
            with suppress(ray.exceptions.RayError, TimeoutError):
                await asyncio.wait_for(actor.stop.remote(), 10.0)
            ray.kill(actor, no_restart=True)
            with suppress(ray.exceptions.RayError):  # without a ControlPlane nobody is introduced to anybody
                await self._actors[CONTROL].forget.remote(f"{server}/{role}")
            self.pids.pop(f"{server}/{role}", None)
        self._edge_ports.pop(server, None)
        self.ports.pop(server, None)

    async def _start_machine(self, server: str) -> None:
        await self._start(f"{server}/server")
        hosts = [self._start(f"{server}/{name}") for name in self.config.host_names()]
        await asyncio.gather(*hosts, self._start(f"{server}/shard"))
        joining = self._actors[f"{server}/server"].call.remote("begin", b"")
        try:
            joined = decode_plain(await asyncio.wait_for(joining, _JOIN_S_MAX))
        except (ray.exceptions.RayError, TimeoutError) as failed:
            raise StartFailed(f"{server} did not join: {type(failed).__name__}.") from failed
        if joined["state"] != State.MEMBER.value:
            raise StartFailed(f"{server} did not join: it is {joined['state']}.")
        info = await self._start(f"{server}/ingress")
        self.ports[server] = int(str(info["port"]))

    async def _start(self, address: str) -> dict[str, object]:
        try:
            info: dict[str, object] = await asyncio.wait_for(self._actors[address].start.remote(), _START_TIMEOUT_S)
        except ray.exceptions.RayTaskError as failed:
            raise StartFailed(_reason(address, failed.cause, self.config, self._edge_ports)) from failed
        except (ray.exceptions.RayError, TimeoutError) as failed:
            raise StartFailed(f"{address} did not start: {failed}") from failed
        self.pids[address] = int(str(info["pid"]))
        return info

    async def stop(self) -> None:
        """Stop all roles, the edge first."""
        for role in ("ingress", "shard", "server", *self.config.host_names(), CONTROL):
            stopping = [a.stop.remote() for address, a in self._actors.items() if address.endswith(role)]
            await asyncio.wait_for(asyncio.gather(*stopping, return_exceptions=True), 10.0)


def _reason(address: str, cause: BaseException, config: ClusterConfig, edge_ports: Mapping[str, int]) -> str:
    if isinstance(cause, OSError) and cause.errno is not None and address.endswith("/ingress"):
        return (
            f"Port {edge_ports[address.removesuffix('/ingress')]} on {config.address} cannot be used:"
            f" {cause.strerror or cause}. Choose another with --port."
        )
    return f"{address} did not start: {type(cause).__name__}: {cause}"
