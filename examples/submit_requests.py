"""A driver program: 100 requests to one worker, sent through all servers in turn.

Start a cluster first (``./dev serve`` or ``everwarm up --detach --examples``), then::

    python examples/submit_requests.py [WORKER] [COUNT]

Each line says through which server the request came, where it ran, whether that was its home, and how the isolate had
been started. The first is cold; all others meet the one warm isolate at home, whichever server they came through.
"""

import collections
import statistics
import sys
import time

import everwarm


def main(worker: str = "hello", count: str = "100") -> int:
    with everwarm.connect() as cluster:
        taken_ms: list[float] = []
        starts: collections.Counter[str] = collections.Counter()
        places: collections.Counter[str] = collections.Counter()
        failed = 0
        for i in range(int(count)):
            through = cluster.servers[i % len(cluster.servers)]
            began = time.perf_counter()
            answer = cluster.fetch(worker, f"/request/{i}", server=through)
            taken_ms.append((time.perf_counter() - began) * 1e3)
            starts[answer.start_type or "none"] += 1
            places[answer.server or "nowhere"] += 1
            failed += answer.outcome != "ok"
            print(
                f"{i:>4}  through {through}  ran on {answer.server or '-':<9} {answer.start_type or '-':<8}"
                f" home {answer.home or '-':<9} {'hop' if answer.hop else '   '} {answer.refused:<8}"
                f" {answer.status} {answer.outcome} {taken_ms[-1]:7.2f} ms"
            )
        print(
            f"\n{count} requests, {failed} failed; started: {dict(starts)}; ran on: {dict(places)};"
            f" median {statistics.median(taken_ms):.2f} ms"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:3]))
    except everwarm.EverwarmError as wrong:
        sys.exit(f"{wrong}")
