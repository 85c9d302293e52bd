"""A host's ear at its Server: which calls between its own guests it may carry out, until it hears otherwise.

One connection, on which the Server gives leases and takes them back, in order. While it is broken there are none.
"""

import logging
import socket
import threading
from contextlib import suppress
from pathlib import Path

from actors.connection import Frame, LinkBroken, frame
from actors.host_conversation import LinkSocket
from actors.inner_leases import InnerLeases
from actors.view import decode_plain

_log = logging.getLogger("everwarm.lease_line")

#: Until the Server is tried again: it is restarting, or has not started yet.
_AGAIN_S = 0.1


class LeaseLine:
    """One thread that listens."""

    def __init__(self, server_socket: Path, host_socket: Path, leases: InnerLeases) -> None:
        self._path = str(server_socket)
        self._host_socket = str(host_socket)
        self._leases = leases
        self._stopping = threading.Event()
        self._connected: socket.socket | None = None

    def begin(self) -> None:
        """Listen from now on."""
        threading.Thread(target=self._follow, name="leases", daemon=True).start()

    def stop(self) -> None:
        """Stop listening."""
        self._stopping.set()
        connected = self._connected
        if connected is not None:
            with suppress(OSError):  # the Server was faster
                connected.shutdown(socket.SHUT_RDWR)

    def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connected:
                    connected.connect(self._path)
                    self._connected = connected
                    self._hear(LinkSocket(connected))
            except (OSError, LinkBroken, ValueError) as broken:
                if not self._stopping.is_set():
                    _log.info("the Server gives no leases: %s", broken)
            self._connected = None
            self._leases.forget()
            self._stopping.wait(_AGAIN_S)

    def _hear(self, link: LinkSocket) -> None:
        link.send(frame(Frame.SUBSCRIBE, self._host_socket.encode()))
        while not self._stopping.is_set():
            received = link.receive(None)
            if received is not None:
                self._leases.heard(decode_plain(received[1]))
