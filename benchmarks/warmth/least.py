"""The least number of cold starts: L. A. Belady's MIN, which knows the future ("A study of replacement algorithms for a
virtual-storage computer", IBM Systems Journal 5(2), 1966).

All places of the cluster are one, and what goes is what is asked again last. A worker's requests of one minute count as
one, which makes the bound lower and never higher. It is a bound for whoever starts isolates on request; starts ahead
can do better.
"""

from dataclasses import dataclass
from heapq import heappop, heappush

from benchmarks.warmth.trace import Trace


@dataclass(frozen=True)
class Least:
    """What nobody can do better who starts on request."""

    cold: int
    evictions: int


def least(trace: Trace, places: int) -> Least:
    """MIN over isolates of one size."""
    if places >= trace.workers:
        return Least(trace.first_touches, 0)
    workers = trace.worker.tolist()
    next_use = [len(workers)] * len(workers)
    seen: dict[int, int] = {}
    for at in range(len(workers) - 1, -1, -1):
        next_use[at] = seen.get(workers[at], len(workers))
        seen[workers[at]] = at
    due: dict[int, int] = {}  # of those that are warm
    latest: list[tuple[int, int]] = []
    cold = evictions = 0
    for at, worker in enumerate(workers):
        if worker not in due:
            cold += 1
            if len(due) >= places:
                evictions += 1
                while True:
                    later, going = heappop(latest)
                    if due.get(going) == -later:  # else it was used since
                        del due[going]
                        break
        due[worker] = next_use[at]
        heappush(latest, (-next_use[at], worker))
    return Least(cold, evictions)
