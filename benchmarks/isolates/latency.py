"""How long do a host call, an answer and a start take?

*Warm* is the next request of an isolate that has answered before. *Cold* begins without an isolate: instantiate and
the first answer, and where it says so mapping the artifact before; the file is in the page cache, as it is on a machine
that has run the version lately. What a caller does not wait for, such as closing an isolate, is not in a figure.
"""

import statistics
import time
from collections.abc import Callable

from benchmarks.isolates.conversation import LightConversation
from benchmarks.isolates.figure import Measured, Number
from benchmarks.isolates.text_guest import CALLS
from benchmarks.isolates.workbench import Workbench, WrongAnswer, expect_answer, median_ms
from isolates.artifact import Mapped
from isolates.isolate import Isolate
from isolates.outcome import Outcome

#: Requests before the first one that counts: the first few find caches cold, of the CPU and of Python.
_WARM_UP = 20
_CHUNK_BYTES, _CHUNKS = 64 * 1024, 16


def host_call(bench: Workbench) -> Measured:
    """A loop that calls the host, minus the same loop without the call, divided by the calls."""
    calling, idle = bench.start(bench.mapped("calling")), bench.start(bench.mapped("idle"))

    def loop(isolate: Isolate) -> None:
        finished = isolate.run(LightConversation())
        # These guests answer nothing, and nothing else is wrong with them.
        if finished.outcome is not Outcome.HUNG:
            raise WrongAnswer(f"the loop ended with {finished.outcome}: {finished.reason}")

    runs = bench.samples(101, quick=11)
    for isolate in (calling, idle):
        loop(isolate)
    # In turns, so that a slow moment of the machine meets both.
    pairs = [(median_ms(1, lambda: loop(calling)), median_ms(1, lambda: loop(idle))) for _ in range(runs)]
    with_calls_ms, without_ms = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Measured(
        {"host_call_us": (with_calls_ms - without_ms) * 1e3 / CALLS},
        {"calls a run": CALLS, "runs": runs, "empty run ms": without_ms},
    )


def _warm_ms(bench: Workbench, guest: str, runs: int) -> float:
    isolate = bench.start(bench.mapped(guest))
    for _ in range(_WARM_UP):
        bench.ask(isolate)
    return median_ms(runs, lambda: bench.ask(isolate))


def _cold(
    bench: Workbench, prepare: Callable[[], Callable[[], Mapped]], runs: int
) -> tuple[float, dict[str, Number | str]]:
    """The median of map, instantiate and first answer in ms; and of each of them. ``prepare`` is not timed; what it
    gives maps, or has mapped already."""
    steps: list[tuple[float, float, float, float]] = []
    for _ in range(runs + 1):
        mapping = prepare()
        began = time.perf_counter()
        mapped = mapping()
        is_mapped = time.perf_counter()
        isolate = bench.start(mapped)
        started = time.perf_counter()
        bench.ask(isolate)
        answered = time.perf_counter()
        isolate.close()
        # Unmapping is not what is timed, and would be when the names get their next values.
        del isolate, mapped
        steps.append((answered - began, is_mapped - began, started - is_mapped, answered - started))
    # The first of a process also pays for what all isolates share: it is told, and does not count.
    first, *counted = steps
    whole, map_s, start_s, answer_s = (statistics.median(times) * 1e3 for times in zip(*counted, strict=True))
    return whole, {
        "map ms": map_s,
        "instantiate ms": start_s,
        "first answer ms": answer_s,
        "first of the process ms": first[0] * 1e3,
        "runs": runs,
    }


def c_hello_warm(bench: Workbench) -> Measured:
    """A small worker's next answer: what this host adds to each request."""
    runs = bench.samples(3_000, quick=200)
    warm_us = _warm_ms(bench, "hello_c", runs) * 1e3
    return Measured({"c_hello_warm_us": warm_us}, {"runs": runs, "worker": bench.folder("hello_c")})


def c_hello_cold(bench: Workbench) -> Measured:
    """A small worker whose artifact is mapped already: instantiate and first answer."""
    mapped = bench.mapped("hello_c")
    whole_ms, notes = _cold(bench, lambda: lambda: mapped, bench.samples(500, quick=20))
    return Measured({"c_hello_cold_ms": whole_ms}, {**notes, "worker": bench.folder("hello_c")})


def js_hello_warm(bench: Workbench) -> Measured:
    """A JavaScript isolate's next answer."""
    runs = bench.samples(500, quick=20)
    return Measured({"js_hello_warm_ms": _warm_ms(bench, "hello_js", runs)}, {"runs": runs})


def js_hello_cold(bench: Workbench) -> Measured:
    """A JavaScript worker that this process does not have: map, instantiate, first answer."""
    whole_ms, notes = _cold(bench, lambda: bench.mapping("hello_js"), bench.samples(60, quick=3))
    return Measured({"js_hello_cold_ms": whole_ms}, notes)


def js_second_cold(bench: Workbench) -> Measured:
    """The same beside another JavaScript worker, as nearly every start is: the engine is mapped already."""
    prepare = bench.mapping_beside("hello_js", "second_tenant_js")
    whole_ms, notes = _cold(bench, prepare, bench.samples(60, quick=3))
    return Measured({"js_hello_cold_beside_another_ms": whole_ms}, notes)


def js_single_shot(bench: Workbench) -> Measured:
    """A stock fetch event, which answers once in its life: instantiate and answer, each time."""
    mapped = bench.mapped("fetch_event_js")
    whole_ms, notes = _cold(bench, lambda: lambda: mapped, bench.samples(150, quick=5))
    return Measured({"js_single_shot_ms": whole_ms}, notes)


def python_hello_warm(bench: Workbench) -> Measured:
    """A Python isolate's next answer."""
    runs = bench.samples(300, quick=20)
    return Measured({"python_hello_warm_ms": _warm_ms(bench, "hello_python", runs)}, {"runs": runs})


def python_hello_cold(bench: Workbench) -> Measured:
    """A Python worker that this process does not have: map, instantiate, first answer."""
    whole_ms, notes = _cold(bench, lambda: bench.mapping("hello_python"), bench.samples(40, quick=3))
    return Measured({"python_hello_cold_ms": whole_ms}, notes)


def echo_1mib(bench: Workbench) -> Measured:
    """1 MiB into a guest and 1 MiB out of it."""
    chunks = tuple(bytes([number]) * _CHUNK_BYTES for number in range(_CHUNKS))
    sent = b"".join(chunks)
    isolate = bench.start(bench.mapped("echo"))
    times_s = []
    for _ in range(bench.samples(101, quick=5)):
        conversation = LightConversation(method="POST", chunks=chunks)
        began = time.perf_counter()
        finished = isolate.run(conversation)
        times_s.append(time.perf_counter() - began)
        expect_answer(finished, conversation)
        if conversation.body != sent:
            raise WrongAnswer("the echo is not what was sent")
    return Measured({"echo_1mib_ms": statistics.median(times_s) * 1e3}, {"runs": len(times_s)})
