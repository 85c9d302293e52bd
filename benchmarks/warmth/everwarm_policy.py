"""Our routing: the product's own modules, asked as a Server asks them.

Each server has what a Server has: the heat of what arrives there, a board of the others' loads, and of the workers
whose home it is the times when they are due. In the batch form all servers share one table of heat, with the rate of a
server being the cluster's divided by the number of servers, and one board.
"""

import heapq
from dataclasses import replace

import numpy as np

from actors import routing
from actors.exchange import Load
from actors.heat import HeatTable
from actors.load_board import LoadBoard
from actors.next_use import NextUseTable
from actors.routing import Place, Route, Situation
from benchmarks.warmth.baselines import Policy
from benchmarks.warmth.cluster import Cluster
from benchmarks.warmth.settings import Layout, Settings
from benchmarks.warmth.trace import Ints, Trace

#: Requests closer together than this are no idle time for `next_use`: a busy worker needs no foretelling.
_IDLE_S = 60.0


class Everwarm(Policy):
    """Here, home, or along the order; with copies started ahead."""

    name = "everwarm"
    has_homes = True
    #: Workers are started at their homes before the first request, as at their deploy, until this share of a server's
    #: memory is taken. The rest is for what is asked before the deployed are known to be.
    deploy_share_max = 0.8

    def __init__(self, trace: Trace, layout: Layout, settings: Settings) -> None:
        super().__init__(trace, layout, settings)
        names = layout.names
        self._workers = [trace.name_of(worker) for worker in range(trace.workers)]
        self._order_names = [tuple(names[server] for server in order) for order in layout.orders]
        self._number_of = {name: number for number, name in enumerate(names)}
        self._heats = [HeatTable() for _ in names]
        self._boards = [LoadBoard() for _ in names]
        self._dues = [NextUseTable() for _ in names]
        self._asked_s = [-1e9] * trace.workers
        self._due: list[tuple[float, int]] = []
        self._local = bytearray(trace.workers * settings.servers)
        self._horizon_s = routing.RoutingLimits().horizon_s

    def begin(self, cluster: Cluster) -> None:
        super().begin(cluster)
        share_bytes = self.deploy_share_max * self.layout.capacity_bytes
        for worker, home in enumerate(self.layout.homes):
            if cluster.used_bytes[home] + self.layout.sizes_bytes[worker] <= share_bytes:
                cluster.start_ahead(worker, home, 0.0, 1, free=True)

    def every_minute(self, now_s: float) -> None:
        """What went although it will be asked again is started before it is due."""
        for worker in self.cluster.lost_homes:
            due = self._dues[self.layout.homes[worker]].next_use(self._workers[worker], now_s)
            if due is not None and due.regular:
                heapq.heappush(self._due, (due.prewarm_s, worker))
        self.cluster.lost_homes.clear()
        while self._due and self._due[0][0] <= now_s + 60.0:
            _, worker = heapq.heappop(self._due)
            # Known to come again, it is a member of the working set.
            self.cluster.start_ahead(worker, self.layout.homes[worker], now_s, 2)

    # ------------------------------------------------------------------------------------------------ one by one

    def run(self, worker: int, arrived: int, now_s: float) -> int:
        cluster, name, home = self.cluster, self._workers[worker], self.layout.homes[worker]
        names = self.layout.names
        heat = self._heats[arrived]
        heat.note(name, now_s, 1, self.layout.cpu_s[worker])
        if home == arrived:
            self._note_due(worker, now_s)
        place = worker * self.settings.servers + arrived
        situation = Situation(names[arrived], names[home], cluster.warm[place] == 1, False)
        if home != arrived and not situation.warm_here:
            situation = self._away(situation, worker, arrived, now_s)
        route = routing.decide(situation)
        if route.place is Place.HERE:
            if home != arrived:
                self._local[place] = 1
            cluster.serve(worker, arrived, now_s)
            return arrived
        server = self._number_of[route.server]
        if server == home:
            self._note_due(worker, now_s)
        cluster.serve(worker, server, now_s, spilled=server != home)
        board = self._boards[arrived]
        board.sent(route.server, now_s=now_s)
        board.reported(route.server, Load(cpu_load=float(cluster.load[server])), now_s)
        if route.warm_here_too:
            self._copy(worker, arrived, now_s, heat.rate_per_s(name, now_s))
        elif not situation.was_local:
            self._local[place] = 0
        return server

    def _away(self, situation: Situation, worker: int, arrived: int, now_s: float) -> Situation:
        name, board, heat = self._workers[worker], self._boards[arrived], self._heats[arrived]
        order = self._order_names[worker]
        board.reported(self.layout.names[arrived], Load(cpu_load=float(self.cluster.load[arrived])), now_s)
        return replace(
            situation,
            order=order,
            rate_here_per_s=heat.rate_per_s(name, now_s),
            cpu_rate=heat.cpu_rate(name, now_s),
            servers=self.settings.servers,
            residence_s=self.cluster.orders[arrived].residence_s(now_s),
            memory_spare=self.layout.memory_spare[arrived],
            cold_cost_ms=self.settings.cold_ms,
            hop_cost_ms=self.settings.hop_ms,
            overloaded=board.overloaded(order, now_s),
            was_local=self._local[worker * self.settings.servers + arrived] == 1,
        )

    def _copy(self, worker: int, server: int, now_s: float, rate_per_s: float) -> None:
        residence_s = self.cluster.orders[server].residence_s(now_s)
        self.cluster.start_ahead(worker, server, now_s, int(rate_per_s * min(residence_s, self._horizon_s)))

    def _note_due(self, worker: int, now_s: float) -> None:
        if now_s - self._asked_s[worker] >= _IDLE_S:
            self._dues[self.layout.homes[worker]].note(self._workers[worker], now_s)
        self._asked_s[worker] = now_s

    # ---------------------------------------------------------------------------------------------- minute by minute

    def place(self, worker: Ints, arrived: Ints, times: Ints, now_s: float) -> Ints:
        servers = self.settings.servers
        heat = self._heats[0]
        asked, total = self._totals(worker, times)
        for one, count in zip(asked, total, strict=True):
            heat.note(self._workers[one], now_s, count, self.layout.cpu_s[one] * count)
            self._note_due(one, now_s)
        overloaded = self._overloaded(now_s)
        homes = np.array(self.layout.homes)[worker]
        warm = np.frombuffer(self.cluster.warm, np.uint8)[worker * servers + arrived] == 1
        placed = np.where(warm | (homes == arrived), arrived, homes)
        away = np.flatnonzero(placed != arrived)
        begin = 0
        away_workers = worker[away]
        # The cells are sorted by worker: one decision for all of a worker's that do not stay.
        for end in [*(np.flatnonzero(np.diff(away_workers)) + 1).tolist(), len(away)]:
            if end == begin:
                break
            cells = away[begin:end]
            one = int(away_workers[begin])
            route = self._decide_for_all(one, int(arrived[cells[0]]), now_s, overloaded)
            placed[cells] = server = self._number_of[route.server]
            if server != self.layout.homes[one]:
                self._boards[0].sent(route.server, self._sends(one, int(times[cells].sum())), now_s)
            if route.warm_here_too:
                rate = heat.rate_per_s(self._workers[one], now_s) / servers
                for copy in arrived[cells].tolist():
                    self._copy(one, copy, now_s, rate)
            begin = end
        return placed

    @staticmethod
    def _totals(worker: Ints, times: Ints) -> tuple[list[int], list[int]]:
        if not len(worker):
            return [], []
        begins = np.concatenate(([0], np.flatnonzero(np.diff(worker)) + 1))
        return worker[begins].tolist(), np.add.reduceat(times, begins).tolist()

    def _sends(self, worker: int, times: int) -> float:
        """A minute's requests of a worker, in ordinary requests."""
        share = self._boards[0].limits.request_share
        return self.layout.cpu_s[worker] * times / self.settings.load_window_s / share

    def _overloaded(self, now_s: float) -> frozenset[str]:
        board = self._boards[0]
        for name, load in zip(self.layout.names, self.cluster.load.tolist(), strict=True):
            board.reported(name, Load(cpu_load=load), now_s)
        return board.overloaded(tuple(self.layout.names), now_s)

    def _decide_for_all(self, worker: int, arrived: int, now_s: float, overloaded: frozenset[str]) -> Route:
        """The route of a worker from servers where it is not warm and not at home; ``arrived`` stands for all."""
        names, name, heat, servers = self.layout.names, self._workers[worker], self._heats[0], self.settings.servers
        order = self._order_names[worker]
        return routing.decide(
            Situation(
                here=names[arrived],
                home=order[0],
                warm_here=False,
                refused_before=False,
                order=order,
                rate_here_per_s=heat.rate_per_s(name, now_s) / servers,
                cpu_rate=heat.cpu_rate(name, now_s) / servers,
                servers=servers,
                residence_s=self.cluster.orders[arrived].residence_s(now_s),
                memory_spare=self.layout.memory_spare[arrived],
                cold_cost_ms=self.settings.cold_ms,
                hop_cost_ms=self.settings.hop_ms,
                overloaded=overloaded,
            )
        )


class OnRequest(Everwarm):
    """The same without starts at deploy: what a first touch costs, and the bound for it, show."""

    name = "everwarm, nothing at deploy"
    deploy_share_max = 0.0


class AllDeployed(Everwarm):
    """The same where memory is for all."""

    name = "everwarm, memory not binding"
    deploy_share_max = 1.0
