"""What do clients notice when links are cut or slow, and when processes or machines are stopped?

    sudo .venv/bin/python -m benchmarks.cuts [--json] [--only EVENT ...] [--ray NAME=VALUE ...]

Brings up machines of namespaces (``tests/cluster/hosts``), a head and two workers, and Everwarm on them by cluster.yaml
and Ray's own launcher. Clients on a fourth machine ask all three edges in turn, half of them GETs, the others POSTs, of
which half are handed to an origin that counts them. Meanwhile one fault after the other is begun and ended; the next
one when all is well again, or after a minute.

Each fault has workers of its own, which nobody asked before: a worker that is asked often runs where it is asked, and
would not notice what becomes of the links. What is said of each fault:

* ``noticed_s``          from its beginning until the ring lost a server, Ray a node, and the owner a process;
* ``doubts``             how often the owner had doubts of a process;
* ``quiet``, ``during``, ``during_EDGE``, ``after``   requests that were sent before, in it, and after it: ``refused``
  had no connection, ``failed`` were sent and not answered with 200, ``held_up`` took more than a second;
* ``clients_well_s``     from its end until the last request was sent that failed or was held up;
* ``cluster_well_s``     from its end until ring, nodes and processes were whole;
* and for all of them ``twice``, the POSTs that arrived at the origin more than once, and ``wrong``: both must be 0.

Single figures of one machine in one run, whose load is told. Exits with 77 where no machines can be made.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cuts.events import EVENTS, Site
from benchmarks.cuts.figures import News, Seen, Span, is_well, of_event
from benchmarks.cuts.load import ORIGIN_PORT
from tests.cluster.hosts.machines import REPOSITORY, Machines, MachinesFailed, missing
from tests.cluster.hosts.ray_cluster import DESK, HEAD, NAMES, RayCluster

PORT = 8443
_ANSWERS_S = 240.0
#: Of each kind, for each fault: an edge asks each worker less than ten times while they are asked.
_WORKERS = 16
_QUIET_S = 5.0
#: After a fault: at least, so that what it leaves behind is seen, and at most.
_AFTER_S_MIN, _AFTER_S_MAX = 6.0, 60.0
_LOOK_EVERY_S = 0.25
#: So long an edge has answered every request in time before it is well again.
_WELL_S = 2.0
_DEPLOY = """
import asyncio, sys
from pathlib import Path

import everwarm


async def main() -> None:
    workers, at_once = Path(sys.argv[1]), asyncio.Semaphore(8)
    async with everwarm.connect_async() as cluster:

        async def deploy(kind: str, event: str, number: int) -> None:
            async with at_once:
                component = workers / kind / "worker.wasm"
                await cluster.deploy(f"{kind}-{event}-{number}", component, plan="paid", limits={"cpu_ms": 10_000})

        kinds = ("hello", "echo", "fetch")
        for kind in kinds:  # compiled once
            await deploy(kind, sys.argv[3], 0)
        numbers = range(int(sys.argv[2]))
        await asyncio.gather(*(deploy(k, e, n) for k in kinds for e in sys.argv[3:] for n in numbers))


asyncio.run(main())
"""


def say(line: str) -> None:
    """Progress, for people."""
    print(line, file=sys.stderr, flush=True)


class Feed:
    """A program on a machine that says lines of JSON until its stdin ends."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.lines: list[dict[str, Any]] = []
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        self._log = log

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(json.loads(line))

    def tell(self, line: str) -> None:
        """Write a line to its stdin."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def check(self) -> None:
        """``MachinesFailed`` when it ended by itself."""
        if self._process.poll() is not None:
            raise MachinesFailed(f"{self._log.stem} ended: {self._log.read_text()[-2_000:]}")

    def end(self, within_s: float) -> None:
        """Let it finish, and wait for that."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reading.join(within_s)


