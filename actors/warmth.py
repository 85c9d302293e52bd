"""What one Server knows of warmth: all that ``routing`` asks for, gathered from what passes by. Pure.

    what                                    from
    which versions have an isolate here     notices of this machine's hosts, as it happens
    rates and CPU of workers                reports of the hosts (who ran here), and what this Server sends away
    how long isolates live here             reports of the hosts
    what a start costs, what it holds       the end of every request that passes
    loads of other servers                  every reply of theirs, and what was sent there since

All of it is soft: it is bounded, it may be late, and it is wrong for a while after a restart. That is slow, and never
an error for anybody.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from actors.exchange import Ended, HeatReport, Load
from actors.heat import HeatTable
from actors.host_loads import HostLoads
from actors.load_board import LoadBoard
from actors.routing import Situation

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class WarmthLimits:
    """Bounds of what is remembered."""

    #: Versions whose warmth is remembered; the oldest are forgotten, at the price of one hop.
    warm_max: int = 65_536
    #: Versions whose costs are remembered; without them routing reckons with ordinary ones.
    costs_max: int = 16_384
    #: A copy that was evicted was here *lately* for so long: the horizon of rates.
    lately_s: float = 600.0
    lately_max: int = 16_384
    #: What an isolate is taken to hold while none lives here.
    isolate_bytes: int = 4 << 20
    #: How much one measured hop counts in the average: a slow one shows, and is forgotten within a hundred.
    hop_weight: float = 0.05
    #: A hop that seems to take longer waited for something else.
    hop_ms_max: float = 50.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What a start of one version takes, and what its isolate holds; 0 when it was not measured."""

    start_ms: float = 0.0
    bytes_: int = 0


_UNKNOWN = Cost()


