"""The network between machines, as actor handles: the real ``RayPeer`` stands on them, and they fail as Ray's do.

What Ray promises for an actor call with ``max_task_retries`` 0, and so what can happen here:

* a call is executed at most once: nothing duplicates it. (What is sent twice, our own code sends twice.)
* a call that fails was executed, or not, or is being executed: nobody says which. So a call may be lost on its way, or
  be carried out and its reply lost; both are ``RayActorError`` for the caller.
* an asynchronous actor starts calls in no promised order: each call has a delay of its own.
* a caller that stops waiting changes nothing for the call.
* a peer that died is known to be dead after a while; until then calls to it wait. A peer behind a partition answers
  late, when the partition ends in time, or its calls fail when the connection is given up.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

import ray.exceptions

from actors.call_line import encode_offer
from actors.peer import OFFER, Calls
from tests.simulation.virtual_loop import VirtualLoop


@dataclass(frozen=True, slots=True)
class NetworkLimits:
    """Times of the network."""

    #: One way, on a good day: Ray's call of 1.5 ms is half of it on the way there.
    way_s: tuple[float, float] = (0.0003, 0.0015)
    #: How long a connection lives that carries nothing, before Ray gives it up.
    given_up_after_s: float = 10.0
    #: Until callers know that an actor's process died.
    death_known_after_s: float = 0.2


@dataclass(slots=True)
class Weather:
    """How bad the network is now: chances of each call, and the share of calls that take much longer."""

    lose_before: float = 0.0
    lose_after: float = 0.0
    slow: float = 0.0
    slow_s_max: float = 0.0


class Watcher(Protocol):
    """Who sees what passes: the checkers."""

    def call_begins(self, caller: str, address: str, method: str, payload: bytes) -> object:
        """A call is sent; what is given back comes again with ``call_over``."""

    def call_over(self, seen: object, caller: str, address: str, method: str, reply: bytes | None, lost: str) -> None:
        """The caller has its reply, or None and how the call was lost."""

    def role_failed(self, address: str, method: str, fault: BaseException) -> None:
        """A role's method raised, which is a bug."""


class Network:
    """All actors of a cluster, by address (``server-2/shard``)."""

    def __init__(self, loop: VirtualLoop, chance: Random, watcher: Watcher, limits: NetworkLimits) -> None:
        self._loop = loop
        self._chance = chance
        self._watcher = watcher
        self._limits = limits
        self._actors: dict[str, Calls] = {}
        self._dead: dict[str, float] = {}  # since when
        self._wakes: dict[str, float] = {}
        self._cut: dict[tuple[str, str], float] = {}
        self._running: dict[asyncio.Task[bytes], str] = {}
        self.weather = Weather()
        self.calls = 0
        self.lost = 0

    # what happens to it

    def add(self, address: str, calls: Calls) -> None:
        """A role is there."""
        self._actors[address] = {**calls, "probe": _probe}

    def kill(self, address: str) -> None:
        """The process of a role dies: its calls under way are lost, whether carried out or not."""
        if address in self._actors:
            self._dead[address] = self._loop.time()

    def is_dead(self, address: str) -> bool:
        return address in self._dead

    def sleep(self, machine: str, until_s: float) -> None:
        """Calls to a machine wait until then."""
        self._wakes[machine] = max(until_s, self._wakes.get(machine, 0.0))

    def part(self, one: str, other: str, until_s: float) -> None:
        """Nothing passes between two machines until then."""
        self._cut[min(one, other), max(one, other)] = until_s

    def under_way(self) -> list[str]:
        """Calls that are being executed by roles that live."""
        return [address for address in self._running.values() if address not in self._dead]

    def peers_of(self, caller: str) -> Callable[[str], Awaitable["Handle | None"]]:
        """What introduces a caller (``server-1``) to others."""

        async def introduce(address: str) -> Handle | None:
            return Handle(self, caller, address) if address in self._actors else None

        return introduce

    # one call

    def send(self, caller: str, address: str, method: str, payload: bytes) -> "asyncio.Future[bytes]":
        self.calls += 1
        call = _Call(self, caller, address, method, payload)
        weather, chance = self.weather, self._chance
        if address in self._dead:
            self._loop.call_at(
                max(self._loop.time() + 0.0005, self._dead[address] + self._limits.death_known_after_s),
                call.fail, "dead",
            )  # fmt: skip
        elif weather.lose_before and chance.random() < weather.lose_before:
            self._loop.call_later(self._way_s(), call.fail, "before")
        else:
            call.lose_reply = bool(weather.lose_after) and chance.random() < weather.lose_after
            self._pass(caller, address, call.arrive, call)
        return call.reply

    def _pass(self, sender: str, receiver: str, then: Callable[[], None], call: "_Call") -> None:
        """One way of a call: ``then`` happens at the other end, or the call is given up."""
        delay_s = self._way_s()
        one, other = sender.partition("/")[0], receiver.partition("/")[0]
        if self._cut:
            until_s = self._cut.get((min(one, other), max(one, other)), 0.0)
            wait_s = until_s - self._loop.time()
            if wait_s > self._limits.given_up_after_s:
                self._loop.call_later(self._limits.given_up_after_s, call.fail, "partition")
                return
            delay_s += max(0.0, wait_s)
        if self._wakes:
            delay_s += max(0.0, self._wakes.get(other, 0.0) - self._loop.time())
        self._loop.call_later(delay_s, then)

    def _way_s(self) -> float:
        low, high = self._limits.way_s
        weather, chance = self.weather, self._chance
        way_s = low + (high - low) * chance.random()
        if weather.slow and chance.random() < weather.slow:
            way_s += weather.slow_s_max * chance.random() ** 3
        return way_s


