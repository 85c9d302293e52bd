"""A fourth machine joins three under load, and then one of the first leaves: who fails, who is cold, and who moves?

    python -m benchmarks.joining [--json] [--workers N] [--rps N] [--leave everwarm|ray]

Makes five machines of namespaces (tests/cluster/hosts; root, Linux), each with its own address, processes and Ray: a
client's, the head's, and three workers'. Ray is started on the head and two of them, and Everwarm on all; the workers
of Everwarm are deployed and asked until they are warm. Then, under a steady load from the client's machine, of GETs and
POSTs over HTTPS by the edges of all machines, among them uploads that take seconds:

* Ray is started on the third worker's machine, and nothing else is done. When its edge answers, clients use it too;
* a machine of the first three is taken out: ``everwarm servers remove`` is typed on it, and then ``ray stop``; or, with
  ``--leave ray``, ``ray drain-node`` first. Clients are told nothing: they use its edge until it refuses them.

* ``failed``               requests without the answer 200; none is repeated but as clients of HTTP do (``repeated``);
* ``moved_on_*_percent``   of the workers have another home afterwards;
* ``cold_on_*``            answers of these that began with a cold start, from the command until some seconds after;
* ``at_new_home_on_*``     of those after the ring changed, answered by their new home and not by a copy elsewhere;
* ``joined_serves_s``      from `ray start` typed to the first answer of the new machine's edge; ``joined_ring_s`` to
  the ring that it is in;
* ``left_ring_s``          from the command to the ring without it; ``left_s`` until the command is over, and
  ``left_node_s`` until Ray is stopped there.

Exit code 1 when a request failed, a moved worker was cold, or other than about a quarter moved; 77 where no machines
can be made. All machines share this one's cores: how long things take is an upper bound.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.local_cluster import WORKERS, print_result
from tests.cluster.hosts.by_hand import ByHand
from tests.cluster.hosts.machines import REPOSITORY, Machines, missing
from tests.cluster.hosts.ray_cluster import DESK, HEAD
from tests.cluster.hosts.steady_client import SLOW

PORT = 8443
FIRST, NEWCOMER, LEAVER = ("worker-1", "worker-2"), "worker-3", "worker-1"
_HOSTS = REPOSITORY / "tests" / "cluster" / "hosts"
#: Rounds of requests to all workers before anything happens: the first finds them cold.
_WARM_ROUNDS = 3
#: What is looked at before a change, and after it.
_SPAN_S = 8.0
#: Machines share two cores: what takes seconds on machines of their own may take a minute here.
_CHANGE_S_MAX = 120.0
_DEPLOY_S = 180.0
#: Workers that are sent uploads of four seconds, one after the other.
_UPLOADS = 8
#: Percent of the workers. Four machines of a size: a quarter. 160 points each spread shares by 8 % of that, and a
#: hundred names by 17 %; three of both together are 55 %.
_QUARTER = (11.0, 39.0)


@dataclass(frozen=True, slots=True)
class Told:
    """What the head's driver said, when (monotonic)."""

    at_s: float
    said: dict[str, Any]


class Talker:
    """A program on a machine that prints lines of JSON, and ends when its stdin does."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.told: list[Told] = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        for line in stdout:
            said = json.loads(line)
            self.told.append(Told(time.monotonic(), said))

    def say(self, what: object) -> None:
        """A line of JSON."""
        stdin = self._stdin
        stdin.write(json.dumps(what) + "\n")
        stdin.flush()

    def end(self) -> list[Told]:
        """End it: all that it said."""
        self._stdin.close()
        self._process.wait(_CHANGE_S_MAX)
        self._reading.join()
        return self.told

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()

    @property
    def _stdin(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin


class Ring:
    """The cluster as a driver on its head sees it, all the time."""

    def __init__(self, talker: Talker) -> None:
        self._talker = talker

    def wait(self, servers: set[str]) -> dict[str, str]:
        """Until exactly these are in the ring, and a server tells where workers are at home: worker -> server."""
        until_s = time.monotonic() + _CHANGE_S_MAX
        while True:
            homes = [told.said for told in self._talker.told if "homes" in told.said]
            if homes and set(homes[-1]["ring"]) == servers:
                found: dict[str, str] = homes[-1]["homes"]
                return found
            if time.monotonic() > until_s:
                raise TimeoutError(f"the ring is not {servers}: {self._talker.told[-1:]}")
            time.sleep(0.02)

    def end(self) -> list[Told]:
        """Look on no longer: all that was seen."""
        return self._talker.end()

    def since_s(self, servers: set[str]) -> float:
        """When a ring of exactly these servers was seen for the first time."""
        return next(float(t.said["at_s"]) for t in self._talker.told if set(t.said.get("ring", ())) == servers)


@dataclass(frozen=True, slots=True)
class Change:
    """One machine that came or went: a span of the load, and where everybody lived before and after."""

    began_s: float
    switched_s: float  # the ring
    over_s: float  # the span
    before: dict[str, str]
    after: dict[str, str]

    @property
    def moved(self) -> set[str]:
        """The workers that have another home now."""
        return {worker for worker, home in self.before.items() if self.after.get(worker) != home}

    def of_moved(self, seen: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The requests to these that came while it went on, and after."""
        moved = self.moved
        return [one for one in seen if self.began_s <= one["sent_s"] < self.over_s and one["worker"] in moved]


