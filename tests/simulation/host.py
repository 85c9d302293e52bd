"""A host process by behaviour: the real ``Residency`` decides, and guests do what their requests say.

It listens at a socket and speaks the frames of ``link.py`` as ``isolate_host.py`` and ``host_conversation.py`` do, in
the same order and with the same moments: STARTED before guest code of methods that are not idempotent, the body in
pulls, output held back until the guest waits, and ENDED last, with the host's load. What the real one has threads for
are tasks here; its lock is that nothing here waits in the middle of a decision.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from actors.connection import Connection, Frame, LinkBroken, frame
from actors.decision import Close, Decision, Fail, Shed, Start, Use
from actors.exchange import ColdCause, Ended, HeatReport, Load, Request, StartType
from actors.host_choice import says_started
from actors.host_gauge import Filled, HostGauge
from actors.residency import Residency, ResidencyLimits
from actors.wire import ENDED, HEAT, REQUEST
from isolates.outcome import Outcome
from tests.simulation.guest_run import BodyBroke, ClientLeft, GuestRun
from tests.simulation.journal import Journal, Story

if TYPE_CHECKING:
    from tests.simulation.wires import SocketLoop


@dataclass(frozen=True, slots=True)
class HostNumbers:
    """One simulated host."""

    residency: ResidencyLimits
    cores: int = 2
    queue_s_max: float = 10.0  # as HostLimits
    pressure_every_s: float = 0.5
    starts_at_once: int = 2
    ahead_max: int = 256
    foreseen_s: float = 600.0
    connections_max: int = 512


@dataclass(frozen=True, slots=True)
class Make:
    """What a version's isolates are like."""

    worker: str
    start_s: float
    isolate_bytes: int
    #: The chance that one start fails, as of a worker that looks at a clock or at dice when it starts.
    fails: float = 0.0


class Isolate:
    """One instance, as the checkers look at it: it runs one request at a time, of one version."""

    __slots__ = ("busy", "bytes_", "number", "version")

    def __init__(self, number: int, version: str, bytes_: int) -> None:
        self.number = number
        self.version = version
        self.bytes_ = bytes_
        self.busy = False