class _Call:
    """A call on its way. ``reply`` is settled once; the rest goes on without its caller."""

    __slots__ = (
        "_address", "_caller", "_method", "_network", "_payload", "_seen", "_task", "executed", "lose_reply", "reply",
    )  # fmt: skip

    def __init__(self, network: Network, caller: str, address: str, method: str, payload: bytes) -> None:
        self._network = network
        self._caller = caller
        self._address = address
        self._method = method
        self._payload = payload
        self._seen = network._watcher.call_begins(caller, address, method, payload)
        self._task: asyncio.Task[bytes] | None = None
        self.lose_reply = False
        self.executed = False
        self.reply: asyncio.Future[bytes] = network._loop.create_future()

    def arrive(self) -> None:
        network = self._network
        if self._address in network._dead:
            self.fail("dead")
            return
        task = self._task = network._loop.create_task(network._actors[self._address][self._method](self._payload))
        network._running[task] = self._address
        task.add_done_callback(self._over)

    def _over(self, task: "asyncio.Task[bytes]") -> None:
        network = self._network
        network._running.pop(task, None)
        self.executed = True
        if task.cancelled():
            self.fail("cancelled")
            return
        fault = task.exception()
        if self._address in network._dead:
            network._loop.call_later(network._limits.death_known_after_s, self.fail, "died")
        elif fault is not None:
            network._watcher.role_failed(self._address, self._method, fault)
            self._settle_failed(fault)
        elif self.lose_reply:
            network._loop.call_later(network._way_s(), self.fail, "after")
        else:
            network._pass(self._address, self._caller, self._answered, self)

    def _answered(self) -> None:
        if not self.reply.done():
            assert self._task is not None
            answer = self._task.result()
            self._network._watcher.call_over(self._seen, self._caller, self._address, self._method, answer, "")
            self.reply.set_result(answer)

    def fail(self, how: str) -> None:
        if not self.reply.done():
            self._network.lost += 1
            self._network._watcher.call_over(self._seen, self._caller, self._address, self._method, None, how)
            self.reply.set_exception(ray.exceptions.RayActorError())
            self.reply.exception()  # a caller that went away never looks, and nobody is to blame

    def _settle_failed(self, fault: BaseException) -> None:
        if not self.reply.done():
            cause = fault if isinstance(fault, Exception) else RuntimeError(repr(fault))
            self.reply.set_exception(ray.exceptions.RayTaskError(self._method, repr(fault), cause))
            self.reply.exception()


async def _probe(payload: bytes) -> bytes:
    return b""


class Handle:
    """What Ray calls an actor handle, as far as ``RayPeer`` uses one."""

    def __init__(self, network: Network, caller: str, address: str) -> None:
        self._network = network
        self._loop = network._loop
        self._caller = caller
        self._address = address
        self.call = self

    def options(self, **_: Any) -> "Handle":
        return self

    def remote(self, method: str, payload: bytes) -> "asyncio.Future[bytes]":
        if method == OFFER:
            # As in a cluster whose Ray uses TLS: nobody opens lines, and all calls are Ray's.
            none: asyncio.Future[bytes] = self._loop.create_future()
            none.set_result(encode_offer(None))
            return none
        return self._network.send(self._caller, self._address, method, payload)
