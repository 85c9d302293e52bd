"""The composition root: how a cluster of actors comes up and goes down, and how its servers come and go.

Here, and nowhere else, plain role classes become Ray actors. Every process runs one ``RoleProcess``. Where servers are
is decided elsewhere: ``one_machine`` puts all of them on this one, ``node_keeper`` one on each of Ray's nodes. Actors
meet through the ControlPlane's process, which keeps the directory of handles.

On a Ray of our own the actors end with the process that started them. On a Ray that others started they are *detached*:
what this process does is bring and end them, and while it is gone they serve.

``max_task_retries`` is 0 everywhere: Ray never repeats a call by itself, because a guest may have run.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.membership import State
from actors.process_stat import ran_ns
from actors.supervision import SupervisionLimits
from actors.view import decode_plain, encode_plain
from actors.worker import CORDON_DEFAULT
from everwarm.cluster_config import ClusterConfig
from everwarm.ray_driver import NAMESPACE, has_control, order_of_ending, own_node, say_process
from everwarm.role_process import RoleProcess
from everwarm.roles import CONTROL, CONTROL_ROLE, FINISH_S_MAX, ROLES, STANDBY_ROLE, STAY, Role, machine_roles
from everwarm.standbys import NoProcess, Standbys

_log = logging.getLogger("everwarm.cluster")

#: Calls under way in one role's process. Our own admission refuses long before; beyond this Ray would queue unseen.
_CALLS_MAX = 10_000
_START_TIMEOUT_S = 60.0
#: Probes have a thread of their own in each process, and one is under way at a time, or one that came late.
_PROBE_GROUP, _PROBES_MAX = "probe", 4
#: How long after the way to a process broke it is looked for again.
_STAY_AGAIN_S = 0.5
#: Who does not hear for so long of a role that has another process hears of it later.
_MEET_S_MAX = 2.0
#: The roles of a server that other machines call, and that call others.
_CALLED = ("server", "shard")
#: A role that is stopped gets so long before its process is ended.
_STOP_S_MAX = 10.0
#: Servers that get hosts of another cordon at once: each start is work for Ray, as when servers come.
_SERVERS_AT_ONCE = 32
#: Until a server is out of the ring: its workers are warmed elsewhere, what it runs for others finishes, and some.
_LEAVE_S_MAX = 90.0
#: Until a server has joined: all code is on its disk, a change of the ring that was under way is over, and its own is.
_JOIN_S_MAX = 150.0


class Unanswered(Exception):
    """A probe was not answered; the message says by whom."""


class StartFailed(Exception):
    """The cluster, or a server, did not come up; the message says why, in one line."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server's processes run, and what they are told."""

    config: ClusterConfig
    edge_port: int
    node: str = ""  # Ray's id of it; empty where there is only one


