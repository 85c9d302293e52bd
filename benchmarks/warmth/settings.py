"""The numbers of a replay, and the cluster's layout that follows from them."""

from dataclasses import dataclass, replace

import numpy as np

from actors.ring import Ring, worker_key
from actors.view import CORDON
from benchmarks.warmth.trace import Trace

_MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """What is replayed on, and how dear things are."""

    servers: int = 8
    #: Isolates that a server has room for, each of one size; or its memory, with the sizes of the trace.
    slots: int = 62
    memory_mb: int | None = None
    seed: int = 0
    #: A small JavaScript worker's start, and a Ray call with two processes on the way: what the product measures.
    cold_ms: float = 10.0
    hop_ms: float = 2.0
    #: Durations are scaled so that the cluster's cores are this busy on the average.
    utilization: float = 0.5
    #: Starts ahead that a server may begin in a second, and as many at once: 5 % of one core, at 10 ms each.
    prewarms_per_s: float = 5.0
    #: A server's load, as it reports it, is the average of its last two minutes.
    load_window_s: float = 120.0
    #: How far along a worker's order a request may go. More than four are better served by copies everywhere.
    order_max: int = 4


@dataclass(frozen=True)
class Layout:
    """The servers by name, each worker's order as numbers of servers, sizes, and the CPU time of a request."""

    names: list[str]
    #: Home first, at most ``order_max``.
    orders: list[list[int]]
    homes: list[int]
    sizes_bytes: list[int]
    capacity_bytes: int
    #: In seconds of a whole server.
    cpu_s: list[float]
    #: By server: the share of its memory that is left when all whose home it is are warm.
    memory_spare: list[float]


def layout(trace: Trace, settings: Settings) -> Layout:
    """Homes by the product's ring, keyed with the seed; CPU times scaled to the utilization."""
    names = [f"server-{number}" for number in range(settings.servers)]
    number_of = {name: number for number, name in enumerate(names)}
    ring = Ring(1, dict.fromkeys(names, 1), b"benchmark" + settings.seed.to_bytes(8, "big"))
    orders = [
        [number_of[name] for name in ring.successors(worker_key(CORDON, trace.name_of(worker)), settings.order_max)]
        for worker in range(trace.workers)
    ]
    totals = np.bincount(trace.worker, weights=trace.count, minlength=trace.workers)
    asked_for_s = float((totals * trace.duration_s).sum()) or 1.0
    available_s = settings.servers * trace.minutes * 60.0 * settings.utilization
    if settings.memory_mb is None:
        sizes, capacity = [_MIB] * trace.workers, settings.slots * _MIB
    else:
        sizes = [max(_MIB, int(mb * _MIB)) for mb in np.nan_to_num(trace.memory_mb, nan=1.0)]
        capacity = settings.memory_mb * _MIB
    homes = [order[0] for order in orders]
    wanted = np.bincount(homes, weights=sizes, minlength=settings.servers)
    return Layout(
        names,
        orders,
        homes,
        sizes,
        capacity,
        (trace.duration_s * available_s / asked_for_s).tolist(),
        np.maximum(0.0, 1.0 - wanted / capacity).tolist(),
    )


def roomy(places: Layout) -> Layout:
    """The same with memory for every worker on every server."""
    capacity = sum(places.sizes_bytes)
    wanted = np.bincount(places.homes, weights=places.sizes_bytes, minlength=len(places.names))
    return replace(places, capacity_bytes=capacity, memory_spare=(1.0 - wanted / capacity).tolist())
