"""How often each worker is asked on this machine, and how much CPU time it uses: averages that forget. Pure.

An average over the last `w` seconds without keeping the last `w` seconds: a sum to which each request adds one and
that shrinks by e^(-dt/w) while nothing happens. Sum / w is the rate. The window, ten minutes, answers whether a
worker will be asked again soon enough for a copy to stay warm; it starts from nothing, so that a worker must have been
asked to count as asked.
"""

from collections import OrderedDict
from dataclasses import dataclass
from heapq import nlargest
from math import exp


@dataclass(frozen=True, slots=True)
class HeatLimits:
    """Window and bound of a table."""

    #: A decision to keep a copy is one about minutes. Ten of them hold enough requests of a worker near the threshold
    #: (fourteen) to tell it from chance.
    window_s: float = 600.0
    #: Workers remembered; about 300 bytes each. The one that was asked least lately is forgotten, and counts from 0.
    workers_max: int = 65_536


class _Heat:
    __slots__ = ("cpu_s", "requests", "since_s")

    def __init__(self, now_s: float) -> None:
        self.since_s = now_s
        self.requests = 0.0
        self.cpu_s = 0.0


class HeatTable:
    """The heat of workers by name, the one asked last at the end. ``now_s`` never needs to go backwards; if it does,
    no time has passed."""

    def __init__(self, limits: HeatLimits = HeatLimits()) -> None:
        self.limits = limits
        self._heats: OrderedDict[str, _Heat] = OrderedDict()

    def note(self, worker: str, now_s: float, requests: int = 1, cpu_s: float = 0.0) -> None:
        """``requests`` more arrived, or used ``cpu_s`` seconds of CPU time; a request's time may be noted later."""
        heat = self._heats.get(worker)
        if heat is None:
            heat = self._heats[worker] = _Heat(now_s)
            if len(self._heats) > self.limits.workers_max:
                self._heats.popitem(last=False)
        else:
            self._heats.move_to_end(worker)
            passed_s = now_s - heat.since_s
            if passed_s > 0.0:
                heat.since_s = now_s
                kept = exp(-passed_s / self.limits.window_s)
                heat.requests *= kept
                heat.cpu_s *= kept
        heat.requests += requests
        heat.cpu_s += cpu_s

    def rate_per_s(self, worker: str, now_s: float) -> float:
        """Requests a second."""
        heat = self._heats.get(worker)
        return 0.0 if heat is None else self._rate(heat, now_s)

    def cpu_rate(self, worker: str, now_s: float) -> float:
        """Seconds of CPU time a second: 1 is one core."""
        heat = self._heats.get(worker)
        if heat is None or not heat.cpu_s:
            return 0.0
        return heat.cpu_s * self._kept(heat, now_s) / self.limits.window_s

    def hottest(self, count: int, now_s: float) -> list[str]:
        """The ``count`` workers with the highest rates, highest first: the order in which a new home warms them."""
        return nlargest(count, self._heats, key=lambda worker: self._rate(self._heats[worker], now_s))

    def forget(self, worker: str) -> None:
        """It is deployed no more."""
        self._heats.pop(worker, None)

    def _rate(self, heat: _Heat, now_s: float) -> float:
        return heat.requests * self._kept(heat, now_s) / self.limits.window_s

    def _kept(self, heat: _Heat, now_s: float) -> float:
        return exp(-max(0.0, now_s - heat.since_s) / self.limits.window_s)

    def __len__(self) -> int:
        return len(self._heats)

    def __repr__(self) -> str:
        return f"<HeatTable of {len(self._heats)} workers>"
