"""This process as a driver of Ray: of one of our own on this machine, or of one that runs on several.

Where Ray reads its environment, which addresses it takes for its own, and how its nodes are told: all that is Ray's and
not ours is here and in ``cluster``.
"""

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
import ray.exceptions
import ray.util
from ray._private import ray_constants, services, state
from ray._private import worker as ray_worker
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.experimental import internal_kv

from everwarm.nodes import Node
from everwarm.roles import CONTROL, STANDBY_ROLE

#: Where our actors' names are ours alone.
NAMESPACE = "everwarm"
#: Where Ray's head keeps the names of processes that took over a role: they have others than the first had.
_KEYS = b"everwarm"
#: Until Ray has heard that processes are gone which it was told to end.
_ENDED_S_MAX = 10.0
#: The ControlPlane's process answers at once; a head that is gone never does.
_SAID_S_MAX = 10.0
#: A connection between two machines of a cluster takes below a millisecond.
_HEAD_S_MAX = 3.0


def _read_environment() -> None:
    """Ray reads its environment (authentication among it) once, when it is imported, and its token at the first use; a
    driver may have done both for another cluster. Ray itself refreshes them by these calls."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _stay_on_loopback() -> None:
    """Ray replaces 127.0.0.1 by the machine's own address, and then listens for its whole network, except where this
    switch of its own says that the machine is a desktop."""
    ray_constants.ENABLE_RAY_CLUSTER = False


def _keep_quiet() -> None:
    """Ray prints to every driver's stdout what it notices of nodes and workers, which has no place in a JSON document.
    Drivers that stop in a debugger have this switch."""
    ray_worker._worker_logs_enabled = False


def start_ray() -> None:
    """Start a Ray of our own on this machine, on loopback, which ends with this process."""
    _read_environment()
    _stay_on_loopback()
    _keep_quiet()
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        configure_logging=False,
        namespace=NAMESPACE,
    )


def _try_head(address: str) -> None:
    """Whether somebody listens at the address of Ray's head. Without, Ray tries for 20 s and then ends this process,
    with a line of its log. ``ConnectionError``."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # another form, which Ray may know
    try:
        socket.create_connection((host.strip("[]"), int(port)), _HEAD_S_MAX).close()
    except OSError as away:
        why = "it took too long" if isinstance(away, TimeoutError) else away.strerror or type(away).__name__
        raise ConnectionError(f"Ray's head at {address} does not answer: {why}") from away


def join_ray(address: str) -> bool:
    """Be a driver of the Ray at ``address``; ``auto`` finds one that runs on this machine. ``ConnectionError``, also
    when its head does not answer.

    False when this process is a driver already: then whoever began that ends it.
    """
    if ray.is_initialized():
        return False
    _read_environment()
    if address == "auto":
        address = services.canonicalize_bootstrap_address_or_die("auto")
    _try_head(address)
    if address.startswith("127."):
        _stay_on_loopback()
    _keep_quiet()
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


def say_process(address: str, name: str) -> None:
    """The process of a role is the actor of this name from now on. Waits for Ray's head."""
    internal_kv._internal_kv_put(f"process of {address}".encode(), name.encode(), namespace=_KEYS)


def roles_by_name() -> dict[str, str]:
    """The addresses of roles that were taken over, by the names of the actors that did. Waits for Ray's head."""
    keys: list[bytes] = internal_kv._internal_kv_list(b"process of ", namespace=_KEYS)
    names = {key: internal_kv._internal_kv_get(key, namespace=_KEYS) for key in keys}
    return {name.decode(): key.decode().removeprefix("process of ") for key, name in names.items() if name is not None}


def control_process() -> Any:
    """The handle of the ControlPlane's process. Waits for Ray's head. ``LookupError`` when there is none."""
    name = internal_kv._internal_kv_get(f"process of {CONTROL}".encode(), namespace=_KEYS)
    try:
        return ray.get_actor(CONTROL if name is None else name.decode(), namespace=NAMESPACE)
    except ValueError as nobody:
        raise LookupError("no cluster runs on this Ray") from nobody


def has_control() -> bool:
    """Whether there is one. Waits for Ray's head."""
    try:
        control_process()
    except LookupError:
        return False
    return True


class Attached:
    """A way to a cluster that runs: who introduces its roles, how to leave it, and what it says of itself."""

    def __init__(self, leave: Callable[[], None]) -> None:
        """``LookupError`` when no cluster of ours runs on this process's Ray."""
        self.leave = leave
        self._control = control_process()

    async def introduce(self, address: str) -> Any:
        """The actor handle of a role, or None. ``RayError`` when there is no ControlPlane to ask."""
        if address == CONTROL:
            await self._look_again()  # whoever asks has none, or one that is gone
            return self._control
        try:
            found = await self._control.introduce.remote(address)
        except ray.exceptions.ActorDiedError:
            await self._look_again()
            found = await self._control.introduce.remote(address)
        return found[0] if found else None

    async def _look_again(self) -> None:
        with suppress(LookupError):  # it is being restarted
            self._control = await asyncio.to_thread(control_process)

    def said(self) -> bytes:
        """What the cluster says of itself; empty until it is ready. ``RayError``, ``LookupError``."""
        try:
            told: bytes = ray.get(self._control.said.remote(), timeout=_SAID_S_MAX)
        except ray.exceptions.ActorDiedError:
            self._control = control_process()
            told = ray.get(self._control.said.remote(), timeout=_SAID_S_MAX)
        return told


def attach(address: str) -> Attached:
    """Join the Ray at ``address`` as a driver. ``LookupError`` when no cluster of ours runs on it.

    A program that has initialised Ray itself stays connected when it leaves.
    """
    leave = leave_ray if join_ray(address) else lambda: None
    try:
        return Attached(leave)
    except LookupError:
        leave()
        raise


def end_detached() -> int:
    """End every process of ours on the Ray that this process is a driver of; how many there were.

    What is left of a cluster whose own process was killed. They are ended as they are: nobody knows what they do.
    """
    names = _named()
    for name in sorted(names, key=order_of_ending):
        with suppress(ValueError):  # it ended by itself meanwhile
            ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)
    # A name is free when Ray has heard that its process is gone; whoever starts anew needs them.
    until_s = time.monotonic() + _ENDED_S_MAX
    while names and _named() and time.monotonic() < until_s:
        time.sleep(0.1)
    return len(names)


def _named() -> list[str]:
    """The names of all our actors."""
    found = ray.util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in found if actor["namespace"] == NAMESPACE]


def order_of_ending(address: str) -> int:
    """The edge first, so that nobody comes to what is not there any more, and the ControlPlane last."""
    role = address.rpartition("/")[2].partition("-")[0]
    return ("ingress", "shard", "server", "host", CONTROL, STANDBY_ROLE.name).index(role)
