"""Everwarm: many tenants' WebAssembly workers on a Ray cluster, kept warm.

    import everwarm

    with everwarm.connect() as cluster:
        print(cluster.fetch("hello").text)

The names are loaded when they are first used: importing Ray takes a second, and ``everwarm --help`` should not.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everwarm.answers import DeployFailed, Deployment, EverwarmError, NotRunning, Response
    from everwarm.async_client import AsyncClient
    from everwarm.client import Client, connect, connect_async

__all__ = [
    "AsyncClient",
    "Client",
    "DeployFailed",
    "Deployment",
    "EverwarmError",
    "NotRunning",
    "Response",
    "connect",
    "connect_async",
]
__version__ = "0.1.0"

_HOMES = {
    **dict.fromkeys(("DeployFailed", "Deployment", "EverwarmError", "NotRunning", "Response"), "everwarm.answers"),
    "AsyncClient": "everwarm.async_client",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(_HOMES.get(name, "everwarm.client")), name)
    raise AttributeError(f"module 'everwarm' has no attribute {name!r}")
