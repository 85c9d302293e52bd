"""A cluster in one process: one seed, one run.

Everything that is drawn comes from the seed, through sources with names of their own: so a change in what one part
draws leaves the others as they are. ``play`` makes a cluster, lets its clients ask while the timetable of faults goes
by, waits until all is quiet, and hands back what the checkers say.
"""

import asyncio
import gc
import math
from dataclasses import dataclass, field, replace
from random import Random
from zlib import crc32

from actors.admission import AdmissionLimits
from actors.residency import ResidencyLimits
from actors.view import encode_plain
from actors.worker import Plan, Reuse
from tests.simulation.checkers import MACHINE_DIED, judge_bounds, judge_end, judge_story
from tests.simulation.guest import Behaviour, behaviour
from tests.simulation.host import HostNumbers, Make
from tests.simulation.journal import WINDOW_BYTES, Journal, Story
from tests.simulation.machine import Disks, Machine, machine_of
from tests.simulation.network import Network, NetworkLimits, Weather
from tests.simulation.publications import Delays, Publications
from tests.simulation.surroundings import (
    code_looked_for_once,
    four_cores,
    quiet_roles,
    rings_shared,
    traces_now_and_then,
)
from tests.simulation.virtual_loop import START_S, RunAway, Stalled, virtual_time
from tests.simulation.weather import Fault, timetable
from tests.simulation.wires import SocketLoop


@dataclass(frozen=True, slots=True)
class RunLimits:
    """Times of a run, all virtual."""

    #: The longest that a request may take: in line for 10 s on each of two machines, behind a call that was given up
    #: after 10 s, with a body and an answer over a slow network.
    request_s_max: float = 240.0
    #: Until nothing is lent any more: an answer that nobody reads is ended after 30 s, at the next look.
    settle_s_max: float = 90.0
    bounds_every_s: float = 1.0
    requests_per_s: float = 80.0


@dataclass(slots=True)
class Played:
    """What came of one seed."""

    seed: int
    servers: int
    requests: int
    violations: list[str]
    endings: dict[str, int] = field(default_factory=dict)
    virtual_s: float = 0.0
    calls: int = 0
    lost_calls: int = 0
    offers: int = 0
    refusals: int = 0
    runs: int = 0
    cold_starts: int = 0
    evictions: int = 0
    faults: list[str] = field(default_factory=list)
    lines: list[tuple[float, str]] = field(default_factory=list)
    #: Of every request's ending, moment and place: two runs with one digest are the same run.
    digest: int = 0


_METHODS = ("GET", "GET", "GET", "HEAD", "POST", "POST", "POST", "PUT", "DELETE", "PATCH")
_DISKS: list[Disks] = []


