"""The command line of the replay on a real cluster."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.replay.report import Found, json_line, table
from benchmarks.replay.site import House, run
from benchmarks.replay.slice import Cut, arrivals, cut
from benchmarks.warmth.trace import TraceAbsent, load

#: Exit code when there are no traces: nothing was found, and nothing is wrong.
ABSENT = 77
#: With the default slice some 24 requests a second: few enough that latencies are those of the way and not those of the
#: queue for two cores, which the client's process and Ray's own share.
_SPEED = 12.0
_EPILOG = """
Starts its own cluster, twice. Figures are of this machine in this run: compare only what was measured in the same one.
Exits with 77 when there are no traces.
"""


def _arguments() -> argparse.ArgumentParser:
    cuts, house = Cut(), House()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.replay",
        description="A slice of a real trace on a real cluster, with sharding and without.",
        epilog=_EPILOG,
    )
    parser.add_argument("--servers", type=int, default=house.servers)
    parser.add_argument("--functions", type=int, default=cuts.functions, help="of the trace, drawn with the seed")
    parser.add_argument("--first-minute", type=int, default=cuts.first_minute, help="of the trace's 480")
    parser.add_argument("--minutes", type=int, default=cuts.minutes, help="of the trace")
    parser.add_argument("--speed", type=float, default=_SPEED, help="times as fast as the trace")
    parser.add_argument(
        "--per-minute", type=int, default=cuts.per_minute_max, help="requests of a function kept of each minute"
    )
    parser.add_argument("--slots", type=int, default=house.slots, help="isolates that each host has room for")
    parser.add_argument("--memory-mib", type=int, default=house.memory_mib, help="for each host's isolates")
    parser.add_argument("--seed", type=int, default=cuts.seed, help="of the slice and of the arrivals")
    parser.add_argument("--quick", action="store_true", help="a short slice: that it runs, not what it finds")
    parser.add_argument("--traces-dir", type=Path, help="where the traces lie (default: ../shared/traces)")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    return parser


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """0 when both halves ran, ``ABSENT`` when there is nothing to replay."""
    parser = _arguments()
    options = parser.parse_args()
    if options.quick:
        options.functions, options.minutes, options.slots = 24, 4, 10
    if min(options.servers, options.functions, options.minutes, options.per_minute, options.slots) < 1:
        parser.error("servers, functions, minutes, per-minute and slots are 1 or more")
    if options.speed <= 0:
        parser.error("speed is more than 0")
    try:
        trace = load("T3", options.traces_dir)
    except TraceAbsent as absent:
        _progress(f"skipped: {absent}")
        return ABSENT
    wanted = Cut(options.functions, options.first_minute, options.minutes, options.per_minute, options.seed)
    sliced = cut(trace, wanted)
    if not sliced.requests:
        parser.error("nothing is asked in these minutes")
    coming = arrivals(sliced, options.servers, options.speed, options.seed)
    house = House(options.servers, options.slots, options.memory_mib)
    sharded = run(house, sliced.workers, coming, _progress)
    unsharded = run(replace(house, sharding=False), sliced.workers, coming, _progress)
    asked: dict[str, int | float | str] = {
        "trace": trace.name,
        "functions": sliced.workers,
        "minutes": options.minutes,
        "speed": options.speed,
        "servers": options.servers,
        "slots": options.slots,
        "memory_mib": options.memory_mib,
        "seed": options.seed,
    }
    found = Found(asked, sharded, unsharded)
    print(json_line(found) if options.json else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
