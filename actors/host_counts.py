"""What a host has counted since it began: endings, CPU time, and how long requests waited. Pure."""

from typing import Final

from actors.exchange import Ended
from tracing.metrics import Histogram

#: In seconds. A warm isolate is there at once, a cold start of a small worker takes a few milliseconds, that of an
#: engine tens of them, and nobody waits for longer than the last.
QUEUE_S_BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class HostCounts:
    """The counters of one host. Not thread-safe."""

    def __init__(self) -> None:
        self._outcomes: dict[str, int] = {}
        self._queue_s = Histogram(QUEUE_S_BOUNDS)
        self._cpu_ms = 0.0

    def ended(self, ended: Ended) -> None:
        """A request is over. Those that got no isolate have no time in the queue: they left it."""
        self._outcomes[ended.outcome.value] = self._outcomes.get(ended.outcome.value, 0) + 1
        self._cpu_ms += ended.cpu_ms
        if ended.start_type:
            self._queue_s.observe(ended.queue_ms / 1e3)

    def plain(self) -> dict[str, object]:
        """As plain data, for ``statistics``."""
        return {"outcomes": dict(self._outcomes), "cpu_ms": self._cpu_ms, "queue_s": self._queue_s.plain()}
