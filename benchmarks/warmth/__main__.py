"""The command line of the replay of traces."""

import argparse
import multiprocessing
import sys
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.warmth.baselines import BASELINES, LeastLoaded, Policy, Random, Unsharded
from benchmarks.warmth.everwarm_policy import AllDeployed, Everwarm, OnRequest
from benchmarks.warmth.least import least
from benchmarks.warmth.plots import draw
from benchmarks.warmth.replay import Run, replay
from benchmarks.warmth.report import Found, json_line, table
from benchmarks.warmth.settings import Layout, Settings, layout, roomy
from benchmarks.warmth.trace import Trace, TraceAbsent, load

#: Exit code when there are no traces: nothing was found, and nothing is wrong.
ABSENT = 77
#: Up to here requests are taken one by one unless --form says otherwise: a minute or two a policy.
_EXACT_REQUESTS_MAX = 5_000_000
_EPILOG = """
A server has room for --slots isolates of one size, or for --memory-mb with the sizes of the trace. One isolate serves
all requests of its worker on a server: that one isolate runs one request at a time is not modelled, nor are queues, so
no home refuses; loads are CPU seconds, by the trace's durations, scaled. Without --form and --policies, up to five
million requests are taken one by one, and more a minute at a time and without the baselines random and least loaded,
which are as cold as unsharded. Exits with 77 when there are no traces.
"""


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.warmth",
        description="How many requests of a real trace are cold, by routing policy? Ours is the product's own code.",
        epilog=_EPILOG,
    )
    defaults = Settings()
    parser.add_argument("--trace", choices=["T2", "T3"], default="T3", help="T3: 8 hours; T2: a sample of 14 days")
    parser.add_argument("--servers", type=int, default=defaults.servers)
    parser.add_argument("--slots", type=int, default=defaults.slots, help="isolates that a server has room for")
    parser.add_argument("--memory-mb", type=int, help="a server's memory, instead of slots")
    parser.add_argument("--seed", type=int, default=0, help="of the ring, of arrivals and of baselines that roll dice")
    parser.add_argument("--functions", type=int, default=3_000, help="workers in the sample of T2")
    parser.add_argument("--days", type=int, default=14, help="days of T2")
    parser.add_argument("--minutes", type=int, help="only the first ones of the trace")
    parser.add_argument("--form", choices=["exact", "batch"], help="one by one, or a minute at a time")
    parser.add_argument("--policies", default="", metavar="NAME,...", help="these baselines alone beside unsharded")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--traces-dir", type=Path, help="where the traces lie (default: ../shared/traces)")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw PNGs there")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    return parser


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


#: What the processes that replay inherit: passing a trace of 38 million requests to each would double its memory.
_inherited: dict[str, tuple[Trace, Settings, Layout, bool]] = {}


def _one(policy: type[Policy]) -> Run:
    trace, settings, places, exact = _inherited["it"]
    if policy is AllDeployed:
        settings, places = replace(settings, slots=trace.workers, memory_mb=None), roomy(places)
    began = time.perf_counter()
    run = replay(policy, trace, places, settings, exact=exact, progress=_progress)
    _progress(f"{run.policy}: {time.perf_counter() - began:.0f} s")
    return run


def find(trace: Trace, settings: Settings, policies: list[type[Policy]], *, exact: bool, processes: int) -> Found:
    """Replays all, some at a time."""
    wanted: list[type[Policy]] = [*policies, Everwarm, OnRequest, AllDeployed]
    _inherited["it"] = (trace, settings, layout(trace, settings), exact)
    if processes > 1:
        with multiprocessing.get_context("fork").Pool(processes) as pool:
            runs = list(pool.imap(_one, wanted, chunksize=1))
    else:
        runs = [_one(policy) for policy in wanted]
    by_policy = dict(zip(wanted, runs, strict=True))
    return Found(
        trace=trace.name,
        servers=settings.servers,
        slots=settings.slots,
        memory_mb=settings.memory_mb,
        seed=settings.seed,
        form="exact" if exact else "batch",
        first_touches=trace.first_touches,
        least=None if settings.memory_mb else least(trace, settings.servers * settings.slots),
        runs=[*runs[len(policies) : -1], *runs[: len(policies)]],
        ours=by_policy[Everwarm],
        on_request=by_policy[OnRequest],
        unsharded=by_policy[Unsharded],
        roomy=by_policy[AllDeployed],
    )


def main() -> int:
    """0 when all was replayed, ``ABSENT`` when there is nothing to replay."""
    parser = _arguments()
    options = parser.parse_args()
    names = {name for name in options.policies.split(",") if name}
    known = {policy.name for policy in BASELINES}
    if names - known:
        parser.error(f"no such policy: {', '.join(sorted(names - known))}; there are {', '.join(sorted(known))}")
    if min(options.servers, options.slots, options.functions, options.days, options.processes) < 1:
        parser.error("servers, slots, functions, days and processes are 1 or more")
    try:
        trace = load(options.trace, options.traces_dir, functions=options.functions, days=options.days)
    except TraceAbsent as absent:
        print(f"skipped: {absent}", file=sys.stderr)
        return ABSENT
    if options.minutes:
        trace = trace.until(options.minutes)
    settings = Settings(servers=options.servers, slots=options.slots, memory_mb=options.memory_mb, seed=options.seed)
    exact = options.form == "exact" if options.form else trace.requests <= _EXACT_REQUESTS_MAX
    if not names:
        names = known if trace.requests <= _EXACT_REQUESTS_MAX else known - {Random.name, LeastLoaded.name}
    policies = [policy for policy in BASELINES if policy.name in names or policy is Unsharded]
    found = find(trace, settings, policies, exact=exact, processes=options.processes)
    if options.plots:
        for path in draw(found, options.plots):
            _progress(str(path))
    print(json_line(found) if options.json else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
