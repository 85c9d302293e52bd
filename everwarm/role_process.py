"""A process of the cluster: one role, called by method name with bytes. What it does is in the table of ``roles``.

A process may be a *standby*: it has imported everything and has no role, until it takes the place of one that died.
Starting Python, Ray and our modules takes seconds on a busy machine, a role some tenths of one.

The ControlPlane's process also keeps the *directory*: the handle of every role by its address, and what the cluster
says of itself to those who connect. Roles meet through it; a handle is exchanged once and then kept.
"""

import asyncio
import faulthandler
import gc
import logging
import os
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.call_line import CallLineServer, LineOffer, encode_offer
from actors.peer import OFFER, RayPeers
from actors.process_stat import ProcessStat, ran_ns
from everwarm.cluster_config import ClusterConfig
from everwarm.home import Home, Joined
from everwarm.order_book import OrderBook
from everwarm.roles import CONTROL, CONTROL_ROLE, ORDER, PROCESS_ID, ROLES, STAY, Started, World

#: The role that says on its machine that it is part of a cluster.
_SPEAKER = "server"
#: How often an event loop says that it turns.
_TURN_EVERY_S = 0.2


class RoleProcess:
    """A process of the cluster: one role, called by method name with bytes."""

    def __init__(self, role: str, server: str, config: ClusterConfig, control: Any, edge_port: int) -> None:
        self._role = ROLES[role.partition("-")[0]].named(role)  # host-2 is one more host
        self._server = server
        self._config = config
        self._control = control
        self._edge_port = edge_port
        self._directory: dict[str, Any] = {}
        self._peers = RayPeers(self._introduce)
        self._said = b""
        self._orders = OrderBook()
        self._started: Started | None = None
        self._lines: CallLineServer | None = None
        self._line_offer: LineOffer | None = None
        self._stopping = asyncio.Event()
        self._turned_s = time.monotonic()
        self._turning: asyncio.Task[None] | None = None

    async def become(self, role: str, server: str, config: ClusterConfig, control: list[Any], edge_port: int) -> None:
        """A standby takes a role. ``start`` is next. ``control``: a list of one, or of none for the ControlPlane."""
        self._role = ROLES[role.partition("-")[0]].named(role)
        self._server, self._config, self._edge_port = server, config, edge_port
        self._control = control[0] if control else None
        self._started = None

    async def meet(self, control: list[Any]) -> None:
        """The ControlPlane is another process from now on."""
        self._control = control[0]
        self._peers.forget(CONTROL)

    async def probe(self) -> float:
        """How many seconds ago the role's event loop last turned. For Ray's concurrency group ``probe``, which has a
        thread and a loop of its own: calls under way do not hold it up, however many and however slow."""
        return time.monotonic() - self._turned_s

    async def end(self, pid: int) -> None:
        """End another process of Ray's on this machine, which hangs and does not hear Ray. As ``probe``, it waits for
        nothing. A number that was used again, for a process of somebody else, is left alone."""
        stat = ProcessStat.of(pid)
        if stat is not None and stat.parent == os.getppid():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    async def ran_ns(self, pid: int) -> int:
        """How long the threads of another process of Ray's on this machine have run; 0 when there is none of the
        number. As ``probe``, it waits for nothing."""
        stat = ProcessStat.of(pid)
        return ran_ns(pid) if stat is not None and stat.parent == os.getppid() else 0

    async def _turn(self) -> None:
        while True:
            self._turned_s = time.monotonic()
            await asyncio.sleep(_TURN_EVERY_S)

    async def start(self) -> dict[str, object]:
        """Start the role. What it says of itself (an ingress: its port)."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
        logging.getLogger("httpx").setLevel(logging.WARNING)
        if not faulthandler.is_enabled():
            faulthandler.enable()  # its last words are in the crash report; before wasmtime's handlers, which go first
        if self._turning is None:
            self._turning = asyncio.create_task(self._turn())
        home = Home(Path(self._config.home)) if self._config.home else Home.open()
        config = self._config = replace(self._config, home=str(home.directory))
        peers = self._peers
        world = World(
            config, self._role.name, self._server, peers, home.sockets(), self._edge_port, peers.share,
            self._orders.put, peers.statistics,
        )  # fmt: skip
        self._started = await self._role.start(world)
        if self._started.direct and not _ray_uses_tls():  # what Ray is to encrypt must not go in the clear beside it
            direct = {name: self._started.calls[name] for name in self._started.direct}
            self._lines = CallLineServer(direct, heard_only=self._started.heard_only)
            self._line_offer = await self._lines.start(config.line_address)
        if config.ray_address and self._role.name == _SPEAKER:
            home.set_joined(Joined.here(config.ray_address, self._server))
        # What was imported until now, Ray's modules most of all, is never garbage. Without this a full collection
        # walks it for 40 ms, and charges that to whichever guest runs on the thread that it falls on.
        gc.collect()
        gc.freeze()
        return {"pid": os.getpid(), **self._started.info}

    async def call(self, method: str, payload: bytes) -> bytes:
        """Call one of the role's methods."""
        # Also a probe or an offer: a process that has no role yet is not back.
        assert self._started is not None, "called before it was started"
        if method == "probe":
            return b""
        if method == PROCESS_ID:
            return str(os.getpid()).encode()
        if method == OFFER:
            return encode_offer(self._line_offer)
        if method == STAY:
            await self._stopping.wait()
            return b""
        if method == ORDER:
            return await self._orders.put(payload)
        return await self._started.calls[method](payload)

    async def stop(self) -> None:
        """Stop the role; its process is ended by whoever asked."""
        self._stopping.set()
        if self._config.ray_address and self._role.name == _SPEAKER:
            Home(Path(self._config.home)).clear_joined()
        if self._started is not None:
            await self._started.stop()
        if self._lines is not None:
            await self._lines.stop()

    # The directory of handles, in the ControlPlane's process.

    async def register(self, address: str, handle: list[Any]) -> None:
        """A role can be met at ``address``. In a list, or Ray would wait for a handle as if it were a result."""
        self._directory[address] = handle[0]
        self._peers.forget(address)  # of a server that was here before, and came back as other processes

    async def forget(self, address: str) -> None:
        """The role at ``address`` is gone for good."""
        self._directory.pop(address, None)
        self._peers.forget(address)

    async def introduce(self, address: str) -> list[Any]:
        """The handle of the role at ``address``: a list of one, or of none."""
        found = self._directory.get(address)
        return [] if found is None else [found]

    async def say(self, said: bytes) -> None:
        """What the cluster says of itself from now on, to those who connect (``home.Running``)."""
        self._said = said

    async def said(self) -> bytes:
        """What the cluster says of itself; empty until it is ready."""
        return self._said

    async def next_order(self) -> tuple[int, bytes]:
        """What somebody wants of the owner: a number, and the order."""
        return await self._orders.take()

    async def ordered(self, number: int, answer: bytes) -> None:
        """What became of an order."""
        self._orders.answer(number, answer)

    async def _introduce(self, address: str) -> Any:
        if self._role == CONTROL_ROLE:
            return self._directory.get(address)
        if address == CONTROL:
            return self._control
        found = await self._control.introduce.remote(address)
        return found[0] if found else None


def _ray_uses_tls() -> bool:
    """As Ray itself reads it."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
