"""The servers of a replay: which worker is warm where, what is started and what has to go.

State lies in flat buffers, a place for each worker on each server, that numpy sees as well: the exact replay reads a
place at a time, the batch one a minute's at once.

*Refreshing.* `EvictionOrder` wants to hear of every use. It is told late, which is much faster: when an isolate comes
up as the next to go and was used since the order last heard of it, it is put in again with what is true by now, and
the next one comes up. So an isolate's score is at times counted from a later inflation than that of its last use.
With ``eager`` the order hears of every use; a test compares.
"""

from array import array
from collections import Counter
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from actors.eviction import EvictionOrder
from benchmarks.warmth.settings import Layout, Settings


class Cause(StrEnum):
    """Why a request found no isolate where it ran."""

    FIRST_TOUCH = "first touch"  # nobody asked for the worker before
    EVICTED = "evicted"  # it was here, and went
    SPILLED = "spilled"  # sent here because its home was busy, for the first time
    ELSEWHERE = "not here yet"  # it was started on other servers only


class Cluster:
    """Servers, and the counts of a run. ``at_homes``: whether the policy has homes that eviction should know of."""

    def __init__(self, layout: Layout, settings: Settings, *, at_homes: bool, eager: bool = False) -> None:
        self.layout = layout
        self.servers = servers = settings.servers
        self._cold_ms = settings.cold_ms
        self._at_homes = at_homes
        self._eager = eager
        self._capacity = layout.capacity_bytes
        self._budget = settings.prewarms_per_s
        places = len(layout.homes) * servers
        self.warm = bytearray(places)
        self._was_here = bytearray(places)
        self._unused = bytearray(places)  # started ahead, and not used yet
        self.used_s = array("d", bytes(8 * places))
        self._heard_s = array("d", bytes(8 * places))  # the use that the order knows of
        self.uses = array("q", bytes(8 * places))
        self.asked = bytearray(len(layout.homes))
        self.orders = [EvictionOrder() for _ in range(servers)]
        self.used_bytes = [0] * servers
        self._tokens = [self._budget] * servers
        self._tokens_s = [0.0] * servers
        self.load = np.zeros(servers)  # lately, in shares of a server
        self.cpu_s = np.zeros(servers)
        #: Homes' isolates that went, and when, for whoever wants to start them again in time.
        self.lost_homes: list[int] = []
        self.requests = self.sharded = 0
        self.cold: Counter[Cause] = Counter()
        self.evictions = self.prewarms = self.prewarms_wasted = self.prewarms_denied = 0

    # -------------------------------------------------------------------------------------------------- requests

    def serve(self, worker: int, server: int, now_s: float, *, spilled: bool = False) -> None:
        """One request runs on ``server``."""
        place = worker * self.servers + server
        if not self.warm[place]:
            self.cold_start(worker, server, now_s, 1, spilled=spilled)
            return
        self.used_s[place] = now_s
        self.uses[place] += 1
        self._unused[place] = 0
        self.asked[worker] = 1
        if self._eager:
            self._put(worker, server, place)

    def hits(self, places: NDArray[np.int64], times: NDArray[np.int64], now_s: float) -> None:
        """Many requests that all find an isolate; each place once."""
        np.frombuffer(self.used_s)[places] = now_s
        np.frombuffer(self.uses, np.int64)[places] += times
        np.frombuffer(self._unused, np.uint8)[places] = 0
        np.frombuffer(self.asked, np.uint8)[places // self.servers] = 1

    def cold_start(self, worker: int, server: int, now_s: float, times: int, *, spilled: bool = False) -> None:
        """The first of ``times`` requests finds no isolate, the others find its."""
        place = worker * self.servers + server
        if self._was_here[place]:
            cause = Cause.EVICTED
        elif not self.asked[worker]:
            cause = Cause.FIRST_TOUCH
        else:
            cause = Cause.SPILLED if spilled else Cause.ELSEWHERE
        self.cold[cause] += 1
        self.asked[worker] = 1
        self._start(worker, server, place, now_s, times)

    # ----------------------------------------------------------------------------------------------- starts ahead

    def start_ahead(self, worker: int, server: int, now_s: float, expected: int, *, free: bool = False) -> bool:
        """A prewarm, if the budget allows and nobody has to go who is worth more. ``expected``: requests in the life of
        an isolate, as far as is known. ``free``: of the budget, as at a deploy."""
        place = worker * self.servers + server
        if self.warm[place]:
            return False
        if not free and not self._take_token(server, now_s):
            self.prewarms_denied += 1
            return False
        size = self.layout.sizes_bytes[worker]
        if self.used_bytes[server] + size > self._capacity:
            order = self.orders[server]
            self._refresh_first(server)
            going = order.first_for(
                uses=expected,
                cost_ms=self._cold_ms,
                bytes_=size,
                at_home=self._is_home(worker, server),
                copies=1,
            )
            if going is None:
                self.prewarms_denied += 1
                return False
        self.prewarms += 1
        self._unused[place] = 1
        self._start(worker, server, place, now_s, 0, ahead=expected)
        return True

    def _take_token(self, server: int, now_s: float) -> bool:
        self._tokens[server] += (now_s - self._tokens_s[server]) * self._budget
        self._tokens_s[server] = now_s
        self._tokens[server] = min(self._tokens[server], self._budget)
        if self._tokens[server] < 1.0:
            return False
        self._tokens[server] -= 1.0
        return True

    # --------------------------------------------------------------------------------------------- start and evict

    def _start(self, worker: int, server: int, place: int, now_s: float, times: int, ahead: int = 0) -> None:
        size = self.layout.sizes_bytes[worker]
        while self.used_bytes[server] and self.used_bytes[server] + size > self._capacity:
            self._evict(server, now_s)
        self.used_bytes[server] += size
        self.warm[place] = self._was_here[place] = 1
        self.used_s[place] = now_s
        # What is expected of a prewarm counts until it is used: else it would go before it can be.
        self.uses[place] = times + ahead
        self._put(worker, server, place)

    def _put(self, worker: int, server: int, place: int) -> None:
        used_s = self.used_s[place]
        self._heard_s[place] = used_s
        self.orders[server].put(
            worker,
            uses=self.uses[place],
            cost_ms=self._cold_ms,
            bytes_=self.layout.sizes_bytes[worker],
            at_home=self._is_home(worker, server),
            copies=1,
            now_s=used_s,
            key=worker,
        )

    def _evict(self, server: int, now_s: float) -> None:
        worker = self._refresh_first(server)
        place = worker * self.servers + server
        self.orders[server].evicted(worker, now_s)
        self.used_bytes[server] -= self.layout.sizes_bytes[worker]
        self.warm[place] = 0
        self.uses[place] = 0
        self.evictions += 1
        if self._unused[place]:
            self._unused[place] = 0
            self.prewarms_wasted += 1
        if self._is_home(worker, server):
            self.lost_homes.append(worker)

    def _refresh_first(self, server: int) -> int:
        """The next to go, by what is true now."""
        order = self.orders[server]
        while True:
            worker = order.first()
            assert worker is not None, "a full server has nobody to lose"
            place = worker * self.servers + server
            if self.used_s[place] == self._heard_s[place]:
                return worker
            self._put(worker, server, place)

    def _is_home(self, worker: int, server: int) -> bool:
        """Whether losing it there is losing it for all. Deployed and asked by nobody, it has nobody to lose it yet."""
        return self._at_homes and self.layout.homes[worker] == server and self.asked[worker] == 1

    # ----------------------------------------------------------------------------------------------------- views

    def is_warm(self, worker: int, server: int) -> bool:
        """Whether it has an isolate there."""
        return self.warm[worker * self.servers + server] == 1

    @property
    def isolates(self) -> int:
        """Isolates now, on all servers."""
        return sum(self.warm)

    @property
    def unused(self) -> int:
        """Prewarms that nobody used yet."""
        return sum(self._unused)

    @property
    def cold_starts(self) -> int:
        """Requests that found no isolate."""
        return self.cold.total()
