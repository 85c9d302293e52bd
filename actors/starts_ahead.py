"""Isolates that are started ahead of their requests: a queue, and the few threads that work it off.

Residency has decided before anything is queued here, and counts what is queued as warming: a request for it waits and
starts nothing of its own. So nothing may be lost on the way. Prewarms are asked for room first (``has_room``); spares
have a bound of their own in residency, and always find a place.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache

import msgspec

from actors.decision import Start
from actors.exchange import Request
from isolates.limits import IsolateLimits

_log = logging.getLogger("everwarm.host")


class Recipe(msgspec.Struct, frozen=True):
    """What it takes to start an isolate of a version."""

    version: str
    component_digest: str
    limits: Mapping[str, int | None]
    worker: str = ""
    has_variables: bool = False

    @property
    def isolate_limits(self) -> IsolateLimits:
        """The version's limits as its isolates need them."""
        return _isolate_limits(tuple(self.limits.items()))

    @classmethod
    def of(cls, request: Request) -> "Recipe":
        """The recipe of the version that a request is for."""
        return cls(request.version, request.component_digest, request.limits, request.worker, request.has_variables)


@lru_cache(maxsize=1_024)  # each request has them, and there are few
def _isolate_limits(plain: tuple[tuple[str, int | None], ...]) -> IsolateLimits:
    default, given = IsolateLimits(), dict(plain)
    wall_ms, sent = given.get("wall_ms"), given.get("subrequests_max")
    return IsolateLimits(
        cpu_ms=given.get("cpu_ms") or default.cpu_ms,
        startup_cpu_ms=given.get("startup_cpu_ms") or default.startup_cpu_ms,
        # Unlimited while the client is connected: one that leaves is seen at once, so a day is only a backstop.
        wall_ms=86_400_000.0 if wall_ms is None else wall_ms,
        wait_until_ms=given.get("wait_until_ms") or default.wait_until_ms,
        memory_soft_bytes=given.get("memory_soft_bytes") or default.memory_soft_bytes,
        memory_bytes_max=given.get("memory_hard_bytes") or default.memory_bytes_max,
        subrequests_max=default.subrequests_max if sent is None else sent,
        connections_max=given.get("connections_max") or default.connections_max,
        log_bytes_max=given.get("log_bytes_max") or default.log_bytes_max,
    )


class StartsAhead:
    """Starts isolates on threads of its own, in the order in which they were decided."""

    def __init__(self, start: Callable[[Start, Recipe], None], *, threads: int, prewarms_max: int) -> None:
        self._start = start
        self._threads = threads
        self._prewarms_max = prewarms_max
        self._queue: deque[tuple[Start, Recipe]] = deque()
        self._changed = threading.Condition()
        self._stopping = False

    def begin(self) -> None:
        """Start the threads."""
        for i in range(self._threads):
            threading.Thread(target=self._work, name=f"ahead-{i}", daemon=True).start()

    def stop(self) -> None:
        """Let the threads end; what is still queued is not started."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    @property
    def has_room(self) -> bool:
        """Whether one more prewarm may be asked for: a favour that waits for too long is none."""
        return len(self._queue) < self._prewarms_max

    def put(self, start: Start, recipe: Recipe) -> None:
        """Have an isolate started. Returns at once."""
        with self._changed:
            self._queue.append((start, recipe))
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return
                start, recipe = self._queue.popleft()
            try:
                self._start(start, recipe)
            except Exception:
                _log.exception("starting %s ahead failed", recipe.version)  # the next ones are started all the same
