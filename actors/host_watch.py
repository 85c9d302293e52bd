"""HostWatch: how busy a host is. Counted as it happens, measured twice a second, told to the Server.

The load rides on every answer, so it is made from what is known at that moment: what runs and waits now, and memory and
CPU of the last look. A look is also the host's clock: what follows from memory and from time is done then, the crash
table learns that the process lives, and the quarantine what happened to others.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from actors.crash_reports import Quarantine
from actors.crash_table import CrashTable
from actors.exchange import Ended, Load
from actors.host_counts import HostCounts
from actors.host_gauge import Filled, GaugeLimits, HostGauge
from actors.host_news import HostNews
from actors.isolate_desk import IsolateDesk

_log = logging.getLogger("everwarm.host")

_PAGE_BYTES = 4_096


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """When to look, and when to say what."""

    #: How often the host measures its memory, and looks for isolates that were unused for too long.
    every_s: float = 0.5
    gauge: GaugeLimits = field(default_factory=GaugeLimits)


class HostWatch:
    """The watch of one host. Used by any of its threads."""

    def __init__(
        self,
        socket: Path,
        desk: IsolateDesk,
        news: HostNews,
        *,
        cores: int,
        connections: Callable[[], Filled],
        limits: WatchLimits | None = None,
        table: CrashTable | None = None,
        quarantine: Quarantine | None = None,
    ) -> None:
        """``socket``: under which the Server knows the host. ``cores``: those that its process may run on.
        ``connections``: how many it has now."""
        self._socket = socket
        self._desk = desk
        self._news = news
        self._connections = connections
        self._limits = limits or WatchLimits()
        self._table = table
        self._quarantine = quarantine
        self._lock = threading.Lock()
        self._gauge = HostGauge(cores, self._limits.gauge)
        self._counts = HostCounts()
        self._running = 0
        self._queue_ms = 0.0
        self._memory_bytes = 0
        self._asked: dict[str, tuple[int, float]] = {}  # by worker, since the last report of it
        self._stopping = False

    def begin(self) -> None:
        """Begin to look, on a thread of its own."""
        threading.Thread(target=self._work, name="watch", daemon=True).start()

    def stop(self) -> None:
        """Look no more than once again."""
        self._stopping = True

    # --------------------------------------------------------------------------------------------- as it happens

    def waited(self, queue_ms: float) -> None:
        """How long a request that came over a link waited for its isolate."""
        self._queue_ms = queue_ms

    def began(self) -> None:
        """A guest is about to run."""
        with self._lock:
            self._running += 1

    def ran(self) -> None:
        """It does not run any more."""
        with self._lock:
            self._running -= 1

    def ended(self, worker: str, ended: Ended) -> None:
        """A request is over, whether or not a guest ran for it."""
        with self._lock:
            requests, cpu_s = self._asked.get(worker, (0, 0.0))
            self._asked[worker] = (requests + 1, cpu_s + ended.cpu_ms / 1e3)
            self._counts.ended(ended)

    def load(self) -> Load:
        """How busy the host is now."""
        stock, connections = self._desk.stock(), self._connections()
        with self._lock:
            in_use_bytes = max(0, self._memory_bytes - stock.idle_bytes)
            return self._gauge.load(
                running=self._running,
                queue=stock.queue,
                queue_ms=self._queue_ms,
                isolates=stock.isolates,
                memory_bytes=self._memory_bytes,
                memory_in_use=Filled(in_use_bytes, self._desk.memory_bytes_max),
                connections=connections,
                residence_s=stock.residence_s,
            )

    def statistics(self) -> dict[str, object]:
        """Counters, for operators and tests."""
        with self._lock:
            return {"memory_bytes": self._memory_bytes, "running": self._running, **self._counts.plain()}

    # -------------------------------------------------------------------------------------------- twice a second

    def _work(self) -> None:
        with open("/proc/self/statm", encoding="ascii") as statm:
            while not self._stopping:
                time.sleep(self._limits.every_s)
                statm.seek(0)
                _, resident, shared, *_ = (int(part) * _PAGE_BYTES for part in statm.read().split())
                try:
                    self._look(resident - shared)
                except Exception:
                    # Without the next look nothing is evicted any more, and the machine's memory is the bound.
                    _log.exception("a look at the host failed")

    def _look(self, memory_bytes: int) -> None:
        with self._lock:
            self._memory_bytes = memory_bytes
            self._gauge.used(time.process_time(), time.monotonic())
        self._desk.look(memory_bytes)
        self._report()
        if self._table is not None:
            self._table.beat(time.time_ns() // 1_000_000)
        if self._quarantine is not None:
            self._quarantine.look(time.time())

    def _report(self) -> None:
        """Tell the Server who ran here since the last time, and how busy the host is."""
        load = self.load()
        with self._lock:
            asked, self._asked = self._asked, {}
        self._news.heat(self._socket, load, asked, self._desk.memory_bytes_max)
