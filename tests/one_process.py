"""The whole cluster in one process, in virtual time, for many seeds: where races are looked for.

    python -m tests.one_process --seeds 2000            # as many runs of 1,000 requests, on two cores
    python -m tests.one_process --fresh --within 60     # other seeds for each state of the code, for a minute
    python -m tests.one_process --seed 1234             # one of them again, told from its first fault to its last

Servers, homes, residency, routing and admission are the real ones; machines, networks, clients and guests are those of
``tests/simulation``. A seed decides everything, so whatever it finds can be looked at again with the command that is
printed. A sweep may be stopped at any time (Ctrl-C), and sums up what it has.
"""

import argparse
import gc
import json
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from zlib import crc32

from tests.simulation.cluster import Played, play

#: Runs that are given to a process ahead of time: it never waits for the next one, and has little to finish at the end.
_AHEAD = 2
#: Failing seeds that are shown.
_SHOWN_MAX = 10
#: Time between two lines that tell how far a sweep is.
_TOLD_EVERY_S = 10.0
_HASH_SEED = "PYTHONHASHSEED"
_REPOSITORY = Path(__file__).resolve().parents[1]
#: What a run is made of: other code draws other fresh seeds.
_CODE = ("actors", "isolates", "tracing", "tests/simulation")
#: Fresh seeds begin at a multiple of this, so that those of two states of the code do not overlap by a few.
_FRESH_SPAN = 10_000


def fresh_seed() -> int:
    """The first of the seeds for the code as it stands: the same for the same commit, and others for the next."""
    digest = 0
    for folder in _CODE:
        for file in sorted((_REPOSITORY / folder).rglob("*.py")):
            digest = crc32(file.read_bytes(), digest)
    return digest % 1_000_000 * _FRESH_SPAN


def _rest_collector() -> None:
    """What is imported stays: the collector need not walk over it after each run, and is called where one ends."""
    gc.collect()
    gc.freeze()
    gc.disable()


def _begin_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who stops the sweep lets the runs under way end


def _play_one(seed: int, requests: int) -> Played:
    played = play(seed, requests)
    gc.collect()
    return played


def play_all(seeds: range, requests: int, jobs: int, within_s: float) -> Iterator[Played]:
    """Play ``seeds``, in processes of their own when there are several ``jobs``, as each is done; begin none later
    than ``within_s`` from now."""
    late_s = time.monotonic() + within_s
    _rest_collector()
    to_play = iter(seeds)
    if jobs < 2:
        for seed in to_play:
            if time.monotonic() > late_s:
                return
            yield _play_one(seed, requests)
        return
    # Forked, so that everything is imported once; nothing here has a thread before that.
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork"), initializer=_begin_process) as processes:
        running: set[Future[Played]] = set()
        try:
            while True:
                if time.monotonic() <= late_s:
                    for seed in islice(to_play, jobs * _AHEAD - len(running)):
                        running.add(processes.submit(_play_one, seed, requests))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for one in done:
                    yield one.result()
        finally:
            processes.shutdown(cancel_futures=True)


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


@dataclass(slots=True)
class Sum:
    """What came of many seeds."""

    seeds: int = 0
    failing: list[Played] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, played: Played) -> None:
        """One more."""
        self.seeds += 1
        self.endings.update(played.endings)
        for name in ("requests", "calls", "lost_calls", "offers", "refusals", "runs", "cold_starts", "evictions"):
            self.counts[name] += getattr(played, name)
        if played.violations:
            self.failing.append(played)


def _cpu_s() -> float:
    """CPU time of this process and of those that it began and that ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def sweep(seeds: range, requests: int, jobs: int, within_s: float, *, as_json: bool) -> int:
    """Play many seeds and sum up; 1 when a rule is broken in one of them."""
    began_s, cpu_began_s = time.perf_counter(), _cpu_s()
    told_s = began_s
    total = Sum()
    playing = play_all(seeds, requests, jobs, within_s)
    stopped = False
    try:
        if not as_json:
            print(f"seeds from {seeds.start}", flush=True)
        for played in playing:
            total.add(played)
            now_s = time.perf_counter()
            if as_json:
                continue
            if played.violations and len(total.failing) <= _SHOWN_MAX:
                print(f"seed {played.seed}: {played.violations[0]}")
                print(f"  again: {command_for(played.seed, requests)}", flush=True)
            if now_s - told_s > _TOLD_EVERY_S:
                told_s = now_s
                failing = len(total.failing)
                print(f"  {total.seeds} of {len(seeds)} in {now_s - began_s:.0f} s, {failing} break a rule", flush=True)
    except KeyboardInterrupt:
        stopped = True
    finally:
        playing.close()  # type: ignore[attr-defined]  # an iterator of ours, which ends its processes
    took_s, cpu_s = time.perf_counter() - began_s, _cpu_s() - cpu_began_s
    total.failing.sort(key=lambda played: played.seed)
    if as_json:
        print(
            json.dumps(
                {
                    "first": seeds.start,
                    "seeds": total.seeds,
                    **total.counts,
                    "endings": total.endings,
                    "failing": [
                        {"seed": p.seed, "again": command_for(p.seed, requests), "violations": p.violations}
                        for p in total.failing
                    ],
                    "seconds": round(took_s, 1),
                    "cpu_seconds": round(cpu_s, 1),
                }
            )
        )
    else:
        if total.seeds < len(seeds):
            print(f"{'stopped' if stopped else 'out of time'} after {total.seeds} of {len(seeds)} seeds")
        cost = f"{cpu_s:.0f} s of CPU, {cpu_s / max(1, total.seeds):.2f} s each"
        print(
            f"{total.seeds} seeds of {requests} requests in {took_s:.1f} s ({cost}): {len(total.failing)} break a rule"
        )
        print("  " + ", ".join(f"{name} {count:,}" for name, count in total.counts.items()))
        print("  " + ", ".join(f"{ending} {count:,}" for ending, count in total.endings.most_common()))
    return int(bool(total.failing))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.one_process", description="The cluster in virtual time.")
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--fresh", action="store_true", help="begin at a seed that the code's own digest picks")
    parser.add_argument("--within", type=float, default=float("inf"), help="seconds after which no run is begun")
    parser.add_argument("--seed", type=int, help="replay one, and tell its story")
    parser.add_argument("--requests", type=int, default=1_000, help="in each run")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--json", action="store_true", help="sum up in one line")
    chosen = parser.parse_args()
    if chosen.seed is not None:
        return tell(chosen.seed, chosen.requests)
    first = fresh_seed() if chosen.fresh else chosen.first
    seeds = range(first, first + chosen.seeds)
    return sweep(seeds, chosen.requests, chosen.jobs, chosen.within, as_json=chosen.json)


def _same_hashes() -> None:
    """The order of a set of strings is Python's own chance; a replay must have the same."""
    if os.environ.get(_HASH_SEED) != "0":
        environment = {**os.environ, _HASH_SEED: "0"}
        os.execve(sys.executable, [sys.executable, "-m", "tests.one_process", *sys.argv[1:]], environment)


if __name__ == "__main__":
    _same_hashes()
    sys.exit(main())