def timing(one: dict[str, Any]) -> dict[str, str]:
    """``server-timing`` of an answer as names and values."""
    parts = (part.strip().partition(";") for part in one["timing"].split(","))
    return {name: value.partition("=")[2].strip('"') for name, _, value in parts}


def figures_of(name: str, change: Change, seen: list[dict[str, Any]]) -> dict[str, float | int | str]:
    """What clients of the workers that moved saw."""
    of_moved = change.of_moved(seen)
    after = [one for one in of_moved if one["sent_s"] >= change.switched_s]
    at_home = sum(timing(one).get("server") == change.after.get(one["worker"]) for one in after)
    return {
        f"moved_on_{name}": len(change.moved),
        f"moved_on_{name}_percent": round(100 * len(change.moved) / len(change.before), 1),
        f"asked_of_moved_on_{name}": len(of_moved),
        f"cold_on_{name}": sum(timing(one).get("start") == "cold" for one in of_moved),
        f"at_new_home_on_{name}": at_home,
    }


# ------------------------------------------------------------------------------------------------------- the machines


class Town:
    """Machines with a cluster, a load, and somebody who looks on."""

    def __init__(self, directory: Path, workers: int, rps: float) -> None:
        self.machines = Machines(directory)
        self.cluster = ByHand(self.machines, (*FIRST, NEWCOMER))
        self.names = [f"m-{i}" for i in range(workers)]
        self.slow = [f"{SLOW}{i}" for i in range(_UPLOADS)]
        self.rps = rps
        self.edges: list[str] = []
        self._talkers: list[Talker] = []

    def server(self, machine: str) -> str:
        """The name of a machine's server."""
        return "node-" + self.machines.address(machine).replace(".", "-")

    def servers(self, *machines: str) -> set[str]:
        """The names of these machines' servers."""
        return {self.server(machine) for machine in machines}

    def talk(self, command: list[str]) -> Talker:
        """Start a program that is ended with everything."""
        talker = Talker(command)
        self._talkers.append(talker)
        return talker

    def begin(self) -> None:
        """Three machines that serve, and workers on them."""
        self.cluster.prepare()
        for machine in (HEAD, *FIRST):
            self.cluster.start(machine)
        self.cluster.up()
        head = self.machines.files(HEAD) / "root"
        shutil.copy2(head / ".everwarm" / "joined-ca.pem", self.machines.files(DESK) / "root" / "ca.pem")
        for component, names in (("hello", self.names), ("echo", self.slow)):
            shutil.copy2(WORKERS / "zig" / component / "worker.wasm", head / f"{component}.wasm")
            deploy = f"python {_HOSTS / 'head_driver.py'} deploy {component}.wasm {' '.join(names)}"
            self.cluster.on(HEAD, deploy, timeout_s=_DEPLOY_S)

    def watching(self) -> Ring:
        """See who is in the ring, from now on."""
        watcher = self.talk(self.cluster.started(HEAD, f"python {_HOSTS / 'head_driver.py'} watch"))
        return Ring(watcher)

    def loading(self) -> Talker:
        """Ask workers at a steady rate, from now on."""
        client = [sys.executable, str(_HOSTS / "steady_client.py"), "ca.pem", str(PORT), str(self.rps)]
        return self.talk(self.machines.command(DESK, *client, *self.names, *self.slow))

    def answers(self, machine: str) -> None:
        """Wait until a machine's edge answers."""
        edge = f"{self.names[0]}@{self.machines.address(machine)}"
        client = ["python3", str(_HOSTS / "https_client.py"), "wait", "ca.pem", str(PORT), str(_CHANGE_S_MAX), edge]
        self.machines.run(DESK, *client, timeout_s=_CHANGE_S_MAX + 10)

    def end(self) -> None:
        """Nothing is left."""
        for talker in self._talkers:
            talker.kill()
        self.machines.down()