class Cluster:
    """The servers of one run, and their clients."""

    def __init__(self, seed: int, requests: int, loop: SocketLoop, *, telling: bool, calm: bool = False) -> None:
        self._seed = seed
        self._requests = requests
        self._loop = loop
        self._limits = RunLimits()
        chance = self._chance = self._source("cluster")
        self.journal = Journal(loop.time, telling=telling)
        self.network = Network(loop, self._source("network"), self.journal, NetworkLimits())
        self._makes: dict[str, Make] = {}
        self.publications = Publications(loop, self.network, self._source("news"), self.journal, self._makes)
        self.network.add("control", self.publications.calls)
        servers = chance.randint(2, 7)
        numbers = HostNumbers(
            ResidencyLimits(
                isolates_max=chance.choice((3, 6, 12, 30)),
                siblings_max=chance.choice((1, 2, 4)),
                queue_max=chance.choice((4, 16, 64)),
                memory_bytes_max=chance.choice((64, 256, 4096)) << 20,
            ),
            cores=chance.choice((1, 2, 4)),
        )
        self._admission = AdmissionLimits(in_flight_max=chance.choice((2, 8, 32, 128)))
        hosts = chance.choice((1, 1, 2, 3))
        if not _DISKS:
            _DISKS.append(Disks())
        self.machines = [
            Machine(
                f"server-{i + 1}", _DISKS[0].of(f"server-{i + 1}"), hosts, loop=loop, network=self.network,
                seeds=self._source, journal=self.journal, makes=self._makes, numbers=numbers,
                admission=self._admission,
            )
            for i in range(servers)
        ]  # fmt: skip
        # The last one may join later.
        self._outside = servers - 1 if servers > 2 and chance.random() < 0.3 else None
        self._workers = [f"w{seed % 100_000}-{i}" for i in range(chance.choice((4, 12, 24)))]
        self._length_s = requests / self._limits.requests_per_s
        self.faults = [] if calm else timetable(self._source("weather"), servers, self._length_s)
        self._plans = [self._plan(number) for number in range(requests)]
        self._asking: dict[asyncio.Task[None], None] = {}

    def _source(self, name: str) -> Random:
        return Random(f"{self._seed}/{name}")

    # ------------------------------------------------------------------------------------------------- the requests

    def _plan(self, number: int) -> tuple[float, int, Behaviour, int, str, int]:
        """One request: the time after the one before, its machine, what its guest does, its body, method and worker."""
        chance = self._chance
        gap_s = -math.log(1.0 - chance.random()) / self._limits.requests_per_s if chance.random() < 0.8 else 0.0
        method = chance.choice(_METHODS)
        size = 0
        if method in ("POST", "PUT", "PATCH"):
            size = chance.choice((0, 10, 500, 4_000)) if chance.random() < 0.96 else chance.choice((70_000, 300_000))
        # Popularity as in traces: a few are asked all the time, most now and then.
        worker = int(len(self._workers) * chance.random() ** 3)
        does = behaviour(chance, has_body=size > 0)
        return gap_s, chance.randrange(len(self.machines)), does, size, method, worker

    async def _clients(self) -> None:
        chance = self._source("clients")
        for number, (gap_s, entry, does, size, method, worker) in enumerate(self._plans):
            if gap_s:
                await asyncio.sleep(gap_s)
            machine = self.machines[entry]
            if machine.dead or entry == self._outside:
                alive = [m for i, m in enumerate(self.machines) if not m.dead and i != self._outside]
                if not alive:
                    return
                machine = alive[entry % len(alive)]
            story = Story(f"r{number:07d}", self._workers[worker], method, machine.name, does, size, self._loop.time())
            draw = chance.random()
            if draw < 0.02:
                story.leaves_after_s = chance.choice((0.0, 0.001, 0.01, 0.1, 1.0)) * chance.random()
            elif draw < 0.03 and size:
                story.breaks = True
            self.journal.stories[story.request_id] = story
            first = min(size, WINDOW_BYTES, chance.choice((0, 7, 100, 10**6, 10**6, 10**6)))
            if story.breaks:
                first = min(first, size // 2)
            piece = max(5, size // chance.choice((1, 2, 5)))
            pause_s = chance.choice((0.0, 0.0, 0.01)) if size > first else 0.0
            slow_s = 0.02 if draw > 0.99 else 0.0
            task = self._loop.create_task(machine.edge.ask(story, first, piece, pause_s, slow_s))
            self._asking[task] = None
            task.add_done_callback(self._asked)
            if draw > 0.95:
                self._loop.create_task(machine.edge.prewarm(self._workers[worker]))

    def _asked(self, task: "asyncio.Task[None]") -> None:
        del self._asking[task]
        if not task.cancelled() and task.exception() is not None:
            self.journal.broken(f"a client's task raised {task.exception()!r}")

    # --------------------------------------------------------------------------------------------------- the faults

    def _begin_fault(self, fault: Fault) -> None:
        machine = self.machines[fault.machine]
        self.journal.tell(f"fault: {fault}")
        if machine.dead:
            return
        match fault.kind:
            case "lossy":
                some = fault.strength * 0.1
                self._while(fault, replace(self.network.weather, lose_before=some, lose_after=some / 2))
            case "slow":
                self._while(fault, replace(self.network.weather, slow=0.3 * fault.strength, slow_s_max=fault.for_s))
            case "starve":
                machine.sleep(min(fault.for_s, 3.0), self.journal)
            case "partition":
                self._part(fault)
            case "kill host":
                machine.kill_host(fault.other, self.journal)
            case "kill machine":
                self._kill_machine(machine, fault)
            case "kill shard":
                machine.kill_shard(self.journal)
            case "stale":
                self.publications.delays = Delays(0.5, fault.for_s * 2, 0.3, 0.3 * fault.strength)
                self._new_ring(fault)
            case "deploys":
                self._deploy(fault)
            case "ring":
                self._new_ring(fault)
            case "refusing":
                self._refuse(machine, fault)

    def _while(self, fault: Fault, weather: Weather) -> None:
        self.network.weather = weather
        self._loop.call_later(fault.for_s, setattr, self.network, "weather", Weather())

    def _part(self, fault: Fault) -> None:
        """One machine is cut off from another, or from all."""
        until_s = self._loop.time() + fault.for_s * 2
        name = self.machines[fault.machine].name
        others = [self.machines[fault.other].name]
        if fault.strength > 0.5:
            others = ["control", *(m.name for m in self.machines if m.name != name)]
        for other in others:
            self.network.part(name, other, until_s)

    def _kill_machine(self, machine: Machine, fault: Fault) -> None:
        if sum(not m.dead for i, m in enumerate(self.machines) if i != self._outside) < 2:
            return
        machine.kill(self.journal)
        self.publications.listeners.remove(machine.name)
        for story in self.journal.stories.values():
            if story.entry == machine.name and not story.is_over:
                self.journal.ended(story, MACHINE_DIED)
        self._loop.call_later(fault.for_s, self._without, machine.name)

    def _without(self, name: str) -> None:
        members = {m: weight for m, weight in self.publications.members.items() if m != name}
        self.publications.publish("apply_ring", self.publications.new_ring(**members))

    def _new_ring(self, fault: Fault) -> None:
        """A machine joins or leaves the ring, or weighs more; nobody who leaves stops serving its clients."""
        members = dict(self.publications.members)
        if self._outside is not None:
            members[self.machines[self._outside].name] = 1
            self._outside = None
        elif fault.strength < 0.4 and len(members) > 1:
            members.pop(self.machines[fault.machine].name, None)
        else:
            members[self.machines[fault.machine].name] = 1 + (fault.strength > 0.8)
        if members:
            self.publications.begin(self.publications.change_ring(**members))

    def _deploy(self, fault: Fault) -> None:
        news = self.publications
        worker = self._workers[int(fault.strength * len(self._workers))]
        now = news.deployed.get(worker)
        if now is not None and fault.other % 4 == 3:
            news.publish("apply_change", news.remove(worker))
            self.journal.tell(f"{worker} is removed")
            return
        version = news.version_of(worker, self._make(worker, self._chance), Plan.PAID)
        split = now is not None and fault.other % 4 == 2
        others = (now.versions[0],) if split and now is not None else ()
        self.journal.tell(f"{worker} is to be deployed: {version.version_id}, beside {[v.version_id for v in others]}")
        news.begin(news.change_deployment(worker, version, *others))

    def _refuse(self, machine: Machine, fault: Fault) -> None:
        """A home refuses all for a while, as one that drains or as one that is full."""
        full = {"draining": True} if fault.strength < 0.4 else {"in_flight_max": 0}
        over = {"draining": False} if fault.strength < 0.4 else {"in_flight_max": self._admission.in_flight_max}
        self._loop.create_task(machine.shard.configure(encode_plain(full)))
        self._loop.call_later(fault.for_s, lambda: self._loop.create_task(machine.shard.configure(encode_plain(over))))

    # ------------------------------------------------------------------------------------------------------ the run

    def _make(self, worker: str, chance: Random) -> Make:
        return Make(
            worker,
            start_s=chance.choice((0.001, 0.004, 0.03, 0.2)),
            isolate_bytes=chance.choice((1, 4, 30)) << 20,
            fails=0.2 if chance.random() < 0.05 else 0.0,
        )

    async def begin(self) -> None:
        """Everybody is there, knows the ring, and has everything that is deployed."""
        chance, news = self._source("workers"), self.publications
        for worker in self._workers:
            reuse = Reuse()
            draw = chance.random()
            if draw < 0.1:
                reuse = Reuse(max_requests=chance.choice((1, 1, 5)))
            elif draw < 0.2:
                reuse = Reuse(idle_s=1)
            plan = Plan.FREE if chance.random() < 0.4 else Plan.PAID
            news.deploy(worker, news.version_of(worker, self._make(worker, chance), plan, reuse))
        members = {m.name: 1 for i, m in enumerate(self.machines) if i != self._outside}
        ring = news.new_ring(**members)
        for machine in self.machines:
            await machine.start()
            news.listeners.append(machine.name)
            await machine.server.calls["apply_ring"](ring)
            await machine.server.sync()
            self._loop.create_task(machine.edge.follow_server())
        await asyncio.sleep(0.1)

    async def play(self) -> None:
        """The whole run."""
        await self.begin()
        self._judge_bounds()
        for fault in self.faults:
            self._loop.call_later(fault.at_s, self._begin_fault, fault)
        await self._clients()
        await self._all_answered()
        await self._settled()
        for story in self.journal.stories.values():
            wrong = judge_story(story, self.journal)
            if wrong is not None:
                self.journal.broken(f"{story.request_id} ({story.method}) {wrong}")
        judge_end(self.machines, self.network, self.journal)

    async def _all_answered(self) -> None:
        late_s = self._loop.time() + self._limits.request_s_max
        while self._asking and self._loop.time() < late_s:
            await asyncio.wait(list(self._asking), timeout=late_s - self._loop.time())
        for story in self.journal.stories.values():
            if not story.is_over:
                self.journal.broken(f"{story.request_id} hangs: {story}")

    async def _settled(self) -> None:
        """The weather is fine again, and everybody hears what he missed; wait until nothing is under way."""
        self.network.weather = Weather()
        self.publications.delays = Delays()
        for machine in self.publications.listeners:
            self.publications.resync(machine)
        until_s = self._loop.time() + self._limits.settle_s_max
        # In virtual time looking costs nothing, and no event tells that nothing happens any more.
        while self._loop.time() < until_s and not self._is_quiet():  # noqa: ASYNC110
            await asyncio.sleep(1.0)

    def _is_quiet(self) -> bool:
        if self.network.under_way():
            return False
        return not any(
            len(m.server._exports)
            or (not m.shard_is_dead and m.shard._visits)
            or any(not host.dead and (host.running or host.residency.queued) for host in m.hosts)
            for m in self.machines
            if not m.dead
        )

    def _judge_bounds(self) -> None:
        judge_bounds(self.machines, self._admission.in_flight_max, self.journal)
        self._loop.call_later(self._limits.bounds_every_s, self._judge_bounds)

    def played(self) -> Played:
        """What came of it."""
        journal = self.journal
        endings: dict[str, int] = {}
        digest = 0
        for story in journal.stories.values():
            told = f"{story.request_id} {story.endings} {story.ended_s:.9f} {[(r.host, r.isolate) for r in story.runs]}"
            digest = crc32(told.encode(), digest)
            for ending in story.endings:
                endings[ending] = endings.get(ending, 0) + 1
        return Played(
            self._seed, len(self.machines), len(journal.stories), journal.violations, endings,
            self._loop.time() - START_S, self.network.calls, self.network.lost, journal.offers, journal.refusals,
            journal.runs, journal.cold_starts, sum(h.residency.evictions for m in self.machines for h in m.hosts),
            [str(fault) for fault in self.faults], journal.lines, digest,
        )  # fmt: skip


def play(seed: int, requests: int = 1_000, *, telling: bool = False, calm: bool = False) -> Played:
    """Play one seed, and say what came of it. The same seed and number of requests give the same run."""
    loop = SocketLoop(machine_of)
    collecting = gc.isenabled()
    gc.disable()  # the collector would run at moments of its own; what is left over goes at the end of the run
    asyncio.set_event_loop(loop)
    try:
        with (
            virtual_time(loop, "actors", "tracing"), rings_shared(), code_looked_for_once(),
            four_cores(), traces_now_and_then(), quiet_roles() as faults,
        ):  # fmt: skip
            cluster = Cluster(seed, requests, loop, telling=telling, calm=calm)
            try:
                loop.run_until_complete(cluster.play())
            except (Stalled, RunAway) as stuck:
                cluster.journal.broken(f"the run does not end: {stuck}")
            _end_tasks(loop)
            for fault in (*loop.faults, *faults):
                cluster.journal.broken(fault)
            return cluster.played()
    finally:
        asyncio.set_event_loop(None)
        loop.close()
        if collecting:
            gc.enable()


def _end_tasks(loop: SocketLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=60.0))
