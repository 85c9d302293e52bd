"""The whole cluster in one process, in virtual time, for many seeds: where races are looked for.

    python -m tests.one_process --seeds 2000            # as many runs of 1,000 requests, on two cores
    python -m tests.one_process --seed 1234             # one of them again, told from its first fault to its last

Servers, homes, residency, routing and admission are the real ones; machines, networks, clients and guests are those of
``tests/simulation``. A seed decides everything, so whatever it finds can be looked at again with the command that is
printed.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.simulation.cluster import Played, play

#: Seeds for one task of a process: tens of milliseconds each, so that processes end together.
_SEEDS_AT_ONCE = 5
#: Failing seeds that are shown.
_SHOWN_MAX = 10
_HASH_SEED = "PYTHONHASHSEED"


def play_all(seeds: range, requests: int, jobs: int) -> Iterator[Played]:
    """Play ``seeds``, in processes of their own when there are several ``jobs``; in order."""
    if jobs < 2:
        yield from (play(seed, requests) for seed in seeds)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as processes:
        yield from processes.map(play, seeds, [requests] * len(seeds), chunksize=_SEEDS_AT_ONCE)


def command_for(seed: int, requests: int) -> str:
    """What replays one seed."""
    return f"python -m tests.one_process --seed {seed} --requests {requests}"


def tell(seed: int, requests: int) -> int:
    """Replay one seed and print its story; 1 when a rule is broken."""
    played = play(seed, requests, telling=True)
    print(f"seed {seed}: {played.servers} servers, {played.requests} requests, {played.virtual_s:.1f} virtual seconds")
    print("timetable of faults:" if played.faults else "no faults: nothing may fail")
    for fault in played.faults:
        print(f"  {fault}")
    for at_s, line in played.lines:
        print(f"{at_s:14.6f}  {line}")
    print(f"endings: {played.endings}")
    for violation in played.violations:
        print(f"BROKEN: {violation}")
    print("every rule holds" if not played.violations else f"{len(played.violations)} rules are broken")
    return int(bool(played.violations))


def sweep(seeds: range, requests: int, jobs: int, *, as_json: bool) -> int:
    """Play many seeds and sum up; 1 when a rule is broken in one of them."""
    began_s = time.perf_counter()
    failing: list[Played] = []
    endings: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    for played in play_all(seeds, requests, jobs):
        endings.update(played.endings)
        for name in ("requests", "calls", "lost_calls", "offers", "refusals", "runs", "cold_starts", "evictions"):
            sums[name] += getattr(played, name)
        if played.violations:
            failing.append(played)
            if len(failing) <= _SHOWN_MAX and not as_json:
                print(f"seed {played.seed}: {played.violations[0]}")
                print(f"  again: {command_for(played.seed, requests)}", flush=True)
    took_s = time.perf_counter() - began_s
    if as_json:
        print(
            json.dumps(
                {
                    "seeds": len(seeds),
                    **sums,
                    "endings": endings,
                    "failing": [{"seed": p.seed, "violations": p.violations} for p in failing],
                    "seconds": round(took_s, 1),
                }
            )
        )
    else:
        print(f"{len(seeds)} seeds of {requests} requests in {took_s:.1f} s: {len(failing)} break a rule")
        print("  " + ", ".join(f"{name} {count:,}" for name, count in sums.items()))
        print("  " + ", ".join(f"{ending} {count:,}" for ending, count in endings.most_common()))
    return int(bool(failing))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.one_process", description="The cluster in virtual time.")
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="replay one, and tell its story")
    parser.add_argument("--requests", type=int, default=1_000, help="in each run")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--json", action="store_true", help="sum up in one line")
    chosen = parser.parse_args()
    if chosen.seed is not None:
        return tell(chosen.seed, chosen.requests)
    seeds = range(chosen.first, chosen.first + chosen.seeds)
    return sweep(seeds, chosen.requests, chosen.jobs, as_json=chosen.json)


def _same_hashes() -> None:
    """The order of a set of strings is Python's own chance; a replay must have the same."""
    if os.environ.get(_HASH_SEED) != "0":
        environment = {**os.environ, _HASH_SEED: "0"}
        os.execve(sys.executable, [sys.executable, "-m", "tests.one_process", *sys.argv[1:]], environment)


if __name__ == "__main__":
    _same_hashes()
    sys.exit(main())