class Cluster:
    """The actors of a cluster: its ControlPlane, and servers by name."""

    def __init__(self, control: Place) -> None:
        """``control``: where the ControlPlane is."""
        self._process = ray.remote(
            num_cpus=0, max_concurrency=_CALLS_MAX, max_task_retries=0, concurrency_groups={_PROBE_GROUP: _PROBES_MAX}
        )(RoleProcess)
        self._control = control
        self._actors: dict[str, Any] = {}
        self._places: dict[str, Place] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._joining: dict[str, asyncio.Task[None]] = {}
        self._standbys = Standbys[Place](lambda name, place: self._make_process(name, STANDBY_ROLE, "", place, None))
        self._cordons: tuple[str, ...] = (CORDON_DEFAULT,)
        self._coming: set[str] = set()  # hosts that are about to have their first process
        self._changing_cordons = asyncio.Lock()
        self._said = b""
        #: Hears of the address of each role whose process is gone, and that nobody ended.
        self.on_role_lost: Callable[[str], None] = lambda address: _log.error("%s is gone", address)
        self.ports: dict[str, int] = {}
        self.pids: dict[str, int] = {}

    @property
    def is_ours(self) -> bool:
        """Whether the actors of this Ray are this process's to end: once its ControlPlane has been made."""
        return CONTROL in self._actors

    @property
    def addresses(self) -> dict[str, str]:
        """Where the edge of each server listens that has one, beside its port in ``ports``."""
        return {server: self._places[server].config.address for server in self.ports}

    @property
    def places(self) -> dict[str, Place]:
        """Where each server is, also one that is starting."""
        return dict(self._places)

    def _make(self, role: Role, server: str, control: Any) -> Any:
        address = CONTROL if role is CONTROL_ROLE else f"{server}/{role.name}"
        actor = self._make_process(address, role, server, self._place(address), control)
        self._actors[address] = actor
        return actor

    def _make_process(self, name: str, role: Role, server: str, place: Place, control: Any) -> Any:
        options: dict[str, Any] = {"name": name, "namespace": NAMESPACE, "max_restarts": role.max_restarts}
        if place.node:
            # Not soft: Ray would put it elsewhere, beside another server, and even while the node lives.
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(place.node, soft=False)
            options["lifetime"] = "detached"
        return self._process.options(**options).remote(role.name, server, place.config, control, place.edge_port)

    def _place(self, address: str) -> Place:
        return self._control if address == CONTROL else self._places[address.partition("/")[0]]

    def _of(self, server: str) -> list[str]:
        """The addresses of a server's roles."""
        return [address for address in self._actors if address.startswith(f"{server}/")]

    async def start_control(self) -> None:
        """Start the ControlPlane. ``StartFailed`` says what stopped it."""
        try:
            if await asyncio.to_thread(has_control):
                raise ValueError("the ControlPlane has another name by now")
            self._make(CONTROL_ROLE, "", None)
        except ValueError as taken:
            raise StartFailed("A cluster runs on this Ray already. End it with: everwarm down") from taken
        await asyncio.to_thread(say_process, CONTROL, CONTROL)
        await self._start(CONTROL)
        await self._actors[CONTROL].register.remote(CONTROL, [self._actors[CONTROL]])
        self._cordons = tuple(decode_plain(await self._actors[CONTROL].call.remote("cordons", b"")))

    async def bring(self, server: str, place: Place) -> None:
        """Start a server and let it join. ``StartFailed`` says what stopped it; then nothing of it is left."""
        self._places[server] = place
        control = self._actors[CONTROL]
        try:
            try:
                for role in machine_roles(place.config, self._cordons):
                    self._make(role, server, control)
            except ValueError as taken:
                raise StartFailed(f"Processes of an earlier {server} have not ended yet.") from taken
            await asyncio.gather(*(control.register.remote(a, [self._actors[a]]) for a in self._of(server)))
            await self._start_server(server, [a for a in self._of(server) if _is_host(a)])
        except ray.exceptions.RayError as broken:
            await self._end(server)
            raise StartFailed(f"{server} did not start: {type(broken).__name__}.") from broken
        except asyncio.CancelledError:
            await self._end(server, stop=False)  # nobody has the time to hear what each of them says
            raise
        except BaseException:
            await self._end(server)
            raise

    async def remove(self, server: str, progress: Callable[[str], None]) -> None:
        """Have a server leave: its workers are warm elsewhere and what runs has finished, then its processes end.

        ``StartFailed`` when there is no such server, or no other.
        """
        if server not in self._places:
            raise StartFailed(f"There is no server {server}; there are {', '.join(sorted(self._places))}.")
        if len(self._places) == 1:
            raise StartFailed(f"{server} is the last one. End the cluster with: everwarm down")
        progress(f"{server} leaves")
        try:
            leaving = self._actors[CONTROL].call.remote("leave", encode_plain({"server": server}))
            await asyncio.wait_for(leaving, _LEAVE_S_MAX)
            progress(f"{server} finishes what its clients asked for")
            drain = self._actors[f"{server}/ingress"].call.remote("drain", b"")
            await asyncio.wait_for(drain, FINISH_S_MAX + 5.0)
            finish = self._actors[f"{server}/server"].call.remote("finish", b"")
            await asyncio.wait_for(finish, FINISH_S_MAX)
        except (ray.exceptions.RayError, TimeoutError) as failed:
            # It is removed all the same: one that hangs or died is all the more to go.
            progress(f"{server} did not leave in peace: {type(failed).__name__}")
        await self._end(server)

    async def forget(self, server: str) -> None:
        """A server's machine is gone; nothing of it has to be ended."""
        await self._end(server, stop=False)

    def say(self, said: bytes) -> None:
        """What the cluster says of itself from now on, to those who connect through Ray. Without a ControlPlane nobody
        does, so whether it was heard does not matter."""
        self._said = said
        self._actors[CONTROL].say.remote(said)

    async def next_order(self) -> tuple[int, bytes]:
        """What somebody on another machine wants of the owner. Waits for it; ``ConnectionError`` when it can not."""
        try:
            number, order = await self._actors[CONTROL].next_order.remote()
        except ray.exceptions.RayError as away:
            raise ConnectionError("without a ControlPlane there are no orders") from away
        return int(number), bytes(order)

    def ordered(self, number: int, answer: bytes) -> None:
        """What became of it. Whoever waits for it has left when it is not heard."""
        self._actors[CONTROL].ordered.remote(number, answer)

    async def _end(self, server: str, *, stop: bool = True) -> None:
        """Stop the roles of a server, the edge first, and end their processes."""
        addresses = self._of(server)
        for address in addresses:
            self._unwatch(address)
        self._coming = {address for address in self._coming if not address.startswith(f"{server}/")}
        joining = self._joining.pop(server, None)
        if joining is not None:
            joining.cancel()
        for address in sorted(addresses, key=order_of_ending):
            await self._end_role(address, stop=stop)
        self._places.pop(server, None)
        self.ports.pop(server, None)

    async def _end_role(self, address: str, *, stop: bool = True) -> None:
        """Stop one role, and end its process."""
        self._unwatch(address)
        actor = self._actors.pop(address)
        if stop:
            with suppress(ray.exceptions.RayError, TimeoutError):
                await asyncio.wait_for(actor.stop.remote(), _STOP_S_MAX)
        ray.kill(actor, no_restart=True)
        with suppress(ray.exceptions.RayError):  # without a ControlPlane nobody is introduced to anybody
            await self._actors[CONTROL].forget.remote(address)
        self.pids.pop(address, None)

    async def _start_server(self, server: str, hosts: Sequence[str]) -> None:
        await self._start(f"{server}/server")
        await asyncio.gather(*(self._start(host) for host in hosts), self._start(f"{server}/shard"))
        joining = self._actors[f"{server}/server"].call.remote("begin", b"")
        try:
            joined = decode_plain(await asyncio.wait_for(joining, _JOIN_S_MAX))
        except (ray.exceptions.RayError, TimeoutError) as failed:
            raise StartFailed(f"{server} did not join: {type(failed).__name__}.") from failed
        if joined["state"] != State.MEMBER.value:
            raise StartFailed(f"{server} did not join: it is {joined['state']} ({joined['why'] or 'no reason'}).")
        info = await self._start(f"{server}/ingress")
        self.ports[server] = int(str(info["port"]))

    async def _start(self, address: str) -> dict[str, object]:
        actor = self._actors[address]
        try:
            info: dict[str, object] = await asyncio.wait_for(actor.start.remote(), _START_TIMEOUT_S)
        except ray.exceptions.RayTaskError as failed:
            raise StartFailed(_reason(address, failed.cause, self._places)) from failed
        except (ray.exceptions.RayError, TimeoutError) as failed:
            raise StartFailed(f"{address} did not start: {str(failed) or 'it took too long'}") from failed
        self.pids[address] = int(str(info["pid"]))
        self._watching[address] = asyncio.create_task(self._watch(address, actor))
        return info

    async def _watch(self, address: str, actor: Any) -> None:
        """Until a role's process is gone. Ray breaks the call that stays open, at once when the process died, and when
        it notices when the machine did. It also breaks it when the way to the machine does: then the process lives."""
        while True:
            try:
                await actor.call.remote(STAY, b"")
                return
            except ray.exceptions.ActorUnavailableError:
                await asyncio.sleep(_STAY_AGAIN_S)
            except ray.exceptions.RayError:
                self._watching.pop(address, None)
                self.on_role_lost(address)
                return

    # -------------------------------------------------------------------------------------------- hosts of cordons

    async def have_cordons(self, cordons: Sequence[str]) -> None:
        """Have host processes of these cordons on every server, and of no others. ``StartFailed`` when no server came
        to have those that it lacked; one that did not, while others did, is supervised as if they had died."""
        async with self._changing_cordons:
            self._cordons = tuple(cordons)
            some = asyncio.Semaphore(_SERVERS_AT_ONCE)

            async def change(server: str) -> StartFailed | None:
                async with some:
                    return await self._have_hosts(server)

            failed = await asyncio.gather(*(change(server) for server in list(self._places)))
            first = next((failure for failure in failed if failure is not None), None)
            if first is not None and None not in failed:
                raise first

    async def _have_hosts(self, server: str) -> StartFailed | None:
        """The same for one server; why it has not all of them."""
        config = self._places[server].config if server in self._places else None
        if config is None:
            return None  # it has left meanwhile
        wanted = [f"{server}/{name}" for cordon in self._cordons for name in config.host_names(cordon)]
        for address in self._of(server):
            if _is_host(address) and address not in wanted:
                await self._end_role(address)
        failure: StartFailed | None = None
        for address in wanted:
            if address in self._actors:
                continue
            self._coming.add(address)
            try:
                await self.replace(address)
            except StartFailed as failed:
                _log.error("%s", failed)
                failure = failed
                if address in self._actors:
                    self.on_role_lost(address)
            finally:
                self._coming.discard(address)
        return failure

    # ------------------------------------------------------------------------------------- processes that take over

    @property
    def roles_up(self) -> list[str]:
        """The addresses of all roles that should run: the ControlPlane's, and those of servers that have come."""
        return [a for a in self._actors if a == CONTROL or a.partition("/")[0] in self.ports]

    def restarts_of(self, address: str) -> SupervisionLimits:
        """When the process of a role is replaced."""
        return ROLES[address.rpartition("/")[2].partition("-")[0]].restarts

    async def replace(self, address: str) -> None:
        """Give a role that has no process any more another one, at the same place: what it knows, it gets from its
        peers. ``StartFailed`` says why it did not start, also when nobody wants it any more."""
        if not self._is_wanted(address):
            raise StartFailed(f"{address} was removed.")
        server, _, role = address.rpartition("/")
        place = self._place(address)
        self._unwatch(address)
        try:
            standby = await self._standbys.take(place)
        except NoProcess as nobody:
            raise StartFailed(f"{address} did not start: {nobody}.") from nobody
        actor = standby.actor
        try:
            if not self._is_wanted(address):
                raise StartFailed(f"{address} was removed.")
            self._actors[address] = actor  # so that it hears of a ControlPlane that comes meanwhile
            control = [] if address == CONTROL else [self._actors[CONTROL]]
            port = self.ports.get(server, place.edge_port)
            await actor.become.remote(role, server, place.config, control, port)
            await self._introduce(address, standby.name)
            forgetting = asyncio.create_task(self._have_forgotten(address))
            await self._start(address)
            await forgetting
        except ray.exceptions.RayError as broken:
            ray.kill(actor, no_restart=True)
            raise StartFailed(f"{address} did not start: {type(broken).__name__}.") from broken
        except BaseException:
            ray.kill(actor, no_restart=True)
            raise
        if role == "server":
            self._joining[server] = asyncio.create_task(self._join_again(server, actor))

    def _is_wanted(self, address: str) -> bool:
        return address in self._actors or address in self._coming

    async def _introduce(self, address: str, name: str) -> None:
        """Let everybody meet the new process at an address."""
        control = self._actors[CONTROL]
        if address != CONTROL:
            with suppress(ray.exceptions.RayError, TimeoutError):  # the next ControlPlane gets the whole directory
                await asyncio.wait_for(control.register.remote(address, [self._actors[address]]), _MEET_S_MAX)
        else:
            # First the directory, then those who look things up in it.
            await asyncio.gather(*(control.register.remote(a, [actor]) for a, actor in self._actors.items()))
            meeting = [actor.meet.remote([control]) for a, actor in self._actors.items() if a != CONTROL]
            with suppress(TimeoutError):  # who hangs is ended, and its next process is told
                await asyncio.wait_for(asyncio.gather(*meeting, return_exceptions=True), _MEET_S_MAX)
            control.say.remote(self._said)
        await asyncio.to_thread(say_process, address, name)

    async def _have_forgotten(self, address: str) -> None:
        """Have those who call other machines meet the new process when they call it next. They would find out by
        themselves, a second later; an upload that they read from it by then would be lost."""
        if address.rpartition("/")[2] in _CALLED:
            callers = [a for of, a in self._actors.items() if of.rpartition("/")[2] in _CALLED and of != address]
            with suppress(TimeoutError):
                telling = asyncio.gather(*(caller.forget.remote(address) for caller in callers), return_exceptions=True)
                await asyncio.wait_for(telling, _MEET_S_MAX)

    async def _join_again(self, server: str, actor: Any) -> None:
        """A Server that took over joins as any other; it serves its own clients before it has."""
        with suppress(ray.exceptions.RayError):  # it goes on beating, which lets it in as well
            await actor.call.remote("begin", b"")

    def have_standbys(self) -> None:
        """Have a process ready for each machine that has a role."""
        self._standbys.have((self._control, *self._places.values()))

    @property
    def standbys(self) -> dict[str, bool]:
        """Those, by name, and whether they are ready by now."""
        return self._standbys.are_ready()

    async def probe(self, address: str) -> float:
        """How many seconds ago the event loop of a role last turned. ``Unanswered``. Whoever asks has a limit."""
        try:
            turned_s: float = await self._actors[address].probe.options(concurrency_group=_PROBE_GROUP).remote()
        except (ray.exceptions.RayError, KeyError) as gone:
            raise Unanswered(f"{address}: {type(gone).__name__}") from gone
        return turned_s

    def _machine(self, address: str) -> str:
        """Ray's id of the node that a role is on; empty for this machine, and for a role that was forgotten."""
        place = self._control if address == CONTROL else self._places.get(address.partition("/")[0])
        return "" if place is None or place.node in ("", own_node()) else place.node

    async def ran_ns(self, address: str) -> int | None:
        """How long the threads of a role's process have run; None when nobody beside it can tell. Whoever asks has a
        limit."""
        pid = self.pids.get(address)
        if pid is None:
            return None
        if not self._machine(address):
            return ran_ns(pid)
        looks = [asyncio.ensure_future(self._look(beside, pid)) for beside in self._beside(address)]
        try:
            for look in asyncio.as_completed(looks):
                if (ran := await look) is not None:
                    return ran
            return None
        finally:
            for late in looks:
                late.cancel()

    async def _look(self, actor: Any, pid: int) -> int | None:
        try:
            ran: int = await actor.ran_ns.options(concurrency_group=_PROBE_GROUP).remote(pid)
        except ray.exceptions.RayError:
            return None
        return ran

    def _beside(self, address: str) -> list[Any]:
        return [self._actors[other] for other in self._of(address.partition("/")[0]) if other != address]

    def kill(self, address: str) -> None:
        """End the process of a role that hangs. A stopped one does not hear Ray, but the kernel; on another machine its
        neighbours tell the kernel."""
        actor, pid = self._actors.get(address), self.pids.get(address)
        if actor is None:
            return
        if pid is not None and not self._machine(address):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        elif pid is not None:
            for neighbour in self._beside(address):  # whichever of them answers
                neighbour.end.options(concurrency_group=_PROBE_GROUP).remote(pid)
        ray.kill(actor, no_restart=True)

    def _unwatch(self, address: str) -> None:
        watching = self._watching.pop(address, None)
        if watching is not None:
            watching.cancel()

    async def stop(self) -> None:
        """Stop all roles, the edges first, and end their processes where they would stay."""
        for address in list(self._watching):
            self._unwatch(address)
        for task in self._joining.values():
            task.cancel()
        self._standbys.end()
        for rank in sorted({order_of_ending(address) for address in self._actors}):
            stopping = [a.stop.remote() for address, a in self._actors.items() if order_of_ending(address) == rank]
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*stopping, return_exceptions=True), _STOP_S_MAX)
        if self._control.node:
            for actor in self._actors.values():
                ray.kill(actor, no_restart=True)


def _is_host(address: str) -> bool:
    return address.rpartition("/")[2].partition("-")[0] == "host"


def _reason(address: str, cause: BaseException, places: dict[str, Place]) -> str:
    if isinstance(cause, OSError) and cause.errno is not None and address.endswith("/ingress"):
        place = places[address.removesuffix("/ingress")]
        return (
            f"Port {place.edge_port} on {place.config.address} cannot be used:"
            f" {cause.strerror or cause}. Choose another with --port."
        )
    return f"{address} did not start: {type(cause).__name__}: {cause}"
