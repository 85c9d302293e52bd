"""The faults: what is done to which machine, for how long. Each is begun by one call and ended by what it returns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from tests.cluster.hosts.machines import Machines
from tests.cluster.hosts.ray_cluster import HEAD, WORKERS

ONE, TWO = WORKERS
#: Each way, on one machine's link.
DELAY_MS = 50.0
#: Processes that compute for ever, on cores that all machines share.
SPINNING = 12

End = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Site:
    """What events are done to. ``pids``: of each role's process on its own machine, by address, as of now."""

    machines: Machines
    pids: Mapping[str, int]

    def pid(self, name: str, role: str) -> int:
        """The process of a role on a machine; ``raylet`` is Ray's own."""
        if role == "raylet":
            return int(self.machines.run(name, "pgrep", "-o", "-x", "raylet").stdout)
        return self.pids[f"node-{self.machines.address(name).replace('.', '-')}/{role}"]


@dataclass(frozen=True, slots=True)
class Event:
    """A fault that lasts ``lasts_s``."""

    what: str
    lasts_s: float
    begin: Callable[[Site], End]


def _on_links(fault: Callable[[Machines], object]) -> Callable[[Site], End]:
    """A fault of links, which ends when they are healed."""

    def begin(site: Site) -> End:
        fault(site.machines)
        return site.machines.heal

    return begin


def _cut(name: str, other: str) -> Callable[[Site], End]:
    return _on_links(lambda machines: machines.drop(name, other))


def _one_way(name: str, other: str) -> Callable[[Site], End]:
    return _on_links(lambda machines: machines.drop_one_way(name, other))


def _black_hole(name: str) -> Callable[[Site], End]:
    return _on_links(lambda machines: machines.drop(name))


def _delay(name: str) -> Callable[[Site], End]:
    return _on_links(lambda machines: machines.delay(name, DELAY_MS))


def _stop(name: str, role: str) -> Callable[[Site], End]:
    def begin(site: Site) -> End:
        pid = str(site.pid(name, role))
        site.machines.run(name, "kill", "-STOP", pid)
        return partial(site.machines.run, name, "kill", "-CONT", pid, check=False)  # it may have been ended

    return begin


def _freeze(name: str) -> Callable[[Site], End]:
    def begin(site: Site) -> End:
        site.machines.freeze(name)
        return partial(site.machines.thaw, name)

    return begin


def _kill(name: str, role: str) -> Callable[[Site], End]:
    def begin(site: Site) -> End:
        site.machines.run(name, "kill", "-KILL", str(site.pid(name, role)))
        return lambda: None

    return begin


def _crowd(name: str) -> Callable[[Site], End]:
    def begin(site: Site) -> End:
        spinning = f"for i in $(seq {SPINNING}); do (while :; do :; done) >/dev/null 2>&1 & done; jobs -p"
        pids = site.machines.run(name, "bash", "-c", spinning).stdout.split()
        return partial(site.machines.run, name, "kill", "-KILL", *pids, check=False)

    return begin


def _plug(name: str) -> Callable[[Site], End]:
    def begin(site: Site) -> End:
        site.machines.power_off(name)
        return partial(site.machines.power_on, name)

    return begin


#: A stopped process stays so for longer than its owner takes to end it.
_STOPPED_S = 15.0

#: In an order in which what may cost a machine its place in Ray's cluster comes last.
EVENTS: dict[str, Event] = {
    "link-cut": Event(f"the link between {ONE} and {TWO} is cut", 10.0, _cut(ONE, TWO)),
    "one-way-loss": Event(f"what {ONE} sends to {TWO} is lost", 10.0, _one_way(ONE, TWO)),
    "delay": Event(f"every packet to and from {ONE} comes {DELAY_MS:g} ms later", 10.0, _delay(ONE)),
    "crowd": Event(f"{SPINNING} processes on {ONE} compute without a pause", 12.0, _crowd(ONE)),
    "stop-server": Event(f"the Server on {TWO} is stopped", _STOPPED_S, _stop(TWO, "server")),
    "stop-shard": Event(f"the ShardServer on {ONE} is stopped", _STOPPED_S, _stop(ONE, "shard")),
    "stop-host": Event(f"the IsolateHost on {TWO} is stopped", _STOPPED_S, _stop(TWO, "host")),
    "stop-ingress": Event(f"the Ingress on {ONE} is stopped", _STOPPED_S, _stop(ONE, "ingress")),
    "stop-raylet": Event(f"Ray's raylet on {TWO} is stopped", 10.0, _stop(TWO, "raylet")),
    "head-cut": Event(f"the link between the head and {ONE} is cut", 5.0, _cut(HEAD, ONE)),
    "head-cut-long": Event(f"the same for twice as long, with {TWO}", 10.0, _cut(HEAD, TWO)),
    "freeze": Event(f"all processes of {TWO} are stopped", 10.0, _freeze(TWO)),
    "black-hole": Event(f"no packet of {ONE} arrives anywhere", 5.0, _black_hole(ONE)),
    "kill-raylet": Event(f"Ray's raylet on {TWO} is killed", 5.0, _kill(TWO, "raylet")),
    "power-off": Event(f"{ONE} is switched off, and on again", 10.0, _plug(ONE)),
}
