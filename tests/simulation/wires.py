"""Unix sockets in memory: listeners by path, and connected ends that carry bytes in order.

They keep what a kernel promises and nothing more. Bytes that were written arrive, also when their writer dies right
after; then comes the end. A connection to a path where nobody listens is refused. A reader that does not read fills a
buffer of bounded size, and then the writer is told to pause. A machine that *sleeps* (starved, stopped, swapped out)
hears nothing until it wakes; what was sent to it waits.
"""

import asyncio
import errno
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.simulation.virtual_loop import VirtualLoop

#: What a kernel holds of a connection's unread bytes, about; the writer pauses beyond it, and goes on below a quarter.
_HELD_BYTES_MAX = 256 * 1024

Factory = Callable[[], asyncio.BaseProtocol]


class Wire(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, wires: "Wires", path: str) -> None:
        super().__init__()
        self._wires = wires
        self._path = path
        self._call_soon = wires.loop.call_soon
        self._protocol: Any = None
        self._far: Wire | None = None
        self._inbox: deque[bytes] = deque()  # an empty piece is the end
        self._inbox_bytes = 0
        self._coming = False
        self._stopped = False  # its protocol does not read
        self._far_paused = False
        self._closed = False

    def meet(self, far: "Wire", protocol: asyncio.BaseProtocol) -> None:
        """The other end, and who reads here."""
        self._far, self._protocol = far, protocol

    # a writer's side

    def write(self, data: bytes | bytearray | memoryview) -> None:
        far = self._far
        if self._closed or far is None or not data or far._closed:
            return
        far._inbox.append(bytes(data))
        far._inbox_bytes += len(data)
        if not far._coming:
            far._come()
        if far._inbox_bytes > _HELD_BYTES_MAX and not far._far_paused:
            far._far_paused = True
            self._protocol.pause_writing()

    def abort(self) -> None:
        """Nothing more is read or written here; the other end hears of it after what was written before."""
        if self._closed:
            return
        self._closed = True
        self._inbox.clear()
        self._wires.gone(self._path, self)
        self._wires.loop.call_soon(self._protocol.connection_lost, None)
        far = self._far
        if far is not None and not far._closed:
            far._inbox.append(b"")
            far._come()

    close = abort

    def is_closing(self) -> bool:
        return self._closed

    # a reader's side

    def pause_reading(self) -> None:
        self._stopped = True

    def resume_reading(self) -> None:
        self._stopped = False
        self._come()

    def _come(self) -> None:
        if self._coming or not self._inbox:
            return
        self._coming = True
        wires = self._wires
        if wires.asleep and (wakes_s := wires.wakes_at(self._path)) > wires.loop.time():
            wires.loop.call_at(wakes_s, self._arrive)
        else:
            self._call_soon(self._arrive)

    def _arrive(self) -> None:
        self._coming = False
        inbox = self._inbox
        while inbox and not self._stopped and not self._closed:
            data = inbox.popleft()
            if not data:
                self._ended()
                return
            self._inbox_bytes -= len(data)
            self._protocol.data_received(data)
        if self._far_paused and self._inbox_bytes < _HELD_BYTES_MAX // 4:
            self._far_paused = False
            if self._far is not None and not self._far._closed:
                self._far._protocol.resume_writing()

    def _ended(self) -> None:
        self._closed = True
        self._wires.gone(self._path, self)
        self._protocol.connection_lost(None)


class Listening:
    """What ``create_unix_server`` gives."""

    def __init__(self, wires: "Wires", path: str) -> None:
        self._wires = wires
        self._path = path

    def close(self) -> None:
        self._wires.listeners.pop(self._path, None)


class Wires:
    """All sockets of a cluster, by path; ``machine_of`` says on which machine a path is."""

    def __init__(self, loop: "SocketLoop", machine_of: Callable[[str], str]) -> None:
        self.loop = loop
        self.listeners: dict[str, Factory] = {}
        self._accepted: dict[str, dict[Wire, None]] = {}  # the listener's ends
        self._machine_of = machine_of
        self._machines: dict[str, str] = {}
        self._wakes: dict[str, float] = {}
        #: Whether any machine slept yet; only then the moment of its waking matters.
        self.asleep = False

    def listen(self, factory: Factory, path: str) -> Listening:
        self.listeners[path] = factory
        return Listening(self, path)

    def connect(self, factory: Factory, path: str) -> tuple[Wire, asyncio.BaseProtocol]:
        """``ConnectionRefusedError`` when nobody listens."""
        accept = self.listeners.get(path)
        if accept is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        near, far = Wire(self, path), Wire(self, path)
        here, there = factory(), accept()
        near.meet(far, here)
        far.meet(near, there)
        self._accepted.setdefault(path, {})[far] = None
        here.connection_made(near)
        there.connection_made(far)
        return near, here

    def gone(self, path: str, wire: Wire) -> None:
        self._accepted[path].pop(wire, None)

    def cut(self, path: str) -> None:
        """The process that listens at ``path`` dies: nobody listens any more, and its ends of connections close."""
        self.listeners.pop(path, None)
        for wire in list(self._accepted.get(path, ())):
            wire.abort()

    def open_at(self, path: str) -> int:
        """Connections that are open at ``path``."""
        return len(self._accepted.get(path, ()))

    def sleep(self, machine: str, until_s: float) -> None:
        """Nothing is read on ``machine`` until then."""
        self.asleep = True
        self._wakes[machine] = max(until_s, self._wakes.get(machine, 0.0))

    def wakes_at(self, path: str) -> float:
        """When the machine of ``path`` reads again; the past when it does."""
        machine = self._machines.get(path)
        if machine is None:
            machine = self._machines[path] = self._machine_of(path)
        return self._wakes.get(machine, 0.0)


class SocketLoop(VirtualLoop):
    """A virtual loop whose Unix sockets are in memory."""

    def __init__(self, machine_of: Callable[[str], str]) -> None:
        super().__init__()
        self.wires = Wires(self, machine_of)

    async def create_unix_connection(self, protocol_factory: Factory, path: str, **_: Any) -> Any:  # type: ignore[override]
        return self.wires.connect(protocol_factory, path)

    async def create_unix_server(self, protocol_factory: Factory, path: str, **_: Any) -> Any:  # type: ignore[override]
        return self.wires.listen(protocol_factory, path)
