"""Supervisor: every role's process has an owner here, which notices when it dies or hangs, and has it replaced.

``actors.supervision`` decides, ``cluster`` knows processes; this brings news and performs. A death is noticed at once,
by the call that stays open at each process and breaks. A process that hangs is noticed by probes, and ended; what
follows is as for a death. One role's trouble keeps no other role waiting.

A server's roles are supervised once it has come, and until it is removed; while it comes, whoever brings it sees to it.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from actors.supervision import GiveUp, Kill, Restart, State, Supervised, SupervisionLimits
from everwarm.cluster import StartFailed, Unanswered

_log = logging.getLogger("everwarm.supervisor")

_PROBES = SupervisionLimits()
#: A look at a process that missed a probe: a file of this machine's kernel, or one small call to a process beside it.
_LOOK_S_MAX = 0.5


class Processes(Protocol):
    """The processes of a cluster, by the address of their role."""

    on_role_lost: Callable[[str], None]
    pids: dict[str, int]

    @property
    def roles_up(self) -> list[str]:
        """The roles that should run."""

    def restarts_of(self, address: str) -> SupervisionLimits:
        """When a role's process is replaced."""

    async def replace(self, address: str) -> None:
        """Give a role another process. ``StartFailed``."""

    async def probe(self, address: str) -> float:
        """How many seconds ago its event loop last turned. ``Unanswered``; may take for ever."""

    async def ran_ns(self, address: str) -> int | None:
        """How long the threads of its process have run; None when nobody there can tell. May take for ever."""

    def kill(self, address: str) -> None:
        """End its process."""

    def have_standbys(self) -> None:
        """Have processes ready that can take over."""

    @property
    def standbys(self) -> dict[str, bool]:
        """Those, by name, and whether they are ready by now."""


class Supervisor:
    """Supervises all roles of a cluster, from ``start`` to ``stop``."""

    def __init__(
        self,
        processes: Processes,
        *,
        on_changed: Callable[[], object],
        progress: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        limits: SupervisionLimits = _PROBES,
    ) -> None:
        """``on_changed`` hears when a role has another process. ``progress`` hears what the operator should know.
        ``limits`` are those of probes; how a role is restarted is the role's."""
        self._processes = processes
        self._on_changed = on_changed
        self._progress = progress
        self._clock = clock
        self._limits = limits
        self._roles: dict[str, Supervised] = {}
        self._restarting: dict[str, asyncio.Task[None]] = {}
        self._probing: dict[str, asyncio.Task[None]] = {}
        self._ended: dict[str, asyncio.Event] = {}  # by address: whether a process that was ended is gone
        self._keeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Supervise from now on."""
        self._processes.on_role_lost = self._lost
        self._processes.have_standbys()
        self._keeping = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Whoever dies from now on stays dead."""
        self._processes.on_role_lost = lambda address: None
        tasks = [*self._restarting.values(), *self._probing.values()]
        if self._keeping is not None:
            tasks.append(self._keeping)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def report(self) -> dict[str, dict[str, object]]:
        """Of each role: the number of its process, its state, how often it was restarted, and how long the last
        restarts took, in seconds. And of each process that is to take over, by its name, whether it is ready."""
        standbys = self._processes.standbys.items()
        found: dict[str, dict[str, object]] = {n: {"state": "ready" if r else "starting"} for n, r in standbys}
        for address in sorted(self._processes.roles_up):
            role = self._role(address)
            took_s = [round(s, 2) for s in role.took_s]
            pid = self._processes.pids.get(address)
            found[address] = {"pid": pid, "state": role.state.value, "restarts": role.restarts, "took_s": took_s}
        return found

    # -------------------------------------------------------------------------------------------------------- news

    def _lost(self, address: str) -> None:
        """The process of a role is gone."""
        if address not in self._processes.roles_up:
            _log.info("%s is gone while its server comes or goes", address)
            return
        role = self._role(address)
        if address in self._ended:
            self._ended[address].set()
        if address in self._restarting:
            return  # the process that was to take over; whoever starts it hears of it
        self._decided(address, role.gone(self._clock()))

    def _role(self, address: str) -> Supervised:
        role = self._roles.get(address)
        if role is None:
            role = self._roles[address] = Supervised(self._processes.restarts_of(address))
            role.up(self._clock())
        return role

    def _decided(self, address: str, decided: Restart | GiveUp) -> None:
        if isinstance(decided, GiveUp):
            self._progress(f"{address} is left alone: {decided.why}")
            return
        self._progress(f"{address} died" + (f", and is restarted in {decided.after_s:g} s" if decided.after_s else ""))
        self._restarting[address] = asyncio.create_task(self._restart(address, decided.after_s))

    async def _restart(self, address: str, after_s: float) -> None:
        role = self._roles[address]
        while True:
            await asyncio.sleep(after_s)
            if address not in self._processes.roles_up:
                self._forget(address)
                return
            role.began()
            try:
                await self._processes.replace(address)
                break
            except StartFailed as failed:
                _log.error("%s", failed)
                decided = role.gone(self._clock())
            except Exception:
                # A bug of ours, or of Ray's; nobody else starts this role.
                _log.exception("%s was not restarted", address)
                decided = role.gone(self._clock())
            if isinstance(decided, GiveUp):
                del self._restarting[address]
                self._decided(address, decided)
                return
            after_s = decided.after_s
        role.up(self._clock())
        del self._restarting[address]
        self._progress(f"{address} is back after {role.took_s[-1]:.1f} s")
        self._on_changed()

    def _forget(self, address: str) -> None:
        self._roles.pop(address, None)
        self._restarting.pop(address, None)

    # ------------------------------------------------------------------------------------------------------ probes

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._limits.probe_every_s)
            up = set(self._processes.roles_up)
            for address in up:
                if self._role(address).state in (State.RUNNING, State.SUSPECT) and address not in self._probing:
                    task = self._probing[address] = asyncio.create_task(self._probe(address))
                    task.add_done_callback(lambda _, address=address: self._probing.pop(address, None))  # type: ignore[misc]
            for address in self._roles.keys() - up - self._restarting.keys():
                self._forget(address)
            self._processes.have_standbys()

    async def _probe(self, address: str) -> None:
        """Ask a role's process; one that is in doubt again and again, until it is not."""
        role, limits = self._roles[address], self._limits
        while self._roles.get(address) is role:  # its server may go meanwhile
            next_s = self._clock() + limits.probe_s_max
            kill = await self._ask(address, role)
            if kill is not None:
                await self._end(address, kill)
                return
            if role.state is not State.SUSPECT:
                return
            await asyncio.sleep(max(0.0, next_s - self._clock()))

    async def _ask(self, address: str, role: Supervised) -> Kill | None:
        try:
            async with asyncio.timeout(self._limits.probe_s_max):
                turned_s = await self._processes.probe(address)
        except (Unanswered, TimeoutError):
            return role.missed(await self._look(address))
        if turned_s > self._limits.loop_s_max:
            return role.answered(turned_s, ran_ns=await self._look(address))
        return role.answered(turned_s)

    async def _look(self, address: str) -> int | None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S_MAX):
                return await self._processes.ran_ns(address)
        return None

    async def _end(self, address: str, kill: Kill) -> None:
        self._progress(f"{address} hangs: {kill.why}")
        gone = self._ended[address] = asyncio.Event()
        try:
            with suppress(Exception):
                self._processes.kill(address)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.end_s_max):
                    await gone.wait()
        finally:
            del self._ended[address]
        # The call that stays open breaks when its process ends; one that died long ago may not have been told of.
        if not gone.is_set() and address not in self._restarting:
            self._lost(address)
