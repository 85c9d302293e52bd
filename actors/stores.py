"""Key-value stores between a guest and the file where they are: who may open what, and on which way.

    guest's thread, IsolateHost          Server's event loop                        ControlPlane
    wasi/keyvalue.py ── HostStores ────► StoreDesk: is it bound, is there room ───► store_file.py
                        STORE, one connection each

Which store a name stands for is in the version's manifest, and the Server looks there. A store belongs to whoever may
bind it: workers of no namespace, which are the platform's own, share theirs by name; those of a user in a namespace are
that user's alone, whatever they are called.
"""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from actors.connection import Frame, LinkBroken, frame
from actors.host_conversation import LinkSocket
from actors.peer import PeerFailed, PeerLost, Peers
from actors.wire import Codec, Undecodable
from actors.worker import Version
from actors.worker_names import namespace_of
from isolates.stores import StoreAsked, StoreTold

_log = logging.getLogger("everwarm.server")

#: The ControlPlane answers in milliseconds, or is away.
_CARRIED_OUT_S_MAX = 5.0
#: Operations under way of a machine, and of one worker on it. The ControlPlane does one after the other.
_UNDER_WAY_MAX = 256
_UNDER_WAY_OF_WORKER_MAX = 32


class StoreOrder(msgspec.Struct, frozen=True):
    """An operation on its way to the Server: ``store`` is what the guest calls it. From there to the ControlPlane it is
    what it is called there, and nobody's version is named."""

    store: str
    asked: StoreAsked
    worker: str = ""
    version: str = ""


ORDER = Codec(StoreOrder)
TOLD = Codec(StoreTold)


def store_id(worker: str, store: str) -> str:
    """What the store that a worker binds is called among all. No name of a store has a slash or a colon."""
    return f"{worker}:{store}" if namespace_of(worker) else store


class HostStores:
    """The stores of one version, on its host. Making it is free; each operation makes a connection."""

    def __init__(self, server_socket: Path, worker: str, version: str) -> None:
        self._path = str(server_socket)
        self._worker = worker
        self._version = version

    def begin(self, store: str, asked: StoreAsked) -> "HostStoreCall | StoreTold":
        """Send an operation to this machine's Server."""
        order = ORDER.encode(StoreOrder(store, asked, self._worker, self._version))
        if len(order) > _ORDER_BYTES_MAX:
            return _other("more than fits into one operation")
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link = LinkSocket(connected)
        try:
            connected.connect(self._path)
            link.send(frame(Frame.STORE, order))
        except (OSError, LinkBroken):
            link.close()
            return _other("the stores are away")
        return HostStoreCall(link)


#: A batch of the largest size, in a frame of 1 MiB.
_ORDER_BYTES_MAX = 900 * 1024


class HostStoreCall:
    """One operation, on a connection of its own."""

    def __init__(self, link: LinkSocket) -> None:
        self._link = link

    def fileno(self) -> int:
        return self._link.socket.fileno()

    def told(self) -> StoreTold | None:
        try:
            received = self._link.receive(0.0)
            return None if received is None else TOLD.decode(received[1])
        except (LinkBroken, Undecodable):
            return _other("the stores are away")

    def close(self) -> None:
        self._link.close()


class StoreDesk:
    """What the guests of one machine ask of stores. It lives in the Server's process."""

    def __init__(self, version_of: Callable[[str, str], Awaitable[Version | None]], peers: Peers) -> None:
        self._version_of = version_of
        self._peers = peers
        self._under_way: Counter[str] = Counter()

    async def answer(self, payload: bytes) -> bytes:
        """One operation of a host of this machine."""
        order = ORDER.decode(payload)
        version = await self._version_of(order.worker, order.version)
        store = None if version is None else version.bindings.store_of(order.store)
        if store is None:
            return TOLD.encode(StoreTold(error=("no-such-store", None)))
        if order.asked.op == "open":
            return TOLD.encode(StoreTold())
        if self._under_way[order.worker] >= _UNDER_WAY_OF_WORKER_MAX or self._under_way.total() >= _UNDER_WAY_MAX:
            return TOLD.encode(_other("too many operations at once"))
        self._under_way[order.worker] += 1
        try:
            async with asyncio.timeout(_CARRIED_OUT_S_MAX):
                control = await self._peers.get("control")
                return await control.call("store", ORDER.encode(StoreOrder(store_id(order.worker, store), order.asked)))
        except (PeerLost, PeerFailed, TimeoutError) as away:
            _log.warning("an operation on a store of %s failed: %s", order.worker, away or "it took too long")
            return TOLD.encode(_other("the stores are away"))
        finally:
            self._under_way[order.worker] -= 1
            if not self._under_way[order.worker]:
                del self._under_way[order.worker]


def _other(why: str) -> StoreTold:
    return StoreTold(error=("other", why))
