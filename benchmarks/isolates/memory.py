"""What does an isolate hold, and how many fit into a process?

Memory is counted as private pages: what would be free if the process ended. Compiled code and the untouched part of a
snapshot are shared by all isolates of a version, and are in the growth only once: the first isolates do not count.
"""

import gc
import json
import time

from benchmarks.isolates.figure import Measured
from benchmarks.isolates.process_memory import address_space_bytes, mappings, mappings_max, private_bytes
from benchmarks.isolates.workbench import Workbench, WrongAnswer
from isolates.isolate import Isolate

MB = 1e6
#: Isolates before the first one that counts: they touch what all of them share.
_FIRST = 5
#: What a process may address (47 bits of x86-64).
_ADDRESS_SPACE_BYTES_MAX = 1 << 47
#: The question behind the figure of live isolates: how many hosts does a machine need for that many?
_WANTED = 50_000
#: How many live isolates answer once more at the end, evenly spread.
_ASKED_AGAIN = 200


def _private_mb(bench: Workbench, guest: str) -> tuple[float, int]:
    """Growth per isolate that has answered one request, over so many of them."""
    mapped, count = bench.mapped(guest), bench.samples(50, quick=10)
    kept: list[Isolate] = []

    def grow(by: int) -> int:
        for _ in range(by):
            isolate = bench.start(mapped)
            bench.ask(isolate)
            kept.append(isolate)
        gc.collect()
        return private_bytes()

    before = grow(_FIRST)
    return (grow(count) - before) / count / MB, count


def js_private(bench: Workbench) -> Measured:
    """A further JavaScript isolate after its first request; and beside it one of the stock engine without our wrapper,
    which does less for a request."""
    each_mb, count = _private_mb(bench, "hello_js")
    stock_mb, _ = _private_mb(bench, "fetch_event_js")
    return Measured({"js_private_mb": each_mb}, {"isolates": count, "stock fetch event MB": stock_mb})


def python_private(bench: Workbench) -> Measured:
    """A further Python isolate after its first request."""
    each_mb, count = _private_mb(bench, "hello_python")
    return Measured({"python_private_mb": each_mb}, {"isolates": count})


def js_live(bench: Workbench) -> Measured:
    """Thousands of JavaScript isolates at once in this process: each answers at its start, a sample again at the end.

    The worker counts its requests in a variable of its module, so the answers also say that no two isolates share one.
    """
    mapped, count = bench.mapped("hello_js"), bench.samples(5_000, quick=50)
    live: list[Isolate] = []

    def one_more() -> None:
        isolate = bench.start(mapped)
        expect_served(bench.ask(isolate).body, 1)
        live.append(isolate)

    for _ in range(_FIRST):
        one_more()
    before_bytes, before_space, before_mappings = private_bytes(), address_space_bytes(), mappings()
    began = time.perf_counter()
    while len(live) < count:
        one_more()
    took_s = time.perf_counter() - began
    grown = len(live) - _FIRST
    each_mb = (private_bytes() - before_bytes) / grown / MB
    each_space = (address_space_bytes() - before_space) / grown
    mappings_in_all = mappings()
    each_mappings = (mappings_in_all - before_mappings) / grown
    again = live[:: max(1, count // _ASKED_AGAIN)]
    for isolate in again:
        expect_served(bench.ask(isolate).body, 2)
    by_mappings = int((mappings_max() - before_mappings) / each_mappings)
    by_space = int((_ADDRESS_SPACE_BYTES_MAX - before_space) / each_space)
    complete_servers = min(by_mappings, by_space)
    return Measured(
        {"js_isolates_live": len(live), "js_live_mb": each_mb},
        {
            "seconds": took_s,
            "ms each": took_s * 1e3 / grown,
            "answered again": len(again),
            "private GB in all": private_bytes() / 1e9,
            "mappings": mappings_in_all,
            "mappings each": each_mappings,
            "address space TiB": address_space_bytes() / 2**40,
            "address space GiB each": each_space / 2**30,
            f"a process holds, by its {mappings_max():,} mappings": by_mappings,
            "a process holds, by 128 TiB of address space": by_space,
            f"hosts for {_WANTED:,}": -(-_WANTED // complete_servers),
            f"GB for {_WANTED:,}": each_mb * _WANTED / 1e3,
        },
    )


def expect_served(body: bytes, count: int) -> None:
    """``WrongAnswer`` unless the worker says that this was its ``count``-th request."""
    served = json.loads(body)["served"]
    if served != count:
        raise WrongAnswer(f"an isolate says that it has served {served} requests; it should be {count}")