@dataclass
class Run:
    """A cluster under load, and what was seen of it."""

    cluster: RayCluster
    load: Feed
    watch: Feed
    spans: list[Span] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)

    def seen(self) -> list[Seen]:
        """The requests that are over."""
        return [Seen(**line) for line in list(self.load.lines) if "sent_s" in line]

    def news(self) -> list[News]:
        """What the cluster said, in its order."""
        return [News(n["at_s"], n["by"], n["of"], n["state"]) for n in list(self.watch.lines)]

    def pids(self) -> dict[str, int]:
        """The process of each role now."""
        return {n["of"]: n["pid"] for n in list(self.watch.lines) if n["by"] == "owner" and n["pid"]}

    def suffer(self, name: str) -> Span:
        """One fault, with a quiet time before it, until all is well again."""
        event, quiet_s = EVENTS[name], time.monotonic()
        self.load.tell(f"{name} {_WORKERS}")
        self._wait(_QUIET_S)
        site = Site(self.cluster.machines, self.pids())
        began_s = time.monotonic()
        end = event.begin(site)
        try:
            self._wait(event.lasts_s - (time.monotonic() - began_s))
        finally:
            end()
        ended_s = time.monotonic()
        self._wait(_AFTER_S_MIN)
        while not self._all_is_well() and time.monotonic() - ended_s < _AFTER_S_MAX:
            self._wait(_LOOK_EVERY_S)
        span = Span(name, quiet_s, began_s, ended_s, time.monotonic())
        self.spans.append(span)
        self.loads.append(os.getloadavg()[0])
        return span

    def _wait(self, seconds: float) -> None:
        self.load.check()
        self.watch.check()
        time.sleep(max(0.0, seconds))

    def _all_is_well(self) -> bool:
        """Whether the cluster says so, and each edge has lately answered all requests in time."""
        since_s = time.monotonic() - _WELL_S
        lately = [one for one in self.seen()[-1_000:] if one.over_s > since_s]
        states = {(one.by, one.of): one.state for one in self.news()}
        edges = {one.edge for one in lately}
        return edges == set(self.cluster.nodes) and all(one.well for one in lately) and is_well(states)

    def figures(self) -> dict[str, Any]:
        """The result."""
        seen, news = self.seen(), self.news()
        last = self.load.lines[-1]
        return {
            "requests": len(seen),
            "wrong": sum(one.why == "wrong" for one in seen),
            "posts_at_origin": last.get("arrived"),
            "twice": last.get("twice"),
            "load_average": [round(load, 1) for load in self.loads],
            "events": [of_event(span, seen, news) for span in self.spans],
        }


@contextmanager
def brought_up(rate: float, events: Sequence[str], ray: dict[str, str], keep: Path | None) -> Iterator[Run]:
    """Machines, the cluster on them, its workers, and everybody who watches."""
    with tempfile.TemporaryDirectory(prefix="everwarm-cuts-") as directory:
        machines = Machines(Path(directory) / "run")
        try:
            machines.up(NAMES)
            desk = machines.address(DESK)
            cluster = RayCluster(machines, ray_settings=ray, up_options=f"--egress-allow {desk}:{ORIGIN_PORT}")
            cluster.prepare()
            began_s = time.monotonic()
            cluster.up(say)
            _everywhere(cluster, events)
            say(f"{time.monotonic() - began_s:.0f} s from ray up to workers on three machines")
            run = Run(cluster, _load(cluster, rate, Path(directory)), _watch(cluster, Path(directory)))
            try:
                yield run
            finally:
                run.load.end(60.0)
                run.watch.end(10.0)
        finally:
            if keep is not None:
                _keep(machines, keep)
            machines.down()


def _everywhere(cluster: RayCluster, events: Sequence[str]) -> None:
    """Until all machines are members and all workers are deployed."""
    until_s = time.monotonic() + _ANSWERS_S
    while True:
        said = cluster.on(HEAD, "everwarm status --json 2>/dev/null", check=False)
        members = json.loads(said)["membership"]["members"] if said.startswith("{") else []
        if sum(member["state"] == "member" for member in members) == len(cluster.nodes):
            break
        if time.monotonic() > until_s:
            raise MachinesFailed(f"not all machines are members: {members}")
        time.sleep(0.5)
    (cluster.machines.files(HEAD) / "root" / "deploy.py").write_text(_DEPLOY)
    workers = REPOSITORY / "workers" / "zig"
    cluster.on(HEAD, f"python deploy.py {workers} {_WORKERS} {' '.join(events)}", timeout_s=300)


def _load(cluster: RayCluster, rate: float, directory: Path) -> Feed:
    machines = cluster.machines
    shutil.copy2(machines.files(HEAD) / "root" / ".everwarm" / "joined-ca.pem", machines.files(DESK) / "root")
    edges = [f"{name}={machines.address(name)}" for name in cluster.nodes]
    words = ("joined-ca.pem", str(PORT), str(rate), machines.address(DESK), *edges)
    command = machines.command(
        DESK, sys.executable, "-m", "benchmarks.cuts.load", *words, environment={"PYTHONPATH": str(REPOSITORY)}
    )
    return Feed(command, directory / "load.log")


