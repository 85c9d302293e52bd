"""What does a deploy spend on compiling: for the first tenant of an engine, and for the next one?"""

import statistics
import tempfile
import time
from pathlib import Path

from wasmtime.component import Component

from benchmarks.isolates.figure import Measured
from benchmarks.isolates.workbench import LIMITS, Workbench, WrongAnswer
from isolates.acceptance import Rejected
from isolates.artifact import ArtifactStore, Compiled
from isolates.compiler import compile_and_start


def engine_compile(bench: Workbench) -> Measured:
    """A JavaScript component whole: its engine and the worker in one, as if nobody had seen the engine before.

    Once: it takes seconds on all cores, which a median of many would turn into minutes.
    """
    engine, component = bench.box.engine, bench.component("hello_js")
    began, began_cpu = time.perf_counter(), time.process_time()
    artifact = Component(engine, component).serialize()
    took_s, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    return Measured(
        {"engine_compile_s": took_s},
        {"CPU s": cpu_s, "component MB": len(component) / 1e6, "artifact MB": len(artifact) / 1e6},
    )


def second_tenant(bench: Workbench) -> Measured:
    """A JavaScript worker, deployed where another tenant's was before: from its component to installed and started.

    Within the compile process: what starting that process and sending the pieces around take is not in it.
    """
    deploys = [_deploy_second(bench) for _ in range(bench.samples(7, quick=2))]
    _, first, second = deploys[-1]
    shared = {piece.source_digest for piece in first.pieces} & {piece.source_digest for piece in second.pieces}
    return Measured(
        {"second_tenant_deploy_ms": statistics.median(took_ms for took_ms, _, _ in deploys)},
        {
            "runs": len(deploys),
            "pieces": len(second.pieces),
            "of them shared with the first": len(shared),
            "own compiled MB": second.own_bytes / 1e6,
            "all compiled MB": second.artifact_bytes / 1e6,
        },
    )


def _deploy_second(bench: Workbench) -> tuple[float, Compiled, Compiled]:
    """Milliseconds, and both tenants as they were compiled. In a store that has the first one, and nothing else."""
    with tempfile.TemporaryDirectory(prefix="everwarm-bench-") as directory:
        store = ArtifactStore(Path(directory))
        first = bench.copy_compiled("hello_js", store)
        component = bench.component("second_tenant_js")
        began = time.perf_counter()
        second = compile_and_start(component, store, LIMITS)
        took_ms = (time.perf_counter() - began) * 1e3
    if isinstance(second, Rejected):
        raise WrongAnswer(f"the second tenant was rejected: {second}")
    return took_ms, first, second
