"""How exact is the CPU limit in a crowd, and do guests run in parallel?"""

import math
import os
import statistics
import threading
import time
from collections.abc import Callable

from benchmarks.isolates.conversation import LightConversation
from benchmarks.isolates.figure import Measured
from benchmarks.isolates.workbench import NotHere, Workbench, WrongAnswer
from isolates.isolate import Isolate
from isolates.limits import IsolateLimits
from isolates.outcome import Outcome

_CORES = 2
_SPINNERS, _CPU_LIMIT_MS = 8, 50.0
#: Rounds of the spinning guest, about a microsecond each: a tenth of a second, so that starting threads is nothing.
_ROUNDS = 100_000
#: How long the machine itself is looked at.
_LOOK_S = 5.0
#: No thread of these measurements takes longer, by far.
_THREAD_TIMEOUT_S = 120.0


def _on_two_cores() -> None:
    """Leave this process two cores. To be called before the sandbox starts its thread, which is born into them."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < _CORES:
        raise NotHere(f"this needs {_CORES} cores, and there is {len(allowed)}")
    os.sched_setaffinity(0, allowed[:_CORES])


def _together(*works: Callable[[], None]) -> float:
    """Each on a thread of its own: seconds from the start of all to the end of the last. Their first fault comes out
    here."""
    faults: list[BaseException] = []
    ready = threading.Barrier(len(works) + 1)

    def guarded(work: Callable[[], None]) -> None:
        ready.wait(_THREAD_TIMEOUT_S)
        try:
            work()
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    ready.wait(_THREAD_TIMEOUT_S)
    began = time.perf_counter()
    for thread in threads:
        thread.join(_THREAD_TIMEOUT_S)
    took_s = time.perf_counter() - began
    if faults:
        raise faults[0]
    if any(thread.is_alive() for thread in threads):
        raise WrongAnswer(f"a guest still runs after {_THREAD_TIMEOUT_S:g} s")
    return took_s


def overrun(bench: Workbench) -> Measured:
    """Eight guests burn CPU for ever on two cores. How much more than its limit did each get, before it was stopped?"""
    _on_two_cores()
    mapped = bench.mapped("spin")
    limits = IsolateLimits(cpu_ms=_CPU_LIMIT_MS)
    each = bench.samples(25, quick=2)
    overruns_ms: list[float] = []

    def spin() -> None:
        for _ in range(each):
            isolate = bench.start(mapped, limits)
            finished = isolate.run(LightConversation())
            isolate.close()
            if finished.outcome is not Outcome.EXCEEDED_CPU:
                raise WrongAnswer(f"a spinning guest ended with {finished.outcome}: {finished.reason}")
            overruns_ms.append(finished.usage.cpu_ms - _CPU_LIMIT_MS)

    _together(*[spin] * _SPINNERS)
    overruns_ms.sort()
    pauses_ms = _pauses_ms()
    return Measured(
        {"cpu_limit_overrun_ms_p99": overruns_ms[math.ceil(0.99 * len(overruns_ms)) - 1]},
        {
            "runs": len(overruns_ms),
            "p50 ms": statistics.median(overruns_ms),
            "max ms": overruns_ms[-1],
            f"a bare thread's pauses over 1 ms in {_LOOK_S:g} s": len(pauses_ms),
            "the longest of them ms": max(pauses_ms, default=0.0),
        },
    )


def _pauses_ms() -> list[float]:
    """The jumps of over a millisecond in the CPU clock of a thread that does nothing but look at it, in a few seconds.

    They are times in which somebody below this system had the core: they are charged to whoever ran, guests too.
    """
    until, before, jumps = time.monotonic() + _LOOK_S, time.thread_time_ns(), []
    while time.monotonic() < until:
        now = time.thread_time_ns()
        if now - before > 1_000_000:
            jumps.append((now - before) / 1e6)
        before = now
    return jumps


def parallel(bench: Workbench) -> Measured:
    """Two guests that compute the same amount: one after the other, divided by both at once."""
    _on_two_cores()
    mapped = bench.mapped("spin")
    first, second = bench.start(mapped), bench.start(mapped)

    def compute(isolate: Isolate) -> None:
        bench.ask(isolate, f"/?rounds={_ROUNDS}")

    def both() -> None:
        compute(first)
        compute(second)

    both()
    ratios, alone_ms = [], []
    for _ in range(bench.samples(21, quick=3)):
        in_turn_s = _together(both)
        at_once_s = _together(lambda: compute(first), lambda: compute(second))
        ratios.append(in_turn_s / at_once_s)
        alone_ms.append(in_turn_s * 1e3 / 2)
    return Measured(
        {"parallel_speedup": statistics.median(ratios)},
        {"runs": len(ratios), "one guest alone ms": statistics.median(alone_ms), "best": max(ratios)},
    )