class Warmth:
    """The knowledge of one Server. ``cores``: of its machine."""

    def __init__(self, here: str = "", cores: int = 1, limits: WarmthLimits = WarmthLimits()) -> None:
        self.here = here
        self.limits = limits
        self.heat = HeatTable()
        self.board = LoadBoard()
        self.loads = HostLoads()
        self.hop_ms = 0.0
        #: Workers whose home is here, as its Server counts them.
        self.homes_here = 0
        #: Requests that ended on the hosts of this machine, whoever sent them.
        self.ran_here = 0
        self._cores = cores
        self._budgets: dict[str, int] = {}  # of hosts, in bytes
        self._warm: OrderedDict[str, None] = OrderedDict()
        self._costs: OrderedDict[str, Cost] = OrderedDict()
        self._cold_since_s: OrderedDict[str, float] = OrderedDict()

    # ------------------------------------------------------------------------------------------ this machine's hosts

    def is_warm(self, version: str) -> bool:
        """Whether a host of this machine said that it has a started isolate of ``version``."""
        return version in self._warm

    def warm(self, version: str) -> None:
        """An isolate of ``version`` was started here."""
        self._warm[version] = None
        self._cold_since_s.pop(version, None)
        if len(self._warm) > self.limits.warm_max:
            self._warm.popitem(last=False)

    def cold(self, version: str, now_s: float) -> None:
        """The last isolate of ``version`` here is gone."""
        if version in self._warm:
            del self._warm[version]
            _remember(self._cold_since_s, version, now_s, self.limits.lately_max)

    def warm_versions(self) -> list[str]:
        """All versions that have an isolate here, the one that was started last at the end."""
        return list(self._warm)

    def forget_host(self, socket: str) -> None:
        """A host is gone, and what it said with it; whoever calls this says which versions are cold."""
        self.loads.forget(socket)
        self._budgets.pop(socket, None)

    def reported(self, report: HeatReport, now_s: float) -> None:
        """A host told who ran on it, and how busy it is."""
        self.loads.note(report.socket, report.load, now_s)
        self.board.reported(self.here, report.load, now_s)
        self._budgets[report.socket] = report.memory_bytes_max
        for worker, (requests, cpu_s) in report.workers.items():
            self.heat.note(worker, now_s, requests, cpu_s)
            self.ran_here += requests

    # ------------------------------------------------------------------------------------------------- other servers

    def sent(self, server: str, worker: str, now_s: float) -> None:
        """A request that arrived here is offered to ``server``."""
        self.board.sent(server, now_s=now_s)
        self.heat.note(worker, now_s)

    def replied(self, server: str, load: Load, now_s: float) -> None:
        """``server`` told its load with a reply."""
        self.board.reported(server, load, now_s)

    def ended_away(self, worker: str, version: str, ended: Ended, round_trip_ms: float | None, now_s: float) -> None:
        """A request ended at its home. ``round_trip_ms``: of an answer that came whole with the reply."""
        self.heat.note(worker, now_s, 0, ended.cpu_ms / 1e3)
        self.ended(version, ended)
        if round_trip_ms is not None and ended.start_type == "warm":
            hop_ms = min(max(round_trip_ms - ended.wall_ms - ended.queue_ms, 0.1), self.limits.hop_ms_max)
            self.hop_ms += (hop_ms - self.hop_ms) * self.limits.hop_weight if self.hop_ms else hop_ms

    def ended(self, version: str, ended: Ended) -> None:
        """A request for ``version`` ended somewhere: what its isolate cost, if that was measured there."""
        if ended.start_cost_ms or ended.isolate_bytes:
            _remember(self._costs, version, Cost(ended.start_cost_ms, ended.isolate_bytes), self.limits.costs_max)

    # ------------------------------------------------------------------------------------------------------- routing

    def cost_of(self, version: str) -> Cost:
        """What is known of the isolates of ``version``."""
        return self._costs.get(version, _UNKNOWN)

    def residence_s(self, socket: str | None, now_s: float) -> float:
        """How long an isolate lives unasked on a host; infinite while nothing has to go."""
        return self.loads.of(socket, now_s).residence_s or math.inf

    def memory_spare(self, now_s: float) -> float:
        """The share of this machine's memory that is left when every worker whose home it is has an isolate.

        Isolates count with what those that live here hold on the average. 0 while no host has told its budget.
        """
        budget_bytes = sum(self._budgets.values())
        if not budget_bytes:
            return 0.0
        loads = [self.loads.of(socket, now_s) for socket in self._budgets]
        isolates = sum(load.isolates for load in loads)
        each_bytes = sum(load.memory_bytes for load in loads) / isolates if isolates else self.limits.isolate_bytes
        return max(0.0, 1.0 - self.homes_here * each_bytes / budget_bytes)

    def situation(
        self,
        worker: str,
        version: str,
        *,
        home: str | None,
        order: Callable[[], tuple[str, ...]],
        servers: int = 1,
        socket: str | None,
        refused_before: bool,
        hosts_here: bool,
        next_home: str | None,
        now_s: float,
    ) -> Situation:
        """What is known of a request's worker. ``socket``: the host that would run it here. ``order``: the servers of
        the worker's order, which takes long enough to find out that it is asked for only when its home has too much.
        ``servers``: over how many of them requests arrive."""
        bare = Situation(
            self.here, home, self.is_warm(version), refused_before, hosts_here=hosts_here, next_home=next_home
        )
        if not hosts_here or home is None or home == self.here or bare.warm_here or refused_before:
            return bare  # decided: the rest costs time, and is asked for by requests that leave
        cost = self.cost_of(version)
        others = order() if self.board.over(home, now_s) else ()
        cold_s = self._cold_since_s.get(version)
        return replace(
            bare,
            order=others,
            servers=servers,
            rate_here_per_s=self.heat.rate_per_s(worker, now_s),
            cpu_rate=self.heat.cpu_rate(worker, now_s) / self._cores,
            residence_s=self.residence_s(socket, now_s),
            cold_cost_ms=cost.start_ms,
            hop_cost_ms=self.hop_ms,
            memory_spare=self.memory_spare(now_s),
            isolate_bytes=cost.bytes_,
            overloaded=self.board.overloaded(others, now_s),
            nearly_full=self.board.nearly_full(home, now_s),
            was_local=cold_s is not None and now_s - cold_s < self.limits.lately_s,
        )


def _remember(table: OrderedDict[str, V], key: str, value: V, most: int) -> None:
    """Put it at the young end, and forget what is at the old one."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > most:
        table.popitem(last=False)
