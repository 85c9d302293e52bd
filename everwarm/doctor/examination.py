"""Finds out what ``findings`` judges: asks this machine, Ray, every node through Ray, and every worker over ssh."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from everwarm.doctor import node as node_program
from everwarm.doctor.facts import Clock, ClusterFacts, Disk, Node, Port, Ssh, Token
from everwarm.doctor.ray_up import LoggedIn, RayUp, decode_look, launcher_said
from everwarm.home import Home


class NothingToExamine(Exception):
    """There is no cluster here; the message says so in one line."""


@dataclass(frozen=True, slots=True)
class _Ray:
    """Where the Ray is that is asked, and what is known of the cluster on it before."""

    address: str
    on_nodes: bool
    environment: Mapping[str, str]


def examine(home: Home, progress: Callable[[str], None]) -> ClusterFacts:
    """All facts, in below a minute. ``NothingToExamine``."""
    ray_up = RayUp.here()
    where = _where(home, ray_up)
    os.environ.update(where.environment)
    # Imported here: Ray reads its environment when it is imported.
    from everwarm.doctor.asking import ask

    here = node_program.look(str(home.directory))
    progress(f"asking Ray at {where.address}")
    asked = ask(where.address, None if where.on_nodes else home.running(), str(home.directory))
    head = (ray_up.head if ray_up is not None and where.on_nodes else "") or asked.head or here["hostname"]
    looked_over_ssh: list[LoggedIn] = []
    if ray_up is not None and where.on_nodes:
        workers = ray_up.workers if ray_up.workers is not None else tuple(a for a in asked.alive if a != head)
        if workers:
            progress(f"logging in to {len(workers)} workers")
            looked_over_ssh = ray_up.look(workers)
    nodes = [_node(a, plain, "ray", asked.clocks.get(a, Clock(0.0, 0.0))) for a, plain in asked.looks.items()]
    if head not in asked.looks:
        nodes.insert(0, _node(head, here, "here", Clock(0.0, 0.0)))
    nodes += _over_ssh(looked_over_ssh, {node.address for node in nodes})
    return ClusterFacts(
        head=head,
        expected=ray_up.workers if ray_up is not None and where.on_nodes else None,
        ssh=tuple(Ssh(one.address, one.refused) for one in looked_over_ssh),
        ray_address=where.address,
        ray_failure=asked.failure,
        ray_nodes=tuple(sorted(asked.alive)),
        silent=asked.silent,
        nodes=tuple(sorted(nodes, key=lambda node: (node.address != head, node.address))),
        ports=tuple(
            Port(of, address, port, place, failed)
            for place, failures in sorted(asked.reached.items())
            for (of, address, port), failed in zip(asked.targets, failures, strict=True)
        ),
        actors=tuple(asked.actors),
        servers=None if asked.running is None else dict(asked.running.addresses),
        on_nodes=where.on_nodes,
        launcher_said=tuple(launcher_said()) if ray_up is not None else (),
    )


def _where(home: Home, ray_up: RayUp | None) -> _Ray:
    running, joined = home.running(), home.joined()
    if running is not None and not running.on_nodes:
        return _Ray(running.ray_address, False, home.ray_environment())
    known = [running.ray_address if running else "", joined.ray_address if joined else ""]
    address = next(filter(None, known), "") or os.environ.get("RAY_ADDRESS", "") or ("auto" if ray_up else "")
    if not address:
        raise NothingToExamine(
            "No cluster runs from this state directory, and `ray up` has not made this machine a head."
            " Start one with: everwarm up --detach"
        )
    return _Ray(address, True, home.joined_environment())


def _over_ssh(looked: list[LoggedIn], known: set[str]) -> list[Node]:
    """Those that Ray did not look at. A login takes its time, so their clocks are known less exactly."""
    found = []
    for one in looked:
        if one.address not in known and not one.refused:
            plain = decode_look(one.said)
            middle_s = (one.began_s + one.ended_s) / 2
            error_s = (one.ended_s - one.began_s) / 2
            found.append(_node(one.address, plain, "ssh", Clock(plain["time_s"] - middle_s, error_s)))
    return found


def _node(address: str, plain: Mapping[str, Any], asked_by: str, clock: Clock) -> Node:
    return Node(
        address,
        plain["hostname"],
        asked_by,
        plain["versions"],
        Token(**plain["token"]),
        plain["environment"],
        tuple(Disk(**disk) for disk in plain["disks"]),
        clock,
    )