class SimulatedHost:
    """One process of isolates."""

    def __init__(
        self,
        name: str,
        machine: str,
        path: str,
        *,
        loop: "SocketLoop",
        chance: Random,
        journal: Journal,
        makes: dict[str, Make],
        numbers: HostNumbers,
        tell_server: Callable[[Frame, bytes], None],
    ) -> None:
        self.name = name
        self.machine = machine
        self.path = path
        self._loop = loop
        self._chance = chance
        self._journal = journal
        self._makes = makes
        self._numbers = numbers
        self._tell_server = tell_server
        self.residency = Residency(numbers.residency)
        self._isolates: dict[int, Isolate] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._ahead: deque[Start] = deque()
        self._starting_ahead = 0
        self.running = 0
        self._on_cpu = 0
        self._cpu_s = 0.0
        self._queue_ms = 0.0
        self._memory_bytes = 0
        self._gauge = HostGauge(numbers.cores)
        self._asked: dict[str, tuple[int, float]] = {}
        self.dead = False

    # -------------------------------------------------------------------------------------------------- lifecycle

    def start(self) -> None:
        """Listen."""
        self._loop.wires.listen(lambda: Connection(self._accept), self.path)
        self._loop.call_later(self._numbers.pressure_every_s * self._chance.random(), self._measure)

    def kill(self) -> None:
        """The process dies, as of a fault in the engine."""
        self.dead = True
        self._journal.killed(self.machine, f"host {self.name}")
        self._loop.wires.cut(self.path)
        for task in self._tasks:
            task.cancel()

    @property
    def memory_bytes(self) -> int:
        """What its isolates hold."""
        return sum(isolate.bytes_ for isolate in self._isolates.values())

    def _measure(self) -> None:
        if self.dead:
            return
        self._loop.call_later(self._numbers.pressure_every_s, self._measure)
        now_s = self._loop.time()
        self._memory_bytes = self.memory_bytes
        self._gauge.used(self._cpu_s, now_s)
        decisions = self.residency.pressure(self._memory_bytes, now_s)
        decisions += self.residency.tick(now_s)
        if decisions:
            self._carry_out(decisions)
        asked, self._asked = self._asked, {}
        self._tell_server(Frame.HEAT, HEAT.encode(HeatReport(self.path, self._load(), asked)))

    # ------------------------------------------------------------------------------------------------- connections

    def _accept(self, connection: Connection) -> None:
        if len(self._tasks) >= self._numbers.connections_max:
            connection.close()
            return
        task = self._loop.create_task(self._serve_link(connection))
        self._tasks[task] = None
        task.add_done_callback(self._link_over)

    def _link_over(self, task: "asyncio.Task[None]") -> None:
        del self._tasks[task]
        if not task.cancelled() and task.exception() is not None:
            self._journal.broken(f"{self.name}: a link's task raised {task.exception()!r}")

    async def _serve_link(self, connection: Connection) -> None:
        try:
            while True:
                kind, payload = await connection.receive()
                if kind is Frame.REQUEST:
                    await self._serve(connection, REQUEST.decode(payload))
                elif kind is Frame.PREWARM:
                    self._prewarm(REQUEST.decode(payload), StartType.PREWARM)
                elif kind is Frame.PRELOAD:
                    self._prewarm(REQUEST.decode(payload), StartType.PRELOAD)
                elif kind is Frame.NOTICE:
                    self._carry_out(self.residency.drop(payload.decode(), self._loop.time()))
        except (LinkBroken, ClientLeft):
            pass
        finally:
            connection.close()

    def _prewarm(self, request: Request, start_type: StartType) -> None:
        decisions: list[Decision] = []
        if len(self._ahead) < self._numbers.ahead_max:
            now_s = self._loop.time()
            lives_s = min(self.residency.residence_s(now_s), self._numbers.foreseen_s)
            decisions = self.residency.prewarm(
                request.version, start_type, ColdCause(request.cold_cause), now_s, request.reuse,
                at_home=request.at_home, expected=int(request.rate_per_s * lives_s),
            )  # fmt: skip
        if not decisions:
            self._tell_server(Frame.NOTICE, f"unstarted {request.version}".encode())
        self._carry_out(decisions)

    # ------------------------------------------------------------------------------------------------- one request

    async def _serve(self, connection: Connection, request: Request) -> None:
        story = self._journal.stories[request.request_id]
        arrived_s = self._loop.time()
        ticket: asyncio.Future[Decision] = self._loop.create_future()
        decisions = self.residency.requested(
            ticket, request.version, ColdCause(request.cold_cause), arrived_s, request.reuse, at_home=request.at_home
        )
        self._carry_out(decisions)
        decision = ticket.result() if ticket.done() else await self._in_line(ticket, request.version)
        if isinstance(decision, Shed):
            story.sheds += 1
            self._end(connection, request, Outcome.LOAD_SHED, "no isolate is free")
            return
        if isinstance(decision, Fail):
            story.start_failures += 1
            self._end(connection, request, Outcome.EXCEPTION, "it does not start")
            return
        assert isinstance(decision, Use | Start)
        queue_ms = self._queue_ms = (self._loop.time() - arrived_s) * 1e3
        if isinstance(decision, Start) and not await self._start(decision):
            story.start_failures += 1
            self._end(connection, request, Outcome.EXCEPTION, "it does not start")
            return
        await self._run(connection, request, story, decision.isolate, decision.start_type, queue_ms)

    async def _in_line(self, ticket: "asyncio.Future[Decision]", version: str) -> Decision:
        def late() -> None:
            if not ticket.done() and self.residency.gave_up(ticket, version):
                ticket.set_result(Shed(ticket))

        timer = self._loop.call_later(self._numbers.queue_s_max, late)
        try:
            # As the real one, whose thread waits for its place and not for its client.
            return await ticket
        finally:
            timer.cancel()

    async def _run(
        self,
        connection: Connection,
        request: Request,
        story: Story,
        number: int,
        start_type: StartType,
        queue_ms: float,
    ) -> None:
        isolate = self._isolates[number]
        if isolate.busy or isolate.version != request.version:
            self._journal.broken(f"{self.name}: {request.request_id} shares isolate {number} of {isolate.version}")
        if self._makes[isolate.version].worker != request.worker:
            self._journal.broken(f"{self.name}: {request.request_id} of {request.worker} meets {isolate.version}")
        isolate.busy = True
        self.running += 1
        behaviour = story.behaviour
        keep = True
        guest = GuestRun(self, connection, request, story, start_type, queue_ms)
        try:
            if says_started(request.head.method):
                connection.send(Frame.STARTED)
            keep = False
            run = self._journal.runs_at(story, self.machine, self.name, number)
            try:
                outcome = await guest.run()
            except BodyBroke:
                outcome = Outcome.EXCEPTION
            finally:
                run.ended_s = self._loop.time()
            keep = behaviour.keep or outcome is Outcome.CANCELED
        finally:
            isolate.busy = False
            self.running -= 1
            if not self.dead:
                decisions = self.residency.released(
                    number, keep=keep, now_s=self._loop.time(), memory_bytes=isolate.bytes_
                )
                self._carry_out(decisions)
        self._end(
            connection, request, outcome, "",
            cpu_ms=behaviour.runs_s * 1e3 if behaviour.cpu_bound else 1.0, wall_ms=(run.ended_s - run.began_s) * 1e3,
            start_type=start_type.value, queue_ms=queue_ms, held=guest.take_held(),
        )  # fmt: skip

    def _end(
        self,
        connection: Connection,
        request: Request,
        outcome: Outcome,
        reason: str,
        *,
        cpu_ms: float = 0.0,
        wall_ms: float = 0.0,
        start_type: str = "",
        queue_ms: float = 0.0,
        held: bytes = b"",
    ) -> None:
        requests, cpu_s = self._asked.get(request.worker, (0, 0.0))
        self._asked[request.worker] = (requests + 1, cpu_s + cpu_ms / 1e3)
        self._cpu_s += cpu_ms / 1e3
        cost = self.residency.cost_of(request.version)
        last = Ended(
            outcome, reason, cpu_ms, wall_ms, self.machine, start_type, queue_ms,
            load=self._load(), start_cost_ms=0.0 if cost is None else cost.start_ms,
            isolate_bytes=0 if cost is None else cost.bytes_,
        )  # fmt: skip
        if connection.closed or connection.transport is None:
            raise LinkBroken("the other end went away")
        connection.transport.write(held + frame(Frame.ENDED, ENDED.encode(last)))

    def _load(self) -> Load:
        residency = self.residency
        in_use_bytes = max(0, self._memory_bytes - residency.idle_bytes)
        return self._gauge.load(
            running=self.running,
            queue=Filled(residency.queued, residency.limits.queued_max),
            queue_ms=self._queue_ms,
            isolates=len(residency),
            memory_bytes=self._memory_bytes,
            memory_in_use=Filled(in_use_bytes, residency.limits.memory_bytes_max),
            connections=Filled(len(self._tasks), self._numbers.connections_max),
            residence_s=residency.residence_s(self._loop.time()),
        )

    def time_of(self, cpu_s: float) -> float:
        """How long so much CPU takes now, when all that compute share the cores."""
        return cpu_s * max(1.0, (self._on_cpu + 1) / self._numbers.cores)

    # --------------------------------------------------------------------------------------- residency's decisions

    def _carry_out(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, Close):
                isolate = self._isolates.pop(decision.isolate, None)
                if isolate is None or isolate.busy:
                    self._journal.broken(f"{self.name}: {decision}, and it is {'busy' if isolate else 'gone'}")
                if decision.last:
                    self._say_cold(decision.version)
            elif isinstance(decision, Start) and decision.ticket is None:
                self._ahead.append(decision)
                self._start_ahead()
            else:
                ticket = decision.ticket
                assert isinstance(ticket, asyncio.Future)
                if ticket.done():
                    self._journal.broken(f"{self.name}: a ticket gets {decision} after {ticket.result()}")
                else:
                    ticket.set_result(decision)

    def _start_ahead(self) -> None:
        if self._ahead and self._starting_ahead < self._numbers.starts_at_once:
            self._starting_ahead += 1
            task = self._loop.create_task(self._start_one_ahead(self._ahead.popleft()))
            self._tasks[task] = None
            task.add_done_callback(self._link_over)

    async def _start_one_ahead(self, start: Start) -> None:
        try:
            await self._start(start)
        finally:
            self._starting_ahead -= 1
            if not self.dead:
                self._start_ahead()

    async def _start(self, start: Start) -> bool:
        make = self._makes[start.version]
        began_s = self._loop.time()
        await asyncio.sleep(make.start_s)
        now_s = self._loop.time()
        self._journal.cold_starts += start.ticket is not None
        if make.fails and self._chance.random() < make.fails:
            self._carry_out(self.residency.start_failed(start.isolate, "it does not start", now_s))
            self._say_cold(start.version)
            return False
        self._isolates[start.isolate] = Isolate(start.isolate, start.version, make.isolate_bytes)
        self._carry_out(
            self.residency.started(
                start.isolate, (now_s - began_s) * 1e3, now_s, memory_bytes=make.isolate_bytes
            )
        )  # fmt: skip
        self._tell_server(Frame.NOTICE, f"warm {start.version}".encode())
        return True

    def _say_cold(self, version: str) -> None:
        self._journal.went_cold(self.machine, version)
        self._tell_server(Frame.NOTICE, f"cold {version}".encode())
