"""A platform on top: one worker runs those of its customers, with limits, a guard and an audit.

Start a cluster first (``./dev serve`` or ``everwarm up --detach``), then::

    python examples/nested_workers.py [--with-js]

It deploys the workers of ``workers/platform``: the ``dispatcher``, its outbound worker ``guard``, its tail
worker ``audit``, and customers' workers in the dispatch namespace ``customers``: ``alice`` in C, ``bob`` in Zig, and
with ``--with-js`` ``carol`` in JavaScript. Then it sends a few requests, each through another server, and prints for
each the answer, the tree of calls as a waterfall, and what the audit heard once all of it was over. What is deployed
stays. A second run deploys it again as new versions, quickly: code that was compiled once is kept.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import everwarm
from everwarm.build import BuildError, build
from everwarm.examples import COMPONENT_FILE, WORKERS, deploy_worker
from everwarm.home import Home
from tracing.trace import Attr, Span, SpanName
from tracing.waterfall import draw

PLATFORM = WORKERS / "platform"
#: A bound worker is deployed before the one that names it; the front comes last.
FOLDERS = ("audit", "guard", "alice", "bob", "dispatcher")
REQUESTS = [
    ("/alice/hello", "alice's worker, in C, asks nobody"),
    ("/bob/", "bob's worker asks the world for the time; the guard answers in its place"),
    ("/bob/steal", "bob's worker asks whom it may not"),
    ("/bob/spin", "bob's worker computes for ever; the platform's limit is 50 ms"),
    ("/nobody/", "no such customer"),
]
WITH_JS = ("/carol/hello", "carol's worker, in JavaScript, asks for the time too")
#: A tail worker hears of a tree after it has ended, a fraction of a second later; a busy machine takes longer.
TOLD_S_MAX = 20.0

T = TypeVar("T")


def main() -> int:
    parser = argparse.ArgumentParser(description="Deploy a platform of workers that call workers, and try it.")
    parser.add_argument("--with-js", action="store_true", help="also carol, in JavaScript: needs Node 20")
    options = parser.parse_args()
    with everwarm.connect() as cluster:
        deploy(cluster, options.with_js)
        seen = {str(summary["trace_id"]) for summary in cluster.traces(1_000)}
        for number, (path, what) in enumerate([*REQUESTS, WITH_JS] if options.with_js else REQUESTS):
            through = cluster.servers[number % len(cluster.servers)]
            print(f"\n--- GET {path} through {through}: {what}\n")
            visit(cluster, path, through, seen)
        print("\nIt stays deployed: everwarm traces lists the requests, everwarm fetch dispatcher /bob/ sends another.")
    return 0


def visit(cluster: everwarm.Client, path: str, through: str, seen: set[str]) -> None:
    """Send one request, and print all there is to know of it. ``seen``: traces that are no news."""
    answer = cluster.fetch("dispatcher", path, server=through)
    print(f"{answer.status} {answer.text}")
    heard = within(TOLD_S_MAX, lambda: audited(cluster, path, seen))
    print(draw(within(TOLD_S_MAX, lambda: whole_trace(cluster, answer.trace_id, len(heard))), bar_chars=24))
    print("\nthe audit heard:", *heard, sep="\n  ")


def deploy(cluster: everwarm.Client, with_js: bool) -> None:
    """Deploy the workers, those that are bound before those that name them."""
    for folder in FOLDERS:
        deploy_worker(cluster, PLATFORM / folder, PLATFORM / folder / COMPONENT_FILE, print)
    if with_js:
        home = Home.open()
        built = build(PLATFORM / "carol", cache_dir=home.builds, toolchain_dir=home.toolchains, progress=print)
        deploy_worker(cluster, PLATFORM / "carol", built.component, print)


def audited(cluster: everwarm.Client, path: str, seen: set[str]) -> list[str]:
    """The lines that the audit wrote of the request for ``path``; none before it was told.

    A tail worker has a trace of its own for each tree that it hears of, and its log is in there.
    """
    for summary in cluster.traces(50):
        if summary["worker"] != "audit" or summary["trace_id"] in seen:
            continue
        spans = cluster.trace(str(summary["trace_id"]))
        lines = [str(e.attributes[Attr.LOG_TEXT]).rstrip("\n") for s in spans for e in s.events]
        if lines and path in lines[0]:
            seen.add(str(summary["trace_id"]))
            return lines
    return []


def whole_trace(cluster: everwarm.Client, trace_id: str, stages: int) -> list[Span]:
    """The trace of a tree of so many stages; empty while some have not told: they ran on other servers."""
    spans = cluster.trace(trace_id)
    return spans if sum(span.name == SpanName.REQUEST for span in spans) >= stages else []


def within(timeout_s: float, look: Callable[[], list[T]]) -> list[T]:
    """What ``look`` finds, as soon as it finds something. ``EverwarmError`` when that takes too long."""
    until_s = time.monotonic() + timeout_s
    while not (found := look()):
        if time.monotonic() > until_s:
            raise everwarm.EverwarmError(f"nothing was told within {timeout_s:g} s")
        time.sleep(0.05)
    return found


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (everwarm.EverwarmError, BuildError) as wrong:
        sys.exit(f"{wrong}")
