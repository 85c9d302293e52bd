"""A slice of a trace, and when and where its requests arrive. Pure."""

from dataclasses import dataclass

import numpy as np

from benchmarks.warmth.trace import Ints, Trace, minutes_of


@dataclass(frozen=True, slots=True)
class Cut:
    """What of a trace is replayed: ``functions`` of those that are asked in these minutes, drawn with ``seed``."""

    functions: int = 100
    first_minute: int = 0
    minutes: int = 24
    #: The most requests of a function that are kept of a minute: the popular are warm anyway.
    per_minute_max: int = 10
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: when after the start, for which worker, and at which server it arrives (numbers from 0)."""

    at_s: float
    worker: int
    server: int


def cut(trace: Trace, wanted: Cut) -> Trace:
    """The slice, its minutes and its workers numbered from 0. Fewer functions when not so many are asked."""
    inside = (trace.minute >= wanted.first_minute) & (trace.minute < wanted.first_minute + wanted.minutes)
    asked = np.unique(trace.worker[inside])
    random = np.random.default_rng(wanted.seed)
    chosen: Ints = np.sort(random.permutation(asked)[: wanted.functions])
    kept = inside & np.isin(trace.worker, chosen)
    return Trace(
        trace.name,
        np.searchsorted(chosen, trace.worker[kept]).astype(np.int64),
        trace.minute[kept] - wanted.first_minute,
        np.minimum(trace.count[kept], wanted.per_minute_max),
        trace.duration_s[chosen],
        trace.memory_mb[chosen],
    )


def arrivals(trace: Trace, servers: int, speed: float, seed: int) -> list[Arrival]:
    """The requests of a slice in order, ``speed`` times as fast as in the trace, evenly over ``servers``."""
    found: list[Arrival] = []
    for minute in minutes_of(trace, servers, seed):
        workers, at, times_s = minute.in_order()
        found += [Arrival(t / speed, worker, server) for worker, server, t in zip(workers, at, times_s, strict=True)]
    return found
