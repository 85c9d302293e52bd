"""Asks Ray, and through it every node: an actor on each that lives as long as the question."""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions
import ray.util
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from everwarm.doctor import node as node_module
from everwarm.doctor.facts import Actor, Clock
from everwarm.home import Running
from everwarm.ray_driver import attach, join_ray, leave_ray, ray_address, roles_by_name

#: A process that imports Ray takes one to two seconds, all nodes at once; a busy machine takes many times that.
_START_S = 60.0
_CLOCKS = 5
#: Each node tries each port; beyond this only the head does, or a thousand nodes would open a million connections.
_ALL_TRY_MAX = 32


@dataclass(slots=True)
class Asked:
    """What was said; by node address where it says so."""

    failure: str = ""  # why Ray could not be asked
    head: str = ""  # the address of Ray's head
    running: Running | None = None  # what the cluster on it says of itself
    alive: list[str] = field(default_factory=list)
    looks: dict[str, dict[str, Any]] = field(default_factory=dict)
    clocks: dict[str, Clock] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)
    #: Ports that have to be open: whose, address, number.
    targets: list[tuple[str, str, int]] = field(default_factory=list)
    #: By the address from which they were tried: for each target an empty text, or why it failed.
    reached: dict[str, list[str]] = field(default_factory=dict)
    actors: list[Actor] = field(default_factory=list)


def ask(address: str, running: Running | None, head_state: str) -> Asked:
    """Be a driver of the Ray at ``address`` and ask all of its nodes.

    ``running``: what is known here of the cluster, for one that keeps that in a file. ``head_state``: the state
    directory of the head; elsewhere it is the user's.
    """
    asked = Asked(running=running)
    try:
        ours = join_ray(address)
    except Exception as refused:  # a driver is refused in a dozen ways, of as many classes
        asked.failure = f"{type(refused).__name__}: {(str(refused).strip().splitlines() or ['no reason given'])[0]}"
        return asked
    try:
        asked.head, _, port = ray_address().rpartition(":")
        asked.targets.append(("Ray's head", asked.head, int(port)))
        # Ray without Everwarm, or with one that does not answer: its actors tell which.
        with suppress(LookupError, ray.exceptions.GetTimeoutError):
            said = attach(address).said()
            asked.running = Running.decode(said) if said else running
        if asked.running is not None:
            edges = sorted(asked.running.servers.items())
            asked.targets += [(f"HTTPS of {name}", asked.running.addresses[name], number) for name, number in edges]
        named = ray.util.list_named_actors(all_namespaces=True)
        roles = roles_by_name()  # those of ours that took over a role have a name of their own
        asked.actors = [Actor(roles.get(a["name"], a["name"]), a["namespace"]) for a in named]
        _ask_nodes(asked, head_state)
    except ray.exceptions.RayError as failed:  # its head went away meanwhile
        asked.failure = type(failed).__name__
    finally:
        if ours:
            leave_ray()
    return asked


def _ask_nodes(asked: Asked, head_state: str) -> None:
    # By value: a node may have another version of this package, or none.
    ray.cloudpickle.register_pickle_by_value(node_module)
    probe_class = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(node_module.Probe)
    probes: dict[str, Any] = {}
    try:
        for node in ray.nodes():
            if node["Alive"]:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                probes[node["NodeManagerAddress"]] = probe_class.options(scheduling_strategy=there).remote()
        asked.alive = list(probes)
        looks = {a: probe.look.remote(head_state if a == asked.head else "") for a, probe in probes.items()}
        asked.looks = _got(looks, asked.silent)
        for address in asked.looks:
            clock = _clock(probes[address])
            if clock is not None:
                asked.clocks[address] = clock
        places = [(host, port) for _, host, port in asked.targets]
        trying = [a for a in asked.looks if len(probes) <= _ALL_TRY_MAX or a == asked.head]
        # A node that has just answered and now does not: silent as well.
        asked.reached = _got({a: probes[a].reach.remote(places) for a in trying}, asked.silent)
    finally:
        ray.cloudpickle.unregister_pickle_by_value(node_module)
        for probe in probes.values():
            ray.kill(probe)


def _got(asking: dict[str, Any], silent: dict[str, str]) -> dict[str, Any]:
    """The answers that come in time; who gives none is noted."""
    until_s = time.monotonic() + _START_S
    got = {}
    for address, answer in asking.items():
        try:
            got[address] = ray.get(answer, timeout=max(0.1, until_s - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            silent[address] = f"no answer in {_START_S:g} s"
        except ray.exceptions.RayError as failed:
            silent[address] = type(failed).__name__
    return got


def _clock(probe: Any) -> Clock | None:
    """The quickest of a few answers says most: the node's clock was read between asking and hearing."""
    best: Clock | None = None
    for _ in range(_CLOCKS):
        began_s, began = time.time(), time.monotonic()
        try:
            there_s = ray.get(probe.time_s.remote(), timeout=_START_S)
        except ray.exceptions.RayError:
            return None
        took_s = time.monotonic() - began
        if best is None or took_s / 2 < best.error_s:
            best = Clock(there_s - (began_s + took_s / 2), took_s / 2)
    return best
