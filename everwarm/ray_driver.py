"""This process as a driver of Ray: of one of our own on this machine, or of one that runs on several.

Where Ray reads its environment, which addresses it takes for its own, and how its nodes are told: all that is Ray's and
not ours is here and in ``cluster``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from ray._private import ray_constants, services, state
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from everwarm.nodes import Node
from everwarm.roles import CONTROL

#: Where our actors' names are ours alone.
NAMESPACE = "everwarm"
#: The ControlPlane's process answers at once; a head that is gone never does.
_SAID_S_MAX = 10.0


def _read_environment() -> None:
    """Ray reads its environment (authentication among it) once, when it is imported, and its token at the first use; a
    driver may have done both for another cluster. Ray itself refreshes them by these calls."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _stay_on_loopback() -> None:
    """Ray replaces 127.0.0.1 by the machine's own address, and then listens for its whole network, except where this
    switch of its own says that the machine is a desktop."""
    ray_constants.ENABLE_RAY_CLUSTER = False


def start_ray() -> None:
    """Start a Ray of our own on this machine, on loopback, which ends with this process."""
    _read_environment()
    _stay_on_loopback()
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        configure_logging=False,
        namespace=NAMESPACE,
    )


def join_ray(address: str) -> bool:
    """Be a driver of the Ray at ``address``; ``auto`` finds one that runs on this machine. ``ConnectionError``.

    False when this process is a driver already: then whoever began that ends it.
    """
    if ray.is_initialized():
        return False
    _read_environment()
    if address == "auto":
        address = services.canonicalize_bootstrap_address_or_die("auto")
    if address.startswith("127."):
        _stay_on_loopback()
    ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    return True


def leave_ray() -> None:
    """Be a driver no longer. A Ray that ``start_ray`` started ends."""
    ray.shutdown()


def ray_address() -> str:
    """Where drivers reach this Ray."""
    return str(ray.get_runtime_context().gcs_address)


def own_node() -> str:
    """Ray's id of the node that this process is on."""
    return str(ray.get_runtime_context().get_node_id())


def ray_nodes() -> list[Node]:
    """The nodes that live, as Ray knows them now. Waits for Ray's head; ``RayError`` and ``RuntimeError``."""
    draining = state.state.get_draining_nodes()
    return [
        Node(node["NodeID"], node["NodeManagerAddress"], leaves=node["NodeID"] in draining)
        for node in ray.nodes()
        if node["Alive"]
    ]


@dataclass(frozen=True, slots=True)
class Attached:
    """A way to a cluster that runs: its ControlPlane's process, how to leave it, and what it says of itself."""

    control: Any
    leave: Callable[[], None]
    said: Callable[[], bytes]


def attach(address: str) -> Attached:
    """Join the Ray at ``address`` as a driver. ``LookupError`` when no cluster of ours runs on it.

    A program that has initialised Ray itself stays connected when it leaves.
    """
    leave = leave_ray if join_ray(address) else lambda: None
    try:
        # Named once, here: everything else is met through it.
        control = ray.get_actor(CONTROL, namespace=NAMESPACE)
    except ValueError as nobody:
        leave()
        raise LookupError(f"no cluster runs on the Ray at {address}") from nobody

    def said() -> bytes:
        told: bytes = ray.get(control.said.remote(), timeout=_SAID_S_MAX)
        return told

    return Attached(control, leave, said)