def _watch(cluster: RayCluster, directory: Path) -> Feed:
    program = f". ~/everwarm/environment && exec python {REPOSITORY / 'benchmarks' / 'cuts' / 'watch.py'}"
    return Feed(cluster.machines.command(HEAD, "bash", "-c", program), directory / "watch.log")


def _keep(machines: Machines, keep: Path) -> None:
    """What the machines wrote down."""
    for name in NAMES[1:]:
        place = keep / name
        place.mkdir(parents=True, exist_ok=True)
        files = machines.files(name)
        for log in (*files.glob("root/.everwarm/*.log"), *files.glob("tmp/ray/session_*/logs/*")):
            if log.is_file() and not log.is_symlink():
                shutil.copy2(log, place / log.name)


def table(figures: dict[str, Any]) -> str:
    """For people: a line for each fault."""
    lines = [
        f"{figures['requests']} requests, {figures['wrong']} wrong, {figures['twice']} POSTs twice of"
        f" {figures['posts_at_origin']}; load {figures['load_average']}",
        f"{'event':<14}{'ring':>6}{'ray':>6}{'owner':>6} |{'asked':>6}{'fail':>5}{'ref':>5}{'>1 s':>5}{'slowest':>8}"
        f"{'p50':>8} | quiet{'slowest':>8}{'p50':>8} |{'clients':>8}{'cluster':>8}  well again after s",
    ]
    for one in figures["events"]:
        noticed, during, quiet = one["noticed_s"], one["during"], one["quiet"]
        after = one["after"]
        lines.append(
            f"{one['event']:<14}" + "".join(f"{noticed.get(by, '-')!s:>6}" for by in ("ring", "ray", "owner"))
            + f" |{during['asked']:>6}{during['failed']:>5}{during['refused']:>5}{during['held_up']:>5}"
            f"{during['slowest_s']:>8}{during['p50_ms']!s:>8} | {'':<5}{quiet['slowest_s']:>8}{quiet['p50_ms']!s:>8} |"
            f"{one['clients_well_s']!s:>8}{one['cluster_well_s']!s:>8}"
            f"  after: {after.get('failed', 0)} failed, {after.get('refused', 0)} refused"
        )  # fmt: skip
    return "\n".join(lines)


def _pairs(given: Sequence[str], fail: Callable[[str], object]) -> dict[str, str]:
    for pair in given:
        if not (pair.startswith("RAY_") and "=" in pair):
            fail(f"--ray takes RAY_NAME=VALUE, not {pair!r}")
    return dict(pair.split("=", 1) for pair in given)


def main() -> int:
    """The command line; the exit status."""
    listed = "\n".join(f"  {name:<14}{event.what}, {event.lasts_s:g} s" for name, event in EVENTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cuts", description=__doc__, epilog=f"events:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--only", nargs="+", choices=list(EVENTS), metavar="EVENT", help="these, in this order")
    parser.add_argument("--rps", type=float, default=50.0, help="requests a second, over all three edges")
    parser.add_argument("--ray", nargs="+", default=[], metavar="NAME=VALUE", help="other settings of Ray, everywhere")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="all requests, all news, and the machines' logs")
    wanted = parser.parse_args()
    ray = _pairs(wanted.ray, parser.error)
    if reason := missing():
        say(reason)
        return 77
    events = wanted.only or list(EVENTS)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the machines end with us
    say(f"load average {os.getloadavg()[0]:.1f} before")
    try:
        with brought_up(wanted.rps, events, ray, wanted.keep) as run:
            try:
                for name in events:
                    say(f"{name}: {EVENTS[name].what}, {EVENTS[name].lasts_s:g} s")
                    span = run.suffer(name)
                    say(f"  went on {span.closed_s - span.ended_s:.0f} s after its end")
            except KeyboardInterrupt:
                say("stopped; what was measured by now is told")
    except MachinesFailed as failed:
        say(str(failed))
        return 1
    figures = run.figures()
    if wanted.keep is not None:
        (wanted.keep / "seen.json").write_text(json.dumps({"seen": run.load.lines, "news": run.watch.lines, **figures}))
    print(json.dumps(figures) if wanted.json else table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
