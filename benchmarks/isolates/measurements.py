"""The table of all measurements: who takes them, with which guests, and what their figures are held to.

A new figure is a function in one of the files beside this one, and a line here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.isolates import compiling, cpu, latency, memory
from benchmarks.isolates.figure import Figure, Measured
from benchmarks.isolates.workbench import Workbench

#: No measurement takes half of that on a busy machine, but for those that say so.
_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """One process's work: ``take`` gives the ``figures``; ``guests`` are prepared before. It is ended after
    ``timeout_s``."""

    take: Callable[[Workbench], Measured]
    guests: tuple[str, ...]
    figures: tuple[Figure, ...]
    timeout_s: float = _TIMEOUT_S

    @property
    def name(self) -> str:
        """Its first figure's."""
        return self.figures[0].name


MEASUREMENTS = (
    Measurement(latency.host_call, ("calling", "idle"), (Figure("host_call_us", 7),)),
    Measurement(latency.c_hello_warm, ("hello_c",), (Figure("c_hello_warm_us", 180),)),
    Measurement(latency.c_hello_cold, ("hello_c",), (Figure("c_hello_cold_ms", 0.5),)),
    Measurement(latency.js_hello_warm, ("hello_js",), (Figure("js_hello_warm_ms", 1.2),)),
    Measurement(latency.js_single_shot, ("fetch_event_js",), (Figure("js_single_shot_ms", 3.5),)),
    Measurement(latency.js_hello_cold, ("hello_js",), (Figure("js_hello_cold_ms", 4),)),
    Measurement(latency.js_second_cold, ("hello_js", "second_tenant_js"), (Figure("js_hello_cold_beside_another_ms"),)),
    Measurement(latency.python_hello_warm, ("hello_python",), (Figure("python_hello_warm_ms", 3),)),
    Measurement(latency.python_hello_cold, ("hello_python",), (Figure("python_hello_cold_ms", 12),)),
    Measurement(latency.echo_1mib, ("echo",), (Figure("echo_1mib_ms", 25),)),
    Measurement(memory.js_private, ("hello_js", "fetch_event_js"), (Figure("js_private_mb", 0.5),)),
    Measurement(memory.python_private, ("hello_python",), (Figure("python_private_mb", 2),)),
    Measurement(
        memory.js_live,
        ("hello_js",),
        (Figure("js_isolates_live", 5_000, at_least=True), Figure("js_live_mb", 0.45)),
        timeout_s=300.0,
    ),
    Measurement(cpu.overrun, ("spin",), (Figure("cpu_limit_overrun_ms_p99", 5),)),
    Measurement(cpu.parallel, ("spin",), (Figure("parallel_speedup", 1.7, at_least=True),)),
    Measurement(compiling.engine_compile, ("hello_js",), (Figure("engine_compile_s"),)),
    Measurement(compiling.second_tenant, ("hello_js", "second_tenant_js"), (Figure("second_tenant_deploy_ms"),)),
)

FIGURES = {figure.name: figure for measurement in MEASUREMENTS for figure in measurement.figures}


def wanted(names: set[str]) -> tuple[Measurement, ...]:
    """The measurements that give any of these figures, in the table's order."""
    return tuple(m for m in MEASUREMENTS if names & {figure.name for figure in m.figures})
