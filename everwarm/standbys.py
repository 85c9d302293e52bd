"""Processes that are ready to take over a role, one a machine: Python, Ray and our modules are loaded, without a role.

On two busy cores a new process takes seconds to get there, and a role in it some tenths of one. So the one thing that a
death must not wait for is done before; the price is one idle process a machine.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import ray
import ray.exceptions

#: Until a new process is ready, on a machine whose cores are taken; and until one that was says that it still is: one
#: that died is known at once, and one that is slow is quicker than a new one.
_READY_S_MAX = 120.0
_THERE_S_MAX = 5.0


class Located(Protocol):
    """Where a process is to run."""

    @property
    def node(self) -> str:
        """Ray's id of the node; empty where there is only one."""


P = TypeVar("P", bound=Located)


class NoProcess(Exception):
    """No process could be started; the message says why."""


@dataclass(frozen=True, slots=True)
class Standby:
    """A process without a role: its actor's name and handle. ``ready`` is over when it is."""

    name: str
    actor: Any
    ready: "asyncio.Task[None]"

    @property
    def is_ready(self) -> bool:
        """Whether it has started."""
        return self.ready.done() and not self.ready.cancelled() and self.ready.exception() is None


class Standbys(Generic[P]):
    """One for each machine that has a role. ``make``: a new process, by name and place."""

    def __init__(self, make: Callable[[str, P], Any]) -> None:
        self._make = make
        self._waiting: dict[str, Standby] = {}  # by node
        self._made = 0

    def have(self, places: Iterable[P]) -> None:
        """Have one at each of these machines, and none at others."""
        wanted = {place.node: place for place in places}
        failed = {node for node, s in self._waiting.items() if s.ready.done() and not s.is_ready}
        for node in (self._waiting.keys() - wanted.keys()) | failed:
            _end(self._waiting.pop(node))
        for node, place in wanted.items():
            if node not in self._waiting:
                self._waiting[node] = self._prepare(place)

    async def take(self, place: P) -> Standby:
        """The one at a place, or a new one. ``NoProcess``."""
        standby = self._waiting.pop(place.node, None)
        if standby is not None and standby.ready.done() and not await _is_there(standby):
            _end(standby)  # it died, or hangs, while nobody needed it
            standby = None
        standby = standby or self._prepare(place)
        try:
            await asyncio.wait_for(standby.ready, _READY_S_MAX)
        except (ray.exceptions.RayError, TimeoutError) as failed:
            _end(standby)
            raise NoProcess(f"no process could be started: {type(failed).__name__}") from failed
        return standby

    def are_ready(self) -> dict[str, bool]:
        """By name, whether each is ready."""
        return {standby.name: standby.is_ready for standby in self._waiting.values()}

    def end(self) -> None:
        """End all of them."""
        self.have(())

    def _prepare(self, place: P) -> Standby:
        self._made += 1
        # Unlike those of an earlier process of ours, whose actors may have outlived it.
        name = f"standby-{self._made}-{secrets.token_hex(4)}"
        actor = self._make(name, place)

        async def prepare() -> None:
            await actor.start.remote()

        ready = asyncio.create_task(prepare())
        ready.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever takes it hears of it
        return Standby(name, actor, ready)


async def _is_there(standby: Standby) -> bool:
    with suppress(ray.exceptions.RayError, TimeoutError):
        await asyncio.wait_for(standby.actor.probe.remote(), _THERE_S_MAX)
        return standby.is_ready
    return False


def _end(standby: Standby) -> None:
    standby.ready.cancel()
    ray.kill(standby.actor, no_restart=True)
