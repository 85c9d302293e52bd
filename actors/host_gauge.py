"""How busy a host says it is: the load that rides on every answer and every report. Pure.

*CPU* is that of the whole process: what it does it does for guests, and one that computes for minutes shows in it while
it runs, and not when it is over.

*Nearly full* is the hint that the next step may be a refusal, so that whoever sends requests here warms an isolate of
its own while this host still takes them. Of memory, only what is in use counts: a host that keeps as many idle isolates
as its budget allows is full in the best sense, and makes room for whoever comes.
"""

from collections import deque
from dataclasses import dataclass

import msgspec

from actors.exchange import Load


@dataclass(frozen=True, slots=True)
class GaugeLimits:
    """When to say what."""

    #: The share of a bound above which a host is nearly full. The last fifth is what comes while the hint travels and a
    #: copy starts elsewhere: 100 of 512 places in line, some 400 MiB of 2 GiB.
    nearly_full_share: float = 0.8
    #: CPU is that of so many seconds: two or three measurements, so that one burst does not count for all.
    cpu_window_s: float = 1.0


class Filled(msgspec.Struct, frozen=True):
    """What is taken of something that has a bound."""

    taken: int
    most: int

    def above(self, share: float) -> bool:
        """Whether more than ``share`` of it is taken."""
        return self.taken > share * self.most


class HostGauge:
    """The gauge of one host. ``cores``: of its machine, those the process may run on."""

    def __init__(self, cores: int, limits: GaugeLimits = GaugeLimits()) -> None:
        self._cores = cores
        self._limits = limits
        self._cpu: deque[tuple[float, float]] = deque()  # (when, CPU seconds by then): the window's, and one before
        self.cpu_load = 0.0

    def used(self, cpu_s: float, now_s: float) -> None:
        """The process has used ``cpu_s`` seconds of CPU since it began."""
        self._cpu.append((now_s, cpu_s))
        while len(self._cpu) > 2 and self._cpu[1][0] <= now_s - self._limits.cpu_window_s:
            self._cpu.popleft()
        began_s, before_s = self._cpu[0]
        if now_s > began_s:
            self.cpu_load = min(1.0, max(0.0, cpu_s - before_s) / (now_s - began_s) / self._cores)

    def is_nearly_full(self, queue: Filled, memory_in_use: Filled, connections: Filled) -> bool:
        """Whether one of the bounds at which requests are refused is near."""
        share = self._limits.nearly_full_share
        return queue.above(share) or memory_in_use.above(share) or connections.above(share)

    def load(
        self, *, running: int, queue: Filled, queue_ms: float, isolates: int, memory_bytes: int, memory_in_use: Filled,
        connections: Filled, residence_s: float,
    ) -> Load:  # fmt: skip
        """The load as it is told. ``residence_s`` may be infinite; what is told then is 0."""
        return Load(
            running,
            queue.taken,
            queue_ms,
            isolates,
            memory_bytes,
            residence_s if residence_s < float("inf") else 0.0,
            self.cpu_load,
            self.is_nearly_full(queue, memory_in_use, connections),
            memory_in_use.most,
        )