@contextmanager
def town(workers: int, rps: float) -> Iterator[Town]:
    """Machines that are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="everwarm-joining-") as directory:
        made = Town(Path(directory) / "run", workers, rps)
        try:
            made.begin()
            yield made
        finally:
            made.end()


def take_out(place: Town, by: str) -> float:
    """Have a machine leave. After how many seconds its server was gone; at the end Ray is stopped there."""
    began_s = time.monotonic()
    if by == "ray":
        drain = "ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message leaves"
        place.cluster.on(LEAVER, f"{drain} --deadline-remaining-seconds 120", timeout_s=_CHANGE_S_MAX)
        while place.cluster.roles(LEAVER):
            if time.monotonic() - began_s > _CHANGE_S_MAX:
                raise TimeoutError(f"its processes do not end: {place.cluster.roles(LEAVER)}")
            time.sleep(0.1)
    else:
        place.cluster.on(LEAVER, f"everwarm servers remove {place.server(LEAVER)}", timeout_s=_CHANGE_S_MAX)
    left_s = time.monotonic() - began_s
    place.cluster.on(LEAVER, "ray stop", timeout_s=_CHANGE_S_MAX)
    return left_s


def measure(place: Town, leave_by: str) -> dict[str, float | int | str]:
    """Join and leave under load."""
    three, four = place.servers(HEAD, *FIRST), place.servers(HEAD, *FIRST, NEWCOMER)
    left = four - place.servers(LEAVER)
    watcher = place.watching()
    homes = watcher.wait(three)
    load = place.loading()
    edges = [place.machines.address(machine) for machine in (HEAD, *FIRST)]
    load.say(edges)
    time.sleep(_WARM_ROUNDS * len(place.names) / place.rps + _SPAN_S)

    say("a machine joins")
    join_s = time.monotonic()
    place.cluster.start(NEWCOMER)
    place.answers(NEWCOMER)
    serves_s = time.monotonic()
    homes_of_four = watcher.wait(four)
    load.say([*edges, place.machines.address(NEWCOMER)])
    time.sleep(_SPAN_S)
    joined = Change(join_s, watcher.since_s(four), time.monotonic(), homes, homes_of_four)

    say("a machine leaves")
    leave_s = time.monotonic()
    left_s = take_out(place, leave_by)
    node_gone_s = time.monotonic()
    homes_of_left = watcher.wait(left)
    load.say([place.machines.address(machine) for machine in (HEAD, *FIRST, NEWCOMER) if machine != LEAVER])
    time.sleep(_SPAN_S)
    gone = Change(leave_s, watcher.since_s(left), time.monotonic(), homes_of_four, homes_of_left)

    seen: list[dict[str, Any]] = load.end()[-1].said["seen"]
    told = watcher.end()
    ended = told[-1].said
    for moved in told:
        if "states" in moved.said:
            say(f"{moved.said['at_s'] - join_s:7.2f} s  {moved.said['states']}")
    failed = [one for one in seen if one["status"] != 200]
    uploads = [one for one in seen if one["worker"] in place.slow]
    for one in failed[:20]:
        say(f"failed: {one}")
    for name, change in (("join", joined), ("leave", gone)):
        say(f"{name}: {Counter(timing(one).get('start') for one in change.of_moved(seen))}")
    say(f"cold, by cause: {ended['cold_causes']}; handed over: {ended['handed_over']}")
    return {
        "requests": len(seen),
        "failed": len(failed),
        "repeated": sum(one["repeated"] for one in seen),
        "refused_connections": sum(one["refused"] for one in seen),
        "uploads": len(uploads),
        "slowest_s": round(
            max(one["took_s"] for one in seen if joined.began_s <= one["sent_s"] and one["worker"] in place.names), 2
        ),
        **figures_of("join", joined, seen),
        **figures_of("leave", gone, seen),
        "joined_ring_s": round(joined.switched_s - join_s, 1),
        "joined_serves_s": round(serves_s - join_s, 1),
        "left_ring_s": round(gone.switched_s - leave_s, 1),
        "left_s": round(left_s, 1),
        "left_node_s": round(node_gone_s - leave_s, 1),
    }


def bounds_missed(found: dict[str, float | int | str]) -> list[str]:
    """What is not as it has to be."""
    missed = [name for name in ("failed", "cold_on_join", "cold_on_leave") if found[name]]
    shares = [f"moved_on_{name}_percent" for name in ("join", "leave")]
    return [*missed, *(name for name in shares if not _QUARTER[0] <= float(found[name]) <= _QUARTER[1])]


def say(line: str) -> None:
    """How far it is."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="What clients notice when a machine joins, and when one leaves.")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--workers", type=int, default=96)
    parser.add_argument("--rps", type=float, default=50.0)
    parser.add_argument("--leave", choices=("everwarm", "ray"), default="everwarm")
    wanted = parser.parse_args()
    if why := missing():
        print(why, file=sys.stderr)
        return 77
    with town(wanted.workers, wanted.rps) as place:
        found = measure(place, wanted.leave)
    print_result(found, as_json=wanted.json)
    return 1 if bounds_missed(found) else 0


if __name__ == "__main__":
    sys.exit(main())
